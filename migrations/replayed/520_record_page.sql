-- Reconcile's bookkeeping: the lease, and what a pass writes beside the mirror. All that a pass learns from one page, the
-- changes, the findings, the absentees and how far it has come, is one statement: a pass that is killed leaves no gap.

-- One page of a pass:
--   { "id", "fence", "step", "position", "listed_to", "listed", "refreshed",
--     "findings": [{ "n", "kind", "entity_id", "drift", "fields", "since", "webhook_at", "webhook_outcome", "cause" }],
--     "absent": [id], "settled": [id],      rows that the listing did not show, and those of them that are decided
--     "outcomes": [[n, outcome]] }          instead of a batch: what became of changes that are written already
-- with the batch for clerk_sync.apply, whose answer is the answer. A finding counts if its change was needed after all: a
-- webhook may have brought the same meanwhile.
create or replace function clerk_sync.record_page(page jsonb, batch clerk_sync.batch_v1)
  returns table (n integer, outcome text, reason text)
  language plpgsql volatile security definer set search_path = ''
  set enable_seqscan = off
  set jit = off
  as $$
#variable_conflict use_column
declare
  results clerk_sync.outcome[];
  this_pass constant bigint := (page ->> 'id')::bigint;
begin
  perform clerk_sync.lock_writer();
  perform clerk_sync.check_fence((page ->> 'fence')::bigint);
  if batch is distinct from null then
    results := array(select row(a.n, a.outcome, a.reason)::clerk_sync.outcome from clerk_sync.apply(batch) a);
  else
    results := array(select row((o ->> 0)::integer, o ->> 1, null)::clerk_sync.outcome
                       from pg_catalog.jsonb_array_elements(page -> 'outcomes') o);
  end if;
  with recorded as (
    insert into clerk_sync.findings (pass_id, kind, entity_id, drift, fields, since, webhook_at, webhook_outcome, cause)
      select this_pass, f.kind, f.entity_id, f.drift, f.fields, pg_catalog.to_timestamp(f.since / 1000.0), f.webhook_at, f.webhook_outcome, f.cause
        from pg_catalog.jsonb_to_recordset(page -> 'findings')
               f(n integer, kind pg_catalog.text, entity_id pg_catalog.text, drift pg_catalog.text, fields pg_catalog.text[], since bigint,
                 webhook_at pg_catalog.timestamptz, webhook_outcome pg_catalog.text, cause pg_catalog.text)
        join unnest(results) r on r.n = f.n
       where r.outcome in ('applied', 'unchanged')   -- unchanged: the version was known, and the row was not what it says
    returning drift
  ), counted as (
    select count(*) filter (where drift = 'missing') as missing, count(*) filter (where drift = 'differing') as differing,
           count(*) filter (where drift = 'extra') as extra
      from recorded
  )
  update clerk_sync.passes p
     set step = page ->> 'step', position = nullif(page -> 'position', 'null'),
         listed = p.listed + (page ->> 'listed')::bigint, refreshed = p.refreshed + (page ->> 'refreshed')::bigint,
         missing = p.missing + c.missing, differing = p.differing + c.differing, extra = p.extra + c.extra
    from counted c
   where p.id = this_pass;
  -- R7 counts for what the listing has gone past, from this page on.
  if page ->> 'listed_to' is not null then
    insert into clerk_sync.listings (kind, started_at, listed_to)
      select p.scope, p.observed_from, (page ->> 'listed_to')::bigint from clerk_sync.passes p where p.id = this_pass and p.scope <> 'quick'
      on conflict (kind) do update set started_at = excluded.started_at, listed_to = excluded.listed_to;
  end if;
  insert into clerk_sync.absentees (pass_id, id)
    select this_pass, a from pg_catalog.jsonb_array_elements_text(page -> 'absent') a
    on conflict do nothing;
  delete from clerk_sync.absentees a
   where a.pass_id = this_pass and a.id = any (array(select pg_catalog.jsonb_array_elements_text(page -> 'settled')));
  return query select * from unnest(results);
end
$$;

revoke all on function clerk_sync.record_page(jsonb, clerk_sync.batch_v1) from public, anon, authenticated, service_role;
grant execute on function clerk_sync.record_page(jsonb, clerk_sync.batch_v1) to clerk_sync_worker;
