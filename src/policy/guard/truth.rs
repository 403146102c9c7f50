//! What lets a row through where an expression is true, and where it is false.

use super::super::claims;
use super::super::syntax::{arguments, column, is_containment, is_named, literal, literals, reads_tables, strip};
use super::{
    Guard, Level, Scope, Truth, Value, Width, about, about_caller, everybody, nobody_asked, sent, unread,
    unread_function,
};
use sqlparser::ast::{BinaryOperator, Expr, Function, UnaryOperator, Value as Literal};

impl Guard<'_> {
    /// `ids`: the columns of the row that say whose it is.
    pub(super) fn truth(&mut self, expression: &Expr, scope: &Scope, ids: &[String]) -> Truth {
        match expression {
            Expr::Nested(inner) | Expr::Cast { expr: inner, .. } => self.truth(inner, scope, ids),
            Expr::UnaryOp { op: UnaryOperator::Not, expr } => self.truth(expr, scope, ids).not(),
            Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
                self.truth(left, scope, ids).and(self.truth(right, scope, ids))
            }
            Expr::BinaryOp { left, op: BinaryOperator::Or, right } => {
                self.truth(left, scope, ids).or(self.truth(right, scope, ids))
            }
            Expr::Value(literal) => match &literal.value {
                Literal::Boolean(true) => Truth::new(Width::Open, Width::Never, "it is always true"),
                Literal::Boolean(false) => Truth::new(Width::Never, Width::Open, "it is always true"),
                _ => Truth::new(Width::Never, Width::Never, ""),
            },
            Expr::IsTrue(inner) => self.truth(inner, scope, ids),
            Expr::IsFalse(inner) => self.truth(inner, scope, ids).not(),
            // Null passes as well.
            Expr::IsNotTrue(inner) => or_null(expression, self.truth(inner, scope, ids).not()),
            Expr::IsNotFalse(inner) => or_null(expression, self.truth(inner, scope, ids)),
            Expr::IsNull(inner) => self.is_null(expression, inner, scope, ids),
            Expr::IsNotNull(inner) => self.is_null(expression, inner, scope, ids).not(),
            // As the server writes `like`.
            Expr::BinaryOp { left, op: BinaryOperator::PGLikeMatch | BinaryOperator::PGILikeMatch, right } => {
                self.like(expression, left, right, scope)
            }
            Expr::BinaryOp { left, op: BinaryOperator::PGNotLikeMatch | BinaryOperator::PGNotILikeMatch, right } => {
                self.like(expression, left, right, scope).not()
            }
            Expr::BinaryOp { left, op, right } => self.compare(expression, left, op, right, scope),
            Expr::IsNotDistinctFrom(left, right) => self.compare(expression, left, &BinaryOperator::Eq, right, scope),
            Expr::IsDistinctFrom(left, right) => self.compare(expression, left, &BinaryOperator::NotEq, right, scope),
            Expr::AnyOp { left, compare_op, right, .. } => self.compare(expression, left, compare_op, right, scope),
            // `<> all` is `not (= any)`. `= all` holds of an empty list.
            Expr::AllOp { left, compare_op: BinaryOperator::NotEq, right } => {
                self.compare(expression, left, &BinaryOperator::Eq, right, scope).not()
            }
            Expr::AllOp { .. } => Truth::new(Width::Open, Width::Open, &everybody(expression)),
            Expr::InSubquery { expr, subquery, negated } => {
                let query = Expr::Subquery(subquery.clone());
                let truth = self.compare(expression, expr, &BinaryOperator::Eq, &query, scope);
                if *negated { truth.not() } else { truth }
            }
            Expr::InList { expr, list, negated } => {
                let list = Expr::Tuple(list.clone());
                let truth = self.compare(expression, expr, &BinaryOperator::Eq, &list, scope);
                if *negated { truth.not() } else { truth }
            }
            Expr::Like { negated, expr, pattern, .. } | Expr::ILike { negated, expr, pattern, .. } => {
                let truth = self.like(expression, expr, pattern, scope);
                if *negated { truth.not() } else { truth }
            }
            Expr::Exists { subquery, negated } => {
                let truth = self.exists(subquery, scope);
                if *negated { truth.not() } else { truth }
            }
            Expr::Case { operand, conditions, else_result, .. } => {
                let mut whole = Truth::new(Width::Never, Width::Never, "");
                let mut passed = Truth::new(Width::Open, Width::Open, "");
                for branch in conditions {
                    let condition = match operand {
                        Some(operand) => {
                            self.compare(expression, operand, &BinaryOperator::Eq, &branch.condition, scope)
                        }
                        None => self.truth(&branch.condition, scope, ids),
                    };
                    let result = self.truth(&branch.result, scope, ids);
                    whole = either(whole, chain(&passed, &condition.when, result));
                    passed.when = passed.when.narrower(condition.unless);
                }
                match else_result {
                    Some(result) => {
                        let result = self.truth(result, scope, ids);
                        let open = Level::new(Width::Open, "");
                        either(whole, chain(&passed, &open, result))
                    }
                    None => whole,
                }
            }
            Expr::Function(function) if is_named(&function.name, "coalesce") => arguments(function)
                .into_iter()
                .map(|argument| self.truth(argument, scope, ids))
                .reduce(either)
                .unwrap_or_else(|| Truth::new(Width::Unknown, Width::Unknown, "")),
            Expr::Function(function) => self.call(expression, function, scope),
            Expr::Subquery(query) => self.truth_of_query(query, scope),
            _ => {
                let value = self.value(expression, scope);
                self.bare(expression, value)
            }
        }
    }

    /// A boolean by itself.
    pub(super) fn bare(&mut self, expression: &Expr, value: Value) -> Truth {
        match self.resolve(value) {
            Value::Row => Truth::new(Width::Chosen, Width::Open, &everybody(expression)),
            Value::Const | Value::Other => Truth::new(Width::Open, Width::Open, &everybody(expression)),
            Value::Identity | Value::Attribute => about_caller(expression),
            Value::OfCaller(what) => Truth::new(Width::Open, Width::Open, &sent(&what)),
            Value::Dead(_) | Value::Claim(_) => Truth::new(Width::Never, Width::Never, ""),
            Value::Unknown(what) => Truth::new(Width::Unknown, Width::Unknown, &what),
        }
    }

    pub(super) fn is_null(&mut self, expression: &Expr, inner: &Expr, scope: &Scope, ids: &[String]) -> Truth {
        if let Expr::Subquery(query) = strip(inner)
            && reads_tables(query)
        {
            return self.exists(query, scope).not();
        }
        let value = self.value(inner, scope);
        match self.resolve(value) {
            // Rows that belong to no organization are for all of them; that a row belongs to one is true of all others.
            Value::Row => {
                let is_id = column(inner).is_some_and(|name| ids.contains(&name));
                let when = if is_id { Width::Chosen } else { Width::Open };
                Truth::new(when, Width::Open, &everybody(expression))
            }
            Value::Dead(_) => Truth::new(Width::Open, Width::Never, &everybody(expression)),
            value => self.bare(expression, value),
        }
    }

    /// Every comparison, with a list or a subquery on either side too.
    pub(super) fn compare(
        &mut self,
        whole: &Expr,
        left: &Expr,
        op: &BinaryOperator,
        right: &Expr,
        scope: &Scope,
    ) -> Truth {
        if let Some(truth) = self.compare_with_query(left, op, right, scope) {
            return truth;
        }
        let (raw, other) = (self.value(left, scope), self.value(right, scope));
        for (claim, text) in [(&raw, right), (&other, left)] {
            let Value::Claim(path) = claim else { continue };
            let texts = literals(text);
            if let Some(why) = texts.iter().map(|text| claims::never(path, text)).collect::<Option<Vec<_>>>()
                && !why.is_empty()
            {
                self.dead.extend(why);
                return Truth::new(Width::Never, Width::Never, "");
            }
            let is_role = matches!(path.as_slice(), [name] if name == "role");
            if is_role && !texts.is_empty() && texts.iter().all(|text| claims::is_no_api_role(text)) {
                return equality(op, Truth::new(Width::Never, Width::Caller, &about(whole)));
            }
        }
        if matches!(op, BinaryOperator::Eq | BinaryOperator::NotEq)
            && let (Some(one), Some(two)) = (literal(left), literal(right))
        {
            let (when, unless) = if one == two { (Width::Open, Width::Never) } else { (Width::Never, Width::Open) };
            return equality(op, Truth::new(when, unless, "it is always true"));
        }
        let (raw, other) = (self.resolve(raw), self.resolve(other));
        let says_all = everybody(whole);
        let truth = match (raw, other) {
            (Value::Unknown(what), _) | (_, Value::Unknown(what)) => {
                return Truth::new(Width::Unknown, Width::Unknown, &what);
            }
            (Value::Dead(_), _) | (_, Value::Dead(_)) => return Truth::new(Width::Never, Width::Never, ""),
            (Value::OfCaller(what), _) | (_, Value::OfCaller(what)) => {
                return Truth::new(Width::Open, Width::Open, &sent(&what));
            }
            (Value::Row, Value::Identity) | (Value::Identity, Value::Row) => {
                Truth::new(Width::Bound, Width::Open, &says_all)
            }
            (Value::Row, Value::Row) if strip(left) == strip(right) => Truth::new(Width::Open, Width::Never, &says_all),
            (Value::Row, Value::Const | Value::Row | Value::Attribute)
            | (Value::Const | Value::Attribute, Value::Row) => Truth::new(Width::Chosen, Width::Open, &says_all),
            (Value::Row, Value::Other) | (Value::Other, Value::Row) => {
                Truth::new(Width::Open, Width::Open, &nobody_asked(whole))
            }
            (Value::Identity, Value::Const) | (Value::Const, Value::Identity) => {
                Truth { when: Level::new(Width::Chosen, ""), unless: Level::new(Width::Caller, about(whole)) }
            }
            (Value::Identity | Value::Attribute, _) | (_, Value::Identity | Value::Attribute) => about_caller(whole),
            _ => Truth::new(Width::Open, Width::Open, &says_all),
        };
        if is_containment(op) {
            return truth;
        }
        match op {
            BinaryOperator::NotEq => truth.not(),
            // Greater and less choose nothing: `id > 0` is true of all.
            _ => Truth { when: truth.unless.clone().wider(truth.when), unless: truth.unless },
        }
    }

    /// `(select count(*) from …) > 0` and `(select role from … where …) = 'org:admin'`: whether the query finds a row.
    pub(super) fn compare_with_query(
        &mut self,
        left: &Expr,
        op: &BinaryOperator,
        right: &Expr,
        scope: &Scope,
    ) -> Option<Truth> {
        let ((Expr::Subquery(query), other) | (other, Expr::Subquery(query))) = (strip(left), strip(right)) else {
            return None;
        };
        let number = literal(other)?;
        if !reads_tables(query) {
            return None;
        }
        let finds = self.exists(query, scope);
        let none = (number == "0" && matches!(op, BinaryOperator::Eq | BinaryOperator::LtEq))
            || matches!(op, BinaryOperator::Lt);
        Some(if none { finds.not() } else { finds })
    }

    pub(super) fn like(&mut self, whole: &Expr, expression: &Expr, pattern: &Expr, scope: &Scope) -> Truth {
        let begins = literal(pattern).map(|text| !text.starts_with(['%', '_']) && !text.is_empty());
        let truth = self.compare(whole, expression, &BinaryOperator::Eq, pattern, scope);
        match begins {
            Some(false) => Truth::new(Width::Open, Width::Never, &everybody(whole)),
            _ => truth,
        }
    }

    /// A function that says yes or no.
    pub(super) fn call(&mut self, expression: &Expr, function: &Function, scope: &Scope) -> Truth {
        let given: Vec<Value> = arguments(function).into_iter().map(|argument| self.value(argument, scope)).collect();
        if is_named(&function.name, "starts_with") {
            let [one, two] = arguments(function)[..] else { return unread(expression) };
            return self.compare(expression, one, &BinaryOperator::Eq, two, scope);
        }
        if let Some(found) = self.find(&function.name, given.len(), scope) {
            let Some(body) = self.body(found) else { return unread_function(found) };
            let scope = self.scope_of(found, given);
            return self.deeper(|guard| guard.truth_of_query(&body, &scope)).unwrap_or_else(|| unread_function(found));
        }
        let value = self.value_of_call(function, scope);
        match value {
            // What a function of two things says of them is not known here.
            Value::Identity if given.contains(&Value::Row) => unread(expression),
            value => self.bare(expression, value),
        }
    }
}

fn equality(op: &BinaryOperator, truth: Truth) -> Truth {
    if *op == BinaryOperator::NotEq { truth.not() } else { truth }
}

/// One of several results of a `case` or a `coalesce`.
fn either(one: Truth, other: Truth) -> Truth {
    Truth { when: one.when.wider(other.when), unless: one.unless.wider(other.unless) }
}

/// A branch of a `case`: those before it were false, and its condition is true.
fn chain(passed: &Truth, condition: &Level, result: Truth) -> Truth {
    let before = passed.when.clone().narrower(condition.clone());
    Truth { when: before.clone().narrower(result.when), unless: before.narrower(result.unless) }
}

/// For a caller without a user id the comparison is null, and a null passes too.
fn or_null(expression: &Expr, truth: Truth) -> Truth {
    match truth.when.width {
        Width::Open | Width::Caller => truth,
        _ => Truth { when: Level::new(Width::Open, everybody(expression)), unless: truth.unless },
    }
}
