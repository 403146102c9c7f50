//! Habits of language that make a reader read twice, each with the better words. They are refused in what users read: the documentation,
//! the help and output of each command (by the snapshots), messages in `src`, comments of the database's objects, and the alerts.
//!
//! The table is for habits that came back. Everything else is up to whoever reads the change: plain words, one word for one thing.

use regex::Regex;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

struct Habit {
    /// Of lower-case text.
    pattern: &'static str,
    better: &'static str,
    /// A phrase that it must find.
    example: &'static str,
    /// Phrases that contain it and are fine.
    fine: &'static [&'static str],
}

const fn habit(
    pattern: &'static str,
    better: &'static str,
    example: &'static str,
    fine: &'static [&'static str],
) -> Habit {
    Habit { pattern, better, example, fine }
}

const HABITS: &[Habit] = &[
    habit(
        r"\b(is|are) no [a-z]+",
        "must be …, is not a valid …",
        "PORT is no port number",
        &["there is no ", "there are no ", "is no longer"],
    ),
    habit(r"\b(whose|whom|whoever)\b", "a sentence of its own", "the organization whose row it is", &[]),
    habit(r"\b(told|tells?)\b", "report, say, show", "found, repaired and told", &["tell a person what you hold"]),
    habit(r"\bmend(s|ed|ing)?\b", "fix, repair", "with how to mend it", &[]),
    habit(
        r"\b(goes|go|gone|going) on\b",
        "continue, resume, keep doing",
        "a pass is gone on with from its last page",
        &[],
    ),
    habit(r"\bunder way\b", "in flight, running", "bodies under way", &[]),
    habit(r"\b(comes?|came) again\b", "retry, arrive again", "the sender comes again", &[]),
    habit(r"\btried again\b", "retried", "it is tried again after a minute", &[]),
    habit(r"\basked for\b", "requested, read, looked up", "a read by id is asked for", &[]),
    habit(r"\bletters?\b", "dead letter, always two words", "a retried letter", &["dead letter", "dead-letter"]),
    habit(r"\bthe line to\b", "the connection to", "the line to Postgres", &[]),
    habit(r"\bin step\b", "in sync", "0 in step, 1 not", &["in step 2"]),
    habit(r"\bfor ever\b", "forever, or what stays so", "wrong for ever", &[]),
    habit(r"\bof no (concern|use|help)\b", "not copied, cannot be used", "durable or of no concern", &[]),
    habit(r"\bshall\b", "must, will", "that Svix shall try again", &[]),
    habit(r"\bex-members?\b", "former member", "the ex-member's next query", &[]),
    habit(r"\bbrakes?\b|\bbraked\b", "deletion limit", "stopped by the brake", &[]),
    habit(r"\b(he|his|him|himself)\b", "they, their, them", "reaches exactly his rows", &[]),
    habit(r"\bstubs?\b", "placeholder row", "stubs are read by id", &[]),
    habit(
        r"\b(a|the|each|every|next|last|first|full|whole|quick|hourly|no|another|of) pass(es)?\b",
        "reconcile: full, incremental",
        "repaired by the next pass",
        &["named by a membership older than the last pass"],
    ),
    habit(r"\bpasses (run|over|find|that|repair|have)\b", "reconciles", "passes over all that Clerk has", &[]),
    habit(r"\b(makes?|made) way\b", "is closed, gives up its memory", "idle connections make way", &[]),
    habit(r"\bhangs? on\b", "depends on", "access does not hang on it", &[]),
    habit(r"\bstands? (in|at|there|under|beside|by)\b", "is in, is written in", "its number stands in its report", &[]),
    habit(r"\bof today\b", "current", "session tokens of today", &[]),
    habit(r"\bthe kit\b", "clerk-sync's functions", "the kit costs no more", &[]),
    habit(r"\bmakes? no sense\b", "unexpected answer", "Clerk's answer makes no sense", &[]),
    habit(r"\bby the clock\b", "on schedule", "no pass will run by the clock", &[]),
    habit(r"\b(became|becomes?) of\b", "result, outcome", "what became of a delivery", &[]),
    habit(r"\bseldom\b", "rarely, less often", "ever more seldom", &["seldom of a person"]),
    habit(r"\bheld against\b|\bholds? .* against\b", "compared with", "each page is held against ours", &["replica"]),
    habit(r"\bput to the test\b", "tested", "how it was put to the test", &[]),
    habit(
        r"\b(is|was|are|were|be|been) answered\b",
        "acknowledged (a webhook), responded",
        "the webhook is answered",
        &[],
    ),
    habit(
        r"\bof ours\b|\bof yours\b",
        "our, your",
        "nothing of yours should use it",
        &[
            "rows of yours",
            "tables of yours",
            "limit of ours",
            "table of ours",
            "file of yours",
            "index of yours",
            "migration of yours",
            "object of yours",
            "tables of ours",
            "table of yours",
        ],
    ),
    habit(r"\bwhat is lost\b|\bwhat was lost\b", "missed webhooks", "what is lost stays lost", &[]),
    habit(r"\bmay go\b|\bwould go\b", "be deleted, be removed", "10 rows always may go", &[]),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Files with one of these endings, in a folder and below it.
fn files(folder: &str, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && !["target", "node_modules", ".next", ".git", "fixtures"].contains(&name.as_str()) {
                folders.push(path);
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// What is found in a text: the line, the phrase, and what is better.
fn found(text: &str) -> Vec<(usize, String, &'static str)> {
    static PATTERNS: LazyLock<Vec<(Regex, &Habit)>> =
        LazyLock::new(|| HABITS.iter().map(|habit| (Regex::new(habit.pattern).unwrap(), habit)).collect());
    // A name in code is not prose, and neither is the target of a link or a value to be filled in.
    static NAMES: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r#"`[^`]*`|\]\([^)]*\)|\{[^}]*\}|"braked"|braked:|stub:"#).unwrap());
    let mut all = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = NAMES.replace_all(&line.to_lowercase(), "``").into_owned();
        for (pattern, habit) in &*PATTERNS {
            let mut rest = line.clone();
            habit.fine.iter().for_each(|fine| rest = rest.replace(fine, "``"));
            if let Some(phrase) = pattern.find(&rest) {
                all.push((number + 1, phrase.as_str().to_owned(), habit.better));
            }
        }
    }
    all
}

/// The texts between quotation marks that have a space, a line for each: what a program says. Comments and tests are left out.
fn messages(source: &str) -> String {
    let source = source.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let mut lines = String::new();
    let mut characters = source.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\n' => lines.push('\n'),
            '/' if characters.peek() == Some(&'/') => {
                while characters.next_if(|&character| character != '\n').is_some() {}
            }
            // A character or a lifetime: what could be mistaken is '"'.
            '\'' => drop(characters.next_if_eq(&'"')),
            // A raw text ends with as many signs as it begins with; what it holds is SQL or JSON.
            'r' if characters.peek() == Some(&'#') => {
                let signs = std::iter::from_fn(|| characters.next_if_eq(&'#')).count();
                let end = format!("\"{}", "#".repeat(signs));
                let mut raw = String::new();
                while characters.peek().is_some() && !(raw.len() > end.len() && raw.ends_with(&end)) {
                    raw.extend(characters.next());
                }
                lines.extend(raw.chars().filter(|&character| character == '\n'));
            }
            '"' => {
                let mut text = String::new();
                while let Some(character) = characters.next() {
                    match character {
                        '"' => break,
                        // What is escaped says nothing, but for the end of a line: the text continues after the blanks of the next one.
                        '\\' => {
                            if characters.next() == Some('\n') {
                                while characters.next_if(|next| next.is_whitespace()).is_some() {}
                            }
                        }
                        character => text.push(character),
                    }
                }
                if text.contains(' ') && !text.contains("select ") {
                    lines.push_str(&text);
                    lines.push(' ');
                } else {
                    lines.extend(text.chars().filter(|&character| character == '\n'));
                }
            }
            _ => {}
        }
    }
    lines
}

/// Texts between single quotes in SQL that have a space: comments of objects, and what is raised.
fn sql_messages(sql: &str) -> String {
    let code = sql.lines().map(|line| line.split("-- ").next().unwrap_or_default());
    let code = code.collect::<Vec<_>>().join("\n").replace("''", "’");
    let parts = code.split('\'').enumerate().map(|(index, part)| {
        if index % 2 == 1 && part.contains(' ') {
            part.to_owned()
        } else {
            part.chars().filter(|&character| character == '\n').collect()
        }
    });
    parts.collect()
}

fn report(path: &Path, text: &str, all: &mut Vec<String>) {
    let name = path.strip_prefix(root()).unwrap().display().to_string();
    all.extend(found(text).into_iter().map(|(line, phrase, better)| format!("{name}:{line}: \"{phrase}\": {better}")));
}

#[test]
fn the_table_of_habits_finds_its_own_examples_and_leaves_what_is_fine() {
    assert!(HABITS.len() >= 25);
    for habit in HABITS {
        let in_example = found(habit.example);
        assert!(in_example.iter().any(|(_, _, better)| *better == habit.better), "{:?}", habit.example);
        for fine in habit.fine {
            assert!(found(fine).iter().all(|(_, _, better)| *better != habit.better), "{fine:?}");
        }
    }
}

/// An excerpt of the README before it was rewritten.
#[test]
fn the_check_fires_on_a_text_that_had_to_be_read_twice() {
    let text = std::fs::read_to_string(root().join("tests/fixtures/plain_words/README-before.md")).unwrap();
    let phrases: std::collections::BTreeSet<String> = found(&text).into_iter().map(|(_, phrase, _)| phrase).collect();
    for expected in [
        "is answered",
        "told",
        "for ever",
        "ex-member",
        "of no concern",
        "in step",
        "brake",
        "whose",
        "full pass",
        "make way",
    ] {
        assert!(phrases.iter().any(|phrase| phrase.contains(expected)), "{expected}: {phrases:?}");
    }
}

#[test]
fn a_message_is_found_where_the_program_says_it_and_a_comment_is_not() {
    let source = "// nobody is told\nlet quote = '\"';\nfail(\"it is tried \\\n again\"); let word = \"told\";\n\
                  #[cfg(test)]\nmod tests { \"told again\" }";
    assert_eq!(found(&messages(source)).len(), 1, "{}", messages(source));
    let sql = "-- told\ncomment on table x is 'It is Clerk''s; tried again.'; select 'told';";
    assert_eq!(found(&sql_messages(sql)).len(), 1, "{}", sql_messages(sql));
}

#[test]
fn what_users_read_is_in_plain_words() {
    let mut all = Vec::new();
    let mut texts = files("docs", &[".md"]);
    texts.extend(files("examples", &[".md", ".ts", ".tsx"]));
    texts.extend(files("ops", &[".yml"]));
    texts.extend(["npm", "skills", "llms.txt"].iter().flat_map(|folder| files(folder, &[".md"])));
    texts.extend(
        ["README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "llms.txt", "migrations/README.md"]
            .map(|name| root().join(name))
            .into_iter()
            .filter(|path| path.exists()),
    );
    assert!(texts.len() > 15, "{texts:?}");
    for path in &texts {
        report(path, &std::fs::read_to_string(path).unwrap(), &mut all);
    }
    // What commands print; the others are lists of names.
    for path in
        files("tests/snapshots", &[".snap"]).into_iter().filter(|path| !path.to_string_lossy().contains("main__"))
    {
        report(&path, &std::fs::read_to_string(&path).unwrap(), &mut all);
    }
    for path in files("src", &[".rs"]) {
        report(&path, &messages(&std::fs::read_to_string(&path).unwrap()), &mut all);
    }
    for path in files("migrations", &[".sql"]) {
        report(&path, &sql_messages(&std::fs::read_to_string(&path).unwrap()), &mut all);
    }
    assert!(all.is_empty(), "{} phrases to replace:\n{}", all.len(), all.join("\n"));
}
