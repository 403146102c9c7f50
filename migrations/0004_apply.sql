-- The writer: the only thing that writes the mirror. One call is one statement and one transaction; writers of all replicas
-- take turns on one lock. R1 to R9 are the rules of src/lib.rs ("Why order does not matter").
--
-- The batch is folded by the caller: at most one change per object, one stub per parent and one naming per pair, all from one
-- source. Every item but a stub and a naming carries "n", and the answer has one row per n: what became of it, and why.
-- Outcomes: applied, unchanged, stale, duplicate, pending, dead_letter; and three that leave the whole batch unwritten, for
-- the caller to take the item out, or to have its object read by id, and send the rest again: foreign, reused, ahead.

-- Bodies name every type with its schema: with an empty search_path a caller's temporary types still come first, and a
-- domain of his would run his code as the owner. (integer, bigint and boolean are words of the grammar, not names.)

-- What decides whether a change counts is apart from the row that it brings, which is looked at only if it does.
create type clerk_sync.change as (
  n integer, kind text, id text, observed_at bigint, updated_at bigint, content bigint,
  denial integer,                             -- see clerk_sync.versions
  ahead bigint,                               -- Clerk's updated_at where it was ahead of the observation
  row_number integer,                         -- of its row among the rows of its kind, from 1
  lacks text,                                 -- what of it only a read by id can tell
  organization_id text, user_id text          -- of a membership
);
create type clerk_sync.user_row as (
  id text, first_name text, last_name text, username text, image_url text, has_image boolean,
  email_address text, email_address_verified boolean, phone_number text, phone_number_verified boolean,
  external_id text, banned boolean, locked boolean, deprovisioned boolean, public_metadata jsonb, unsafe_metadata jsonb,
  created_at bigint, updated_at bigint
);
create type clerk_sync.organization_row as (
  id text, name text, slug text, image_url text, has_image boolean, max_allowed_memberships bigint, public_metadata jsonb,
  created_at bigint, updated_at bigint
);
create type clerk_sync.membership_row as (
  id text, organization_id text, user_id text, role text, permissions text[], public_metadata jsonb, created_at bigint, updated_at bigint
);
create type clerk_sync.gone as (n integer, kind text, id text, observed_at bigint);
-- Of a change in whose place several webhooks came at once: whether a read must tell which came last, whether their times disagree (R9),
-- and the greatest of them.
create type clerk_sync.doubt as (n integer, asks boolean, in_doubt boolean, updated_at bigint, observed_at bigint, content bigint);
-- What a membership embeds of a parent.
create type clerk_sync.stub as (
  kind text, id text, observed_at bigint, content bigint, image_url text, has_image boolean,
  first_name text, last_name text, username text, banned boolean, deprovisioned boolean,
  name text, slug text, max_allowed_memberships bigint, public_metadata jsonb, created_at bigint
);
-- That a membership exists or existed.
create type clerk_sync.naming as (organization_id text, user_id text, membership_id text, created_at bigint, observed_at bigint);
create type clerk_sync.message as (
  n integer, message_id text, body_hash text, event_type text, entity_id text, instance_id text, event_at bigint, flaws text[],
  first_hash text           -- of the first message of this id, where the batch has several
);
-- What only a read by id can settle, and what only a pass can.
create type clerk_sync.wanted_read as (
  n integer, kind text, id text, organization_id text, user_id text, reason text,
  observed_at bigint,       -- null: what asks for it has no time
  told_deleted boolean
);
create type clerk_sync.wanted_pass as (
  n integer, kind text, organization_id text, reason text,   -- of one organization, or of the kind
  ripe_after_s integer      -- a pass that begins so much later surely sees what asks for it
);
create type clerk_sync.dead_letter as (n integer, reason text, headers jsonb, body bytea);
create type clerk_sync.batch as (
  source text,              -- webhook (an event), list (a page of a listing), read (by id), undelete (a read by id for a person)
  fence bigint,             -- of a pass: its lease's token; a lease that was lost writes nothing
  check_instance boolean,   -- whether a message of another Clerk instance is refused
  messages clerk_sync.message[],
  gone clerk_sync.gone[],
  changes clerk_sync.change[],
  users clerk_sync.user_row[],                       -- those of the changes, kind by kind in their order
  organizations clerk_sync.organization_row[],
  memberships clerk_sync.membership_row[],
  stubs clerk_sync.stub[],
  namings clerk_sync.naming[],
  reads clerk_sync.wanted_read[],
  passes clerk_sync.wanted_pass[],
  dead_letters clerk_sync.dead_letter[],
  outdated text[],          -- memberships that came with a later one of the same pair
  doubts clerk_sync.doubt[],
  mode text,                -- null: all of it. Of one change that was refused: access (what decides access alone), then deny (no row)
  refused_by text[],        -- of the mode deny: the SQLSTATE of the refusal, and what refused
  lock_wait_ms integer      -- how long to wait for a lock on a row of ours; null: as long as the session says
);
create type clerk_sync.outcome as (n integer, outcome text, reason text);
-- What the writer found of a change, where more than its row may follow from it.
create type clerk_sync.judgement as (
  n integer, kind text, id text, organization_id text, user_id text, lacks text, state text, verdict text,
  observed_at bigint, updated_at bigint, content bigint, known_at bigint, settles_after bigint, said text, wait bigint
);
-- What a row should say of access after a batch: whether a user may act, a membership is there, an organization is not deleted.
create type clerk_sync.intent as (
  kind text, id text, may boolean, gone_at bigint,   -- gone_at: of a tombstone
  banned boolean, deprovisioned boolean,             -- of a user
  organization_id text, user_id text, role text, permissions text[], created_at bigint, updated_at bigint   -- of a membership
);
revoke all on type clerk_sync.intent from public, anon, authenticated, service_role;
revoke all on type clerk_sync.change, clerk_sync.user_row, clerk_sync.organization_row, clerk_sync.membership_row, clerk_sync.gone,
  clerk_sync.stub, clerk_sync.naming, clerk_sync.message, clerk_sync.wanted_read, clerk_sync.wanted_pass, clerk_sync.dead_letter,
  clerk_sync.batch, clerk_sync.outcome, clerk_sync.judgement, clerk_sync.doubt
  from public, anon, authenticated, service_role;

-- Removes membership rows with their versions, so that nothing remembers a row that is not there. A tombstone stays. Without
-- `rows` the versions alone: something keeps a row, and the next step deals with it.
-- (Not in language sql: that plans anew for each call.)
create function clerk_sync.end_memberships(ids text[], rows boolean default true) returns void
  language plpgsql volatile set search_path = '' as $$
begin
  if rows then
    delete from clerk.organization_memberships where id = any (ids);
  end if;
  delete from clerk_sync.versions where kind = 'membership' and id = any (ids) and state <> 'deleted';
end
$$;
revoke all on function clerk_sync.end_memberships(text[], boolean) from public, anon, authenticated, service_role;

-- Waits until it is this transaction's turn to write: the one place that takes the lock. A wait that is too long has a code of its
-- own, so that it is told from a lock that somebody else holds on a row of ours: this one says nothing about the batch.
create function clerk_sync.take_turn() returns void
  language plpgsql volatile set search_path = ''
  set lock_timeout = '2s'   -- longer than for any other lock: whoever waits for somebody else's keeps the turn meanwhile
  as $$
begin
  lock table clerk_sync.writer in exclusive mode;
exception when lock_not_available then
  raise exception 'another writer has the turn for too long' using errcode = 'CS002';
end
$$;
revoke all on function clerk_sync.take_turn() from public, anon, authenticated, service_role;

-- By the database's clock: a holder that was asleep while its lease ended does not know it.
create function clerk_sync.check_fence(fence bigint) returns void
  language plpgsql volatile set search_path = '' as $$
begin
  if not exists (select from clerk_sync.lease where token = fence and expires_at > pg_catalog.clock_timestamp()) then
    raise exception 'the lease is lost' using errcode = 'CS001';
  end if;
end
$$;
revoke all on function clerk_sync.check_fence(bigint) from public, anon, authenticated, service_role;

-- Asks for the memberships of organizations to be listed: at once, and again ten seconds after it was last asked for. However often
-- that is, they are listed once in half a minute at most.
create function clerk_sync.ask_for_members(organization_ids text[], reason text) returns void
  language sql volatile set search_path = '' as $$
  insert into clerk_sync.pending_listings as p (organization_id, reason)
    select distinct i, $2 from unnest($1) i
    on conflict (organization_id) do update
      set reason = excluded.reason, asked_at = pg_catalog.now(),
          next_at = case when p.claimed_at is null then p.next_at
                         else least(pg_catalog.now() + interval '10 s', p.claimed_at + interval '30 s') end
$$;
revoke all on function clerk_sync.ask_for_members(text[], text) from public, anon, authenticated, service_role;
-- Whether one state of an object gives more access than another (R2): 1 if it may, 0 if their access is the same, -1 if it provably gives
-- less. Roles are not ordered, sets of permissions are: only a true subset of the row's permissions is less.
create function clerk_sync.compare_access(kind text, known_id text, denial integer, known_denial integer, new clerk_sync.membership_row)
  returns integer language plpgsql stable set search_path = '' as $$
begin
  if kind <> 'membership' then
    return pg_catalog.sign(coalesce(known_denial, 0) - coalesce(denial, 0));
  end if;
  return coalesce(
    (select case when (m.role, m.permissions) = (new.role, new.permissions) then 0
                 when new.permissions <@ m.permissions and cardinality(new.permissions) < cardinality(m.permissions) then -1
                 else 1 end
       from clerk.organization_memberships m where m.id = known_id),
    1);
end
$$;
revoke all on function clerk_sync.compare_access(text, text, integer, integer, clerk_sync.membership_row)
  from public, anon, authenticated, service_role;

-- What follows is about rows that something of the application's refuses or alters: a foreign key, a trigger, an index, a check.
-- Access must not hang on it. The caller goes down a ladder with each change that was refused: all of it; what decides access
-- alone; nothing but our own tables, and there a denial, which every function and policy of ours asks.

-- Those whose row gives access that it should not give, and memberships whose role or permissions are others. (Less access than
-- meant is no danger, and waits for the next try.)
create function clerk_sync.misleading(intents clerk_sync.intent[]) returns setof clerk_sync.intent
  language plpgsql stable set search_path = '' as $$
begin
  return query
    select i.* from unnest(intents) i
      left join lateral (select true as able from clerk.user_details
                          where i.kind = 'user' and id = i.id and banned is false and deprovisioned is not true offset 0) u on true
      left join lateral (select * from clerk.organization_memberships where i.kind = 'membership' and id = i.id offset 0) m on true
      left join lateral (select true as stands from clerk.organizations
                          where i.kind = 'organization' and id = i.id and deleted_at is null offset 0) o on true
     where case i.kind
             when 'user' then u.able and not i.may
             when 'organization' then o.stands and not i.may
             else m.id is not null
                  and (not i.may or (m.organization_id, m.user_id, m.role, m.permissions)
                                    is distinct from (i.organization_id, i.user_id, i.role, i.permissions)) end;
end
$$;

-- After whatever was written: a trigger that keeps a row from being written, or alters it, says nothing about it.
create function clerk_sync.check_access(intents clerk_sync.intent[]) returns void
  language plpgsql stable set search_path = '' as $$
declare
  wrong clerk_sync.intent;
begin
  select * into wrong from clerk_sync.misleading(intents) limit 1;
  if found then
    raise exception 'the row of a % does not say what was written', wrong.kind
      using errcode = 'CS004', schema = 'clerk',
            table = case wrong.kind when 'user' then 'user_details' when 'organization' then 'organizations' else 'organization_memberships' end;
  end if;
end
$$;

-- The mode `access`: ended rows go, and of the others what decides access is written, where it differs. A membership whose
-- successor is known becomes that in place, should something keep it from being removed.
create function clerk_sync.write_access(intents clerk_sync.intent[]) returns void
  language plpgsql volatile set search_path = '' as $$
begin
  update clerk.user_details d set banned = i.banned, deprovisioned = i.deprovisioned
    from unnest(intents) i
   where i.kind = 'user' and i.gone_at is null and d.id = i.id
     and (d.banned, d.deprovisioned) is distinct from (i.banned, i.deprovisioned);
  delete from clerk.user_details d using unnest(intents) i where i.kind = 'user' and i.gone_at is not null and d.id = i.id;
  update clerk.users u set deleted_at = pg_catalog.to_timestamp(i.gone_at::double precision / 1000)
    from unnest(intents) i where i.kind = 'user' and i.gone_at is not null and u.id = i.id and u.deleted_at is null;
  update clerk.organizations o set deleted_at = pg_catalog.to_timestamp(i.gone_at::double precision / 1000)
    from unnest(intents) i where i.kind = 'organization' and i.gone_at is not null and o.id = i.id and o.deleted_at is null;
  update clerk.organization_memberships m
     set id = i.id, role = i.role, permissions = i.permissions,
         created_at = pg_catalog.to_timestamp(i.created_at::double precision / 1000),
         updated_at = pg_catalog.to_timestamp(i.updated_at::double precision / 1000)
    from unnest(intents) i
   where i.kind = 'membership' and i.may and m.user_id = i.user_id and m.organization_id = i.organization_id and m.id <> i.id;
  update clerk.organization_memberships m set role = i.role, permissions = i.permissions
    from unnest(intents) i
   where i.kind = 'membership' and i.may and m.id = i.id and (m.role, m.permissions) is distinct from (i.role, i.permissions);
  delete from clerk.organization_memberships m using unnest(intents) i where i.kind = 'membership' and not i.may and m.id = i.id;
end
$$;

-- The modes `access` and `deny`, of one change. What its rows do not say yet waits for another try.
create function clerk_sync.write_refused(mode text, refused_by text[], intents clerk_sync.intent[]) returns void
  language plpgsql volatile set search_path = '' as $$
begin
  if mode = 'access' then
    perform clerk_sync.write_access(intents);
    perform clerk_sync.check_access(intents);
  else
    insert into clerk_sync.denials as d (kind, id, sqlstate, object)
      select i.kind, i.id, refused_by[1], refused_by[2] from clerk_sync.misleading(intents) i
      on conflict (kind, id) do update set sqlstate = excluded.sqlstate, object = coalesce(excluded.object, d.object);
  end if;
  delete from clerk_sync.denials d using unnest(intents) i
   where d.kind = i.kind and d.id = i.id
     and (mode = 'access' or not exists (select from clerk_sync.misleading(array[i]::clerk_sync.intent[])));
  insert into clerk_sync.pending_reads as p (kind, id, organization_id, user_id, reason)
    select i.kind, i.id, i.organization_id, i.user_id, 'refused' from unnest(intents) i
    on conflict (kind, id) do update
      set reason = 'refused', asked_at = pg_catalog.now(), tries = case when p.reason = 'refused' then p.tries else 0 end,
          next_at = case when p.reason = 'refused' then p.next_at else excluded.next_at end,
          organization_id = coalesce(p.organization_id, excluded.organization_id), user_id = coalesce(p.user_id, excluded.user_id);
end
$$;

-- Tries again what has ended and whose row could not say so, a few at a time: what it must say is known here. (The others are read
-- again.) After a minute, and then each time when twice as long has passed, an hour at most. Answers how many rows say it now.
create function clerk_sync.retry_refused() returns integer
  language plpgsql volatile security definer set search_path = '' as $$
declare
  subject record;
  settled integer := 0;
begin
  perform clerk_sync.take_turn();
  perform pg_catalog.set_config('lock_timeout', '100ms', true);
  -- A deferred constraint would fail all of them in the end.
  set constraints all immediate;
  for subject in
    select p.kind, p.id, v.observed_at as gone_at
      from clerk_sync.pending_reads p
      left join clerk_sync.versions v on v.kind = p.kind and v.id = p.id
     where p.reason = 'refused' and p.next_at <= pg_catalog.now()
       and (v.state = 'deleted' or (p.kind = 'membership' and v.state is null))
     order by p.next_at limit 50
  loop
    begin
      if subject.kind = 'user' then
        delete from clerk.user_details where id = subject.id;
        update clerk.users u
           set first_name = null, last_name = null, username = null, image_url = null, has_image = null,
               deleted_at = coalesce(u.deleted_at, pg_catalog.to_timestamp(subject.gone_at::double precision / 1000))
         where u.id = subject.id;
      elsif subject.kind = 'organization' then
        update clerk.organizations o
           set name = null, slug = null, image_url = null, has_image = null, max_allowed_memberships = null, public_metadata = null,
               created_at = null, updated_at = null,
               deleted_at = coalesce(o.deleted_at, pg_catalog.to_timestamp(subject.gone_at::double precision / 1000))
         where o.id = subject.id;
      else
        delete from clerk.organization_memberships where id = subject.id;
      end if;
      perform clerk_sync.check_access(array[row(subject.kind, subject.id, false, null, null, null, null, null, null, null, null, null)]::clerk_sync.intent[]);
      delete from clerk_sync.denials where kind = subject.kind and id = subject.id;
      delete from clerk_sync.pending_reads where kind = subject.kind and id = subject.id;
      settled := settled + 1;
    exception when others then
      update clerk_sync.pending_reads p
         set tries = p.tries + 1,
             next_at = pg_catalog.now() + least(interval '1 min' * pg_catalog.power(2, least(p.tries, 10)), interval '1 h')
       where p.kind = subject.kind and p.id = subject.id;
    end;
  end loop;
  -- Whose row is gone gives nothing.
  delete from clerk_sync.denials d
   where d.kind = 'membership' and not exists (select from clerk.organization_memberships m where m.id = d.id)
      or d.kind = 'user' and not exists (select from clerk.user_details u where u.id = d.id)
      or d.kind = 'organization' and not exists (select from clerk.organizations o where o.id = d.id);
  return settled;
end
$$;

do $$
declare f regprocedure;
begin
  foreach f in array array['clerk_sync.misleading(clerk_sync.intent[])', 'clerk_sync.check_access(clerk_sync.intent[])',
                           'clerk_sync.write_access(clerk_sync.intent[])', 'clerk_sync.write_refused(text, text[], clerk_sync.intent[])',
                           'clerk_sync.retry_refused()']::regprocedure[] loop
    execute format('revoke all on function %s from public, anon, authenticated, service_role', f);
  end loop;
end
$$;
grant execute on function clerk_sync.retry_refused() to clerk_sync_worker;

create function clerk_sync.apply(batch clerk_sync.batch)
  returns table (n integer, outcome text, reason text)
  language plpgsql volatile security definer set search_path = ''
  -- A session plans once and keeps its plans, perhaps from when the tables were empty. So every look-up below is one by key,
  -- written as a lateral query that cannot be turned into a join of whole tables, and this makes it use the index. The
  -- price that it puts on other plans must not call for compiling them.
  -- A statement costs some 30 µs even where it finds nothing to do, so those whose input is empty are left out.
  set enable_seqscan = off
  set jit = off
  set plan_cache_mode = force_generic_plan
  as $$
#variable_conflict use_column
declare
  margin constant bigint := 300000;           -- ms; R2, R4, R7: more than any clock or queue between Clerk and us is off
  skew constant bigint := 2100;               -- ms; how far the clocks of Clerk's servers are apart, and what an event takes to be sent
  soon constant bigint := 5000;               -- ms; R9: events of one object so close together may be in the wrong order
  hour constant bigint := 3600000;            -- ms; R2: after this a contradiction is believed,
  day constant bigint := 86400000;            --     and after this if it gives more access than what it contradicts allows
  ahead_limit constant bigint := (extract(epoch from pg_catalog.now()) * 1000)::bigint + 300000;
  few constant integer := 100;                -- memberships that end in the same statement as their user or organization
  from_webhook constant boolean := batch.source = 'webhook';
  from_list constant boolean := batch.source = 'list';
  from_read constant boolean := batch.source in ('read', 'undelete');
  undelete constant boolean := batch.source = 'undelete';
  gone constant clerk_sync.gone[] := batch.gone;
  changes constant clerk_sync.change[] := batch.changes;
  user_rows constant clerk_sync.user_row[] := batch.users;
  organization_rows constant clerk_sync.organization_row[] := batch.organizations;
  membership_rows constant clerk_sync.membership_row[] := batch.memberships;
  namings constant clerk_sync.naming[] := batch.namings;
  messages constant clerk_sync.message[] := batch.messages;
  reads constant clerk_sync.wanted_read[] := batch.reads;
  passes constant clerk_sync.wanted_pass[] := batch.passes;
  dead_letters constant clerk_sync.dead_letter[] := batch.dead_letters;
  pinned pg_catalog.text;                     -- the mirror's instance
  user_mark bigint;                           -- when the last complete pass of each kind began (R7),
  organization_mark bigint;
  membership_mark bigint;
  user_listing bigint;                        -- and the one that is listing now, with how far it has come
  organization_listing bigint;
  membership_listing bigint;
  users_listed_to bigint;
  organizations_listed_to bigint;
  memberships_listed_to bigint;
  stubs clerk_sync.stub[];                    -- those whose parent is not here as a whole, in the end those that were written
  doubtful pg_catalog.text[];                 -- ids of parents that are not here as a whole, or go with this batch
  outdated pg_catalog.text[] := batch.outdated;
  unproven pg_catalog.text[];                 -- memberships that are older than the last pass, which has read another one since
  corrected pg_catalog.text[];
  of_deleted integer[];                       -- memberships, by their n, whose parent is deleted, may be, or is not here
  of_doubtful integer[];
  of_missing integer[];
  repeated integer[] := '{}';                 -- messages whose id came before
  users_win boolean[];                        -- beside the rows of each kind: whether they are to be written
  organizations_win boolean[];
  memberships_win boolean[];
  results clerk_sync.outcome[] := '{}';
  these_results clerk_sync.outcome[];
  consequential clerk_sync.judgement[];
  gone_users pg_catalog.text[];
  gone_organizations pg_catalog.text[];
  gone_parents pg_catalog.text[];
  ended pg_catalog.text[];
  in_full constant boolean := batch.mode is null;
  is_listing boolean;                         -- whether a pass is listing now
  has_refused boolean;                        -- whether any row was refused before and does not say yet what it should
  takes boolean;                              -- whether a change may take access away
  intents clerk_sync.intent[] := '{}';        -- of what takes access away; after a refusal, of everything
  of_memberships boolean;
begin
  -- With an older snapshot than the lock, the statements below would not see what the writer before us did.
  if pg_catalog.current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'clerk_sync.apply needs the isolation level read committed';
  end if;
  -- Over all replicas: no deadlock, and no member added while the organization is deleted. Every step below is a statement of its own, so it sees what was committed before the lock was granted.
  perform clerk_sync.take_turn();
  if batch.fence is not null then
    perform clerk_sync.check_fence(batch.fence);
  end if;
  if batch.lock_wait_ms is not null then
    perform pg_catalog.set_config('lock_timeout', batch.lock_wait_ms::pg_catalog.text, true);
  end if;

  -- Most parents are here already, and are not looked at any further.
  if cardinality(batch.stubs) > 0 then
    select array_agg(s.id), array_agg(s::clerk_sync.stub) filter (where v.state is distinct from 'deleted')
      into doubtful, stubs
      from unnest(batch.stubs) s
      left join lateral (select true as stands from clerk.users
                          where s.kind = 'user' and id = s.id and deleted_at is null
                         union all
                         select true from clerk.organizations
                          where s.kind = 'organization' and id = s.id and deleted_at is null offset 0) r on true
      left join lateral (select true as is_stub from clerk_sync.versions
                          where kind = s.kind and id = s.id and state = 'stub' offset 0) p on true
      -- A version whose row somebody removed by hand counts for nothing: the foreign keys need the row.
      left join lateral (select state from clerk_sync.versions
                          where r.stands is null and kind = s.kind and id = s.id offset 0) v on true
     where r.stands is null or p.is_stub;
  end if;

  -- The instance is pinned by the first message that names one, in a database where nothing else pinned it.
  if batch.check_instance then
    pinned := (select instance_id from clerk_sync.instance);
    if pinned is null then
      insert into clerk_sync.instance (instance_id, pinned_by)
        select m.instance_id, 'webhook' from unnest(messages) m where m.instance_id is not null order by m.n limit 1
        on conflict do nothing;
      pinned := (select instance_id from clerk_sync.instance);
    end if;
  end if;

  -- Messages that came before, and those that must not be applied at all: of another instance, or with an id that came with
  -- another body.
  if cardinality(messages) > 0 then
    with message as (
      select m.n, m.instance_id <> pinned as is_foreign, from_webhook and m.event_at > ahead_limit
               and (exists (select from unnest(changes) where n = m.n) or exists (select from unnest(gone) where n = m.n)) as is_ahead,
             r.body_hash is not null or m.first_hash is not null as is_repeated,
             m.body_hash <> coalesce(r.body_hash, m.first_hash) and m.n <> all (array(select n from unnest(dead_letters))) as is_reused
        from unnest(messages) m
        left join lateral (select body_hash from clerk_sync.receipts where message_id = m.message_id offset 0) r on true
    )
    select coalesce(array_agg(row(n, case when is_foreign then 'foreign' when is_reused then 'reused' else 'ahead' end,
                                  case when is_foreign then pinned end)::clerk_sync.outcome)
                      filter (where is_foreign or is_reused or is_ahead), '{}'),
           coalesce(array_agg(n) filter (where is_repeated), '{}')
      into results, repeated from message;
    if cardinality(results) > 0 then
      return query select * from unnest(results);
      return;
    end if;
  end if;

  if from_webhook then
    select max(started_at) filter (where kind = 'user'), max(started_at) filter (where kind = 'organization'),
           max(started_at) filter (where kind = 'membership'),
           exists (select from clerk_sync.denials) or exists (select from clerk_sync.pending_reads where reason = 'refused'),
           exists (select from clerk_sync.listings)
      into user_mark, organization_mark, membership_mark, has_refused, is_listing from clerk_sync.marks;
    if is_listing then
      select max(started_at) filter (where kind = 'user'), max(started_at) filter (where kind = 'organization'),
             max(started_at) filter (where kind = 'membership'),
             max(listed_to) filter (where kind = 'user'), max(listed_to) filter (where kind = 'organization'),
             max(listed_to) filter (where kind = 'membership')
        into user_listing, organization_listing, membership_listing, users_listed_to, organizations_listed_to, memberships_listed_to
        from clerk_sync.listings;
    end if;
  elsif exists (select from unnest(changes) where observed_at > ahead_limit)
     or exists (select from unnest(gone) where observed_at > ahead_limit) then
    raise exception 'an answer of Clerk''s API is dated more than five minutes ahead of the database''s clock' using errcode = 'CS003';
  end if;

  if not from_webhook then
    has_refused := exists (select from clerk_sync.denials) or exists (select from clerk_sync.pending_reads where reason = 'refused');
  end if;

  -- R5: the greatest membership ever named for a pair is remembered, whatever else the observation is good for, and ends
  -- every older one.
  if cardinality(namings) > 0 then
    with known as (
      select c.*, g.membership_id as known, g.rival_id,
             (c.created_at, c.membership_id collate "C") > (g.created_at, g.membership_id collate "C") as is_later,
             -- R7: a pass has read the other one since this was observed, and the two may be in the wrong order.
             coalesce(from_webhook and c.membership_id <> g.membership_id and c.observed_at < membership_mark - margin
                        and c.created_at - g.created_at <= skew
                        and exists (select from clerk.organization_memberships where id = g.membership_id), false) as is_unproven
        from unnest(namings) c
        left join lateral (select created_at, membership_id, rival_id from clerk_sync.generations
                            where organization_id = c.organization_id and user_id = c.user_id offset 0) g on true
    ), naming as (
      select organization_id, user_id, membership_id, created_at, known, is_later and not is_unproven as is_later,
             is_later and is_unproven as is_unproven,
             -- A read that shows the membership that is known clears what another read said.
             rival_id is not null and membership_id = known and not from_webhook as is_confirmed
        from known
    ), added as (   -- apart from what is known: no conflict is looked for
      insert into clerk_sync.generations (organization_id, user_id, created_at, membership_id)
        select organization_id, user_id, created_at, membership_id from naming where known is null
    ), raised as (
      insert into clerk_sync.generations as g (organization_id, user_id, created_at, membership_id)
        select organization_id, user_id, created_at, membership_id from naming where is_later or is_confirmed
        on conflict (organization_id, user_id) do update
          set created_at = greatest(g.created_at, excluded.created_at), membership_id = excluded.membership_id,
              rival_id = null, rival_since = null
    )
    select array_agg(m.id) filter (where m.id <> c.membership_id),
           outdated || array_agg(c.membership_id) filter (where not c.is_later and not c.is_unproven and c.membership_id <> c.known),
           array_agg(c.membership_id) filter (where c.is_unproven)
      into ended, outdated, unproven
      from naming c
      left join lateral (select id from clerk.organization_memberships
                          where c.is_later is not false and organization_id = c.organization_id and user_id = c.user_id offset 0) m on true;
    if cardinality(ended) > 0 then
      perform clerk_sync.end_memberships(ended, in_full);
      intents := array(select row('membership', id, false, null, null, null, null, null, null, null, null, null)::clerk_sync.intent
                         from unnest(ended) id);
    end if;
  end if;

  -- R5, R2: reads that show another membership of a pair than the one that is known contradict it. When they have done so for long
  -- enough, theirs is the one that is known, and placed behind the one that it replaces: nobody is locked out for ever.
  if not from_webhook and cardinality(outdated) > 0 then
    with rival as (
      select c.id, c.organization_id, c.user_id, g.membership_id as known, g.created_at as known_created_at,
             case when g.rival_id = c.id then g.rival_since else c.observed_at end as since, c.observed_at,
             case when g.created_at - least((membership_rows[c.row_number]).created_at, c.observed_at + 11000) <= skew
                       or clerk_sync.compare_access('membership', g.membership_id, null, null, membership_rows[c.row_number]) <= 0
                  then hour else day end as wait
        from unnest(changes) c
        join clerk_sync.generations g on g.organization_id = c.organization_id and g.user_id = c.user_id and g.membership_id <> c.id
       where c.kind = 'membership' and c.id = any (outdated)
         and not exists (select from clerk_sync.versions v where v.kind = 'membership' and v.id = c.id and v.state = 'deleted' and not v.inferred)
    ), remembered as (
      update clerk_sync.generations g set rival_id = r.id, rival_since = r.since
        from rival r
       where g.organization_id = r.organization_id and g.user_id = r.user_id and r.observed_at - r.since < r.wait
    ), replaced as (
      update clerk_sync.generations g
         set membership_id = r.id, created_at = r.known_created_at + 1, rival_id = null, rival_since = null
        from rival r
       where g.organization_id = r.organization_id and g.user_id = r.user_id and r.observed_at - r.since >= r.wait
    ), scheduled as (
      insert into clerk_sync.pending_reads as p (kind, id, organization_id, user_id, reason, next_at)
        select 'membership', known, organization_id, user_id, 'contradicts', pg_catalog.to_timestamp((since + wait + 10000) / 1000.0)
          from rival where observed_at - since < wait
        on conflict (kind, id) do update set next_at = excluded.next_at where p.settles_after = 0
    )
    select array_agg(id) filter (where observed_at - since >= wait), array_agg(known) filter (where observed_at - since >= wait)
      into corrected, ended from rival;
    if cardinality(corrected) > 0 then
      outdated := array(select o from unnest(outdated) o where o <> all (corrected));
      perform clerk_sync.end_memberships(ended);
    end if;
  end if;

  -- R4: a delete leaves a tombstone, also for an id never seen. One that is inferred yields to whatever is read later.
  if cardinality(gone) > 0 then
    -- A read of a pair that shows no membership at all does not show another one in the place of the one that is known either.
    if from_read then
      update clerk_sync.generations g set rival_id = null, rival_since = null
        from unnest(gone) c
        join clerk_sync.pending_reads p on p.kind = c.kind and p.id = c.id
       where c.kind = 'membership' and g.organization_id = p.organization_id and g.user_id = p.user_id and g.membership_id = c.id
         and g.rival_id <> all (array(select id from unnest(changes)));
    end if;
    with gone as (
      select c.*, v.state, v.observed_at as known_at, v.inferred, p.settles_after,
             -- Absence proves little while Clerk's API may not have the object yet, unless a webhook said that it was deleted.
             v.event_observed_at is not null and v.first_observed_at > c.observed_at - hour and p.told_deleted is not true as is_young
        from unnest(gone) c
        left join lateral (select * from clerk_sync.versions where kind = c.kind and id = c.id offset 0) v on true
        left join lateral (select settles_after, told_deleted from clerk_sync.pending_reads
                            where not from_webhook and kind = c.kind and id = c.id offset 0) p on true
    ), decided as (
      select *,
        case when state = 'deleted' and (from_webhook, observed_at) > (not inferred, known_at) then 'later'
             when state = 'deleted' then 'unchanged'
             when from_webhook then 'applied'
             when observed_at < settles_after then 'early'
             when known_at > observed_at then 'stale'
             when is_young then 'young'
             else 'applied' end as verdict
        from gone
    ), written as (
      insert into clerk_sync.versions as v (kind, id, state, observed_at, inferred)
        select kind, id, 'deleted', observed_at, not from_webhook from decided where verdict in ('applied', 'later')
        on conflict (kind, id) do update
          set state = 'deleted', observed_at = excluded.observed_at, inferred = excluded.inferred,
              updated_at = null, content = null, denial = null, floor = 0, first_observed_at = null, event_updated_at = null,
              event_observed_at = null, event_content = null, ahead = null, by_event = false, in_doubt = false
    ), settled as (
      delete from clerk_sync.pending_reads p using decided d
       where p.kind = d.kind and p.id = d.id and d.verdict in ('applied', 'later', 'unchanged')
         -- It may wait for another membership of its pair.
         and not exists (select from clerk_sync.generations g
                          where g.organization_id = p.organization_id and g.user_id = p.user_id and g.membership_id = p.id and g.rival_id is not null)
    )
    select coalesce(array_agg(row(n,
             case verdict when 'later' then 'applied' when 'early' then 'stale' when 'young' then 'stale' else verdict end,
             case verdict when 'later' then 'deleted later than known' when 'stale' then 'seen since'
                          when 'early' then 'too early' when 'young' then 'known for less than an hour'
                          when 'unchanged' then 'deleted already' else 'deleted' end)::clerk_sync.outcome), '{}'),
           array_agg(id) filter (where kind = 'user' and verdict in ('applied', 'later', 'unchanged')),
           array_agg(id) filter (where kind = 'organization' and verdict in ('applied', 'later', 'unchanged')),
           array_agg(id) filter (where kind <> 'membership' and verdict in ('applied', 'later', 'unchanged')),
           doubtful || array_agg(id) filter (where kind <> 'membership'),
           intents || coalesce(array_agg(row(kind, id, false, observed_at, null, null, null, null, null, null, null, null)::clerk_sync.intent)
                                 filter (where verdict in ('applied', 'later', 'unchanged')), '{}')
      into results, gone_users, gone_organizations, gone_parents, doubtful, intents from decided;
    -- The identity stays, for the application's foreign keys; everything else goes. (Of one that is known to be gone, too: something
    -- may have kept the row.)
    if in_full and cardinality(gone_users) > 0 then
      insert into clerk.users as u (id, deleted_at)
        select id, pg_catalog.to_timestamp(observed_at::double precision / 1000) from clerk_sync.versions
         where kind = 'user' and id = any (gone_users)
        on conflict (id) do update
          set first_name = null, last_name = null, username = null, image_url = null, has_image = null, deleted_at = excluded.deleted_at
        where (u.first_name, u.last_name, u.username, u.image_url, u.has_image, u.deleted_at)
              is distinct from (null, null, null, null, null, excluded.deleted_at);
      delete from clerk.user_details where id = any (gone_users);
    end if;
    if in_full and cardinality(gone_organizations) > 0 then
      insert into clerk.organizations as o (id, deleted_at)
        select id, pg_catalog.to_timestamp(observed_at::double precision / 1000) from clerk_sync.versions
         where kind = 'organization' and id = any (gone_organizations)
        on conflict (id) do update
          set name = null, slug = null, image_url = null, has_image = null, max_allowed_memberships = null,
              public_metadata = null, created_at = null, updated_at = null, deleted_at = excluded.deleted_at
        where o.* is distinct from excluded.*;
    end if;
    -- Only of what is a tombstone now: a stale inferred delete ends nothing.
    ended := array(
      select c.id from unnest(gone) c
       where c.kind = 'membership'
         and exists (select from clerk_sync.versions v where v.kind = c.kind and v.id = c.id and v.state = 'deleted'));
    if cardinality(ended) > 0 then
      perform clerk_sync.end_memberships(ended, in_full);
    end if;
    -- The memberships of a deleted parent go with it, but for those of a large one: nobody waits while they go one by one, and
    -- policies deny them already.
    if cardinality(gone_parents) > 0 then
      ended := array(
        select m.id from unnest(gone_parents) parent
         cross join lateral (
           select id from clerk.organization_memberships where organization_id = parent
           union all select id from clerk.organization_memberships where user_id = parent limit few + 1) m
         limit few + 1);
      if cardinality(ended) > few or not in_full then
        insert into clerk_sync.deleted_parents (id, kind)
          select c.id, c.kind from unnest(gone) c
           where c.id = any (gone_parents)
             and (exists (select from clerk.organization_memberships where organization_id = c.id)
                  or exists (select from clerk.organization_memberships where user_id = c.id))
          on conflict do nothing;
      elsif cardinality(ended) > 0 then
        perform clerk_sync.end_memberships(ended);
      end if;
    end if;
  end if;

  -- R1 to R7: which observations win. Where parents are in doubt they come first: what a membership may rest on is then decided
  -- and written. (Every observation of a live membership brings the stubs of its parents, so a version then has its row.)
  foreach of_memberships in array case when doubtful is null then array[null::boolean] else array[false, true] end loop
    -- R6: a parent that is still missing is stubbed from what the membership embeds; R7: unless a pass has read that kind since.
    if of_memberships and cardinality(stubs) > 0 then
      with candidate as (
        select c.kind, c.id, c.observed_at, c.content, c as stub, v.state, v.observed_at as known_at, v.content as known_content,
               c.observed_at < case c.kind when 'user' then user_mark else organization_mark end - margin as is_doubtful
          from unnest(stubs) c
          left join lateral (select * from clerk_sync.versions
                              where kind = c.kind and id = c.id
                                and (state = 'deleted' or exists (select from clerk.users where id = c.id and c.kind = 'user')
                                     or exists (select from clerk.organizations where id = c.id and c.kind = 'organization'))
                             offset 0) v on true
         where v.state is null or v.state = 'stub'
      ), written as (
        insert into clerk_sync.versions (kind, id, state, observed_at, content)
          select kind, id, 'stub', observed_at, content from candidate
           where (state is null and is_doubtful is not true)
              or (state = 'stub' and (observed_at, content) > (known_at, known_content))
          on conflict (kind, id) do update
            set state = 'stub', observed_at = excluded.observed_at, content = excluded.content, updated_at = null, denial = null, floor = 0
          returning kind, id
      ), asked as (
        insert into clerk_sync.pending_reads (kind, id, reason, settles_after)
          select kind, id, case when is_doubtful then 'named by a membership older than the last pass' else 'stub' end, observed_at + skew
            from candidate where state is null
          on conflict do nothing
      )
      select array_agg(stub) into stubs from candidate join written using (kind, id);
      if in_full and cardinality(stubs) > 0 then
        insert into clerk.users (id, first_name, last_name, username, image_url, has_image)
          select id, first_name, last_name, username, image_url, has_image from unnest(stubs) where kind = 'user'
          on conflict (id) do update
            set first_name = excluded.first_name, last_name = excluded.last_name, username = excluded.username,
                image_url = excluded.image_url, has_image = excluded.has_image, deleted_at = null;
        insert into clerk.user_details (id, banned, deprovisioned)
          select id, banned, deprovisioned from unnest(stubs) where kind = 'user'
          on conflict (id) do update set banned = excluded.banned, deprovisioned = excluded.deprovisioned;
        insert into clerk.organizations (id, name, slug, image_url, has_image, max_allowed_memberships, public_metadata, created_at)
          select id, name, slug, image_url, has_image, max_allowed_memberships, public_metadata,
                 pg_catalog.to_timestamp(created_at::double precision / 1000)
            from unnest(stubs) where kind = 'organization'
          on conflict (id) do update
            set name = excluded.name, slug = excluded.slug, image_url = excluded.image_url, has_image = excluded.has_image,
                max_allowed_memberships = excluded.max_allowed_memberships, public_metadata = excluded.public_metadata,
                created_at = excluded.created_at, deleted_at = null;
      end if;
    end if;
    if of_memberships then
      select array_agg(n) filter (where is_deleted and not is_inferred), array_agg(n) filter (where is_deleted and is_inferred),
             array_agg(n) filter (where is_missing)
        into of_deleted, of_doubtful, of_missing
        from (select c.n, 'deleted' in (o.state, u.state) as is_deleted,
                     coalesce(o.inferred, false) or coalesce(u.inferred, false) as is_inferred,
                     (c.organization_id = any (doubtful) and o.state is null) or (c.user_id = any (doubtful) and u.state is null) as is_missing
                from unnest(changes) c
                left join lateral (select state, inferred from clerk_sync.versions
                                    where c.organization_id = any (doubtful) and kind = 'organization' and id = c.organization_id offset 0) o on true
                left join lateral (select state, inferred from clerk_sync.versions
                                    where c.user_id = any (doubtful) and kind = 'user' and id = c.user_id offset 0) u on true
               where c.kind = 'membership') parents;
    end if;
    continue when case when of_memberships then cardinality(membership_rows) > 0
                       when not of_memberships then cardinality(user_rows) > 0 or cardinality(organization_rows) > 0
                       else cardinality(changes) > 0 end is not true;
    -- What a webhook says against what is known (R1, R4 to R7, R9).
    if from_webhook then
      with candidate as (
        select c.n, c.kind, c.id, c.organization_id, c.user_id, c.lacks, c.denial, c.ahead, c.observed_at, c.updated_at, c.content,
               v.state, v.updated_at as known_updated_at, v.observed_at as known_at, v.content as known_content, v.denial as known_denial,
               v.inferred, v.floor as known_floor, v.by_event, v.in_doubt, v.ctid as place,
               v.state = 'live' and v.updated_at = c.updated_at and v.content = c.content as is_same,
               -- R7: a pass has read, since this was observed, whatever it has listed.
               c.observed_at < greatest(
                 case c.kind when 'user' then user_mark when 'organization' then organization_mark else membership_mark end,
                 case when is_listing then
                   case c.kind
                     when 'user' then case when (user_rows[c.row_number]).created_at < users_listed_to then user_listing end
                     when 'organization' then case when (organization_rows[c.row_number]).created_at < organizations_listed_to then organization_listing end
                     else case when (membership_rows[c.row_number]).created_at < memberships_listed_to then membership_listing end
                   end
                 end) - margin as is_old,
               -- The greatest that a webhook told (R2).
               ((c.updated_at, c.observed_at, c.content) > (v.event_updated_at, v.event_observed_at, v.event_content)) is not false as is_greatest,
               -- R9: it is asked only where it matters whether one of the two gives more access.
               case when v.content <> c.content and pg_catalog.abs(c.updated_at - v.updated_at) <= soon
                    then clerk_sync.compare_access(c.kind, c.id, c.denial, v.denial, membership_rows[c.row_number]) end as access
          from unnest(changes) c
          left join lateral (select *, ctid from clerk_sync.versions where kind = c.kind and id = c.id offset 0) v on true
         where ((c.kind = 'membership') = of_memberships) is not false
        offset 0   -- each of these columns is computed once
      ), compared as (
        -- R9: two events of one object whose order nobody knows. First those whose times disagree, or are equal.
        select *,
               access <> 0
                 and ((updated_at - known_updated_at) * (observed_at - known_at) < 0
                      or (updated_at = known_updated_at and (not by_event or pg_catalog.abs(observed_at - known_at) <= skew))) as is_unordered,
               access <> 0 and pg_catalog.abs(updated_at - known_updated_at) <= skew
                 and (not by_event or pg_catalog.abs(observed_at - known_at) <= skew) as is_close
          from candidate
      ), judged as (
        select n, kind, id, organization_id, user_id, lacks, denial, ahead, observed_at, updated_at, content,
               state, known_at, by_event, place, is_same, is_unordered, is_greatest,
          case
            when state = 'deleted' then                                                                          -- R4
              case when inferred and greatest(observed_at, updated_at) > known_at then 'doubtful' else 'deleted' end
            when is_old and state is distinct from 'live' then 'doubtful'                                        -- R7
            when is_old and not is_same and updated_at <= known_updated_at + skew then
              case when access < 0 then 'to be sure' else 'read since' end
            when n = any (of_deleted) then 'parent deleted'                                                      -- R6
            -- A tombstone that no event announced may yet be undone, and then this membership counts.
            when n = any (of_doubtful) then 'parent doubtful'
            when id = any (unproven) then 'doubtful'                                                             -- R5
            when id = any (outdated) then 'newer membership known'
            when n = any (of_missing) then 'parent doubtful'
            when state is distinct from 'live' then 'new'
            when observed_at < known_floor then 'read since'                                                     -- R2
            when is_same then case when observed_at > known_at then 'newer' when by_event then 'same' else 'confirmed' end
            when is_unordered or is_close then                                                                   -- R9
              case when (denial, updated_at, observed_at, content) > (known_denial, known_updated_at, known_at, known_content)
                   then 'less access' else 'more access' end
            when (updated_at, observed_at, denial, content) > (known_updated_at, known_at, known_denial, known_content) then 'newer'   -- R1
            else 'older'
          end as verdict
          from compared
      ), added as (   -- apart from what is known: no conflict is looked for
        insert into clerk_sync.versions (kind, id, state, updated_at, observed_at, content, denial, ahead, first_observed_at,
                                         event_updated_at, event_observed_at, event_content, by_event)
          select kind, id, 'live', updated_at, observed_at, content, denial, ahead, observed_at, updated_at, observed_at, content, true
            from judged where verdict = 'new' and state is null
      ), written as (
        update clerk_sync.versions v
           set state = 'live', updated_at = j.updated_at, observed_at = j.observed_at, content = j.content, denial = j.denial, inferred = false,
               ahead = coalesce(j.ahead, v.ahead), first_observed_at = coalesce(v.first_observed_at, j.observed_at),
               event_updated_at = case when j.is_greatest then j.updated_at else v.event_updated_at end,
               event_observed_at = case when j.is_greatest then j.observed_at else v.event_observed_at end,
               event_content = case when j.is_greatest then j.content else v.event_content end,
               by_event = true,
               in_doubt = case when j.verdict = 'less access' then j.is_unordered else j.is_same and v.in_doubt end
          from judged j
         where v.ctid = j.place and j.verdict in ('new', 'newer', 'less access')
      )
      select coalesce(array_agg(row(n, case
                 when wins then 'applied'
                 when verdict in ('same', 'confirmed') then 'unchanged'
                 when verdict in ('doubtful', 'parent doubtful', 'to be sure', 'more access') then 'pending'
                 else 'stale' end, verdict)::clerk_sync.outcome), '{}'),
             array_agg(wins order by n) filter (where kind = 'user'),
             array_agg(wins order by n) filter (where kind = 'organization'),
             array_agg(wins order by n) filter (where kind = 'membership'),
             array_agg(row(n, kind, id, organization_id, user_id, lacks, state, verdict, observed_at, updated_at, content, known_at,
                           greatest(observed_at, case when by_event then known_at end) + skew, null, null)::clerk_sync.judgement)
               filter (where state = 'stub' or lacks is not null or verdict not in ('new', 'newer', 'same')),
             bool_or((kind = 'user' and wins and denial > 0) or (kind = 'membership' and verdict in ('newer', 'less access')))
        into these_results, users_win, organizations_win, memberships_win, consequential, takes
        from (select *, verdict in ('new', 'newer', 'less access')
                        -- A message that comes again mends a row that was refused.
                        or (verdict in ('same', 'confirmed') and has_refused and exists (
                              select from clerk_sync.pending_reads p
                               where p.kind = judged.kind and p.id = judged.id and p.reason = 'refused')) as wins
                from judged) j;
    -- What a read says (R2 to R6).
    else
      with candidate as (
        select c.*, v.state, v.updated_at as known_updated_at, v.observed_at as known_at, v.content as known_content,
               v.inferred, v.event_updated_at, v.event_observed_at, v.event_content, v.ahead as known_ahead,
               v.by_event, v.in_doubt, v.ctid as place,
               v.state = 'live' and v.updated_at = c.updated_at and v.content = c.content as is_same,
               -- R2: it is asked only where it matters whether one of the two gives more access.
               case when v.content <> c.content
                         and case when c.kind = 'user' and v.denial = 1 then false   -- nobody has said yet whether there is a ban
                                  else c.updated_at <= greatest(v.updated_at, v.event_updated_at + skew) or coalesce(c.ahead, c.updated_at) = v.ahead end
                    then clerk_sync.compare_access(c.kind, c.id, c.denial, v.denial, membership_rows[c.row_number]) end as access
          from unnest(changes) c
          left join lateral (select *, ctid from clerk_sync.versions where kind = c.kind and id = c.id offset 0) v on true
         where ((c.kind = 'membership') = of_memberships) is not false
        offset 0
      ), compared as (
        select *,
          -- R2: a read that may be older than what events told.
          case when access > 0 and coalesce(ahead, updated_at) = known_ahead and event_updated_at is not null
                    and (updated_at, content) <> (event_updated_at, event_content) then true
               when access > 0 and updated_at <= event_updated_at + skew then in_doubt or (updated_at, content) <> (event_updated_at, event_content)
               else updated_at < known_updated_at end as is_contradiction,
          case when access > 0
                    and ((pg_catalog.abs(updated_at - event_updated_at) <= skew
                          and not (updated_at = event_updated_at and event_observed_at > updated_at + soon))
                         or (updated_at, content) = (event_updated_at, event_content)) is not true
               then day else hour end as wait,
          pg_catalog.concat_ws(' ', coalesce(ahead, updated_at), content, known_updated_at, known_content) as said
          from candidate
      ), judged as (
        select n, kind, id, organization_id, user_id, lacks, denial, ahead, observed_at, updated_at, content,
               state, known_at, event_observed_at, by_event, place, is_same, said, wait,
          case
            when state = 'deleted' and not undelete and not (from_read and inferred and observed_at > known_at) then 'deleted'   -- R4
            -- It is back only when what was left of its memberships is gone: whoever comes back brings none of them.
            when state = 'deleted' and kind <> 'membership'
                 and exists (select from clerk_sync.deleted_parents p where p.id = compared.id) then 'being emptied'
            when n = any (of_deleted) then 'parent deleted'                                                      -- R6
            when n = any (of_doubtful) then 'parent doubtful'
            when id = any (outdated) then 'newer membership known'                                               -- R5
            when n = any (of_missing) then 'parent doubtful'
            when state is distinct from 'live' then 'new'
            when content = known_content and (updated_at <= known_updated_at or coalesce(ahead, updated_at) = known_ahead) then 'same'   -- R3
            when is_contradiction then                                                                           -- R2
              case when access < 0 and known_updated_at - updated_at <= skew then 'overruling'
                   when observed_at - (select said_since from clerk_sync.pending_reads p
                                        where p.kind = compared.kind and p.id = compared.id and p.said = compared.said) >= wait then 'overruling'
                   else 'contradicts' end
            when updated_at > known_updated_at or observed_at >= known_at then 'newer'
            else 'older'
          end as verdict
          from compared
      ), added as (
        insert into clerk_sync.versions (kind, id, state, updated_at, observed_at, content, denial, ahead, first_observed_at)
          select kind, id, 'live', updated_at, observed_at, content, denial, ahead, observed_at
            from judged where verdict = 'new' and state is null
      ), written as (
        update clerk_sync.versions v
           set state = 'live', updated_at = j.updated_at, observed_at = j.observed_at, content = j.content, denial = j.denial, inferred = false,
               ahead = coalesce(j.ahead, v.ahead), first_observed_at = coalesce(v.first_observed_at, j.observed_at),
               floor = case j.verdict when 'overruling' then greatest(v.floor, j.event_observed_at + 1, j.observed_at - margin) else v.floor end,
               by_event = j.is_same and v.by_event,
               in_doubt = j.is_same and v.in_doubt
          from judged j
         where v.ctid = j.place and j.verdict in ('new', 'newer', 'overruling')
      )
      select coalesce(array_agg(row(n, case
                 when verdict in ('new', 'newer', 'overruling') then 'applied'
                 when verdict = 'same' then 'unchanged'
                 when verdict in ('parent doubtful', 'being emptied') then 'pending'
                 else 'stale' end, verdict)::clerk_sync.outcome), '{}'),
             -- A read that finds nothing new still mends a row that somebody changed by hand.
             array_agg(verdict in ('new', 'newer', 'overruling', 'same') order by n) filter (where kind = 'user'),
             array_agg(verdict in ('new', 'newer', 'overruling', 'same') order by n) filter (where kind = 'organization'),
             array_agg(verdict in ('new', 'newer', 'overruling', 'same') order by n) filter (where kind = 'membership'),
             array_agg(row(n, kind, id, organization_id, user_id, lacks, state, verdict, observed_at, updated_at, content, known_at,
                           0, said, wait)::clerk_sync.judgement),
             bool_or((kind = 'user' and verdict in ('new', 'newer', 'overruling', 'same') and denial > 0)
                     or (kind = 'membership' and verdict in ('newer', 'overruling')))
        into these_results, users_win, organizations_win, memberships_win, consequential, takes
        from judged;
    end if;
    results := results || these_results;

    -- Apart, because most batches have none of these: what else follows from a judgement.
    if cardinality(consequential) > 0 then
      -- A webhook that does not win may still be the greatest that was told (R2), or say what only a read has said so far.
      if from_webhook then
        update clerk_sync.versions v
           set by_event = v.by_event or j.verdict = 'confirmed',
               in_doubt = v.in_doubt
                 or (j.verdict = 'more access'
                     and ((j.updated_at - v.updated_at) * (j.observed_at - v.observed_at) < 0 or j.updated_at = v.updated_at)),
               (event_updated_at, event_observed_at, event_content) =
                 (select case when is_greater then j.updated_at else v.event_updated_at end,
                         case when is_greater then j.observed_at else v.event_observed_at end,
                         case when is_greater then j.content else v.event_content end
                    from (select ((j.updated_at, j.observed_at, j.content) > (v.event_updated_at, v.event_observed_at, v.event_content)) is not false as is_greater) g)
          from unnest(consequential) j
         where v.kind = j.kind and v.id = j.id and v.state = 'live' and j.observed_at >= v.floor
           and (j.verdict = 'confirmed'
                or (j.verdict = 'more access' and not v.in_doubt
                    and ((j.updated_at - v.updated_at) * (j.observed_at - v.observed_at) < 0 or j.updated_at = v.updated_at))
                or (j.verdict in ('more access', 'older', 'read since', 'to be sure')
                    and ((j.updated_at, j.observed_at, j.content) > (v.event_updated_at, v.event_observed_at, v.event_content)) is not false));
      end if;
      with settled as (
        -- A read has decided, unless it came too early to know what an event has told since, or contradicts what is known; and a
        -- stub needs no read once it is whole.
        delete from clerk_sync.pending_reads p using unnest(consequential) j
         where p.kind = j.kind and p.id = j.id and j.lacks is null
           and case when from_read then j.observed_at >= p.settles_after
                                        and j.verdict not in ('deleted', 'parent doubtful', 'being emptied', 'older', 'contradicts')
                    when from_webhook then p.reason = 'stub' and j.state = 'stub' and j.verdict = 'new'
                    else j.verdict = 'same' and p.said is not null and p.settles_after = 0 end
      ), cleared as (   -- a read agrees after all
        update clerk_sync.pending_reads p set said = null, said_since = null
          from unnest(consequential) j
         where p.kind = j.kind and p.id = j.id and p.said is not null and j.verdict in ('same', 'newer') and not from_webhook
           and case when from_read then j.observed_at < p.settles_after or j.lacks is not null else p.settles_after > 0 or j.verdict = 'newer' end
      )
      insert into clerk_sync.pending_reads as p (kind, id, organization_id, user_id, reason, settles_after, said, said_since, next_at)
        select kind, id, organization_id, user_id,
               case when verdict in ('new', 'newer') then lacks when verdict in ('less access', 'more access', 'to be sure') then 'in doubt'
                    else verdict end,
               settles_after,
               case when verdict = 'contradicts' then said end, case when verdict = 'contradicts' then observed_at end,
               case when verdict = 'contradicts' then pg_catalog.to_timestamp((observed_at + wait + 10000) / 1000.0)
                    when verdict in ('less access', 'more access') then greatest(pg_catalog.now(), pg_catalog.to_timestamp((settles_after + 12000) / 1000.0))
                    else pg_catalog.now() end
          from unnest(consequential) j
         where verdict in ('doubtful', 'parent doubtful', 'being emptied', 'less access', 'more access', 'to be sure', 'contradicts')
            or (verdict in ('new', 'newer') and lacks is not null)
            -- A listing proves nothing against what is known better; the object itself does.
            or (verdict = 'deleted' and from_list
                and exists (select from clerk_sync.versions v where v.kind = j.kind and v.id = j.id and v.inferred))
        on conflict (kind, id) do update
          set organization_id = coalesce(p.organization_id, excluded.organization_id), user_id = coalesce(p.user_id, excluded.user_id),
              asked_at = case when from_webhook then pg_catalog.now() else p.asked_at end,
              settles_after = greatest(p.settles_after, excluded.settles_after),
              said = coalesce(excluded.said, p.said),
              said_since = case when excluded.said is null or p.said = excluded.said then p.said_since else excluded.said_since end,
              tries = case when from_webhook then 0 else p.tries end,
              next_at = case when from_webhook then excluded.next_at
                             when excluded.said is null then p.next_at
                             when p.said = excluded.said then excluded.next_at - (excluded.said_since - p.said_since) * interval '1 ms'
                             else excluded.next_at end;
    end if;

    if cardinality(batch.doubts) > 0 then
      with told as (
        select d.*, c.kind, c.id, c.organization_id, c.user_id, greatest(c.observed_at, d.observed_at) + skew as settles_after
          from unnest(batch.doubts) d
          join unnest(changes) c on c.n = d.n
         cross join lateral (select * from clerk_sync.versions where kind = c.kind and id = c.id offset 0) v
         where v.state = 'live' and (v.updated_at, v.content) = (c.updated_at, c.content)
           and (d.updated_at, d.observed_at, d.content) >= (v.event_updated_at, v.event_observed_at, v.event_content)
           and ((c.kind = 'membership') = of_memberships) is not false
      ), written as (
        update clerk_sync.versions v
           set in_doubt = v.in_doubt or t.in_doubt,
               (event_updated_at, event_observed_at, event_content) = (t.updated_at, t.observed_at, t.content)
          from told t
         where v.kind = t.kind and v.id = t.id
           and ((t.in_doubt and not v.in_doubt)
                or (t.updated_at, t.observed_at, t.content) > (v.event_updated_at, v.event_observed_at, v.event_content))
      )
      insert into clerk_sync.pending_reads as p (kind, id, organization_id, user_id, reason, settles_after, next_at)
        select kind, id, organization_id, user_id, 'in doubt', settles_after,
               greatest(pg_catalog.now(), pg_catalog.to_timestamp((settles_after + 12000) / 1000.0))
          from told where asks
        on conflict (kind, id) do update
          set settles_after = greatest(p.settles_after, excluded.settles_after), tries = 0, next_at = excluded.next_at, asked_at = pg_catalog.now();
    end if;

    -- The mirror itself. A row that is equal already is not written. (Beside each row its verdict: the column "unnest".)
    if in_full and true = any (users_win) then
      insert into clerk.users as u (id, first_name, last_name, username, image_url, has_image)
        select id, first_name, last_name, username, image_url, has_image from unnest(user_rows, users_win) r where r.unnest
        on conflict (id) do update
          set first_name = excluded.first_name, last_name = excluded.last_name, username = excluded.username,
              image_url = excluded.image_url, has_image = excluded.has_image, deleted_at = null
        where (u.first_name, u.last_name, u.username, u.image_url, u.has_image, u.deleted_at)
              is distinct from (excluded.first_name, excluded.last_name, excluded.username, excluded.image_url, excluded.has_image, null);
      insert into clerk.user_details as d (id, email_address, email_address_verified, phone_number, phone_number_verified, external_id,
                                           banned, locked, deprovisioned, public_metadata, unsafe_metadata, created_at, updated_at)
        select id, email_address, email_address_verified, phone_number, phone_number_verified, external_id,
               banned, locked, deprovisioned, public_metadata, unsafe_metadata,
               pg_catalog.to_timestamp(created_at::double precision / 1000), pg_catalog.to_timestamp(updated_at::double precision / 1000)
          from unnest(user_rows, users_win) r where r.unnest
        on conflict (id) do update
          set email_address = excluded.email_address, email_address_verified = excluded.email_address_verified,
              phone_number = excluded.phone_number, phone_number_verified = excluded.phone_number_verified,
              external_id = excluded.external_id, banned = excluded.banned, locked = excluded.locked,
              deprovisioned = excluded.deprovisioned, public_metadata = excluded.public_metadata,
              unsafe_metadata = excluded.unsafe_metadata, created_at = excluded.created_at, updated_at = excluded.updated_at
        where d.* is distinct from excluded.*;
    end if;
    if in_full and true = any (organizations_win) then
      insert into clerk.organizations as o (id, name, slug, image_url, has_image, max_allowed_memberships, public_metadata, created_at, updated_at)
        select id, name, slug, image_url, has_image, max_allowed_memberships, public_metadata,
               pg_catalog.to_timestamp(created_at::double precision / 1000), pg_catalog.to_timestamp(updated_at::double precision / 1000)
          from unnest(organization_rows, organizations_win) r where r.unnest
        on conflict (id) do update
          set name = excluded.name, slug = excluded.slug, image_url = excluded.image_url, has_image = excluded.has_image,
              max_allowed_memberships = excluded.max_allowed_memberships, public_metadata = excluded.public_metadata,
              created_at = excluded.created_at, updated_at = excluded.updated_at, deleted_at = null
        where o.* is distinct from excluded.*;
    end if;
    if in_full and true = any (memberships_win) then
      insert into clerk.organization_memberships as m (id, organization_id, user_id, role, permissions, public_metadata, created_at, updated_at)
        select id, organization_id, user_id, role, permissions, public_metadata,
               pg_catalog.to_timestamp(created_at::double precision / 1000), pg_catalog.to_timestamp(updated_at::double precision / 1000)
          from unnest(membership_rows, memberships_win) r where r.unnest
        on conflict (id) do update
          set organization_id = excluded.organization_id, user_id = excluded.user_id, role = excluded.role,
              permissions = excluded.permissions, public_metadata = excluded.public_metadata,
              created_at = excluded.created_at, updated_at = excluded.updated_at
        where m.* is distinct from excluded.*;
    end if;

    -- What its rows must say. (All of it only where something was refused: usually what takes access away is enough.)
    if not in_full or has_refused or takes then
      intents := intents
        || array(select row('user', id, (banned is false and deprovisioned is not true), null, banned, deprovisioned,
                            null, null, null, null, null, null)::clerk_sync.intent
                   from unnest(user_rows, users_win) r
                  where r.unnest and (not in_full or has_refused or banned is not false or deprovisioned))
        || array(select row('organization', id, true, null, null, null, null, null, null, null, null, null)::clerk_sync.intent
                   from unnest(organization_rows, organizations_win) r where r.unnest and (not in_full or has_refused))
        || array(select row('membership', id, true, null, null, null, organization_id, user_id, role, permissions, created_at, updated_at)::clerk_sync.intent
                   from unnest(membership_rows, memberships_win) r where r.unnest);
      if of_memberships is not false and not in_full then
        intents := intents
          || array(select row('user', id, (banned is false and deprovisioned is not true), null, banned, deprovisioned,
                              null, null, null, null, null, null)::clerk_sync.intent
                     from unnest(stubs) where kind = 'user');
      end if;
    end if;
  end loop;

  if not in_full then
    perform clerk_sync.write_refused(batch.mode, batch.refused_by, intents);
    results := array(select row(n, case when outcome in ('applied', 'unchanged') then 'pending' else outcome end,
                                case when outcome in ('applied', 'unchanged') then 'refused' else reason end)::clerk_sync.outcome
                       from unnest(results));
  elsif cardinality(intents) > 0 then
    perform clerk_sync.check_access(intents);
    if has_refused then
      delete from clerk_sync.denials d using unnest(intents) i where d.kind = i.kind and d.id = i.id;
      delete from clerk_sync.pending_reads p using unnest(intents) i where p.kind = i.kind and p.id = i.id and p.reason = 'refused';
    end if;
  end if;

  -- What could not be decided here is kept for those who can: a read by id, a pass, a person.
  if cardinality(reads) > 0 then
    insert into clerk_sync.pending_reads as p (kind, id, organization_id, user_id, reason, settles_after, told_deleted)
      select distinct on (r.kind, r.id) r.kind, r.id, r.organization_id, r.user_id, r.reason,
             -- Without a time of its own it happened by now, on a clock that may be a minute ahead of ours.
             case when from_webhook then max(coalesce(r.observed_at, ahead_limit - 240000)) over (partition by r.kind, r.id) + skew else 0 end,
             bool_or(r.told_deleted is true) over (partition by r.kind, r.id)
        from unnest(reads) r
        left join lateral (select state, inferred from clerk_sync.versions where kind = r.kind and id = r.id offset 0) v on true
       where (v.state = 'deleted' and not v.inferred) is not true
       order by r.kind, r.id, r.organization_id is null or r.user_id is null
      on conflict (kind, id) do update
        set organization_id = coalesce(p.organization_id, excluded.organization_id), user_id = coalesce(p.user_id, excluded.user_id),
            settles_after = greatest(p.settles_after, excluded.settles_after), told_deleted = p.told_deleted or excluded.told_deleted,
            tries = case when from_webhook then 0 else p.tries end,
            next_at = case when from_webhook then pg_catalog.now() else p.next_at end,
            asked_at = case when from_webhook then pg_catalog.now() else p.asked_at end;
    results := results || array(
      select row(r.n, case when v.is_final then 'stale' else 'pending' end, case when v.is_final then 'deleted' else r.reason end)::clerk_sync.outcome
        from unnest(reads) r
        left join lateral (select state = 'deleted' and not inferred as is_final from clerk_sync.versions
                            where kind = r.kind and id = r.id offset 0) v on true);
  end if;
  if cardinality(reads) > 0 or cardinality(passes) > 0 then
    insert into clerk_sync.pending_passes as p (kind, reason, ripe_at)
      select distinct on (w.kind) w.kind, w.reason, pg_catalog.now() + coalesce(w.ripe_after_s, 0) * interval '1 s'
        from (select kind, reason, ripe_after_s from unnest(passes) where organization_id is null
              -- Without its pair the API finds no membership: then all of them are listed.
              union all select 'membership', 'a membership that must be read names no pair', case when r.told_deleted then 312 else 12 end
                from unnest(reads) r
               where from_webhook and r.kind = 'membership' and (r.organization_id is null or r.user_id is null)) w
       order by w.kind, w.ripe_after_s desc
      -- Asked again: a pass that is under way may have gone past it.
      on conflict (kind) do update
        set asked_at = pg_catalog.now(), ripe_at = greatest(p.ripe_at, excluded.ripe_at), tried_at = null;
    results := results || array(select row(n, 'pending', reason)::clerk_sync.outcome from unnest(passes));
    perform clerk_sync.ask_for_members(array_agg(w.organization_id), w.reason)
       from unnest(passes) w where w.organization_id is not null group by w.reason;
  end if;
  if cardinality(dead_letters) > 0 then
    insert into clerk_sync.dead_letters (message_id, body_hash, event_type, reason, headers, body)
      select m.message_id, m.body_hash, m.event_type, d.reason, d.headers, d.body
        from unnest(dead_letters) d
        join unnest(messages) m on m.n = d.n
      on conflict do nothing;
    -- Of one that was refused in another way before.
    update clerk_sync.receipts r set outcome = 'dead_letter', reason = d.reason
      from unnest(dead_letters) d
      join unnest(messages) m on m.n = d.n
     where m.n = any (repeated) and r.message_id = m.message_id and r.body_hash = m.body_hash and r.outcome = 'pending';
    results := results || array(select row(n, 'dead_letter', reason)::clerk_sync.outcome from unnest(dead_letters));
  end if;

  -- One answer for each item. A message whose change lost to another one of the batch is stale; one that came before and changed
  -- nothing is a duplicate, and has its receipt.
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
  if cardinality(messages) > 0 then
    insert into clerk_sync.receipts (message_id, body_hash, event_type, entity_id, outcome, reason, flaws, event_at)
      select m.message_id, m.body_hash, m.event_type, m.entity_id, a.outcome, a.reason, m.flaws, pg_catalog.to_timestamp(m.event_at::double precision / 1000)
        from unnest(messages) m join unnest(results) a on a.n = m.n
       where m.n <> all (repeated);
  end if;

  return query select * from unnest(results);
end
$$;
revoke all on function clerk_sync.apply(clerk_sync.batch) from public, anon, authenticated, service_role;
grant execute on function clerk_sync.apply(clerk_sync.batch) to clerk_sync_worker;
comment on function clerk_sync.apply(clerk_sync.batch) is 'Applies one folded batch of observations: the only writer of the mirror.';

-- Pins the mirror to a Clerk instance while it is empty, and tells which one it is pinned to.
create function clerk_sync.pin_instance(wanted text, source text) returns text
  language plpgsql volatile security definer set search_path = '' as $$
begin
  perform clerk_sync.take_turn();
  if wanted is not null then
    insert into clerk_sync.instance as i (instance_id, pinned_by) values (wanted, source)
      on conflict (only_row) do update set instance_id = excluded.instance_id, pinned_by = excluded.pinned_by, pinned_at = now()
      where i.instance_id <> excluded.instance_id and not exists (select from clerk_sync.versions)
        and (source <> 'api' or i.pinned_by = 'webhook');   -- what a person said counts for more
  end if;
  return (select instance_id from clerk_sync.instance);
end
$$;
revoke all on function clerk_sync.pin_instance(text, text) from public, anon, authenticated, service_role;
grant execute on function clerk_sync.pin_instance(text, text) to clerk_sync_worker;

-- What `serve` asks while no delivery comes: whether one could be written. It waits for its turn as a delivery does; where the last
-- one failed (`proving`), only a write tells that the next will not. Answers the database's time, in ms.
create function clerk_sync.check_writes(proving boolean) returns bigint
  language plpgsql volatile security definer set search_path = '' as $$
begin
  if pg_catalog.current_setting('transaction_read_only')::boolean then
    raise exception 'the database takes no writes' using errcode = '25006';
  end if;
  perform clerk_sync.take_turn();
  if proving then
    insert into clerk_sync.write_checks (checked_at) values (pg_catalog.now())
      on conflict (only_row) do update set checked_at = excluded.checked_at;
  end if;
  return (extract(epoch from pg_catalog.clock_timestamp()) * 1000)::bigint;
end
$$;
revoke all on function clerk_sync.check_writes(boolean) from public, anon, authenticated, service_role;
grant execute on function clerk_sync.check_writes(boolean) to clerk_sync_worker;

-- Denies what can never be settled, where nobody makes reads: a delete that does not say when, a membership without its role. The next
-- event that can be used lifts it.
create function clerk_sync.deny_unsettled(kind text, id text, observed_at bigint, reason text) returns void
  language plpgsql volatile security definer set search_path = '' as $$
#variable_conflict use_variable
begin
  perform clerk_sync.take_turn();
  insert into clerk_sync.denials (kind, id, sqlstate, object)
    select kind, id, 'unsettled', reason
     where case kind when 'user' then exists (select from clerk.user_details d where d.id = id)
                     when 'organization' then exists (select from clerk.organizations o where o.id = id and o.deleted_at is null)
                     else exists (select from clerk.organization_memberships m where m.id = id) end
       and not exists (select from clerk_sync.versions v where v.kind = kind and v.id = id and v.observed_at > observed_at)
    on conflict on constraint denials_pkey do nothing;
end
$$;
revoke all on function clerk_sync.deny_unsettled(text, text, bigint, text) from public, anon, authenticated, service_role;
grant execute on function clerk_sync.deny_unsettled(text, text, bigint, text) to clerk_sync_worker;
