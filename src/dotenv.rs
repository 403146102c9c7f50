//! The `.env` file of the working directory: read only if nobody else may write it, and told by its path.
//!
//! It can send the secret key elsewhere (`CLERK_API_URL`) and open the private listener (`OPS_ADDR`), so a file that somebody
//! leaves in a shared folder must not be obeyed.

use crate::os;
use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// What decides where secrets and pages go: told even where little else is.
const TELLING: &[&str] = &["CLERK_API_URL", "OPS_ADDR"];
/// Bytes. A larger one is something else.
const LARGEST: u64 = 1 << 20;

/// A file that is there.
#[derive(Debug)]
pub struct Dotenv {
    pub path: PathBuf,
    /// The variables that it sets, up to the first faulty line.
    pub names: Vec<String>,
    /// Why it, or a part of it, is not used as it was meant: each the end of a sentence that begins with its path.
    pub problems: Vec<String>,
    text: String,
    /// Those of [`TELLING`] that were not set before.
    telling: Vec<&'static str>,
}

impl Dotenv {
    /// The one in `folder`; `None`: there is none.
    pub fn find(folder: &Path) -> Option<Dotenv> {
        let path = folder.join(".env");
        let mut found =
            Dotenv { path, names: Vec::new(), problems: Vec::new(), text: String::new(), telling: Vec::new() };
        match read(&found.path) {
            Ok(Some(text)) => {
                (found.names, found.problems) = check(&text, |name| std::env::var_os(name).is_some());
                found.text = text;
            }
            Ok(None) => return None,
            Err(problem) => found.problems.push(problem),
        }
        Some(found)
    }

    /// Sets what is not set yet. Before any thread exists: it changes the environment.
    pub fn load(&mut self) {
        let of_it =
            |name: &&&'static str| self.names.iter().any(|set| set == **name) && std::env::var_os(**name).is_none();
        self.telling = TELLING.iter().filter(of_it).copied().collect();
        // Whatever is wrong was found before.
        let _ = dotenvy::from_read(self.text.as_bytes());
    }

    /// Logs that it was read, or why not.
    pub fn tell(&self) {
        let path = self.path.display();
        if self.problems.is_empty() {
            tracing::info!("{path} is read");
        }
        for problem in &self.problems {
            tracing::warn!("{path} {problem}");
        }
        for name in &self.telling {
            tracing::warn!("{name} is taken from {path}");
        }
    }
}

/// The text of any file that only we (or root) may write, and that is text; why another one is not read is logged.
pub fn text(path: &Path) -> Option<String> {
    read(path).unwrap_or_else(|problem| {
        tracing::warn!("{} {problem}", path.display());
        None
    })
}

/// What a file of variables sets one to.
pub fn value(path: &Path, name: &str) -> Option<String> {
    let text = text(path)?;
    let found = dotenvy::Iter::new(text.as_bytes()).filter_map(Result::ok).find(|(set, _)| set == name);
    found.map(|(_, value)| value)
}

/// A line that sets a variable to just this; `None`: no line can.
pub fn line(name: &str, value: &str) -> Option<String> {
    if value.contains(['\'', '\n', '\r']) {
        return None;
    }
    // Quotes only where they are needed: docker's --env-file would keep them.
    let is_plain = !value.contains(|c: char| c.is_whitespace() || matches!(c, '"' | '#' | '$' | '\\' | '`'));
    Some(if is_plain { format!("{name}={value}\n") } else { format!("{name}='{value}'\n") })
}

/// The text of a file that only we (or root) may write; `None`: there is none.
fn read(path: &Path) -> Result<Option<String>, String> {
    let ignored = |why: &str| Err(format!("is ignored: {why}"));
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return ignored(&format!("it cannot be opened ({})", error.kind())),
    };
    let Ok(about) = file.metadata() else { return ignored("its metadata cannot be read") };
    if !about.is_file() || about.len() > LARGEST {
        return ignored("it is not an ordinary file of at most 1 MiB");
    }
    if !os::is_ours(&about) {
        return ignored("it belongs to another user");
    }
    if os::others_may_write(&about) {
        return ignored("other accounts on this machine have write permission for it; run chmod go-w .env");
    }
    let mut bytes = Vec::new();
    if let Err(error) = file.take(LARGEST).read_to_end(&mut bytes) {
        return ignored(&format!("it cannot be read ({})", error.kind()));
    }
    if bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF]) {
        return ignored("it is UTF-16; save it as UTF-8");
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text.trim_start_matches('\u{feff}').to_owned())),
        Err(error) => {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            ignored(&format!("line {} is not UTF-8", good.iter().filter(|byte| **byte == b'\n').count() + 1))
        }
    }
}

/// The names that it sets up to the first faulty line, and what is wrong with it.
fn check(text: &str, is_set: impl Fn(&str) -> bool) -> (Vec<String>, Vec<String>) {
    let taken = Rc::new(Cell::new(0));
    let source = Lines { rest: text.as_bytes(), taken: Rc::clone(&taken) };
    let (mut names, mut problems, mut good) = (Vec::new(), Vec::new(), 0);
    for item in dotenvy::Iter::new(source) {
        let (first, line) = first_line(text, good);
        let known = |name: &str| is_set(name) || names.iter().any(|set| set == name);
        match item {
            Ok((name, _)) => {
                if replaces_by_nothing(line, known) {
                    let why = "has a $ that is replaced by nothing: put the value in single quotes";
                    problems.push(format!("is read, but line {first} {why}"));
                }
                names.push(name);
            }
            Err(_) => {
                problems.push(format!("is read only up to line {first}, which {}", fault(line)));
                break;
            }
        }
        good = taken.get();
    }
    (names, problems)
}

/// The first line that says something behind so many lines, with its number.
fn first_line(text: &str, behind: usize) -> (usize, &str) {
    let says_something = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let mut lines = text.lines().enumerate().skip(behind);
    lines.find(|(_, line)| says_something(line)).map_or((behind + 1, ""), |(index, line)| (index + 1, line))
}

/// What is wrong with a line, of which nothing is shown: it may hold a secret.
fn fault(line: &str) -> &'static str {
    let line = line.trim_start();
    let Some((name, value)) = line.strip_prefix("export ").unwrap_or(line).split_once('=') else {
        return "is not NAME=value";
    };
    let value = value.trim();
    if !name.trim().chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.') {
        "has a name with characters other than A to Z, digits and _"
    } else if value.matches(['"', '\'']).count() % 2 == 1 {
        "opens a quotation mark that is not closed"
    } else if value.contains('\\') {
        "has a backslash: double it, or put the value into single quotes"
    } else if value.contains('$') {
        "has a $ in its value: put it into single quotes"
    } else {
        "has a value with spaces: put it into quotes"
    }
}

/// Whether a `$` outside single quotes names a variable that is not known, as one in a password does.
fn replaces_by_nothing(line: &str, known: impl Fn(&str) -> bool) -> bool {
    let value = line.split_once('=').map_or("", |(_, value)| value.trim());
    if value.starts_with('\'') {
        return false;
    }
    let mut parts = value.split('$');
    let mut before = parts.next().unwrap_or_default();
    parts.any(|part| {
        let is_escaped = before.ends_with('\\');
        before = part;
        let name = part.strip_prefix('{').unwrap_or(part);
        let end = name.find(|c: char| !c.is_alphanumeric()).unwrap_or(name.len());
        !is_escaped && !known(&name[..end])
    })
}

/// Hands on a line at a time, and counts them.
struct Lines<'a> {
    rest: &'a [u8],
    taken: Rc<Cell<usize>>,
}

impl Read for Lines<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let line = self.rest.iter().position(|byte| *byte == b'\n').map_or(self.rest.len(), |end| end + 1);
        let size = line.min(buffer.len());
        let (now, rest) = self.rest.split_at(size);
        buffer[..size].copy_from_slice(now);
        self.taken.set(self.taken.get() + usize::from(size > 0 && size == line));
        self.rest = rest;
        Ok(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_sets_a_variable_to_just_its_value() {
        for value in ["", "plain", "a=b?c&d", "pa$$word", "a#b", "two words", "back\\slash", "\"quoted\"", "`x`"] {
            let line = line("NAME", value).unwrap();
            let read: Vec<_> = dotenvy::Iter::new(line.as_bytes()).collect::<Result<_, _>>().unwrap();
            assert_eq!(read, [("NAME".to_owned(), value.to_owned())], "{line}");
        }
        assert_eq!(line("NAME", "it's"), None);
        assert_eq!(line("NAME", "a\nOTHER=1"), None);
    }

    #[test]
    fn a_faulty_line_is_told_by_its_number_and_what_is_wrong_with_it() {
        let judge = |text: &str| {
            let (names, problems) = check(text, |name| name == "HOME");
            (names.len(), problems.join("; "))
        };
        assert_eq!(judge("A=1\n\n# a comment\nexport B='two words'\nC=\"a\nb\"\nD=$HOME/$A\n"), (4, String::new()));
        for (line, says) in [
            ("A=s3cret words", "line 4, which has a value with spaces"),
            ("A-B=s3cret", "line 4, which has a name with"),
            ("s3cret", "line 4, which is not NAME=value"),
            ("A=s3cret\\d", "line 4, which has a backslash"),
            ("A='s3cret", "line 4, which opens a quotation mark"),
            ("A=\"s3cret$\"", "line 4, which has a $"),
        ] {
            for rest in ["", "\nB=2\nC=3"] {
                let (names, problem) = judge(&format!("Z=1\n\n# a comment\n{line}{rest}"));
                assert_eq!(names, 1, "{line}");
                assert!(problem.contains(says) && !problem.contains("s3cret"), "{line}: {problem}");
            }
        }
        assert_eq!(judge("A='s3cret$word'\nB=s3cret\\$word").1, "");
        for line in ["A=s3cret$word", "A=s3cret${WORD}"] {
            let (names, problem) = judge(&format!("Z=1\n{line}\nB=2"));
            assert!(
                names == 3 && problem.contains("line 2 has a $") && !problem.contains("s3cret"),
                "{line}: {problem}"
            );
        }
    }
}
