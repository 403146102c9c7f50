-- Step: one outcome for each item, and a receipt for each message. A message whose change lost to another one of the batch is stale; one
-- that came before and changed nothing is a duplicate, and has its receipt.
create or replace function clerk_sync.write_receipts(messages clerk_sync.message_v1[], repeated integer[], results clerk_sync.outcome[])
  returns clerk_sync.outcome[]
  language plpgsql volatile set search_path = '' as $$
#variable_conflict use_column
begin
  if cardinality(messages) = 0 then
    return results;
  end if;
  if cardinality(results) < cardinality(messages) then
    results := results || array(
      select row(m.n, 'stale', 'a newer change came with it')::clerk_sync.outcome from unnest(messages) m
       where m.n <> all (array(select n from unnest(results))));
  end if;
  if cardinality(repeated) > 0 then
    results := array(
      select row(n, case when outcome in ('unchanged', 'stale') and n = any (repeated) then 'duplicate' else outcome end, reason)::clerk_sync.outcome
        from unnest(results));
  end if;
  insert into clerk_sync.receipts (message_id, body_hash, event_type, entity_id, outcome, reason, field_errors, event_at)
    select m.message_id, m.body_hash, m.event_type, m.entity_id, a.outcome, a.reason, m.field_errors,
           pg_catalog.to_timestamp(m.event_at::double precision / 1000)
      from unnest(messages) m join unnest(results) a on a.n = m.n
     where (m.n = any (repeated)) is not true;
  return results;
end
$$;

revoke all on function clerk_sync.write_receipts(clerk_sync.message_v1[], integer[], clerk_sync.outcome[]) from public, anon, authenticated, service_role;
