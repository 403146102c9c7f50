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

revoke all on function clerk_sync.lock_writer() from public, anon, authenticated, service_role;
revoke all on function clerk_sync.check_fence(bigint) from public, anon, authenticated, service_role;
