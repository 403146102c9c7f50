//! Who may do what in our schemas, held against what the migrations grant.

use super::{Check, some_of};
use crate::store::inspect::{OfFunction, OfTable, Rights};

const WORKER: &str = "clerk_sync_worker";
const READERS: &[&str] = &["authenticated", WORKER, "service_role"];

/// What the worker calls.
const CALLED: &[&str] = &[
    "apply",
    "approve_pass",
    "braked_pass",
    "check_writes",
    "claim_listings",
    "clock",
    "deny_unsettled",
    "drop_dead_letter",
    "end_lease",
    "end_pass",
    "forget_deleted_parent",
    "keep_lease",
    "mark_listed",
    "mark_reads_attempted",
    "open_pass",
    "pin_instance",
    "prune",
    "purge",
    "purge_references",
    "record_dead_letter_attempt",
    "record_failed_start",
    "record_page",
    "remove_memberships_of_deleted",
    "request_listings",
    "request_pass",
    "retry_dead_letter",
    "retry_refused",
    "take_lease",
];

/// Rights and statements that are named in one line.
const SHOWN: usize = 6;

/// What differs from the migrations: what it is, and the statement that mends it.
#[derive(Default)]
struct Differences {
    says: Vec<String>,
    fixes: Vec<String>,
}

impl Differences {
    fn add(&mut self, says: String, fix: String) {
        self.says.push(says);
        self.fixes.push(fix);
    }

    /// `all_at_once`: what mends all of them, as the beginning of the advice.
    fn check(self, name: &'static str, good: &str, all_at_once: &str) -> Check {
        if self.says.is_empty() {
            return Check::ok(name, good);
        }
        let fix = format!("{all_at_once}{}", some_of(&self.fixes, SHOWN, " "));
        Check::fail(name, some_of(&self.says, SHOWN, "; "), fix)
    }
}

/// The statements that grant what is missing.
pub fn grants(rights: &Rights) -> Vec<String> {
    differences(rights).0.fixes.into_iter().map(|fix| fix.trim_end_matches(';').to_owned()).collect()
}

/// Missing rights, rights that nobody should have, and Row-Level Security.
pub(super) fn checks(rights: &Rights) -> Vec<Check> {
    let (missing, excess) = differences(rights);
    let mut open = Differences::default();
    for table in rights.tables.iter().filter(|table| !table.is_view && !table.row_security) {
        let on = table_name(table);
        open.add(
            format!("{on}: Row-Level Security is off, so every role with select reads all rows"),
            format!("alter table {on} enable row level security;"),
        );
    }
    vec![
        missing.check(
            "missing-rights",
            "the worker and signed-in users have the rights they need",
            "clerk-sync migrate, or ",
        ),
        excess.check("excess-rights", "no other role may read or write our tables", ""),
        open.check("row-level-security", "is on for every table of ours", ""),
    ]
}

/// What is missing, and what nobody should have.
fn differences(rights: &Rights) -> (Differences, Differences) {
    let (mut missing, mut excess) = (Differences::default(), Differences::default());
    for schema in &rights.schemas {
        let on = format!("schema {}", schema.name);
        let wanted = match schema.name.as_str() {
            "clerk" => READERS,
            "clerk_sync" => &[WORKER][..],
            _ => &[],
        };
        compare(&on, "usage", wanted, &schema.usage, &mut missing, &mut excess);
        compare(&on, "create", &[], &schema.create, &mut missing, &mut excess);
    }
    for table in &rights.tables {
        let on = table_name(table);
        compare(&on, "select", readers(table), &table.reads, &mut missing, &mut excess);
        for (role, rights) in &table.other {
            // Some columns of a table that the role may read as a whole are no more than that.
            let rights: Vec<&str> = rights.iter().map(String::as_str).collect();
            if !rights.is_empty() {
                let rights = rights.join(", ");
                excess.add(
                    format!("{role} has {rights} on {on}"),
                    format!("revoke {rights} on {on} from public, {role};"),
                );
            }
        }
        if readers(table).contains(&WORKER) && table.row_security && !table.worker_policy {
            let fix = format!("create policy worker_reads on {on} for select to {WORKER} using (true);");
            missing.add(format!("no policy lets {WORKER} read {on}"), fix);
        }
    }
    for function in &rights.functions {
        let on = format!("function {}", function.signature);
        compare(&on, "execute", callers(function), &function.execute, &mut missing, &mut excess);
    }
    (missing, excess)
}

fn compare(
    on: &str,
    right: &str,
    wanted: &[&str],
    held: &[String],
    missing: &mut Differences,
    excess: &mut Differences,
) {
    for role in wanted.iter().filter(|role| !held.iter().any(|held| held == *role)) {
        missing.add(format!("{role} lacks {right} on {on}"), format!("grant {right} on {on} to {role};"));
    }
    for role in held.iter().filter(|role| !wanted.contains(&role.as_str())) {
        excess.add(format!("{role} has {right} on {on}"), format!("revoke {right} on {on} from public, {role};"));
    }
}

fn readers(table: &OfTable) -> &'static [&'static str] {
    match (table.schema.as_str(), table.name.as_str()) {
        ("clerk", _) => READERS,
        // The lock of the writers: whoever had any right to it could hold them all up.
        ("clerk_sync", "writer") => &[],
        ("clerk_sync", _) => &[WORKER],
        // Without usage on their schema no query of a caller's own can name them.
        ("clerk_rls", "able_users" | "denied") => &["authenticated"],
        _ => &[],
    }
}

fn callers(function: &OfFunction) -> &'static [&'static str] {
    match function.schema.as_str() {
        "clerk_rls" => &["authenticated"],
        "clerk_sync" if CALLED.contains(&function.name.as_str()) => &[WORKER],
        _ => &[],
    }
}

/// As SQL writes it: ours are plain; another's might not be.
fn table_name(table: &OfTable) -> String {
    let plain = |name: &str| name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if plain(&table.name) {
        format!("{}.{}", table.schema, table.name)
    } else {
        format!("{}.\"{}\"", table.schema, table.name.replace('"', "\"\""))
    }
}
