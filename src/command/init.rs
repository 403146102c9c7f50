//! `clerk-sync init`: from nothing to a checked set-up.

use super::{arguments, migrate, reconcile};
use crate::app;
use crate::clerk::client::{Client, Error as ClerkError};
use crate::clerk::event;
use crate::config::{self, Environment, Mistake};
use crate::doctor::{self, Doctor};
use crate::dotenv;
use crate::model::Kind;
use crate::os;
use crate::prompt::{self, Echo};
use crate::reconcile::{PassLimits, PassRequest, Reconciler};
use crate::store::Database;
use crate::terminal;
use anyhow::Context as _;
use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

const ELSEWHERE: &str = "A webhook came to another server of this database.";
const NO_WEBHOOK: &str =
    "No webhook came. Start clerk-sync serve where Clerk reaches it; clerk-sync doctor says when the last one came.";
const SIGNING_SECRET: &str = "CLERK_WEBHOOK_SIGNING_SECRET";
/// How often to look whether another server of this database has received a webhook.
const LOOK: Duration = Duration::from_secs(2);
/// Where an endpoint is made. It opens the application that was looked at last.
const CLERK_WEBHOOKS: &str = "https://dashboard.clerk.com/~/webhooks";
/// How long Clerk's API may take for a call with all its tries: somebody is waiting.
const PATIENCE: Duration = Duration::from_secs(8);

/// Set up everything: ask for what is missing, write .env, create the schemas, copy what Clerk has, wait for the first webhook, and
/// check the result. It takes the variables and flags of serve, too (see clerk-sync serve --help). Exit codes: 0 all is well,
/// 1 something failed, or no webhook came
#[derive(clap::Args)]
#[command(mut_args(arguments::hide_what_only_serve_explains))]
pub struct Init {
    #[command(flatten)]
    environment: Environment,

    /// Ask nothing: take values from flags, variables and .env, and fail if one is missing
    #[arg(long, short)]
    yes: bool,

    /// Where Clerk will reach clerk-sync, such as `https://sync.example.com`
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// How many seconds to wait for the first webhook; 0: do not wait
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    wait: u64,
}

impl Init {
    /// Runs the command.
    ///
    /// # Errors
    /// A value is missing or wrong, nobody answers a question, or the database or Clerk refuses.
    pub async fn run(mut self) -> anyhow::Result<ExitCode> {
        let asks = !self.yes && prompt::is_possible();
        if !asks {
            self.nothing_is_missing()?;
        }
        self.connections(asks).await?;
        self.print_endpoint();
        self.secret(asks)?;
        let database = config::named_database(self.environment.database_url.as_deref())?;
        let reconciler = self.reconciler(&database)?;
        reconciler.check_before_migrating().await?;
        write_dotenv(&self.environment)?;

        anyhow::ensure!(
            migrate::bring_up_to_date(&database, None, false).await?,
            "the schemas are not as this version needs them: see above"
        );
        terminal::line("Copying users, organizations and memberships from Clerk.");
        reconcile::run_and_print(&reconciler, &PassRequest::Kinds(Kind::ALL.to_vec())).await?;
        let delivered = self.wait == 0 || self.first_webhook(&database).await?;
        terminal::line("");
        let doctor = Doctor { environment: self.environment, owner_url: None, token: None };
        let report = doctor.examine().await?;
        report.print();
        terminal::line("");
        terminal::text(NEXT);
        Ok(if report.ok && delivered { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Where nobody is asked, everything that is missing or wrong at once, and where the signing secret comes from.
    fn nothing_is_missing(&self) -> anyhow::Result<()> {
        let mut mistakes = self.environment.check().err().unwrap_or_default();
        if config::given(self.environment.clerk.secret_key.as_deref()).is_none() {
            mistakes.extend(self.environment.clerk.check_key().err().unwrap_or_default());
        }
        if config::given(self.environment.signing_secret.as_deref()).is_none() {
            mistakes.push(no_secret());
        }
        if mistakes.iter().any(|mistake| mistake.variable == SIGNING_SECRET) {
            self.print_endpoint();
        }
        if mistakes.is_empty() { Ok(()) } else { Err(config::Mistakes(mistakes).into()) }
    }

    /// The database and the key, tried at once: what is wrong is asked for again.
    async fn connections(&mut self, asks: bool) -> anyhow::Result<()> {
        let question = "Database connection string (Supabase dashboard, Connect, Session pooler; it is not shown)";
        answer(asks, question, &mut self.environment.database_url, async |url| {
            let database =
                config::database(Some(url)).map_err(|problem| anyhow::anyhow!("the connection string {problem}"))?;
            database.prove().await.map_err(|error| {
                let found = doctor::connection_problem(&error);
                let error = anyhow::Error::new(error);
                match found {
                    Some((found, _)) => error.context(format!("the database cannot be reached: {found}")),
                    None => error.context("the database cannot be reached"),
                }
            })
        })
        .await?;
        let question = "Clerk secret key (Clerk dashboard, API keys; it begins with sk_ and is not shown)";
        let clerk = self.environment.clerk.clone();
        answer(asks, question, &mut self.environment.clerk.secret_key, async |key| {
            let clerk = config::ClerkEnvironment { secret_key: Some(key.to_owned()), ..clerk.clone() };
            let mut options = clerk.check_key().map_err(config::Mistakes)?;
            options.patience = PATIENCE;
            let client = Client::new(options)?;
            match client.instance().await {
                Ok((instance, _)) => {
                    terminal::line(format_args!("The key belongs to the Clerk instance {}.", instance.as_str()));
                    Ok(())
                }
                Err(error @ ClerkError::Key(_)) => Err(error.into()),
                Err(error) => Err(anyhow::anyhow!("Clerk's API cannot be used: {error}")),
            }
        })
        .await?;
        if asks && self.url.is_none() {
            terminal::line(
                "Where will Clerk reach clerk-sync? Its host's address, such as https://sync.example.com, or press Enter if you do not know yet.",
            );
            self.url = Some(ask("URL", Echo::On)?).filter(|url| !url.is_empty());
        }
        Ok(())
    }

    /// What to do in Clerk's dashboard.
    fn print_endpoint(&self) {
        let host = self.url.as_deref().unwrap_or("https://YOUR-HOST").trim_end_matches('/');
        terminal::line("");
        terminal::line(format_args!("Open {CLERK_WEBHOOKS} and choose Add Endpoint."));
        terminal::line(format_args!("  Endpoint URL: {host}{}", app::WEBHOOKS));
        terminal::line("  Subscribe to these events:");
        for (events, when) in event::SUBSCRIBED {
            terminal::line(format_args!("    {events}{when}"));
        }
        terminal::line("Then copy the Signing Secret from the endpoint's page.");
        terminal::line("");
    }

    fn secret(&mut self, asks: bool) -> anyhow::Result<()> {
        loop {
            let mistakes = match self.environment.check() {
                Ok(config) if config.verifier.has_secret() => return Ok(()),
                Ok(_) => vec![no_secret()],
                Err(mistakes) => mistakes,
            };
            let of_secret = mistakes.iter().all(|mistake| mistake.variable == SIGNING_SECRET);
            if !asks || !of_secret {
                return Err(config::Mistakes(mistakes).into());
            }
            if self.environment.signing_secret.is_some() {
                mistakes.iter().for_each(terminal::note);
            }
            let secret = ask("Signing secret (it begins with whsec_ and is not shown)", Echo::Off)?;
            self.environment.signing_secret = Some(secret);
        }
    }

    fn reconciler(&self, database: &Database) -> anyhow::Result<Reconciler> {
        let options = self.environment.clerk.check_key().map_err(config::Mistakes)?;
        let instance = config::instance(self.environment.instance_id.as_deref());
        let instance = instance.map_err(|problem| anyhow::anyhow!("CLERK_INSTANCE_ID {problem}"))?;
        Ok(Reconciler {
            clerk: Arc::new(Client::new(options).context("TLS cannot be set up")?),
            database: database.clone(),
            instance: instance.expected().cloned(),
            times: PassLimits::default(),
        })
    }

    /// Serves until a webhook was signed with the endpoint's secret, here or at another server of this database; false: none came.
    async fn first_webhook(&self, database: &Database) -> anyhow::Result<bool> {
        let config = self.environment.check().map_err(config::Mistakes)?;
        let before = database.last_webhook_at().await?;
        let stop = os::stop_signal()?;
        let (wait, elsewhere) = (Duration::from_secs(self.wait), Box::pin(received_after(database, before)));
        terminal::line("");
        let listener = match app::listen(&config) {
            Ok(listener) => listener,
            // Most often clerk-sync serve runs here already.
            Err(error) => {
                terminal::note(format_args!("{error:#}. To wait here, set LISTEN_ADDR to another address."));
                terminal::line(
                    "Waiting for the first webhook at another server of this database, such as clerk-sync serve.",
                );
                let came = tokio::select! {
                    () = elsewhere => Some(ELSEWHERE),
                    () = tokio::time::sleep(wait) => None,
                    () = stop => None,
                };
                terminal::line(came.unwrap_or(NO_WEBHOOK));
                return Ok(came.is_some());
            }
        };
        let address = listener.local_addr()?;
        terminal::line(format_args!(
            "Waiting for the first webhook on {address}. In Clerk, change any user, for instance a first name."
        ));
        terminal::line(format_args!(
            "If Clerk cannot reach this machine: npx clerk webhooks listen --forward-to http://localhost:{}{}",
            address.port(),
            app::WEBHOOKS
        ));
        let verifier = config.verifier.clone();
        let mut came = None;
        let shutdown = async {
            tokio::select! {
                () = verifier.verified_one() => came = Some("A webhook came, and its signature is right."),
                () = elsewhere => came = Some(ELSEWHERE),
                () = tokio::time::sleep(wait) => {}
                () = stop => {}
            }
        };
        Box::pin(app::serve(config, listener, shutdown)).await.context("cannot start the writer")?;
        terminal::line(came.unwrap_or(NO_WEBHOOK));
        Ok(came.is_some())
    }
}

/// Waits until the database has a webhook that is newer than the last one `before`.
async fn received_after(database: &Database, before: Option<i64>) {
    loop {
        tokio::time::sleep(LOOK).await;
        if database.last_webhook_at().await.is_ok_and(|last| last > before) {
            return;
        }
    }
}

fn no_secret() -> Mistake {
    let problem = "is not set: copy it from the endpoint's page in the Clerk dashboard (it begins with whsec_)";
    Mistake { variable: SIGNING_SECRET, problem: problem.to_owned() }
}

const NEXT: &str = "Next:
  clerk-sync serve                                                         receive webhooks, here or on your host
  clerk-sync policy print documents --organization-column organization_id  write policies for a table of yours
  clerk-sync doctor                                                        check everything again";

/// A value that is tried: on a terminal asked for until it is right.
async fn answer(
    asks: bool,
    question: &str,
    value: &mut Option<String>,
    check: impl AsyncFn(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    loop {
        let given = match config::given(value.as_deref()) {
            Some(given) => given.to_owned(),
            None => ask(question, Echo::Off)?,
        };
        match check(&given).await {
            Ok(()) => {
                *value = Some(given);
                return Ok(());
            }
            Err(problem) if asks => {
                super::print_error(&problem);
                *value = None;
            }
            Err(problem) => return Err(problem),
        }
    }
}

fn ask(question: &str, echo: Echo) -> anyhow::Result<String> {
    prompt::ask(question, echo).map_err(|error| match error.kind() {
        ErrorKind::Interrupted | ErrorKind::UnexpectedEof => anyhow::anyhow!("nothing more was set up"),
        _ => anyhow::Error::new(error).context("the terminal cannot be read"),
    })
}

/// Writes what `serve` needs to `.env`, which only its owner can read. One that exists is left as it is.
fn write_dotenv(environment: &Environment) -> anyhow::Result<()> {
    let variables = [
        ("DATABASE_URL", &environment.database_url),
        ("CLERK_SECRET_KEY", &environment.clerk.secret_key),
        ("CLERK_WEBHOOK_SIGNING_SECRET", &environment.signing_secret),
        ("CLERK_API_URL", &environment.clerk.api_url),
    ];
    let mut text = String::new();
    for (name, value) in variables {
        if let Some(value) = value {
            let line = dotenv::line(name, value.trim());
            text += &line.with_context(|| format!("{name} holds a quotation mark: percent-encode it as %27"))?;
        }
    }
    match os::create_private(Path::new(".env")) {
        Ok(mut file) => {
            file.write_all(text.as_bytes()).context("cannot write .env")?;
            terminal::line("Wrote .env. It holds secrets: keep it out of Git.");
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let named = dotenv::Dotenv::find(Path::new(".")).map(|file| file.names).unwrap_or_default();
            let lacking: Vec<&str> = variables
                .iter()
                .filter(|(_, value)| value.is_some())
                .map(|(name, _)| *name)
                .filter(|name| !named.iter().any(|set| set == name))
                .collect();
            terminal::line(".env exists, and is left as it is.");
            if !lacking.is_empty() {
                terminal::line(format_args!("It does not set {}: add what serve needs.", lacking.join(", ")));
            }
        }
        Err(error) => return Err(anyhow::Error::new(error).context("cannot create .env")),
    }
    Ok(())
}
