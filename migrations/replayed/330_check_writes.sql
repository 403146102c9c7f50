-- Checks, while no delivery comes, whether one could be written. It takes the writer lock as a delivery does. `proving`: the last delivery
-- failed, so a row is written as well. Returns the database's time, in ms.
create or replace function clerk_sync.check_writes(proving boolean) returns bigint
  language plpgsql volatile security definer set search_path = '' as $$
begin
  if pg_catalog.current_setting('transaction_read_only')::boolean then
    raise exception 'the database takes no writes' using errcode = '25006';
  end if;
  perform clerk_sync.lock_writer();
  if proving then
    insert into clerk_sync.write_checks (checked_at) values (pg_catalog.now())
      on conflict (only_row) do update set checked_at = excluded.checked_at;
  end if;
  return (extract(epoch from pg_catalog.clock_timestamp()) * 1000)::bigint;
end
$$;

revoke all on function clerk_sync.check_writes(boolean) from public, anon, authenticated, service_role;
grant execute on function clerk_sync.check_writes(boolean) to clerk_sync_worker;
