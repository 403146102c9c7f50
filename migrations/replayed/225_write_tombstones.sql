-- Step, R4: a delete leaves a tombstone, also for an id never seen. One that is inferred from absence yields to whatever is read later.
--
-- | reason | rule | outcome | what follows |
-- | --- | --- | --- | --- |
-- | deleted | R4 | applied | the row is emptied or removed |
-- | deleted later than known | R4 | applied | the tombstone's time moves |
-- | deleted already | R4 | unchanged | what is left of the row goes |
-- | seen since | R4 | stale | absence is older than what is known |
-- | too early | R9 | stale | the read may not know what asked for it |
-- | known for less than an hour | R4 | stale | Clerk's API may not have the object yet |
create or replace function clerk_sync.write_tombstones(
    deletions clerk_sync.deletion_v1[], changes clerk_sync.change_v1[], context clerk_sync.context)
  returns clerk_sync.deletions_found
  language plpgsql volatile set search_path = '' as $$
#variable_conflict use_column
declare
  hour constant bigint := 3600000;
  answer clerk_sync.deletions_found;
begin
  -- A read of a pair that shows no membership at all does not show another one in the place of the one that is known either.
  if context.from_read then
    update clerk_sync.generations g set rival_id = null, rival_since = null
      from unnest(deletions) c
      join clerk_sync.pending_reads p on p.kind = c.kind and p.id = c.id
     where c.kind = 'membership' and g.organization_id = p.organization_id and g.user_id = p.user_id and g.membership_id = c.id
       and g.rival_id <> all (array(select id from unnest(changes)));
  end if;
  with deletion as (
    select c.*, v.state, v.observed_at as known_at, v.inferred, p.settles_after,
           -- Absence proves little while Clerk's API may not have the object yet, unless a webhook reported that it was deleted.
           v.event_observed_at is not null and v.first_observed_at > c.observed_at - hour and p.reported_deleted is not true
             and not context.is_believed as is_young
      from unnest(deletions) c
      left join lateral (select * from clerk_sync.versions where kind = c.kind and id = c.id offset 0) v on true
      left join lateral (select settles_after, reported_deleted from clerk_sync.pending_reads
                          where not context.from_webhook and kind = c.kind and id = c.id offset 0) p on true
  ), judged as (
    select *,
      case when state = 'deleted' and (context.from_webhook, observed_at) > (not inferred, known_at) then 'deleted later than known'
           when state = 'deleted' then 'deleted already'
           when context.from_webhook then 'deleted'
           when observed_at < settles_after then 'too early'
           when known_at > observed_at then 'seen since'
           when is_young then 'known for less than an hour'
           else 'deleted' end as reason
      from deletion
  ), written as (
    insert into clerk_sync.versions as v (kind, id, state, observed_at, inferred)
      select kind, id, 'deleted', observed_at, not context.from_webhook from judged where reason in ('deleted', 'deleted later than known')
      on conflict (kind, id) do update
        set state = 'deleted', observed_at = excluded.observed_at, inferred = excluded.inferred,
            updated_at = null, content = null, denial = null, floor = 0, first_observed_at = null, event_updated_at = null,
            event_observed_at = null, event_content = null, ahead = null, by_event = false, in_doubt = false
  ), settled as (
    delete from clerk_sync.pending_reads p using judged d
     where p.kind = d.kind and p.id = d.id and d.reason in ('deleted', 'deleted later than known', 'deleted already')
       -- It may wait for another membership of its pair.
       and not exists (select from clerk_sync.generations g
                        where g.organization_id = p.organization_id and g.user_id = p.user_id and g.membership_id = p.id and g.rival_id is not null)
  ), answered as (
    select *, reason in ('deleted', 'deleted later than known', 'deleted already') as is_deleted from judged
  )
  select array_agg(row(n, case reason when 'deleted' then 'applied' when 'deleted later than known' then 'applied'
                                      when 'deleted already' then 'unchanged' else 'stale' end, reason)::clerk_sync.outcome),
         array_agg(id) filter (where kind = 'user' and is_deleted), array_agg(id) filter (where kind = 'organization' and is_deleted),
         array_agg(id) filter (where kind <> 'membership'),
         array_agg(row(kind, id, false, observed_at, null, null, null, null, null, null, null, null)::clerk_sync.intent) filter (where is_deleted)
    into answer from answered;
  return answer;
end
$$;

revoke all on function clerk_sync.write_tombstones(clerk_sync.deletion_v1[], clerk_sync.change_v1[], clerk_sync.context) from public, anon, authenticated, service_role;
