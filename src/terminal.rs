//! What commands print, with nothing in it that a terminal would obey.
//!
//! Names of tables, ids, claims and the messages of servers are other people's text: none of it may move the cursor, clear the
//! screen, turn its direction round or pass for a line of ours. So everything that is printed goes through here; a lint forbids
//! `println!` and its like elsewhere.

use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal as _, Write};

/// Prints one line on standard output.
pub fn line(text: impl Display) {
    write(&mut io::stdout().lock(), &visible(&text.to_string(), |_| false));
}

/// What a word at the beginning of a line means, which a terminal shows by its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    Good,
    Attention,
    Bad,
    /// Of no weight, such as what was left out.
    Faint,
}

impl Mark {
    /// As ANSI has it. Each but the last is bold as well: its meaning must not depend on the colour alone.
    const fn code(self) -> &'static str {
        match self {
            Mark::Good => "1;32",
            Mark::Attention => "1;33",
            Mark::Bad => "1;31",
            Mark::Faint => "2",
        }
    }
}

/// Prints one line on standard output that begins with a word of ours, in colour on a terminal. `NO_COLOR` turns colours off,
/// `CLICOLOR_FORCE` turns them on where the output is piped.
pub fn marked(mark: Mark, word: &str, rest: impl Display) {
    let (word, rest) = (visible(word, |_| false), visible(&rest.to_string(), |_| false));
    let line =
        if is_coloured() { format!("\u{1b}[{}m{word}\u{1b}[0m{rest}", mark.code()) } else { format!("{word}{rest}") };
    write(&mut io::stdout().lock(), &line);
}

/// Whether standard output is shown in colours (<https://no-color.org>, <https://bixense.com/clicolors>).
fn is_coloured() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_forced = is_set("CLICOLOR_FORCE") && std::env::var_os("CLICOLOR_FORCE").is_some_and(|value| value != "0");
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    !is_set("NO_COLOR") && (is_forced || (io::stdout().is_terminal() && !is_dumb))
}

/// Prints the beginning of a line on standard output, which the answer to a question ends.
pub fn prompt(text: impl Display) {
    let mut output = io::stdout().lock();
    let _ = write!(output, "{}", visible(&text.to_string(), |_| false)).and_then(|()| output.flush());
}

/// Prints one line on standard error.
pub fn note(text: impl Display) {
    write(&mut io::stderr().lock(), &visible(&text.to_string(), |_| false));
}

/// Prints a text of several lines on standard output, such as SQL or JSON, and ends its last line.
pub fn text(text: impl Display) {
    write(&mut io::stdout().lock(), &visible(&text.to_string(), |c| c == '\n'));
}

/// The same on standard error.
pub fn note_text(text: impl Display) {
    write(&mut io::stderr().lock(), &visible(&text.to_string(), |c| c == '\n'));
}

/// # Panics
/// What was to be printed cannot be: the disk is full. That whoever reads has left is no fault.
fn write(to: &mut impl Write, line: &str) {
    match writeln!(to, "{line}").and_then(|()| to.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => panic!("cannot print: {error}"),
        _ => {}
    }
}

/// The text with what a terminal would obey as escapes that JSON has too, but for tabs and what `is_kept`.
pub(crate) fn visible(text: &str, is_kept: impl Fn(char) -> bool) -> String {
    let mut visible = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => visible.push(c),
            c if is_kept(c) => visible.push(c),
            '\n' => visible.push_str("\\n"),
            '\r' => visible.push_str("\\r"),
            c if is_obeyed(c) => visible.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => visible.push(c),
        }
    }
    visible
}

/// Control characters, those that end a line, and those that change the direction of what follows.
pub(crate) fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_would_obey_is_printed() {
        let hostile = "a\u{1b}[2Jb\r\n\tç\u{9b}31m\u{7f}\u{202e}drow";
        assert_eq!(visible(hostile, |_| false), "a\\u001b[2Jb\\r\\n\tç\\u009b31m\\u007f\\u202edrow");
        assert_eq!(visible("select 1;\n-- \u{1b}", |c| c == '\n'), "select 1;\n-- \\u001b");
    }

    #[test]
    fn json_stays_json() {
        let value = serde_json::json!({ "name": "\u{1b}\u{9b}\u{7f}\u{202e}\n\"", "of": ["\u{2028}"] });
        for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
            let printed = visible(&text, |c| c == '\n');
            assert!(!printed.chars().any(|c| is_obeyed(c) && c != '\n'), "{printed}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&printed).unwrap(), value);
        }
    }

    #[test]
    fn who_stops_reading_is_no_fault() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        write(&mut Gone, "a line");
    }
}
