//! Arguments that several commands share.

use crate::clerk::client::{Client, Options};
use crate::config::{self, ClerkEnvironment, Environment, Mistake};
use crate::reconcile::{PassLimits, Reconciler};
use crate::store::Database;
use crate::terminal;
use anyhow::Context as _;
use clap::Args as _;
use std::sync::Arc;
use std::time::Duration;

/// How long a call to Clerk is retried while a person waits, if Clerk asks for no pause.
const GIVE_UP_AFTER: Duration = Duration::from_secs(60);

/// Reports that a call to Clerk fails, and for how long it will be retried.
fn tell(problem: &str, left: Duration) {
    terminal::note(format_args!("{problem}; retrying for {} s", left.as_secs()));
}

/// The settings of `serve` that a command with the whole environment explains, too.
const EXPLAINED: [&str; 3] = ["database_url", "signing_secret", "secret_key"];

/// A command that takes the whole environment explains what it is about; the rest stands in the help of `serve`.
pub(super) fn hide_what_only_serve_explains(argument: clap::Arg) -> clap::Arg {
    let id = argument.get_id().as_str();
    let is_hidden = Environment::augment_args(clap::Command::new(""))
        .get_arguments()
        .any(|of_serve| of_serve.get_id() == id && !EXPLAINED.contains(&id));
    argument.hide(is_hidden)
}

/// The database.
#[derive(clap::Args)]
pub(super) struct DatabaseArguments {
    /// Connection string of the database
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL", global = true)]
    database_url: Option<String>,
}

impl DatabaseArguments {
    pub(super) fn url(&self) -> Option<&str> {
        self.database_url.as_deref()
    }

    /// # Errors
    /// What is wrong with it, by the variable's name.
    pub(super) fn database(&self) -> anyhow::Result<Database> {
        config::named_database(self.url())
    }
}

/// The database and Clerk.
#[derive(clap::Args)]
pub(super) struct Access {
    #[command(flatten)]
    database: DatabaseArguments,

    #[command(flatten)]
    clerk: ClerkEnvironment,

    /// The Clerk instance that the tables belong to (ins_…); unset: the instance of the secret key
    #[arg(long, env = "CLERK_INSTANCE_ID", value_name = "ID")]
    instance_id: Option<String>,
}

impl Access {
    pub(super) fn reconciler(&self) -> anyhow::Result<Reconciler> {
        let mut mistakes = Vec::new();
        let database = config::database(self.database.url())
            .map_err(|problem| mistakes.push(Mistake { variable: "DATABASE_URL", problem }));
        let options = self.clerk.check_key().map_err(|more| mistakes.extend(more));
        let instance = config::instance(self.instance_id.as_deref())
            .map_err(|problem| mistakes.push(Mistake { variable: "CLERK_INSTANCE_ID", problem }));
        let (Ok(database), Ok(options), Ok(instance)) = (database, options, instance) else {
            return Err(config::Mistakes(mistakes).into());
        };
        let options = Options { give_up_after: GIVE_UP_AFTER, on_trouble: Some(tell), ..options };
        let clerk = Arc::new(Client::new(options).context("TLS cannot be set up")?);
        let instance = instance.expected().cloned();
        Ok(Reconciler { clerk, database, instance, times: PassLimits::default() })
    }
}
