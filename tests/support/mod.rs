//! What tests share beside testkit: another Clerk's histories, the rules in plain Rust, a pooler.

pub mod history;
pub mod oracle;
pub mod pgbouncer;
pub mod tables;

use clerk_sync::model::InstanceCheck;
use clerk_sync::model::InstanceId;
use std::path::PathBuf;
pub use testkit::project::{Project, rows, shared as supabase, source, unique, written};
pub use testkit::serve::Server;
pub use testkit::world::answer;
pub use testkit::{SECRET, START};

/// A database, a Clerk, and the product in this process.
pub type World = testkit::World<Server>;

/// A migrated database of the test's own.
pub async fn database() -> Project {
    Project::cloned().await.expect("a database")
}

/// Whoever keeps the machine busy holds it, so that none of them observes another.
pub static BUSY: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The instance check of an environment that names one.
pub fn instance(id: &str) -> InstanceCheck {
    InstanceCheck::Pinned(Some(InstanceId::from(id)))
}

/// The folder that `CLERK_SYNC_EXTRA_FIXTURES` names, if it is set: `svix/vectors.json` and `clerk/webhooks/*.json` in it are
/// replayed beside our own.
pub fn extra_fixtures() -> Option<PathBuf> {
    std::env::var_os("CLERK_SYNC_EXTRA_FIXTURES").map(PathBuf::from)
}
