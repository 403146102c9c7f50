//! Logs: one line per event of the program, to standard error. Ids are logged; names, addresses, bodies and secrets never.

use tracing_subscriber::EnvFilter;

/// Starts logging as `RUST_LOG` says, else as `default` does; as text, or as JSON with `LOG_FORMAT=json`.
pub fn init(default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_writer(std::io::stderr);
    if std::env::var("LOG_FORMAT").is_ok_and(|format| format == "json") {
        builder.json().flatten_event(true).init();
    } else {
        builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init();
    }
}
