//! What processes cost, as Linux tells in `/proc`. Elsewhere nothing is told.

use anyhow::Context as _;
use clerk_sync::procfs::{self, TICKS};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

/// Of a process: processor time in seconds; memory that is resident, and the most that ever was, in KiB; open file handles.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub cpu: f64,
    pub resident: u64,
    pub peak: u64,
    pub handles: usize,
}

impl Usage {
    /// So far, the processes included that it has waited for.
    pub fn of(pid: u32) -> Option<Usage> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let kib = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name))?;
            value.trim().trim_end_matches(" kB").parse().ok()
        };
        let handles = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        // utime, stime, cutime and cstime are the 14th to the 17th field.
        let ticks = procfs::stat(&pid.to_string())?.get(11..15)?.iter().sum::<u64>();
        let cpu = f64::from(u32::try_from(ticks).ok()?) / f64::from(u32::try_from(TICKS).ok()?);
        Some(Usage { cpu, resident: kib("VmRSS:")?, peak: kib("VmHWM:")?, handles })
    }
}

/// Processor time so far, in seconds, of a process, those that it started, and those that it has waited for. Of Postgres's first
/// process, that is the whole server's.
pub fn family_cpu(pid: u32) -> f64 {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
    let is_child =
        |child: &u32| procfs::stat(&child.to_string()).and_then(|stat| stat.get(1).copied()) == Some(u64::from(pid));
    pids.filter(|other| *other == pid || is_child(other)).filter_map(Usage::of).map(|usage| usage.cpu).sum()
}

/// Runs a command to its end and tells what it said on standard output, and what it cost.
pub async fn measure(command: &mut Command) -> anyhow::Result<(Output, Usage)> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let pid = child.id().context("it has ended already")?;
    let mut said = child.stdout.take().context("no standard output")?;
    let reading = tokio::spawn(async move {
        let mut stdout = Vec::new();
        said.read_to_end(&mut stdout).await.map(|_| stdout)
    });
    let mut usage = Usage::default();
    let status: ExitStatus = loop {
        tokio::select! {
            status = child.wait() => break status?,
            () = tokio::time::sleep(Duration::from_millis(20)) => usage = Usage::of(pid).unwrap_or(usage),
        }
    };
    Ok((Output { status, stdout: reading.await??, stderr: Vec::new() }, usage))
}
