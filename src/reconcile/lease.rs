//! The right to run passes: held by one process at a time, over all replicas and commands, and renewed while it lives.

use super::Error;
use crate::model::Fence;
use crate::os;
use crate::store::{Database, Session};
use std::time::Duration;
use tokio::task::JoinHandle;

/// Held until dropped; after that it ends by itself within its time to live.
pub(super) struct Lease {
    pub(super) fence: Fence,
    keeping: JoinHandle<()>,
}

impl Lease {
    /// Takes the lease; waits for it as long as `lease_wait` says.
    pub(super) async fn take(
        database: &Database,
        session: &mut Session,
        ttl: Duration,
        lease_wait: Duration,
    ) -> Result<Lease, Error> {
        let holder = format!("{} (process {})", os::host_name(), std::process::id());
        let deadline = tokio::time::Instant::now() + lease_wait;
        let fence = loop {
            if let Some(fence) = session.take_lease(&holder, ttl).await? {
                break fence;
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(Error::Busy);
            }
            tokio::time::sleep(ttl / 20).await;
        };
        Ok(Lease { fence, keeping: tokio::spawn(keep(database.clone(), fence, ttl)) })
    }

    pub(super) async fn end(self, session: &mut Session) {
        self.keeping.abort();
        if let Err(error) = session.end_lease(self.fence).await {
            tracing::debug!(%error, "the lease ends by itself");
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.keeping.abort();
    }
}

/// Renews the lease, on its own connection: the pass may be waiting for its own. Errors are not logged: if the lease is lost, the
/// pass's next write fails.
async fn keep(database: Database, fence: Fence, ttl: Duration) {
    let mut session: Option<Session> = None;
    loop {
        tokio::time::sleep(ttl / 4).await;
        let mut current = match session.take() {
            Some(session) => session,
            None => match database.connect().await {
                Ok(session) => session,
                Err(_) => continue,
            },
        };
        match current.keep_lease(fence, ttl).await {
            Ok(true) => session = Some(current),
            Ok(false) => return,
            Err(_) => {}
        }
    }
}
