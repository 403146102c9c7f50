//! What a release has made permanent: `./x check` compares it with the newest tag, and `./x generation` counts by it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A repository with the script and three files that a release makes permanent.
struct Repository(PathBuf);

const FIRST: &str = "migrations/0001_first.sql";
const VIEW: &str = "migrations/replayed/010_view.sql";
const GENERATIONS: &str = "migrations/replayed/GENERATIONS";
const STORED: &str = "tests/fixtures/protocol/batch_v1.bin";

impl Repository {
    fn new() -> Repository {
        let folder = std::env::temp_dir().join(crate::support::unique(&format!("clerk-sync-{}", std::process::id())));
        let repository = Repository(folder);
        repository.write(FIRST, "create table t ();\n");
        repository.write(VIEW, "create or replace view v as select 1 as one;\n");
        repository.write(STORED, "bytes");
        std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("x"), repository.0.join("x")).unwrap();
        repository.git(&["init", "--quiet", "--initial-branch", "main"]);
        repository.x("generation");
        repository
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn generations(&self) -> Vec<String> {
        std::fs::read_to_string(self.0.join(GENERATIONS)).unwrap().lines().map(str::to_owned).collect()
    }

    fn git(&self, arguments: &[&str]) {
        let author = ["-c", "user.name=Ada", "-c", "user.email=ada@example.com", "-c", "commit.gpgsign=false"];
        let mut git = Command::new("git");
        git.args(author).args(arguments).current_dir(&self.0).env("GIT_CONFIG_GLOBAL", "/dev/null");
        assert!(git.status().unwrap().success(), "git {arguments:?}");
    }

    fn release(&self, version: &str) {
        self.write(&format!("tests/fixtures/schema/{version}.sql"), "-- all of it\n");
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--message", version]);
        self.git(&["tag", version]);
    }

    /// Whether the command of the script succeeds, and what it says.
    fn x(&self, command: &str) -> (bool, String) {
        let output = Command::new("sh").arg("x").arg(command).current_dir(&self.0).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    }

    /// With the change the check fails and names the file; with what was there before it succeeds.
    fn must_not_change(&self, path: &str, change: impl FnOnce()) {
        let before = std::fs::read_to_string(self.0.join(path)).unwrap();
        change();
        let (is_well, said) = self.x("check-released");
        assert!(!is_well && said.contains(path), "{path}: {said}");
        self.write(path, &before);
        assert_eq!(self.x("check-released"), (true, String::new()));
    }
}

impl Drop for Repository {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn what_was_released_must_not_change() {
    let repository = Repository::new();
    assert_eq!(repository.x("check-released"), (true, String::new()), "nothing was released");
    repository.release("v0.1.0");
    assert_eq!(repository.x("check-released"), (true, String::new()));
    repository.must_not_change(FIRST, || repository.write(FIRST, "create table another ();\n"));
    repository.must_not_change(FIRST, || std::fs::remove_file(repository.0.join(FIRST)).unwrap());
    repository.must_not_change(STORED, || repository.write(STORED, "other bytes"));
    repository.must_not_change(GENERATIONS, || repository.write(GENERATIONS, "1 another\n"));
    let schema = "tests/fixtures/schema/v0.1.0.sql";
    repository.must_not_change(schema, || repository.write(schema, "-- less\n"));
    repository.must_not_change(schema, || std::fs::remove_file(repository.0.join(schema)).unwrap());
    repository.write("migrations/0002_second.sql", "create table u ();\n");
    repository.write(VIEW, "create or replace view v as select 2 as one;\n");
    repository.x("generation");
    assert_eq!(repository.x("check-released"), (true, String::new()), "what is added is another thing");
}

#[test]
fn a_generation_has_a_number_of_its_own_from_its_release_on() {
    let repository = Repository::new();
    let [first] = &repository.generations()[..] else { panic!("one line") };
    assert!(first.starts_with("1 "), "{first}");
    repository.write(VIEW, "create or replace view v as select 2 as one;\n");
    assert!(repository.x("generation").1.contains("now ends with 1 "));
    let [second] = &repository.generations()[..] else { panic!("still one line") };
    assert_ne!(first, second);
    repository.release("v0.1.0");
    assert_eq!(repository.x("generation"), (true, String::new()), "nothing has changed");
    for text in ["3", "4"] {
        repository.write(VIEW, &format!("create or replace view v as select {text} as one;\n"));
        repository.x("generation");
        let lines = repository.generations();
        assert!(lines.len() == 2 && lines[0] == *second && lines[1].starts_with("2 "), "{lines:?}");
    }
    repository.release("v0.2.0");
    repository.write("migrations/replayed/020_view.sql", "create or replace view w as select 1 as one;\n");
    repository.x("generation");
    assert_eq!(repository.generations().len(), 3);
}
