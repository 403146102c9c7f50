//! A private Postgres server: its own data, a Unix socket in a short temporary path, gone with this process.
//!
//! The server hangs on a leash: a small `sh` whose standard input is our pipe. However we end (`kill -9` too), the pipe
//! closes, and the shell stops the server and removes its folder. It runs in a process group of its own, so that Ctrl-C
//! reaches us and not the server. Started as root, it runs as an unprivileged user, because Postgres refuses root.

use super::find_postgres;
use anyhow::{Context as _, bail};
use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The superuser, as on Supabase; its `postgres` is none.
pub const SUPERUSER: &str = "supabase_admin";

const SETTINGS: &str = "
listen_addresses = ''
shared_buffers = 256MB
max_connections = 200
max_wal_size = 4GB
timezone = UTC
";

/// More lines for the server's configuration: to have it log plans, or load an extension that counts.
const SETTINGS_VARIABLE: &str = "CLERK_SYNC_POSTGRES_SETTINGS";

/// What the data must survive, beside a crash of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Nothing: as fast as it gets, in memory if there is room.
    Fast,
    /// A crash of the machine, as in production: on disk, each commit written through.
    Full,
}

impl Durability {
    const fn settings(self) -> &'static str {
        match self {
            Durability::Fast => "fsync = off\nfull_page_writes = off\n",
            Durability::Full => "",
        }
    }
}

/// Waits for our end, then ends the server and its data. Arguments: the programs' folder, and ours.
const LEASH: &str = r#"
cat >/dev/null
"$1/pg_ctl" -D "$2/data" -m immediate -s stop 2>/dev/null
rm -rf "$2"
"#;

/// A running server. Dropping it ends the server and removes its data.
#[derive(Debug)]
pub struct Cluster {
    bin: PathBuf,
    dir: PathBuf,
    user: Option<User>,
    leash: Child,
}

impl Cluster {
    /// Makes a new cluster and starts it.
    ///
    /// # Errors
    /// No Postgres was found, or it did not start; the sentence says what to do, with the end of the server's log.
    pub fn start(durability: Durability) -> anyhow::Result<Cluster> {
        let bin = find_postgres::find()?;
        let user = unprivileged_user()?;
        let dir = make_dir(user, durability)?;
        let mut leash = run_as(user, "sh");
        leash.args(["-c", LEASH, "sh"]).arg(&bin).arg(&dir).stdin(Stdio::piped()).process_group(0);
        let leash = leash.spawn().context("cannot start sh")?;
        let cluster = Cluster { bin, dir, user, leash };
        cluster.initdb(durability)?;
        cluster.start_server()?;
        Ok(cluster)
    }

    /// Starts the server again after [`Cluster::stop_server`], and waits until it accepts connections.
    ///
    /// # Errors
    /// It did not start; the sentence has the end of its log.
    pub fn start_server(&self) -> anyhow::Result<()> {
        let log = self.dir.join("log");
        let started = self.pg_ctl(&["-w", "-l", &log.to_string_lossy(), "start"]);
        started.with_context(|| {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(5).collect();
            format!("Postgres did not start: {}", tail.into_iter().rev().collect::<Vec<_>>().join(" / "))
        })
    }

    /// Stops the server at once, as a crash would: it recovers when started again.
    ///
    /// # Errors
    /// It is not running.
    pub fn stop_server(&self) -> anyhow::Result<()> {
        self.pg_ctl(&["-m", "immediate", "-w", "stop"]).context("cannot stop Postgres")
    }

    fn pg_ctl(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let mut command = run_as(self.user, self.bin.join("pg_ctl"));
        command.arg("-D").arg(self.dir.join("data")).arg("-s").args(arguments);
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        if status.success() { Ok(()) } else { bail!("pg_ctl failed") }
    }

    fn initdb(&self, durability: Durability) -> anyhow::Result<()> {
        let data = self.dir.join("data");
        let mut said = String::new();
        // Some systems lack C.UTF-8; all have C.
        for locale in ["C.UTF-8", "C"] {
            let mut command = run_as(self.user, self.bin.join("initdb"));
            command.args(["-A", "trust", "-E", "UTF8", "--no-sync", "-U", SUPERUSER]);
            let output = command.arg(format!("--locale={locale}")).arg(&data).output().context("cannot run initdb")?;
            if output.status.success() {
                let socket = format!("unix_socket_directories = '{}'\n", self.dir.display());
                let mut settings = std::fs::OpenOptions::new().append(true).open(data.join("postgresql.conf"))?;
                let more = std::env::var(SETTINGS_VARIABLE).unwrap_or_default() + "\n";
                let all = SETTINGS.to_owned() + durability.settings() + &socket + &more;
                return Ok(settings.write_all(all.as_bytes())?);
            }
            said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " / ");
            let _ = std::fs::remove_dir_all(&data);
        }
        bail!("initdb failed: {said}")
    }

    /// A connection URL for `role` to `database`, over the socket.
    pub fn url(&self, role: &str, database: &str) -> String {
        let host = self.dir.to_string_lossy().replace('/', "%2F");
        format!("postgres://{role}@{host}/{database}")
    }

    /// One of the programs that come with the server, such as `pgbench`, as the server's user, in a clean environment.
    pub fn program(&self, name: &str) -> Command {
        run_as(self.user, self.bin.join(name))
    }

    /// The server's first process.
    pub fn pid(&self) -> Option<u32> {
        std::fs::read_to_string(self.dir.join("data/postmaster.pid")).ok()?.lines().next()?.parse().ok()
    }

    /// The socket's folder: what `psql -h` takes.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.leash.stdin.take());
        let _ = self.leash.wait();
    }
}

/// A command in a clean environment, as `user` if one is given.
fn run_as(user: Option<User>, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("LC_ALL", "C").current_dir("/");
    if let Some(user) = user {
        command.gid(user.gid).uid(user.uid);
    }
    command
}

#[derive(Clone, Copy, Debug)]
struct User {
    uid: u32,
    gid: u32,
}

/// Whom to run as: ourselves, or, as root, `postgres` or `nobody`.
fn unprivileged_user() -> anyhow::Result<Option<User>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    let find = |name: &str| {
        let fields: Vec<&str> =
            users.lines().map(|line| line.split(':').collect()).find(|fields: &Vec<&str>| fields[0] == name)?;
        Some(User { uid: fields.get(2)?.parse().ok()?, gid: fields.get(3)?.parse().ok()? })
    };
    let user = find("postgres").or_else(|| find("nobody"));
    user.map(Some).context("Postgres refuses to run as root, and there is no user named postgres or nobody")
}

/// A new folder of ours alone. Its path is short: a socket's may have some 100 bytes.
fn make_dir(user: Option<User>, durability: Durability) -> anyhow::Result<PathBuf> {
    const ROOM: u64 = 1 << 30;
    let has_room = |path: &str| rustix::fs::statvfs(path).is_ok_and(|stat| stat.f_bavail * stat.f_frsize > ROOM);
    let base = if durability == Durability::Fast && has_room("/dev/shm") { "/dev/shm" } else { "/tmp" };
    for _ in 0..16 {
        let dir = PathBuf::from(format!("{base}/clerk-sync-{:08x}", fastrand::u32(..)));
        match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => {
                if let Some(user) = user {
                    chown(&dir, Some(user.uid), Some(user.gid))?;
                }
                return Ok(dir);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).context(format!("cannot make a folder in {base}")),
        }
    }
    bail!("cannot make a folder in {base}")
}
