-- Step: what the rows that won must say of access. Usually what takes access away is enough; after a refusal it is all of it.
create or replace function clerk_sync.collect_intents(
    user_rows clerk_sync.user_row_v1[], users_win boolean[], organization_rows clerk_sync.organization_row_v1[], organizations_win boolean[],
    membership_rows clerk_sync.membership_row_v1[], memberships_win boolean[], stubs clerk_sync.stub_v1[], everything boolean)
  returns clerk_sync.intent[]
  language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
begin
  return array(select row('user', id, (banned is false and deprovisioned is not true), null, banned, deprovisioned,
                          null, null, null, null, null, null)::clerk_sync.intent
                 from unnest(user_rows, users_win) r where r.unnest and (everything or banned is not false or deprovisioned))
      || array(select row('organization', id, true, null, null, null, null, null, null, null, null, null)::clerk_sync.intent
                 from unnest(organization_rows, organizations_win) r where r.unnest and everything)
      || array(select row('membership', id, true, null, null, null, organization_id, user_id, role, permissions, created_at, updated_at)::clerk_sync.intent
                 from unnest(membership_rows, memberships_win) r where r.unnest)
      || array(select row('user', id, (banned is false and deprovisioned is not true), null, banned, deprovisioned,
                          null, null, null, null, null, null)::clerk_sync.intent
                 from unnest(stubs) where kind = 'user');
end
$$;

revoke all on function clerk_sync.collect_intents(clerk_sync.user_row_v1[], boolean[], clerk_sync.organization_row_v1[], boolean[],
  clerk_sync.membership_row_v1[], boolean[], clerk_sync.stub_v1[], boolean) from public, anon, authenticated, service_role;
