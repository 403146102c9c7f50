-- Three schemas and the worker's role. Everything of ours is revoked from everybody and granted back by name, so that it
-- does not matter whether a Supabase project grants new objects to its API roles by itself.

do $$
begin
  if (select count(*) from pg_catalog.pg_roles where rolname in ('anon', 'authenticated', 'service_role')) < 3 then
    raise exception 'this is not a Supabase database: the role anon, authenticated or service_role is missing'
      using hint = 'Point DATABASE_URL at your Supabase project, or create the three roles first.';
  end if;
  -- The Clerk foreign data wrapper's guide makes a schema of this name with tables of the same names.
  if pg_catalog.to_regnamespace('clerk') is not null then
    raise exception 'a schema named "clerk" is there already, and it is not ours'
      using hint = 'If it holds the foreign tables of the Clerk wrapper: alter schema clerk rename to clerk_fdw;';
  end if;
end
$$;

-- The role that `clerk-sync serve` becomes on every connection. Roles belong to the whole cluster: another database may
-- have made it, or be making it at this moment.
do $$
begin
  if not exists (select from pg_catalog.pg_roles where rolname = 'clerk_sync_worker') then
    create role clerk_sync_worker nologin;
  end if;
exception when duplicate_object or unique_violation then
  null;
end
$$;

do $$
begin
  if not exists (select from pg_catalog.pg_auth_members
                  where roleid = 'clerk_sync_worker'::regrole and member = current_user::regrole
                    -- From Postgres 16 on the creator is a member who may grant the role but not become it.
                    and coalesce((pg_catalog.to_jsonb(pg_auth_members) ->> 'set_option')::boolean, true)) then
    -- Before 16 CREATEROLE alone suffices to grant it further; after an upgrade it does not, and nobody can give it to themselves.
    execute format('grant clerk_sync_worker to %I', current_user)
      || case when pg_catalog.current_setting('server_version_num')::integer < 160000 then ' with admin option' else '' end;
  end if;
end
$$;

create schema if not exists clerk_sync;      -- made already by the migrator, for its own table
create schema clerk;
create schema clerk_rls;

revoke all on schema clerk, clerk_rls, clerk_sync from public, anon, authenticated, service_role;
grant usage on schema clerk to authenticated, service_role, clerk_sync_worker;
grant usage on schema clerk_sync to clerk_sync_worker;
-- Nobody gets usage on clerk_rls: a policy runs its functions without, and a direct call is refused.

comment on schema clerk is 'Clerk''s users, organizations and memberships, kept in sync by clerk-sync: for your policies and queries.';
comment on schema clerk_rls is 'Functions for Row-Level Security policies.';
comment on schema clerk_sync is 'Bookkeeping of clerk-sync. Do not query or reference it.';

alter table clerk_sync._sqlx_migrations enable row level security;
revoke all on table clerk_sync._sqlx_migrations from public, anon, authenticated, service_role;
grant select on table clerk_sync._sqlx_migrations to clerk_sync_worker;
create policy worker_reads on clerk_sync._sqlx_migrations for select to clerk_sync_worker using (true);
