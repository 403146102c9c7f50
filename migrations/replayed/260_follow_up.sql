-- Step: what follows from a change beside its row. Most batches of webhooks have nothing here.
create or replace function clerk_sync.follow_up(follow_ups clerk_sync.follow_up[], context clerk_sync.context) returns void
  language plpgsql volatile set search_path = '' as $$
#variable_conflict use_column
begin
  -- A webhook that does not win may still be the greatest that was told (R2), or say what only a read has said so far.
  if context.from_webhook then
    update clerk_sync.versions v
       set by_event = v.by_event or j.reason = 'confirmed',
           in_doubt = v.in_doubt
             or (j.reason = 'more access'
                 and (j.updated_at = v.updated_at or (j.observed_at <> v.observed_at and (j.updated_at > v.updated_at) = (j.observed_at < v.observed_at)))),
           (event_updated_at, event_observed_at, event_content) =
             (select case when is_greater then j.updated_at else v.event_updated_at end,
                     case when is_greater then j.observed_at else v.event_observed_at end,
                     case when is_greater then j.content else v.event_content end
                from (select ((j.updated_at, j.observed_at, j.content) > (v.event_updated_at, v.event_observed_at, v.event_content)) is not false as is_greater) g)
      from unnest(follow_ups) j
     where v.kind = j.kind and v.id = j.id and v.state = 'live' and j.observed_at >= v.floor
       and (j.reason = 'confirmed'
            or (j.reason = 'more access' and not v.in_doubt
                and (j.updated_at = v.updated_at or (j.observed_at <> v.observed_at and (j.updated_at > v.updated_at) = (j.observed_at < v.observed_at))))
            or (j.reason in ('more access', 'older', 'read since', 'to be sure')
                and ((j.updated_at, j.observed_at, j.content) > (v.event_updated_at, v.event_observed_at, v.event_content)) is not false));
  end if;
  with settled as (
    -- A read has decided, unless it came too early to know what an event has reported since, or contradicts what is known; and a
    -- stub needs no read once it is whole.
    delete from clerk_sync.pending_reads p using unnest(follow_ups) j
     where p.kind = j.kind and p.id = j.id and j.read_reason is null
       and case when context.from_read then j.observed_at >= p.settles_after
                                    and j.reason not in ('deleted', 'parent doubtful', 'being emptied', 'older', 'contradicts')
                when context.from_webhook then p.reason = 'stub' and j.state = 'stub' and j.reason = 'new'
                else j.reason = 'same' and p.said is not null and p.settles_after = 0 end
  ), cleared as (   -- a read agrees after all
    update clerk_sync.pending_reads p set said = null, said_since = null
      from unnest(follow_ups) j
     where p.kind = j.kind and p.id = j.id and p.said is not null and j.reason in ('same', 'newer') and not context.from_webhook
       and case when context.from_read then j.observed_at < p.settles_after or j.read_reason is not null else p.settles_after > 0 or j.reason = 'newer' end
  )
  insert into clerk_sync.pending_reads as p (kind, id, organization_id, user_id, reason, settles_after, said, said_since, next_at)
    select kind, id, organization_id, user_id,
           case when reason in ('new', 'newer') then read_reason when reason in ('less access', 'more access', 'to be sure') then 'in doubt'
                else reason end,
           settles_after,
           case when reason = 'contradicts' then said end, case when reason = 'contradicts' then observed_at end,
           case when reason = 'contradicts' then pg_catalog.to_timestamp((observed_at + wait + 10000) / 1000.0)
                when reason in ('less access', 'more access') then greatest(pg_catalog.now(), pg_catalog.to_timestamp((settles_after + 12000) / 1000.0))
                else pg_catalog.now() end
      from unnest(follow_ups) j
     where reason in ('doubtful', 'parent doubtful', 'being emptied', 'less access', 'more access', 'to be sure', 'contradicts')
        or (reason in ('new', 'newer') and read_reason is not null)
        -- A listing proves nothing against what is known better; the object itself does.
        or (reason = 'deleted' and context.from_list
            and exists (select from clerk_sync.versions v where v.kind = j.kind and v.id = j.id and v.inferred))
    on conflict (kind, id) do update
      set organization_id = coalesce(p.organization_id, excluded.organization_id), user_id = coalesce(p.user_id, excluded.user_id),
          requested_at = case when context.from_webhook then pg_catalog.now() else p.requested_at end,
          settles_after = greatest(p.settles_after, excluded.settles_after),
          said = coalesce(excluded.said, p.said),
          said_since = case when excluded.said is null or p.said = excluded.said then p.said_since else excluded.said_since end,
          tries = case when context.from_webhook then 0 else p.tries end,
          next_at = case when context.from_webhook then excluded.next_at
                         when excluded.said is null then p.next_at
                         when p.said = excluded.said then excluded.next_at - (excluded.said_since - p.said_since) * interval '1 ms'
                         else excluded.next_at end;
end
$$;

revoke all on function clerk_sync.follow_up(clerk_sync.follow_up[], clerk_sync.context) from public, anon, authenticated, service_role;
