//! Finding memory of a realm that statics and thread-locals refer to.

use std::io;
use std::ops::Range;

use super::Realm;

/// A word of a static or a thread-local that is an address in a realm.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Escape {
    /// The path of the program or the shared library that the variable is in. Empty for the program itself.
    pub object: String,
    /// Whether the variable is a thread-local of the calling thread. Otherwise it is a static.
    pub thread_local: bool,
    /// The address of the word, from the start of the object, or of its thread-locals. `nm` lists the variables there.
    pub offset: usize,
    /// How many bytes behind the start of the realm it points.
    pub target: usize,
}

impl<T> Realm<T> {
    /// Looks for addresses in the realm among the statics of the process and the thread-locals of the calling thread.
    ///
    /// Call it in tests after closures have run. What it finds is memory that the realm's closures allocated and something
    /// outside keeps, or a number that looks like such an address.
    ///
    /// It notices aligned words in the writable segments of the program and its shared libraries, and in their static
    /// thread-local storage on this thread. It does not notice addresses
    ///
    /// - in memory of the usual allocator, even if a static refers to that memory,
    /// - in thread-locals of other threads, and those of libraries that were loaded later,
    /// - on the stack, such as in captured variables,
    /// - that are stored in another form: compressed, tagged, or not aligned.
    ///
    /// The time depends on the size of the statics, a few milliseconds.
    ///
    /// # Errors
    ///
    /// `Unsupported` on systems other than Linux. Otherwise those of `process_vm_readv`, by which the memory is read
    /// because other threads may be writing to it.
    pub fn escapes(&self) -> io::Result<Vec<Escape>> {
        let base = self.state.base().addr().get();
        // The addresses that the realm has now. Its first bytes are a header, to which no value refers.
        let realm = base + 1..base + self.state.stats().len;
        search(&realm)
    }
}

#[cfg(not(target_os = "linux"))]
fn search(_realm: &Range<usize>) -> io::Result<Vec<Escape>> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "looking for addresses of a realm in statics: memsnap can list the statics of a process only on Linux",
    ))
}

#[cfg(target_os = "linux")]
fn search(realm: &Range<usize>) -> io::Result<Vec<Escape>> {
    linux::search(realm)
}

#[cfg(target_os = "linux")]
mod linux {
    use std::ffi::{CStr, c_int, c_void};
    use std::io;
    use std::mem;
    use std::ops::Range;

    use super::Escape;
    use crate::realm::registry;

    /// A part of an object whose words can change.
    struct Part {
        object: String,
        thread_local: bool,
        /// What offsets are counted from.
        origin: usize,
        addresses: Range<usize>,
    }

    pub(super) fn search(realm: &Range<usize>) -> io::Result<Vec<Escape>> {
        let mut parts = Vec::<Part>::new();
        // SAFETY: `collect` fulfils the contract of the callback, and gets a pointer to `parts`.
        unsafe { libc::dl_iterate_phdr(Some(collect), (&raw mut parts).cast()) };
        let (mut found, own) = (Vec::new(), registry::own_statics());
        let mut words = vec![0_usize; 1 << 16];
        for part in &parts {
            let mut at = part.addresses.start.next_multiple_of(size_of::<usize>());
            while at + size_of::<usize>() <= part.addresses.end {
                let wanted = ((part.addresses.end - at) / size_of::<usize>()).min(words.len());
                let read = read(at, &mut words[..wanted])?;
                for (index, &word) in words[..read].iter().enumerate() {
                    let address = at + index * size_of::<usize>();
                    if realm.contains(&word) && !own.contains(&address) {
                        found.push(Escape {
                            object: part.object.clone(),
                            thread_local: part.thread_local,
                            offset: address - part.origin,
                            target: word - (realm.start - 1),
                        });
                    }
                }
                at += read.max(1) * size_of::<usize>();
            }
        }
        Ok(found)
    }

    /// Reads words of this process through the kernel. Returns how many could be read.
    fn read(address: usize, words: &mut [usize]) -> io::Result<usize> {
        let len = mem::size_of_val(words);
        let local = libc::iovec { iov_base: words.as_mut_ptr().cast(), iov_len: len };
        let remote = libc::iovec { iov_base: std::ptr::without_provenance_mut(address), iov_len: len };
        // SAFETY: takes no argument, and cannot fail.
        let process = unsafe { libc::getpid() };
        // SAFETY: the kernel writes only to `words`, and checks the address that it reads from.
        let read = unsafe { libc::process_vm_readv(process, &local, 1, &remote, 1, 0) };
        match usize::try_from(read) {
            Ok(read) => Ok(read / size_of::<usize>()),
            Err(_) => match io::Error::last_os_error() {
                // A page of the segment is not mapped, for example because it was made a guard.
                error if error.raw_os_error() == Some(libc::EFAULT) => Ok(0),
                error => Err(error),
            },
        }
    }

    /// Adds the writable segments and the thread-locals of an object.
    unsafe extern "C" fn collect(info: *mut libc::dl_phdr_info, size: usize, parts: *mut c_void) -> c_int {
        // SAFETY: the caller passes a valid description of an object.
        let info = unsafe { &*info };
        // SAFETY: `search` passes a pointer to a vector that nothing else uses.
        let parts = unsafe { &mut *parts.cast::<Vec<Part>>() };
        let object = if info.dlpi_name.is_null() {
            String::new()
        } else {
            // SAFETY: the name is a string that ends with a zero byte.
            unsafe { CStr::from_ptr(info.dlpi_name) }.to_string_lossy().into_owned()
        };
        // SAFETY: the description has this many headers.
        let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
        let base = usize::try_from(info.dlpi_addr).unwrap_or(0);
        for header in headers {
            let len = usize::try_from(header.p_memsz).unwrap_or(0);
            if header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W != 0 {
                let start = base.wrapping_add(usize::try_from(header.p_vaddr).unwrap_or(0));
                let addresses = start..start.saturating_add(len);
                parts.push(Part { object: object.clone(), thread_local: false, origin: base, addresses });
            }
            // Older C libraries pass a shorter description, without thread-locals.
            let has_locals = size >= mem::offset_of!(libc::dl_phdr_info, dlpi_tls_data) + size_of::<usize>();
            if header.p_type == libc::PT_TLS && has_locals && !info.dlpi_tls_data.is_null() {
                let start = info.dlpi_tls_data.addr();
                let addresses = start..start.saturating_add(len);
                parts.push(Part { object: object.clone(), thread_local: true, origin: start, addresses });
            }
        }
        0
    }
}
