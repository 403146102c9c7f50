//! What the documentation says can be done: each command line is understood, each link leads somewhere, each variable exists, and the SQL
//! of the guide runs.

use crate::support;
use regex::Regex;
use sqlx::{AssertSqlSafe, Row};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The documents, by their path below the root.
fn documents() -> Vec<(String, String)> {
    let names = "README.md CONTRIBUTING.md SECURITY.md docs/*.md examples/*/README.md migrations/README.md skills/*/SKILL.md llms.txt npm/*/README.md";
    let mut found = Vec::new();
    for name in names.split(' ') {
        let mut paths = vec![root()];
        for part in name.split('/') {
            let (before, after) = part.split_once('*').unwrap_or((part, ""));
            paths = paths
                .iter()
                .flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten())
                .map(|entry| entry.unwrap().path())
                .filter(|path| {
                    let name = path.file_name().unwrap().to_string_lossy().into_owned();
                    if part.contains('*') { name.starts_with(before) && name.ends_with(after) } else { name == part }
                })
                .collect();
        }
        found.extend(paths.into_iter().filter(|path| path.is_file()).map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            (path.strip_prefix(root()).unwrap().to_string_lossy().into_owned(), text)
        }));
    }
    assert!(found.len() >= 15, "{:?}", found.iter().map(|(name, _)| name).collect::<Vec<_>>());
    found
}

/// The fenced blocks in a language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(found) = line.trim_start().strip_prefix("```") {
            let block: Vec<&str> = lines.by_ref().take_while(|line| !line.trim_start().starts_with("```")).collect();
            if found == language {
                blocks.push(block.join("\n"));
            }
        }
    }
    blocks
}

/// The words of a command line as a shell would take them: quotes and a comment are understood, and what is redirected is left out.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for character in line.chars() {
        match (quote, character) {
            (Some(open), character) if character == open => quote = None,
            (Some(_), character) => word.get_or_insert_default().push(character),
            (None, '\'' | '"') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, ' ') => words.extend(word.take()),
            (None, '#') if word.is_none() => break,
            (None, character) => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    words.into_iter().take_while(|word| word != ">" && word != "|" && word != "&&").collect()
}

/// The commands of the program in a line: after variables, by npx, or as the command that another program runs.
fn commands(line: &str) -> Vec<Vec<String>> {
    let mut words = words(line);
    let is_variable = |word: &String| {
        word.split_once('=').is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
    };
    let variables = words.iter().take_while(|word| is_variable(word)).count();
    words.drain(..variables);
    if words.first().is_some_and(|word| word == "npx") {
        words.remove(0);
    }
    match words.first().map(String::as_str) {
        Some("clerk-sync") => vec![words],
        Some("fly" | "docker" | "kubectl") => {
            let nested = words.iter().filter(|word| word.starts_with("clerk-sync ")).flat_map(|word| commands(word));
            let last = words.iter().rposition(|word| word == "clerk-sync").map(|start| words[start..].to_vec());
            nested.chain(last.filter(|words| words.len() > 1)).collect()
        }
        _ => Vec::new(),
    }
}

#[test]
fn every_command_line_of_the_documents_is_understood() {
    let code = Regex::new(r"`((?:npx )?clerk-sync [^`]+)`").unwrap();
    let mut all = BTreeSet::new();
    for (name, text) in documents() {
        let shell: Vec<String> = blocks(&text, "console").iter().map(|block| block.replace("\\\n", "")).collect();
        let typed =
            shell.iter().flat_map(|block| block.lines()).filter_map(|line| line.trim_start().strip_prefix("$ "));
        let inline = code
            .captures_iter(&text)
            .map(|found| found.get(1).unwrap().as_str())
            .filter(|text| !text.contains('…') || text.contains("user_…"));
        for line in typed.chain(inline) {
            all.extend(commands(line).into_iter().map(|command| (command, name.clone())));
        }
    }
    assert!(all.len() > 40, "{all:?}");
    let mut wrong = Vec::new();
    for (command, name) in &all {
        // What a reader puts in.
        let example = |index: usize| if command[index - 1] == "--approve" { "22" } else { "user_2abc" };
        let filled =
            command.iter().enumerate().map(|(index, word)| if word == "ID" { example(index) } else { word.as_str() });
        // Options are looked at from left to right, so what comes before --help must be known.
        let output = Command::new(env!("CARGO_BIN_EXE_clerk-sync"))
            .args(filled.skip(1).filter(|word| *word != "--help"))
            .arg("--help")
            .output()
            .unwrap();
        if !output.status.success() {
            wrong.push(format!("{name}: {}: {}", command.join(" "), String::from_utf8_lossy(&output.stderr)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_command_of_the_script_in_the_documents_exists() {
    let script = std::fs::read_to_string(root().join("x")).unwrap();
    let named = Regex::new(r"\./x ([a-z]+)").unwrap();
    let mut seen = BTreeSet::new();
    for (name, text) in documents() {
        for found in named.captures_iter(&text) {
            let command = &found[1];
            assert!(
                Regex::new(&format!(r"(?m)^  ([a-z|]+\|)?{command}(\|[a-z]+)*\)")).unwrap().is_match(&script),
                "{name}: ./x {command}"
            );
            seen.insert(command.to_owned());
        }
    }
    assert!(seen.len() > 5, "{seen:?}");
}

/// The name of a heading in a link, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.map(|character| if character == ' ' { '-' } else { character }).collect()
}

fn anchors(text: &str) -> Vec<String> {
    let mut is_code = false;
    let mut anchors = Vec::new();
    for line in text.lines() {
        is_code ^= line.trim_start().starts_with("```");
        if !is_code && line.starts_with('#') {
            anchors.push(anchor(line.trim_start_matches('#')));
        }
    }
    anchors
}

fn assert_leads_somewhere(from: &str, folder: &Path, link: &str) {
    let (path, heading) = link.split_once('#').unwrap_or((link, ""));
    let target = if path.is_empty() { root().join(from) } else { folder.join(path) };
    assert!(target.exists(), "{from}: {link}");
    if !heading.is_empty() {
        let known = anchors(&std::fs::read_to_string(&target).unwrap());
        assert!(known.iter().any(|anchor| anchor == heading), "{from}: {link}: {known:?}");
    }
}

#[test]
fn every_link_of_the_documents_and_the_alerts_leads_somewhere() {
    let link = Regex::new(r"\]\(([^)\s]+)\)").unwrap();
    let mut count = 0;
    for (name, text) in documents() {
        let folder = root().join(&name).parent().unwrap().to_owned();
        for found in link.captures_iter(&text).map(|found| found.get(1).unwrap().as_str()) {
            if !found.starts_with("http") {
                assert_leads_somewhere(&name, &folder, found);
                count += 1;
            }
        }
    }
    assert!(count > 50, "{count}");
    let alerts = std::fs::read_to_string(root().join("ops/alerts.yml")).unwrap();
    let runbooks: Vec<&str> = alerts.lines().filter_map(|line| line.trim().strip_prefix("runbook_url: ")).collect();
    assert!(runbooks.len() > 10);
    runbooks.into_iter().for_each(|link| assert_leads_somewhere("ops/alerts.yml", &root(), link));
}

/// Variables that programs of others read, or that a document sets for its own next line.
const VARIABLES_OF_OTHERS: &[&str] = &["OLD_DATABASE_URL", "NEW_DATABASE_URL", "RUST_LOG", "ON_ERROR_STOP"];

#[test]
fn every_variable_of_the_documents_is_read_and_every_one_of_serve_is_documented() {
    let help = Command::new(env!("CARGO_BIN_EXE_clerk-sync")).args(["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let documents = documents();
    let operate = &documents.iter().find(|(name, _)| name == "docs/operate.md").unwrap().1;
    let mut of_serve = Regex::new(r"\[env: ([A-Z_]+)")
        .unwrap()
        .captures_iter(&help)
        .map(|found| found[1].to_owned())
        .collect::<Vec<_>>();
    assert!(of_serve.len() > 15, "{of_serve:?}");
    of_serve.retain(|name| !operate.contains(&format!("`{name}`")));
    assert_eq!(of_serve, Vec::<String>::new(), "docs/operate.md lacks them");

    let mut read = String::new();
    for folder in ["src", "lab/src", "testkit/src", "tests"] {
        let mut folders = vec![root().join(folder)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("documents.rs")
                {
                    read.push_str(&std::fs::read_to_string(path).unwrap());
                }
            }
        }
    }
    let set = Regex::new(r"\b([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)=").unwrap();
    let named = Regex::new(r"`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)`").unwrap();
    for (name, text) in &documents {
        let shell = blocks(text, "console").join("\n");
        for found in set.captures_iter(&shell).chain(named.captures_iter(text)) {
            let variable = &found[1];
            let is_known = VARIABLES_OF_OTHERS.contains(&variable) || read.contains(variable);
            assert!(is_known, "{name}: {variable}");
        }
    }
}

/// In one database, in the order of the page, as the owner of the tables. The test user of the guide sees their organization.
#[tokio::test(flavor = "multi_thread")]
async fn the_sql_of_the_readme_and_the_guides_runs() {
    let database = support::database().await;
    let documents = documents();
    let page = |page| &documents.iter().find(|(name, _)| name == page).unwrap().1;
    let mut seen = Vec::new();
    for name in ["docs/supabase.md", "README.md", "docs/privacy.md"] {
        for sql in blocks(page(name), "sql") {
            let mut owner = database.owner().await;
            let rows = sqlx::raw_sql(AssertSqlSafe(sql.clone())).fetch_all(&mut owner).await;
            let rows = rows.unwrap_or_else(|error| panic!("{name}: {error}\n{sql}"));
            seen.extend(rows.iter().filter_map(|row| row.try_get::<String, _>(0).ok()));
        }
    }
    assert!(seen.contains(&"org_acme".to_owned()), "{seen:?}");
    let uninstall = blocks(page("docs/leaving.md"), "sql").join("\n");
    let schemas = uninstall.lines().find(|line| line.starts_with("drop schema")).unwrap();
    database.execute(schemas).await;
    let left = database.rows("select nspname from pg_namespace where nspname like 'clerk%'").await;
    assert!(left.is_empty(), "{left:?}");
}
