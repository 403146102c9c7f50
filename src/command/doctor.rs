//! `clerk-sync doctor`: whether everything is set up as it should be.

use super::arguments;
use crate::config::Environment;
use crate::doctor;
use crate::terminal;
use anyhow::Context as _;
use std::io::Read as _;
use std::process::ExitCode;

/// The longest token that is read: more than any header may hold.
const LONGEST_TOKEN: u64 = 64 * 1024;

/// Check the whole set-up and print a fix for each problem. Writes nothing. It takes the variables and flags of serve, too (see
/// clerk-sync serve --help), and checks them. Exit codes: 0 no check failed (warnings are possible), 1 a check failed
#[derive(clap::Args)]
#[command(mut_args(arguments::hide_what_only_serve_explains))]
pub struct Doctor {
    #[command(flatten)]
    environment: Environment,

    /// With --token, doctor runs `set role authenticated`. If the role in `DATABASE_URL` may not do that, give the connection string of the
    /// schemas' owner here
    #[arg(long, env = "MIGRATE_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    migrate_database_url: Option<String>,

    /// Show the claims of this session token and the rows that it can see; `-` reads it from standard input
    #[arg(long, value_name = "JWT")]
    token: Option<String>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Doctor {
    /// Runs all checks and prints them.
    ///
    /// # Errors
    /// Standard input cannot be read, or the program's TLS cannot be set up. Whatever else is wrong is a check.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let token = match self.token {
            Some(dash) if dash == "-" => {
                let mut text = String::new();
                let read = std::io::stdin().take(LONGEST_TOKEN).read_to_string(&mut text);
                read.context("the token cannot be read from standard input")?;
                Some(text)
            }
            token => token,
        };
        let doctor = doctor::Doctor { environment: self.environment, owner_url: self.migrate_database_url, token };
        let report = doctor.examine().await?;
        if self.json {
            terminal::text(serde_json::to_string_pretty(&report)?);
        } else {
            report.print();
        }
        Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
