-- Step: what could not be decided here is kept for those who can: a read by id, a pass. Returns what becomes of each.
create or replace function clerk_sync.write_requests(
    reads clerk_sync.pending_read_v1[], passes clerk_sync.requested_pass_v1[], context clerk_sync.context)
  returns clerk_sync.outcome[]
  language plpgsql volatile set search_path = '' as $$
#variable_conflict use_column
declare
  skew constant bigint := 2100;
begin
  if cardinality(reads) > 0 then
    insert into clerk_sync.pending_reads as p (kind, id, organization_id, user_id, reason, settles_after, reported_deleted)
      select distinct on (r.kind, r.id) r.kind, r.id, r.organization_id, r.user_id, r.reason,
             -- Without a time of its own it happened by now, on a clock that may be a minute ahead of ours.
             case when context.from_webhook
                  then max(coalesce(r.observed_at, context.ahead_limit - 240000)) over (partition by r.kind, r.id) + skew else 0 end,
             bool_or(r.reported_deleted is true) over (partition by r.kind, r.id)
        from unnest(reads) r
        left join lateral (select state, inferred from clerk_sync.versions where kind = r.kind and id = r.id offset 0) v on true
       where (v.state = 'deleted' and not v.inferred) is not true
       order by r.kind, r.id, r.organization_id is null or r.user_id is null
      on conflict (kind, id) do update
        set organization_id = coalesce(p.organization_id, excluded.organization_id), user_id = coalesce(p.user_id, excluded.user_id),
            settles_after = greatest(p.settles_after, excluded.settles_after), reported_deleted = p.reported_deleted or excluded.reported_deleted,
            tries = case when context.from_webhook then 0 else p.tries end,
            next_at = case when context.from_webhook then pg_catalog.now() else p.next_at end,
            requested_at = case when context.from_webhook then pg_catalog.now() else p.requested_at end;
  end if;
  insert into clerk_sync.pending_passes as p (kind, reason, ripe_at)
    select distinct on (w.kind) w.kind, w.reason, pg_catalog.now() + coalesce(w.ripe_after_s, 0) * interval '1 s'
      from (select kind, reason, ripe_after_s from unnest(passes) where organization_id is null
            -- Without its pair the API finds no membership: then all of them are listed.
            union all select 'membership', 'a membership that must be read names no pair', case when r.reported_deleted then 312 else 12 end
              from unnest(reads) r
             where context.from_webhook and r.kind = 'membership' and (r.organization_id is null or r.user_id is null)) w
     order by w.kind, w.ripe_after_s desc
    -- Asked again: a pass that is running may have gone past it.
    on conflict (kind) do update
      set requested_at = pg_catalog.now(), ripe_at = greatest(p.ripe_at, excluded.ripe_at), tried_at = null;
  perform clerk_sync.request_member_listings(array_agg(w.organization_id), w.reason)
     from unnest(passes) w where w.organization_id is not null group by w.reason;
  return array(
    select row(r.n, case when v.is_final then 'stale' else 'pending' end, case when v.is_final then 'deleted' else r.reason end)::clerk_sync.outcome
      from unnest(reads) r
      left join lateral (select state = 'deleted' and not inferred as is_final from clerk_sync.versions
                          where kind = r.kind and id = r.id offset 0) v on true)
    || array(select row(n, 'pending', reason)::clerk_sync.outcome from unnest(passes));
end
$$;

revoke all on function clerk_sync.write_requests(clerk_sync.pending_read_v1[], clerk_sync.requested_pass_v1[], clerk_sync.context) from public, anon, authenticated, service_role;
