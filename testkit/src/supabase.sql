-- Makes a fresh database look like a Supabase project: the roles that its API uses, the schema auth, and the grants that a
-- new object in public gets by itself. Run as the superuser; harmless to run again.
-- Facts: supabase/postgres migrations/db, supabase/auth migrations/20220531120530_add_auth_jwt_function.up.sql.

do $$
declare
  role record;
begin
  -- Roles belong to the whole cluster: whoever comes second waits here and finds them made.
  lock table pg_catalog.pg_authid in share row exclusive mode;
  for role in select * from (values
      ('postgres', 'nosuperuser createdb createrole replication bypassrls login'),
      ('anon', 'nologin'), ('authenticated', 'nologin'), ('service_role', 'nologin bypassrls'),
      ('authenticator', 'login noinherit'), ('supabase_auth_admin', 'login noinherit')) as r (name, attributes)
  loop
    if not exists (select from pg_catalog.pg_roles where rolname = role.name) then
      execute format('create role %I %s', role.name, role.attributes);
    end if;
  end loop;
  grant anon, authenticated, service_role to authenticator;
  if current_setting('server_version_num')::integer >= 160000 then
    grant anon, authenticated, service_role to postgres with admin option;
  else
    grant anon, authenticated, service_role to postgres;
  end if;
  grant pg_monitor, pg_read_all_data, pg_signal_backend to postgres;
  alter role anon set statement_timeout = '3s';
  alter role authenticated set statement_timeout = '8s';
  alter role authenticator set statement_timeout = '8s';
  -- Owning the database is what lets postgres create schemas.
  execute format('alter database %I owner to postgres', current_database());
  execute format('alter database %I set statement_timeout = %L', current_database(), '2min');
end
$$;

create schema if not exists auth authorization supabase_auth_admin;
create schema if not exists extensions;
grant usage on schema public, auth, extensions to postgres, anon, authenticated, service_role;
grant create on schema public, extensions to postgres;

alter default privileges for role postgres in schema public grant all on tables to anon, authenticated, service_role;
alter default privileges for role postgres in schema public grant all on sequences to anon, authenticated, service_role;
alter default privileges for role postgres in schema public grant all on functions to anon, authenticated, service_role;

-- A project with "Default privileges for new entities" switched off (set shim.auto_expose = 'off' before): what the switch
-- takes back, and no more.
do $$
begin
  if current_setting('shim.auto_expose', true) = 'off' then
    alter default privileges for role postgres in schema public
      revoke select, insert, update, delete on tables from anon, authenticated, service_role;
    alter default privileges for role postgres in schema public
      revoke usage, select on sequences from anon, authenticated, service_role;
    alter default privileges for role postgres in schema public
      revoke execute on functions from anon, authenticated, service_role;
  end if;
end
$$;

-- An empty string counts as absent: that is what a setting of an ended transaction reads as.
create or replace function auth.jwt() returns jsonb language sql stable as $$
  select coalesce(nullif(current_setting('request.jwt.claim', true), ''),
                  nullif(current_setting('request.jwt.claims', true), ''))::jsonb
$$;
create or replace function auth.uid() returns uuid language sql stable as $$
  select (auth.jwt() ->> 'sub')::uuid
$$;
create or replace function auth.role() returns text language sql stable as $$
  select auth.jwt() ->> 'role'
$$;
