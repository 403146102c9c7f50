//! What this program asks of the operating system: limits, signals, who owns a file, the machine's name.
//!
//! Nothing else asks it but through the standard library, so a build for another system is a matter of this file (and of `procfs`,
//! where that one tells nothing).

use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use std::fs::{File, Metadata, OpenOptions};
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};

/// Open files that the service needs for all its connections. The soft limit of many systems is 1,024.
const FILES: u64 = 4_096;

/// Raises the soft limit of open files towards the hard one, as far as the service can use it, and returns the limit that holds
/// now. `None`: there is no limit.
pub fn raise_file_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(FILES, |maximum| maximum.min(FILES));
    if current.is_some_and(|current| current < wanted) {
        // Refused (some sandboxes do), the old limit holds, and the service takes fewer connections.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
    }
    file_limit()
}

/// How many files the process may have open; `None`: any number.
pub(crate) fn file_limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Forbids core dumps: one would hold every secret of the process. On Linux this also keeps other processes of the same user
/// from reading its memory and its environment.
pub fn forbid_core_dumps() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let _ = setrlimit(Resource::Core, none);
    // A system that pipes core dumps into a program does not ask for the limit.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}

/// Completes when the platform or a person asks the process to stop.
///
/// # Errors
/// The system tells this process of no signals.
pub fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// This machine's name; empty where it tells none.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// Whether a file belongs to this process's user, or to root.
pub fn is_ours(file: &Metadata) -> bool {
    file.uid() == geteuid().as_raw() || file.uid() == 0
}

/// Whether its group, or anybody, may write a file.
pub fn others_may_write(file: &Metadata) -> bool {
    file.mode() & 0o022 != 0
}

/// Creates a file that only its owner can read and write.
///
/// # Errors
/// It exists already, or cannot be created.
pub fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// A terminal that neither shows nor interprets what is typed, until this is dropped.
#[derive(Debug)]
pub struct Quiet<T: AsFd> {
    terminal: T,
    before: Termios,
}

impl<T: AsFd> Quiet<T> {
    /// # Errors
    /// It is not a terminal.
    pub fn begin(terminal: T) -> io::Result<Quiet<T>> {
        let before = tcgetattr(&terminal)?;
        let mut quiet = before.clone();
        // Ctrl-C is read as well: a program that it ends would leave the terminal silent.
        quiet.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        tcsetattr(&terminal, OptionalActions::Now, &quiet)?;
        Ok(Quiet { terminal, before })
    }
}

impl<T: AsFd> Drop for Quiet<T> {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

/// Ends a connection that leaves what was sent to it untaken for so long. (Elsewhere than on Linux the system decides.)
pub fn limit_untaken(stream: &TcpStream, time: Duration) {
    #[cfg(target_os = "linux")]
    let _ = socket2::SockRef::from(stream).set_tcp_user_timeout(Some(time));
    #[cfg(not(target_os = "linux"))]
    let _ = (stream, time);
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use rustix::process::{DumpableBehavior, dumpable_behavior};

    #[test]
    fn no_core_dump_is_made_by_the_kernel_or_by_a_program_of_the_system() {
        forbid_core_dumps();
        assert_eq!(getrlimit(Resource::Core), Rlimit { current: Some(0), maximum: Some(0) });
        assert_eq!(dumpable_behavior(), Ok(DumpableBehavior::NotDumpable));
    }

    #[test]
    fn the_file_limit_is_raised_as_far_as_it_may_be() {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let raised = raise_file_limit();
        assert!(raised.is_none_or(|raised| raised >= maximum.unwrap_or(FILES).min(FILES)), "{raised:?}");
        assert!(raised.is_none_or(|raised| current.is_some_and(|current| raised >= current)), "never lowered");
    }
}
