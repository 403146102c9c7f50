-- Reconcile's bookkeeping: the lease, and what a pass writes beside the mirror. All that a pass learns from one page, the
-- changes, the findings, the absentees and how far it has come, is one statement: a pass that is killed leaves no gap.

-- The database's clock, in ms: what Clerk's is held against.
create function clerk_sync.clock() returns bigint
  language sql volatile set search_path = '' as $$
  select (extract(epoch from pg_catalog.clock_timestamp()) * 1000)::bigint
$$;

-- The new token, or null while somebody else holds the lease. One that ends later than its term is of a clock that is not this
-- one's, such as that of the server that failed: nobody is to wait for it.
create function clerk_sync.take_lease(holder text, ttl_ms integer) returns bigint
  language sql volatile security definer set search_path = '' as $$
  insert into clerk_sync.lease as l (token, holder, term_ms, expires_at)
    values (1, $1, $2, pg_catalog.clock_timestamp() + $2 * interval '1 ms')
    on conflict (only_row) do update
      set token = l.token + 1, holder = excluded.holder, term_ms = excluded.term_ms, expires_at = excluded.expires_at
    where l.expires_at <= pg_catalog.clock_timestamp()
       or l.expires_at > pg_catalog.clock_timestamp() + l.term_ms * interval '1 ms'
  returning l.token
$$;

-- False: it is lost, and stays so.
create function clerk_sync.keep_lease(fence bigint, ttl_ms integer) returns boolean
  language sql volatile security definer set search_path = '' as $$
  with kept as (
    update clerk_sync.lease set term_ms = $2, expires_at = pg_catalog.clock_timestamp() + $2 * interval '1 ms'
     where token = $1 and expires_at > pg_catalog.clock_timestamp()
    returning 1)
  select exists (select from kept)
$$;

create function clerk_sync.end_lease(fence bigint) returns void
  language sql volatile security definer set search_path = '' as $$
  update clerk_sync.lease set expires_at = '-infinity' where token = $1
$$;

-- The pass to go on with: the last one of its scope if it did not end, has come anywhere and is not too old. Else a new one, which
-- knows of all that was observed until now. Behind its listing a pass is gone on with once: whatever does not end there must not
-- keep the next ones from listing.
create function clerk_sync.open_pass(fence bigint, scope text, reason text, observed_from bigint, resume_within_s integer)
  returns clerk_sync.passes
  language plpgsql volatile security definer set search_path = '' as $$
#variable_conflict use_variable
declare
  pass clerk_sync.passes;
begin
  perform clerk_sync.take_turn();
  perform clerk_sync.check_fence(fence);
  delete from clerk_sync.failed_start where true;
  select p.* into pass from clerk_sync.passes p where p.scope = scope order by p.id desc limit 1;
  if pass.state in ('running', 'incomplete')
     and (case pass.step when 'list' then pass.position is not null when 'end' then false else pass.resumed = 0 or pass.approved end)
     and pass.started_at > pg_catalog.now() - resume_within_s * interval '1 s' then
    update clerk_sync.passes p set state = 'running', resumed = p.resumed + 1, problem = null, ended_at = null
     where p.id = pass.id returning p.* into pass;
    return pass;
  end if;
  if pass.state = 'running' then
    update clerk_sync.passes p set state = 'incomplete', problem = 'it was cut short', ended_at = pg_catalog.now() where p.id = pass.id;
  end if;
  -- (Those of a braked pass wait for an approval, whatever comes between.)
  delete from clerk_sync.absentees a using clerk_sync.passes p where a.pass_id = p.id and p.scope = scope and p.state <> 'braked';
  delete from clerk_sync.listings l where l.kind = scope;
  insert into clerk_sync.passes as p (scope, reason, state, observed_from, backfill)
    values (scope, reason, 'running', observed_from,
            scope <> 'quick' and not exists (select from clerk_sync.marks m where m.kind = scope))
  returning p.* into pass;
  return pass;
end
$$;

-- The last pass of a scope that was braked, unless one of that scope has been complete since.
create function clerk_sync.braked_pass(scope text) returns clerk_sync.passes
  language sql stable security definer set search_path = '' as $$
  select p.* from clerk_sync.passes p
   where p.scope = $1 and p.state = 'braked'
     and not exists (select from clerk_sync.passes l
                      where l.scope = p.scope and l.id > p.id and l.state in ('complete', 'braked', 'skipped'))
$$;

-- Lets a pass that was braked go on to its deletions; null if it is no such pass. Where later ones of its scope were braked, too, the
-- last of them goes on, if it would delete just the same.
create function clerk_sync.approve_pass(fence bigint, pass_id bigint) returns clerk_sync.passes
  language plpgsql volatile security definer set search_path = '' as $$
#variable_conflict use_variable
declare
  asked clerk_sync.passes;
  pass clerk_sync.passes;
begin
  perform clerk_sync.take_turn();
  perform clerk_sync.check_fence(fence);
  select p.* into asked from clerk_sync.passes p where p.id = pass_id and p.state = 'braked';
  select p.* into pass from clerk_sync.braked_pass(asked.scope) p where p.id is not null;
  if pass.id is null or (pass.id <> asked.id and pass.held is distinct from asked.held) then
    return null;
  end if;
  update clerk_sync.passes p
     set state = 'running', step = 'confirm', approved = true, resumed = p.resumed + 1, problem = null, ended_at = null
   where p.id = pass.id
  returning p.* into pass;
  return pass;
end
$$;

-- One page of a pass:
--   { "id", "fence", "step", "position", "listed_to", "listed", "refreshed",
--     "findings": [{ "n", "kind", "entity_id", "drift", "fields", "since", "webhook_at", "webhook_outcome", "cause" }],
--     "absent": [id], "settled": [id],      rows that the listing did not show, and those of them that are decided
--     "outcomes": [[n, outcome]] }          instead of a batch: what became of changes that are written already
-- with the batch for clerk_sync.apply, whose answer is the answer. A finding counts if its change was needed after all: a
-- webhook may have brought the same meanwhile.
create function clerk_sync.record_page(page jsonb, batch clerk_sync.batch)
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
  perform clerk_sync.take_turn();
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

-- Removes those of these memberships whose user or organization is deleted, asked under the lock: how many, and for how long others
-- could not write (in ms). Few enough at a time, nobody notices.
create function clerk_sync.end_memberships_of_deleted(ids text[]) returns table (ended integer, held_ms double precision)
  language plpgsql volatile security definer set search_path = ''
  set enable_seqscan = off
  set jit = off   -- that price calls for compiling even what a foreign key of the application's asks
  as $$
declare
  gone pg_catalog.text[];
  since pg_catalog.timestamptz;
begin
  perform clerk_sync.take_turn();
  since := pg_catalog.clock_timestamp();
  gone := array(
    select m.id from unnest(ids) w(id)
     cross join lateral (select * from clerk.organization_memberships where id = w.id offset 0) m
     where exists (select from clerk_sync.versions v where v.kind = 'organization' and v.id = m.organization_id and v.state = 'deleted')
        or exists (select from clerk_sync.versions v where v.kind = 'user' and v.id = m.user_id and v.state = 'deleted'));
  perform clerk_sync.end_memberships(gone);
  return query select cardinality(gone), extract(epoch from pg_catalog.clock_timestamp() - since)::double precision * 1000;
end
$$;

-- Nothing is left of the memberships of a deleted parent. (None can come while its tombstone stands, and that is not undone before
-- this.)
create function clerk_sync.forget_deleted_parent(id text) returns void
  language sql volatile security definer set search_path = '' as $$
  delete from clerk_sync.deleted_parents p where p.id = $1
$$;

-- The end of a pass. One of a kind that has listed and compared everything moves the kind's mark (R7), and has done what was asked of
-- it, if that was long enough before it began for Clerk's API to show what had changed: even where deletions are held back or single
-- rows are undecided.
-- "more": { "undecided", "judge_after" and "again_in" (in ms), "held" }, as the table's columns say.
create function clerk_sync.end_pass(fence bigint, pass_id bigint, state text, problem text, counts jsonb, more jsonb) returns clerk_sync.passes
  language plpgsql volatile security definer set search_path = '' as $$
#variable_conflict use_variable
declare
  pass clerk_sync.passes;
  has_compared boolean;
begin
  perform clerk_sync.take_turn();
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
    update clerk_sync.pending_passes w set tried_at = pg_catalog.now() where w.kind = pass.scope and w.asked_at <= pass.started_at;
  end if;
  delete from clerk_sync.listings l where l.kind = pass.scope;
  if has_compared and pass.scope <> 'quick' then
    insert into clerk_sync.marks as m (kind, started_at) values (pass.scope, pass.observed_from)
      on conflict (kind) do update set started_at = greatest(m.started_at, excluded.started_at);
    -- Memberships that no read can settle: nobody says whose they are, or their organization is not here, and a read did not help
    -- or an event said that it is deleted.
    -- They were listed if they exist, and will be.
    delete from clerk_sync.pending_reads r
     where pass.scope = 'membership' and r.kind = 'membership' and r.reason <> 'refused' and r.asked_at < pass.started_at
       and case when r.organization_id is null or r.user_id is null
                -- What was deleted is found missing only when it was last observed five minutes before.
                then r.settles_after + case when r.told_deleted then 300000 else 0 end <= pass.observed_from
                else (r.tries > 0 or exists (select from clerk_sync.versions v where v.kind = 'organization' and v.id = r.organization_id
                                               and v.state = 'deleted' and not v.inferred))
                     and not exists (select from clerk.organizations o where o.id = r.organization_id and o.deleted_at is null) end;
  end if;
  return pass;
end
$$;

-- Notes why no pass could begin.
create function clerk_sync.note_failed_start(problem text) returns void
  language sql volatile security definer set search_path = '' as $$
  insert into clerk_sync.failed_start as f (problem) values ($1)
    on conflict (only_row) do update set problem = excluded.problem, last_at = pg_catalog.now(), tries = f.tries + 1
$$;

-- Organizations whose memberships are to be listed now; nobody else is told of them for a while, the longer, the more often it came
-- to nothing.
create function clerk_sync.claim_listings(at_most integer) returns setof text
  language sql volatile security definer set search_path = '' as $$
  update clerk_sync.pending_listings p
     set claimed_at = pg_catalog.now(), tries = p.tries + 1,
         next_at = pg_catalog.now() + least(power(2, least(p.tries, 10)) * interval '30 s', interval '1 hour')
   where p.organization_id = any (array(select w.organization_id from clerk_sync.pending_listings w where w.next_at <= pg_catalog.now()
                                         order by w.next_at limit $1 for update skip locked))
  returning p.organization_id
$$;

-- They were listed. Where it was asked for within the ten seconds before, they will be once more.
create function clerk_sync.note_listed(organization_id text) returns void
  language sql volatile security definer set search_path = '' as $$
  delete from clerk_sync.pending_listings p
   where p.organization_id = $1 and p.asked_at <= p.claimed_at - interval '10 s';
  update clerk_sync.pending_listings p
     set listed_at = p.claimed_at, next_at = p.asked_at + interval '10 s', tries = 0
   where p.organization_id = $1
$$;

-- Asks for the memberships of organizations, as an event does.
create function clerk_sync.ask_for_listings(organization_ids text[], reason text) returns void
  language sql volatile security definer set search_path = '' as $$
  select clerk_sync.ask_for_members($1, $2)
$$;

-- Asks for a pass of a kind.
create function clerk_sync.ask_for_pass(kind text, reason text) returns void
  language sql volatile security definer set search_path = '' as $$
  insert into clerk_sync.pending_passes as p (kind, reason) values ($1, $2)
    on conflict (kind) do update set asked_at = pg_catalog.now(), ripe_at = greatest(p.ripe_at, excluded.ripe_at), tried_at = null
$$;

-- Notes that reads were tried that settled nothing, and when they are tried again. One that came too early, when as much time has
-- passed as Clerk's API may lag behind; any other ever more seldom, an hour apart at most.
create function clerk_sync.note_tried(kind text, ids text[], early text[]) returns void
  language sql volatile security definer set search_path = '' as $$
  select clerk_sync.take_turn();
  update clerk_sync.pending_reads
     set tries = case when id = any ($3) then tries else tries + 1 end,
         next_at = greatest(next_at, case when id = any ($3)
           then least(greatest(pg_catalog.now() + interval '5 s', pg_catalog.to_timestamp((settles_after + 12000) / 1000.0)),
                      pg_catalog.now() + interval '5 min')
           else pg_catalog.now() + least(interval '30 s' * pg_catalog.power(2, least(tries, 10)), interval '1 h') end)
   where kind = $1 and id = any ($2)
$$;

do $$
declare f regprocedure;
begin
  foreach f in array array['clerk_sync.clock()', 'clerk_sync.take_lease(text, integer)', 'clerk_sync.keep_lease(bigint, integer)', 'clerk_sync.end_lease(bigint)',
                           'clerk_sync.open_pass(bigint, text, text, bigint, integer)', 'clerk_sync.approve_pass(bigint, bigint)',
                           'clerk_sync.record_page(jsonb, clerk_sync.batch)', 'clerk_sync.end_pass(bigint, bigint, text, text, jsonb, jsonb)', 'clerk_sync.braked_pass(text)',
                           'clerk_sync.end_memberships_of_deleted(text[])', 'clerk_sync.forget_deleted_parent(text)',
                           'clerk_sync.ask_for_pass(text, text)', 'clerk_sync.claim_listings(integer)', 'clerk_sync.note_listed(text)',
                           'clerk_sync.ask_for_listings(text[], text)', 'clerk_sync.note_failed_start(text)', 'clerk_sync.note_tried(text, text[], text[])']::regprocedure[] loop
    execute format('revoke all on function %s from public, anon, authenticated, service_role', f);
    execute format('grant execute on function %s to clerk_sync_worker', f);
  end loop;
end
$$;
