-- Step, R5: records the newest membership ever mentioned for a pair, even by an observation that is stale otherwise, and removes older
-- ones. superseded: memberships of the batch that are older than the recorded one.
-- unproven: newer ones by an event from before the last pass, which read the recorded one.
create or replace function clerk_sync.raise_generations(
    mentions clerk_sync.membership_mention_v1[], context clerk_sync.context)
  returns clerk_sync.mentions_found
  language plpgsql volatile set search_path = '' as $$
#variable_conflict use_column
declare
  margin constant bigint := 300000;
  skew constant bigint := 2100;
  ended pg_catalog.text[];
  answer clerk_sync.mentions_found;
begin
  with known as (
    select c.*, g.membership_id as known, g.rival_id,
           (c.created_at, c.membership_id collate "C") > (g.created_at, g.membership_id collate "C") as is_later,
           -- R7: a pass has read the other one since this was observed, and the two may be in the wrong order.
           coalesce(context.from_webhook and c.membership_id <> g.membership_id and c.observed_at < context.membership_watermark - margin
                      and c.created_at - g.created_at <= skew
                      and exists (select from clerk.organization_memberships where id = g.membership_id), false) as is_unproven
      from unnest(mentions) c
      left join lateral (select created_at, membership_id, rival_id from clerk_sync.generations
                          where organization_id = c.organization_id and user_id = c.user_id offset 0) g on true
  ), mention as (
    select organization_id, user_id, membership_id, created_at, known, is_later and not is_unproven as is_later,
           is_later and is_unproven as is_unproven,
           -- A read that shows the membership that is known clears what another read said.
           rival_id is not null and membership_id = known and not context.from_webhook as is_confirmed
      from known
  ), added as (   -- apart from what is known: no conflict is looked for
    insert into clerk_sync.generations (organization_id, user_id, created_at, membership_id)
      select organization_id, user_id, created_at, membership_id from mention where known is null
  ), raised as (
    insert into clerk_sync.generations as g (organization_id, user_id, created_at, membership_id)
      select organization_id, user_id, created_at, membership_id from mention where is_later or is_confirmed
      on conflict (organization_id, user_id) do update
        set created_at = greatest(g.created_at, excluded.created_at), membership_id = excluded.membership_id,
            rival_id = null, rival_since = null
  )
  select array_agg(m.id) filter (where m.id <> c.membership_id),
         array_agg(c.membership_id) filter (where not c.is_later and not c.is_unproven and c.membership_id <> c.known),
         array_agg(c.membership_id) filter (where c.is_unproven)
    into ended, answer.superseded, answer.unproven
    from mention c
    left join lateral (select id from clerk.organization_memberships
                        where c.is_later is not false and organization_id = c.organization_id and user_id = c.user_id offset 0) m on true;
  if cardinality(ended) > 0 then
    perform clerk_sync.remove_memberships(ended, context.in_full);
    answer.intents := array(select row('membership', id, false, null, null, null, null, null, null, null, null, null)::clerk_sync.intent
                             from unnest(ended) id);
  end if;
  return answer;
end
$$;

revoke all on function clerk_sync.raise_generations(clerk_sync.membership_mention_v1[], clerk_sync.context) from public, anon, authenticated, service_role;
