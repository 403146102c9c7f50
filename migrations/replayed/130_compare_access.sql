-- Whether one state of an object gives more access than another (R2): 1 if it may, 0 if their access is the same, -1 if it provably gives
-- less. Roles are not ordered, sets of permissions are: only a true subset of the row's permissions is less.
create or replace function clerk_sync.compare_access(kind text, known_id text, denial integer, known_denial integer, new clerk_sync.membership_row_v1)
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

revoke all on function clerk_sync.compare_access(text, text, integer, integer, clerk_sync.membership_row_v1) from public, anon, authenticated, service_role;
