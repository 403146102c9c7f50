-- Takes the writer lock; nothing else does. A timeout has its own code (CS002), because it does not depend on the batch, unlike a timeout
-- on a row that another session has locked.
create or replace function clerk_sync.lock_writer() returns void
  language plpgsql volatile set search_path = ''
  set lock_timeout = '2s'   -- longer than for row locks: a writer that waits for one holds this lock meanwhile
  as $$
begin
  lock table clerk_sync.writer in exclusive mode;
exception when lock_not_available then
  raise exception 'another writer has the turn for too long' using errcode = 'CS002';
end
$$;

-- By the database's clock: a holder that was asleep while its lease ended does not know it.
create or replace function clerk_sync.check_fence(fence bigint) returns void
  language plpgsql volatile set search_path = '' as $$
begin
  if not exists (select from clerk_sync.lease where token = fence and expires_at > pg_catalog.clock_timestamp()) then
    raise exception 'the lease is lost' using errcode = 'CS001';
  end if;
end
$$;

-- Step: the start of every write.
create or replace function clerk_sync.begin_write(fence bigint, lock_wait_ms integer) returns void
  language plpgsql volatile set search_path = '' as $$
begin
  -- With a snapshot older than the lock, the steps would not see what the writer before us did.
  if pg_catalog.current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'clerk_sync.apply needs the isolation level read committed';
  end if;
  -- Over all replicas: no deadlock, and no member added while the organization is deleted. Every step is a statement of its own, so it
  -- sees what was committed before the lock was granted.
  perform clerk_sync.lock_writer();
  if fence is not null then
    perform clerk_sync.check_fence(fence);
  end if;
  if lock_wait_ms is not null then
    perform pg_catalog.set_config('lock_timeout', lock_wait_ms::pg_catalog.text, true);
  end if;
end
$$;

revoke all on function clerk_sync.lock_writer() from public, anon, authenticated, service_role;
revoke all on function clerk_sync.check_fence(bigint) from public, anon, authenticated, service_role;
revoke all on function clerk_sync.begin_write(bigint, integer) from public, anon, authenticated, service_role;
