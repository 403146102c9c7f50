//! What must not be kept of a message, cut out of its text. Pure.

use super::json::{decode_string, scalar_end, string_end};
use serde_json::value::RawValue;

/// Never mirrored, and for an application's servers alone.
const PRIVATE: &str = "private_metadata";

/// The same JSON text with `null` for each `private_metadata` in it; everything else stays byte for byte. `None`: there is none, or
/// this is not JSON.
pub(crate) fn without_private_metadata(body: &[u8]) -> Option<Vec<u8>> {
    let text = serde_json::from_slice::<&RawValue>(body).ok()?.get();
    let bytes = text.as_bytes();
    let (mut kept, mut from, mut at) = (Vec::with_capacity(bytes.len()), 0, 0);
    while at < bytes.len() {
        if bytes[at] != b'"' {
            at += 1;
            continue;
        }
        let end = string_end(bytes, at);
        let colon = after_space(bytes, end);
        let is_key = bytes.get(colon) == Some(&b':');
        if is_key && decode_string(&text[at..end]).0 == PRIVATE {
            let value = after_space(bytes, colon + 1);
            kept.extend_from_slice(&bytes[from..value]);
            kept.extend_from_slice(b"null");
            from = value_end(bytes, value);
            at = from;
        } else {
            at = end;
        }
    }
    kept.extend_from_slice(&bytes[from..]);
    (from > 0).then_some(kept)
}

fn after_space(bytes: &[u8], at: usize) -> usize {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    at + bytes.get(at..).unwrap_or_default().iter().take_while(|byte| is_space(byte)).count()
}

/// One past the value that begins at `at`, without recursion: depth cannot hurt.
fn value_end(bytes: &[u8], at: usize) -> usize {
    let (mut at, mut depth) = (at, 0_usize);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = string_end(bytes, at),
            b'{' | b'[' => {
                depth += 1;
                at += 1;
                continue;
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                at += 1;
            }
            b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' => {
                at += 1;
                continue;
            }
            _ => at = scalar_end(bytes, at),
        }
        if depth == 0 {
            break;
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(body: &str) -> Option<String> {
        without_private_metadata(body.as_bytes()).map(|body| String::from_utf8(body).unwrap())
    }

    #[test]
    fn private_metadata_is_cut_wherever_it_stands_and_nothing_else() {
        let whole = r#"{"data": {"id" :"user_1", "private_metadata" : {"a":[1,{"b":"}\"]"}]}, "n": 1e999}, "private_metadata":"x"}"#;
        let rest = r#"{"data": {"id" :"user_1", "private_metadata" : null, "n": 1e999}, "private_metadata":null}"#;
        assert_eq!(cut(whole).as_deref(), Some(rest));
        assert_eq!(
            cut(r#"[{"private_\u006detadata":-1.5e3}]"#).as_deref(),
            Some(r#"[{"private_\u006detadata":null}]"#)
        );
        assert_eq!(cut(r#"{"private_metadata":[]}"#).as_deref(), Some(r#"{"private_metadata":null}"#));
    }

    #[test]
    fn what_has_none_and_what_is_no_json_stays_as_it_is() {
        for body in [
            r#"{"public_metadata":"private_metadata"}"#,
            r#"["private_metadata"]"#,
            "",
            "[",
            "\"private_metadata\"",
            "{\"a\":1}",
        ] {
            assert_eq!(cut(body), None, "{body}");
        }
        assert_eq!(without_private_metadata(b"{\"private_metadata\":\"\xff\"}"), None);
        let deep = format!("{{\"private_metadata\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(cut(&deep).as_deref(), Some("{\"private_metadata\":null}"));
    }
}
