-- Step: which rows of listings and reads by id win over what is known (R2 to R6), and their versions:
--
-- | reason | rule | outcome | what follows |
-- | --- | --- | --- | --- |
-- | new | R1 | applied | the row is written |
-- | newer | R1 | applied | the row is written |
-- | overruling | R2 | applied | the row is written, and webhooks from before are stale from now on |
-- | same | R3 | unchanged | a row that somebody changed by hand is written again |
-- | contradicts | R2 | stale | remembered, and read again when it would be believed |
-- | older | R1 | stale | nothing |
-- | being emptied | R4 | pending | a read by id, when its memberships are gone |
-- | parent doubtful | R6 | pending | a read by id |
-- | parent deleted | R6 | stale | nothing |
-- | newer membership known | R5 | stale | nothing |
-- | deleted | R4 | stale | a listing asks for a read by id, if no event announced the tombstone |
--
-- Longer than other steps: it is one statement, and cut in two every judged row would be made a composite and taken apart again.
create or replace function clerk_sync.judge_reads(
    changes clerk_sync.change_v1[], of_memberships boolean, membership_rows clerk_sync.membership_row_v1[], of_deleted integer[], of_doubtful integer[],
    of_missing integer[], superseded text[], context clerk_sync.context)
  returns clerk_sync.judged
  language plpgsql volatile set search_path = '' as $$
#variable_conflict use_column
declare
  answer clerk_sync.judged;
  margin constant bigint := 300000;
  skew constant bigint := 2100;
  soon constant bigint := 5000;
  hour constant bigint := 3600000;
  day constant bigint := 86400000;
begin
  with candidate as (
    select c.*, v.state, v.updated_at as known_updated_at, v.observed_at as known_at, v.content as known_content,
           v.inferred, v.event_updated_at, v.event_observed_at, v.event_content, v.ahead as known_ahead,
           v.by_event, v.in_doubt, v.ctid as place,
           v.state = 'live' and v.updated_at = c.updated_at and v.content = c.content as is_same,
           -- R2: it is asked only where it matters whether one of the two gives more access.
           case when v.content <> c.content
                     and case when c.kind = 'user' and v.denial = 1 then false   -- nobody has said yet whether there is a ban
                              else c.updated_at <= greatest(v.updated_at, v.event_updated_at + skew) or coalesce(c.ahead, c.updated_at) = v.ahead end
                then clerk_sync.compare_access(c.kind, c.id, c.denial, v.denial, membership_rows[c.row_number]) end as access
      from unnest(changes) c
      left join lateral (select *, ctid from clerk_sync.versions where kind = c.kind and id = c.id offset 0) v on true
     where of_memberships is null or of_memberships = (c.kind = 'membership')
    offset 0   -- each of these columns is computed once
  ), compared as (
    select *,
      -- R2: a read that may be older than what events told.
      case when access > 0 and coalesce(ahead, updated_at) = known_ahead and event_updated_at is not null
                and (updated_at, content) <> (event_updated_at, event_content) then true
           when access > 0 and updated_at <= event_updated_at + skew then in_doubt or (updated_at, content) <> (event_updated_at, event_content)
           else updated_at < known_updated_at end as is_contradiction,
      case when access > 0
                and ((pg_catalog.abs(updated_at - event_updated_at) <= skew
                      and not (updated_at = event_updated_at and event_observed_at > updated_at + soon))
                     or (updated_at, content) = (event_updated_at, event_content)) is not true
           then day else hour end as wait,
      pg_catalog.concat_ws(' ', coalesce(ahead, updated_at), content, known_updated_at, known_content) as said
      from candidate
  ), judged as (
    select n, kind, id, organization_id, user_id, read_reason, denial, ahead, observed_at, updated_at, content,
           state, known_at, event_observed_at, by_event, place, is_same, said, wait,
      case
        when state = 'deleted' and not context.undelete and not (context.from_read and inferred and observed_at > known_at) then 'deleted'   -- R4
        -- It is back only when what was left of its memberships is gone: whoever comes back brings none of them.
        when state = 'deleted' and kind <> 'membership'
             and exists (select from clerk_sync.deleted_parents p where p.id = compared.id) then 'being emptied'
        when n = any (of_deleted) then 'parent deleted'                                                      -- R6
        when n = any (of_doubtful) then 'parent doubtful'
        when id = any (superseded) then 'newer membership known'                                             -- R5
        when n = any (of_missing) then 'parent doubtful'
        when state is distinct from 'live' then 'new'
        when content = known_content and (updated_at <= known_updated_at or coalesce(ahead, updated_at) = known_ahead) then 'same'   -- R3
        when is_contradiction then                                                                           -- R2
          case when context.is_believed or (access < 0 and known_updated_at - updated_at <= skew) then 'overruling'
               when observed_at - (select said_since from clerk_sync.pending_reads p
                                    where p.kind = compared.kind and p.id = compared.id and p.said = compared.said) >= wait then 'overruling'
               else 'contradicts' end
        when updated_at > known_updated_at or observed_at >= known_at then 'newer'
        else 'older'
      end as reason
      from compared
  ), added as (   -- apart from what is known: no conflict is looked for
    insert into clerk_sync.versions (kind, id, state, updated_at, observed_at, content, denial, ahead, first_observed_at)
      select kind, id, 'live', updated_at, observed_at, content, denial, ahead, observed_at
        from judged where reason = 'new' and state is null
  ), written as (
    update clerk_sync.versions v
       set state = 'live', updated_at = j.updated_at, observed_at = j.observed_at, content = j.content, denial = j.denial, inferred = false,
           ahead = coalesce(j.ahead, v.ahead), first_observed_at = coalesce(v.first_observed_at, j.observed_at),
           floor = case j.reason when 'overruling' then greatest(v.floor, j.event_observed_at + 1, j.observed_at - margin) else v.floor end,
           by_event = j.is_same and v.by_event,
           in_doubt = j.is_same and v.in_doubt
      from judged j
     where v.ctid = j.place and j.reason in ('new', 'newer', 'overruling')
  )
  select array_agg(row(n, case
             when reason in ('new', 'newer', 'overruling') then 'applied'
             when reason = 'same' then 'unchanged'
             when reason in ('parent doubtful', 'being emptied') then 'pending'
             else 'stale' end, reason)::clerk_sync.outcome),
         -- A read that finds nothing new still mends a row that somebody changed by hand.
         array_agg(wins order by n) filter (where kind = 'user'),
         array_agg(wins order by n) filter (where kind = 'organization'),
         array_agg(wins order by n) filter (where kind = 'membership'),
         array_agg(row(n, kind, id, organization_id, user_id, read_reason, state, reason, observed_at, updated_at, content, known_at,
                       0, said, wait)::clerk_sync.follow_up),
         bool_or((kind = 'user' and wins and denial > 0) or (kind = 'membership' and reason in ('newer', 'overruling')))
    into answer
    from (select *, reason in ('new', 'newer', 'overruling', 'same') as wins from judged) j;
  return answer;
end
$$;

revoke all on function clerk_sync.judge_reads(clerk_sync.change_v1[], boolean, clerk_sync.membership_row_v1[], integer[], integer[],
  integer[], text[], clerk_sync.context) from public, anon, authenticated, service_role;
