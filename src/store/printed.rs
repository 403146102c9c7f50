//! The schema as one plain SQL file, for those who keep migrations in `supabase/migrations`.

use super::migrate::{MIGRATOR, SchemaVersion};
use super::replay::{self, FILES};
use crate::model::hex;
use anyhow::bail;
use sqlx::migrate::Migration;
use std::fmt::Write as _;

/// The migrations behind number `from`, and all views, functions and policies, as SQL.
///
/// The file records what it does, so that `migrate` can take over from there. It refuses a database that is not at `from`, or that a
/// newer release has migrated.
///
/// # Errors
/// This program has no migration of that number.
pub fn printed(from: i64) -> anyhow::Result<String> {
    let program = SchemaVersion::of_program();
    if from != 0 && !MIGRATOR.version_exists(from) {
        bail!("there is no migration {from}: --from takes a number from 1 to {}", program.migration);
    }
    let mut sql = heading(from, program);
    for migration in MIGRATOR.iter().filter(|migration| migration.version > from) {
        part(&mut sql, &format!("{}: {}", migration.version, migration.description), migration.sql.as_str());
        sql.push_str(&record_of(migration));
    }
    part(&mut sql, "Views, functions and policies follow", &guard(program.generation));
    for file in FILES.iter() {
        part(&mut sql, &file.name, file.sql.as_str());
    }
    part(&mut sql, "What this database has now", &replay::record());
    Ok(sql)
}

/// The migrator's own table.
const RECORDS: &str = "create table if not exists clerk_sync._sqlx_migrations (\n  version bigint primary key,\n  description text not null,\n  \
                       installed_on timestamptz not null default now(),\n  success boolean not null,\n  checksum bytea not null,\n  \
                       execution_time bigint not null\n);\n";

/// The statement that records a migration as applied.
fn record_of(migration: &Migration) -> String {
    format!(
        "insert into clerk_sync._sqlx_migrations (version, description, success, checksum, execution_time)\n  \
         values ({}, '{}', true, '\\x{}', 0);\n",
        migration.version,
        migration.description,
        hex(&migration.checksum)
    )
}

/// The statements that record all migrations as applied.
pub(super) fn records() -> String {
    RECORDS.to_owned() + &MIGRATOR.iter().map(record_of).collect::<String>()
}

fn part(sql: &mut String, title: &str, body: &str) {
    write!(sql, "\n-- {title}\n\n{}\n", body.trim_end()).expect("writing to a string cannot fail");
}

fn heading(from: i64, program: SchemaVersion) -> String {
    let release = env!("CARGO_PKG_VERSION");
    if from == 0 {
        return format!(
            "-- The schemas of clerk-sync {release} ({program}), printed by `clerk-sync migrate --print`.\n\
             -- Put this file into supabase/migrations, or run it in one transaction as the role postgres: psql -1 -f FILE\n\n\
             create schema if not exists clerk_sync;\n{RECORDS}"
        );
    }
    format!(
        "-- From migration {from} to clerk-sync {release} ({program}), printed by `clerk-sync migrate --print --from {from}`.\n\
         -- Put this file into supabase/migrations, or run it in one transaction as the role postgres: psql -1 -f FILE\n\n\
         do $$\n\
         declare\n  newest bigint := (select coalesce(max(version), 0) from clerk_sync._sqlx_migrations where success);\n\
         begin\n  if newest <> {from} then\n    \
         raise exception 'this file is for a database at migration {from}, and this one is at migration %', newest\n      \
         using hint = pg_catalog.format('Print it again: clerk-sync migrate --print --from %s', newest);\n  end if;\n\
         end\n$$;\n"
    )
}

/// As [`replay::replay`] does: nobody writes meanwhile, and no older release replaces what a newer one has brought.
fn guard(generation: i32) -> String {
    format!(
        "do $$\nbegin\n  lock table clerk_sync.writer in exclusive mode;\n  \
         if exists (select from clerk_sync.replayed where generation > {generation}) then\n    \
         raise exception 'the database has functions of a newer release of clerk-sync than this file'\n      \
         using hint = 'Print the file with that release.';\n  end if;\nend\n$$;"
    )
}
