//! What the program says of itself: log lines, and counters.
//!
//! Ids are logged; names, addresses, bodies and secrets never. A fault that repeats is logged once in five seconds at most.

use crate::terminal;
use std::io::{self, IsTerminal as _, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tracing_subscriber::EnvFilter;

macro_rules! metrics_named {
    ($($(#[doc = $help:literal])+ $constant:ident $kind:ident $name:literal)*) => {
        $($(#[doc = $help])+ pub const $constant: &str = $name;)*

        /// Tells the recorder what each of them means, for `/metrics`.
        pub fn describe() {
            $(metrics::$kind!($name, concat!($($help),+).trim());)*
        }
    };
}

metrics_named! {
    /// Deliveries answered, by `outcome`.
    DELIVERIES describe_counter "clerk_sync_deliveries_total"
    /// Requests refused before any of it was believed, by `reason`.
    REJECTED describe_counter "clerk_sync_rejected_total"
    /// Connections that were closed while idle, to make room for new ones.
    EVICTED describe_counter "clerk_sync_evicted_connections_total"
    /// Deliveries answered with 503, by `reason`.
    UNAVAILABLE describe_counter "clerk_sync_unavailable_total"
    /// Events of types that are not mirrored, by `event_type`.
    IGNORED describe_counter "clerk_sync_ignored_total"
    /// Fields of payloads that could not be taken as they came.
    FIELD_ERRORS describe_counter "clerk_sync_field_errors_total"
    /// Changes whose row the database refused: something of the application's is on our tables.
    POISON describe_counter "clerk_sync_poison_total"
    /// From the event's own timestamp at Clerk until it was durable here.
    LAG describe_histogram "clerk_sync_event_lag_seconds"
    /// Deliveries that wait for the writer, or for their batch to be written.
    QUEUE describe_gauge "clerk_sync_queue_deliveries"
    /// Deliveries written together.
    BATCH describe_histogram "clerk_sync_batch_deliveries"
    /// One call that writes a batch.
    WRITE describe_histogram "clerk_sync_write_seconds"
    /// Calls to Clerk's API, all tries counted.
    CLERK_CALLS describe_counter "clerk_sync_clerk_api_calls_total"
    /// Calls to Clerk's API that failed.
    CLERK_FAILURES describe_counter "clerk_sync_clerk_api_failures_total"
    /// How long a call to Clerk's API waited for its turn within our share of the rate limit.
    CLERK_WAITS describe_histogram "clerk_sync_clerk_api_wait_seconds"
    /// Passes, by `scope` and `state`.
    PASSES describe_counter "clerk_sync_passes_total"
    /// Rows that passes found wrong, by `kind`, `drift` and probable `cause`.
    DRIFT describe_counter "clerk_sync_drift_total"
    /// Rows that the last pass of a `scope` could not judge, by `reason`.
    UNDECIDED describe_gauge "clerk_sync_undecided_rows"
    /// When the last webhook was accepted by any replica, as Unix time.
    LAST_WEBHOOK describe_gauge "clerk_sync_last_webhook_timestamp_seconds"
    /// When the last complete reconcile ended, by `scope`, as Unix time.
    LAST_PASS describe_gauge "clerk_sync_last_complete_pass_timestamp_seconds"
    /// Rows of the mirror, by `kind`.
    ROWS describe_gauge "clerk_sync_rows"
    /// Rows at Clerk when they were last counted, by `kind`.
    CLERK_ROWS describe_gauge "clerk_sync_clerk_rows"
    /// Messages kept because they could not be used.
    DEAD_LETTERS describe_gauge "clerk_sync_dead_letters"
    /// Objects that wait for a read by id.
    PENDING_READS describe_gauge "clerk_sync_pending_reads"
    /// Rows that cannot be deleted or updated, and that policies deny: the application's own object keeps them.
    DENIALS describe_gauge "clerk_sync_denials"
    /// Rows that something of the application's refuses and that wait for another try.
    REFUSED describe_gauge "clerk_sync_refused_rows"
    /// Passes that wait for an approval.
    BRAKED describe_gauge "clerk_sync_braked_passes"
    /// Connections of clerk-sync to the database, those of all replicas.
    CONNECTIONS describe_gauge "clerk_sync_database_connections"
    /// 1 if the database answered when this was asked, and the last delivery or check could be written.
    DATABASE_UP describe_gauge "clerk_sync_database_up"
    /// Processor time used.
    PROCESS_CPU describe_counter "process_cpu_seconds_total"
    /// Memory resident.
    PROCESS_MEMORY describe_gauge "process_resident_memory_bytes"
    /// File handles open.
    PROCESS_FILES describe_gauge "process_open_fds"
    /// When the process started, as Unix time.
    PROCESS_START describe_gauge "process_start_time_seconds"
}

/// Upper bounds of the histograms' buckets.
pub(crate) const HISTOGRAMS: &[(&str, &[f64])] = &[
    (LAG, &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 3_600.0]),
    (BATCH, &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]),
    (CLERK_WAITS, &[0.01, 0.05, 0.25, 1.0, 5.0, 30.0, 180.0]),
    (WRITE, &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 4.0]),
];

/// Starts logging as `RUST_LOG` says, else as `default` does; as text, or as JSON with `LOG_FORMAT=json`.
pub fn init(default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let is_json = std::env::var("LOG_FORMAT").is_ok_and(|format| format == "json");
    let is_coloured = !is_json && io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    let builder = builder.with_writer(move || LogLine { is_coloured }).with_ansi(is_coloured);
    if is_json {
        builder.json().flatten_event(true).init();
    } else {
        builder.init();
    }
}

/// One event is one line, whatever it quotes.
struct LogLine {
    /// Escapes that set a colour are ours: the formatter lets no other through.
    is_coloured: bool,
}

impl Write for LogLine {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let line = terminal::visible(line, |c| self.is_coloured && c == '\u{1b}');
        io::stderr().lock().write_all(format!("{line}\n").as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Lets one line through in five seconds, for a fault that repeats. One for each place that logs: an outage has three of them
/// speak, and fills no disk.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    /// Which five seconds the last line that went through was in, counted from the first, plus one; 0: none did.
    last: AtomicU64,
    suppressed: AtomicU64,
}

impl Throttle {
    pub(crate) const fn new() -> Throttle {
        Throttle { last: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }

    /// Whether to log now: if so, how many lines were held back since the last one.
    pub(crate) fn should_log(&self) -> Option<u64> {
        static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        let window = START.elapsed().as_secs() / 5 + 1;
        if self.last.swap(window, Ordering::Relaxed) == window {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            None
        } else {
            Some(self.suppressed.swap(0, Ordering::Relaxed))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_that_repeats_is_logged_once_in_a_while() {
        let throttle = Throttle::new();
        let passed = (0..1_000).filter(|_| throttle.should_log().is_some()).count();
        assert!((1..=2).contains(&passed), "{passed} lines within a moment");
    }
}
