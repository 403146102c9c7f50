//! What the catalog says of tables and their policies.

use super::{CALL, Database, Error};
use serde::Deserialize;
use tokio::time::timeout;

/// A table with Row-Level Security, or one that was asked for.
#[derive(Debug, Deserialize)]
pub struct Table {
    /// As SQL writes it: with its schema, quoted where needed.
    pub name: String,
    /// The name alone, as it is.
    pub relation: String,
    pub row_security: bool,
    /// Whether it holds for the table's owner as well.
    pub forced: bool,
    /// The columns that an index begins with.
    pub indexed: Vec<String>,
    pub policies: Vec<Policy>,
}

/// A policy, its expressions as the server writes them with an empty search path: whatever is not built in has its schema.
#[derive(Debug, Deserialize)]
pub struct Policy {
    pub name: String,
    pub permissive: bool,
    pub command: Command,
    pub roles: Vec<String>,
    pub using: Option<String>,
    pub check: Option<String>,
    /// Whether it depends on the mirror, on `clerk_rls`, or on the caller's token.
    pub asks_who: bool,
}

/// What a policy is for, as `pg_policy` abbreviates it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Command {
    #[serde(rename = "*")]
    All,
    #[serde(rename = "r")]
    Select,
    #[serde(rename = "a")]
    Insert,
    #[serde(rename = "w")]
    Update,
    #[serde(rename = "d")]
    Delete,
}

const TABLES: &str = "
with policy as (
  select p.polrelid, p.polname as name, p.polpermissive as permissive, p.polcmd as command,
         pg_get_expr(p.polqual, p.polrelid) as using, pg_get_expr(p.polwithcheck, p.polrelid) as check,
         array(select case r when 0 then 'public' else (select rolname from pg_roles where oid = r) end from unnest(p.polroles) r) as roles,
         exists (select from pg_depend d left join pg_proc f on d.refclassid = 'pg_proc'::regclass and f.oid = d.refobjid
                                         left join pg_class c on d.refclassid = 'pg_class'::regclass and c.oid = d.refobjid
                  where d.classid = 'pg_policy'::regclass and d.objid = p.oid and c.oid is distinct from p.polrelid
                    and coalesce(f.pronamespace, c.relnamespace)
                        in (select oid from pg_namespace where nspname in ('auth', 'clerk', 'clerk_rls')))
           or concat(pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)) like '%request.jwt%' as asks_who
    from pg_policy p
), listed as (
  select c.oid::regclass::text as name, c.relname as relation, c.relrowsecurity as row_security, c.relforcerowsecurity as forced,
         array(select distinct a.attname from pg_index i join pg_attribute a on a.attrelid = c.oid and a.attnum = i.indkey[0]
                where i.indrelid = c.oid and i.indisvalid and i.indpred is null) as indexed,
         (select coalesce(json_agg(p order by p.name), '[]') from policy p where p.polrelid = c.oid) as policies
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
   where c.relkind in ('r', 'p')
     and case when $1 is null then exists (select from policy p where p.polrelid = c.oid and p.asks_who)
              else (n.nspname, c.relname) = ($1, $2) end
)
select coalesce(json_agg(l order by l.name), '[]')::text from listed l";

impl Database {
    /// The table of that schema and name; without one, all tables with a policy that asks who the caller is.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn policies(&self, table: Option<(&str, &str)>) -> Result<Vec<Table>, Error> {
        let mut connection = self.open().await?;
        let (schema, name) = table.unzip();
        let asking = async {
            sqlx::query("select set_config('search_path', '', false)").execute(&mut connection).await?;
            sqlx::query_scalar(TABLES).bind(schema).bind(name).fetch_one(&mut connection).await
        };
        let json: String = timeout(CALL, asking).await.map_err(|_| Error::Silent(CALL))?.map_err(Error::Refused)?;
        serde_json::from_str(&json).map_err(|error| Error::Answer(error.to_string()))
    }
}
