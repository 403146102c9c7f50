//! What the catalog says of tables, their policies, the views over them and the functions that those call.

use super::{Database, Error, PASS_CALL};
use serde::Deserialize;
use sqlx::postgres::PgConnection;

/// Everything that `policy check` reads.
#[derive(Debug, Default, Deserialize)]
pub struct Catalog {
    pub tables: Vec<Table>,
    /// Views that Supabase's API may read, over tables that are looked at or over the mirror.
    pub views: Vec<View>,
    /// Functions of the application's that policies, defaults and views call, and those that these call.
    pub functions: Vec<Function>,
}

/// A table that is to be looked at, or another one with Row-Level Security, which policies may read.
#[derive(Debug, Deserialize)]
pub struct Table {
    pub schema: String,
    /// The name alone, as it is.
    pub relation: String,
    /// Whether its findings are reported. The others are only read where a policy refers to them.
    pub is_listed: bool,
    pub row_security: bool,
    /// Whether Row-Level Security holds for the table's owner as well.
    pub forced: bool,
    /// Whether `anon` or `authenticated` has any right to it.
    pub is_open_to_api: bool,
    /// The columns that an index begins with.
    pub indexed: Vec<String>,
    /// Columns that refer to `clerk.*`, or are text and named like the id of an organization or a user.
    pub id_columns: Vec<String>,
    pub defaults: Vec<ColumnDefault>,
    pub policies: Vec<Policy>,
}

/// The default of a column.
#[derive(Debug, Deserialize)]
pub struct ColumnDefault {
    pub column: String,
    pub expression: String,
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

impl Policy {
    /// Whether it applies to requests through Supabase's API.
    pub(crate) fn is_for_callers(&self) -> bool {
        self.roles.iter().any(|role| matches!(role.as_str(), "public" | "anon" | "authenticated"))
    }

    /// Both expressions.
    pub(crate) fn text(&self) -> String {
        [&self.using, &self.check].into_iter().flatten().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
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

/// A view or a materialized view.
#[derive(Debug, Deserialize)]
pub struct View {
    pub schema: String,
    pub relation: String,
    pub is_materialized: bool,
    /// It reads with the rights of whoever asks, so policies hold in it.
    pub security_invoker: bool,
    /// As the server writes it with an empty search path.
    pub definition: String,
}

/// A function in SQL or PL/pgSQL.
#[derive(Debug, Deserialize)]
pub struct Function {
    pub schema: String,
    pub name: String,
    /// The names of its arguments; empty where one has none.
    pub arguments: Vec<String>,
    pub is_definer: bool,
    /// `None`: neither SQL nor PL/pgSQL.
    pub body: Option<String>,
    /// The schemas in which its body looks for names without one.
    pub search_path: Vec<String>,
}

/// What a table must be for `policy print`.
#[derive(Debug, Deserialize)]
pub struct Target {
    /// As SQL writes it.
    pub owner: String,
    /// Whether this login may do what an owner may.
    pub is_owned: bool,
    pub columns: Vec<Column>,
    /// The columns that an index begins with.
    pub indexed: Vec<String>,
}

/// A column and its type, as SQL writes it.
#[derive(Debug, Deserialize)]
pub struct Column {
    pub name: String,
    #[serde(rename = "type")]
    pub of_type: String,
    pub is_text: bool,
}

/// All of it as one JSON object. `schema` and `name` are those of the one table to look at, or both `None`.
async fn catalog(
    connection: &mut PgConnection,
    schema: Option<&str>,
    name: Option<&str>,
) -> Result<String, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
with recursive api as (
  select oid from pg_roles where rolname in ('anon', 'authenticated')
), exposed as (
  select n.oid, n.nspname from pg_namespace n
   where n.nspname not like 'pg\_%'
     and n.nspname <> all (array['information_schema', 'clerk', 'clerk_rls', 'clerk_sync', 'auth', 'storage', 'realtime', '_realtime', 'extensions',
                                 'graphql', 'graphql_public', 'vault', 'pgsodium', 'pgbouncer', 'net', 'cron', 'supabase_functions',
                                 'supabase_migrations'])
     and exists (select from api where has_schema_privilege(api.oid, n.oid, 'usage'))
), mirror as (
  select c.oid from pg_class c where c.relnamespace = to_regnamespace('clerk') and c.relkind in ('r', 'p')
), policy as (
  select p.oid, p.polrelid, p.polname as name, p.polpermissive as permissive, p.polcmd as command,
         pg_get_expr(p.polqual, p.polrelid) as using, pg_get_expr(p.polwithcheck, p.polrelid) as check,
         array(select case r when 0 then 'public' else (select rolname from pg_roles where oid = r) end from unnest(p.polroles) r) as roles,
         exists (select from pg_depend d left join pg_proc f on d.refclassid = 'pg_proc'::regclass and f.oid = d.refobjid
                                         left join pg_class c on d.refclassid = 'pg_class'::regclass and c.oid = d.refobjid
                  where d.classid = 'pg_policy'::regclass and d.objid = p.oid and c.oid is distinct from p.polrelid
                    and coalesce(f.pronamespace, c.relnamespace)
                        in (select oid from pg_namespace where nspname in ('auth', 'clerk', 'clerk_rls')))
           or concat(pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)) like '%request.%' as asks_who
    from pg_policy p
), id_column as (
  select a.attrelid, a.attname
    from pg_attribute a join pg_type t on t.oid = a.atttypid
   where a.attnum > 0 and not a.attisdropped and t.typcategory = 'S'
     and lower(regexp_replace(a.attname, '([a-z0-9])([A-Z])', '\1_\2', 'g'))
         ~ '(^|_)(org|organi[sz]ation|tenant|workspace|user|owner|author|member|creator|clerk)_?id$|^(created|owned)_by$'
  union
  select k.conrelid, a.attname
    from pg_constraint k join pg_attribute a on a.attrelid = k.conrelid and a.attnum = any (k.conkey)
   where k.contype = 'f' and k.confrelid in (select oid from mirror)
), listed as (
  select c.oid
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
   where c.relkind in ('r', 'p')
     and case when $1::text is not null then (n.nspname, c.relname) = ($1::text, $2::text)
              when n.nspname in ('clerk', 'clerk_rls', 'clerk_sync') then false
              else (c.relnamespace in (select oid from exposed) and exists (select from id_column i where i.attrelid = c.oid))
                   or exists (select from policy p
                               where p.polrelid = c.oid
                                 and (p.asks_who or (n.nspname, c.relname) in (('storage', 'objects'), ('storage', 'buckets'), ('realtime', 'messages')))) end
  union
  select i.inhrelid from pg_inherits i join listed l on l.oid = i.inhparent join pg_class c on c.oid = i.inhrelid where c.relkind in ('r', 'p')
), over (oid) as (
  select oid from listed union select oid from mirror where $1::text is null
  union
  select r.ev_class from over join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = over.oid and d.classid = 'pg_rewrite'::regclass
                              join pg_rewrite r on r.oid = d.objid and r.ev_class <> over.oid
), view as (
  select c.oid, n.nspname as schema, c.relname as relation, c.relkind = 'm' as is_materialized,
         coalesce((select lower(o.option_value) in ('true', 'on', '1', 'yes') from pg_options_to_table(c.reloptions) o
                    where o.option_name = 'security_invoker'), false) as security_invoker,
         pg_get_viewdef(c.oid) as definition
    from pg_class c join exposed n on n.oid = c.relnamespace
   where c.relkind in ('v', 'm') and c.oid in (select oid from over)
     and exists (select from api where has_any_column_privilege(api.oid, c.oid, 'select'))
), source as (
  select f.oid, n.nspname as schema, f.proname as name, f.prosecdef as is_definer,
         array(select coalesce(f.proargnames[i], '') from generate_series(1, f.pronargs) i) as arguments,
         case when l.lanname in ('sql', 'plpgsql') then coalesce(pg_get_function_sqlbody(f.oid), f.prosrc) end as body,
         coalesce((select array(select btrim(s, ' "') from unnest(string_to_array(split_part(o, '=', 2), ',')) s)
                     from unnest(f.proconfig) o where o like 'search\_path=%'), array['public']) as search_path
    from pg_proc f join pg_namespace n on n.oid = f.pronamespace join pg_language l on l.oid = f.prolang
   where n.nspname not like 'pg\_%' and n.nspname <> all (array['information_schema', 'clerk', 'clerk_rls', 'clerk_sync', 'auth', 'storage', 'realtime', 'extensions'])
), called as (
  select distinct s.* from source s
    join pg_depend d on d.refclassid = 'pg_proc'::regclass and d.refobjid = s.oid
   where d.classid in ('pg_policy'::regclass, 'pg_rewrite'::regclass, 'pg_attrdef'::regclass)
  union
  select s.* from called c join source s on position(s.name || '(' in c.body) > 0
), seen as (
  select n.nspname as schema, c.relname as relation, c.oid in (select oid from listed) as is_listed,
         c.relrowsecurity as row_security, c.relforcerowsecurity as forced,
         exists (select from api where has_schema_privilege(api.oid, n.oid, 'usage')
                    and (has_table_privilege(api.oid, c.oid, 'select, insert, update, delete')
                         or has_any_column_privilege(api.oid, c.oid, 'select, insert, update'))) as is_open_to_api,
         array(select distinct a.attname from pg_index i join pg_attribute a on a.attrelid = c.oid and a.attnum = i.indkey[0]
                where i.indrelid = c.oid and i.indisvalid and i.indpred is null) as indexed,
         array(select i.attname from id_column i where i.attrelid = c.oid order by 1) as id_columns,
         (select coalesce(json_agg(json_build_object('column', a.attname, 'expression', pg_get_expr(d.adbin, d.adrelid)) order by d.adnum), '[]')
            from pg_attrdef d join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
           where d.adrelid = c.oid and a.attgenerated = '') as defaults,
         (select coalesce(json_agg(p order by p.name), '[]') from policy p where p.polrelid = c.oid) as policies
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
   where c.relkind in ('r', 'p') and (c.oid in (select oid from listed) or (c.relrowsecurity and n.nspname not in ('clerk', 'clerk_rls', 'clerk_sync')))
)
select json_build_object(
  'tables', (select coalesce(json_agg(s order by s.schema, s.relation), '[]') from seen s),
  'views', (select coalesce(json_agg(v order by v.schema, v.relation), '[]') from view v),
  'functions', (select coalesce(json_agg(c order by c.schema, c.name, c.oid), '[]') from called c))::text as "catalog!""#,
        schema,
        name
    )
    .fetch_one(connection)
    .await
}

/// The table as a JSON object.
async fn target(connection: &mut PgConnection, schema: &str, name: &str) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
select json_build_object(
    'owner', quote_ident(pg_get_userbyid(c.relowner)), 'is_owned', pg_has_role(c.relowner, 'usage'),
    'columns', (select coalesce(json_agg(json_build_object('name', a.attname, 'type', format_type(a.atttypid, a.atttypmod),
                                                           'is_text', t.typcategory = 'S') order by a.attnum), '[]')
                  from pg_attribute a join pg_type t on t.oid = a.atttypid where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
    'indexed', array(select distinct a.attname from pg_index i join pg_attribute a on a.attrelid = c.oid and a.attnum = i.indkey[0]
                      where i.indrelid = c.oid and i.indisvalid and i.indpred is null))::text as "target!"
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('r', 'p') and n.nspname = $1::text and c.relname = $2::text"#,
        schema,
        name
    )
    .fetch_optional(connection)
    .await
}

impl Database {
    /// Everything that policies depend on. `table`: the one of that schema and name, with its partitions and the views over it;
    /// without one, all tables that hold rows of organizations or users, or have a policy that asks who the caller is.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn policies(&self, table: Option<(&str, &str)>) -> Result<Catalog, Error> {
        let (schema, name) = table.unzip();
        let json = self.read_catalog(PASS_CALL, async |connection| catalog(connection, schema, name).await).await?;
        serde_json::from_str(&json).map_err(|error| Error::Answer(error.to_string()))
    }

    /// The table for which policies are to be printed; `None`: it is not there.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn target(&self, schema: &str, name: &str) -> Result<Option<Target>, Error> {
        let json = self.read_catalog(PASS_CALL, async |connection| target(connection, schema, name).await).await?;
        json.map(|json| serde_json::from_str(&json)).transpose().map_err(|error| Error::Answer(error.to_string()))
    }
}
