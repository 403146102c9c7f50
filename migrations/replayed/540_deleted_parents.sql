-- Removes those of these memberships that belong to a deleted user or organization, checked under the writer lock. Returns how many, and
-- how long the lock was held (in ms): callers pass few ids at a time.
create or replace function clerk_sync.remove_memberships_of_deleted(ids text[]) returns table (ended integer, held_ms double precision)
  language plpgsql volatile security definer set search_path = ''
  set enable_seqscan = off
  set jit = off   -- that price calls for compiling even what a foreign key of the application's asks
  as $$
declare
  gone pg_catalog.text[];
  since pg_catalog.timestamptz;
begin
  perform clerk_sync.lock_writer();
  since := pg_catalog.clock_timestamp();
  gone := array(
    select m.id from unnest(ids) w(id)
     cross join lateral (select * from clerk.organization_memberships where id = w.id offset 0) m
     where exists (select from clerk_sync.versions v where v.kind = 'organization' and v.id = m.organization_id and v.state = 'deleted')
        or exists (select from clerk_sync.versions v where v.kind = 'user' and v.id = m.user_id and v.state = 'deleted'));
  perform clerk_sync.remove_memberships(gone);
  return query select cardinality(gone), extract(epoch from pg_catalog.clock_timestamp() - since)::double precision * 1000;
end
$$;

-- Nothing is left of the memberships of a deleted parent. (None can come while its tombstone stands, and that is not undone before
-- this.)
create or replace function clerk_sync.forget_deleted_parent(id text) returns void
  language sql volatile security definer set search_path = '' as $$
  delete from clerk_sync.deleted_parents p where p.id = $1
$$;

revoke all on function clerk_sync.remove_memberships_of_deleted(text[]) from public, anon, authenticated, service_role;
revoke all on function clerk_sync.forget_deleted_parent(text) from public, anon, authenticated, service_role;
grant execute on function clerk_sync.remove_memberships_of_deleted(text[]) to clerk_sync_worker;
grant execute on function clerk_sync.forget_deleted_parent(text) to clerk_sync_worker;
