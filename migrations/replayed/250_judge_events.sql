-- Step: which webhooks win over what is known (R1, R4 to R7, R9), and their versions. The words (`reason`) and what follows from each:
--
-- | reason | rule | outcome | what follows |
-- | --- | --- | --- | --- |
-- | new | R1 | applied | the row is written; a stub needs no read any more |
-- | newer | R1 | applied | the row is written |
-- | less access | R7, R9 | applied | the row is written, and a read by id is asked for |
-- | more access | R9 | pending | a read by id |
-- | same | R1 | unchanged | nothing |
-- | confirmed | R2 | unchanged | an event has now said what only a read said before |
-- | older | R1 | stale | it may still be the greatest that an event told (R2) |
-- | read since | R2, R7 | stale | likewise |
-- | to be sure | R7 | pending | a read by id: it would take access away |
-- | doubtful | R4, R5, R7 | pending | a read by id |
-- | parent doubtful | R6 | pending | a read by id |
-- | parent deleted | R6 | stale | nothing |
-- | newer membership known | R5 | stale | nothing |
-- | deleted | R4 | stale | nothing |
--
-- Longer than other steps: it is one statement, and cut in two every judged row would be made a composite and taken apart again.
create or replace function clerk_sync.judge_events(
    changes clerk_sync.change_v1[], of_memberships boolean, user_rows clerk_sync.user_row_v1[],
    organization_rows clerk_sync.organization_row_v1[], membership_rows clerk_sync.membership_row_v1[], of_deleted integer[], of_doubtful integer[], of_missing integer[],
    superseded text[], unproven text[], context clerk_sync.context)
  returns clerk_sync.judged
  language plpgsql volatile set search_path = '' as $$
#variable_conflict use_column
declare
  answer clerk_sync.judged;
  margin constant bigint := 300000;
  skew constant bigint := 2100;
  soon constant bigint := 5000;
  hour constant bigint := 3600000;
begin
  with candidate as (
    select c.n, c.kind, c.id, c.organization_id, c.user_id, c.read_reason, c.denial, c.ahead, c.observed_at, c.updated_at, c.content,
           v.state, v.updated_at as known_updated_at, v.observed_at as known_at, v.content as known_content, v.denial as known_denial,
           v.inferred, v.floor as known_floor, v.by_event, v.in_doubt, v.ctid as place,
           v.state = 'live' and v.updated_at = c.updated_at and v.content = c.content as is_same,
           -- R7: what a pass has listed, it has read since.
           greatest(
             case c.kind when 'user' then context.user_watermark when 'organization' then context.organization_watermark
                         else context.membership_watermark end,
             case when context.is_listing then
               case c.kind
                 when 'user' then case when (user_rows[c.row_number]).created_at < context.users_listed_to then context.user_listing end
                 when 'organization' then case when (organization_rows[c.row_number]).created_at < context.organizations_listed_to then context.organization_listing end
                 else case when (membership_rows[c.row_number]).created_at < context.memberships_listed_to then context.membership_listing end
               end
             end) - margin as read_at,
           -- The greatest that a webhook told (R2).
           ((c.updated_at, c.observed_at, c.content) > (v.event_updated_at, v.event_observed_at, v.event_content)) is not false as is_greatest,
           -- R9: it is asked only where it matters whether one of the two gives more access.
           case when v.content <> c.content and pg_catalog.abs(c.updated_at - v.updated_at) <= soon
                then clerk_sync.compare_access(c.kind, c.id, c.denial, v.denial, membership_rows[c.row_number]) end as access
      from unnest(changes) c
      left join lateral (select *, ctid from clerk_sync.versions where kind = c.kind and id = c.id offset 0) v on true
     where of_memberships is null or of_memberships = (c.kind = 'membership')
    offset 0   -- each of these columns is computed once
  ), compared as (
    -- R9: two events of one object whose order nobody knows. First those whose times disagree, or are equal. (A product of their
    -- differences would leave bigint after 35 days.)
    select *, observed_at < read_at as is_old,
           -- R7: the pass began within an hour of this event, the newest of its object: its replica may have been behind.
           access < 0 and is_greatest and observed_at < read_at and observed_at >= greatest(read_at - hour, known_floor)
             and updated_at <= known_updated_at + skew as is_late_revocation,
           access <> 0
             and ((updated_at <> known_updated_at and observed_at <> known_at and (updated_at > known_updated_at) = (observed_at < known_at))
                  or (updated_at = known_updated_at and (not by_event or pg_catalog.abs(observed_at - known_at) <= skew))) as is_unordered,
           access <> 0 and pg_catalog.abs(updated_at - known_updated_at) <= skew
             and (not by_event or pg_catalog.abs(observed_at - known_at) <= skew) as is_close
      from candidate
  ), judged as (
    select n, kind, id, organization_id, user_id, read_reason, denial, ahead, observed_at, updated_at, content,
           state, known_at, by_event, place, is_same, is_unordered, is_greatest,
      case
        when state = 'deleted' then                                                                          -- R4
          case when inferred and greatest(observed_at, updated_at) > known_at then 'doubtful' else 'deleted' end
        when is_old and state is distinct from 'live' then 'doubtful'                                        -- R7
        when is_old and not is_same and updated_at <= known_updated_at + skew and is_late_revocation is not true then
          case when access < 0 then 'to be sure' else 'read since' end
        when n = any (of_deleted) then 'parent deleted'                                                      -- R6
        -- A tombstone that no event announced may yet be undone, and then this membership counts.
        when n = any (of_doubtful) then 'parent doubtful'
        when id = any (unproven) then 'doubtful'                                                             -- R5
        when id = any (superseded) then 'newer membership known'
        when n = any (of_missing) then 'parent doubtful'
        when state is distinct from 'live' then 'new'
        when observed_at < known_floor then 'read since'                                                     -- R2
        when is_same then case when observed_at > known_at then 'newer' when by_event then 'same' else 'confirmed' end
        when is_unordered or is_close or is_late_revocation then                                             -- R9, R7
          case when (denial, updated_at, observed_at, content) > (known_denial, known_updated_at, known_at, known_content)
               then 'less access' else 'more access' end
        when (updated_at, observed_at, denial, content) > (known_updated_at, known_at, known_denial, known_content) then 'newer'   -- R1
        else 'older'
      end as reason
      from compared
  ), added as (   -- apart from what is known: no conflict is looked for
    insert into clerk_sync.versions (kind, id, state, updated_at, observed_at, content, denial, ahead, first_observed_at,
                                     event_updated_at, event_observed_at, event_content, by_event)
      select kind, id, 'live', updated_at, observed_at, content, denial, ahead, observed_at, updated_at, observed_at, content, true
        from judged where reason = 'new' and state is null
  ), written as (
    update clerk_sync.versions v
       set state = 'live', updated_at = j.updated_at, observed_at = j.observed_at, content = j.content, denial = j.denial, inferred = false,
           ahead = coalesce(j.ahead, v.ahead), first_observed_at = coalesce(v.first_observed_at, j.observed_at),
           event_updated_at = case when j.is_greatest then j.updated_at else v.event_updated_at end,
           event_observed_at = case when j.is_greatest then j.observed_at else v.event_observed_at end,
           event_content = case when j.is_greatest then j.content else v.event_content end,
           by_event = true,
           in_doubt = case when j.reason = 'less access' then j.is_unordered else j.is_same and v.in_doubt end
      from judged j
     where v.ctid = j.place and j.reason in ('new', 'newer', 'less access')
  )
  select array_agg(row(n, case
             when wins then 'applied'
             when reason in ('same', 'confirmed') then 'unchanged'
             when reason in ('doubtful', 'parent doubtful', 'to be sure', 'more access') then 'pending'
             else 'stale' end, reason)::clerk_sync.outcome),
         array_agg(wins order by n) filter (where kind = 'user'),
         array_agg(wins order by n) filter (where kind = 'organization'),
         array_agg(wins order by n) filter (where kind = 'membership'),
         array_agg(row(n, kind, id, organization_id, user_id, read_reason, state, reason, observed_at, updated_at, content, known_at,
                       greatest(observed_at, case when by_event then known_at end) + skew, null, null)::clerk_sync.follow_up)
           filter (where state = 'stub' or read_reason is not null or reason not in ('new', 'newer', 'same')),
         bool_or((kind = 'user' and wins and denial > 0) or (kind = 'membership' and reason in ('newer', 'less access')))
    into answer
    from (select *, reason in ('new', 'newer', 'less access')
                    -- A message that comes again mends a row that was refused.
                    or (reason in ('same', 'confirmed') and context.has_refused and exists (
                          select from clerk_sync.pending_reads p
                           where p.kind = judged.kind and p.id = judged.id and p.reason = 'refused')) as wins
            from judged) j;
  return answer;
end
$$;

revoke all on function clerk_sync.judge_events(clerk_sync.change_v1[], boolean, clerk_sync.user_row_v1[], clerk_sync.organization_row_v1[],
  clerk_sync.membership_row_v1[], integer[], integer[], integer[], text[], text[], clerk_sync.context) from public, anon, authenticated, service_role;
