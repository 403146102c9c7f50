//! The arrows of `src/lib.rs`, part by part. And each file says what it is for.

use std::path::{Path, PathBuf};

/// What each part may use of the others, beside `model` and `clock`.
const MAY_USE: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("clock", &["model"]),
    ("failpoint", &[]),
    ("clerk", &["model", "telemetry"]),
    ("store", &["model"]),
    ("webhook", &["clerk", "clock", "door", "failpoint", "model", "store", "telemetry", "thread"]),
    ("reconcile", &["clerk", "model", "store", "telemetry"]),
    ("health", &["reconcile", "webhook"]),
    ("upkeep", &["clerk", "model", "store"]),
    ("config", &["clerk", "model", "reconcile", "store", "upkeep", "webhook"]),
    (
        "app",
        &["clerk", "config", "door", "health", "os", "reconcile", "store", "telemetry", "thread", "upkeep", "webhook"],
    ),
    ("command", &["clerk", "config", "model", "reconcile", "store", "terminal", "upkeep"]),
    ("doctor", &["clerk", "clock", "config", "dotenv", "model", "policy", "store", "terminal"]),
    ("dotenv", &[]),
    ("sender", &["clock", "webhook"]),
    ("replay", &["model", "sender"]),
    ("policy", &["config", "store", "terminal"]),
    ("telemetry", &["terminal"]),
    ("terminal", &[]),
    ("os", &[]),
    ("door", &["telemetry"]),
    ("ops", &["door", "model", "procfs", "store", "telemetry", "webhook"]),
    ("thread", &[]),
    ("procfs", &[]),
    ("testbed", &["procfs", "terminal", "thread"]),
    ("chaos", &["clock", "failpoint", "sender", "store", "testbed"]),
    ("bench", &["clerk", "clock", "model", "reconcile", "store", "testbed", "webhook"]),
    (
        "demo",
        &[
            "app",
            "clerk",
            "clock",
            "config",
            "model",
            "ops",
            "reconcile",
            "sender",
            "store",
            "testbed",
            "upkeep",
            "webhook",
        ],
    ),
];

fn source_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            source_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn dependencies_point_one_way_and_every_file_opens_with_its_purpose() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    source_files(&source, &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let name = file.strip_prefix(&source).unwrap().with_extension("");
        let part = name.iter().next().unwrap().to_str().unwrap().to_owned();
        if !text.trim_start_matches("#![recursion_limit = \"256\"]").trim_start().starts_with("//!") {
            wrong.push(format!("{} does not say what it is for", file.display()));
        }
        if part == "main" || part == "lib" {
            continue;
        }
        let Some((_, allowed)) = MAY_USE.iter().find(|(of, _)| *of == part) else {
            wrong.push(format!("{part} is not in the table"));
            continue;
        };
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        for used in code.split("crate::").skip(1) {
            let used: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if used != part && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{} uses {used}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
