//! The demo after its story: somebody types a letter, something happens at Clerk, and what a person sees through Row-Level Security is
//! asked at once.

use super::compare::Names;
use super::delivery::Receivers;
use super::{personas, say, tell, wrapped};
use clerk_sync::model::Kind;
use clerk_sync::reconcile::{PassRequest, Reconciler, Silent};
use sqlx::{Connection as _, PgConnection};
use std::collections::BTreeSet;
use std::time::Instant;
use testkit::clerk::{Clerk, Shared};

const KEYS: &str = "
Type a letter and Enter:
  r  remove a member from an organization      l  lose the next webhook on its way
  b  ban a user                                c  reconcile everything now
  q  end the demo, and remove everything (so does Ctrl-C)";

/// What it needs.
pub(super) struct Live<'a> {
    pub(super) clerk: &'a Shared,
    pub(super) reconciler: &'a Reconciler,
    pub(super) receivers: &'a Receivers,
    pub(super) names: &'a mut Names,
    pub(super) database_url: &'a str,
}

/// A change at Clerk, about a person who sees less after it.
struct Change {
    what: String,
    user_id: String,
}

impl Live<'_> {
    /// Runs until somebody ends it.
    pub(super) async fn run(&mut self) -> anyhow::Result<()> {
        {
            let mut clerk = self.clerk.lock();
            clerk.now = clerk_sync::clock::now().get();
            clerk.run_clock();
        }
        let mut connection = PgConnection::connect(self.database_url).await?;
        let mut lines = typed();
        let mut is_lost = false;
        say(KEYS);
        loop {
            let line = tokio::select! {
                line = lines.recv() => line,
                _ = tokio::signal::ctrl_c() => return Ok(()),
            };
            // Nobody types: it stays up all the same.
            let Some(line) = line else {
                tokio::signal::ctrl_c().await?;
                return Ok(());
            };
            let change = match line.trim() {
                "r" => remove_member(&mut self.clerk.lock(), self.names),
                "b" => ban(&mut self.clerk.lock(), self.names),
                "l" => {
                    is_lost = true;
                    say("The next webhook will be lost. Now remove somebody (r) or ban somebody (b).");
                    continue;
                }
                "c" => {
                    self.reconcile().await?;
                    continue;
                }
                "q" => return Ok(()),
                _ => {
                    say(KEYS);
                    continue;
                }
            };
            match change {
                Some(change) => self.show(&mut connection, &change, std::mem::take(&mut is_lost)).await?,
                None => say("Nobody is left for that."),
            }
        }
    }

    /// What the person saw before the change and sees after it, and how long that took.
    async fn show(&mut self, connection: &mut PgConnection, change: &Change, is_lost: bool) -> anyhow::Result<()> {
        let before = personas::seen(connection, &change.user_id).await?;
        say(&change.what);
        say(&wrapped(&format!("  before: sees {}", self.listed(&before)), 10));
        let events = std::mem::take(&mut self.clerk.lock().outbox);
        if is_lost {
            say("  Clerk's webhook is lost on its way.");
        }
        let began = Instant::now();
        for event in events.iter().filter(|_| !is_lost) {
            self.receivers.deliver(event).await?;
        }
        let acknowledged = began.elapsed();
        let after = personas::seen(connection, &change.user_id).await?;
        let took = began.elapsed();
        say(&wrapped(&format!("  after:  sees {}", self.listed(&after)), 10));
        if is_lost {
            say("  Nobody told clerk-sync. Type c: a reconcile finds it.");
        } else {
            say(&format!(
                "  Clerk's webhook was acknowledged after {:.1} ms; that query had its answer after {:.1} ms.",
                acknowledged.as_secs_f64() * 1_000.0,
                took.as_secs_f64() * 1_000.0
            ));
        }
        Ok(())
    }

    async fn reconcile(&self) -> anyhow::Result<()> {
        let began = Instant::now();
        let reports = self.reconciler.run(&PassRequest::Kinds(Kind::ALL.to_vec()), "demo", false, &mut Silent).await?;
        reports.iter().for_each(|report| tell(report, self.names));
        say(&format!("  (all of it within {:.1} s)", began.elapsed().as_secs_f64()));
        Ok(())
    }

    fn listed(&self, organizations: &BTreeSet<String>) -> String {
        match organizations.len() {
            0 => "no documents".to_owned(),
            _ => {
                let names: Vec<String> = organizations.iter().map(|id| self.names.name(id)).collect();
                format!("the documents of {}", names.join(", "))
            }
        }
    }
}

/// A member who is not banned leaves an organization.
fn remove_member(clerk: &mut Clerk, names: &Names) -> Option<Change> {
    let is_welcome = |user_id: &str| clerk.users.get(user_id).is_some_and(|user| !user.banned && !user.deprovisioned);
    let membership = clerk.memberships.values().find(|membership| is_welcome(&membership.user_id))?.clone();
    clerk.remove_member(&membership.id);
    let (user, organization) = (names.name(&membership.user_id), names.name(&membership.organization_id));
    Some(Change { what: format!("{user} is removed from {organization}."), user_id: membership.user_id })
}

/// A member of anything is banned.
fn ban(clerk: &mut Clerk, names: &Names) -> Option<Change> {
    let members: BTreeSet<&str> = clerk.memberships.values().map(|membership| membership.user_id.as_str()).collect();
    let is_welcome = |user: &&testkit::clerk::User| !user.banned && members.contains(user.id.as_str());
    let user_id = clerk.users.values().find(is_welcome)?.id.clone();
    clerk.ban_user(&user_id);
    Some(Change { what: format!("{} is banned.", names.name(&user_id)), user_id })
}

/// The lines of standard input, read on a thread of its own: one that waits there cannot be cancelled.
fn typed() -> tokio::sync::mpsc::Receiver<String> {
    let (send, lines) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if send.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}
