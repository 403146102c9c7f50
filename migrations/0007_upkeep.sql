-- What is done with the bookkeeping itself: dead letters tried again, old rows pruned, emptied rows purged. Pruning and purging
-- have a least age, whoever calls: versions, tombstones, generations and marks have no such function at all.

-- Tries a dead letter again, in one statement: what its body says now is applied, and the letter is removed unless it is
-- refused again. Without a batch the body is about nothing that we mirror. No row: the letter is gone, or another try, which
-- the number of tries tells, came between.
--   A message that came with another body under its id is refused as ever ("reused"), unless a person asks for this very
-- letter: then the change counts without its message. Both bodies were signed, and the version decides.
create function clerk_sync.retry_dead_letter(message_id text, body_hash text, tries integer, of_a_person boolean, batch clerk_sync.batch)
  returns table (n integer, outcome text, reason text)
  language plpgsql volatile security definer set search_path = '' as $$
#variable_conflict use_variable
declare
  result clerk_sync.outcome;
  pinned constant pg_catalog.text := (select i.instance_id from clerk_sync.instance i);
  message constant clerk_sync.message := batch.messages[1];
begin
  perform clerk_sync.take_turn();
  perform from clerk_sync.dead_letters d where d.message_id = message_id and d.body_hash = body_hash and d.tries = tries for update;
  if not found then
    return;
  end if;
  if batch is not distinct from null then
    result := row(0, 'ignored', null);
  elsif batch.check_instance and message.instance_id <> coalesce(pinned, '') then
    -- Asked here too: an old message never pins the mirror, and one that counts without its message is not asked otherwise.
    result := row(0, 'foreign', pinned);
  else
    if of_a_person and exists (select from clerk_sync.receipts r where r.message_id = message_id and r.body_hash <> body_hash) then
      batch.messages := '{}';
    end if;
    select a.n, a.outcome, a.reason into result from clerk_sync.apply(batch) a where a.n = 0;
  end if;
  if result.outcome in ('foreign', 'reused', 'ahead', 'dead_letter') then
    update clerk_sync.dead_letters d
       set tries = d.tries + 1, tried_at = pg_catalog.now(),
           reason = case result.outcome when 'foreign' then 'it is not of the mirror''s Clerk instance'
                                        when 'reused' then 'its message id came before with another body'
                                        when 'ahead' then 'its time is ahead of the database''s clock'
                                        else result.reason end
     where d.message_id = message_id and d.body_hash = body_hash;
  elsif result.outcome is not null then
    delete from clerk_sync.dead_letters d where d.message_id = message_id and d.body_hash = body_hash;
    update clerk_sync.receipts r
       set outcome = case result.outcome when 'duplicate' then 'stale' else result.outcome end, reason = result.reason,
           event_type = coalesce(message.event_type, r.event_type), entity_id = message.entity_id,
           flaws = coalesce(message.flaws, r.flaws), event_at = pg_catalog.to_timestamp(message.event_at / 1000.0)
     where r.message_id = message_id and r.body_hash = body_hash and r.outcome = 'dead_letter';
  end if;
  return query select result.n, result.outcome, result.reason where result.outcome is not null;
end
$$;

-- Notes a try that did not come as far as the mirror. False: somebody else tried it meanwhile, or it is gone.
create function clerk_sync.note_dead_letter_tried(message_id text, body_hash text, tries integer, reason text) returns boolean
  language sql volatile security definer set search_path = '' as $$
  with noted as (
    update clerk_sync.dead_letters d set tries = d.tries + 1, tried_at = pg_catalog.now(), reason = $4
     where d.message_id = $1 and d.body_hash = $2 and d.tries = $3
    returning 1)
  select exists (select from noted)
$$;

-- Removes a dead letter that a person has done with.
create function clerk_sync.drop_dead_letter(message_id text, body_hash text) returns boolean
  language sql volatile security definer set search_path = '' as $$
  with dropped as (
    delete from clerk_sync.dead_letters d where d.message_id = $1 and d.body_hash = $2 returning 1)
  select exists (select from dropped)
$$;

-- Removes the oldest rows of one table beyond an age, so many at most, and tells how many. Rows that another replica is
-- removing are left to it.
create function clerk_sync.prune(what text, older_than_s bigint, at_most integer) returns integer
  language plpgsql volatile security definer set search_path = '' as $$
declare
  before constant pg_catalog.timestamptz := pg_catalog.now() - older_than_s * interval '1 s';
  removed integer;
begin
  if older_than_s is null or older_than_s < 3600 then
    raise exception 'nothing younger than an hour is pruned' using errcode = '22023';
  end if;
  case what
  when 'receipts' then
    delete from clerk_sync.receipts
     where message_id = any (array(select r.message_id from clerk_sync.receipts r where r.received_at < before
                                    order by r.received_at limit at_most for update skip locked));
  when 'findings' then
    -- Ids grow with the time, so the oldest are the first, and the others are not looked at.
    delete from clerk_sync.findings
     where repaired_at < before
       and id = any (array(select f.id from clerk_sync.findings f order by f.id limit at_most for update skip locked));
  when 'passes' then
    -- After its findings. The last one of its scope says where the next goes on, the last complete one what it is held against.
    delete from clerk_sync.passes
     where id = any (array(
       select p.id from clerk_sync.passes p
        where p.ended_at < before and p.state <> 'running'
          and not exists (select from clerk_sync.findings f where f.pass_id = p.id)
          and exists (select from clerk_sync.passes l where l.scope = p.scope and l.id > p.id)
          and (p.state <> 'complete'
               or exists (select from clerk_sync.passes l where l.scope = p.scope and l.id > p.id and l.state = 'complete'))
        order by p.id limit at_most for update skip locked));
  when 'dead_letters' then
    delete from clerk_sync.dead_letters d
     using (select l.message_id, l.body_hash from clerk_sync.dead_letters l where l.received_at < before
             order by l.received_at limit at_most for update skip locked) old
     where (d.message_id, d.body_hash) = (old.message_id, old.body_hash);
  end case;
  get diagnostics removed = row_count;
  return removed;
end
$$;

-- Removes the emptied rows of users or organizations that were deleted longer ago than this. Tombstones stay: without one
-- a row is not touched, for a late webhook would bring it back. One row for each that is removed, and for each that something
-- of the application's holds: a foreign key, or a trigger that fails (it must name its schemas).
create function clerk_sync.purge(kind text, ids text[], older_than_s bigint) returns table (purged_id text, held_by text)
  language plpgsql volatile security definer set search_path = '' as $$
#variable_conflict use_variable
declare
  before constant pg_catalog.timestamptz := pg_catalog.now() - older_than_s * interval '1 s';
  in_schema pg_catalog.text;
  in_table pg_catalog.text;
  by_constraint pg_catalog.text;
begin
  if older_than_s is null or older_than_s < 86400 then
    raise exception 'nothing that was deleted within a day is purged' using errcode = '22023';
  end if;
  -- No membership is written under a row that goes.
  perform clerk_sync.take_turn();
  -- A deferred constraint would fail all of them in the end.
  set constraints all immediate;
  foreach purged_id in array ids loop
    begin
      held_by := null;
      if not exists (select from clerk_sync.versions v where v.kind = kind and v.id = purged_id and v.state = 'deleted')
         or exists (select from clerk_sync.denials d where d.kind = kind and d.id = purged_id) then
        continue;
      end if;
      if kind = 'user' then
        delete from clerk.users u where u.id = purged_id and u.deleted_at < before;
      else
        delete from clerk.organizations o where kind = 'organization' and o.id = purged_id and o.deleted_at < before;
      end if;
      if not found then
        continue;
      end if;
    exception when others then   -- running out of time is no such error
      get stacked diagnostics in_schema = schema_name, in_table = table_name, by_constraint = constraint_name;
      held_by := case when by_constraint <> '' then by_constraint || ' of ' || in_schema || '.' || in_table
                      else 'SQLSTATE ' || sqlstate end;
    end;
    return next;
  end loop;
end
$$;

-- The foreign keys of the application's tables on rows that a purge of this age would remove, and how many of their rows refer to
-- one. Null: they cannot be counted by the role that owns this schema.
create function clerk_sync.purge_references(older_than_s bigint)
  returns table (parent text, constraint_name text, table_name text, column_name text, on_delete text, referencing bigint)
  language plpgsql volatile security definer set search_path = '' set row_security = off as $$
begin
  for parent, constraint_name, table_name, column_name, on_delete in
    select case c.confrelid when 'clerk.users'::pg_catalog.regclass then 'clerk.users' else 'clerk.organizations' end,
           c.conname, c.conrelid::pg_catalog.regclass::pg_catalog.text, a.attname,
           case c.confdeltype when 'c' then 'cascade' when 'n' then 'set null' when 'd' then 'set default' when 'r' then 'restrict'
                              else 'no action' end
      from pg_catalog.pg_constraint c
      join pg_catalog.pg_class r on r.oid = c.conrelid
      join pg_catalog.pg_attribute a on a.attrelid = c.conrelid and a.attnum = c.conkey[1]
     where c.contype = 'f' and c.conparentid = 0   -- not once more for each partition
       and c.confrelid in ('clerk.users'::pg_catalog.regclass, 'clerk.organizations'::pg_catalog.regclass)
       and r.relnamespace <> 'clerk'::pg_catalog.regnamespace
     order by 1, 3, 2
  loop
    begin
      execute pg_catalog.format(
        'select count(*) from %s r where exists (select from %s p where p.id = r.%I and p.deleted_at < pg_catalog.now() - $1 * interval ''1 s'')',
        table_name, parent, column_name) into referencing using older_than_s;
    exception when insufficient_privilege then
      referencing := null;
    end;
    return next;
  end loop;
end
$$;

do $$
declare f regprocedure;
begin
  foreach f in array array['clerk_sync.retry_dead_letter(text, text, integer, boolean, clerk_sync.batch)',
                           'clerk_sync.note_dead_letter_tried(text, text, integer, text)', 'clerk_sync.drop_dead_letter(text, text)',
                           'clerk_sync.prune(text, bigint, integer)', 'clerk_sync.purge(text, text[], bigint)',
                           'clerk_sync.purge_references(bigint)']::regprocedure[] loop
    execute format('revoke all on function %s from public, anon, authenticated, service_role', f);
    execute format('grant execute on function %s to clerk_sync_worker', f);
  end loop;
end
$$;
