//! What hangs on our tables and is none of ours: keys, triggers, rules, indexes and checks of the application's. Each may refuse a
//! row or alter it.

use super::manifest::{ObjectKind, ours};
use super::{CALL, Database, Error};
use serde::Deserialize;
use sqlx::postgres::PgConnection;

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
    /// It keeps rows that have ended, or is on a table that must refuse nothing.
    Fail,
    /// It may refuse a row; access ends all the same.
    Warn,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ForeignObject {
    pub weight: Weight,
    /// `foreign key`, `trigger`, `rule`, `index` or `constraint`.
    pub what: String,
    pub name: String,
    /// Our table.
    pub table: String,
    /// Of a key: the table that it is on, and what becomes of its rows.
    pub of_table: Option<String>,
    pub on_delete: Option<String>,
}

impl ForeignObject {
    /// As part of a sentence.
    pub fn describe(&self) -> String {
        let ForeignObject { what, name, table, of_table, on_delete, .. } = self;
        match (of_table, on_delete) {
            (Some(of), Some(on_delete)) => format!("{what} {name} of {of} on {table} (on delete {on_delete})"),
            _ => format!("{what} {name} on {table}"),
        }
    }

    /// What to do about it.
    pub fn advice(&self) -> String {
        let ForeignObject { what, name, table, .. } = self;
        let said = match (what.as_str(), self.weight) {
            ("foreign key", _) => {
                "refer to clerk.users or clerk.organizations instead: their rows stay when the object is deleted at Clerk"
            }
            (_, Weight::Fail) => {
                let statement = match what.as_str() {
                    "index" => format!("drop index clerk_sync.{name}"),
                    "constraint" => format!("alter table {table} drop constraint {name}"),
                    _ => format!("drop {what} {name} on {table}"),
                };
                return format!("{statement}; -- nothing but clerk-sync may have objects there");
            }
            ("trigger", _) => {
                "keep it only if it cannot fail: name every schema in it, and catch its own errors (docs/supabase.md)"
            }
            _ => {
                "drop it, or make sure that no value of Clerk's can break it: addresses, slugs and names are not unique there"
            }
        };
        said.to_owned()
    }
}

/// `$1` and `$2`: our own indexes and constraints.
async fn objects(
    connection: &mut PgConnection,
    indexes: &[String],
    constraints: &[String],
) -> Result<String, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
with ours as (
  select c.oid, c.relname, n.nspname = 'clerk_sync' as is_inner, format('%I.%I', n.nspname, c.relname) as name
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
   where n.nspname in ('clerk', 'clerk_sync') and c.relkind in ('r', 'p')
), found as (
  select case when o.is_inner or (o.relname in ('organization_memberships', 'user_details') and k.confdeltype in ('a', 'r'))
              then 'fail' else 'warn' end as weight,
         'foreign key' as what, quote_ident(k.conname) as name, o.name as table, k.conrelid::regclass::text as of_table,
         case k.confdeltype when 'c' then 'cascade' when 'n' then 'set null' when 'd' then 'set default' when 'r' then 'restrict'
                            else 'no action' end as on_delete
    from pg_constraint k join ours o on o.oid = k.confrelid
   where k.contype = 'f' and k.conparentid = 0 and k.conrelid not in (select oid from ours)
     -- To the others is right: their rows stay.
     and (o.is_inner or o.relname in ('organization_memberships', 'user_details'))
  union all
  select case when o.is_inner then 'fail' else 'warn' end, 'trigger', quote_ident(t.tgname), o.name, null, null
    from pg_trigger t join ours o on o.oid = t.tgrelid where not t.tgisinternal and t.tgenabled <> 'D'
  union all
  select case when o.is_inner then 'fail' else 'warn' end, 'rule', quote_ident(r.rulename), o.name, null, null
    from pg_rewrite r join ours o on o.oid = r.ev_class where r.ev_enabled <> 'D'
  union all
  select case when o.is_inner then 'fail' else 'warn' end, 'index', quote_ident(c.relname), o.name, null, null
    from pg_index i join ours o on o.oid = i.indrelid join pg_class c on c.oid = i.indexrelid
   where (i.indisunique or i.indisexclusion or i.indexprs is not null or i.indpred is not null) and not i.indisprimary
     and c.relname <> all ($1::text[])
  union all
  select case when o.is_inner then 'fail' else 'warn' end, 'constraint', quote_ident(k.conname), o.name, null, null
    from pg_constraint k join ours o on o.oid = k.conrelid
   where (k.contype in ('c', 'x') and k.conname <> all ($2::text[]))
      or (k.contype = 'f' and k.confrelid not in (select oid from ours))
)
select coalesce(json_agg(f order by f.weight, f.table, f.what, f.name), '[]')::text as "objects!" from found f"#,
        indexes,
        constraints
    )
    .fetch_one(connection)
    .await
}

impl Database {
    /// All of them, the gravest first. Empty where our schema is not there.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn foreign_objects(&self) -> Result<Vec<ForeignObject>, Error> {
        let constraints = ours(ObjectKind::Constraint);
        // A unique constraint has an index of the same name.
        let indexes = [ours(ObjectKind::Index), constraints.clone()].concat();
        let json =
            self.read_catalog(CALL, async |connection| objects(connection, &indexes, &constraints).await).await?;
        serde_json::from_str(&json).map_err(|error| Error::Answer(error.to_string()))
    }
}
