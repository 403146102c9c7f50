//! `clerk-sync dev`: a local database that follows a Clerk development instance, with one key.

use super::migrate;
use crate::app;
use crate::clerk::client::Client;
use crate::config::{self, ClerkEnvironment, Config, Environment};
use crate::dotenv;
use crate::model::{Drift, PassState};
use crate::os;
use crate::reconcile::schedule::Timetable;
use crate::reconcile::{Error, PassLimits, PassRequest, Reconciler, Report, Silent};
use crate::terminal;
use crate::upkeep::retention::{self, Retention};
use anyhow::{Context as _, bail};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where `supabase start` puts Postgres.
const LOCAL_SUPABASE: &str = "postgresql://postgres:postgres@127.0.0.1:54322/postgres";
/// Where Next.js keeps secrets, and Clerk's SDK the key of an application that nobody has claimed yet.
const NEXT_FILE: &str = ".env.local";
const KEYLESS_FILE: &str = ".clerk/.tmp/keyless.json";
/// How long what listings did is kept: there are some every few seconds.
const KEPT: Duration = Duration::from_secs(3_600);

/// Keep a local database in sync with a Clerk development instance, without webhooks: it reads everything from Clerk's API every few
/// seconds. Prints each change; Ctrl-C ends it. Without a secret key, it uses the one that `.env.local` or Clerk's keyless mode has
#[derive(clap::Args)]
pub struct Dev {
    /// The database; unset: the one of `supabase start`, `127.0.0.1:54322`
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: Option<String>,

    #[command(flatten)]
    clerk: ClerkEnvironment,

    /// Receive webhooks too, signed with this secret (whsec_…)
    #[arg(long, env = "CLERK_WEBHOOK_SIGNING_SECRET", hide_env_values = true, value_name = "SECRETS")]
    signing_secret: Option<String>,

    /// Where to listen for webhooks; unset: `127.0.0.1:8080`
    #[arg(long, env = "LISTEN_ADDR", value_name = "ADDRESS")]
    listen_addr: Option<String>,

    /// Seconds between two reads of Clerk's API
    #[arg(long, value_name = "SECONDS", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=60))]
    every: u64,
}

impl Dev {
    /// Runs the command.
    ///
    /// # Errors
    /// A value is wrong, the key is not one of a development instance, or the database refuses.
    pub async fn run(mut self) -> anyhow::Result<ExitCode> {
        self.find_key()?;
        let url = config::given(self.database_url.as_deref()).unwrap_or(LOCAL_SUPABASE);
        let database = config::named_database(Some(url))?;
        let options = self.clerk.check_key().map_err(config::Mistakes)?;
        let webhooks =
            config::given(self.signing_secret.as_deref()).map(|secret| self.webhooks(url, secret)).transpose()?;
        let clerk = Arc::new(Client::new(options).context("TLS cannot be set up")?);
        let reconciler = Reconciler { clerk, database, instance: None, times: PassLimits::default() };
        // A wrong key must not have changed anything, least of all in another instance's database.
        let checked = reconciler.check_development_before_migrating().await;
        checked.map_err(|error| match error {
            Error::Database(_) if url == LOCAL_SUPABASE => anyhow::Error::new(error).context(
                "the database of supabase start, 127.0.0.1:54322, cannot be used; for another one set DATABASE_URL",
            ),
            _ => error.into(),
        })?;
        anyhow::ensure!(
            migrate::bring_up_to_date(&reconciler.database, None, false).await?,
            "the schemas are not as this version needs them: see above"
        );
        let instance = reconciler.begin_development().await?;
        // Before the line that promises it: a program that reads the line may end us at once.
        let stop = os::stop_signal()?;
        terminal::line(format_args!(
            "Following the development instance {} every {} s, into the database at {}. Ctrl-C ends it.",
            instance.as_str(),
            self.every,
            reconciler.database.host()
        ));
        if let Some(config) = webhooks {
            let listener = app::listen(&config)?;
            terminal::line(format_args!("Receiving webhooks on http://{}{}.", listener.local_addr()?, app::WEBHOOKS));
            tokio::select! {
                () = self.follow(&reconciler) => {}
                served = Box::pin(app::serve(config, listener, stop)) => served.context("cannot start the writer")?,
            }
        } else {
            tokio::select! {
                () = self.follow(&reconciler) => {}
                () = stop => {}
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The key, from where it may be; only one of a development instance.
    fn find_key(&mut self) -> anyhow::Result<()> {
        if config::given(self.clerk.secret_key.as_deref()).is_none() {
            for (file, key) in [(NEXT_FILE, of_next as fn() -> _), (KEYLESS_FILE, of_keyless)] {
                self.clerk.secret_key = key();
                if config::given(self.clerk.secret_key.as_deref()).is_some() {
                    terminal::line(format_args!("The secret key is taken from {file}."));
                    break;
                }
            }
        }
        if config::given(self.clerk.secret_key.as_deref()).is_some_and(|key| key.starts_with("sk_live_")) {
            bail!(
                "CLERK_SECRET_KEY is the key of a production instance (sk_live_…), and dev believes deletions at once: use the key of a \
                 development instance (sk_test_…) here, and clerk-sync serve in production"
            );
        }
        Ok(())
    }

    /// What is needed to receive webhooks as `serve` does; passes are ours to make.
    fn webhooks(&self, database_url: &str, secret: &str) -> anyhow::Result<Config> {
        let environment = Environment {
            database_url: Some(database_url.to_owned()),
            signing_secret: Some(secret.to_owned()),
            listen_addr: Some(config::given(self.listen_addr.as_deref()).unwrap_or("127.0.0.1:8080").to_owned()),
            clerk: self.clerk.clone(),
            ..Environment::default()
        };
        let mut config = environment.check().map_err(config::Mistakes)?;
        if let Some(reconcile) = &mut config.reconcile {
            reconcile.timetable = Timetable { full: None, quick: None, rate: None };
        }
        Ok(config)
    }

    /// Lists everything, again and again.
    async fn follow(&self, reconciler: &Reconciler) {
        let (mut last, mut pruned) = (None::<Option<String>>, None::<Instant>);
        loop {
            let problem = match reconciler.run(&PassRequest::Development, "dev", false, &mut Silent).await {
                Ok(reports) => {
                    reports.iter().for_each(print);
                    reports.iter().find_map(problem)
                }
                // The other one does the same.
                Err(Error::Busy) => None,
                Err(error) => Some(error.to_string()),
            };
            if last.as_ref() != Some(&problem) {
                match &problem {
                    Some(problem) => terminal::note(format_args!("{problem}. Trying again every {} s.", self.every)),
                    None => terminal::line("In sync."),
                }
                last = Some(problem);
            }
            if pruned.is_none_or(|pruned| pruned.elapsed() > KEPT) {
                pruned = Some(Instant::now());
                let retention = Retention { findings: Some(KEPT), ..Retention::default() };
                if let Err(error) = retention::prune(&reconciler.database, &retention).await {
                    tracing::debug!(%error, "what old listings did is kept");
                }
            }
            tokio::time::sleep(Duration::from_secs(self.every)).await;
        }
    }
}

/// What changed, a line for each.
fn print(report: &Report) {
    if report.backfill && report.listed > 0 {
        terminal::line(format_args!("{:<13} {} copied", report.scope, report.listed));
    }
    for finding in &report.findings {
        let what = match finding.drift {
            Drift::Missing => "added".to_owned(),
            Drift::Differing => format!("changed: {}", finding.fields.join(", ")),
            Drift::Extra => "deleted".to_owned(),
        };
        terminal::line(format_args!("{:<13} {} {what}", finding.kind.as_str(), finding.entity_id));
    }
}

/// Why a kind is not in sync, if it should be.
fn problem(report: &Report) -> Option<String> {
    match report.state {
        PassState::Complete | PassState::Skipped | PassState::Running => None,
        PassState::Braked | PassState::Incomplete | PassState::Void => Some(format!(
            "{}: {}",
            report.scope,
            report.problem.as_deref().unwrap_or("not all of it could be compared")
        )),
    }
}

fn of_next() -> Option<String> {
    dotenv::value(Path::new(NEXT_FILE), "CLERK_SECRET_KEY")
}

fn of_keyless() -> Option<String> {
    let text = dotenv::text(Path::new(KEYLESS_FILE))?;
    let keyless: serde_json::Value = serde_json::from_str(&text).ok()?;
    Some(keyless["secretKey"].as_str()?.to_owned())
}
