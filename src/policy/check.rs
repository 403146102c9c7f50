//! `clerk-sync policy check`: what is wrong with a table's policies. Pure; the catalog is read by [`crate::store::policies`].

use crate::store::foreign::{ForeignObject, Weight};
use crate::store::policies::{Command, Policy, Table};
use crate::terminal;
use serde::Serialize;
use sqlparser::ast::{BinaryOperator, Expr, Function, Query, UnaryOperator, Visit, Visitor};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;
use std::collections::BTreeSet;
use std::ops::ControlFlow;

/// One thing that is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
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
    /// Row-Level Security is off.
    RlsOff,
    /// It holds for the owner, too.
    RlsForced,
    /// A second permissive policy allows what the first one does not.
    Widened,
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
        advice: object.advice().to_owned(),
    })
}

/// A policy's name as SQL takes it, whatever is in it.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// All that is wrong with one table.
pub fn findings(table: &Table) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut add = |policy: Option<&Policy>, code, problem: String, advice: String| {
        let policy = policy.map(|policy| policy.name.clone());
        let finding = Finding { table: table.name.clone(), policy, code, problem, advice };
        if !found.contains(&finding) {
            found.push(finding);
        }
    };
    if !table.row_security {
        let problem =
            "Row-Level Security is off: every policy is idle, and whoever may read the table reads all of it.";
        add(None, Code::RlsOff, problem.into(), format!("alter table {} enable row level security;", table.name));
    }
    if table.forced {
        let problem =
            "Row-Level Security is forced: the owner's own functions and migrations see only what a policy lets them.";
        add(None, Code::RlsForced, problem.into(), format!("alter table {} no force row level security;", table.name));
    }
    // Of two policies that both ask, the later one is named; one for all commands is the latest.
    let mut policies: Vec<&Policy> = table.policies.iter().collect();
    policies.sort_by_key(|policy| policy.command == Command::All);
    for (index, policy) in policies.iter().copied().enumerate() {
        let narrower = policies.iter().enumerate().find(|(other, narrow)| {
            *other != index && narrow.asks_who && narrow.overlaps(policy) && (!policy.asks_who || *other < index)
        });
        if let Some((_, narrower)) = narrower {
            let problem = format!(
                "Permissive beside {}: a row shows if either allows it, so this one only widens.",
                quoted(&narrower.name)
            );
            add(
                Some(policy),
                Code::Widened,
                problem,
                "Write both conditions into one policy, or make this one restrictive.".into(),
            );
        }
        for (code, problem, advice) in of_policy(table, policy) {
            // One index serves all policies.
            add((code != Code::NoIndex).then_some(policy), code, problem, advice);
        }
    }
    found
}

impl Policy {
    /// Whether one request can be subject to both, and either suffices.
    fn overlaps(&self, other: &Policy) -> bool {
        let commands = self.command == other.command || self.command == Command::All || other.command == Command::All;
        let roles = self.roles.iter().any(|role| role == "public" || other.roles.contains(role))
            || other.roles.iter().any(|role| role == "public");
        self.permissive && other.permissive && commands && roles
    }
}

fn of_policy(table: &Table, policy: &Policy) -> Vec<(Code, String, String)> {
    let mut found = Vec::new();
    let text = [&policy.using, &policy.check].into_iter().flatten().map(String::as_str).collect::<Vec<_>>().join("\n");
    let mut condition = Condition::new(&table.relation);
    for expression in [&policy.using, &policy.check].into_iter().flatten() {
        if let Err(error) = condition.read(expression) {
            let problem = format!("This check cannot read its condition ({error}).");
            found.push((Code::Unreadable, problem, "Look at it yourself.".to_owned()));
        }
    }
    for function in &condition.per_row {
        let problem = format!("{function}() is called once for each row of the table.");
        let advice = match function.as_str() {
            "auth.jwt" => "Write ((select auth.jwt()) ->> 'sub').".to_owned(),
            _ => "Compare the column with (select f()), or with any (array(select f())) where f returns a set: it then runs once.".to_owned(),
        };
        found.push((Code::PerRowFunction, problem, advice));
    }
    if condition.functions.contains("auth.uid") {
        let problem = "auth.uid() takes the token's subject for a uuid: with a Clerk id every query fails (22P02).";
        found.push((
            Code::AuthUid,
            problem.to_owned(),
            "Use (select clerk_rls.user_id()), and text columns.".to_owned(),
        ));
    }
    if text.contains("unsafe_metadata") || text.contains("user_metadata") {
        let problem = "The condition reads metadata that the user writes from the browser.";
        found.push((
            Code::UnsafeMetadata,
            problem.to_owned(),
            "Use a role, a permission, or public_metadata.".to_owned(),
        ));
    }
    let of_kit = condition.functions.iter().any(|function| function.starts_with("clerk_rls."));
    if of_kit && policy.roles.iter().any(|role| role == "public" || role == "anon") {
        let problem = "It applies to anon, who may not call clerk_rls: such a request fails (42501) where an empty answer was meant.";
        found.push((
            Code::ForAnon,
            problem.to_owned(),
            format!("alter policy {} on {} to authenticated;", quoted(&policy.name), table.name),
        ));
    }
    if !condition.columns.is_empty()
        && policy.using.is_some()
        && !condition.columns.iter().any(|column| table.indexed.contains(column))
    {
        let columns = condition.columns.iter().cloned().collect::<Vec<_>>().join(" or ");
        let problem = format!("No index begins with {columns}: each query reads the whole table.");
        found.push((
            Code::NoIndex,
            problem,
            format!("create index on {} ({});", table.name, condition.columns.first().expect("not empty")),
        ));
    }
    if condition.has_in_select {
        let problem = "column in (select …) uses no index of the column: each query reads the whole table.";
        found.push((
            Code::InSelect,
            problem.to_owned(),
            "Write column = any (array(select clerk_rls.organization_ids())).".to_owned(),
        ));
    }
    let lower = text.to_lowercase();
    let is_flagged = |call: &str| lower.contains(call) && !lower.contains(&format!("select {call}"));
    if !condition.per_row.contains("auth.jwt") && is_flagged("auth.jwt()") {
        let problem = "The Advisor reports auth.jwt() in this spelling (0003), although it runs once.";
        found.push((Code::AdvisorSpelling, problem.to_owned(), "Write ((select auth.jwt()) ->> 'sub').".to_owned()));
    }
    found
}

/// What a condition is made of.
struct Condition<'a> {
    /// The policy's table, as subqueries call it.
    table: &'a str,
    depth: usize,
    /// Every function that is not built in.
    functions: BTreeSet<String>,
    /// Those that run for each row.
    per_row: BTreeSet<String>,
    /// The table's columns that are held against something other than a constant.
    columns: BTreeSet<String>,
    has_in_select: bool,
    /// The next `in (select …)` stands behind a `not`.
    is_negated: bool,
}

impl<'a> Condition<'a> {
    fn new(table: &'a str) -> Condition<'a> {
        let (functions, per_row, columns) = Default::default();
        Condition { table, depth: 0, functions, per_row, columns, has_in_select: false, is_negated: false }
    }

    fn read(&mut self, expression: &str) -> Result<(), sqlparser::parser::ParserError> {
        let expression = Parser::new(&PostgreSqlDialect {}).try_with_sql(expression)?.parse_expr()?;
        let _ = expression.visit(self);
        Ok(())
    }

    /// The table's column that the expression is, if it is one. In a subquery the server writes its table before it.
    fn column(&self, expression: &Expr) -> Option<String> {
        match expression {
            Expr::Nested(inner) | Expr::Cast { expr: inner, .. } => self.column(inner),
            Expr::Identifier(column) if self.depth == 0 => Some(column.value.clone()),
            Expr::CompoundIdentifier(parts) => match parts.as_slice() {
                [table, column] if table.value == self.table => Some(column.value.clone()),
                _ => None,
            },
            _ => None,
        }
    }

    fn compare(&mut self, one: &Expr, other: &Expr) {
        if !is_constant(other) {
            self.columns.extend(self.column(one));
        }
    }

    fn names_a_column(&self, function: &Function) -> bool {
        sqlparser::ast::visit_expressions(function, |expression| match self.column(expression) {
            Some(_) => ControlFlow::Break(()),
            None => ControlFlow::Continue(()),
        })
        .is_break()
    }
}

fn is_constant(expression: &Expr) -> bool {
    match expression {
        Expr::Nested(inner) | Expr::Cast { expr: inner, .. } => is_constant(inner),
        Expr::Value(_) => true,
        _ => false,
    }
}

fn is_in_select(expression: &Expr) -> bool {
    match expression {
        Expr::Nested(inner) => is_in_select(inner),
        Expr::InSubquery { .. } => true,
        _ => false,
    }
}

impl Visitor for Condition<'_> {
    type Break = std::convert::Infallible;

    fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<Self::Break> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<Self::Break> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expression: &Expr) -> ControlFlow<Self::Break> {
        match expression {
            // With an empty search path only what is built in has no schema.
            Expr::Function(function) if function.name.0.len() > 1 => {
                let name = function.name.to_string();
                if self.depth == 0 || self.names_a_column(function) {
                    self.per_row.insert(name.clone());
                }
                self.functions.insert(name);
            }
            Expr::UnaryOp { op: UnaryOperator::Not, expr } => self.is_negated = is_in_select(expr),
            // No index answers `not in`.
            Expr::InSubquery { negated: true, .. } => {}
            Expr::InSubquery { .. } if self.is_negated => self.is_negated = false,
            Expr::InSubquery { expr, .. } => {
                self.has_in_select |= self.column(expr).is_some();
                self.columns.extend(self.column(expr));
            }
            Expr::AnyOp { left, right, .. } => self.compare(left, right),
            Expr::BinaryOp { left, op: BinaryOperator::Eq, right } => {
                self.compare(left, right);
                self.compare(right, left);
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}
