//! A real PgBouncer in front of the tests' Postgres, on a loopback port, gone with its value.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use testkit::postgres::Cluster;
use testkit::wait::PATIENCE;

/// Ends it with the test, however that ends.
const LEASH: &str = r#""$1" -q "$2" & cat >/dev/null; kill $!; wait"#;

#[derive(Debug)]
pub struct PgBouncer {
    port: u16,
    leash: Child,
}

impl PgBouncer {
    /// With these settings beside stock ones; `None` where it is not installed, which is a failure in CI.
    pub fn start(cluster: &Cluster, settings: &str) -> Option<PgBouncer> {
        let Some(program) = program() else {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "no pgbouncer");
            println!("SKIPPED: poolers are not tested without pgbouncer (./x test --all installs it on Debian)");
            return None;
        };
        // Somebody else may take the port before it does.
        let started = (0..5).find_map(|_| PgBouncer::try_start(cluster, &program, settings));
        Some(started.expect("pgbouncer starts"))
    }

    fn try_start(cluster: &Cluster, program: &Path, settings: &str) -> Option<PgBouncer> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = cluster.dir();
        let (configuration, users) =
            (dir.join(format!("pgbouncer-{port}.ini")), dir.join(format!("pgbouncer-{port}.users")));
        std::fs::write(&users, "\"postgres\" \"\"\n\"supabase_admin\" \"\"\n").unwrap();
        let text = format!(
            "[databases]\n* = host={} port=5432\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = trust\nauth_file = {}\n{settings}\n",
            dir.display(),
            users.display()
        );
        std::fs::write(&configuration, text).unwrap();
        let mut leash = cluster.program("/bin/sh");
        leash.args(["-c", LEASH, "sh"]).arg(program).arg(&configuration);
        let leash = leash.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let started = PgBouncer { port, leash };
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some(started);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }

    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        drop(self.leash.stdin.take());
        let _ = self.leash.wait();
    }
}

fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/opt/homebrew/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|folder| folder.join("pgbouncer")).find(|program| program.is_file())
}
