//! Questions on a terminal. A secret is read without being shown.

use crate::os::Quiet;
use crate::terminal;
use std::io::{self, BufRead as _, ErrorKind, IsTerminal as _, Read};

/// How an answer is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Echo {
    /// It is shown.
    On,
    /// It is not: a key, or a connection string with its password.
    Off,
}

/// Whether somebody can answer: both standard input and output are a terminal.
pub fn is_possible() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Asks once. Without white space around it; empty: only Enter was pressed.
///
/// # Errors
/// Ctrl-C or Ctrl-D was pressed, or the terminal is gone.
pub fn ask(question: &str, echo: Echo) -> io::Result<String> {
    let answer = match echo {
        Echo::On => {
            terminal::prompt(format_args!("{question}: "));
            let mut line = String::new();
            if io::stdin().lock().read_line(&mut line)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            line
        }
        Echo::Off => {
            // First: who has read the question may answer at once.
            let quiet = Quiet::begin(io::stdin())?;
            terminal::prompt(format_args!("{question}: "));
            let line = hidden(&mut io::stdin().lock());
            drop(quiet);
            terminal::line("");
            line?
        }
    };
    Ok(answer.trim().to_owned())
}

/// A line from a terminal that neither shows nor interprets what is typed.
fn hidden(input: &mut impl Read) -> io::Result<String> {
    const CTRL_C: u8 = 3;
    const CTRL_D: u8 = 4;
    const BACKSPACE: u8 = 8;
    const CTRL_U: u8 = 21;
    const DELETE: u8 = 127;
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        input.read_exact(&mut byte)?;
        match byte[0] {
            b'\r' | b'\n' => break,
            CTRL_C => return Err(ErrorKind::Interrupted.into()),
            CTRL_D => return Err(ErrorKind::UnexpectedEof.into()),
            BACKSPACE | DELETE => {
                line.pop();
            }
            CTRL_U => line.clear(),
            other => line.push(other),
        }
    }
    String::from_utf8(line).map_err(|_| ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hidden_line_can_be_corrected_and_given_up() {
        let typed = |bytes: &[u8]| hidden(&mut &*bytes).map_err(|error| error.kind());
        assert_eq!(typed(b"sk_tesr\x7ft_1\r"), Ok("sk_test_1".to_owned()));
        assert_eq!(typed(b"wrong\x15right\nnext"), Ok("right".to_owned()));
        assert_eq!(typed(b"\x7f\n"), Ok(String::new()));
        assert_eq!(typed(b"half\x03"), Err(ErrorKind::Interrupted));
        assert_eq!(typed(b"\x04"), Err(ErrorKind::UnexpectedEof));
        assert_eq!(typed(b"cut"), Err(ErrorKind::UnexpectedEof));
    }
}
