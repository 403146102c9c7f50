-- What policies call. Access is decided by rows, never by what a token says about organizations and roles: the token names
-- the user, and the organization that the user has chosen to work in.
--
-- All are security definer: a policy's subquery runs as the caller, and would see no membership at all without.

create function clerk_rls.claims() returns jsonb
  language sql stable security definer set search_path = ''
  as $$ select nullif(pg_catalog.current_setting('request.jwt.claims', true), '')::pg_catalog.jsonb $$;

create function clerk_rls.user_id() returns text
  language sql stable security definer set search_path = '' as $$
  select d.id from clerk.user_details d
   where d.id = clerk_rls.claims() ->> 'sub'
     and d.banned is false                    -- null is "not known": no access until it is
     and d.deprovisioned is not true
$$;

create function clerk_rls.organization_ids() returns setof text
  language sql stable security definer set search_path = '' as $$
  select m.organization_id from clerk.organization_memberships m where m.user_id = clerk_rls.user_id()
$$;

create function clerk_rls.organization_ids_by_role(role text) returns setof text
  language sql stable strict security definer set search_path = '' as $$
  select m.organization_id from clerk.organization_memberships m where m.user_id = clerk_rls.user_id() and m.role = $1
$$;

create function clerk_rls.organization_ids_by_permission(permission text) returns setof text
  language sql stable strict security definer set search_path = '' as $$
  select m.organization_id from clerk.organization_memberships m where m.user_id = clerk_rls.user_id() and $1 = any (m.permissions)
$$;

-- A session token of version 2 has the organization in "o"; version 1 and the JWT template have it in "org_id".
create function clerk_rls.active_organization_id() returns text
  language sql stable security definer set search_path = '' as $$
  select m.organization_id from clerk.organization_memberships m
   where m.user_id = clerk_rls.user_id()
     and m.organization_id = case when clerk_rls.claims() ->> 'v' = '2' then clerk_rls.claims() -> 'o' ->> 'id'
                                  else clerk_rls.claims() ->> 'org_id' end
$$;

create function clerk_rls.active_organization_role() returns text
  language sql stable security definer set search_path = '' as $$
  select m.role from clerk.organization_memberships m
   where m.user_id = clerk_rls.user_id() and m.organization_id = clerk_rls.active_organization_id()
$$;

comment on function clerk_rls.user_id() is 'The caller''s Clerk user id; null unless the mirror has that user, not deleted, banned or deprovisioned.';
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

-- Our own tables, for the Data API and for plain joins in your policies: a user sees himself, his organizations and the
-- people in them.
create policy members_read on clerk.users for select to authenticated
  using (id = (select clerk_rls.user_id())
         or id in (select m.user_id from clerk.organization_memberships m));
create policy own_read on clerk.user_details for select to authenticated
  using (id = (select clerk_rls.user_id()));
create policy members_read on clerk.organizations for select to authenticated
  using (id = any (array(select clerk_rls.organization_ids())));
create policy members_read on clerk.organization_memberships for select to authenticated
  using (organization_id = any (array(select clerk_rls.organization_ids())));
