//! The container image, as far as it can be proven without a container engine: a folder with the files that the Dockerfile puts into it,
//! run as the root of an unprivileged user's file system.

use crate::support::{People, SECRET, npm};
use clerk_sync::sender::Sender;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use testkit::worker::{Options, Worker};
use testkit::{World, program};

/// What `gcr.io/distroless/cc-debian12` brings of libraries that a Rust program may need.
const LIBRARIES: &[&str] = &[
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
    "libc.so.6",
    "libm.so.6",
    "libgcc_s.so.1",
    "libdl.so.2",
    "libpthread.so.0",
    "librt.so.1",
];
/// Its user `nonroot`.
const NONROOT: &str = "65532:65532";
/// As container engines set it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn read(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

/// The last stage of the Dockerfile: its base, where the program goes, and the command.
fn dockerfile() -> (String, PathBuf, Vec<String>) {
    let text = read("Dockerfile");
    let last = &text[text.rfind("\nFROM ").unwrap()..];
    let word = |prefix: &str, n: usize| {
        let line = last.lines().find(|line| line.starts_with(prefix)).unwrap_or_else(|| panic!("no {prefix}: {last}"));
        line.split_whitespace().nth(n).unwrap().to_owned()
    };
    let command = last.lines().find_map(|line| line.strip_prefix("CMD ")).expect("a command");
    (word("FROM ", 1), word("COPY --from=build ", 3).into(), serde_json::from_str(command).unwrap())
}

/// A root file system, and a program that starts another one in it. It goes with its value.
struct Image {
    root: PathBuf,
    enter: PathBuf,
}

impl Image {
    /// `None` where nobody may change the root directory, which is a failure in CI.
    fn assemble() -> Option<Image> {
        let root_rights = ["", "sudo -n"].into_iter().find(|sudo| {
            let line = format!("{sudo} chroot --userspec={NONROOT} / true");
            cfg!(target_os = "linux") && Command::new("/bin/sh").args(["-c", &line]).output().unwrap().status.success()
        });
        let Some(sudo) = root_rights else {
            assert!(
                std::env::var("CI").as_deref() != Ok("true") || cfg!(not(target_os = "linux")),
                "no right to chroot"
            );
            println!("SKIPPED: the image's files are not run without the right to chroot");
            return None;
        };
        let (base, place, _) = dockerfile();
        assert!(base.starts_with("gcr.io/distroless/cc-debian12:nonroot"), "{base}");
        let root = npm::temporary("image");
        let copy = |from: &Path, to: &Path| {
            let to = root.join(to.strip_prefix("/").unwrap());
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(from, &to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        };
        let program = program::path().unwrap();
        copy(&program, &place);
        let needed = npm::succeeds(Command::new("ldd").arg(&program));
        for line in npm::text(&needed).lines() {
            let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) else { continue };
            let name = path.rsplit('/').next().unwrap();
            assert!(LIBRARIES.contains(&name), "the image has no {name}");
            copy(Path::new(path), Path::new(path));
        }
        copy(Path::new("/etc/ssl/certs/ca-certificates.crt"), Path::new("/etc/ssl/certs/ca-certificates.crt"));
        std::fs::write(
            root.join("etc/passwd"),
            "root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n",
        )
        .unwrap();
        assert!(!root.join("bin/sh").exists());
        let enter = root.with_extension("enter");
        let keep = if sudo.is_empty() { "" } else { "--preserve-env" };
        let script =
            format!("#!/bin/sh\nexec {sudo} {keep} chroot --userspec={NONROOT} {} clerk-sync \"$@\"\n", root.display());
        std::fs::write(&enter, script).unwrap();
        std::fs::set_permissions(&enter, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755)).unwrap();
        Some(Image { root, enter })
    }

    /// A command line of the image, with these variables and no others.
    fn run(&self, words: &[&str], variables: &[(&'static str, String)]) -> (Option<i32>, String) {
        assert_eq!(words[0], "clerk-sync");
        let mut command = Command::new(&self.enter);
        command.args(&words[1..]).env_clear().env("PATH", PATH).envs(variables.iter().cloned());
        let output = command.output().unwrap();
        (output.status.code(), npm::text(&output))
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.root);
        let _ = std::fs::remove_file(&self.enter);
    }
}

/// The commands that the documentation runs on a machine that serves.
fn documented() -> Vec<String> {
    let text = read("docs/deploy.md");
    let commands = text.split("fly ssh console -C '").skip(1).map(|rest| rest.split('\'').next().unwrap().to_owned());
    commands.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_migrates_serves_and_answers_every_documented_command_without_a_shell() {
    let Some(image) = Image::assemble() else { return };
    let People { clerk, events, .. } = People::now();
    let world = World::builder().clerk(clerk).database_proxy(1).without_mirror().start().await.unwrap();
    let mut variables: Vec<(&'static str, String)> = world.api_environment().into();
    variables.push(("DATABASE_URL", world.worker_url()));
    variables.push(("CLERK_WEBHOOK_SIGNING_SECRET", SECRET.to_owned()));
    variables.push(("CLERK_RATE_SHARE", "off".to_owned()));
    let fly = read("fly.toml");
    let release_command = fly.split("release_command = \"").nth(1).unwrap().split('"').next().unwrap();
    let words: Vec<&str> = release_command.split(' ').collect();
    let (code, said) = image.run(&words, &variables);
    assert_eq!(code, Some(0), "{said}");

    let (_, _, command) = dockerfile();
    assert_eq!(command, ["clerk-sync", "serve"], "what a worker of the tests starts");
    let environment = [variables.as_slice(), &[("PATH", PATH.to_owned())]].concat();
    let options = Options { program: image.enter.clone(), database_url: world.worker_url(), environment };
    let began = Instant::now();
    let mut worker = Worker::start(options).await.unwrap();
    while worker.get("/readyz").await.0 != 200 {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    let ready = began.elapsed();
    let sender = Sender::new(worker.webhook_url(), SECRET).unwrap();
    for event in &events {
        assert_eq!(sender.send(&event.message_id, event.body.as_bytes()).await.unwrap().status, 204);
    }
    let passes = "select 1 from clerk_sync.pass_watermarks";
    while world.database.rows(passes).await.len() < 3 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    world.equals_source().await;
    let documented = documented();
    assert!(documented.iter().any(|command| command.ends_with("clerk-sync doctor")), "{documented:?}");
    for command in documented {
        let command = command.trim_start_matches("/usr/local/bin/");
        let words: Vec<&str> = command.split(' ').collect();
        let (code, said) = image.run(&words, &variables);
        assert_eq!(code, Some(0), "{command}: {said}");
    }
    let size = std::fs::metadata(program::path().unwrap()).unwrap().len();
    println!("image: program of {size} bytes; ready after {ready:?}; {:?}", worker.usage());
    worker.signal(rustix::process::Signal::TERM).unwrap();
    assert!(worker.ended().await.unwrap().success());
}
