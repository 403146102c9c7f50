//! An answer of the Backend API that lists objects, turned into changes. Pure: bytes in, values out.
//!
//! Rows are read as webhooks are: a field that will not do spoils itself alone. But a page with a row that names nothing is
//! no page: what is missing from it must not look like what Clerk has deleted.

use super::kinds::{self, Listing};
use super::payload::{self, Object};
use crate::model::{Change, EntityRef, Kind, Millis};
use serde_json::value::RawValue;

/// One answer of a list.
#[derive(Debug)]
pub struct Page {
    /// One for each row, in the order of the list.
    pub changes: Vec<Change>,
    /// How many rows Clerk says the whole list has. Lists of users do not tell.
    pub total: Option<u64>,
    /// When it was true, by Clerk's clock.
    pub observed_at: Millis,
}

/// By how many rows a list and its count may differ before the one contradicts the other: rows come and go meanwhile, and a count
/// that is wrong for ever must not keep a list from being read.
pub(crate) const fn tolerance(total: u64) -> u64 {
    if total / 100 > 10 { total / 100 } else { 10 }
}

/// When an answer was made, on Clerk's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What it says was true then, or later.
    pub observed_at: Millis,
    /// No time in it counts as later than this.
    pub bound: Millis,
}

/// The answer is none: cut short, of another shape, or not from Clerk. Says where, never what.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

/// Reads one page: a bare array, or an object with `data` and `total_count` ([`Listing`]).
///
/// # Errors
/// Any part of it makes no sense: then nothing of it counts.
pub fn page(body: &[u8], kind: Kind, seen: Seen) -> Result<Page, Malformed> {
    let malformed = |what: &str| Malformed(format!("a list of {}: {what}", kind.plural()));
    let (rows, total): (Vec<&RawValue>, _) = match kinds::of(kind).listing {
        Listing::Cursor { .. } => (serde_json::from_slice(body).map_err(|_| malformed("not a JSON array"))?, None),
        Listing::Offset => {
            let envelope = Object::parse(body).map_err(|problem| malformed(&problem))?;
            let total = total_count(&envelope).ok_or_else(|| malformed("total_count is missing"))?;
            let data = envelope.get("data").ok_or_else(|| malformed("data is missing"))?;
            (serde_json::from_str(data.get()).map_err(|_| malformed("data is not an array"))?, Some(total))
        }
    };
    let change = |(index, row): (usize, &&RawValue)| {
        change(row, kind, seen).map_err(|problem| malformed(&format!("row {index}: {problem}")))
    };
    let changes = rows.iter().enumerate().map(change).collect::<Result<Vec<_>, _>>()?;
    if total.is_some_and(|total| total + tolerance(total) < changes.len() as u64) {
        return Err(malformed("total_count is less than its rows"));
    }
    Ok(Page { changes, total, observed_at: seen.observed_at })
}

/// How many members each organization of a page has, in its order; `None`: the row does not say.
///
/// # Errors
/// It is no page.
pub(crate) fn members_counts(body: &[u8]) -> Result<Vec<Option<u64>>, Malformed> {
    let malformed = |what: &str| Malformed(format!("a list of organizations: {what}"));
    let envelope = Object::parse(body).map_err(|problem| malformed(&problem))?;
    let data = envelope.get("data").ok_or_else(|| malformed("data is missing"))?;
    let rows: Vec<&RawValue> = serde_json::from_str(data.get()).map_err(|_| malformed("data is not an array"))?;
    let count = |row: &&RawValue| {
        let row = Object::parse(row.get().as_bytes()).ok()?;
        row.integer("members_count").and_then(|count| u64::try_from(count).ok())
    };
    Ok(rows.iter().map(count).collect())
}

fn change(row: &RawValue, kind: Kind, seen: Seen) -> Result<Change, String> {
    let data = Object::parse(row.get().as_bytes())?;
    let id = data.id("id").filter(|id| !kind.contradicts(id)).ok_or("id is missing or of another kind")?;
    let entity = EntityRef { kind, id };
    let mention = payload::mention(&data, &entity, seen.bound);
    let observation = payload::live(&data, &entity, mention.as_ref(), seen.bound);
    Ok(Change { observed_at: seen.observed_at, observation, mention })
}

/// `GET /users/count`, and the total of a list.
///
/// # Errors
/// There is no count in it.
pub fn count(body: &[u8]) -> Result<u64, Malformed> {
    let malformed = |what: &str| Malformed(format!("a count: {what}"));
    let envelope = Object::parse(body).map_err(|problem| malformed(&problem))?;
    total_count(&envelope).ok_or_else(|| malformed("total_count is missing"))
}

fn total_count(envelope: &Object<'_>) -> Option<u64> {
    envelope.integer("total_count").and_then(|count| u64::try_from(count).ok())
}

/// `GET /instance`: its id.
///
/// # Errors
/// It names none.
pub fn instance(body: &[u8]) -> Result<crate::model::InstanceId, Malformed> {
    let envelope = Object::parse(body).map_err(|problem| Malformed(format!("an instance: {problem}")))?;
    let id = envelope.id("id").filter(|id| id.starts_with("ins_"));
    id.map(crate::model::InstanceId).ok_or_else(|| Malformed("an instance without an id".to_owned()))
}

/// `GET /instance`: what kind of instance it is, such as `development` or `production`.
///
/// # Errors
/// It does not say.
pub fn environment(body: &[u8]) -> Result<String, Malformed> {
    let envelope = Object::parse(body).map_err(|problem| Malformed(format!("an instance: {problem}")))?;
    envelope.text("environment_type").ok_or_else(|| Malformed("an instance without an environment_type".to_owned()))
}

/// What an error's body says: the first code, the parameter it is about, and Clerk's trace id. The body may be anything.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ApiError {
    pub code: Option<String>,
    pub parameter: Option<String>,
    pub trace_id: Option<String>,
}

/// Reads an error's body as far as it goes.
pub fn complaint(body: &[u8]) -> ApiError {
    let Ok(envelope) = Object::parse(body) else { return ApiError::default() };
    // Clerk's codes are words; anything else is not for our logs.
    let word = |text: String| text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_').then_some(text);
    let first = envelope.objects("errors").next();
    let code = first.as_ref().and_then(|error| error.text("code")).and_then(word);
    let meta = first.as_ref().and_then(|error| error.object("meta"));
    let parameter = meta.and_then(|meta| meta.text("param_name")).and_then(word);
    ApiError { code, parameter, trace_id: envelope.text("clerk_trace_id").and_then(word) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Observation;

    #[test]
    fn a_page_is_whole_or_none() {
        let at = Millis::new(1_760_000_000_000).unwrap();
        let at = Seen { observed_at: at, bound: at };
        let user = r#"{"id":"user_1","updated_at":1,"created_at":1,"banned":false}"#;
        let good = page(format!("[{user}]").as_bytes(), Kind::User, at).unwrap();
        assert!(matches!(good.changes[0].observation, Observation::Live { .. }));
        for bad in [
            "",
            "[",
            "{}",
            "<html>",
            "null",
            r#"[{"id":"org_1"}]"#,
            "[{}]",
            "[null]",
            &format!("[{user}"),
            &format!("[{user}]x"),
            r#"{"errors":[]}"#,
        ] {
            assert!(page(bad.as_bytes(), Kind::User, at).is_err(), "{bad}");
        }
        for bad in ["[]", r#"{"data":[]}"#, r#"{"data":{},"total_count":0}"#, r#"{"total_count":3}"#] {
            assert!(page(bad.as_bytes(), Kind::Organization, at).is_err(), "{bad}");
        }
        assert_eq!(page(br#"{"data":[],"total_count":3}"#, Kind::Organization, at).unwrap().total, Some(3));
    }

    #[test]
    fn a_complaint_is_read_as_far_as_it_goes() {
        let body = br#"{"errors":[{"message":"is invalid","code":"form_param_value_invalid","meta":{"param_name":"starting_after"}}],"clerk_trace_id":"0af"}"#;
        let expected = ApiError {
            code: Some("form_param_value_invalid".to_owned()),
            parameter: Some("starting_after".to_owned()),
            trace_id: Some("0af".to_owned()),
        };
        assert_eq!(complaint(body), expected);
        for nothing in [&b"<html>"[..], b"", b"[]", br#"{"errors":[]}"#, br#"{"errors":[{"code":"<b> x"}]}"#] {
            assert_eq!(complaint(nothing), ApiError::default());
        }
    }
}
