-- Our own tables, for the Data API and for plain joins in your policies: users see their organizations, the memberships in
-- them of users who are not banned or deprovisioned, those users, and themselves. The arrays are computed once for each query, and
-- looked up in an index.

-- The policy of memberships is planned anew by each query. One function is planned faster than questions about views; and `select true`
-- faster than `exists`, for which Postgres also plans to read all users. Clerk's ids begin with their kind: no two kinds share one.
create or replace function clerk_rls.denied_ids() returns jsonb
  language plpgsql stable security definer set search_path = '' as $$
begin
  return (select pg_catalog.jsonb_object_agg(d.id, true) from clerk_sync.denials d);
end
$$;

comment on function clerk_rls.denied_ids() is 'An object with the id of each denied user, organization and membership as a key; null if there is none.';

revoke all on function clerk_rls.denied_ids() from public, anon, authenticated, service_role;
grant execute on function clerk_rls.denied_ids() to authenticated;

drop policy if exists members_read on clerk.organizations;
create policy members_read on clerk.organizations for select to authenticated
  using (id = any (array(select clerk_rls.organization_ids())));
drop policy if exists members_read on clerk.organization_memberships;
create policy members_read on clerk.organization_memberships for select to authenticated
  using (organization_id = any (array(select clerk_rls.organization_ids()))
         and (select true from clerk_rls.able_users u where u.id = organization_memberships.user_id)
         and ((select clerk_rls.denied_ids()) ?| array[user_id, id]) is not true);
drop policy if exists members_read on clerk.users;
create policy members_read on clerk.users for select to authenticated
  using (id = any (array(select m.user_id from clerk.organization_memberships m union select clerk_rls.user_id())));
drop policy if exists own_read on clerk.user_details;
create policy own_read on clerk.user_details for select to authenticated
  using (id = (select clerk_rls.user_id()));
