//! A task on a thread of its own, which neither waits for the turns of all other tasks nor takes them.

use std::future::Future;
use std::io;
use std::sync::mpsc;
use tokio::sync::oneshot;

/// Completes when the task has ended, well or by a panic.
pub type Ended = oneshot::Receiver<()>;

/// Runs what `task` makes, there, until it is done.
///
/// # Errors
/// The system gives no more threads or files.
pub fn spawn<F: Future<Output = ()>>(name: &str, task: impl FnOnce() -> F + Send + 'static) -> io::Result<Ended> {
    let (ended, end) = oneshot::channel::<()>();
    // Created on this thread: dropping it inside another runtime's async context panics.
    let (starts, started) = mpsc::sync_channel(1);
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _ended = ended;
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(starts.send(Err(error))),
        };
        drop(starts.send(Ok(())));
        runtime.block_on(async { task().await });
        // A blocking DNS lookup cannot be cancelled; do not wait for it.
        runtime.shutdown_background();
    })?;
    started.recv().map_err(io::Error::other)??;
    Ok(end)
}
