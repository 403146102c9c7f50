//! Reading SQL as the server writes it: the parts of expressions and queries by name.

use sqlparser::ast::{
    BinaryOperator, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, JoinConstraint, JoinOperator,
    ObjectName, Query, Select, SelectItem, SetExpr, TableFactor, TableWithJoins, Value as Literal, VisitMut,
};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::{Parser, ParserError};
use std::fmt::Display;
use std::ops::ControlFlow;
/// An expression or a query without its texts, which may be somebody's address.
pub(super) fn without_texts<T: VisitMut + Clone + Display>(part: &T) -> String {
    let mut part = part.clone();
    let _ = sqlparser::ast::visit_expressions_mut(&mut part, |expression| {
        if let Expr::Value(literal) = expression
            && let Literal::SingleQuotedString(text) = &mut literal.value
        {
            "…".clone_into(text);
        }
        ControlFlow::<()>::Continue(())
    });
    part.to_string()
}

pub(super) fn parse_expression(text: &str) -> Result<Expr, ParserError> {
    Parser::new(&PostgreSqlDialect {}).try_with_sql(text)?.parse_expr()
}

pub(super) fn parse_query(text: &str) -> Result<Query, ParserError> {
    Ok(*Parser::new(&PostgreSqlDialect {}).try_with_sql(text.trim().trim_end_matches(';'))?.parse_query()?)
}

/// The one query that a body in SQL or PL/pgSQL answers with.
pub(super) fn single_query(body: &str) -> Option<String> {
    let mut text = body.trim();
    let mut is_block = false;
    for opening in ["begin atomic", "begin"] {
        if let Some(inner) = strip_word(text, opening) {
            let inner = inner.trim_end().trim_end_matches(';').trim_end();
            text = inner.get(..inner.len().checked_sub(3)?)?.trim();
            is_block = true;
            break;
        }
    }
    let text = text.trim_end_matches(';');
    if text.contains(';') {
        return None;
    }
    if let Some(query) = strip_word(text, "return query") {
        return Some(query.to_owned());
    }
    if let Some(expression) = strip_word(text, "return") {
        return Some(format!("select {expression}"));
    }
    (!is_block || strip_word(text, "select").is_some()).then(|| text.to_owned())
}

/// What follows the words, in any spelling.
pub(super) fn strip_word<'t>(text: &'t str, words: &str) -> Option<&'t str> {
    let mut rest = text.trim_start();
    for word in words.split(' ') {
        let begins = rest.get(..word.len())?;
        rest = rest.get(word.len()..)?;
        if !begins.eq_ignore_ascii_case(word) || rest.starts_with(|c: char| c.is_alphanumeric() || c == '_') {
            return None;
        }
        rest = rest.trim_start();
    }
    Some(rest)
}

pub(super) fn strip(expression: &Expr) -> &Expr {
    match expression {
        Expr::Nested(inner) | Expr::Cast { expr: inner, .. } => strip(inner),
        other => other,
    }
}

/// A literal's text.
pub(super) fn literal(expression: &Expr) -> Option<String> {
    match strip(expression) {
        Expr::Value(literal) => match &literal.value {
            Literal::Number(text, _) => Some(text.clone()),
            Literal::SingleQuotedString(text) | Literal::EscapedStringLiteral(text) => Some(text.clone()),
            Literal::Boolean(value) => Some(value.to_string()),
            _ => None,
        },
        _ => None,
    }
}

/// The keys that `->`, `#>` or a subscript asks for.
pub(super) fn keys(expression: &Expr) -> Vec<String> {
    match strip(expression) {
        Expr::Array(array) => array.elem.iter().filter_map(literal).collect(),
        other => {
            let Some(text) = literal(other) else { return vec!["?".to_owned()] };
            match text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
                Some(list) => list.split(',').map(|key| key.trim().trim_matches('"').to_owned()).collect(),
                None => vec![text],
            }
        }
    }
}

pub(super) fn column(expression: &Expr) -> Option<String> {
    match strip(expression) {
        Expr::Identifier(name) => Some(name.value.clone()),
        Expr::CompoundIdentifier(names) => names.last().map(|name| name.value.clone()),
        _ => None,
    }
}

pub(super) fn is_containment(op: &BinaryOperator) -> bool {
    !matches!(
        op,
        BinaryOperator::NotEq
            | BinaryOperator::Gt
            | BinaryOperator::Lt
            | BinaryOperator::GtEq
            | BinaryOperator::LtEq
            | BinaryOperator::PGNotLikeMatch
            | BinaryOperator::PGNotILikeMatch
            | BinaryOperator::PGRegexNotMatch
            | BinaryOperator::PGRegexNotIMatch
    )
}

pub(super) fn is_named(name: &ObjectName, wanted: &str) -> bool {
    matches!(parts(name).as_slice(), [name] | ["pg_catalog", name] if name.eq_ignore_ascii_case(wanted))
}

pub(super) fn parts(name: &ObjectName) -> Vec<&str> {
    name.0.iter().filter_map(|part| part.as_ident()).map(|name| name.value.as_str()).collect()
}

pub(super) fn arguments(function: &Function) -> Vec<&Expr> {
    match &function.args {
        FunctionArguments::List(list) => list.args.iter().filter_map(argument).collect(),
        FunctionArguments::None | FunctionArguments::Subquery(_) => Vec::new(),
    }
}

pub(super) fn argument(argument: &FunctionArg) -> Option<&Expr> {
    match argument {
        FunctionArg::Named { arg: FunctionArgExpr::Expr(expression), .. }
        | FunctionArg::ExprNamed { arg: FunctionArgExpr::Expr(expression), .. }
        | FunctionArg::Unnamed(FunctionArgExpr::Expr(expression)) => Some(expression),
        _ => None,
    }
}

pub(super) fn function_arguments(factor: &TableFactor) -> Vec<&Expr> {
    match factor {
        TableFactor::Table { args: Some(list), .. } => list.args.iter().filter_map(argument).collect(),
        TableFactor::Function { args, .. } => args.iter().filter_map(argument).collect(),
        _ => Vec::new(),
    }
}

pub(super) fn is_aggregate(expression: &Expr) -> bool {
    let Expr::Function(function) = strip(expression) else { return false };
    ["count", "max", "min", "array_agg", "bool_or", "every", "bool_and"]
        .iter()
        .any(|name| is_named(&function.name, name))
}

/// The select, if it is no `union` or anything rarer.
pub(super) fn plain_select(query: &Query) -> Option<&Select> {
    match query.body.as_ref() {
        SetExpr::Select(select) => Some(select),
        SetExpr::Query(inner) if query.with.is_none() => plain_select(inner),
        _ => None,
    }
}

/// Its only column.
pub(super) fn projection(select: &Select) -> Option<&Expr> {
    match select.projection.as_slice() {
        [SelectItem::UnnamedExpr(expression) | SelectItem::ExprWithAlias { expr: expression, .. }] => Some(expression),
        _ => None,
    }
}

pub(super) fn reads_tables(query: &Query) -> bool {
    plain_select(query).is_some_and(|select| !select.from.is_empty())
}

pub(super) fn reads_mirror(select: &Select) -> bool {
    factors(select).any(|factor| match factor {
        TableFactor::Table { name, .. } | TableFactor::Function { name, .. } => {
            matches!(parts(name).as_slice(), ["clerk" | "clerk_rls", _])
        }
        _ => false,
    })
}

/// All tables of a query, those of groups of joins as well.
pub(super) fn factors(select: &Select) -> impl Iterator<Item = &TableFactor> {
    let mut found = Vec::new();
    for from in &select.from {
        collect(&from.relation, &mut found);
        from.joins.iter().for_each(|join| collect(&join.relation, &mut found));
    }
    found.into_iter()
}

pub(super) fn collect<'q>(factor: &'q TableFactor, found: &mut Vec<&'q TableFactor>) {
    match factor {
        TableFactor::NestedJoin { table_with_joins: of, .. } => {
            collect(&of.relation, found);
            of.joins.iter().for_each(|join| collect(&join.relation, found));
        }
        other => found.push(other),
    }
}

/// What must hold of a query's rows.
pub(super) fn conditions(select: &Select) -> Vec<&Expr> {
    fn joined<'q>(from: &'q TableWithJoins, found: &mut Vec<&'q Expr>) {
        if let TableFactor::NestedJoin { table_with_joins, .. } = &from.relation {
            joined(table_with_joins, found);
        }
        for join in &from.joins {
            if let JoinOperator::Join(JoinConstraint::On(on)) | JoinOperator::Inner(JoinConstraint::On(on)) =
                &join.join_operator
            {
                found.push(on);
            }
        }
    }
    let mut found: Vec<&Expr> = select.selection.iter().collect();
    select.from.iter().for_each(|from| joined(from, &mut found));
    found
}

pub(super) fn name_of(factor: &TableFactor) -> Option<String> {
    let (alias, name) = match factor {
        TableFactor::Table { alias, name, .. } | TableFactor::Function { alias, name, .. } => (alias, Some(name)),
        TableFactor::Derived { alias, .. } | TableFactor::UNNEST { alias, .. } => (alias, None),
        _ => return None,
    };
    let own = name.and_then(|name| parts(name).last().map(|name| (*name).to_owned()));
    alias.as_ref().map(|alias| alias.name.value.clone()).or(own)
}

/// Whether the condition reads claims of version 2, or which version it is.
pub(super) fn reads_both(expression: &Expr) -> bool {
    sqlparser::ast::visit_expressions(expression, |part| {
        let asks = match part {
            Expr::BinaryOp {
                op:
                    BinaryOperator::Arrow
                    | BinaryOperator::LongArrow
                    | BinaryOperator::HashArrow
                    | BinaryOperator::HashLongArrow,
                right,
                ..
            } => keys(right).first().is_some_and(|key| key == "o" || key == "v"),
            _ => false,
        };
        if asks { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .is_break()
}

/// The texts of a literal or of a list of them.
pub(super) fn literals(expression: &Expr) -> Vec<String> {
    match strip(expression) {
        Expr::Tuple(list) => list.iter().flat_map(literals).collect(),
        Expr::Array(array) => array.elem.iter().flat_map(literals).collect(),
        other => literal(other).into_iter().collect(),
    }
}
