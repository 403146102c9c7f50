//! The arrows of `src/lib.rs`, part by part, and those of `testkit/` and `lab/` into the product. And each file says what it is for.

use std::path::{Path, PathBuf};

/// What each part of the product may use of the others.
const PRODUCT: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("clock", &["model"]),
    ("failpoint", &[]),
    ("clerk", &["model", "telemetry"]),
    ("store", &["model"]),
    ("webhook", &["clerk", "clock", "door", "failpoint", "model", "store", "telemetry", "thread"]),
    ("reconcile", &["clerk", "model", "os", "store", "telemetry"]),
    ("health", &["model", "reconcile", "webhook"]),
    ("upkeep", &["clerk", "model", "store"]),
    ("config", &["clerk", "model", "reconcile", "store", "upkeep", "webhook"]),
    (
        "app",
        &[
            "clerk",
            "config",
            "door",
            "health",
            "model",
            "os",
            "reconcile",
            "store",
            "telemetry",
            "thread",
            "upkeep",
            "webhook",
        ],
    ),
    (
        "command",
        &[
            "app",
            "clerk",
            "config",
            "doctor",
            "door",
            "dotenv",
            "failpoint",
            "model",
            "ops",
            "os",
            "policy",
            "prompt",
            "reconcile",
            "sender",
            "store",
            "terminal",
            "upkeep",
            "webhook",
        ],
    ),
    ("doctor", &["clerk", "clock", "config", "dotenv", "model", "policy", "store", "terminal"]),
    ("dotenv", &["os"]),
    ("sender", &["clock", "webhook"]),
    ("policy", &["store", "terminal"]),
    ("telemetry", &["terminal"]),
    ("terminal", &[]),
    ("os", &[]),
    ("door", &["os", "telemetry"]),
    ("ops", &["clerk", "door", "model", "procfs", "store", "telemetry", "webhook"]),
    ("thread", &[]),
    ("procfs", &[]),
    ("prompt", &["os", "terminal"]),
];

/// What each part of testkit may use of the product.
const TESTKIT: &[(&str, &[&str])] = &[
    ("bin", &[]),
    ("clerk", &[]),
    ("find_postgres", &[]),
    ("postgres", &[]),
    ("program", &[]),
    ("project", &["store"]),
    ("proxy", &["thread"]),
    ("serve", &["app", "config", "model", "store", "upkeep", "webhook"]),
    ("supabase", &[]),
    ("traffic", &[]),
    ("usage", &["procfs"]),
    ("wait", &[]),
    ("worker", &[]),
    ("world", &["clerk", "config", "model", "reconcile", "sender", "store", "webhook"]),
];

/// What each part of the laboratory may use of the product. Of testkit it may use everything.
const LAB: &[(&str, &[&str])] = &[
    ("bench", &["clerk", "clock", "model", "reconcile", "store", "webhook"]),
    ("chaos", &["clock", "failpoint", "sender", "store"]),
    ("demo", &["app", "clerk", "clock", "config", "model", "ops", "reconcile", "sender", "store", "upkeep", "webhook"]),
    ("simulate", &["clock"]),
    ("testbed", &[]),
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

/// The names that follow `prefix` anywhere in the code.
fn used<'a>(code: &'a str, prefix: &'a str) -> impl Iterator<Item = String> + 'a {
    code.split(prefix).skip(1).map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
}

/// What breaks the table in one crate. Of the product `crate::` leads to other parts, elsewhere `clerk_sync::` does.
fn breaches(crate_folder: &str, to_the_product: &str, table: &[(&str, &[&str])]) -> Vec<String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(crate_folder);
    let mut files = Vec::new();
    source_files(&source, &mut files);
    assert!(files.len() > table.len(), "{crate_folder} is not where it was");
    let mut wrong = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let name = file.strip_prefix(&source).unwrap().with_extension("");
        let part = name.iter().next().unwrap().to_str().unwrap().to_owned();
        if !text.starts_with("//!") {
            wrong.push(format!("{} does not say what it is for", file.display()));
        }
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        if to_the_product == "crate::" && (code.contains("testkit::") || code.contains("lab::")) {
            wrong.push(format!("{} uses what the product is tested with", file.display()));
        }
        if part == "main" || part == "lib" {
            continue;
        }
        let Some((_, allowed)) = table.iter().find(|(of, _)| *of == part) else {
            wrong.push(format!("{crate_folder}: {part} is not in the table"));
            continue;
        };
        for used in used(&code, to_the_product) {
            let is_own = to_the_product == "crate::" && used == part;
            if !is_own && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{} uses {used}", file.display()));
            }
        }
    }
    wrong
}

#[test]
fn dependencies_point_one_way_and_every_file_opens_with_its_purpose() {
    let mut wrong = breaches("src", "crate::", PRODUCT);
    wrong.extend(breaches("testkit/src", "clerk_sync::", TESTKIT));
    wrong.extend(breaches("lab/src", "clerk_sync::", LAB));
    assert!(wrong.is_empty(), "{wrong:#?}");
}
