//! What this process asks of the operating system: room for open files, and no core dumps. The one place of the service that does.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

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
