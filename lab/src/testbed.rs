//! `lab testbed`, for tests that are not in Rust: the private Postgres on a port of this machine, for as long as
//! standard input is open.

use serde_json::json;
use std::process::ExitCode;
use testkit::postgres::SUPERUSER;
use testkit::proxy::{Proxy, Upstream};
use testkit::supabase::{OWNER, Supabase};

/// Starts it, says on one line of JSON where it is, and waits.
///
/// # Errors
/// No Postgres was found, or it did not start.
pub(crate) async fn open() -> anyhow::Result<ExitCode> {
    let supabase = tokio::task::spawn_blocking(Supabase::start).await??;
    let proxy = Proxy::start(Upstream::Unix(supabase.cluster().dir().join(".s.PGSQL.5432")), 0)?;
    let socket = supabase.cluster().dir();
    let said = json!({ "port": proxy.address.port(), "socket": socket, "superuser": SUPERUSER, "owner": OWNER });
    crate::say(&said.to_string());
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await??;
    Ok(ExitCode::SUCCESS)
}
