//! `clerk-sync policy print`: policies in the form that keeps the index, asks the mirror once for each query, and leaves the
//! Advisor nothing to say.

use super::TableName;
use crate::store::policies::Target;
use crate::terminal;
use std::fmt::Write as _;

/// Whom the rows of a table are for.
#[derive(clap::Args, Clone, Debug)]
#[group(skip)]
pub struct Policies {
    /// The table: documents, or app.documents
    pub(crate) table: TableName,

    #[command(flatten)]
    owner: Owner,

    /// Only members with this role, such as `org:admin`
    #[arg(long, conflicts_with_all = ["permission", "user_column"])]
    role: Option<String>,

    /// Only members with this permission, such as `org:invoices:read`
    #[arg(long, conflicts_with = "user_column")]
    permission: Option<String>,

    /// Commands to print policies for
    #[arg(long = "for", value_name = "COMMANDS", value_delimiter = ',', default_value = "select,insert,update,delete")]
    commands: Vec<Command>,

    /// Print restrictive policies: they narrow what other policies allow, and allow nothing themselves
    #[arg(long)]
    restrictive: bool,
}

#[derive(clap::Args, Clone, Debug)]
#[group(required = true, multiple = false)]
struct Owner {
    /// The column with the id of the organization that the row belongs to
    #[arg(long, value_name = "COLUMN")]
    organization_column: Option<String>,

    /// The column with the id of the user that the row belongs to
    #[arg(long, value_name = "COLUMN")]
    user_column: Option<String>,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Select,
    Insert,
    Update,
    Delete,
}

impl Command {
    fn name(self) -> &'static str {
        match self {
            Command::Select => "select",
            Command::Insert => "insert",
            Command::Update => "update",
            Command::Delete => "delete",
        }
    }
}

/// Whether an index begins with the column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Index {
    There,
    Missing,
    /// No database was asked.
    Unknown,
}

impl Policies {
    /// The column that says whose a row is.
    pub fn column(&self) -> &str {
        let Owner { organization_column, user_column } = &self.owner;
        organization_column.as_deref().or(user_column.as_deref()).expect("one of both is required")
    }

    /// Why no policies are to be printed for that table, and what to do instead.
    pub(crate) fn refusal(&self) -> Option<String> {
        let (schema, name) = self.table.parts();
        let of_organization = self.owner.organization_column.is_some();
        let condition = match (schema, name) {
            ("storage", "objects") if of_organization => {
                format!("bucket_id = 'BUCKET' and {}", self.condition("(storage.foldername(name))[1]").1)
            }
            ("storage", "objects") => format!("bucket_id = 'BUCKET' and {}", self.condition("owner_id").1),
            ("realtime", "messages") => self.condition("split_part((select realtime.topic()), ':', 2)").1,
            ("clerk" | "clerk_rls" | "clerk_sync", _) => {
                return Some(format!("{} belongs to clerk-sync and has its policies already", self.table));
            }
            ("storage" | "realtime" | "auth" | "extensions" | "vault" | "graphql", _) => {
                return Some(format!("{} belongs to Supabase: you may not create policies on it", self.table));
            }
            _ => return None,
        };
        let (place, named) = match schema {
            "storage" if of_organization => (
                "Storage → Policies of the dashboard, or create policy in a migration",
                ", where files are in a folder named by the organization's id",
            ),
            "storage" => ("Storage → Policies of the dashboard, or create policy in a migration", ""),
            _ => (
                "Realtime → Policies of the dashboard, or create policy in a migration",
                ", where a channel is named org:ID or user:ID",
            ),
        };
        Some(format!(
            "{} belongs to Supabase: you may add policies to it, but not grant rights or create an index. Use {place}, for the role \
             authenticated, with this condition{named}: {condition}",
            self.table
        ))
    }

    /// What is wrong with the table as it is, or with its column.
    pub(crate) fn objection(&self, target: &Target) -> Option<String> {
        let (table, column) = (&self.table, identifier(self.column()));
        if !target.is_owned {
            return Some(format!(
                "{table} belongs to {}, and only its owner may create policies: connect as that role, or leave out DATABASE_URL \
                 and run the output as it",
                target.owner
            ));
        }
        let Some(found) = target.columns.iter().find(|found| found.name == self.column()) else {
            let columns: Vec<String> = target.columns.iter().map(|column| identifier(&column.name)).collect();
            return Some(format!("{table} has no column {column}; it has {}", columns.join(", ")));
        };
        (!found.is_text).then(|| {
            format!(
                "{table}.{column} is {}, and Clerk's ids are text: alter table {table} alter column {column} type text;",
                found.of_type
            )
        })
    }

    /// What is probably a mistake.
    pub(crate) fn warning(&self) -> Option<String> {
        let missing = |what: &str, value: &Option<String>| {
            let value = value.as_ref().filter(|value| !value.starts_with("org:"))?;
            Some(format!(
                "Clerk's {what} begin with org:, and this one does not, so no member can have it. Do you mean org:{value}?"
            ))
        };
        missing("roles", &self.role).or_else(|| missing("permissions", &self.permission))
    }

    /// Who they are for, and what holds of their rows.
    fn condition(&self, column: &str) -> (String, String) {
        match (&self.owner.organization_column, &self.role, &self.permission) {
            (None, ..) => ("owner".to_owned(), format!("{column} = (select clerk_rls.user_id())")),
            (Some(_), None, None) => ("members".to_owned(), is_any(column, "organization_ids()")),
            (Some(_), Some(role), _) => {
                (role.clone(), is_any(column, &format!("organization_ids_by_role({})", literal(role))))
            }
            (Some(_), None, Some(permission)) => {
                let call = format!("organization_ids_by_permission({})", literal(permission));
                (permission.clone(), is_any(column, &call))
            }
        }
    }

    /// The statements, which may be run again: they replace the policies of the same names. That happens in one transaction, because a
    /// restrictive policy that is missing for a moment shows rows that it should hide. The index is made after it, without the lock.
    pub fn sql(&self, index: Index) -> String {
        let table = &self.table;
        let column = identifier(self.column());
        let (who, condition) = self.condition(&column);
        let names: Vec<&str> = self.commands.iter().map(|command| command.name()).collect();
        let mut sql = format!(
            "begin;\n\
             alter table {table} enable row level security;\n\
             grant {} on table {table} to authenticated;  -- some projects grant new tables by themselves, some do not\n",
            names.join(", ")
        );
        let (kind, by) = if self.restrictive { (" as restrictive", "only by") } else { ("", "by") };
        for command in &self.commands {
            let name = command.name();
            let policy = identifier(&format!("{name} {by} {who}"));
            let expressions = match command {
                Command::Select | Command::Delete => format!("using ({condition})"),
                Command::Insert => format!("with check ({condition})"),
                Command::Update => format!("using ({condition})\n  with check ({condition})"),
            };
            write!(
                sql,
                "\ndrop policy if exists {policy} on {table};\n\
                 create policy {policy} on {table}{kind} for {name} to authenticated\n  {expressions};\n"
            )
            .expect("writing to a string cannot fail");
        }
        sql.push_str("commit;\n");
        let reason = match index {
            Index::There => return sql,
            Index::Missing => "Without it each query reads the whole table.",
            Index::Unknown => {
                "Without it each query reads the whole table. Leave it out if an index begins with that column already."
            }
        };
        let name = identifier(&index_name(table.parts().1, self.column()));
        writeln!(sql, "\n-- {reason}\ncreate index if not exists {name} on {table} ({column});")
            .expect("writing to a string cannot fail");
        sql
    }
}

/// The name that Postgres itself gives an index on the column, so that an index which was made without a name is found, too.
fn index_name(table: &str, column: &str) -> String {
    /// Bytes of a name in Postgres, without those of `_` and `_idx`.
    const BYTES: usize = 63 - 5;
    let (mut of_table, mut of_column) = (table.len(), column.len());
    while of_table + of_column > BYTES {
        if of_table > of_column {
            of_table -= 1;
        } else {
            of_column -= 1;
        }
    }
    let cut = |name: &str, bytes| name[..name.floor_char_boundary(bytes)].to_owned();
    format!("{}_{}_idx", cut(table, of_table), cut(column, of_column))
}

/// The one form that uses an index on the column and calls the function once.
fn is_any(column: &str, call: &str) -> String {
    format!("{column} = any (array(select clerk_rls.{call}))")
}

/// Words that Postgres (up to 18) does not take for a name everywhere, as `pg_get_keywords` lists them.
const KEYWORDS: &str = "
    all analyse analyze and any array as asc asymmetric authorization between bigint binary bit boolean both case cast char
    character check coalesce collate collation column concurrently constraint create cross current_catalog current_date
    current_role current_schema current_time current_timestamp current_user dec decimal default deferrable desc distinct do
    else end except exists extract false fetch float for foreign freeze from full grant greatest group grouping having ilike
    in initially inner inout int integer intersect interval into is isnull join json json_array json_arrayagg json_exists
    json_object json_objectagg json_query json_scalar json_serialize json_table json_value lateral leading least left like
    limit localtime localtimestamp merge_action national natural nchar none normalize not notnull null nullif numeric offset
    on only or order out outer overlaps overlay placing position precision primary real references returning right row
    select session_user setof similar smallint some substring symmetric system_user table tablesample then time timestamp to
    trailing treat trim true union unique user using values varchar variadic verbose when where window with xmlattributes
    xmlconcat xmlelement xmlexists xmlforest xmlnamespaces xmlparse xmlpi xmlroot xmlserialize xmltable
";

/// A name as SQL takes it: in quotes, unless that can make no difference.
pub(crate) fn identifier(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    let keyword = KEYWORDS.split_ascii_whitespace().any(|word| word == name);
    if plain && !keyword { name.to_owned() } else { quoted(name) }
}

/// A name in quotes. What a terminal would obey is written as its number, which SQL reads as the same name.
pub(crate) fn quoted(name: &str) -> String {
    if !name.chars().any(terminal::is_obeyed) {
        return format!("\"{}\"", name.replace('"', "\"\""));
    }
    let mut text = String::from("U&\"");
    for c in name.chars() {
        match c {
            '"' => text.push_str("\"\""),
            '\\' => text.push_str("\\\\"),
            c if terminal::is_obeyed(c) => {
                write!(text, "\\{:04x}", u32::from(c)).expect("writing to a string cannot fail");
            }
            c => text.push(c),
        }
    }
    text + "\""
}

/// A table's name with its schema.
pub(crate) fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", identifier(schema), identifier(name))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        policies: Policies,
    }

    fn parse(arguments: &str) -> Result<Policies, clap::Error> {
        Cli::try_parse_from(std::iter::once("print").chain(arguments.split(' '))).map(|cli| cli.policies)
    }

    #[test]
    fn the_members_policies_read_as_the_readme_has_them() {
        let sql = parse("documents --organization-column org_id --for select,update").unwrap().sql(Index::Missing);
        let expected = "\
begin;
alter table public.documents enable row level security;
grant select, update on table public.documents to authenticated;  -- some projects grant new tables by themselves, some do not

drop policy if exists \"select by members\" on public.documents;
create policy \"select by members\" on public.documents for select to authenticated
  using (org_id = any (array(select clerk_rls.organization_ids())));

drop policy if exists \"update by members\" on public.documents;
create policy \"update by members\" on public.documents for update to authenticated
  using (org_id = any (array(select clerk_rls.organization_ids())))
  with check (org_id = any (array(select clerk_rls.organization_ids())));
commit;

-- Without it each query reads the whole table.
create index if not exists documents_org_id_idx on public.documents (org_id);
";
        assert_eq!(sql, expected);
    }

    #[test]
    fn names_and_values_cannot_leave_their_quotes() {
        let sql = parse("App.order --organization-column a\"b --role x';drop").unwrap().sql(Index::There);
        assert!(sql.contains("on \"App\".\"order\" for select"), "{sql}");
        assert!(
            sql.contains("using (\"a\"\"b\" = any (array(select clerk_rls.organization_ids_by_role('x'';drop'))))"),
            "{sql}"
        );
        assert!(!sql.contains("create index"), "{sql}");
    }

    #[test]
    fn a_role_needs_an_organization_and_one_column_is_required() {
        for wrong in [
            "documents",
            "documents --user-column u --organization-column o",
            "documents --user-column u --role org:admin",
            "documents --organization-column o --role r --permission p",
            ". --user-column u",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
