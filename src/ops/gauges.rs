//! What is measured when somebody asks: what this process uses, as Linux tells, and what the tables say.

use super::{chart, verdict};
use crate::model::{Kind, Scope};
use crate::procfs::{self, TICKS};
use crate::store::status::Status;
use crate::telemetry::{
    BRAKED, CLERK_ROWS, CONNECTIONS, DATABASE_UP, DEAD_LETTERS, DELIVERIES, DENIALS, LAST_PASS, LAST_WEBHOOK,
    PENDING_READS, PROCESS_CPU, PROCESS_FILES, PROCESS_MEMORY, PROCESS_START, REFUSED, REJECTED, ROWS, UNAVAILABLE,
    UNDECIDED,
};
use metrics::gauge;

/// Notes what this process uses. Elsewhere than on Linux nothing is noted.
pub(super) fn process() {
    if let Some(bytes) = procfs::memory() {
        gauge!(PROCESS_MEMORY).set(float(bytes));
    }
    if let Some(files) = procfs::open_files() {
        gauge!(PROCESS_FILES).set(float(files));
    }
    // utime and stime are the 14th and 15th field of `stat`, the time of the start the 22nd.
    let Some(fields) = procfs::stat("self") else { return };
    let (Some(cpu), Some(start)) = (fields.get(11).zip(fields.get(12)), fields.get(19)) else { return };
    metrics::counter!(PROCESS_CPU).absolute((cpu.0 + cpu.1) / TICKS);
    if let Some(booted) = procfs::booted_at() {
        gauge!(PROCESS_START).set(float(booted + start / TICKS));
    }
}

/// Notes what the tables say; `None`: they could not be asked.
pub(super) fn tables(status: Option<&Status>, writable: bool) {
    gauge!(DATABASE_UP).set(if status.is_some() && writable { 1.0 } else { 0.0 });
    let Some(status) = status else { return };
    if let Some(at) = status.last_webhook_at {
        gauge!(LAST_WEBHOOK).set(seconds(at));
    }
    for (scope, at) in &status.last_complete {
        gauge!(LAST_PASS, "scope" => scope.clone()).set(seconds(*at));
    }
    for (kind, rows) in &status.rows {
        gauge!(ROWS, "kind" => kind.clone()).set(float(*rows));
    }
    for (kind, counts) in verdict::counts(status) {
        gauge!(CLERK_ROWS, "kind" => kind).set(float(counts.there));
    }
    for kind in Kind::ALL {
        let last = status.passes.iter().find(|pass| pass.scope == Scope::Kind(kind) && pass.ended_at.is_some());
        let Some(last) = last else { continue };
        for (reason, rows) in verdict::undecided(last).unwrap_or_default().by_reason() {
            gauge!(UNDECIDED, "scope" => kind.as_str(), "reason" => reason).set(float(rows));
        }
    }
    gauge!(DEAD_LETTERS).set(float(status.dead_letters.unsigned_abs()));
    gauge!(PENDING_READS).set(float(status.pending_reads.unsigned_abs()));
    gauge!(DENIALS).set(float(status.denied.unsigned_abs()));
    gauge!(REFUSED).set(float(status.refused.unsigned_abs()));
    gauge!(BRAKED).set(float(verdict::braked(status).count() as u64));
    gauge!(CONNECTIONS).set(float(status.connections.unsigned_abs()));
}

/// What this process has answered since it started, in words, from the metrics as Prometheus reads them: the most frequent first.
pub(super) fn answers(metrics: &str) -> Vec<(String, u64)> {
    let mut answers: Vec<(String, u64)> = metrics.lines().filter_map(answer).filter(|(_, count)| *count > 0).collect();
    answers.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    answers
}

fn answer(line: &str) -> Option<(String, u64)> {
    let (metric, count) = line.rsplit_once(' ')?;
    let count = count.parse().ok()?;
    let (name, labels) = metric.split_once('{')?;
    let label = labels.split('"').nth(1)?;
    let reason = label.replace('_', " ");
    let words = match (name, label) {
        (DELIVERIES, "duplicate") => "duplicates (same message id)".to_owned(),
        (DELIVERIES, "ignored") => "of types that are not copied".to_owned(),
        (DELIVERIES, "foreign") => "refused (of another Clerk instance)".to_owned(),
        (DELIVERIES, _) => chart::words(label).map_or(reason, str::to_owned),
        (REJECTED, _) => format!("refused ({reason})"),
        (UNAVAILABLE, "queue_full") => "answered with 503 (more webhooks at once than can be written)".to_owned(),
        (UNAVAILABLE, _) => format!("answered with 503 ({reason})"),
        _ => return None,
    };
    Some((words, count))
}

fn seconds(ms: i64) -> f64 {
    float(ms.unsigned_abs()) / 1_000.0
}

/// As Prometheus has numbers: exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "nothing here is that large")]
fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_and_refusals_are_counted_as_what_they_were() {
        let metrics = "# TYPE clerk_sync_deliveries_total counter\n\
                       clerk_sync_deliveries_total{outcome=\"applied\"} 7\n\
                       clerk_sync_deliveries_total{outcome=\"duplicate\"} 9\n\
                       clerk_sync_rejected_total{reason=\"invalid_signature\"} 2\n\
                       clerk_sync_unavailable_total{reason=\"queue_full\"} 0\n\
                       clerk_sync_rows{kind=\"user\"} 31\n";
        let answers = answers(metrics);
        let words: Vec<(&str, u64)> = answers.iter().map(|(words, count)| (words.as_str(), *count)).collect();
        assert_eq!(words, [("duplicates (same message id)", 9), ("applied", 7), ("refused (invalid signature)", 2)]);
    }
}
