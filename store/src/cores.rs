//! The threads on which blocks are hashed, compressed and decompressed.
//!
//! The store has a thread pool of its own, and enters it from threads that are not those of another pool. While a thread
//! of a pool waits for parallel work, rayon lets it begin other work of that pool. If that was another save, it would
//! wait for the lock that the first one holds, on the same stack.

use std::panic;
use std::sync::OnceLock;
use std::thread;

use rayon::ThreadPool;

/// Runs `work`, in which parallel iterators use the threads of the store.
pub(crate) fn on_all_cores<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let Some(pool) = pool() else { return work() };
    if rayon::current_thread_index().is_none() {
        return pool.install(work);
    }
    let result = thread::scope(|scope| scope.spawn(|| pool.install(work)).join());
    result.unwrap_or_else(|payload| panic::resume_unwind(payload))
}

/// Returns the pool, or `None` if the system has no threads for it. Then the pool of the program is used.
fn pool() -> Option<&'static ThreadPool> {
    static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();
    let name = |number| format!("memsnap-store-{number}");
    POOL.get_or_init(|| rayon::ThreadPoolBuilder::new().thread_name(name).build().ok()).as_ref()
}
