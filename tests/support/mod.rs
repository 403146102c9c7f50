//! What tests share beside testkit: another Clerk's histories, the rules in plain Rust, a pooler.

pub mod history;
pub mod npm;
pub mod oracle;
pub mod pgbouncer;
pub mod schema;
pub mod tables;

use clerk_sync::clerk::kinds::{self, Listing};
use clerk_sync::clerk::listing::{self, Seen};
use clerk_sync::model::{Change, InstanceCheck, InstanceId, Kind, Millis};
use serde_json::json;
use std::path::PathBuf;
use testkit::clerk::{Clerk, Event};
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

/// A Clerk of today with two people in an organization, and the webhooks that it sent.
pub struct People {
    pub clerk: Clerk,
    pub events: Vec<Event>,
    pub ada: String,
    pub acme: String,
}

impl People {
    pub fn now() -> People {
        let now = clerk_sync::clock::now().get();
        let mut clerk = Clerk::new(7, now - 60_000);
        let ada = clerk.create_user("Ada", "Lovelace");
        let ben = clerk.create_user("Ben", "Bitdiddle");
        let acme = clerk.create_organization("Acme Widgets", &ada);
        clerk.add_member(&acme, &ben, "org:member");
        let events = std::mem::take(&mut clerk.outbox);
        clerk.now = now;
        clerk.run_clock();
        People { clerk, events, ada, acme }
    }
}

/// An object of a kind, as a list of Clerk's API shows it.
pub fn an_object(kind: Kind) -> Change {
    let id = format!("{}1", kind.id_prefix());
    let object = json!({
        "id": id, "created_at": START - 1, "updated_at": START, "name": "Acme Widgets", "first_name": "Ada", "banned": false,
        "public_metadata": { "plan": "pro" }, "role": "org:admin", "permissions": ["org:documents:read"],
        "organization": { "id": "org_1" }, "public_user_data": { "user_id": "user_1", "banned": false },
    });
    let body = match kinds::of(kind).listing {
        Listing::Cursor { .. } => json!([object]),
        Listing::Offset => json!({ "data": [object], "total_count": 1 }),
    };
    let at = Millis::new(START).unwrap();
    let mut page = listing::page(body.to_string().as_bytes(), kind, Seen { observed_at: at, bound: at }).unwrap();
    page.changes.remove(0)
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
