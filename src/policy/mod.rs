//! Policies over the mirror for the application's own tables: writing them, and finding what is wrong with them.

pub mod check;
mod claims;
mod cost;
mod guard;
pub mod print;
mod syntax;

use std::str::FromStr;

/// A table as a person names it: `documents`, or `app.documents`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableName {
    schema: String,
    name: String,
}

impl TableName {
    /// The schema and the name.
    pub(crate) fn parts(&self) -> (&str, &str) {
        (&self.schema, &self.name)
    }
}

impl FromStr for TableName {
    type Err = String;

    fn from_str(text: &str) -> Result<TableName, String> {
        let (schema, name) = text.split_once('.').unwrap_or(("public", text));
        if schema.is_empty() || name.is_empty() {
            return Err("a table must be named like documents or app.documents".to_owned());
        }
        if text.contains(char::is_control) {
            return Err("a name with control characters cannot be printed: rename the table".to_owned());
        }
        Ok(TableName { schema: schema.to_owned(), name: name.to_owned() })
    }
}

/// As SQL takes it, whatever the names are.
impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&print::qualified(&self.schema, &self.name))
    }
}
