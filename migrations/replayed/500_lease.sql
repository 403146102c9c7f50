-- The lease: one pass at a time, over all replicas and commands.

-- The database's clock, in ms: what Clerk's is held against.
create or replace function clerk_sync.clock() returns bigint
  language sql volatile set search_path = '' as $$
  select (extract(epoch from pg_catalog.clock_timestamp()) * 1000)::bigint
$$;

-- The new token, or null while somebody else holds the lease. One that ends later than its term is of a clock that is not this
-- one's, such as that of the server that failed: nobody is to wait for it.
create or replace function clerk_sync.take_lease(holder text, ttl_ms integer) returns bigint
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
create or replace function clerk_sync.keep_lease(fence bigint, ttl_ms integer) returns boolean
  language sql volatile security definer set search_path = '' as $$
  with kept as (
    update clerk_sync.lease set term_ms = $2, expires_at = pg_catalog.clock_timestamp() + $2 * interval '1 ms'
     where token = $1 and expires_at > pg_catalog.clock_timestamp()
    returning 1)
  select exists (select from kept)
$$;

create or replace function clerk_sync.end_lease(fence bigint) returns void
  language sql volatile security definer set search_path = '' as $$
  update clerk_sync.lease set expires_at = '-infinity' where token = $1
$$;

revoke all on function clerk_sync.clock() from public, anon, authenticated, service_role;
revoke all on function clerk_sync.take_lease(text, integer) from public, anon, authenticated, service_role;
revoke all on function clerk_sync.keep_lease(bigint, integer) from public, anon, authenticated, service_role;
revoke all on function clerk_sync.end_lease(bigint) from public, anon, authenticated, service_role;
grant execute on function clerk_sync.clock() to clerk_sync_worker;
grant execute on function clerk_sync.take_lease(text, integer) to clerk_sync_worker;
grant execute on function clerk_sync.keep_lease(bigint, integer) to clerk_sync_worker;
grant execute on function clerk_sync.end_lease(bigint) to clerk_sync_worker;
