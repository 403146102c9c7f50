-- What policies call. Access is decided by rows, never by what a token says about organizations and roles: the token names
-- the user, and the organization that the user has chosen to work in.
--
-- The functions are security definer, and the views run as their owner, too: a policy's subquery runs as the caller, and
-- would see no membership at all without. They are PL/pgSQL because that keeps its plans for the session; a function in SQL
-- is planned anew by each query. Bodies name every type with its schema, as 0004 does.

-- Who may act at all. A ban that is not known yet counts as one. A deleted user has no details.
create view clerk_rls.able_users as
  select d.id from clerk.user_details d where d.banned is false and d.deprovisioned is not true;

-- Where anybody may act.
create view clerk_rls.live_memberships as
  select m.user_id, m.organization_id, m.role, m.permissions
    from clerk.organization_memberships m
    join clerk.organizations o on o.id = m.organization_id
   where o.deleted_at is null;

create function clerk_rls.claims() returns jsonb
  language plpgsql stable security definer set search_path = '' as $$
begin
  -- A setting of an ended transaction reads as an empty string.
  return nullif(pg_catalog.current_setting('request.jwt.claims', true), '')::pg_catalog.jsonb;
end
$$;

create function clerk_rls.user_id() returns text
  language plpgsql stable security definer set search_path = '' as $$
declare
  claims constant pg_catalog.jsonb := clerk_rls.claims();
begin
  -- A pending session still owes Clerk a task, such as a second factor; Clerk's libraries take it for signed out.
  return (select u.id from clerk_rls.able_users u where u.id = claims ->> 'sub' and claims ->> 'sts' is distinct from 'pending');
end
$$;

create function clerk_rls.organization_ids() returns setof text
  language plpgsql stable security definer set search_path = '' as $$
declare
  me constant pg_catalog.text := clerk_rls.user_id();
begin
  return query select m.organization_id from clerk_rls.live_memberships m where m.user_id = me;
end
$$;

create function clerk_rls.organization_ids_by_role(role text) returns setof text
  language plpgsql stable strict security definer set search_path = '' as $$
declare
  me constant pg_catalog.text := clerk_rls.user_id();
begin
  return query select m.organization_id from clerk_rls.live_memberships m where m.user_id = me and m.role = $1;
end
$$;

create function clerk_rls.organization_ids_by_permission(permission text) returns setof text
  language plpgsql stable strict security definer set search_path = '' as $$
declare
  me constant pg_catalog.text := clerk_rls.user_id();
begin
  return query select m.organization_id from clerk_rls.live_memberships m where m.user_id = me and $1 = any (m.permissions);
end
$$;

create function clerk_rls.active_organization_id() returns text
  language plpgsql stable security definer set search_path = '' as $$
declare
  me constant pg_catalog.text := clerk_rls.user_id();
  claims constant pg_catalog.jsonb := clerk_rls.claims();
  -- A session token of version 2 has the organization in "o"; version 1 and the JWT template have it in "org_id".
  named constant pg_catalog.text :=
    case when claims ->> 'v' = '2' then claims -> 'o' ->> 'id' else claims ->> 'org_id' end;
begin
  return (select m.organization_id from clerk_rls.live_memberships m where m.user_id = me and m.organization_id = named);
end
$$;

create function clerk_rls.active_organization_role() returns text
  language plpgsql stable security definer set search_path = '' as $$
declare
  me constant pg_catalog.text := clerk_rls.user_id();
  active constant pg_catalog.text := clerk_rls.active_organization_id();
begin
  return (select m.role from clerk_rls.live_memberships m where m.user_id = me and m.organization_id = active);
end
$$;

comment on view clerk_rls.able_users is 'Users that are not deleted, banned or deprovisioned.';
comment on view clerk_rls.live_memberships is 'Memberships in organizations that are not deleted.';
comment on function clerk_rls.user_id() is
  'The caller''s Clerk user id; null unless the mirror has that user, not deleted, banned or deprovisioned, and the session is not pending.';
comment on function clerk_rls.organization_ids() is 'All organizations that the caller is a member of now.';
comment on function clerk_rls.organization_ids_by_role(text) is 'Those in which the caller has this role, such as org:admin.';
comment on function clerk_rls.organization_ids_by_permission(text) is 'Those in which the caller''s role has this permission, such as org:invoices:read.';
comment on function clerk_rls.active_organization_id() is 'The organization the token names, if the caller is a member of it now.';
comment on function clerk_rls.active_organization_role() is 'The caller''s role in that organization, by its row.';

do $$
declare f regprocedure;
begin
  for f in select p.oid from pg_catalog.pg_proc p where p.pronamespace = 'clerk_rls'::regnamespace loop
    execute format('revoke all on function %s from public, anon, authenticated, service_role', f);
    if f <> 'clerk_rls.claims()'::regprocedure then
      execute format('grant execute on function %s to authenticated', f);
    end if;
  end loop;
end
$$;
revoke all on table clerk_rls.able_users, clerk_rls.live_memberships from public, anon, authenticated, service_role;
grant select on table clerk_rls.able_users to authenticated;    -- for the policy below; without usage on the schema, for no query

-- Our own tables, for the Data API and for plain joins in your policies: a user sees his organizations, the memberships in
-- them of whoever may act, those people, and himself. The arrays are computed once for each query and looked up in an index.
create policy members_read on clerk.organizations for select to authenticated
  using (id = any (array(select clerk_rls.organization_ids())));
create policy members_read on clerk.organization_memberships for select to authenticated
  using (organization_id = any (array(select clerk_rls.organization_ids()))
         and exists (select from clerk_rls.able_users u where u.id = organization_memberships.user_id));
create policy members_read on clerk.users for select to authenticated
  using (id = any (array(select m.user_id from clerk.organization_memberships m union select clerk_rls.user_id())));
create policy own_read on clerk.user_details for select to authenticated
  using (id = (select clerk_rls.user_id()));
