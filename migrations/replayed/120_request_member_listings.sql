-- Asks for the memberships of organizations to be listed: at once, and again ten seconds after it was last asked for. However often
-- that is, they are listed once in half a minute at most.
create or replace function clerk_sync.request_member_listings(organization_ids text[], reason text) returns void
  language sql volatile set search_path = '' as $$
  insert into clerk_sync.pending_listings as p (organization_id, reason)
    select distinct i, $2 from unnest($1) i
    on conflict (organization_id) do update
      set reason = excluded.reason, requested_at = pg_catalog.now(),
          next_at = case when p.claimed_at is null then p.next_at
                         else least(pg_catalog.now() + interval '10 s', p.claimed_at + interval '30 s') end
$$;

revoke all on function clerk_sync.request_member_listings(text[], text) from public, anon, authenticated, service_role;
