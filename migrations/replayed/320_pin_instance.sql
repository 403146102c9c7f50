-- Pins the mirror to a Clerk instance while it is empty, and tells which one it is pinned to.
create or replace function clerk_sync.pin_instance(wanted text, source text) returns text
  language plpgsql volatile security definer set search_path = '' as $$
begin
  perform clerk_sync.lock_writer();
  if wanted is not null then
    insert into clerk_sync.instance as i (instance_id, pinned_by) values (wanted, source)
      on conflict (only_row) do update
        set instance_id = excluded.instance_id, pinned_by = excluded.pinned_by, pinned_at = now(), environment = null
      where i.instance_id <> excluded.instance_id and not exists (select from clerk_sync.versions)
        and (source <> 'api' or i.pinned_by = 'webhook');   -- what a person said counts for more
  end if;
  return (select instance_id from clerk_sync.instance);
end
$$;

-- Records what kind of instance the mirror is pinned to, as Clerk says.
create or replace function clerk_sync.record_environment(instance_id text, environment text) returns void
  language sql volatile security definer set search_path = '' as $$
  update clerk_sync.instance i set environment = $2 where i.instance_id = $1 and i.environment is distinct from $2
$$;

revoke all on function clerk_sync.record_environment(text, text) from public, anon, authenticated, service_role;
grant execute on function clerk_sync.record_environment(text, text) to clerk_sync_worker;
revoke all on function clerk_sync.pin_instance(text, text) from public, anon, authenticated, service_role;
grant execute on function clerk_sync.pin_instance(text, text) to clerk_sync_worker;
