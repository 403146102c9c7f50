//! Which rows a condition lets through: the caller's own, or anybody's. Pure; it reads expressions as the server writes them.
//!
//! Each condition gets a [`Width`], ordered from the widest (`Open`) to the narrowest (`Never`): `and` takes the maximum of its parts, `or`
//! the minimum. An unreadable part is `Unknown`, in the middle: it decides only if no other part does. A [`Level`] is a width with the
//! part of the condition that explains it.

mod rows;
mod truth;
mod values;

use super::syntax::{parse_expression, parse_query, reads_both, without_texts};
use crate::store::policies::{Catalog, Function as SqlFunction, Table};
use sqlparser::ast::{Expr, VisitMut};
use sqlparser::parser::ParserError;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

/// How narrow a condition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Width {
    /// Everybody's rows.
    Open,
    /// Everybody's rows, for some callers: it asks about the caller and not about the row.
    Caller,
    /// It cannot be told.
    Unknown,
    /// Rows, or callers, that somebody has chosen: `is_public = true`, a table of administrators.
    Chosen,
    /// Rows that are the caller's.
    Bound,
    /// No row.
    Never,
}

/// A width, and the part of the condition that makes it so wide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Level {
    pub(super) width: Width,
    pub(super) because: String,
}

impl Level {
    fn new(width: Width, because: impl Into<String>) -> Level {
        Level { width, because: because.into() }
    }

    fn narrower(self, other: Level) -> Level {
        if other.width > self.width { other } else { self }
    }

    fn wider(self, other: Level) -> Level {
        if other.width < self.width { other } else { self }
    }
}

/// What lets a row through where an expression is true, and where it is false.
struct Truth {
    when: Level,
    unless: Level,
}

impl Truth {
    fn new(when: Width, unless: Width, because: &str) -> Truth {
        Truth { when: Level::new(when, because), unless: Level::new(unless, because) }
    }

    fn not(self) -> Truth {
        Truth { when: self.unless, unless: self.when }
    }

    fn and(self, other: Truth) -> Truth {
        Truth { when: self.when.narrower(other.when), unless: self.unless.wider(other.unless) }
    }

    fn or(self, other: Truth) -> Truth {
        self.not().and(other.not()).not()
    }
}

/// What an expression is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Const,
    /// The row that is asked for.
    Row,
    /// A row of another query, whose own condition binds it to nobody.
    Other,
    /// Who the caller is, or what is theirs.
    Identity,
    /// Something about the caller that others share.
    Attribute,
    /// The token's claim at that path.
    Claim(Vec<String>),
    /// Something that the caller chooses freely.
    OfCaller(String),
    /// Always null; why, and what to write.
    Dead(String),
    Unknown(String),
}

impl Value {
    /// What a function or an operator makes of two.
    fn join(self, other: Value) -> Value {
        use Value::{Attribute, Dead, Identity, OfCaller, Other, Row, Unknown};
        match (self, other) {
            (Unknown(why), _) | (_, Unknown(why)) => Unknown(why),
            (OfCaller(what), _) | (_, OfCaller(what)) => OfCaller(what),
            (Row, Identity) | (Identity, Row) => Identity,
            (Row, _) | (_, Row) => Row,
            (Identity, _) | (_, Identity) => Identity,
            (Attribute, _) | (_, Attribute) => Attribute,
            (Dead(why), _) | (_, Dead(why)) => Dead(why),
            (Other, _) | (_, Other) => Other,
            (one, _) => one,
        }
    }
}

/// The tables of one query, as its expressions call them.
#[derive(Clone, Debug, Default)]
struct Frame {
    names: Vec<String>,
    /// What a column of theirs is worth.
    value: Option<Value>,
    /// They are the mirror's, where a role or a permission tells nobody apart.
    is_mirror: bool,
}

/// Where an expression stands.
#[derive(Clone, Debug, Default)]
struct Scope {
    /// From the outermost query on; the first one is the table of the policy.
    frames: Vec<Frame>,
    /// The arguments of the function that is being read: by name and by number.
    arguments: BTreeMap<String, Value>,
    /// It runs with the rights of the tables' owner, so no policy holds.
    as_owner: bool,
    /// Where a function's body looks for names without a schema; empty in a policy.
    search_path: Vec<String>,
}

/// Functions within functions, and tables within policies.
const DEEPEST: usize = 8;

/// Reads conditions of one policy, view or default.
pub(super) struct Guard<'a> {
    catalog: &'a Catalog,
    /// Tables whose policies are being read, the outermost first.
    path: Vec<(String, String)>,
    depth: usize,
    reads_both_versions: bool,
    /// Claims that no token has, with what to write.
    pub(super) dead: BTreeSet<String>,
    /// A policy of the first table reads that table again.
    pub(super) is_recursive: bool,
}

impl<'a> Guard<'a> {
    pub(super) fn new(catalog: &'a Catalog) -> Guard<'a> {
        let (path, dead) = Default::default();
        Guard { catalog, path, depth: 0, reads_both_versions: false, dead, is_recursive: false }
    }

    /// How wide a policy's expression is.
    ///
    /// # Errors
    /// It cannot be parsed.
    pub(super) fn policy(&mut self, table: &Table, expression: &str) -> Result<Level, ParserError> {
        let expression = parse_expression(expression)?;
        self.path.push((table.schema.clone(), table.relation.clone()));
        let level = self.condition(table, &expression);
        self.path.pop();
        Ok(level)
    }

    fn condition(&mut self, table: &Table, expression: &Expr) -> Level {
        let frame = Frame { names: vec![table.relation.clone()], ..Frame::default() };
        let scope = Scope { frames: vec![frame], ..Scope::default() };
        let before = std::mem::replace(&mut self.reads_both_versions, reads_both(expression));
        let level = self.truth(expression, &scope, &table.id_columns).when;
        self.reads_both_versions = before;
        level
    }

    /// How wide the rows of a view that reads with its owner's rights are.
    ///
    /// # Errors
    /// It cannot be parsed.
    pub(super) fn view(&mut self, definition: &str) -> Result<Level, ParserError> {
        let query = parse_query(definition)?;
        let scope = Scope { frames: Vec::new(), as_owner: true, ..Scope::default() };
        Ok(self.rows(&query, &scope))
    }

    /// Looks for dead claims in the default of a column.
    pub(super) fn default(&mut self, expression: &str) {
        if let Ok(expression) = parse_expression(expression) {
            self.reads_both_versions = reads_both(&expression);
            let value = self.value(&expression, &Scope::default());
            self.resolve(value);
        }
    }

    /// A claim is worth what it says; a dead one is noted.
    fn resolve(&mut self, value: Value) -> Value {
        let value = match value {
            Value::Claim(path) => super::claims::value(&path, self.reads_both_versions),
            other => other,
        };
        if let Value::Dead(why) = &value {
            self.dead.insert(why.clone());
        }
        value
    }
}

pub(super) fn everybody<T: VisitMut + Clone + Display>(part: &T) -> String {
    format!("{} is true of other people's rows too", without_texts(part))
}

pub(super) fn about<T: VisitMut + Clone + Display>(part: &T) -> String {
    format!("{} asks about the caller, not about the row", without_texts(part))
}

fn about_caller(expression: &Expr) -> Truth {
    Truth::new(Width::Caller, Width::Caller, &about(expression))
}

pub(super) fn nobody_asked<T: VisitMut + Clone + Display>(part: &T) -> String {
    format!("{} finds rows of other people too: it does not depend on the caller", without_texts(part))
}

pub(super) fn sent(what: &str) -> String {
    format!("the caller chooses {what}")
}

fn unread<T: VisitMut + Clone + Display>(part: &T) -> Truth {
    unread_text(&without_texts(part))
}

fn unread_text(text: &str) -> Truth {
    Truth::new(Width::Unknown, Width::Unknown, text)
}

fn unread_function(function: &SqlFunction) -> Truth {
    unread_text(&call_of(function))
}

pub(super) fn call_of(function: &SqlFunction) -> String {
    format!("{}.{}()", function.schema, function.name)
}
