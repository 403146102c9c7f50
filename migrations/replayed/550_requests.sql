-- Organizations whose memberships are to be listed now; nobody else is told of them for a while, the longer, the more often it came
-- to nothing.
create or replace function clerk_sync.claim_listings(at_most integer) returns setof text
  language sql volatile security definer set search_path = '' as $$
  update clerk_sync.pending_listings p
     set claimed_at = pg_catalog.now(), tries = p.tries + 1,
         next_at = pg_catalog.now() + least(power(2, least(p.tries, 10)) * interval '30 s', interval '1 hour')
   where p.organization_id = any (array(select w.organization_id from clerk_sync.pending_listings w where w.next_at <= pg_catalog.now()
                                         order by w.next_at limit $1 for update skip locked))
  returning p.organization_id
$$;

-- They were listed. Where it was asked for within the ten seconds before, they will be once more.
create or replace function clerk_sync.mark_listed(organization_id text) returns void
  language sql volatile security definer set search_path = '' as $$
  delete from clerk_sync.pending_listings p
   where p.organization_id = $1 and p.requested_at <= p.claimed_at - interval '10 s';
  update clerk_sync.pending_listings p
     set listed_at = p.claimed_at, next_at = p.requested_at + interval '10 s', tries = 0
   where p.organization_id = $1
$$;

-- Asks for the memberships of organizations, as an event does.
create or replace function clerk_sync.request_listings(organization_ids text[], reason text) returns void
  language sql volatile security definer set search_path = '' as $$
  select clerk_sync.request_member_listings($1, $2)
$$;

-- Asks for a pass of a kind.
create or replace function clerk_sync.request_pass(kind text, reason text) returns void
  language sql volatile security definer set search_path = '' as $$
  insert into clerk_sync.pending_passes as p (kind, reason) values ($1, $2)
    on conflict (kind) do update set requested_at = pg_catalog.now(), ripe_at = greatest(p.ripe_at, excluded.ripe_at), tried_at = null
$$;

-- Notes that reads were tried that settled nothing, and when they are tried again. One that came too early, when as much time has
-- passed as Clerk's API may lag behind; any other ever more seldom, an hour apart at most.
create or replace function clerk_sync.mark_reads_attempted(kind text, ids text[], early text[]) returns void
  language sql volatile security definer set search_path = '' as $$
  select clerk_sync.lock_writer();
  update clerk_sync.pending_reads
     set tries = case when id = any ($3) then tries else tries + 1 end,
         next_at = greatest(next_at, case when id = any ($3)
           then least(greatest(pg_catalog.now() + interval '5 s', pg_catalog.to_timestamp((settles_after + 12000) / 1000.0)),
                      pg_catalog.now() + interval '5 min')
           else pg_catalog.now() + least(interval '30 s' * pg_catalog.power(2, least(tries, 10)), interval '1 h') end)
   where kind = $1 and id = any ($2)
$$;

revoke all on function clerk_sync.claim_listings(integer) from public, anon, authenticated, service_role;
revoke all on function clerk_sync.mark_listed(text) from public, anon, authenticated, service_role;
revoke all on function clerk_sync.request_listings(text[], text) from public, anon, authenticated, service_role;
revoke all on function clerk_sync.request_pass(text, text) from public, anon, authenticated, service_role;
revoke all on function clerk_sync.mark_reads_attempted(text, text[], text[]) from public, anon, authenticated, service_role;
grant execute on function clerk_sync.claim_listings(integer) to clerk_sync_worker;
grant execute on function clerk_sync.mark_listed(text) to clerk_sync_worker;
grant execute on function clerk_sync.request_listings(text[], text) to clerk_sync_worker;
grant execute on function clerk_sync.request_pass(text, text) to clerk_sync_worker;
grant execute on function clerk_sync.mark_reads_attempted(text, text[], text[]) to clerk_sync_worker;
