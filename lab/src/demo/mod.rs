//! `lab demo`: the whole job with one command and no account.
//!
//! A simulated Clerk lives through an afternoon of some small companies and signs a webhook for every change. On the way some
//! are lost, doubled, late or out of order, as in the real world. Each delivery goes to two receivers: ours, and the handler
//! that most people write. In the end both are held against the source, row by row and column by column.
//!
//! One seed tells one story: webhooks are sent one after the other, and what is printed with `--exit` names no port, no id and no time.

mod compare;
mod delivery;
mod live;
mod naive;
mod personas;
mod story;

use crate::say;
use clerk_sync::clerk::client::Options;
use clerk_sync::model::{Kind, PassState};
use clerk_sync::ops::verdict::Setup;
use clerk_sync::ops::{self, Ops};
use clerk_sync::reconcile::{PassLimits, PassRequest, Reconciler, Report, Silent};
use compare::Names;
use std::process::ExitCode;
use testkit::clerk::Clerk;
use testkit::postgres::Durability;
use testkit::serve::Server;
use testkit::world::LOOPBACK;
use testkit::{SECRET, World};
use tokio::net::TcpListener;

/// Who is there before the story begins, and the company that they work for.
const FOUNDERS: usize = 8;
const COMPANY: &str = "Garden Bank";
/// Findings of a reconcile that are shown.
const FINDINGS: usize = 8;
/// The database's name.
const DATABASE: &str = "demo";
/// What is printed fits into so many columns.
const COLUMNS: usize = 100;

/// How the demo runs.
#[derive(clap::Args, Clone)]
pub(crate) struct Demo {
    /// End when done, instead of staying up to be looked at: 0 if every row is right or its fault is explained
    #[arg(long)]
    exit: bool,

    /// Tell another story
    #[arg(long, default_value_t = 42, value_name = "N")]
    seed: u64,

    /// How many changes happen
    #[arg(long, default_value_t = 400, value_name = "N")]
    changes: u32,

    /// Percentage of webhooks lost for good
    #[arg(long, default_value_t = 3, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    lose: u8,
}

impl Demo {
    /// Runs the demo.
    ///
    /// # Errors
    /// Something that it stands on is missing: most likely Postgres.
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        scene(1, "A Supabase database, Clerk, and two receivers of its webhooks");
        say("Starting a private Postgres with the roles of a Supabase project, and a simulated Clerk.");
        // On a whole second, so that ids, which begin with it, sort in the same order each time.
        let now = clerk_sync::clock::now().get() / 1_000 * 1_000;
        let clerk = Clerk::new(self.seed, now - story::LASTS - story::EVENING);
        let counts = ops::install_metrics()?;
        let mut world = World::builder().named(DATABASE).own_server(Durability::Fast).clerk(clerk).serving().await?;
        world.patience = Options::PATIENCE;
        let (clerk, database_url) = (world.clerk.clone(), world.database.url());
        let ops = Ops {
            counts,
            database: world.database.database(),
            token: None,
            open_metrics: false,
            health: None,
            setup: Setup::default(),
        };
        let status = ops::listen(LOOPBACK, ops)?;
        let (naive_url, _naive) = listen(naive::router(&database_url).await?).await?;
        let ours_url = world.server.webhook_url();
        say("Clerk sends each webhook to clerk-sync, and to the handler that most people write:");
        say("one route that upserts by id and deletes by id.");

        scene(2, &format!("{COMPANY} was there before the first webhook: clerk-sync fills its tables"));
        clerk.lock().populate(FOUNDERS, 1, FOUNDERS, 1);
        let company = clerk.lock().organizations.keys().next().cloned().unwrap_or_default();
        clerk.lock().silently(|clerk| {
            clerk.update_organization(&company, |organization| COMPANY.clone_into(&mut organization.name));
        });
        let mut names = Names::of(&clerk.lock());
        reconcile(&world, &names).await?;

        scene(3, "An afternoon: people come, change roles, leave, are banned. The network does its worst");
        let events = story::tell(&clerk, self.changes, self.seed);
        names.add(&events);
        names.add_all(&clerk.lock());
        let receivers = delivery::Receivers::new(&ours_url, &naive_url, SECRET)?;
        let lost = delivery::deliver_all(events, &receivers, self.lose, self.seed, &names).await?;

        scene(4, "Both against Clerk, every row and every column");
        let secret_key = clerk.lock().secret_key.clone();
        let source = compare::Source { url: &world.api.url, secret_key: &secret_key };
        let before = compare::compare(&source, &database_url, &lost, &names).await?;
        say(&before.to_string());

        scene(5, "What runs every night: a full reconcile finds what the lost webhooks would have said");
        clerk.lock().now += story::EVENING;
        reconcile(&world, &names).await?;
        let after = compare::compare(&source, &database_url, &lost, &names).await?;
        let wrong = after.wrong();
        say("");
        say(&match wrong {
            0 => "clerk-sync: every column of every row equals Clerk's.".to_owned(),
            wrong => format!("clerk-sync: {wrong} rows are STILL WRONG."),
        });

        scene(6, "Who sees what, through Row-Level Security with each person's own token");
        let matrix = personas::matrix(&clerk, &database_url, &names).await?;
        say(&matrix.text);

        let is_good = before.is_explained() && wrong == 0 && matrix.is_right;
        if !self.exit {
            let reconciler = reconciler(&world);
            reconciler.run(&PassRequest::Quick, "demo", false, &mut Silent).await?;
            say("");
            say(&format!("Status page: http://{status}/"));
            say("Look around, in the schemas clerk, clerk_sync and naive:");
            say(&format!("  psql -h {} -U postgres {DATABASE}", world.supabase().cluster().dir().display()));
            live::Live {
                clerk: &clerk,
                reconciler: &reconciler,
                receivers: &receivers,
                names: &mut names,
                database_url: &database_url,
            }
            .run()
            .await?;
        }
        world.without_server().1.stop().await;
        Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// A heading.
fn scene(number: u32, title: &str) {
    let heading = format!("── {number} ─ {title} ");
    let rule = "─".repeat(COLUMNS.saturating_sub(heading.chars().count()));
    say(&format!("\n{heading}{rule}"));
}

/// As lines of [`COLUMNS`] at most; those behind the first begin with so many spaces.
fn wrapped(text: &str, indent: usize) -> String {
    let words = text.trim_start();
    let mut lines = Vec::new();
    let mut line = text[..text.len() - words.len()].to_owned();
    let mut is_begun = false;
    for word in words.split_inclusive(' ') {
        if is_begun && line.chars().count() + word.trim_end().chars().count() > COLUMNS {
            lines.push(line.trim_end().to_owned());
            line = " ".repeat(indent);
        }
        line.push_str(word);
        is_begun = true;
    }
    lines.push(line);
    lines.join("\n")
}

fn reconciler(world: &World<Server>) -> Reconciler {
    Reconciler { times: PassLimits::default(), ..world.reconciler() }
}

/// Fills the tables, or finds and repairs what the lost webhooks left wrong, and says why it was.
async fn reconcile(world: &World<Server>, names: &Names) -> anyhow::Result<()> {
    let reports = reconciler(world).run(&PassRequest::Kinds(Kind::ALL.to_vec()), "demo", false, &mut Silent).await?;
    reports.iter().for_each(|report| tell(report, names));
    Ok(())
}

fn tell(report: &Report, names: &Names) {
    let what = match report.state {
        PassState::Complete if report.added > 0 => format!("{} added", report.added),
        PassState::Complete if report.drift() > 0 => format!(
            "repaired: {} were missing, {} differed, {} were still here",
            report.missing, report.differing, report.extra
        ),
        PassState::Complete => "in sync".to_owned(),
        state => format!("{state}: {}", report.problem.as_deref().unwrap_or("it did not end")),
    };
    say(&format!("  {:<13} {} at Clerk; {what}", report.scope, report.listed));
    for finding in report.findings.iter().take(FINDINGS) {
        let fields = finding.fields.join(", ");
        let fields = if fields.is_empty() { fields } else { format!(" ({fields})") };
        let line = format!("    {:<9} {}{fields}: {}", finding.drift, names.name(&finding.entity_id), finding.cause);
        say(&wrapped(&line, 14));
    }
}

/// Serves a stand-in on a free port of this machine.
async fn listen(router: axum::Router) -> anyhow::Result<(String, tokio::task::JoinHandle<()>)> {
    let listener = TcpListener::bind(LOOPBACK).await?;
    let url = format!("http://{}", listener.local_addr()?);
    let serving = tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "a stand-in ended");
        }
    });
    Ok((url, serving))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_wrapped_and_indented() {
        let text = format!("  {} {}", "a".repeat(60), "b".repeat(60));
        assert_eq!(wrapped(&text, 4), format!("  {}\n    {}", "a".repeat(60), "b".repeat(60)));
        assert_eq!(wrapped("  short", 4), "  short");
    }
}
