-- What policies call. Access is decided by rows, never by what a token says about organizations and roles: the token names
-- the user, and the organization that the user has chosen to work in.
--
-- The views below say who the caller is and where they may act; the functions hand that to policies. A view reads with its
-- owner's rights, and the functions are security definer: a policy's subquery runs as the caller, and would see no
-- membership at all without. They are PL/pgSQL because that keeps its plans for the session; a function in SQL is planned
-- anew by each query.

-- Who may act by the rows. A ban that is not known yet counts as one. A deleted user has no details.
create or replace view clerk_rls.able_users as
  select d.id from clerk.user_details d where d.banned is false and d.deprovisioned is not true;

-- Who the token names, and where they may act, by the rows. A pending session still owes Clerk a task, such as a second factor; Clerk's
-- libraries take it for signed out. A status that we do not know lets nobody in. A setting of an ended transaction reads as an empty string.
create or replace view clerk_rls.token_user as
  select u.id as user_id, t.claims
    from (select nullif(pg_catalog.current_setting('request.jwt.claims', true), '')::jsonb as claims) t
    join clerk_rls.able_users u on u.id = t.claims ->> 'sub'
   where coalesce(t.claims -> 'sts', '"active"') = '"active"';

-- The active organization is in the claim "o" of a session token of version 2, and in "org_id" of version 1 and of the JWT template.
create or replace view clerk_rls.token_memberships as
  select m.id, m.organization_id, m.role, m.permissions,
         m.organization_id = case when u.claims ->> 'v' = '2' then u.claims -> 'o' ->> 'id' else u.claims ->> 'org_id' end as is_active
    from clerk_rls.token_user u
    join clerk.organization_memberships m on m.user_id = u.user_id
   where not exists (select from clerk.organizations o where o.id = m.organization_id and o.deleted_at is not null);

-- The same without what is denied. By `not in` the denials are read once and looked up in memory. (No id is null.)
create or replace view clerk_rls.caller as
  select u.user_id, u.claims
    from clerk_rls.token_user u
   where not exists (select from clerk_sync.denials d where d.kind = 'user' and d.id = u.user_id);

create or replace view clerk_rls.caller_memberships as
  select m.organization_id, m.role, m.permissions, m.is_active
    from clerk_rls.token_memberships m
   where exists (select from clerk_rls.caller)
     and m.organization_id not in (select d.id from clerk_sync.denials d where d.kind = 'organization')
     and m.id not in (select d.id from clerk_sync.denials d where d.kind = 'membership');

comment on view clerk_rls.able_users is 'Users that are not deleted, banned or deprovisioned.';
comment on view clerk_rls.token_user is 'The user that the token names, if their row lets them act.';
comment on view clerk_rls.token_memberships is 'The memberships of that user in organizations that are not deleted.';
comment on view clerk_rls.caller is 'The user that the token names, if they may act.';
comment on view clerk_rls.caller_memberships is 'The caller''s memberships that give access.';

revoke all on table clerk_rls.able_users, clerk_rls.token_user, clerk_rls.token_memberships, clerk_rls.caller, clerk_rls.caller_memberships
  from public, anon, authenticated, service_role;
-- For the policy of memberships. Without usage on the schema no query of the caller's own can name them.
grant select on table clerk_rls.able_users to authenticated;
