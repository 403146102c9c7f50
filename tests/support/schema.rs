//! What there is of our schemas in a database, as text: two of them are the same if their texts are.

use super::{Project, supabase};
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::process::Command;

/// Everything that `pg_dump --schema-only` reads of our schemas, a line for each thing: it does not come with every Postgres that the
/// tests run on. Beside it, what our two tables say of the release.
const CATALOG: &str = r"
with ours as (select oid, nspname, nspowner, nspacl from pg_namespace where nspname in ('clerk', 'clerk_rls', 'clerk_sync')),
relation as (select c.* from pg_class c join ours n on n.oid = c.relnamespace),
function as (select p.* from pg_proc p join ours n on n.oid = p.pronamespace),
thing(line) as (
  select format('schema %s owner %s acl %s: %s', nspname, nspowner::regrole, nspacl, obj_description(oid, 'pg_namespace')) from ours
  union all
  select format('relation %s kind %s owner %s acl %s rls %s forced %s options %s persistence %s identity %s: %s', oid::regclass, relkind,
                relowner::regrole, relacl, relrowsecurity, relforcerowsecurity, reloptions, relpersistence, relreplident,
                obj_description(oid, 'pg_class')) from relation
  union all
  select format('column %s.%s number %s type %s not null %s default %s identity %s generated %s collation %s statistics %s acl %s: %s',
                r.oid::regclass, a.attname, a.attnum, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid),
                a.attidentity, a.attgenerated, a.attcollation::regcollation, a.attstattarget, a.attacl, col_description(r.oid, a.attnum))
    from relation r join pg_attribute a on a.attrelid = r.oid and a.attnum > 0
    left join pg_attrdef d on d.adrelid = r.oid and d.adnum = a.attnum
  union all
  select format('constraint %s on %s: %s valid %s: %s', c.conname, c.conrelid::regclass, pg_get_constraintdef(c.oid), c.convalidated,
                obj_description(c.oid, 'pg_constraint')) from pg_constraint c join ours n on n.oid = c.connamespace
  union all
  select format('index %s valid %s', pg_get_indexdef(i.indexrelid), i.indisvalid) from pg_index i join relation r on r.oid = i.indexrelid
  union all
  select format('view %s: %s', oid::regclass, pg_get_viewdef(oid)) from relation where relkind = 'v'
  union all
  select format('function %s owner %s acl %s: %s: %s', oid::regprocedure, proowner::regrole, proacl, obj_description(oid, 'pg_proc'),
                pg_get_functiondef(oid)) from function
  union all
  select format('policy %s on %s permissive %s command %s roles %s using %s check %s: %s', p.polname, p.polrelid::regclass, p.polpermissive,
                p.polcmd, array(select r::regrole from unnest(p.polroles) r), pg_get_expr(p.polqual, p.polrelid),
                pg_get_expr(p.polwithcheck, p.polrelid), obj_description(p.oid, 'pg_policy'))
    from pg_policy p join relation r on r.oid = p.polrelid
  union all
  select format('trigger %s enabled %s', pg_get_triggerdef(t.oid), t.tgenabled) from pg_trigger t join relation r on r.oid = t.tgrelid
   where not t.tgisinternal
  union all
  select format('type %s kind %s owner %s acl %s: %s', t.oid::regtype, t.typtype, t.typowner::regrole, t.typacl, obj_description(t.oid, 'pg_type'))
    from pg_type t join ours n on n.oid = t.typnamespace
  union all
  select format('sequence %s: %s', s.seqrelid::regclass, row(s.seqtypid::regtype, s.seqstart, s.seqincrement, s.seqmax, s.seqmin, s.seqcache, s.seqcycle))
    from pg_sequence s join relation r on r.oid = s.seqrelid
  union all
  select format('default privileges %s %s %s: %s', d.defaclrole::regrole, d.defaclnamespace::regnamespace, d.defaclobjtype, d.defaclacl)
    from pg_default_acl d
  union all
  select format('migration %s %s success %s: %s', version, description, success, encode(checksum, 'hex')) from clerk_sync._sqlx_migrations
  union all
  select format('generation %s of %s: %s', generation, release, files) from clerk_sync.replayed
)
select line from thing order by line";

/// The catalog's lines, then what `pg_dump` writes, where there is one for this server.
pub async fn schema(project: &Project) -> String {
    let mut text = String::new();
    for row in project.rows(CATALOG).await {
        writeln!(text, "{}", row["line"].as_str().unwrap()).unwrap();
    }
    text + &pg_dump(project).unwrap_or_default()
}

/// None if there is no such program, or it is older than the server.
fn pg_dump(project: &Project) -> Option<String> {
    let cluster = supabase().cluster();
    let arguments = |mut command: Command| {
        command.args(["--schema-only", "--username", "postgres", "--host"]).arg(cluster.dir());
        command.args(["clerk", "clerk_rls", "clerk_sync"].map(|schema| format!("--schema={schema}")));
        command.arg(&project.name).output()
    };
    let dumped = match arguments(cluster.program("pg_dump")) {
        Err(error) if error.kind() == ErrorKind::NotFound => arguments(Command::new("pg_dump")),
        dumped => dumped,
    };
    let dumped = match dumped {
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        dumped => dumped.expect("pg_dump runs"),
    };
    let said = String::from_utf8(dumped.stderr).unwrap();
    if said.contains("server version mismatch") {
        return None;
    }
    assert!(dumped.status.success(), "{said}");
    let dump = String::from_utf8(dumped.stdout).unwrap();
    assert!(dump.contains("CREATE FUNCTION clerk_sync."), "{dump}");
    // With a random word, against what psql would obey in a dump.
    let lines = dump.lines().filter(|line| !line.starts_with("\\restrict ") && !line.starts_with("\\unrestrict "));
    Some(lines.map(|line| format!("{line}\n")).collect())
}

/// They must be the same; else the first lines that differ are shown.
#[track_caller]
pub fn assert_same(schema: &str, expected: &str, what: &str) {
    let differ = schema.lines().zip(expected.lines()).find(|(is, expected)| is != expected);
    if let Some((is, expected)) = differ {
        panic!("{what}:\n{is}\nand not as in a fresh one:\n{expected}");
    }
    assert!(
        schema == expected,
        "{what}: {} lines, and {} of a fresh one",
        schema.lines().count(),
        expected.lines().count()
    );
}
