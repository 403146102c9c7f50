//! Which rows a query finds: anybody's, or the caller's.

use super::super::syntax::{
    conditions, factors, function_arguments, is_aggregate, literal, name_of, parse_expression, parse_query, parts,
    plain_select, projection, reads_mirror,
};
use super::values::column_of;
use super::{Frame, Guard, Level, Scope, Truth, Value, Width, about, everybody, nobody_asked, sent, unread};
use crate::store::policies::{Command, Table};
use sqlparser::ast::{Expr, Query, Select, SetExpr, SetOperator, TableFactor, Value as Literal};
use std::ops::ControlFlow;

impl Guard<'_> {
    /// Whether a query finds a row: narrow if what ties it to our row, or its own rows, are the caller's.
    pub(super) fn exists(&mut self, query: &Query, scope: &Scope) -> Truth {
        let Some(select) = plain_select(query) else {
            return self.rows_of_set(query, scope).map_or_else(
                || unread(query),
                |level| Truth { unless: Level::new(Width::Open, everybody(query)), when: level },
            );
        };
        let own = self.own_rows(select, query, scope);
        let inner = self.within(select, scope, value_of_rows(&own));
        let mut level = Level::new(Width::Open, nobody_asked(query));
        for condition in conditions(select) {
            level = level.narrower(self.truth(condition, &inner, &[]).when);
        }
        if level.width <= Width::Caller && own.width >= Width::Caller {
            // It is about the caller, not about the row. Callers that a table of the application's names were chosen.
            let width = if own.width == Width::Bound && !reads_mirror(select) { Width::Chosen } else { Width::Caller };
            if !mentions_row(select, scope) {
                level = Level::new(width, about(query));
            }
        }
        let unless =
            Level::new(if mentions_row(select, scope) { Width::Open } else { Width::Caller }, everybody(query));
        Truth { when: level, unless }
    }

    /// A query that stands for a boolean: `select f()`, or `select m.role = 'x' from … where …`.
    pub(super) fn truth_of_query(&mut self, query: &Query, scope: &Scope) -> Truth {
        let Some(select) = plain_select(query) else { return unread(query) };
        let projected = projection(select);
        if select.from.is_empty() && select.selection.is_none() {
            return match projected {
                Some(expression) => self.truth(expression, scope, &[]),
                None => unread(query),
            };
        }
        let own = self.own_rows(select, query, scope);
        let inner = self.within(select, scope, value_of_rows(&own));
        let found = self.exists(query, scope);
        match projected {
            Some(expression) if !is_aggregate(expression) && literal(expression).is_none() => {
                found.and(self.truth(expression, &inner, &[]))
            }
            _ => found,
        }
    }

    /// How wide a query's rows are by themselves, whatever row it is asked for.
    pub(super) fn rows(&mut self, query: &Query, scope: &Scope) -> Level {
        match plain_select(query) {
            Some(select) => self.own_rows(select, query, scope),
            None => self.rows_of_set(query, scope).unwrap_or_else(|| Level::new(Width::Unknown, "")),
        }
    }

    /// Of `union` and its like.
    pub(super) fn rows_of_set(&mut self, query: &Query, scope: &Scope) -> Option<Level> {
        let of = |side: &SetExpr| Query {
            body: Box::new(side.clone()),
            order_by: None,
            limit_clause: None,
            fetch: None,
            ..query.clone()
        };
        match query.body.as_ref() {
            SetExpr::Query(inner) => Some(self.rows(inner, scope)),
            SetExpr::SetOperation { left, op, right, .. } => {
                let (one, other) = (self.rows(&of(left), scope), self.rows(&of(right), scope));
                match op {
                    SetOperator::Union => Some(one.wider(other)),
                    SetOperator::Intersect => Some(one.narrower(other)),
                    SetOperator::Except | SetOperator::Minus => Some(one),
                }
            }
            _ => None,
        }
    }

    pub(super) fn own_rows(&mut self, select: &Select, query: &Query, scope: &Scope) -> Level {
        // Rows of queries around it bind nothing here.
        let mut outer = scope.clone();
        outer.frames.iter_mut().for_each(|frame| frame.value = Some(Value::Other));
        for value in outer.arguments.values_mut().filter(|value| **value == Value::Row) {
            *value = Value::Other;
        }
        let mut level = Level::new(Width::Open, nobody_asked(query));
        for factor in factors(select) {
            level = level.narrower(self.relation(factor, query, &outer));
        }
        let names = factors(select).filter_map(name_of).collect();
        outer.frames.push(Frame { names, ..Frame::default() });
        for condition in conditions(select) {
            level = level.narrower(self.truth(condition, &outer, &[]).when);
        }
        level
    }

    /// The scope of a query's expressions.
    pub(super) fn within(&self, select: &Select, scope: &Scope, value: Value) -> Scope {
        let mut inner = scope.clone();
        let names = factors(select).filter_map(name_of).collect();
        inner.frames.push(Frame { names, value: Some(value), is_mirror: reads_mirror(select) });
        inner
    }

    /// How wide a table of a query is for the caller.
    pub(super) fn relation(&mut self, factor: &TableFactor, query: &Query, scope: &Scope) -> Level {
        match factor {
            TableFactor::Derived { subquery, .. } => self.rows(subquery, scope),
            TableFactor::Table { name, args: Some(_), .. } | TableFactor::Function { name, .. } => {
                let value = self.value_of_name(name, function_arguments(factor), scope);
                self.level_of(value)
            }
            TableFactor::UNNEST { array_exprs, .. } => {
                let values: Vec<Value> = array_exprs.iter().map(|array| self.value(array, scope)).collect();
                let value = values.into_iter().reduce(Value::join).unwrap_or(Value::Const);
                self.level_of(value)
            }
            TableFactor::Table { name, .. } => {
                let names = parts(name);
                if let [name] = names.as_slice()
                    && let Some(with) = &query.with
                    && let Some(common) = with.cte_tables.iter().find(|common| common.alias.name.value == *name)
                {
                    return self.rows(&common.query, scope);
                }
                self.table(&names, scope)
            }
            _ => Level::new(Width::Unknown, factor.to_string()),
        }
    }

    pub(super) fn level_of(&mut self, value: Value) -> Level {
        match self.resolve(value) {
            Value::Identity => Level::new(Width::Bound, ""),
            Value::Attribute => Level::new(Width::Caller, ""),
            Value::Unknown(what) => Level::new(Width::Unknown, what),
            Value::OfCaller(what) => Level::new(Width::Open, sent(&what)),
            Value::Dead(_) => Level::new(Width::Never, ""),
            _ => Level::new(Width::Open, "it asks for any row"),
        }
    }

    /// What policies let the caller see of a table. Of the mirror's own tables they show other people too.
    pub(super) fn table(&mut self, names: &[&str], scope: &Scope) -> Level {
        let schemas: Vec<&str> = match names {
            [schema, _] => vec![schema],
            _ => scope.search_path.iter().map(String::as_str).collect(),
        };
        let Some(relation) = names.last() else { return Level::new(Width::Unknown, "") };
        if schemas.contains(&"clerk_rls") && matches!(*relation, "caller" | "caller_memberships") {
            return Level::new(Width::Bound, "");
        }
        if schemas.contains(&"clerk") {
            return Level::new(Width::Open, format!("it asks for any row of clerk.{relation}"));
        }
        let catalog = self.catalog;
        if let Some(view) =
            catalog.views.iter().find(|view| view.relation == *relation && schemas.contains(&view.schema.as_str()))
        {
            let as_owner = scope.as_owner || !view.security_invoker;
            let Ok(query) = parse_query(&view.definition) else { return Level::new(Width::Unknown, *relation) };
            let scope = Scope { as_owner, ..Scope::default() };
            let level = self.deeper(|guard| guard.rows(&query, &scope));
            return level.unwrap_or_else(|| Level::new(Width::Unknown, *relation));
        }
        let open = Level::new(Width::Open, format!("it asks for any row of {}", names.join(".")));
        let Some(table) =
            catalog.tables.iter().find(|table| table.relation == *relation && schemas.contains(&table.schema.as_str()))
        else {
            return open;
        };
        if scope.as_owner || !table.row_security {
            return open;
        }
        let key = (table.schema.clone(), table.relation.clone());
        if self.path.contains(&key) {
            self.is_recursive |= self.path.first() == Some(&key);
            return Level::new(Width::Unknown, names.join("."));
        }
        self.path.push(key);
        let level = self.deeper(|guard| guard.selected(table));
        self.path.pop();
        level.unwrap_or_else(|| Level::new(Width::Unknown, names.join(".")))
    }

    /// What the permissive policies for reading allow together.
    pub(super) fn selected(&mut self, table: &Table) -> Level {
        let policies = table.policies.iter().filter(|policy| {
            policy.permissive && matches!(policy.command, Command::Select | Command::All) && policy.is_for_callers()
        });
        let mut level = Level::new(Width::Never, "");
        for policy in policies {
            let expression = policy.using.as_deref().map(parse_expression);
            level = level.wider(match expression {
                Some(Ok(expression)) => self.condition(table, &expression),
                _ => Level::new(Width::Unknown, policy.name.clone()),
            });
        }
        // What it shows to nobody binds nobody.
        if level.width == Width::Never { Level::new(Width::Bound, "") } else { level }
    }
}

pub(super) fn value_of_rows(level: &Level) -> Value {
    match level.width {
        Width::Bound | Width::Never => Value::Identity,
        Width::Unknown => Value::Unknown(level.because.clone()),
        Width::Open | Width::Caller | Width::Chosen => Value::Other,
    }
}

/// Whether a query is about the row that is asked for: a column of it, or an argument that stands for it.
pub(super) fn mentions_row(select: &Select, scope: &Scope) -> bool {
    let inner: Vec<String> = factors(select).filter_map(name_of).collect();
    let is_row = |name: &str| scope.arguments.get(name) == Some(&Value::Row);
    sqlparser::ast::visit_expressions(select, |expression| {
        let found = match expression {
            Expr::CompoundIdentifier(names) => match names.as_slice() {
                [.., table, name] => {
                    let frame = scope.frames.iter().rev().find(|frame| frame.names.contains(&table.value));
                    !inner.contains(&table.value)
                        && (frame.is_some_and(|frame| column_of(Some(frame), &name.value) == Value::Row)
                            || (frame.is_none() && is_row(&name.value)))
                }
                _ => false,
            },
            Expr::Identifier(name) => is_row(&name.value),
            Expr::Value(literal) => matches!(&literal.value, Literal::Placeholder(name) if is_row(name)),
            _ => false,
        };
        if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .is_break()
}
