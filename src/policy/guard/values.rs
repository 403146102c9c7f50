//! What an expression is made from, by way of claims and functions.

use super::super::syntax::{
    arguments, is_named, keys, literal, parse_query, parts, plain_select, projection, single_query, without_texts,
};
use super::rows::{mentions_row, value_of_rows};
use super::{DEEPEST, Frame, Guard, Scope, SqlFunction, Value, call_of};
use sqlparser::ast::{
    AccessExpr, BinaryOperator, Expr, Function, FunctionArguments, ObjectName, Query, Subscript, Value as Literal,
};
use std::collections::BTreeMap;

impl<'a> Guard<'a> {
    pub(super) fn value(&mut self, expression: &Expr, scope: &Scope) -> Value {
        match expression {
            Expr::Nested(inner)
            | Expr::Cast { expr: inner, .. }
            | Expr::Collate { expr: inner, .. }
            | Expr::UnaryOp { expr: inner, .. } => self.value(inner, scope),
            Expr::Value(literal) => match &literal.value {
                Literal::Placeholder(name) => scope.arguments.get(name).cloned().unwrap_or(Value::Const),
                _ => Value::Const,
            },
            Expr::TypedString(_) | Expr::Interval(_) => Value::Const,
            Expr::Identifier(name) => {
                let innermost = if scope.search_path.is_empty() { None } else { scope.arguments.get(&name.value) };
                innermost.cloned().unwrap_or_else(|| column_of(scope.frames.last(), &name.value))
            }
            Expr::CompoundIdentifier(names) => {
                let [.., table, name] = names.as_slice() else { return Value::Unknown(without_texts(expression)) };
                let frame = scope.frames.iter().rev().find(|frame| frame.names.contains(&table.value));
                match (frame, scope.arguments.get(&name.value)) {
                    (Some(frame), _) => column_of(Some(frame), &name.value),
                    (None, Some(argument)) => argument.clone(),
                    (None, None) => Value::Unknown(without_texts(expression)),
                }
            }
            Expr::BinaryOp { left, op, right } => {
                let (one, other) = (self.value(left, scope), self.value(right, scope));
                match (op, one) {
                    (
                        BinaryOperator::Arrow
                        | BinaryOperator::LongArrow
                        | BinaryOperator::HashArrow
                        | BinaryOperator::HashLongArrow,
                        Value::Claim(mut path),
                    ) => {
                        path.extend(keys(right));
                        Value::Claim(path)
                    }
                    (_, one) => self.join(one, other),
                }
            }
            Expr::CompoundFieldAccess { root, access_chain } => {
                let value = self.value(root, scope);
                access_chain.iter().fold(value, |value, access| match (value, access) {
                    (Value::Claim(mut path), AccessExpr::Subscript(Subscript::Index { index })) => {
                        path.extend(keys(index));
                        Value::Claim(path)
                    }
                    (value, _) => value,
                })
            }
            Expr::Array(array) => self.joined(&array.elem, scope),
            Expr::Tuple(list) => self.joined(list, scope),
            Expr::Function(function) => self.value_of_call(function, scope),
            Expr::Subquery(query) => self.value_of_query(query, scope),
            Expr::Case { conditions, else_result, .. } => {
                let results: Vec<Expr> = conditions
                    .iter()
                    .map(|branch| branch.result.clone())
                    .chain(else_result.as_deref().cloned())
                    .collect();
                self.joined(&results, scope)
            }
            Expr::AtTimeZone { timestamp: inner, .. }
            | Expr::Extract { expr: inner, .. }
            | Expr::Substring { expr: inner, .. }
            | Expr::Trim { expr: inner, .. }
            | Expr::Overlay { expr: inner, .. }
            | Expr::Position { expr: inner, .. } => self.value(inner, scope),
            Expr::IsNull(inner) | Expr::IsNotNull(inner) => match self.value(inner, scope) {
                Value::Identity => Value::Attribute,
                other => other,
            },
            Expr::Exists { .. } => Value::Attribute,
            _ => Value::Unknown(without_texts(expression)),
        }
    }

    pub(super) fn joined(&mut self, expressions: &[Expr], scope: &Scope) -> Value {
        let values: Vec<Value> = expressions.iter().map(|expression| self.value(expression, scope)).collect();
        values.into_iter().reduce(|one, other| self.join(one, other)).unwrap_or(Value::Const)
    }

    pub(super) fn join(&mut self, one: Value, other: Value) -> Value {
        match (one, other) {
            // The claim itself may be asked for something yet.
            (claim @ Value::Claim(_), Value::Const) | (Value::Const, claim @ Value::Claim(_)) => claim,
            (one, other) => {
                let (one, other) = (self.resolve(one), self.resolve(other));
                one.join(other)
            }
        }
    }

    pub(super) fn value_of_call(&mut self, function: &Function, scope: &Scope) -> Value {
        if let FunctionArguments::Subquery(query) = &function.args {
            return self.value_of_query(query, scope);
        }
        if is_named(&function.name, "current_setting") {
            return setting(arguments(function).first().and_then(|name| literal(name)));
        }
        if is_named(&function.name, "coalesce") {
            // What is always null is no alternative.
            let values: Vec<Value> = arguments(function).iter().map(|argument| self.value(argument, scope)).collect();
            let values: Vec<Value> = values.into_iter().map(|value| self.resolve(value)).collect();
            let (dead, alive): (Vec<Value>, Vec<Value>) =
                values.into_iter().partition(|value| matches!(value, Value::Dead(_)));
            let of = if alive.iter().all(|value| *value == Value::Const) && !dead.is_empty() { dead } else { alive };
            return of.into_iter().reduce(Value::join).unwrap_or(Value::Const);
        }
        if ["jsonb_extract_path_text", "jsonb_extract_path", "json_extract_path_text", "json_extract_path"]
            .iter()
            .any(|name| is_named(&function.name, name))
            && let [root, names @ ..] = arguments(function).as_slice()
            && let Value::Claim(mut path) = self.value(root, scope)
        {
            path.extend(names.iter().filter_map(|name| literal(name)));
            return Value::Claim(path);
        }
        let value = self.value_of_name(&function.name, arguments(function), scope);
        match value {
            Value::Identity if is_named(&function.name, "count") => Value::Attribute,
            value => value,
        }
    }

    pub(super) fn value_of_name(&mut self, name: &ObjectName, given: Vec<&Expr>, scope: &Scope) -> Value {
        match parts(name).as_slice() {
            ["clerk_rls", "active_organization_role"] => return Value::Attribute,
            ["clerk_rls", _] | ["auth", "uid" | "email"] => return Value::Identity,
            ["auth", "jwt"] => return Value::Claim(Vec::new()),
            ["auth", "role"] => return Value::Claim(vec!["role".to_owned()]),
            // The channel that is asked for.
            ["realtime", "topic"] => return column_of(scope.frames.first(), ""),
            [only]
                if matches!(
                    only.to_ascii_lowercase().as_str(),
                    "current_user" | "session_user" | "current_role" | "user"
                ) =>
            {
                return Value::Attribute;
            }
            _ => {}
        }
        let values: Vec<Value> = given.iter().map(|argument| self.value(argument, scope)).collect();
        if let Some(found) = self.find(name, values.len(), scope) {
            let Some(body) = self.body(found) else { return Value::Unknown(call_of(found)) };
            let scope = self.scope_of(found, values);
            let value = self.deeper(|guard| guard.value_of_query(&body, &scope));
            return value.unwrap_or_else(|| Value::Unknown(call_of(found)));
        }
        match parts(name).as_slice() {
            [_] | ["pg_catalog" | "storage" | "extensions" | "public", _] => {
                let values: Vec<Value> = values.into_iter().collect();
                values.into_iter().reduce(|one, other| self.join(one, other)).unwrap_or(Value::Const)
            }
            _ => Value::Unknown(format!("{name}()")),
        }
    }

    pub(super) fn value_of_query(&mut self, query: &Query, scope: &Scope) -> Value {
        let Some(select) = plain_select(query) else {
            return match self.rows_of_set(query, scope) {
                Some(level) => value_of_rows(&level),
                None => Value::Unknown(without_texts(query)),
            };
        };
        let projected = projection(select);
        if select.from.is_empty() {
            return match projected {
                Some(expression) => self.value(expression, scope),
                None => Value::Unknown(without_texts(query)),
            };
        }
        let own = self.own_rows(select, query, scope);
        let value = value_of_rows(&own);
        if value == Value::Other && mentions_row(select, scope) {
            // A row that hangs on ours says no more than ours does.
            let inner = self.within(select, scope, Value::Row);
            return projected.map_or(Value::Row, |expression| self.value(expression, &inner));
        }
        let inner = self.within(select, scope, value.clone());
        match projected {
            Some(Expr::Function(function)) if is_named(&function.name, "count") => Value::Attribute,
            Some(expression) => self.value(expression, &inner),
            None => value,
        }
    }

    pub(super) fn find(&self, name: &ObjectName, given: usize, scope: &Scope) -> Option<&'a SqlFunction> {
        let names = parts(name);
        let schemas: Vec<&str> = match names.as_slice() {
            [schema, _] => vec![schema],
            _ => scope.search_path.iter().map(String::as_str).collect(),
        };
        let name = names.last()?;
        self.catalog.functions.iter().find(|function| {
            function.name == *name && function.arguments.len() == given && schemas.contains(&function.schema.as_str())
        })
    }

    pub(super) fn body(&self, function: &SqlFunction) -> Option<Query> {
        single_query(function.body.as_deref()?).and_then(|text| parse_query(&text).ok())
    }

    pub(super) fn scope_of(&mut self, function: &SqlFunction, given: Vec<Value>) -> Scope {
        let mut arguments = BTreeMap::new();
        for (index, (name, value)) in function.arguments.iter().zip(given).enumerate() {
            let value = self.resolve(value);
            arguments.insert(format!("${}", index + 1), value.clone());
            arguments.insert(name.clone(), value);
        }
        let search_path = match function.search_path.as_slice() {
            // Something must say that we are in a function.
            [] => vec![String::new()],
            path => path.to_vec(),
        };
        Scope { frames: Vec::new(), arguments, as_owner: function.is_definer, search_path }
    }

    pub(super) fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> T) -> Option<T> {
        if self.depth == DEEPEST {
            return None;
        }
        self.depth += 1;
        let read = read(self);
        self.depth -= 1;
        Some(read)
    }
}

pub(super) fn column_of(frame: Option<&Frame>, name: &str) -> Value {
    match frame {
        Some(Frame { value: Some(Value::Identity), is_mirror: true, .. })
            if !(name == "id" || name.ends_with("_id") || matches!(name, "slug" | "email_address")) =>
        {
            Value::Attribute
        }
        Some(Frame { value: Some(value), .. }) => value.clone(),
        _ => Value::Row,
    }
}

pub(super) fn setting(name: Option<String>) -> Value {
    let name = name.unwrap_or_default().to_ascii_lowercase();
    match name.as_str() {
        "request.jwt.claims" | "request.jwt.claim" => Value::Claim(Vec::new()),
        "role" => Value::Attribute,
        _ => match name.strip_prefix("request.jwt.claim.") {
            Some(claim) => Value::Claim(vec![claim.to_owned()]),
            None if name.starts_with("request.") => {
                Value::OfCaller(format!("the setting {name}, which is what they send"))
            }
            // One of the application's own servers sets it.
            None => Value::Identity,
        },
    }
}
