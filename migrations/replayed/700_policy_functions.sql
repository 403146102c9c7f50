-- The functions for policies. Policies of applications depend on their names, arguments and results: those never change.
--
-- Denials are seldom. While there is none, a plan that does not look for them takes a third less time; so those that ask for memberships
-- have both. They name the table, not a view of it: each view is one more lock for each query, and only sixteen of
-- a transaction are cheap (Postgres's fast-path locks, before version 18).

create or replace function clerk_rls.user_id() returns text
  language plpgsql stable security definer set search_path = '' as $$
begin
  return (select c.user_id from clerk_rls.caller c);
end
$$;

create or replace function clerk_rls.organization_ids() returns setof text
  language plpgsql stable security definer set search_path = '' as $$
begin
  if exists (select from clerk_sync.denials) then
    return query select m.organization_id from clerk_rls.caller_memberships m;
  else
    return query select m.organization_id from clerk_rls.token_memberships m;
  end if;
end
$$;

create or replace function clerk_rls.organization_ids_by_role(role text) returns setof text
  language plpgsql stable strict security definer set search_path = '' as $$
begin
  if exists (select from clerk_sync.denials) then
    return query select m.organization_id from clerk_rls.caller_memberships m where m.role = $1;
  else
    return query select m.organization_id from clerk_rls.token_memberships m where m.role = $1;
  end if;
end
$$;

create or replace function clerk_rls.organization_ids_by_permission(permission text) returns setof text
  language plpgsql stable strict security definer set search_path = '' as $$
begin
  if exists (select from clerk_sync.denials) then
    return query select m.organization_id from clerk_rls.caller_memberships m where $1 = any (m.permissions);
  else
    return query select m.organization_id from clerk_rls.token_memberships m where $1 = any (m.permissions);
  end if;
end
$$;

create or replace function clerk_rls.active_organization_id() returns text
  language plpgsql stable security definer set search_path = '' as $$
begin
  if exists (select from clerk_sync.denials) then
    return (select m.organization_id from clerk_rls.caller_memberships m where m.is_active);
  else
    return (select m.organization_id from clerk_rls.token_memberships m where m.is_active);
  end if;
end
$$;

create or replace function clerk_rls.active_organization_role() returns text
  language plpgsql stable security definer set search_path = '' as $$
begin
  if exists (select from clerk_sync.denials) then
    return (select m.role from clerk_rls.caller_memberships m where m.is_active);
  else
    return (select m.role from clerk_rls.token_memberships m where m.is_active);
  end if;
end
$$;

comment on function clerk_rls.user_id() is
  'The caller''s Clerk user id; null unless the mirror has that user, not deleted, banned, deprovisioned or denied, and the session is active.';
comment on function clerk_rls.organization_ids() is 'All organizations that the caller is a member of now.';
comment on function clerk_rls.organization_ids_by_role(text) is 'Those in which the caller has this role, such as org:admin.';
comment on function clerk_rls.organization_ids_by_permission(text) is 'Those in which the caller''s role has this permission, such as org:invoices:read.';
comment on function clerk_rls.active_organization_id() is 'The organization the token names, if the caller is a member of it now.';
comment on function clerk_rls.active_organization_role() is 'The caller''s role in that organization, by its row.';

revoke all on function clerk_rls.user_id() from public, anon, authenticated, service_role;
grant execute on function clerk_rls.user_id() to authenticated;
revoke all on function clerk_rls.organization_ids() from public, anon, authenticated, service_role;
grant execute on function clerk_rls.organization_ids() to authenticated;
revoke all on function clerk_rls.organization_ids_by_role(text) from public, anon, authenticated, service_role;
grant execute on function clerk_rls.organization_ids_by_role(text) to authenticated;
revoke all on function clerk_rls.organization_ids_by_permission(text) from public, anon, authenticated, service_role;
grant execute on function clerk_rls.organization_ids_by_permission(text) to authenticated;
revoke all on function clerk_rls.active_organization_id() from public, anon, authenticated, service_role;
grant execute on function clerk_rls.active_organization_id() to authenticated;
revoke all on function clerk_rls.active_organization_role() from public, anon, authenticated, service_role;
grant execute on function clerk_rls.active_organization_role() to authenticated;
