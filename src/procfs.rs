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

/// Bytes of memory that this process holds.
pub fn memory() -> Option<u64> {
    const PAGE: u64 = 4_096;
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(statm.split_whitespace().nth(1)?.parse::<u64>().ok()? * PAGE)
}

/// Files that it has open.
pub fn open_files() -> Option<u64> {
    Some(std::fs::read_dir("/proc/self/fd").ok()?.count() as u64)
}

/// When the machine started, in seconds of Unix time.
pub fn booted_at() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}
