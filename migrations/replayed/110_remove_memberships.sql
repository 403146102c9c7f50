-- Removes membership rows with their versions, so that nothing remembers a row that is not there. A tombstone stays. Without
-- `rows` the versions alone: something keeps a row, and the next step deals with it.
-- (Not in language sql: that plans anew for each call.)
create or replace function clerk_sync.remove_memberships(ids text[], rows boolean default true) returns void
  language plpgsql volatile set search_path = '' as $$
begin
  if rows then
    delete from clerk.organization_memberships where id = any (ids);
  end if;
  delete from clerk_sync.versions where kind = 'membership' and id = any (ids) and state <> 'deleted';
end
$$;

revoke all on function clerk_sync.remove_memberships(text[], boolean) from public, anon, authenticated, service_role;
