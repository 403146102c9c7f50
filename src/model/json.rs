//! JSON that Clerk's customers wrote, made storable and comparable.
//!
//! Metadata may be anything: Postgres refuses some of it (NUL), and the same value comes with other spacing and key order by
//! webhook and by API. [`Json::canonical`] gives one text for one value, without recursion, so depth cannot hurt.

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use std::borrow::Cow;

/// JSON text in one canonical form.
///
/// No white space, keys sorted, the last of duplicate keys, characters unescaped where JSON allows, numbers digit for digit
/// as they came, or with an exponent where that saves many zeros.
#[derive(Clone, Debug)]
pub struct Json(Box<RawValue>);

/// Numbers count by their value: Postgres spells `1e2` as `100`.
impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str() || same_values(self.as_str(), other.as_str())
    }
}

/// Levels of nesting that are kept. Metadata has at most 8 kB, which hold no more than 4,000; Postgres parses 10,000
/// (20,000 end in 54001, stack depth).
const DEPTH: usize = 4_096;

/// Digits on one side of the decimal point that are kept. Postgres takes 131,072 before it and 16,383 behind.
const DIGITS: i64 = 16_000;

/// Digits that all numbers of one value may have beyond those that came: Postgres writes each number out, and 8 kB of `9e15999`
/// would be 16 MB there.
const WRITTEN_OUT: i64 = 16_000;

/// A number that is longer is looked at for zeros: Postgres writes `1e15999` out, and a row full of those must not fill
/// our memory.
const LONG: usize = 40;

/// Why a value was left out: no database could hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unstorable {
    #[error("nested deeper than 4,096 levels")]
    Depth,
    #[error("numbers of more than 16,000 digits, written out")]
    Number,
}

impl Json {
    /// The canonical form of `raw`, which must be valid JSON (as every [`RawValue`] is), and how many characters that no
    /// database can hold were replaced in it.
    ///
    /// # Errors
    /// The value is one that Postgres refuses as a whole.
    pub(crate) fn canonical(raw: &str) -> Result<(Json, usize), Unstorable> {
        let mut canonical = Canonical::default();
        canonical.run(raw)?;
        let text = RawValue::from_string(canonical.out).expect("the canonical form of valid JSON is valid JSON");
        Ok((Json(text), canonical.replaced))
    }

    pub fn as_str(&self) -> &str {
        self.0.get()
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// A container that is not closed yet.
enum Open {
    /// An array, and where its text begins.
    Array,
    /// An object: the members so far, and the key that waits for its value.
    Object { members: Vec<(String, String)>, key: Option<String>, outer: String },
}

#[derive(Default)]
struct Canonical {
    open: Vec<Open>,
    out: String,
    replaced: usize,
    /// Digits beyond those that came, so far.
    written_out: i64,
}

impl Canonical {
    fn run(&mut self, raw: &str) -> Result<(), Unstorable> {
        let bytes = raw.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            match bytes[at] {
                b' ' | b'\t' | b'\n' | b'\r' | b':' => at += 1,
                b'{' => {
                    let outer = std::mem::take(&mut self.out);
                    self.open.push(Open::Object { members: Vec::new(), key: None, outer });
                    at += 1;
                }
                b'[' => {
                    self.out.push('[');
                    self.open.push(Open::Array);
                    at += 1;
                }
                b',' => {
                    self.end_member();
                    if matches!(self.open.last(), Some(Open::Array)) {
                        self.out.push(',');
                    }
                    at += 1;
                }
                b']' => {
                    self.open.pop();
                    self.out.push(']');
                    at += 1;
                }
                b'}' => {
                    self.end_member();
                    self.close_object();
                    at += 1;
                }
                b'"' => {
                    let end = string_end(bytes, at);
                    let (text, replaced) = decode_string(&raw[at..end]);
                    self.replaced += replaced;
                    if let Some(Open::Object { key: key @ None, .. }) = self.open.last_mut() {
                        *key = Some(text.into_owned());
                    } else {
                        encode_string(&text, &mut self.out);
                    }
                    at = end;
                }
                _ => {
                    let end = scalar_end(bytes, at);
                    self.written_out += digits_added(&raw[at..end]).ok_or(Unstorable::Number)?;
                    if self.written_out > WRITTEN_OUT {
                        return Err(Unstorable::Number);
                    }
                    self.push_number(&raw[at..end]);
                    at = end;
                }
            }
            if self.open.len() > DEPTH {
                return Err(Unstorable::Depth);
            }
        }
        Ok(())
    }

    fn push_number(&mut self, number: &str) {
        if number.len() > LONG {
            let (negative, significant, power) = decimal(number);
            if significant.len() + LONG < number.len() {
                let sign = if negative { "-" } else { "" };
                let significant = if significant.is_empty() { "0" } else { &significant };
                self.out.push_str(&format!("{sign}{significant}e{power}"));
                return;
            }
        }
        self.out.push_str(number);
    }

    /// The value of the current key is complete: keep both.
    fn end_member(&mut self) {
        if let Some(Open::Object { members, key, .. }) = self.open.last_mut()
            && let Some(key) = key.take()
        {
            members.push((key, std::mem::take(&mut self.out)));
        }
    }

    fn close_object(&mut self) {
        let Some(Open::Object { mut members, outer, .. }) = self.open.pop() else { return };
        members.sort_by(|a, b| a.0.cmp(&b.0)); // stable: of equal keys the last one sent stays last
        self.out = outer;
        self.out.push('{');
        let mut first = true;
        for (index, (key, value)) in members.iter().enumerate() {
            if members.get(index + 1).is_some_and(|next| next.0 == *key) {
                continue;
            }
            if !std::mem::take(&mut first) {
                self.out.push(',');
            }
            encode_string(key, &mut self.out);
            self.out.push(':');
            self.out.push_str(value);
        }
        self.out.push('}');
    }
}

/// One past the closing quote of the string that opens at `at`.
pub(super) fn string_end(bytes: &[u8], at: usize) -> usize {
    let mut at = at + 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// One past the number, `true`, `false` or `null` that begins at `at`.
pub(super) fn scalar_end(bytes: &[u8], at: usize) -> usize {
    let is_end = |b: &u8| matches!(b, b' ' | b'\t' | b'\n' | b'\r' | b',' | b']' | b'}' | b':');
    bytes[at..].iter().position(is_end).map_or(bytes.len(), |n| at + n)
}

/// Whether two canonical texts differ in nothing but the spelling of numbers.
fn same_values(a: &str, b: &str) -> bool {
    let (mut i, mut j) = (0, 0);
    while i < a.len() && j < b.len() {
        let (x, y) = (a.as_bytes()[i], b.as_bytes()[j]);
        let is_number = |byte: u8| byte == b'-' || byte.is_ascii_digit();
        let (end_x, end_y) = if x == b'"' && y == b'"' {
            (string_end(a.as_bytes(), i), string_end(b.as_bytes(), j))
        } else if is_number(x) && is_number(y) {
            (number_end(a.as_bytes(), i), number_end(b.as_bytes(), j))
        } else {
            (i + 1, j + 1)
        };
        let (left, right) = (&a.as_bytes()[i..end_x], &b.as_bytes()[j..end_y]);
        if left != right && !(is_number(x) && is_number(y) && decimal(&a[i..end_x]) == decimal(&b[j..end_y])) {
            return false;
        }
        (i, j) = (end_x, end_y);
    }
    i == a.len() && j == b.len()
}

/// One past the number that begins at `at`.
fn number_end(bytes: &[u8], at: usize) -> usize {
    let is_part = |b: &u8| matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
    bytes[at..].iter().position(|b| !is_part(b)).map_or(bytes.len(), |n| at + n)
}

/// A number as sign, significant digits and power of ten, without writing it out: equal numbers are equal.
fn decimal(number: &str) -> (bool, String, i64) {
    let (negative, number) = number.strip_prefix('-').map_or((false, number), |rest| (true, rest));
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = [whole, fraction].concat();
    let significant = digits.trim_start_matches('0').trim_end_matches('0');
    if significant.is_empty() {
        return (false, String::new(), 0);
    }
    let length = |text: &str| i64::try_from(text.len()).unwrap_or(i64::MAX);
    let trailing = length(&digits) - length(digits.trim_end_matches('0'));
    let power = exponent.parse::<i64>().unwrap_or(0).saturating_sub(length(fraction)).saturating_add(trailing);
    (negative, significant.to_owned(), power)
}

/// How many digits a number gains when it is written out; `None`: more than are kept. `true`, `false` and `null` gain none.
fn digits_added(scalar: &str) -> Option<i64> {
    if scalar.starts_with(['t', 'f', 'n']) {
        return Some(0);
    }
    let (mantissa, exponent) = scalar.split_once(['e', 'E']).unwrap_or((scalar, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let length = |digits: &str| i64::try_from(digits.len()).unwrap_or(i64::MAX);
    let exponent = exponent.parse::<i64>().ok()?;
    let (before, behind) = (length(whole).saturating_add(exponent), length(fraction).saturating_sub(exponent));
    let is_kept = before <= DIGITS && behind <= DIGITS;
    is_kept.then(|| (before.max(0) + behind.max(0) - length(scalar)).max(0))
}

/// The text of a JSON string literal (with its quotes; valid JSON). What Postgres cannot hold, NUL and half of a surrogate
/// pair, becomes U+FFFD, and is counted.
pub(crate) fn decode_string(literal: &str) -> (Cow<'_, str>, usize) {
    let inner = &literal[1..literal.len() - 1];
    if !inner.contains('\\') {
        return (Cow::Borrowed(inner), 0);
    }
    let mut replaced = 0;
    let mut text = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        let escape = rest.as_bytes()[at + 1];
        let mut used = at + 2;
        match escape {
            b'n' => text.push('\n'),
            b't' => text.push('\t'),
            b'r' => text.push('\r'),
            b'b' => text.push('\u{8}'),
            b'f' => text.push('\u{c}'),
            b'u' => {
                let high = hex4(&rest[used..]);
                used += 4;
                let low = match high {
                    0xd800..=0xdbff if rest[used..].starts_with("\\u") => hex4(&rest[used + 2..]),
                    _ => 0,
                };
                let code = if (0xdc00..=0xdfff).contains(&low) {
                    used += 6;
                    0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00)
                } else {
                    high
                };
                let char = char::from_u32(code).filter(|char| *char != '\0');
                replaced += usize::from(char.is_none());
                text.push(char.unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            other => text.push(char::from(other)),
        }
        rest = &rest[used..];
    }
    text.push_str(rest);
    (Cow::Owned(text), replaced)
}

fn hex4(text: &str) -> u32 {
    text.get(..4).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(0)
}

fn encode_string(text: &str, out: &mut String) {
    out.push_str(&serde_json::to_string(text).expect("a string always serializes"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(raw: &str) -> String {
        serde_json::from_str::<&RawValue>(raw).expect("the test's input is valid JSON");
        Json::canonical(raw).expect("storable").0.as_str().to_owned()
    }

    #[test]
    fn spacing_key_order_and_escapes_do_not_matter() {
        assert_eq!(
            canonical(" { \"b\" : [ 1 , { } , [ ] ] , \"a\" : \"\\u0041\\/\" } "),
            r#"{"a":"A/","b":[1,{},[]]}"#
        );
        assert_eq!(canonical(r#"{"\u0061":1,"a":{"y":1,"x":2}}"#), r#"{"a":{"x":2,"y":1}}"#);
        assert_eq!(canonical(r#"[{"k":null},true,"s"]"#), r#"[{"k":null},true,"s"]"#);
        assert_eq!(canonical("\"\""), "\"\"");
    }

    #[test]
    fn numbers_keep_their_digits() {
        assert_eq!(
            canonical("[12345678901234567890123456789, 1e400, 1.50, -0]"),
            "[12345678901234567890123456789,1e400,1.50,-0]"
        );
    }

    #[test]
    fn what_postgres_cannot_hold_is_replaced() {
        assert_eq!(
            canonical(r#"{"a\u0000":"x\u0000\ud800y\udc00"}"#),
            "{\"a\u{fffd}\":\"x\u{fffd}\u{fffd}y\u{fffd}\"}"
        );
        assert_eq!(canonical(r#""\ud83d\ude00""#), "\"😀\"");
        assert_eq!(canonical(r#""\ud800A""#), "\"\u{fffd}A\"");
    }

    #[test]
    fn what_postgres_refuses_as_a_whole_is_named() {
        let nested = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        assert_eq!(canonical(&nested(4_096)), nested(4_096));
        assert_eq!(Json::canonical(&nested(4_097)).err(), Some(Unstorable::Depth));
        assert_eq!(Json::canonical(&nested(1_000_000)).err(), Some(Unstorable::Depth));
        let refused = ["1e200000", "1E+16001", "1e-16001", "-1e99999999999999999999", "[0.5e-16000]"];
        for number in refused.map(str::to_owned).into_iter().chain(["9".repeat(16_001)]) {
            assert_eq!(Json::canonical(&number).err(), Some(Unstorable::Number), "{number}");
        }
        assert_eq!(canonical("1e-15000"), "1e-15000");
    }

    #[test]
    fn numbers_may_cost_no_more_than_so_many_digits_together() {
        let list = |number: &str, times: usize| format!("[{}]", vec![number; times].join(","));
        for (number, times) in [("9e15999", 2), ("1e308", 53), ("1e-308", 53), ("5e-324", 1_170), ("0e15999", 2)] {
            assert_eq!(Json::canonical(&list(number, times)).err(), Some(Unstorable::Number), "{times} × {number}");
        }
        // What came in full may stay: it is no larger at the database than here.
        for (number, times) in
            [("9e15999", 1), ("1e308", 51), ("1e2", 8_000), ("1234567890.5", 8_000), ("-0.25", 8_000)]
        {
            let list = list(number, times);
            assert_eq!(canonical(&list), list);
        }
        let zeros = list(&format!("1{}", "0".repeat(300)), 100);
        assert!(canonical(&zeros).len() < 1_000 && Json::canonical(&zeros).is_ok());
    }

    #[test]
    fn replaced_characters_are_counted() {
        let (_, replaced) = Json::canonical(r#"{"\u0000":["\ud800","\ud83d\ude00","\u0000\u0000"]}"#).unwrap();
        assert_eq!(replaced, 4);
    }

    #[test]
    fn numbers_count_by_value_and_text_by_text() {
        let json = |raw: &str| Json::canonical(raw).unwrap().0;
        for (a, b) in
            [("1e2", "100"), ("-0", "0"), ("1.50", "1.5"), ("[1E-3,{\"a\":12e1}]", "[0.001,{\"a\":120}]"), ("0e9", "0")]
        {
            assert_eq!(json(a), json(b));
        }
        for (a, b) in [
            ("1", "10"),
            ("1", "-1"),
            ("1", "1.01"),
            ("\"1e2\"", "\"100\""),
            ("[1]", "[1,1]"),
            ("{\"1\":1}", "{\"01\":1}"),
            ("true", "null"),
            ("1", "\"1\""),
        ] {
            assert_ne!(json(a), json(b));
        }
    }

    #[test]
    fn a_number_of_many_zeros_is_written_short() {
        let zeros = "0".repeat(500);
        assert_eq!(canonical(&format!("[-12{zeros},0.{zeros}34,0.{zeros}]")), "[-12e500,34e-502,0e0]");
        assert_eq!(canonical(&"7".repeat(500)), "7".repeat(500));
    }

    #[test]
    fn the_canonical_form_is_its_own() {
        for raw in [r#"{"z":[{"b":1,"a":"\n"}],"é":"\u001f"}"#, "3", "[]"] {
            let once = canonical(raw);
            assert_eq!(canonical(&once), once);
        }
    }
}
