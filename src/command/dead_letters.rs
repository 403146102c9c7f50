//! `clerk-sync dead-letters`: messages that could not be used, for a person.

use super::arguments::DatabaseArguments;
use crate::model::{Word, hex};
use crate::store::{DeadLetterSummary, Session};
use crate::terminal;
use crate::upkeep::dead_letters::{self, RetryOutcome};
use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use std::process::ExitCode;

/// Characters of a body's hash that are shown.
const HASH_PRINTED: usize = 12;
/// On standard error: the lines of standard output are the dead letters, and may be counted.
const NONE: &str = "There are no dead letters.";

/// List, show, retry or drop dead letters: webhooks that were acknowledged but could not be applied
#[derive(clap::Args)]
pub struct DeadLetters {
    #[command(subcommand)]
    action: Action,

    #[command(flatten)]
    database: DatabaseArguments,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Print one line for each dead letter, the latest first: message id, start of the body's hash, time, tries, event type, reason
    List {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show one dead letter with its body, which may contain personal data
    Show {
        /// Message id or body hash, or a unique prefix of one
        id: String,

        /// Print a JSON object; a body that is not text is in hexadecimal
        #[arg(long)]
        json: bool,
    },
    /// Apply dead letters again, with their original timestamps. Those that could be applied leave the list. Exit code 1: some could
    /// not be applied
    #[command(group = clap::ArgGroup::new("which").required(true))]
    Retry {
        /// Message id or body hash, or a unique prefix of one
        #[arg(group = "which")]
        id: Option<String>,

        /// Retry all dead letters, but skip each one that reuses the message id of another webhook; retry those one by one, by ID
        #[arg(long, group = "which")]
        all: bool,

        /// With `*`, webhooks of other Clerk instances are applied, too. No other value has an effect here
        #[arg(long, env = "CLERK_INSTANCE_ID", value_name = "ID")]
        instance_id: Option<String>,

        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Delete one dead letter
    Drop {
        /// Message id or body hash, or a unique prefix of one
        id: String,
    },
}

impl DeadLetters {
    /// Runs the command.
    ///
    /// # Errors
    /// The database does not answer, or no single letter is called so.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let mut session = self.database.database()?.connect().await?;
        let code = match self.action {
            Action::List { json } => list(&mut session, json).await?,
            Action::Show { id, json } => show(&mut session, &id, json).await?,
            Action::Retry { id, instance_id, json, .. } => {
                let check_instance = instance_id.as_deref().map(str::trim) != Some("*");
                retry(&mut session, id.as_deref(), check_instance, json).await?
            }
            Action::Drop { id } => {
                let letter = find(&mut session, &id).await?;
                if !session.drop_dead_letter(&letter).await? {
                    bail!("{} no longer exists", name(&letter));
                }
                terminal::line(format_args!("{}  dropped", name(&letter)));
                ExitCode::SUCCESS
            }
        };
        session.close().await;
        Ok(code)
    }
}

async fn list(session: &mut Session, json: bool) -> anyhow::Result<ExitCode> {
    let letters = session.dead_letters("").await?;
    if json {
        terminal::text(serde_json::to_string_pretty(&letters)?);
    } else {
        if letters.is_empty() {
            terminal::note(NONE);
        }
        letters.iter().for_each(|letter| terminal::line(line(letter)));
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(session: &mut Session, id: &str, json: bool) -> anyhow::Result<ExitCode> {
    let letter = find(session, id).await?;
    let content = session.dead_letter_content(&letter).await?.context("it no longer exists")?;
    let headers: Value = serde_json::from_str(&content.headers)?;
    terminal::note(format_args!("clerk-sync: the body may hold personal data"));
    if json {
        let mut object = serde_json::to_value(&letter)?;
        object["headers"] = headers;
        match String::from_utf8(content.body) {
            Ok(text) => object["body"] = text.into(),
            Err(error) => object["body_hex"] = hex(error.as_bytes()).into(),
        }
        terminal::text(serde_json::to_string_pretty(&object)?);
        return Ok(ExitCode::SUCCESS);
    }
    terminal::line(line(&letter));
    terminal::line(format_args!("body: {} bytes, SHA-256 {}", letter.body_bytes, letter.body_hash));
    if let Some(tried_at) = &letter.tried_at {
        terminal::line(format_args!("last tried: {tried_at}"));
    }
    for (header, value) in headers.as_object().into_iter().flatten() {
        terminal::line(format_args!("{header}: {}", value.as_str().unwrap_or_default()));
    }
    let body = String::from_utf8_lossy(&content.body);
    terminal::line("");
    terminal::text(body);
    Ok(ExitCode::SUCCESS)
}

async fn retry(session: &mut Session, id: Option<&str>, check_instance: bool, json: bool) -> anyhow::Result<ExitCode> {
    let letters = match id {
        Some(id) => vec![find(session, id).await?],
        None => session.dead_letters("").await?,
    };
    if letters.is_empty() && !json {
        terminal::note(NONE);
    }
    let mut told = Vec::new();
    let mut any_stays = false;
    for letter in letters {
        let fate = dead_letters::retry(session, &letter, check_instance, id.is_some()).await?;
        any_stays |= matches!(fate, RetryOutcome::Stays(_));
        let (outcome, reason) = match &fate {
            RetryOutcome::Settled(verdict) => (verdict.outcome.as_str(), verdict.reason.as_ref().map(Word::as_str)),
            RetryOutcome::Stays(reason) => ("dead_letter", Some(reason.as_str())),
            RetryOutcome::Gone => ("gone", Some("another process has retried or removed it")),
        };
        if json {
            let (message_id, body_hash) = (&letter.message_id, &letter.body_hash);
            told.push(
                json!({ "message_id": message_id, "body_hash": body_hash, "outcome": outcome, "reason": reason }),
            );
        } else {
            let reason = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
            terminal::line(format_args!("{}  {outcome}{reason}", name(&letter)));
        }
    }
    if json {
        terminal::text(serde_json::to_string_pretty(&told)?);
    }
    Ok(if any_stays { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The one letter that is called so. A whole message id counts for more than the beginning of others.
async fn find(session: &mut Session, id: &str) -> anyhow::Result<DeadLetterSummary> {
    if id.is_empty() {
        bail!("an id is missing");
    }
    let mut found = session.dead_letters(id).await?;
    if found.iter().any(|letter| letter.message_id.as_str() == id) {
        found.retain(|letter| letter.message_id.as_str() == id);
    }
    match found.len() {
        0 => bail!("no dead letter's message id or body hash begins with {id}"),
        1 => Ok(found.remove(0)),
        _ => {
            found.iter().take(10).for_each(|letter| terminal::note(line(letter)));
            bail!("{} dead letters match; use the hash of the body", found.len())
        }
    }
}

fn name(letter: &DeadLetterSummary) -> String {
    let hash = letter.body_hash.get(..HASH_PRINTED).unwrap_or(&letter.body_hash);
    format!("{}  {hash}", letter.message_id)
}

fn line(letter: &DeadLetterSummary) -> String {
    let event_type = letter.event_type.as_deref().unwrap_or("-");
    let (received_at, tries) = (&letter.received_at, letter.tries);
    let tries = if tries == 1 { "1 try".to_owned() } else { format!("{tries} tries") };
    format!("{}  {received_at}  {tries}  {event_type}  {}", name(letter), letter.reason)
}
