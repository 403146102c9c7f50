-- Step, R9: several webhooks about one object in one batch, of which the batch brings one: which of them was the greatest, and whether a
-- read by id must tell which came last.
create or replace function clerk_sync.record_doubts(doubts clerk_sync.doubt_v1[], changes clerk_sync.change_v1[]) returns void
  language plpgsql volatile set search_path = '' as $$
#variable_conflict use_column
declare
  skew constant bigint := 2100;
begin
  with doubt as (
    select d.*, c.kind, c.id, c.organization_id, c.user_id, greatest(c.observed_at, d.observed_at) + skew as settles_after
      from unnest(doubts) d
      join unnest(changes) c on c.n = d.n
     cross join lateral (select * from clerk_sync.versions where kind = c.kind and id = c.id offset 0) v
     where v.state = 'live' and (v.updated_at, v.content) = (c.updated_at, c.content)
       and (d.updated_at, d.observed_at, d.content) >= (v.event_updated_at, v.event_observed_at, v.event_content)
  ), written as (
    update clerk_sync.versions v
       set in_doubt = v.in_doubt or t.in_doubt,
           (event_updated_at, event_observed_at, event_content) = (t.updated_at, t.observed_at, t.content)
      from doubt t
     where v.kind = t.kind and v.id = t.id
       and ((t.in_doubt and not v.in_doubt)
            or (t.updated_at, t.observed_at, t.content) > (v.event_updated_at, v.event_observed_at, v.event_content))
  )
  insert into clerk_sync.pending_reads as p (kind, id, organization_id, user_id, reason, settles_after, next_at)
    select kind, id, organization_id, user_id, 'in doubt', settles_after,
           greatest(pg_catalog.now(), pg_catalog.to_timestamp((settles_after + 12000) / 1000.0))
      from doubt where asks
    on conflict (kind, id) do update
      set settles_after = greatest(p.settles_after, excluded.settles_after), tries = 0, next_at = excluded.next_at, requested_at = pg_catalog.now();
end
$$;

revoke all on function clerk_sync.record_doubts(clerk_sync.doubt_v1[], clerk_sync.change_v1[]) from public, anon, authenticated, service_role;
