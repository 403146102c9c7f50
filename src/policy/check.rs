//! `clerk-sync policy check`: what is wrong with a table's policies. Pure; the catalog is read by [`crate::store::policies`].

use super::cost::Condition;
use super::guard::{Guard, Level, Width};
use super::print::{identifier, qualified, quoted};
use crate::store::foreign::{ForeignObject, Weight};
use crate::store::policies::{Catalog, Command, Policy, Table, View};
use crate::terminal;
use serde::Serialize;

/// Why there is nothing to check where no table was named, as part of a sentence.
pub(crate) const NO_TABLES: &str = "no table of yours has a foreign key to clerk.*, a text column such as organization_id or user_id, \
                                    or a policy that uses the signed-in user";

/// One thing that is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A table or a view, as SQL writes it.
    pub table: String,
    /// `None`: it is about the table.
    pub policy: Option<String>,
    pub code: Code,
    pub problem: String,
    pub advice: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// Its condition is true of other people's rows.
    Open,
    /// A view that shows rows past the policies of its tables.
    View,
    /// Row-Level Security is off.
    RlsOff,
    /// It holds for the owner, too.
    RlsForced,
    /// A second permissive policy allows what the first one does not.
    Widened,
    /// A policy reads its own table: every query fails.
    Recursion,
    /// A claim that Clerk's session tokens do not have.
    DeadClaim,
    /// A function is called for each row.
    PerRowFunction,
    /// `auth.uid()` fails for a Clerk id.
    AuthUid,
    /// Metadata that users write themselves.
    UnsafeMetadata,
    /// It applies to `anon`, who may not call the functions.
    ForAnon,
    /// No index begins with a column of the condition.
    NoIndex,
    /// `in (select …)` uses no index.
    InSelect,
    /// Quick, but not in the spelling that the Advisor knows.
    AdvisorSpelling,
    /// A key of the application's keeps rows that have ended, or something of the application's is on our own tables.
    ForeignObject,
    /// The condition is beyond this check.
    Unreadable,
}

impl Code {
    /// Whether rows are open to people who should not see them, or queries fail; the rest is slow or unclear.
    pub fn is_grave(self) -> bool {
        matches!(self, Code::Open | Code::View | Code::RlsOff | Code::Recursion | Code::AuthUid | Code::UnsafeMetadata)
    }
}

impl Finding {
    /// Prints it for people.
    pub fn print(&self) {
        let code = serde_json::to_value(self.code).unwrap_or_default();
        let policy = self.policy.as_ref().map(|policy| format!(", policy {}", quoted(policy))).unwrap_or_default();
        terminal::line(format_args!("{}: {}{policy}", code.as_str().unwrap_or_default(), self.table));
        terminal::line(format_args!("  {}", self.problem));
        terminal::line(format_args!("  {}", self.advice));
        terminal::line("");
    }
}

/// What the application has on our tables and must not have there.
pub(crate) fn of_foreign_objects(objects: &[ForeignObject]) -> impl Iterator<Item = Finding> {
    objects.iter().filter(|object| object.weight == Weight::Fail).map(|object| Finding {
        table: object.table.clone(),
        policy: None,
        code: Code::ForeignObject,
        problem: format!("There is a {}.", object.describe()),
        advice: object.advice(),
    })
}

/// All that is wrong with the tables that are to be looked at, and with the views over them.
pub fn findings(catalog: &Catalog) -> Vec<Finding> {
    let tables = catalog.tables.iter().filter(|table| table.is_listed);
    let views = catalog.views.iter().filter_map(|view| of_view(catalog, view));
    tables.flat_map(|table| of_table(catalog, table)).chain(views).collect()
}

/// A policy and what was read of it.
struct Read<'a> {
    policy: &'a Policy,
    condition: Condition<'a>,
    using: Option<Level>,
    check: Option<Level>,
    dead: Vec<String>,
    is_recursive: bool,
    problem: Option<String>,
}

impl<'a> Read<'a> {
    fn new(catalog: &Catalog, table: &'a Table, policy: &'a Policy) -> Read<'a> {
        let mut guard = Guard::new(catalog);
        let mut condition = Condition::new(&table.relation);
        let mut problem = None;
        let mut level = |expression: &Option<String>| {
            let expression = expression.as_ref()?;
            let read = condition.read(expression).and_then(|()| guard.policy(table, expression));
            read.map_err(|error| problem = Some(error.to_string())).ok()
        };
        let (using, check) = (level(&policy.using), level(&policy.check));
        let (dead, is_recursive) = (guard.dead.into_iter().collect(), guard.is_recursive);
        Read { policy, condition, using, check, dead, is_recursive, problem }
    }

    /// Whether its rows depend on who the caller is.
    fn asks(&self) -> bool {
        self.policy.asks_who || self.width() == Some(Width::Bound)
    }

    fn width(&self) -> Option<Width> {
        [&self.using, &self.check].into_iter().flatten().map(|level| level.width).min()
    }

    /// Whether one request can be subject to both, and either suffices.
    fn overlaps(&self, other: &Read<'_>) -> bool {
        let (one, two) = (self.policy, other.policy);
        let commands = one.command == two.command || one.command == Command::All || two.command == Command::All;
        let roles = one.roles.iter().any(|role| role == "public" || two.roles.contains(role))
            || two.roles.iter().any(|role| role == "public");
        one.permissive && two.permissive && commands && roles && !self.condition.excludes(&other.condition)
    }

    /// Whether it shows rows that the other one, which asks who the caller is, does not. Rows of the caller's by another column
    /// are meant to come on top.
    fn widens(&self, other: &Read<'_>) -> bool {
        match self.width() {
            Some(Width::Open | Width::Caller) => false,
            Some(Width::Bound) => !self.condition.columns.is_disjoint(&other.condition.columns),
            _ => true,
        }
    }
}

fn of_table(catalog: &Catalog, table: &Table) -> Vec<Finding> {
    let name = qualified(&table.schema, &table.relation);
    let mut found = Vec::new();
    let mut add = |policy: Option<&Policy>, code, problem: String, advice: String| {
        let policy = policy.map(|policy| policy.name.clone());
        let finding = Finding { table: name.clone(), policy, code, problem, advice };
        if !found.contains(&finding) {
            found.push(finding);
        }
    };
    if !table.row_security && (table.is_open_to_api || !table.policies.is_empty()) {
        let problem = "Row-Level Security is off: policies have no effect, and every role with select reads all rows.";
        add(None, Code::RlsOff, problem.into(), format!("alter table {name} enable row level security;"));
    }
    if table.forced {
        let problem =
            "Row-Level Security is forced: the owner's own functions and migrations see only what a policy allows.";
        add(None, Code::RlsForced, problem.into(), format!("alter table {name} no force row level security;"));
    }
    for default in &table.defaults {
        let column = identifier(&default.column);
        let unset = format!("alter table {name} alter column {column} set default clerk_rls.user_id();");
        if default.expression.contains("auth.uid()") {
            let problem = format!("The default of {column} is auth.uid(), which fails for every Clerk id (22P02).");
            add(None, Code::AuthUid, problem, format!("{unset} The column must be text."));
        }
        let mut guard = Guard::new(catalog);
        guard.default(&default.expression);
        for why in guard.dead {
            let problem = format!("The default of {column} reads a claim that Clerk's session tokens do not have.");
            add(None, Code::DeadClaim, problem, why);
        }
    }
    // Of two policies that both ask, the later one is named; one for all commands is the latest.
    let mut policies: Vec<Read<'_>> = table.policies.iter().map(|policy| Read::new(catalog, table, policy)).collect();
    policies.sort_by_key(|read| read.policy.command == Command::All);
    for (index, read) in policies.iter().enumerate() {
        let narrower = policies.iter().enumerate().find(|(other, narrow)| {
            *other != index
                && narrow.asks()
                && narrow.overlaps(read)
                && (!read.asks() || *other < index)
                && read.widens(narrow)
        });
        if let Some((_, narrower)) = narrower {
            let problem = format!(
                "Permissive beside {}: a row is visible if either allows it, so this one only adds access.",
                quoted(&narrower.policy.name)
            );
            add(
                Some(read.policy),
                Code::Widened,
                problem,
                "Write both conditions into one policy, or make this one restrictive.".into(),
            );
        }
        for (code, problem, advice) in of_policy(table, &name, read) {
            // One index serves all policies.
            add((code != Code::NoIndex).then_some(read.policy), code, problem, advice);
        }
    }
    found
}

type Faults = Vec<(Code, String, String)>;

fn of_policy(table: &Table, name: &str, read: &Read<'_>) -> Faults {
    let policy = read.policy;
    let mut found = Vec::new();
    if let Some(error) = &read.problem {
        let problem = format!("This check cannot analyze its condition ({error}).");
        found.push((Code::Unreadable, problem, "Review it by hand.".to_owned()));
    }
    let text = policy.text();
    if text.contains("unsafe_metadata") || text.contains("user_metadata") {
        let problem = "The condition reads metadata that the user writes from the browser.";
        found.push((
            Code::UnsafeMetadata,
            problem.to_owned(),
            "Use a role, a permission, or public_metadata.".to_owned(),
        ));
    } else if policy.permissive && policy.is_for_callers() {
        found.extend(of_width(table, read));
    }
    for why in &read.dead {
        let problem = "The condition reads a claim that Clerk's session tokens do not have.";
        found.push((Code::DeadClaim, problem.to_owned(), why.clone()));
    }
    if read.condition.functions.contains("auth.uid") {
        let problem = "auth.uid() casts the user id to a UUID: with a Clerk id every query fails (22P02).";
        found.push((
            Code::AuthUid,
            problem.to_owned(),
            "Use (select clerk_rls.user_id()), and text columns.".to_owned(),
        ));
    }
    let of_kit = read.condition.functions.iter().any(|function| function.starts_with("clerk_rls."));
    if of_kit && policy.roles.iter().any(|role| role == "public" || role == "anon") {
        let problem = "It applies to anon, which may not call clerk_rls: such a request fails (42501) instead of returning no rows.";
        found.push((
            Code::ForAnon,
            problem.to_owned(),
            format!("alter policy {} on {name} to authenticated;", quoted(&policy.name)),
        ));
    }
    if read.is_recursive {
        let problem = "It reads its own table, so every query fails: infinite recursion (42P17).";
        let advice = "Compare a column with clerk_rls instead, or read the table in a security definer function.";
        found.push((Code::Recursion, problem.to_owned(), advice.to_owned()));
    } else {
        found.extend(of_cost(table, name, read));
    }
    found
}

/// Whose rows it lets through.
fn of_width(table: &Table, read: &Read<'_>) -> Faults {
    let column = table.id_columns.first().map_or_else(|| "organization_id".to_owned(), |column| identifier(column));
    let compare = format!(
        "Compare a column with the caller: {column} = any (array(select clerk_rls.organization_ids())), or = (select \
         clerk_rls.user_id()). Rows that are meant for everybody need a column that says so, such as is_public = true."
    );
    let wide =
        [(&read.using, "It lets through other people's rows"), (&read.check, "It lets callers write rows for others")];
    let mut found = Vec::new();
    for (level, says) in wide {
        let Some(Level { width, because }) = level else { continue };
        match width {
            Width::Open | Width::Caller => found.push((Code::Open, format!("{says}: {because}."), compare.clone())),
            Width::Unknown if !read.is_recursive => {
                let problem = format!("This check cannot analyze {because}.");
                let advice = "Review it by hand: it must tie each row to the caller.";
                found.push((Code::Unreadable, problem, advice.to_owned()));
            }
            _ => {}
        }
    }
    // What is wrong with both is said once.
    found.dedup_by(|later, first| later.0 == first.0 && read.using == read.check);
    found
}

/// What makes it slow, or looks slow to Supabase's Advisor.
fn of_cost(table: &Table, name: &str, read: &Read<'_>) -> Faults {
    let (policy, condition) = (read.policy, &read.condition);
    let mut found = Vec::new();
    for function in &condition.per_row {
        let problem = format!("{function}() is called once for each row of the table.");
        let advice = match function.as_str() {
            "auth.jwt" => "Write ((select auth.jwt()) ->> 'sub').".to_owned(),
            _ => "Compare the column with (select f()), or with any (array(select f())) where f returns a set: it then runs once.".to_owned(),
        };
        found.push((Code::PerRowFunction, problem, advice));
    }
    // Nobody but Supabase may put an index on its own tables.
    let is_managed = matches!(table.schema.as_str(), "storage" | "realtime");
    if !is_managed
        && let Some(first) = condition.columns.first()
        && policy.using.is_some()
        && !condition.columns.iter().any(|column| table.indexed.contains(column))
    {
        let columns = condition.columns.iter().map(|column| identifier(column)).collect::<Vec<_>>().join(" or ");
        let problem = format!("No index begins with {columns}: each query reads the whole table.");
        found.push((Code::NoIndex, problem, format!("create index on {name} ({});", identifier(first))));
    }
    if condition.has_in_select {
        let problem = "column in (select …) uses no index of the column: each query reads the whole table.";
        found.push((
            Code::InSelect,
            problem.to_owned(),
            "Write column = any (array(select clerk_rls.organization_ids())).".to_owned(),
        ));
    }
    let lower = policy.text().to_lowercase();
    let is_flagged = |call: &str| lower.contains(call) && !lower.contains(&format!("select {call}"));
    if !condition.per_row.contains("auth.jwt") && is_flagged("auth.jwt()") {
        let problem = "The Advisor reports auth.jwt() in this form (0003), although it runs once.";
        found.push((Code::AdvisorSpelling, problem.to_owned(), "Write ((select auth.jwt()) ->> 'sub').".to_owned()));
    }
    found
}

/// A view that reads with its owner's rights passes by the policies of its tables.
fn of_view(catalog: &Catalog, view: &View) -> Option<Finding> {
    if view.security_invoker && !view.is_materialized {
        return None;
    }
    let name = qualified(&view.schema, &view.relation);
    let finding = |code, problem: String, advice: String| {
        Some(Finding { table: name.clone(), policy: None, code, problem, advice })
    };
    if view.is_materialized {
        let problem =
            "A materialized view keeps rows of everybody, and has no policies: every role with select reads all rows.";
        return finding(
            Code::View,
            problem.to_owned(),
            format!("revoke all on {name} from anon, authenticated, public;"),
        );
    }
    let mut guard = Guard::new(catalog);
    let advice = format!("alter view {name} set (security_invoker = true);");
    match guard.view(&view.definition) {
        Ok(Level { width: Width::Open | Width::Caller, because }) => {
            let problem = format!("The view reads with its owner's rights, past all policies: {because}.");
            finding(Code::View, problem, advice)
        }
        Ok(Level { width: Width::Unknown, because }) => {
            let problem = format!(
                "The view reads with its owner's rights, past all policies; this check cannot analyze {because}."
            );
            finding(Code::Unreadable, problem, advice)
        }
        Ok(_) => None,
        Err(error) => {
            let problem = format!(
                "The view reads with its owner's rights, past all policies; this check cannot analyze it ({error})."
            );
            finding(Code::Unreadable, problem, advice)
        }
    }
}
