//! A message that could not be used, tried again.
//!
//! A newer release may be able to read it, and what made the database refuse it may have been mended. Its change is as old as
//! it is, so the version rules decide what it is still worth.

use crate::clerk::event;
use crate::model::{Batch, Millis, Outcome, Source, Verdict};
use crate::store::{DeadLetterBody, DeadLetterSummary, Error, Session};
use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);

/// What passes before each try, from the one before it or from the message's arrival. After the last one only a person tries.
pub(crate) const DELAYS: [Duration; 10] = [
    Duration::from_secs(60),
    Duration::from_secs(300),
    Duration::from_secs(1_800),
    Duration::from_secs(7_200),
    DAY,
    DAY,
    DAY,
    DAY,
    DAY,
    DAY,
];

/// What became of a letter that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RetryOutcome {
    /// It could be used, and is no dead letter any more.
    Settled(Verdict),
    /// It is kept, and why.
    Stays(String),
    /// Somebody else settled, dropped or tried it meanwhile.
    Gone,
}

/// Tries one letter.
///
/// `check_instance`: whether one of another Clerk instance than the mirror's is refused. `by_operator`: somebody asked for
/// this very letter, so it counts although its message id was already used with another body.
///
/// # Errors
/// The database does not answer, and the try does not count.
pub async fn retry(
    session: &mut Session,
    letter: &DeadLetterSummary,
    check_instance: bool,
    by_operator: bool,
) -> Result<RetryOutcome, Error> {
    let Some(content) = session.dead_letter_content(letter).await? else { return Ok(RetryOutcome::Gone) };
    let event = match event::parse(&content.body, attempted_at(&content)) {
        Ok(event) => event,
        Err(unusable) => return stays(session, letter, unusable.reason).await,
    };
    let delivery = event.into_delivery(letter.message_id.clone(), letter.body_hash.clone());
    let batch =
        delivery.as_ref().map(|delivery| Batch::fold(Source::Webhook, check_instance, std::iter::once(delivery)));
    match session.retry_dead_letter(letter, batch.as_ref(), by_operator).await {
        Ok(None) => Ok(RetryOutcome::Gone),
        Ok(Some(verdict)) => Ok(match verdict.outcome {
            Outcome::Foreign => RetryOutcome::Stays("it belongs to another Clerk instance".to_owned()),
            Outcome::Reused => RetryOutcome::Stays(
                "its message id was already used by an earlier webhook with a different body".to_owned(),
            ),
            Outcome::DeadLetter => {
                RetryOutcome::Stays(verdict.reason.map(|reason| reason.to_string()).unwrap_or_default())
            }
            _ => RetryOutcome::Settled(verdict),
        }),
        // The connection is as good as before. Not only poison: a trigger on our tables may refuse this one alone, and must
        // not hold up the others for ever.
        Err(error) if error.sqlstate().is_some() && !error.is_connection_lost() => {
            let code = error.sqlstate().unwrap_or_default();
            stays(session, letter, format!("the database refuses it: SQLSTATE {code}")).await
        }
        Err(error) => Err(error),
    }
}

async fn stays(session: &mut Session, letter: &DeadLetterSummary, reason: String) -> Result<RetryOutcome, Error> {
    let noted = session.record_dead_letter_attempt(letter, &reason).await?;
    Ok(if noted { RetryOutcome::Stays(reason) } else { RetryOutcome::Gone })
}

/// When the attempt was made that brought the message, by the header that its signature covers.
fn attempted_at(content: &DeadLetterBody) -> Millis {
    let headers: serde_json::Value = serde_json::from_str(&content.headers).unwrap_or_default();
    let header = |name: &str| headers.get(name)?.as_str()?.parse::<i64>().ok();
    let seconds = header("svix-timestamp").or_else(|| header("webhook-timestamp"));
    seconds.and_then(|seconds| Millis::new(seconds.saturating_mul(1_000))).unwrap_or(content.received_at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_attempts_time_is_the_signed_header_or_that_of_arrival() {
        let ms = |n| Millis::new(n).unwrap();
        let at = |headers: &str| {
            attempted_at(&DeadLetterBody { headers: headers.to_owned(), body: Vec::new(), received_at: ms(7_000) })
        };
        assert_eq!(at(r#"{"svix-timestamp": "1760000000"}"#), ms(1_760_000_000_000));
        assert_eq!(at(r#"{"webhook-timestamp": "1760000000"}"#), ms(1_760_000_000_000));
        for odd in ["{}", "", r#"{"svix-timestamp": "soon"}"#, r#"{"svix-timestamp": "99999999999999999"}"#] {
            assert_eq!(at(odd), ms(7_000), "{odd}");
        }
    }
}
