-- What the program is told of a pass.
create or replace function clerk_sync.as_pass_v1(p clerk_sync.passes) returns clerk_sync.pass_v1
  language sql immutable set search_path = '' as $$
  select p.id, p.scope, p.problem, p.step, p.position, p.approved, p.backfill, p.observed_from, p.resumed, p.listed, p.refreshed, p.missing,
         p.differing, p.extra
$$;

-- Opens a pass: resumes the last one of its scope if it did not end, has a position and is not too old; else starts a new one. After its
-- listing a pass is resumed only once, so that a later step that never ends does not keep new passes from listing.
create or replace function clerk_sync.open_pass(fence bigint, scope text, reason text, observed_from bigint, resume_within_s integer)
  returns clerk_sync.pass_v1
  language plpgsql volatile security definer set search_path = '' as $$
#variable_conflict use_variable
declare
  pass clerk_sync.passes;
begin
  perform clerk_sync.lock_writer();
  perform clerk_sync.check_fence(fence);
  delete from clerk_sync.failed_start where true;
  select p.* into pass from clerk_sync.passes p where p.scope = scope order by p.id desc limit 1;
  if pass.state in ('running', 'incomplete')
     and (case pass.step when 'list' then pass.position is not null when 'end' then false else pass.resumed = 0 or pass.approved end)
     and pass.started_at > pg_catalog.now() - resume_within_s * interval '1 s' then
    update clerk_sync.passes p set state = 'running', resumed = p.resumed + 1, problem = null, ended_at = null
     where p.id = pass.id returning p.* into pass;
    return clerk_sync.as_pass_v1(pass);
  end if;
  if pass.state = 'running' then
    update clerk_sync.passes p set state = 'incomplete', problem = 'it was cut short', ended_at = pg_catalog.now() where p.id = pass.id;
  end if;
  -- (Those of a braked pass wait for an approval, whatever comes between.)
  delete from clerk_sync.absentees a using clerk_sync.passes p where a.pass_id = p.id and p.scope = scope and p.state <> 'braked';
  delete from clerk_sync.listings l where l.kind = scope;
  insert into clerk_sync.passes as p (scope, reason, state, observed_from, backfill)
    values (scope, reason, 'running', observed_from,
            scope <> 'quick' and not exists (select from clerk_sync.pass_watermarks m where m.kind = scope))
  returning p.* into pass;
  return clerk_sync.as_pass_v1(pass);
end
$$;

-- The last pass of a scope that was braked, unless one of that scope has been complete since.
create or replace function clerk_sync.braked_pass(scope text) returns clerk_sync.pass_v1
  language sql stable security definer set search_path = '' as $$
  select (clerk_sync.as_pass_v1(p)).* from clerk_sync.passes p
   where p.scope = $1 and p.state = 'braked'
     and not exists (select from clerk_sync.passes l
                      where l.scope = p.scope and l.id > p.id and l.state in ('complete', 'braked', 'skipped'))
$$;

-- Lets a pass that was braked go on to its deletions; null if it is no such pass. Where later ones of its scope were braked, too, the
-- last of them goes on, if it would delete just the same.
create or replace function clerk_sync.approve_pass(fence bigint, pass_id bigint) returns clerk_sync.pass_v1
  language plpgsql volatile security definer set search_path = '' as $$
#variable_conflict use_variable
declare
  asked clerk_sync.passes;
  pass clerk_sync.passes;
begin
  perform clerk_sync.lock_writer();
  perform clerk_sync.check_fence(fence);
  select p.* into asked from clerk_sync.passes p where p.id = pass_id and p.state = 'braked';
  select p.* into pass from clerk_sync.passes p where p.id = (clerk_sync.braked_pass(asked.scope)).id;
  if pass.id is null or (pass.id <> asked.id and pass.held is distinct from asked.held) then
    return null;
  end if;
  update clerk_sync.passes p
     set state = 'running', step = 'confirm', approved = true, resumed = p.resumed + 1, problem = null, ended_at = null
   where p.id = pass.id
  returning p.* into pass;
  return clerk_sync.as_pass_v1(pass);
end
$$;

revoke all on function clerk_sync.as_pass_v1(clerk_sync.passes) from public, anon, authenticated, service_role;
revoke all on function clerk_sync.open_pass(bigint, text, text, bigint, integer) from public, anon, authenticated, service_role;
revoke all on function clerk_sync.braked_pass(text) from public, anon, authenticated, service_role;
revoke all on function clerk_sync.approve_pass(bigint, bigint) from public, anon, authenticated, service_role;
grant execute on function clerk_sync.open_pass(bigint, text, text, bigint, integer) to clerk_sync_worker;
grant execute on function clerk_sync.braked_pass(text) to clerk_sync_worker;
grant execute on function clerk_sync.approve_pass(bigint, bigint) to clerk_sync_worker;
