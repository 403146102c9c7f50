-- What policies call. Access is decided by rows, never by what a token says about organizations and roles: the token names
-- the user, and the organization that the user has chosen to work in.
--
-- The views below say who the caller is and where he may act; the functions hand that to policies. A view reads with its
-- owner's rights, and the functions are security definer: a policy's subquery runs as the caller, and would see no
-- membership at all without. They are PL/pgSQL because that keeps its plans for the session; a function in SQL is planned
-- anew by each query.

-- Who may act by the rows. A ban that is not known yet counts as one. A deleted user has no details.
create view clerk_rls.able_users as
  select d.id from clerk.user_details d where d.banned is false and d.deprovisioned is not true;

-- Rows that the application's own objects keep as they were, and that give no access. Queries ask once whether there are any, which is
-- seldom; by `not in` they are read once then, and looked up in memory. (No id is null.)
create view clerk_rls.denied as
  select n.kind, n.id from clerk_sync.denials n;

-- A setting of an ended transaction reads as an empty string.
create view clerk_rls.token as
  select nullif(pg_catalog.current_setting('request.jwt.claims', true), '')::jsonb as claims;

-- A pending session still owes Clerk a task, such as a second factor; Clerk's libraries take it for signed out. A status that we do
-- not know lets nobody in.
create view clerk_rls.caller as
  select u.id as user_id, t.claims
    from clerk_rls.token t
    join clerk_rls.able_users u on u.id = t.claims ->> 'sub'
   where coalesce(t.claims -> 'sts', '"active"') = '"active"'
     and not exists (select from clerk_sync.denials n where n.kind = 'user' and n.id = u.id);

-- Where the caller may act. The active organization is in the claim "o" of a session token of version 2, in "org_id" of
-- version 1 and of the JWT template.
create view clerk_rls.caller_memberships as
  select m.organization_id, m.role, m.permissions,
         m.organization_id = case when c.claims ->> 'v' = '2' then c.claims -> 'o' ->> 'id' else c.claims ->> 'org_id' end as is_active
    from clerk_rls.caller c
    join clerk.organization_memberships m on m.user_id = c.user_id
   where not exists (select from clerk.organizations o where o.id = m.organization_id and o.deleted_at is not null)
     and ((select not exists (select from clerk_rls.denied))
          or (m.id not in (select n.id from clerk_rls.denied n where n.kind = 'membership')
              and m.organization_id not in (select n.id from clerk_rls.denied n where n.kind = 'organization')));
-- Few are deleted: the question above is answered by a page that is always at hand.
create index organizations_deleted_idx on clerk.organizations (id) where deleted_at is not null;

create function clerk_rls.user_id() returns text
  language plpgsql stable security definer set search_path = '' as $$
begin
  return (select c.user_id from clerk_rls.caller c);
end
$$;

create function clerk_rls.organization_ids() returns setof text
  language plpgsql stable security definer set search_path = '' as $$
begin
  return query select m.organization_id from clerk_rls.caller_memberships m;
end
$$;

create function clerk_rls.organization_ids_by_role(role text) returns setof text
  language plpgsql stable strict security definer set search_path = '' as $$
begin
  return query select m.organization_id from clerk_rls.caller_memberships m where m.role = $1;
end
$$;

create function clerk_rls.organization_ids_by_permission(permission text) returns setof text
  language plpgsql stable strict security definer set search_path = '' as $$
begin
  return query select m.organization_id from clerk_rls.caller_memberships m where $1 = any (m.permissions);
end
$$;

create function clerk_rls.active_organization_id() returns text
  language plpgsql stable security definer set search_path = '' as $$
begin
  return (select m.organization_id from clerk_rls.caller_memberships m where m.is_active);
end
$$;

create function clerk_rls.active_organization_role() returns text
  language plpgsql stable security definer set search_path = '' as $$
begin
  return (select m.role from clerk_rls.caller_memberships m where m.is_active);
end
$$;

comment on view clerk_rls.able_users is 'Users that are not deleted, banned or deprovisioned.';
comment on view clerk_rls.denied is 'Users, organizations and memberships that give no access, whatever their row says.';
comment on view clerk_rls.token is 'The claims of the request''s token.';
comment on view clerk_rls.caller is 'The user whom the token names, if he may act.';
comment on view clerk_rls.caller_memberships is 'The caller''s memberships in organizations that are not deleted.';
comment on function clerk_rls.user_id() is
  'The caller''s Clerk user id; null unless the mirror has that user, not deleted, banned, deprovisioned or denied, and the session is active.';
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
    execute format('grant execute on function %s to authenticated', f);
  end loop;
end
$$;
revoke all on all tables in schema clerk_rls from public, anon, authenticated, service_role;
-- For the policy of memberships below. Without usage on the schema no query of the caller's own can name them.
grant select on table clerk_rls.able_users, clerk_rls.denied to authenticated;

-- Our own tables, for the Data API and for plain joins in your policies: a user sees his organizations, the memberships in
-- them of whoever may act, those people, and himself. The arrays are computed once for each query and looked up in an index.
create policy members_read on clerk.organizations for select to authenticated
  using (id = any (array(select clerk_rls.organization_ids())));
create policy members_read on clerk.organization_memberships for select to authenticated
  using (organization_id = any (array(select clerk_rls.organization_ids()))
         and exists (select from clerk_rls.able_users u where u.id = organization_memberships.user_id)
         and ((select not exists (select from clerk_rls.denied))
              or (user_id not in (select d.id from clerk_rls.denied d where d.kind = 'user')
                  and id not in (select d.id from clerk_rls.denied d where d.kind = 'membership'))));
create policy members_read on clerk.users for select to authenticated
  using (id = any (array(select m.user_id from clerk.organization_memberships m union select clerk_rls.user_id())));
create policy own_read on clerk.user_details for select to authenticated
  using (id = (select clerk_rls.user_id()));
