//! What is in our three schemas, described from the catalog, and how it differs from what a fresh installation has.
//!
//! `migrations/manifest.txt` is the description of a fresh installation; a test fails when it is stale, and writes it anew.

use super::{Database, Error, PASS_CALL};
use serde::Deserialize;
use sqlx::postgres::PgConnection;
use std::collections::BTreeMap;

/// The description of a fresh installation: kind, table, name, definition, a line for each object.
const MANIFEST: &str = include_str!("../../migrations/manifest.txt");

/// What kinds of objects are described.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectKind {
    Schema,
    Table,
    Column,
    Constraint,
    Type,
    Sequence,
    Function,
    View,
    Index,
    /// Row-Level Security is on.
    RowSecurity,
    Policy,
    /// One right on one object to one role.
    Grant,
    /// The next ones are only there where something is wrong. Row-Level Security holds for the owner, too.
    ForcedRowSecurity,
    /// An object belongs to another role than the rest.
    Owner,
    /// A role of Supabase's API may become the worker.
    Member,
    /// New objects are granted to somebody by themselves.
    DefaultGrant,
    /// A table of the bookkeeping is sent to subscribers.
    Publication,
}

impl ObjectKind {
    /// As part of a sentence.
    fn noun(self) -> &'static str {
        match self {
            ObjectKind::Schema => "schema",
            ObjectKind::Table => "table",
            ObjectKind::Column => "column",
            ObjectKind::Constraint => "constraint",
            ObjectKind::Type => "type",
            ObjectKind::Sequence => "sequence",
            ObjectKind::Function => "function",
            ObjectKind::View => "view",
            ObjectKind::Index => "index",
            ObjectKind::RowSecurity | ObjectKind::ForcedRowSecurity => "Row-Level Security",
            ObjectKind::Policy => "policy",
            ObjectKind::Grant => "right",
            ObjectKind::Owner => "owner",
            ObjectKind::Member => "membership in a role",
            ObjectKind::DefaultGrant => "default privilege",
            ObjectKind::Publication => "publication",
        }
    }
}

/// One object.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Object {
    pub kind: ObjectKind,
    /// The table that it is part of; empty where there is none.
    pub of_table: String,
    /// As SQL writes it.
    pub name: String,
    pub definition: String,
}

/// How an object differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Missing,
    Changed,
    /// It is none of ours.
    Extra,
}

/// A difference from a fresh installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub how: How,
    pub object: Object,
    /// The statements that end it.
    pub fix: String,
    /// Whether `migrate --repair` ends it, too: it re-creates what holds no data.
    pub is_repairable: bool,
    /// Whether ending it takes functions away, which `migrate --repair` creates again.
    pub takes_functions: bool,
}

impl Difference {
    /// As a sentence.
    pub fn says(&self) -> String {
        let Object { kind, of_table, name, .. } = &self.object;
        let place = if of_table.is_empty() { String::new() } else { format!(" of {of_table}") };
        match (kind, self.how) {
            (ObjectKind::RowSecurity, _) => {
                format!("{name}: Row-Level Security is off, so every role with select reads all rows")
            }
            (ObjectKind::ForcedRowSecurity, _) => {
                format!("{name}: Row-Level Security holds for the owner, so nothing can be written")
            }
            (ObjectKind::Grant, How::Extra) => format!("granted, and should not be: {name}"),
            (ObjectKind::Owner, _) => {
                format!("{name} belongs to {}, not to the owner of the schemas", self.object.definition)
            }
            (ObjectKind::Member, _) => format!("{name} may become clerk_sync_worker"),
            (ObjectKind::DefaultGrant, _) => format!("new objects are granted by themselves: {name}"),
            (ObjectKind::Publication, _) => {
                format!("the publication {name} sends the bookkeeping table {of_table} to subscribers")
            }
            (kind, How::Missing) => format!("the {} {name}{place} is missing", kind.noun()),
            (kind, How::Changed) => format!("the {} {name}{place} is not as migrations made it", kind.noun()),
            (kind, How::Extra) => format!("the {} {name}{place} is not ours", kind.noun()),
        }
    }
}

/// Everything in our schemas, with an empty search path, so that every name has its schema.
async fn describe(connection: &mut PgConnection) -> Result<String, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
with n as (
  select oid, nspname, nspowner, nspacl from pg_namespace where nspname in ('clerk', 'clerk_rls', 'clerk_sync')
), home as (
  select nspowner as owner from n where nspname = 'clerk_sync'
), rel as (
  select c.*, n.nspname, format('%I.%I', n.nspname, c.relname) as name from pg_class c join n on n.oid = c.relnamespace
), securable (name, owner, acl) as (
  select 'schema ' || quote_ident(nspname), nspowner, coalesce(nspacl, acldefault('n', nspowner)) from n
  union all
  select case relkind when 'S' then 'sequence ' else 'table ' end || name, relowner,
         coalesce(relacl, acldefault((case relkind when 'S' then 's' else 'r' end)::"char", relowner)) from rel where relkind in ('r', 'p', 'v', 'm', 'f', 'S')
  union all
  select 'function ' || f.oid::regprocedure, f.proowner, coalesce(f.proacl, acldefault('f', f.proowner)) from pg_proc f join n on n.oid = f.pronamespace
  union all
  select 'type ' || t.oid::regtype, t.typowner, coalesce(t.typacl, acldefault('T', t.typowner))
    from pg_type t join n on n.oid = t.typnamespace left join pg_class c on c.oid = t.typrelid
   where t.typtype in ('d', 'e', 'r') or c.relkind = 'c'
), object (kind, of_table, name, definition) as (
  select 'schema', '', quote_ident(nspname), '' from n
  union all
  select 'table', '', name, relkind::text || relpersistence::text from rel where relkind in ('r', 'p', 'f')
  union all
  select 'column', r.name, quote_ident(a.attname),
         format_type(a.atttypid, a.atttypmod) || case a.attidentity when '' then '' when 'a' then ' generated always as identity' else ' generated by default as identity' end
         || coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), '') || case when a.attnotnull then ' not null' else '' end
    from rel r join pg_attribute a on a.attrelid = r.oid left join pg_attrdef d on d.adrelid = r.oid and d.adnum = a.attnum
   where r.relkind in ('r', 'p', 'f') and a.attnum > 0 and not a.attisdropped
  union all
  select 'constraint', r.name, quote_ident(k.conname), pg_get_constraintdef(k.oid) from pg_constraint k join rel r on r.oid = k.conrelid where k.contype in ('p', 'u', 'f', 'c', 'x')
  union all
  select 'index', r.name, i.name, pg_get_indexdef(x.indexrelid) || case when x.indisvalid then '' else ' (invalid)' end
    from pg_index x join rel r on r.oid = x.indrelid join rel i on i.oid = x.indexrelid
   where r.relkind in ('r', 'p') and not exists (select from pg_constraint k where k.conindid = x.indexrelid and k.contype in ('p', 'u', 'x'))
  union all
  select 'view', '', name, concat_ws(' ', case relkind when 'm' then 'materialized' end, array_to_string(reloptions, ','), pg_get_viewdef(oid)) from rel where relkind in ('v', 'm')
  union all
  select 'function', '', f.oid::regprocedure::text,
         concat_ws(' ', l.lanname, '(' || pg_get_function_arguments(f.oid) || ')', pg_get_function_result(f.oid), f.prokind::text || f.provolatile::text || f.proparallel::text,
                   case when f.prosecdef then 'security definer' end, case when f.proisstrict then 'strict' end, case when f.proleakproof then 'leakproof' end,
                   array_to_string(f.proconfig, ' '), md5(coalesce(pg_get_function_sqlbody(f.oid), f.prosrc)))
    from pg_proc f join n on n.oid = f.pronamespace join pg_language l on l.oid = f.prolang
  union all
  select 'type', '', t.oid::regtype::text,
         coalesce('(' || (select string_agg(quote_ident(a.attname) || ' ' || format_type(a.atttypid, a.atttypmod), ', ' order by a.attnum)
                            from pg_attribute a where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped) || ')', t.typtype::text)
    from pg_type t join n on n.oid = t.typnamespace left join pg_class c on c.oid = t.typrelid
   where t.typtype in ('d', 'e', 'r') or c.relkind = 'c'
  union all
  select 'sequence', '', r.name, s.seqtypid::regtype::text from pg_sequence s join rel r on r.oid = s.seqrelid
  union all
  select 'row_security', '', name, '' from rel where relkind in ('r', 'p') and relrowsecurity
  union all
  select 'forced_row_security', '', name, '' from rel where relkind in ('r', 'p') and relforcerowsecurity
  union all
  select 'policy', r.name, quote_ident(p.polname),
         concat_ws(' ', case when not p.polpermissive then 'as restrictive' end,
                   'for ' || case p.polcmd when '*' then 'all' when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' else 'delete' end,
                   'to ' || (select string_agg(case o when 0 then 'public' else quote_ident(pg_get_userbyid(o)) end, ', ' order by o) from unnest(p.polroles) o),
                   'using (' || pg_get_expr(p.polqual, p.polrelid) || ')', 'with check (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')')
    from pg_policy p join rel r on r.oid = p.polrelid
  union all
  select 'grant', '', lower(a.privilege_type) || ' on ' || s.name || ' to ' || case a.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end,
         case when bool_or(a.is_grantable) then 'with grant option' else '' end
    from securable s cross join aclexplode(s.acl) a
   where a.grantee <> s.owner
     -- Owners of tables that refer to ours need these two, and roles that copy tables must read.
     and not (lower(a.privilege_type) || ' on ' || s.name = any (array['usage on schema clerk', 'references on table clerk.users', 'references on table clerk.organizations'])
              and exists (select from pg_constraint k join pg_class c on c.oid = k.conrelid
                           where k.contype = 'f' and c.relowner = a.grantee and k.confrelid in (select oid from rel where nspname = 'clerk')))
     and not (a.privilege_type in ('SELECT', 'USAGE') and s.name !~ 'clerk_sync'
              and exists (select from pg_roles r where r.oid = a.grantee and (r.rolreplication or r.rolbypassrls) and r.rolname <> 'service_role'))
   group by 3
  union all
  select 'grant', '', lower(a.privilege_type) || ' (' || quote_ident(c.attname) || ') on table ' || r.name || ' to '
         || case a.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end, ''
    from rel r join pg_attribute c on c.attrelid = r.oid cross join aclexplode(c.attacl) a where a.grantee <> r.relowner group by 3
  union all
  select 'owner', '', s.name, quote_ident(pg_get_userbyid(s.owner)) from securable s where s.owner <> (select owner from home)
  union all
  select 'member', '', r.rolname::text, '' from pg_auth_members m join pg_roles r on r.oid = m.member
   where m.roleid = to_regrole('clerk_sync_worker') and r.rolname in ('anon', 'authenticated', 'service_role', 'authenticator')
  union all
  select 'default_grant', '', format('for role %I in schema %I %s %s %s to %s', pg_get_userbyid(d.defaclrole), n.nspname, lower(a.privilege_type), 'on',
           case d.defaclobjtype when 'r' then 'tables' when 'S' then 'sequences' when 'f' then 'functions' else 'types' end,
           case a.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end), ''
    from pg_default_acl d join n on n.oid = d.defaclnamespace cross join aclexplode(d.defaclacl) a where a.grantee <> d.defaclrole
  union all
  select 'publication', format('%I.%I', t.schemaname, t.tablename), quote_ident(t.pubname), ''
    from pg_publication_tables t join pg_publication p on p.pubname = t.pubname and not p.puballtables where t.schemaname = 'clerk_sync'
)
select coalesce(json_agg(json_build_object('kind', kind, 'of_table', of_table, 'name', name,
                                           'definition', btrim(regexp_replace(definition, '\s+', ' ', 'g'))) order by kind, of_table, name), '[]')::text as "objects!"
  from object"#
    )
    .fetch_one(connection)
    .await
}

impl Database {
    /// Everything in our schemas.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn objects(&self) -> Result<Vec<Object>, Error> {
        let json = self.read_catalog(PASS_CALL, describe).await?;
        serde_json::from_str(&json).map_err(|error| Error::Answer(error.to_string()))
    }

    /// How our schemas differ from a fresh installation of this release.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn differences(&self) -> Result<Vec<Difference>, Error> {
        Ok(differences(&expected(), &self.objects().await?))
    }
}

/// The manifest's text for these objects.
pub fn manifest(objects: &[Object]) -> String {
    let line = |object: &Object| {
        let kind = format!("{:?}", object.kind);
        format!("{kind}\t{}\t{}\t{}\n", object.of_table, object.name, object.definition)
    };
    objects.iter().map(line).collect()
}

/// The names of a fresh installation's objects of a kind, without their schema.
pub(super) fn ours(kind: ObjectKind) -> Vec<String> {
    let name = |object: Object| object.name.rsplit('.').next().unwrap_or_default().to_owned();
    expected().into_iter().filter(|object| object.kind == kind).map(name).collect()
}

fn expected() -> Vec<Object> {
    let kinds: BTreeMap<String, ObjectKind> = [
        ObjectKind::Schema,
        ObjectKind::Table,
        ObjectKind::Column,
        ObjectKind::Constraint,
        ObjectKind::Type,
        ObjectKind::Sequence,
        ObjectKind::Function,
        ObjectKind::View,
        ObjectKind::Index,
        ObjectKind::RowSecurity,
        ObjectKind::Policy,
        ObjectKind::Grant,
    ]
    .into_iter()
    .map(|kind| (format!("{kind:?}"), kind))
    .collect();
    let object = |line: &str| {
        let mut fields = line.split('\t');
        let kind = *kinds.get(fields.next()?)?;
        let mut field = || fields.next().map(str::to_owned);
        Some(Object { kind, of_table: field()?, name: field()?, definition: field()? })
    };
    MANIFEST.lines().filter_map(object).collect()
}

/// What differs, tables before what stands on them.
fn differences(expected: &[Object], found: &[Object]) -> Vec<Difference> {
    let key = |object: &Object| (object.kind, object.of_table.clone(), object.name.clone());
    let by_key: BTreeMap<_, &Object> = found.iter().map(|object| (key(object), object)).collect();
    let known: BTreeMap<_, &Object> = expected.iter().map(|object| (key(object), object)).collect();
    let has_table = |name: &str| by_key.contains_key(&(ObjectKind::Table, String::new(), name.to_owned()));
    let mut differences = Vec::new();
    for (key, object) in &known {
        // The statements that make a table again make these as well. Keys come after all tables, and replayed policies by replaying.
        let is_lost_with_its_table = match object.kind {
            ObjectKind::Grant => {
                lost_table(&object.name).is_some_and(|table| is_table(&known, table) && !has_table(table))
            }
            ObjectKind::RowSecurity => !has_table(&object.name),
            ObjectKind::Sequence => known.values().any(|table| {
                table.kind == ObjectKind::Table
                    && !has_table(&table.name)
                    && object.name.strip_prefix(&table.name).is_some_and(|rest| rest.starts_with('_'))
            }),
            ObjectKind::Constraint if object.definition.starts_with("FOREIGN KEY") => false,
            ObjectKind::Policy if object.name != "worker_reads" => false,
            _ => !object.of_table.is_empty() && !has_table(&object.of_table),
        };
        match by_key.get(key) {
            // The statements that make the table again make it as well.
            None if is_lost_with_its_table => {}
            None => differences.push(difference(How::Missing, object, expected)),
            Some(found) if is_equal(object, found) => {}
            Some(_) => differences.push(difference(How::Changed, object, expected)),
        }
    }
    for (key, object) in &by_key {
        // Indexes and constraints of the application's may be right: another check judges them.
        let is_judged = matches!(object.kind, ObjectKind::Index | ObjectKind::Constraint | ObjectKind::RowSecurity);
        // It goes with its table.
        let is_of_another = !object.of_table.is_empty() && !is_table(&known, &object.of_table);
        if !known.contains_key(key) && !is_judged && !is_of_another {
            differences.push(difference(How::Extra, object, expected));
        }
    }
    // Types that are made of other types come after them.
    differences.sort_by_key(|Difference { object, .. }| {
        (object.kind, object.kind == ObjectKind::Type && object.definition.contains("clerk_sync."))
    });
    differences
}

/// The relation that a right is on.
fn lost_table(grant: &str) -> Option<&str> {
    grant.split_once(" on table ")?.1.split_once(" to ").map(|(table, _)| table)
}

fn is_table(known: &BTreeMap<(ObjectKind, String, String), &Object>, name: &str) -> bool {
    known.contains_key(&(ObjectKind::Table, String::new(), name.to_owned()))
}

/// Servers of several versions write the same expression with other parentheses, and with or without the table's name.
fn is_equal(one: &Object, other: &Object) -> bool {
    match one.kind {
        ObjectKind::View | ObjectKind::Policy | ObjectKind::Constraint | ObjectKind::Index | ObjectKind::Column => {
            plain(&one.definition) == plain(&other.definition)
        }
        _ => one.definition == other.definition,
    }
}

/// Without parentheses, spaces, and names before a dot that are no schema's.
fn plain(definition: &str) -> String {
    let mut plain = String::new();
    for word in definition.split_inclusive(|c: char| !(c.is_alphanumeric() || c == '_')) {
        let name = word.trim_end_matches('.');
        if word.ends_with('.') && !matches!(name, "clerk" | "clerk_rls" | "clerk_sync" | "pg_catalog") {
            continue;
        }
        plain.extend(word.chars().filter(|c| !matches!(c, ' ' | '(' | ')')));
    }
    plain
}

fn difference(how: How, object: &Object, expected: &[Object]) -> Difference {
    let is_repairable = how != How::Extra
        && (matches!(object.kind, ObjectKind::Function | ObjectKind::View | ObjectKind::Index | ObjectKind::Policy)
            || (object.kind == ObjectKind::Grant && how == How::Missing)
            || (object.kind == ObjectKind::Schema && object.name == "clerk_rls"));
    let takes_functions = object.kind == ObjectKind::Type && how == How::Changed;
    Difference { how, object: object.clone(), fix: fix(how, object, expected), is_repairable, takes_functions }
}

fn fix(how: How, object: &Object, expected: &[Object]) -> String {
    let Object { kind, of_table, name, definition } = object;
    match (kind, how) {
        (ObjectKind::Function | ObjectKind::View, How::Missing | How::Changed) => {
            "clerk-sync migrate --repair".to_owned()
        }
        (ObjectKind::Schema, _) => format!("create schema {name};"),
        (ObjectKind::Table, How::Missing) => rebuilt(name, expected),
        (ObjectKind::Table, How::Changed) => format!("alter table {name} set logged;"),
        (ObjectKind::Column, How::Missing) => {
            let empty = if definition.ends_with(" not null") && !definition.contains("default") {
                format!("delete from {of_table}; ")
            } else {
                String::new()
            };
            format!("{empty}alter table {of_table} add column {name} {definition};{}", forget(of_table))
        }
        (ObjectKind::Column, How::Changed) => {
            let (rest, is_required) =
                definition.strip_suffix(" not null").map_or((definition.as_str(), false), |rest| (rest, true));
            let (of_type, default) =
                rest.split_once(" default ").map_or((rest, None), |(of_type, default)| (of_type, Some(default)));
            let default = default.map_or_else(|| "drop default".to_owned(), |default| format!("set default {default}"));
            let required = if is_required { "set" } else { "drop" };
            format!(
                "alter table {of_table} alter column {name} type {of_type} using {name}::{of_type}, alter column {name} {default}, alter column {name} {required} not null;"
            )
        }
        (ObjectKind::Constraint, How::Missing) => format!("alter table {of_table} add constraint {name} {definition};"),
        (ObjectKind::Constraint, _) => {
            format!("alter table {of_table} drop constraint {name}, add constraint {name} {definition};")
        }
        (ObjectKind::Type, How::Missing) => {
            format!("create type {name} as {definition}; revoke all on type {name} from public;")
        }
        (ObjectKind::Type, How::Changed) => {
            format!(
                "drop type {name} cascade; create type {name} as {definition}; revoke all on type {name} from public;"
            )
        }
        (ObjectKind::Index, How::Missing) => format!("{definition};"),
        (ObjectKind::Index, _) => format!("drop index {name}; {definition};"),
        (ObjectKind::Sequence, How::Missing) => format!("create sequence {name} as {definition};"),
        (ObjectKind::Sequence, How::Changed) => format!("alter sequence {name} as {definition};"),
        (ObjectKind::RowSecurity, _) => format!("alter table {name} enable row level security;"),
        (ObjectKind::ForcedRowSecurity, _) => format!("alter table {name} no force row level security;"),
        (ObjectKind::Policy, How::Missing) => format!("create policy {name} on {of_table} {definition};"),
        (ObjectKind::Policy, How::Changed) => {
            format!("drop policy {name} on {of_table}; create policy {name} on {of_table} {definition};")
        }
        (ObjectKind::Policy, How::Extra) => format!("drop policy {name} on {of_table};"),
        (ObjectKind::Grant, How::Extra) => format!("revoke {};", name.replacen(" to ", " from ", 1)),
        (ObjectKind::Grant, How::Missing) => format!("grant {name};"),
        (ObjectKind::Grant, How::Changed) => format!("revoke grant option for {};", name.replacen(" to ", " from ", 1)),
        (ObjectKind::Owner, _) => {
            format!("alter {name} owner to current_user; -- as the owner of the schema clerk_sync")
        }
        (ObjectKind::Member, _) => format!("revoke clerk_sync_worker from {name};"),
        (ObjectKind::DefaultGrant, _) => {
            let statement = name.replace(" to ", " from ");
            // for role R in schema S PRIVILEGE on KIND from WHO
            let words: Vec<&str> = statement.splitn(7, ' ').collect();
            format!("alter default privileges {} revoke {};", words[..6].join(" "), words[6..].join(" "))
        }
        (ObjectKind::Publication, _) => format!("alter publication {name} drop table {of_table};"),
        (ObjectKind::Column, How::Extra) => format!("alter table {of_table} drop column {name};"),
        (
            ObjectKind::Table | ObjectKind::View | ObjectKind::Sequence | ObjectKind::Type | ObjectKind::Function,
            How::Extra,
        ) => {
            format!("alter {} {name} set schema public; -- nothing but ours may be in our schemas", kind.noun())
        }
    }
}

/// The statements that make a lost table again, with all that belongs to it.
fn rebuilt(table: &str, expected: &[Object]) -> String {
    let of = |kind| expected.iter().filter(move |object| object.kind == kind && object.of_table == table);
    let columns: Vec<String> =
        of(ObjectKind::Column).map(|column| format!("{} {}", column.name, column.definition)).collect();
    let mut statements = vec![format!("create table {table} ({});", columns.join(", "))];
    let mut constraints: Vec<&Object> = of(ObjectKind::Constraint).collect();
    constraints.sort_by_key(|constraint| !constraint.definition.starts_with("PRIMARY KEY"));
    constraints.retain(|constraint| !constraint.definition.starts_with("FOREIGN KEY"));
    statements.extend(
        constraints
            .into_iter()
            .map(|Object { name, definition, .. }| format!("alter table {table} add constraint {name} {definition};")),
    );
    statements.extend(of(ObjectKind::Index).map(|index| format!("{};", index.definition)));
    statements.push(format!("alter table {table} enable row level security; revoke all on table {table} from public, anon, authenticated, service_role;"));
    let on = format!(" on table {table} to ");
    let grants = expected.iter().filter(|object| object.kind == ObjectKind::Grant && object.name.contains(&on));
    statements.extend(grants.map(|grant| format!("grant {};", grant.name)));
    statements.extend(
        of(ObjectKind::Policy)
            .filter(|policy| policy.name == "worker_reads")
            .map(|policy| format!("create policy {} on {table} {};", policy.name, policy.definition)),
    );
    format!("{}{}", statements.join(" "), forget(table))
}

/// What the bookkeeping says is there is no longer, so the next pass must bring it again. Tombstones stay.
fn forget(table: &str) -> String {
    let (kind, placeholders) = match table {
        // Keys of the application's and of our own refer to them.
        "clerk.users" => (
            "user",
            " insert into clerk.users (id, deleted_at) select id, now() from clerk_sync.versions where kind = 'user' and state = 'deleted' on conflict do nothing; \
             insert into clerk.users (id) select user_id from clerk.organization_memberships union select id from clerk.user_details on conflict do nothing;",
        ),
        "clerk.user_details" => ("user", ""),
        "clerk.organizations" => (
            "organization",
            " insert into clerk.organizations (id, deleted_at) select id, now() from clerk_sync.versions where kind = 'organization' and state = 'deleted' on conflict do nothing; \
             insert into clerk.organizations (id) select organization_id from clerk.organization_memberships on conflict do nothing;",
        ),
        "clerk.organization_memberships" => ("membership", ""),
        _ => return String::new(),
    };
    format!(
        "{placeholders} delete from clerk_sync.versions where kind = '{kind}' and state <> 'deleted'; \
         insert into clerk_sync.pending_passes (kind, reason) values ('{kind}', 'rows were lost') on conflict do nothing;"
    )
}
