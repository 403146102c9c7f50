//! The npm packages, packed from this build and installed in a folder of their own, as somebody without Rust and without internet has them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use testkit::unique;

static PACKED: OnceLock<Option<Packed>> = OnceLock::new();

/// The tarballs of this build, for this platform.
#[derive(Debug)]
pub struct Packed {
    pub wrapper: PathBuf,
    pub platform: PathBuf,
    /// A folder with Node, npm and a shell, and nothing else: the whole `PATH` of whoever installs them.
    path: PathBuf,
}

/// An empty folder, and what is installed into it. It goes with its value.
#[derive(Debug)]
pub struct Folder {
    pub path: PathBuf,
    packed: &'static Packed,
}

impl Packed {
    /// Packed once for all tests; `None` where there is no Node 20 with npm, which is a failure in CI.
    pub fn get() -> Option<&'static Packed> {
        let packed = PACKED.get_or_init(|| has_node().then(Packed::make)).as_ref();
        if packed.is_none() {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "no Node 20 with npm");
            println!("SKIPPED: the npm packages are not tested without Node 20 and npm");
        }
        packed
    }

    fn make() -> Packed {
        let folder = temporary("packed");
        let program = folder.join("program");
        // What the debugger needs would make it twenty times as large.
        let stripped = Command::new("strip").arg("-o").arg(&program).arg(env!("CARGO_BIN_EXE_clerk-sync")).status();
        let is_stripped = stripped.is_ok_and(|status| status.success());
        let program = if is_stripped { program } else { env!("CARGO_BIN_EXE_clerk-sync").into() };
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new("node");
        command.arg(root.join("npm/pack.js")).arg(&folder).arg(format!("{}={}", platform(), program.display()));
        succeeds(command.env("npm_config_cache", folder.join("cache")));
        let tarball = |name: &str| folder.join(format!("{name}-{}.tgz", env!("CARGO_PKG_VERSION")));
        let path = folder.join("bin");
        std::fs::create_dir(&path).unwrap();
        for program in ["node", "npm", "npx", "sh"] {
            std::os::unix::fs::symlink(which(program).expect(program), path.join(program)).unwrap();
        }
        Packed { wrapper: tarball("clerk-sync"), platform: tarball(&format!("clerk-sync-{}", platform())), path }
    }

    /// An empty folder.
    pub fn folder(&'static self) -> Folder {
        Folder { path: temporary("folder"), packed: self }
    }

    /// A folder into which both packages are installed.
    pub fn installed(&'static self) -> Folder {
        let folder = self.folder();
        succeeds(folder.command("npm").args(["install", "--offline"]).arg(&self.wrapper).arg(&self.platform));
        folder
    }
}

impl Folder {
    /// A program in this folder, without Rust on the `PATH`, without internet, and with nothing of this process's environment.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.packed.path.join(program));
        command.current_dir(&self.path).env_clear().envs(self.environment());
        command
    }

    /// `npx clerk-sync` with these arguments.
    pub fn npx(&self, arguments: &[&str]) -> Command {
        let mut command = self.command("npx");
        command.args(["--offline", "clerk-sync"]).args(arguments);
        command
    }

    /// What npm installs for the command `clerk-sync`.
    pub fn shim(&self) -> PathBuf {
        self.path.join("node_modules/.bin/clerk-sync")
    }

    /// All the environment that Node and npm need here.
    pub fn environment(&self) -> [(&'static str, String); 5] {
        [
            ("PATH", self.packed.path.display().to_string()),
            ("HOME", self.path.display().to_string()),
            ("npm_config_cache", self.path.join(".npm").display().to_string()),
            ("npm_config_registry", "http://127.0.0.1:9/".to_owned()),
            ("npm_config_update_notifier", "false".to_owned()),
        ]
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// As npm names this platform.
pub fn platform() -> String {
    let os = if cfg!(target_os = "macos") { "darwin" } else { "linux" };
    format!("{os}-{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" })
}

/// Runs it, and shows what it said if it fails.
pub fn succeeds(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output));
    output
}

/// All that it said.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn has_node() -> bool {
    let node = Command::new("node").args(["-p", "process.versions.node.split('.')[0] >= 20"]).output();
    node.is_ok_and(|output| output.stdout.starts_with(b"true")) && which("npm").is_some() && which("npx").is_some()
}

fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

pub fn temporary(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("clerk-sync-npm-{}-{}", std::process::id(), unique(name)));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}
