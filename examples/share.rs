//! A snapshot for several processes: each maps the same memory and writes, without affecting the others.
//!
//! ```text
//! cargo run --release --example share
//! ```
//!
//! The program makes a snapshot of 64 MiB and starts itself four times. It sends each child the descriptor of the
//! snapshot, which is a sealed memory file, over a socket. Each child opens a view and writes its number to every
//! sixteenth page. When all children have written, each child checks that its view shows its own number there and the
//! bytes of the snapshot elsewhere. In the end, the parent checks that its snapshot is unchanged.
//!
//! The table compares this with sending all bytes over the socket. It shows the median time until a child has opened a
//! view, or has received all bytes, and the private memory of a child after it has written. The first time of each
//! child is a warm-up and is not counted.
//!
//! This program needs Linux. On Windows, `memsnap::os::windows` has the corresponding calls, with handles.

fn main() -> anyhow::Result<()> {
    #[cfg(all(target_os = "linux", not(memsnap_unix)))]
    return linux::main();
    #[cfg(not(all(target_os = "linux", not(memsnap_unix))))]
    {
        println!("skipped: on this system, a snapshot has no descriptor that another process could receive");
        Ok(())
    }
}

#[cfg(all(target_os = "linux", not(memsnap_unix)))]
mod linux {
    use std::env;
    use std::io::{self, IoSlice, IoSliceMut, Read, Write};
    use std::mem::MaybeUninit;
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::net::UnixStream;
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    use anyhow::{Context, Result, ensure};
    use bytesize::ByteSize;
    use comfy_table::{CellAlignment, Table, presets};
    use memsnap::os::linux::SnapshotExt as _;
    use memsnap::{Snapshot, page_size};
    use rustix::net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    };

    const LENGTH: usize = 64 << 20;
    const CHILDREN: u8 = 4;
    const ROUNDS: usize = 6;

    pub(super) fn main() -> Result<()> {
        match env::args().nth(1) {
            Some(number) => child(number.parse().context("the number of a child")?),
            None => parent(),
        }
    }

    fn parent() -> Result<()> {
        let bytes: Vec<u8> = (0..LENGTH as u64 / 8).flat_map(u64::to_le_bytes).collect();
        let snapshot = Snapshot::from_slice(&bytes)?;
        let mut children = (1..=CHILDREN).map(start_child).collect::<Result<Vec<_>>>()?;

        let (mut shared, mut copied) = (Vec::new(), Vec::new());
        for (_, socket) in &mut children {
            for round in 0..ROUNDS {
                let start = Instant::now();
                send(socket, &snapshot)?;
                receive_number(socket)?;
                if round > 0 {
                    shared.push(start.elapsed());
                }
            }
            for round in 0..ROUNDS {
                let start = Instant::now();
                socket.write_all(&bytes)?;
                receive_number(socket)?;
                if round > 0 {
                    copied.push(start.elapsed());
                }
            }
        }

        // All children write before any of them checks.
        children.iter_mut().try_for_each(|(_, socket)| send_number(socket, 0))?;
        children.iter_mut().try_for_each(|(_, socket)| receive_number(socket).map(drop))?;
        children.iter_mut().try_for_each(|(_, socket)| send_number(socket, 0))?;
        let mut private = 0;
        for (child, socket) in &mut children {
            private += receive_number(socket)?;
            ensure!(child.wait()?.success(), "a child failed");
        }
        ensure!(snapshot.view()?.content() == bytes, "the children have changed the snapshot of the parent");

        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(["sent to each child", "time", "private memory of a child"]);
        let (private, len) = (private / u64::from(CHILDREN), LENGTH as u64);
        for (name, times, memory) in [("a descriptor", shared, private), ("all bytes", copied, len)] {
            table.add_row([name.to_owned(), median(times), ByteSize(memory).to_string()]);
        }
        table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        println!("{table}");
        Ok(())
    }

    fn start_child(number: u8) -> Result<(Child, UnixStream)> {
        let (socket, theirs) = UnixStream::pair()?;
        let mut command = Command::new(env::current_exe()?);
        let child = command.arg(number.to_string()).stdin(OwnedFd::from(theirs)).spawn()?;
        Ok((child, socket))
    }

    /// Runs a child. Its standard input is a socket to its parent.
    fn child(number: u8) -> Result<()> {
        let mut socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        let mut view = None;
        for _ in 0..ROUNDS {
            view = Some(receive(&socket)?.into_view()?);
            send_number(&mut socket, 0)?;
        }
        let mut bytes = vec![0; LENGTH];
        for _ in 0..ROUNDS {
            socket.read_exact(&mut bytes)?;
            send_number(&mut socket, 0)?;
        }
        let mut view = view.context("no snapshot was sent")?;
        ensure!(*view == *bytes, "the snapshot and the copy that were sent have different bytes");

        receive_number(&mut socket)?; // All children have a view.
        for own in [&mut view[..], &mut bytes] {
            own.chunks_mut(page_size()).step_by(16).for_each(|page| page.fill(number));
        }
        send_number(&mut socket, 0)?;
        receive_number(&mut socket)?; // All children have written.
        ensure!(*view == *bytes, "the view shows bytes that another process has written");
        send_number(&mut socket, view.stats().private as u64)
    }

    fn send(socket: &UnixStream, snapshot: &Snapshot) -> Result<()> {
        let file = snapshot.to_fd()?;
        let files = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        ensure!(rights.push(SendAncillaryMessage::ScmRights(&files)), "no room for a descriptor");
        sendmsg(socket, &[IoSlice::new(&[0])], &mut rights, SendFlags::empty())?;
        Ok(())
    }

    fn receive(socket: &UnixStream) -> Result<Snapshot> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        recvmsg(socket, &mut [IoSliceMut::new(&mut [0])], &mut rights, RecvFlags::CMSG_CLOEXEC)?;
        let file = rights.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut files) => files.next(),
            _ => None,
        });
        let snapshot = Snapshot::from_fd(file.context("no descriptor was sent")?)?;
        // The kernel guarantees that the bytes do not change. The sender decides how many there are.
        ensure!(snapshot.content_len() == LENGTH, "a snapshot of {} bytes was sent", snapshot.content_len());
        Ok(snapshot)
    }

    /// Tells the other process to go on, or that this one has done its part.
    fn send_number(socket: &mut UnixStream, number: u64) -> Result<()> {
        socket.write_all(&number.to_le_bytes()).context("sending to the other process")
    }

    fn receive_number(socket: &mut UnixStream) -> Result<u64> {
        let mut bytes = [0; 8];
        socket.read_exact(&mut bytes).context("waiting for the other process")?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn median(mut times: Vec<Duration>) -> String {
        times.sort_unstable();
        format!("{:.1?}", times[times.len() / 2])
    }
}
