//! `clerk-sync doctor`: checks the whole set-up, and says how to fix what is wrong.
//!
//! Each file looks at one area: it asks ([`crate::store::diagnostics`], [`crate::clerk::client`]), and pure functions turn what
//! was learned into [`Check`]s. A check that fails stops no other; what cannot be asked without it is skipped. Nothing is
//! written anywhere. The output may be pasted into a public issue: ids and counts are in it, and no secret, name or address.

mod clerk;
mod database;
mod foreign;
mod mirror;
mod policies;
mod schema;
mod token;
mod variables;

use crate::clerk::client::Client;
use crate::config::{self, Environment};
use crate::dotenv::Dotenv;
use crate::model::InstanceId;
use crate::store::diagnostics::ConnectionProblem;
use crate::store::{Database, Error};
use crate::terminal::{self, Mark};
use anyhow::Context as _;
use serde::Serialize;
use std::time::Duration;

/// How long Clerk's API may take for a call with all its tries: somebody is waiting.
const PATIENCE: Duration = Duration::from_secs(8);

/// What is to be looked at.
pub struct Doctor {
    pub environment: Environment,
    /// Where the application's tables can be seen as a signed-in user, if the worker's login may not.
    pub owner_url: Option<String>,
    /// A session token: what it claims, and which rows of the mirror it would see.
    pub token: Option<String>,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ok,
    /// It works, and could be better or soon be worse.
    Warn,
    Fail,
    /// It could not be looked at.
    Skip,
}

/// What was looked at, what was found, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub status: Status,
    pub found: String,
    pub fix: Option<String>,
}

impl Check {
    fn new(name: &'static str, status: Status, found: impl Into<String>, fix: Option<String>) -> Check {
        Check { name, status, found: found.into(), fix }
    }

    fn ok(name: &'static str, found: impl Into<String>) -> Check {
        Check::new(name, Status::Ok, found, None)
    }

    fn warn(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Check {
        Check::new(name, Status::Warn, found, Some(fix.into()))
    }

    fn fail(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Check {
        Check::new(name, Status::Fail, found, Some(fix.into()))
    }

    fn skip(name: &'static str, because: impl Into<String>) -> Check {
        Check::new(name, Status::Skip, because, None)
    }
}

impl Check {
    fn print(&self) {
        let (mark, word) = match self.status {
            Status::Ok => (Mark::Good, "ok  "),
            Status::Warn => (Mark::Attention, "warn"),
            Status::Fail => (Mark::Bad, "FAIL"),
            Status::Skip => (Mark::Faint, "skip"),
        };
        terminal::marked(mark, word, format_args!("  {}: {}", self.name, self.found));
        if let Some(fix) = &self.fix {
            terminal::line(format_args!("      fix: {fix}"));
        }
    }
}

/// Everything that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Nothing failed.
    pub ok: bool,
    pub checks: Vec<Check>,
}

impl Report {
    fn new(checks: Vec<Check>) -> Report {
        Report { ok: checks.iter().all(|check| check.status != Status::Fail), checks }
    }

    fn count(&self, status: Status) -> usize {
        self.checks.iter().filter(|check| check.status == status).count()
    }

    /// Prints it for people: what failed first, and what could not be looked at in a line for each reason.
    pub fn print(&self) {
        for status in [Status::Fail, Status::Warn, Status::Ok] {
            self.checks.iter().filter(|check| check.status == status).for_each(Check::print);
        }
        let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
        for check in self.checks.iter().filter(|check| check.status == Status::Skip) {
            match reasons.iter_mut().find(|(reason, _)| *reason == check.found) {
                Some((_, names)) => names.push(check.name),
                None => reasons.push((&check.found, vec![check.name])),
            }
        }
        for (reason, mut names) in reasons {
            names.dedup();
            terminal::marked(Mark::Faint, "skip", format_args!("  {}: {reason}", names.join(", ")));
        }
        let (failed, warned, skipped) = (self.count(Status::Fail), self.count(Status::Warn), self.count(Status::Skip));
        let (mark, word) = match (failed, warned + skipped) {
            (0, 0) => (Mark::Good, "All set. "),
            (0, _) => (Mark::Good, "Nothing failed. "),
            _ => (Mark::Bad, "Problems found. "),
        };
        let checks = self.checks.len();
        let counts = format_args!("Checks: {checks}. Failed: {failed}. Warnings: {warned}. Skipped: {skipped}.");
        terminal::marked(mark, word, counts);
    }
}

impl Doctor {
    /// Runs all checks.
    ///
    /// # Errors
    /// The program's TLS cannot be set up. Whatever else is wrong is a check.
    pub async fn examine(&self) -> anyhow::Result<Report> {
        let dotenv = std::env::current_dir().ok().and_then(|folder| Dotenv::find(&folder));
        let mut checks: Vec<Check> = variables::of_file(dotenv.as_ref()).into_iter().collect();
        checks.extend(variables::checks(&self.environment));
        // Its check says it.
        let database = config::database(self.environment.database_url.as_deref()).ok().map(Database::without_warning);
        let client = match self.environment.clerk.check_key() {
            Ok(mut options) => {
                options.patience = PATIENCE;
                Some(Client::new(options).context("TLS cannot be set up")?)
            }
            Err(_) => None,
        };
        let (clerk, database_findings) =
            tokio::join!(clerk::ask(client.as_ref()), database::examine(database.as_ref()));
        checks.extend(database_findings.checks);
        checks.extend(clerk::checks(&clerk));
        // Whatever else stands there may be a secret that was put into the wrong variable.
        let check = config::instance(self.environment.instance_id.as_deref()).ok();
        let named = check.as_ref().and_then(|check| check.expected()).map(InstanceId::as_str);
        let pinned = database_findings
            .sync_status
            .as_ref()
            .map(|sync_status| sync_status.instance.as_ref().map(InstanceId::as_str));
        checks.push(clerk::instance(clerk.instance(), pinned, named));
        checks.extend(mirror::checks(
            database_findings.sync_status.as_ref(),
            database_findings.counts.as_ref(),
            &clerk,
        ));
        checks.extend(foreign::examine(database.as_ref()).await);
        checks.extend(policies::examine(database.as_ref()).await);
        if let Some(token) = &self.token {
            let owner = self.owner_url.as_deref().filter(|url| !url.trim().is_empty());
            let database = match owner.map(|url| config::database(Some(url))) {
                Some(Ok(owner)) => Some(owner.without_warning()),
                Some(Err(problem)) => {
                    checks.push(Check::fail("MIGRATE_DATABASE_URL", problem, "correct it, or unset it"));
                    database
                }
                None => database,
            };
            let instance = pinned.flatten().or(clerk.instance());
            checks.extend(token::examine(token, instance, database.as_ref()).await);
        }
        Ok(Report::new(checks))
    }
}

/// Why there is no connection to the database, and what to do about it, each as part of a sentence; `None`: the error is about something
/// else, or nothing more is known than it says.
pub(crate) fn connection_problem(error: &Error) -> Option<(String, String)> {
    match error.connection_problem() {
        ConnectionProblem::Other => None,
        _ => {
            let check = database::unreachable(error);
            Some((check.found, check.fix.unwrap_or_default()))
        }
    }
}

/// Some of many, as part of a sentence.
fn some_of(many: &[String], shown: usize, separator: &str) -> String {
    let text = many.iter().take(shown).cloned().collect::<Vec<_>>().join(separator);
    if many.len() > shown { format!("{text}{separator}… and {} more", many.len() - shown) } else { text }
}

/// Where a check wants a database and there is none.
fn no_database(database: Option<&Database>) -> &'static str {
    if database.is_some() { "the database cannot be queried" } else { "DATABASE_URL is missing or wrong" }
}
