//! The npm packages: installed from their tarballs alone, in an empty folder, without internet and without Rust, they do what the program does.

use crate::reconciling::ReconcileWorld;
use crate::support::npm::{Folder, Packed, succeeds, text};
use crate::support::{People, SECRET};
use clerk_sync::sender::Sender;
use rustix::process::Signal;
use serde_json::Value;
use sqlx::Connection as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use testkit::worker::{Options, Worker};

/// The `package.json` of a tarball.
fn description(tarball: &Path) -> Value {
    let output = succeeds(Command::new("tar").arg("-xOzf").arg(tarball).arg("package/package.json"));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The permissions of a file in a tarball, such as `-rwxr-xr-x`.
fn mode(tarball: &Path, file: &str) -> String {
    let listing = succeeds(Command::new("tar").arg("-tvzf").arg(tarball).arg(format!("package/{file}")));
    text(&listing).split_whitespace().next().unwrap().to_owned()
}

#[test]
fn the_packages_have_one_version_no_scripts_and_can_be_executed() {
    let Some(packed) = Packed::get() else { return };
    let (wrapper, platform) = (description(&packed.wrapper), description(&packed.platform));
    for package in [&wrapper, &platform] {
        assert_eq!(package["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(package["license"], "MIT");
        for absent in ["scripts", "dependencies", "devDependencies", "bundleDependencies", "gypfile"] {
            assert!(package.get(absent).is_none(), "{package}");
        }
    }
    let optional = wrapper["optionalDependencies"].as_object().unwrap();
    assert_eq!(
        optional.keys().collect::<Vec<_>>(),
        ["@clerk-sync/darwin-arm64", "@clerk-sync/darwin-x64", "@clerk-sync/linux-arm64", "@clerk-sync/linux-x64"]
    );
    assert!(optional.values().all(|version| version == env!("CARGO_PKG_VERSION")), "exact versions: {optional:?}");
    assert!(optional.contains_key(platform["name"].as_str().unwrap()));
    assert_eq!(mode(&packed.wrapper, "clerk-sync.js"), "-rwxr-xr-x");
    assert_eq!(mode(&packed.platform, "clerk-sync"), "-rwxr-xr-x");
    let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("npm/clerk-sync/clerk-sync.js");
    let code = std::fs::read_to_string(shim).unwrap();
    let required: Vec<&str> = code.split("require(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(required.iter().all(|module| module.starts_with("node:")), "nothing but Node's own modules: {required:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn npx_passes_arguments_input_and_every_exit_code() {
    let Some(packed) = Packed::get() else { return };
    let folder = packed.installed();
    assert!(folder.command("sh").args(["-c", "command -v cargo"]).output().unwrap().stdout.is_empty(), "no Rust");
    let version = succeeds(&mut folder.npx(&["--version"]));
    let named = format!("clerk-sync {}", env!("CARGO_PKG_VERSION"));
    assert!(text(&version).starts_with(&named), "{}", text(&version));
    let code = |command: &mut Command| {
        let output = command.output().unwrap();
        (output.status.code(), text(&output))
    };
    let (failed, said) = code(&mut folder.npx(&["doctor"]));
    assert!(failed == Some(1) && said.contains("DATABASE_URL"), "{said}");
    assert_eq!(code(&mut folder.npx(&["no-such-command"])).0, Some(2));
    let mut piped = folder.npx(&["doctor", "--token", "-"]);
    let mut child = piped.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"a.b.c").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(text(&output).contains("token"), "standard input is passed: {}", text(&output));

    let world = ReconcileWorld::filled(30, 3, 30, 1).await;
    let reconcile = |world: &ReconcileWorld| {
        let mut command = folder.npx(&["reconcile"]);
        command.env("DATABASE_URL", world.database.url()).envs(world.api_environment()).env("CLERK_RATE_SHARE", "off");
        command
    };
    world.set_clock().await;
    let (complete, said) = code(&mut reconcile(&world));
    assert_eq!(complete, Some(0), "{said}");
    world.later();
    world.seen_and_removed().await;
    world.set_clock().await;
    let (undecided, said) = code(&mut reconcile(&world));
    assert_eq!(undecided, Some(4), "{said}");
    let gone: Vec<String> = world.clerk.lock().users.keys().take(20).map(ToString::to_string).collect();
    world.silently(|clerk| gone.iter().for_each(|id| clerk.delete_user(id)));
    world.later();
    world.set_clock().await;
    let (held_back, said) = code(&mut reconcile(&world));
    assert_eq!(held_back, Some(3), "{said}");
}

/// `serve`, started by what npm installs.
async fn served(world: &testkit::World, folder: &Folder) -> Worker {
    let environment = folder.environment().into_iter().collect();
    let options = Options { program: folder.shim(), database_url: world.database.url(), environment };
    Worker::start(options).await.expect("it listens")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_to_the_package_lets_the_program_answer_what_is_in_flight_and_end_well() {
    let Some(packed) = Packed::get() else { return };
    let folder = packed.installed();
    let events = People::now().events;
    for signal in [Signal::TERM, Signal::INT] {
        let world = testkit::World::builder().start().await.unwrap();
        let mut worker = served(&world, &folder).await;
        let sender = Sender::new(worker.webhook_url(), SECRET).unwrap();
        let first = sender.send(&events[0].message_id, events[0].body.as_bytes()).await.unwrap();
        assert_eq!(first.status, 204);
        // Somebody else has the writer's turn while the signal comes.
        let mut owner = world.database.owner().await;
        let mut turn = owner.begin().await.unwrap();
        sqlx::query("lock table clerk_sync.writer in exclusive mode").execute(&mut *turn).await.unwrap();
        let event = events[1].clone();
        let waiting = tokio::spawn(async move { sender.send(&event.message_id, event.body.as_bytes()).await });
        let blocked = "select 1 from pg_locks where not granted and relation = 'clerk_sync.writer'::regclass";
        while world.database.rows(blocked).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        worker.signal(signal).unwrap();
        turn.rollback().await.unwrap();
        let answer = waiting.await.unwrap().expect("what is in flight is answered");
        assert_eq!(answer.status, 204);
        assert_eq!(worker.ended().await.unwrap().code(), Some(0), "{:?}", worker.log_end());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_killed_is_reported_as_killed() {
    let Some(packed) = Packed::get() else { return };
    let folder = packed.installed();
    let program = folder.path.join("node_modules").join(description(&packed.platform)["name"].as_str().unwrap());
    std::fs::write(program.join("clerk-sync"), "#!/bin/sh\nkill -9 $$\n").unwrap();
    let ended = folder.command("node").arg(folder.shim()).output().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended.status), Some(9), "{ended:?}");
}

#[test]
fn without_the_program_one_sentence_says_what_to_do() {
    let Some(packed) = Packed::get() else { return };
    let says = |folder: &Folder, before: &str| {
        let shim = folder.path.join("node_modules/clerk-sync/clerk-sync.js");
        let script = format!("{before}; require({:?})", shim.display().to_string());
        let output = folder.command("node").args(["-e", &script]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert_eq!(text(&output).lines().count(), 1, "{}", text(&output));
        text(&output)
    };
    // None of its optional dependencies can be had, or none is wanted.
    for option in ["--include=optional", "--omit=optional"] {
        let folder = packed.folder();
        succeeds(folder.command("npm").args(["install", "--offline", option]).arg(&packed.wrapper));
        let output = folder.npx(&["--version"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(
            text(&output).contains("is not installed: install clerk-sync again without --omit=optional"),
            "{}",
            text(&output)
        );
        let on = |platform: &str, arch: &str| {
            says(
                &folder,
                &format!(
                    "Object.defineProperty(process, 'platform', {{ value: '{platform}' }}); \
                     Object.defineProperty(process, 'arch', {{ value: '{arch}' }})"
                ),
            )
        };
        assert!(on("win32", "x64").contains("run it in WSL"));
        assert!(on("freebsd", "x64").contains("container image"));
        assert!(on("linux", "riscv64").contains("container image"));
    }
}

#[test]
fn the_same_programs_give_the_same_tarballs() {
    let Some(packed) = Packed::get() else { return };
    let folder = packed.folder();
    let pack = Path::new(env!("CARGO_MANIFEST_DIR")).join("npm/pack.js");
    let again = |to: &str| {
        let shell = std::fs::canonicalize("/bin/sh").unwrap();
        let program = format!("linux-x64={}", shell.display());
        succeeds(folder.command("node").arg(&pack).arg(folder.path.join(to)).arg(program));
        let name = format!("clerk-sync-linux-x64-{}.tgz", env!("CARGO_PKG_VERSION"));
        std::fs::read(folder.path.join(to).join(name)).unwrap()
    };
    assert!(again("first") == again("second"), "they differ");
}

#[test]
fn a_platform_that_nobody_knows_is_refused() {
    let Some(packed) = Packed::get() else { return };
    let pack = Path::new(env!("CARGO_MANIFEST_DIR")).join("npm/pack.js");
    let output = packed.folder().command("node").arg(&pack).args(["out", "win32-x64=/bin/sh"]).output().unwrap();
    assert!(!output.status.success() && text(&output).contains("win32-x64 is none of"), "{}", text(&output));
}
