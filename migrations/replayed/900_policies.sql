-- Our own tables, for the Data API and for plain joins in your policies: users see their organizations, the memberships in
-- them of users who are not banned or deprovisioned, those users, and themselves. The arrays are computed once for each query, and
-- looked up in an index.
drop policy if exists members_read on clerk.organizations;
create policy members_read on clerk.organizations for select to authenticated
  using (id = any (array(select clerk_rls.organization_ids())));
drop policy if exists members_read on clerk.organization_memberships;
create policy members_read on clerk.organization_memberships for select to authenticated
  using (organization_id = any (array(select clerk_rls.organization_ids()))
         and exists (select from clerk_rls.able_users u where u.id = organization_memberships.user_id)
         and ((select not exists (select from clerk_rls.denied))
              or (user_id not in (select d.id from clerk_rls.denied d where d.kind = 'user')
                  and id not in (select d.id from clerk_rls.denied d where d.kind = 'membership'))));
drop policy if exists members_read on clerk.users;
create policy members_read on clerk.users for select to authenticated
  using (id = any (array(select m.user_id from clerk.organization_memberships m union select clerk_rls.user_id())));
drop policy if exists own_read on clerk.user_details;
create policy own_read on clerk.user_details for select to authenticated
  using (id = (select clerk_rls.user_id()));
