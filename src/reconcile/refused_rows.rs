//! Rows that the database refuses, found among others by halving. Of each one less is written: what decides access, or a denial.

use crate::model::{Batch, Change, Fence, Mode, Refusal, Source, Verdict};
use crate::store::{Error, Session};
use crate::telemetry::POISON;
use std::time::Duration;

/// How long a lock that somebody else has on a row is waited for, once a change is alone.
const LOCK_WAIT: Duration = Duration::from_millis(100);

/// What became of changes, and which of them have rows that were refused.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// In the order of the changes.
    pub(super) verdicts: Vec<Option<Verdict>>,
    pub(super) refused: Vec<(String, Refusal)>,
}

/// Writes changes of a pass (then with its fence) or of a read, all of them if the database lets it.
pub(super) async fn write(
    session: &mut Session,
    source: Source,
    fence: Option<Fence>,
    changes: &[&Change],
) -> Result<Written, Error> {
    let mut written = Written { verdicts: vec![None; changes.len()], refused: Vec::new() };
    let mut waiting = Vec::new();
    waiting.push(0..changes.len());
    while let Some(part) = waiting.pop() {
        let batch = |mode, lock_wait| {
            let batch = Batch::of_changes(source, changes[part.clone()].iter().copied()).at(mode).waiting(lock_wait);
            match fence {
                Some(fence) => batch.fenced(fence),
                None => batch,
            }
        };
        let refusal = match session.apply(&batch(Mode::Full, None), part.len()).await {
            Ok(verdicts) => {
                written.verdicts[part].clone_from_slice(&verdicts);
                continue;
            }
            Err(error) => error.refusal().ok_or(error)?,
        };
        if part.len() > 1 {
            let middle = part.start + part.len() / 2;
            waiting.extend([middle..part.end, part.start..middle]);
            continue;
        }
        let id = changes[part.start].id().unwrap_or_default();
        let (sqlstate, object) = (refusal.sqlstate.as_str(), refusal.object.as_deref());
        tracing::error!(
            subject = id,
            sqlstate,
            object,
            "a row is rejected by a constraint or trigger on the synced tables"
        );
        metrics::counter!(POISON).increment(1);
        for mode in [Mode::Access, Mode::Deny(refusal.clone())] {
            match session.apply(&batch(mode, Some(LOCK_WAIT)), 1).await {
                Ok(verdicts) => {
                    written.verdicts[part].clone_from_slice(&verdicts);
                    break;
                }
                Err(error) if error.refusal().is_some() => {}
                Err(error) => return Err(error),
            }
        }
        written.refused.push((id.to_owned(), refusal));
    }
    Ok(written)
}
