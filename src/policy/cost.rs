//! What a condition costs: functions that run for each row, and columns that want an index.

use super::syntax::{literal, parse_expression};
use sqlparser::ast::{BinaryOperator, Expr, Function, Query, UnaryOperator, Visit, Visitor};
use sqlparser::parser::ParserError;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

/// What a condition is made of.
pub(super) struct Condition<'a> {
    /// The policy's table, as subqueries call it.
    table: &'a str,
    depth: usize,
    /// Every function that is not built in.
    pub(super) functions: BTreeSet<String>,
    /// Those that run for each row.
    pub(super) per_row: BTreeSet<String>,
    /// The table's columns that are held against something other than a constant.
    pub(super) columns: BTreeSet<String>,
    pub(super) has_in_select: bool,
    /// The table's columns that must equal a constant.
    demanded: BTreeMap<String, String>,
    /// The next `in (select …)` stands behind a `not`.
    is_negated: bool,
}

impl<'a> Condition<'a> {
    pub(super) fn new(table: &'a str) -> Condition<'a> {
        let (functions, per_row, columns, demanded) = Default::default();
        Condition { table, depth: 0, functions, per_row, columns, has_in_select: false, demanded, is_negated: false }
    }

    pub(super) fn read(&mut self, expression: &str) -> Result<(), ParserError> {
        let expression = parse_expression(expression)?;
        let _ = expression.visit(self);
        self.demand(&expression);
        Ok(())
    }

    /// What must hold of every row: `bucket_id = 'docs'`.
    fn demand(&mut self, expression: &Expr) {
        match expression {
            Expr::Nested(inner) => self.demand(inner),
            Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
                self.demand(left);
                self.demand(right);
            }
            Expr::BinaryOp { left, op: BinaryOperator::Eq, right } => {
                if let (Some(column), Some(text)) = (self.column(left), literal(right)) {
                    self.demanded.insert(column, text);
                }
            }
            _ => {}
        }
    }

    /// Whether no row can satisfy both.
    pub(super) fn excludes(&self, other: &Condition<'_>) -> bool {
        self.demanded.iter().any(|(column, text)| other.demanded.get(column).is_some_and(|others| others != text))
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
                // Supabase's own take a name apart, and cost nothing.
                let is_cheap = ["storage.", "realtime.", "extensions."].iter().any(|schema| name.starts_with(schema));
                if !is_cheap && (self.depth == 0 || self.names_a_column(function)) {
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
