//! What Linux tells of a process in `/proc`. Elsewhere nothing is told.

/// Clock ticks in a second: the same on every Linux that Rust is built for.
pub const TICKS: u64 = 100;

/// The numbers of `/proc/PID/stat` behind the process's name, which may hold anything: the third field, which is no number,
/// is the first here and 0. `pid`: a number, or `self`.
pub fn stat(pid: &str) -> Option<Vec<u64>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_whitespace().map(|field| field.parse().unwrap_or_default()).collect())
}
