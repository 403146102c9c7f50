//! Words that Rust and SQL share: what one of them spells, the other one knows.

use crate::support;
use clerk_sync::model::{Drift, Kind, Outcome, PassState, Reason, Scope, Step, Words};
use std::collections::BTreeSet;

fn words<W: Words>() -> BTreeSet<String> {
    W::ALL.iter().map(|word| word.as_str().to_owned()).collect()
}

/// What stands between single quotes.
fn literals(sql: &str) -> BTreeSet<String> {
    sql.split('\'').skip(1).step_by(2).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tables_take_the_words_that_the_code_writes_and_no_others() {
    let database = support::database().await;
    let checks = database
        .rows(
            "select distinct a.attname as column, pg_get_constraintdef(c.oid) as words
               from pg_constraint c join pg_attribute a on a.attrelid = c.conrelid and a.attnum = any (c.conkey)
              where c.contype = 'c' and c.connamespace = 'clerk_sync'::regnamespace
                and a.attname in ('kind', 'scope', 'state', 'step', 'drift') and c.conrelid <> 'clerk_sync.versions'::regclass",
        )
        .await;
    let mut seen = BTreeSet::new();
    for check in checks {
        let (column, known) = (check["column"].as_str().unwrap(), literals(check["words"].as_str().unwrap()));
        let parents = Kind::ALL.iter().flat_map(|kind| kind.parents()).map(|parent| parent.as_str().to_owned());
        let expected = match column {
            "kind" if known == parents.collect() => continue,
            "kind" => words::<Kind>(),
            "scope" => words::<Scope>(),
            "state" => words::<PassState>(),
            "step" => words::<Step>(),
            _ => words::<Drift>(),
        };
        assert_eq!(known, expected, "{column}");
        seen.insert(column.to_owned());
    }
    assert_eq!(seen, ["drift", "kind", "scope", "state", "step"].map(str::to_owned).into());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reason_of_the_writer_is_known_and_every_known_one_is_given() {
    /// Of reads that are to be made, and of a step that gives each another name before it answers.
    const OTHERS: [&str; 6] =
        ["stub", "in doubt", "named by a membership older than the last pass", "early", "later", "young"];
    let database = support::database().await;
    let functions = database
        .rows(
            // What a dead letter says that stays one is for people.
            "select prosrc from pg_proc where pronamespace = 'clerk_sync'::regnamespace and proname <> 'retry_dead_letter'
                and (prosrc like '%clerk_sync.outcome%' or prosrc like '%verdict%')",
        )
        .await;
    let source: Vec<&str> = functions.iter().map(|function| function["prosrc"].as_str().unwrap()).collect();
    let code = source.iter().flat_map(|body| body.lines()).map(|line| line.split("--").next().unwrap_or_default());
    let code = code.collect::<Vec<_>>().join("\n");
    let said = literals(&code);
    let unsaid: Vec<&Reason> = Reason::ALL.iter().filter(|reason| !said.contains(reason.as_str())).collect();
    assert!(unsaid.is_empty(), "no function says {unsaid:?}");
    let of_cases = ["then '", "else '"].into_iter().flat_map(|before| code.split(before).skip(1));
    let of_cases: BTreeSet<&str> = of_cases.filter_map(|rest| rest.split('\'').next()).collect();
    assert!(of_cases.len() > 20, "{of_cases:?}");
    let unknown = of_cases
        .into_iter()
        .filter(|word| Reason::parse(word).is_none() && Outcome::parse(word).is_none() && !OTHERS.contains(word));
    assert_eq!(unknown.collect::<Vec<_>>(), Vec::<&str>::new(), "model/reason.rs does not know them");
}
