-- The writer: the only function that writes live rows of the mirror. One call is one statement and one transaction; one lock serializes
-- the writers of all replicas. R1 to R9 are the rules of src/lib.rs ("Why order does not matter").
--
-- The batch is folded by the caller: at most one change per object, one stub per parent and one mention per pair, all from one
-- source. Every item but a stub and a mention carries "n", and the answer has one row per n: what became of it, and why.
-- Outcomes: applied, unchanged, stale, duplicate, pending, dead_letter; and three that leave the whole batch unwritten, for
-- the caller to take the item out, or to have its object read by id, and send the rest again: foreign, reused, ahead.
--   Bodies name every type with its schema: with an empty search_path a caller's temporary types still come first, and a domain of
-- theirs would run their code as the owner. (integer, bigint and boolean are words of the grammar, not names.)
--   A step is a function that is called once a batch with the arrays that it needs, by nobody but apply: it runs with the settings
-- below. A session plans once and keeps its plans, perhaps from when the tables were empty, so every look-up of a step is one by
-- key, written as a lateral query that cannot be turned into a join of whole tables, and enable_seqscan makes it use the index. Its
-- cost penalty would trigger JIT compilation, so that is off. Composite results are assigned, not selected: that costs
-- 2 µs instead of 15. A statement costs some 30 µs even where it finds nothing to do, so those with empty input are left out.
create or replace function clerk_sync.apply(batch clerk_sync.batch_v1)
  returns table (n integer, outcome text, reason text)
  language plpgsql volatile security definer set search_path = ''
  set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan
  as $$
#variable_conflict use_column
declare
  context clerk_sync.context;
  messages record; written record;
  parents clerk_sync.parents_found;
  pairs clerk_sync.mentions_found;
  deleted clerk_sync.deletions_found;
  unverified pg_catalog.text[]; superseded pg_catalog.text[];   -- parents in doubt; memberships older than another of their pair
  results clerk_sync.outcome[]; intents clerk_sync.intent[];
begin
  context := clerk_sync.begin_write(batch.source, batch.mode, batch.fence, batch.lock_wait_ms, batch.changes, batch.deletions);
  messages := clerk_sync.check_messages(
    batch.messages, batch.changes, batch.deletions, batch.dead_letters, batch.check_instance, context);
  if cardinality(messages.refused) > 0 then
    return query select * from unnest(messages.refused);
    return;
  end if;
  parents := case when cardinality(batch.stubs) > 0 then clerk_sync.find_missing_parents(batch.stubs) end;
  pairs := case when cardinality(batch.mentions) > 0 then clerk_sync.raise_generations(batch.mentions, context) end;
  superseded := batch.superseded || pairs.superseded;
  if not context.from_webhook and cardinality(superseded) > 0 then
    superseded := clerk_sync.replace_generations(superseded, batch.changes, batch.memberships, context);
  end if;
  if cardinality(batch.deletions) > 0 then
    deleted := clerk_sync.write_tombstones(batch.deletions, batch.changes, context);
    perform clerk_sync.empty_deleted(deleted.users, deleted.organizations, batch.deletions, context.in_full);
  end if;
  unverified := parents.unverified || deleted.parents;
  written := clerk_sync.write_changes(
    batch.changes, case when unverified is not null then false end, batch.users, batch.organizations, batch.memberships,
    null, superseded, pairs.unproven, context);
  results := coalesce(deleted.results, '{}') || written.results;
  intents := coalesce(pairs.intents, '{}') || deleted.intents || written.intents;
  if unverified is not null then
    intents := intents || clerk_sync.write_stubs(parents.stubs, context);
    written := clerk_sync.write_changes(
      batch.changes, true, batch.users, batch.organizations, batch.memberships, unverified, superseded, pairs.unproven, context);
    results := results || written.results;
    intents := intents || written.intents;
  end if;
  if cardinality(batch.doubts) > 0 then
    perform clerk_sync.record_doubts(batch.doubts, batch.changes);
  end if;
  if not context.in_full then
    results := clerk_sync.write_refused(batch.mode, batch.refused_by, intents, results);
  elsif cardinality(intents) > 0 then
    perform clerk_sync.check_access(intents);
    if context.has_refused then
      perform clerk_sync.lift_refusals(intents);
    end if;
  end if;
  results := results
    || case when cardinality(batch.pending_reads) > 0 or cardinality(batch.requested_passes) > 0
            then clerk_sync.write_requests(batch.pending_reads, batch.requested_passes, context) end
    || case when cardinality(batch.dead_letters) > 0
            then clerk_sync.keep_dead_letters(batch.dead_letters, batch.messages, messages.repeated) end;
  results := clerk_sync.write_receipts(batch.messages, messages.repeated, results);
  return query select * from unnest(results);
end
$$;

revoke all on function clerk_sync.apply(clerk_sync.batch_v1) from public, anon, authenticated, service_role;
grant execute on function clerk_sync.apply(clerk_sync.batch_v1) to clerk_sync_worker;
comment on function clerk_sync.apply(clerk_sync.batch_v1) is 'Applies one folded batch of observations: the only writer of live rows.';
