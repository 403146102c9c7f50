-- The end of a pass. One of a kind that has listed and compared everything moves the kind's mark (R7), and has done what was asked of
-- it, if that was long enough before it began for Clerk's API to show what had changed: even where deletions are held back or single
-- rows are undecided.
-- "more": { "undecided", "judge_after" and "again_in" (in ms), "held" }, as the table's columns say.
create or replace function clerk_sync.end_pass(fence bigint, pass_id bigint, state text, problem text, counts jsonb, more jsonb) returns clerk_sync.pass_v1
  language plpgsql volatile security definer set search_path = '' as $$
#variable_conflict use_variable
declare
  pass clerk_sync.passes;
  has_compared boolean;
begin
  perform clerk_sync.lock_writer();
  perform clerk_sync.check_fence(fence);
  update clerk_sync.passes p
     set state = state, problem = problem, counts = counts, ended_at = pg_catalog.now(),
         undecided = nullif(more -> 'undecided', 'null'),
         judge_after = pg_catalog.to_timestamp((more ->> 'judge_after')::bigint / 1000.0),
         again_at = pg_catalog.now() + (more ->> 'again_in')::bigint * interval '1 ms',
         held = more ->> 'held'
   where p.id = pass_id
  returning p.* into pass;
  if state in ('complete', 'skipped') then
    delete from clerk_sync.absentees a using clerk_sync.passes p where a.pass_id = p.id and p.scope = pass.scope;
  elsif state = 'void' then
    delete from clerk_sync.absentees a where a.pass_id = pass_id;
  elsif state = 'braked' then
    delete from clerk_sync.absentees a using clerk_sync.passes p where a.pass_id = p.id and p.scope = pass.scope and p.id <> pass_id;
  end if;
  has_compared := state in ('complete', 'braked') or (state = 'incomplete' and pass.step = 'end');
  if has_compared or state = 'skipped' then
    delete from clerk_sync.pending_passes w where w.kind = pass.scope and w.ripe_at <= pass.started_at;
    update clerk_sync.pending_passes w set tried_at = pg_catalog.now() where w.kind = pass.scope and w.requested_at <= pass.started_at;
  end if;
  delete from clerk_sync.listings l where l.kind = pass.scope;
  if has_compared and pass.scope <> 'quick' then
    insert into clerk_sync.pass_watermarks as m (kind, started_at) values (pass.scope, pass.observed_from)
      on conflict (kind) do update set started_at = greatest(m.started_at, excluded.started_at);
    -- Memberships that no read can settle: nobody says whose they are, or their organization is not here, and a read did not help
    -- or an event said that it is deleted.
    -- They were listed if they exist, and will be.
    delete from clerk_sync.pending_reads r
     where pass.scope = 'membership' and r.kind = 'membership' and r.reason <> 'refused' and r.requested_at < pass.started_at
       and case when r.organization_id is null or r.user_id is null
                -- What was deleted is found missing only when it was last observed five minutes before.
                then r.settles_after + case when r.reported_deleted then 300000 else 0 end <= pass.observed_from
                else (r.tries > 0 or exists (select from clerk_sync.versions v where v.kind = 'organization' and v.id = r.organization_id
                                               and v.state = 'deleted' and not v.inferred))
                     and not exists (select from clerk.organizations o where o.id = r.organization_id and o.deleted_at is null) end;
  end if;
  return clerk_sync.as_pass_v1(pass);
end
$$;

-- Notes why no pass could begin.
create or replace function clerk_sync.record_failed_start(problem text) returns void
  language sql volatile security definer set search_path = '' as $$
  insert into clerk_sync.failed_start as f (problem) values ($1)
    on conflict (only_row) do update set problem = excluded.problem, last_at = pg_catalog.now(), tries = f.tries + 1
$$;

revoke all on function clerk_sync.end_pass(bigint, bigint, text, text, jsonb, jsonb) from public, anon, authenticated, service_role;
revoke all on function clerk_sync.record_failed_start(text) from public, anon, authenticated, service_role;
grant execute on function clerk_sync.end_pass(bigint, bigint, text, text, jsonb, jsonb) to clerk_sync_worker;
grant execute on function clerk_sync.record_failed_start(text) to clerk_sync_worker;
