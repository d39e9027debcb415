//! The program of the virtual machine, and a model that computes its expected results.
//!
//! The page tables map each address to the same physical address, in pages of 2 MiB:
//!
//! ```text
//! 0x0000_1000  page tables: one table of each of three levels
//! 0x0001_0000  the program
//! 0x07ff_fff0  the report: two sums
//! 0x0800_0000  128 MiB that the program writes to, up to the end of the memory
//! ```
#![allow(unsafe_code)]

use std::arch::global_asm;
use std::collections::{BTreeSet, HashMap};
use std::slice;

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

/// The size of guest memory in bytes.
pub const MEMORY: usize = 256 << 20;
/// The number of pages that the program writes to, of 4 KiB each.
pub const WORK_PAGES: usize = (MEMORY - WORK) / PAGE;
/// The port that the program writes to after each batch.
pub(super) const PORT: u16 = 0x10;

const PAGE: usize = 4096;
const TABLES: usize = 0x1000;
const CODE: usize = 0x1_0000;
const WORK: usize = 0x800_0000;
const REPORT: usize = WORK - 16;
/// The first random number. It must not be zero.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
/// The distance in pages from one step to the next. It is odd, so as many steps as there are pages visit each page once.
const STRIDE: usize = 0x1e37_79b1;

// A step adds the next random number to a word of the next page and rotates the word. It adds the word to a sum in a
// general register and to an exclusive or in a vector register. Both are kept as long as the machine exists. After a
// batch of steps, the program stores both results and writes to the port. The random numbers are those of Marsaglia's
// xorshift (Xorshift RNGs, 2003: the triple 13, 7, 17).
//
//   rdi  address of the first page       r8   random number         rbx   sum of words
//   rsi  number of pages, less one       r9   steps so far          xmm0  exclusive or of words
//   r10  steps of a batch                rcx  steps left of it
global_asm!(
    ".pushsection .rodata.memsnap_guest",
    "memsnap_guest_start:",
    "2:  mov rcx, r10",
    "3:  mov rax, r8",
    "    shl rax, 13",
    "    xor r8, rax",
    "    mov rax, r8",
    "    shr rax, 7",
    "    xor r8, rax",
    "    mov rax, r8",
    "    shl rax, 17",
    "    xor r8, rax",
    "    imul rdx, r9, {stride}",
    "    and rdx, rsi",
    "    shl rdx, 12",
    "    add rdx, rdi",
    "    mov rax, r8",
    "    shr rax, 55",
    "    lea rdx, [rdx + rax * 8]",
    "    mov rax, [rdx]",
    "    add rax, r8",
    "    rol rax, 11",
    "    mov [rdx], rax",
    "    add rbx, rax",
    "    movq xmm1, rax",
    "    pxor xmm0, xmm1",
    "    inc r9",
    "    dec rcx",
    "    jnz 3b",
    "    mov [rdi - 16], rbx",
    "    movq [rdi - 8], xmm0",
    "    out {port}, al",
    "    jmp 2b",
    "memsnap_guest_end:",
    ".popsection",
    stride = const STRIDE,
    port = const PORT,
);

unsafe extern "C" {
    #[link_name = "memsnap_guest_start"]
    safe static START: u8;
    #[link_name = "memsnap_guest_end"]
    safe static END: u8;
}

/// Returns the machine code of the program.
fn program() -> &'static [u8] {
    let len = (&raw const END).addr() - (&raw const START).addr();
    // SAFETY: in the assembly above, these symbols are the start and the end of the program, in read-only data.
    unsafe { slice::from_raw_parts(&raw const START, len) }
}

/// The result of a batch of steps: both sums over all steps so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Report {
    /// The sum of all words written, from a general register.
    pub sum: u64,
    /// The exclusive or of all words written, from a vector register.
    pub mix: u64,
}

/// Writes the page tables and the program to `memory`, which must be all zero.
pub(super) fn load(memory: &mut [u8]) {
    const PRESENT_WRITABLE_USER: u64 = 0b111;
    const LARGE: u64 = 1 << 7;
    write(memory, TABLES, (TABLES + PAGE) as u64 | PRESENT_WRITABLE_USER);
    write(memory, TABLES + PAGE, (TABLES + 2 * PAGE) as u64 | PRESENT_WRITABLE_USER);
    for (index, start) in (0..MEMORY).step_by(2 << 20).enumerate() {
        write(memory, TABLES + 2 * PAGE + 8 * index, start as u64 | LARGE | PRESENT_WRITABLE_USER);
    }
    memory[CODE..][..program().len()].copy_from_slice(program());
}

/// Reads the report in guest memory.
pub(super) fn report(memory: &[u8]) -> Report {
    Report { sum: read(memory, REPORT), mix: read(memory, REPORT + 8) }
}

/// Returns the general registers at the start of the program.
pub(super) fn registers() -> kvm_regs {
    // Bit 1 is always set. I/O privilege level 3 allows user mode to write to the port.
    const FLAGS: u64 = (1 << 1) | (3 << 12);
    kvm_regs {
        rip: CODE as u64,
        rflags: FLAGS,
        rdi: WORK as u64,
        rsi: WORK_PAGES as u64 - 1,
        r8: SEED,
        r10: 1,
        ..kvm_regs::default()
    }
}

/// Changes `registers` from those of a processor after reset to those of 64-bit long mode.
///
/// The program runs in user mode (ring 3). In nested virtual machines, the processor runs this mode itself, but each
/// instruction of a guest's kernel mode may be emulated.
pub(super) fn enter_long_mode(registers: &mut kvm_sregs) {
    const PROTECTION: u64 = 1;
    const MONITOR_COPROCESSOR: u64 = 1 << 1;
    const EXTENSION_TYPE: u64 = 1 << 4;
    const NUMERIC_ERROR: u64 = 1 << 5;
    const WRITE_PROTECT: u64 = 1 << 16;
    const PAGING: u64 = 1 << 31;
    const PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
    const SSE: u64 = (1 << 9) | (1 << 10);
    const LONG_MODE_ENABLE: u64 = 1 << 8;
    const LONG_MODE_ACTIVE: u64 = 1 << 10;

    let data = kvm_segment {
        limit: u32::MAX,
        selector: (2 << 3) | 3,
        type_: 0b0011, // data, written and accessed
        present: 1,
        dpl: 3,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let code = kvm_segment { selector: (1 << 3) | 3, type_: 0b1011, db: 0, l: 1, ..data };
    registers.cs = code;
    for segment in
        [&mut registers.ds, &mut registers.es, &mut registers.fs, &mut registers.gs, &mut registers.ss]
    {
        *segment = data;
    }
    registers.cr0 =
        PROTECTION | MONITOR_COPROCESSOR | EXTENSION_TYPE | NUMERIC_ERROR | WRITE_PROTECT | PAGING;
    registers.cr3 = TABLES as u64;
    registers.cr4 = PHYSICAL_ADDRESS_EXTENSION | SSE;
    registers.efer = LONG_MODE_ENABLE | LONG_MODE_ACTIVE;
}

/// The computation of the guest, repeated on the host without a virtual machine and without memsnap.
#[derive(Clone)]
pub struct Model {
    words: HashMap<usize, u64>,
    random: u64,
    steps: usize,
    report: Report,
}

impl Default for Model {
    fn default() -> Self {
        Self { words: HashMap::new(), random: SEED, steps: 0, report: Report { sum: 0, mix: 0 } }
    }
}

impl Model {
    /// Computes the next `steps` steps. Returns the report that the guest must make.
    pub fn run(&mut self, steps: usize) -> Report {
        for _ in 0..steps {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let page = self.steps.wrapping_mul(STRIDE) & (WORK_PAGES - 1);
            let word = self.words.entry(WORK + page * PAGE + (self.random >> 55) as usize * 8).or_default();
            *word = word.wrapping_add(self.random).rotate_left(11);
            self.report.sum = self.report.sum.wrapping_add(*word);
            self.report.mix ^= *word;
            self.steps += 1;
        }
        self.report
    }

    /// Returns the number of steps so far.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Returns the pages that the guest must have changed since the state `earlier`.
    ///
    /// They are offsets in guest memory, in ascending order.
    #[must_use]
    pub fn pages_since(&self, earlier: &Self) -> Vec<usize> {
        let changed = self.words.iter().filter(|&(address, word)| earlier.words.get(address) != Some(word));
        let pages: BTreeSet<_> =
            changed.map(|(address, _)| address & !(PAGE - 1)).chain([REPORT & !(PAGE - 1)]).collect();
        pages.into_iter().collect()
    }

    /// Returns whether the report and all pages that the program writes to have the expected bytes in `memory`.
    #[must_use]
    pub fn matches(&self, memory: &[u8]) -> bool {
        let mut expected = vec![0; MEMORY - WORK];
        for (&address, &word) in &self.words {
            write(&mut expected, address - WORK, word);
        }
        self.report == report(memory) && expected == memory[WORK..]
    }
}

fn read(memory: &[u8], address: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&memory[address..][..8]);
    u64::from_le_bytes(word)
}

fn write(memory: &mut [u8], address: usize, word: u64) {
    memory[address..][..8].copy_from_slice(&word.to_le_bytes());
}
