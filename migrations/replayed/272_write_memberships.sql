-- Step: the rows of memberships that won. A row that is equal already is not written. Returns what those that are to be checked must say
-- of access: all of them, if one may take access away (`takes`).
create or replace function clerk_sync.write_memberships(
    membership_rows clerk_sync.membership_row_v1[], win boolean[], takes boolean, context clerk_sync.context)
  returns clerk_sync.intent[]
  language plpgsql volatile set search_path = '' as $$
#variable_conflict use_column
begin
  if context.in_full then
    insert into clerk.organization_memberships as m (id, organization_id, user_id, role, permissions, public_metadata, created_at, updated_at)
      select id, organization_id, user_id, role, permissions, public_metadata,
             pg_catalog.to_timestamp(created_at::double precision / 1000), pg_catalog.to_timestamp(updated_at::double precision / 1000)
        from unnest(membership_rows, win) r where r.unnest
      on conflict (id) do update
        set organization_id = excluded.organization_id, user_id = excluded.user_id, role = excluded.role,
            permissions = excluded.permissions, public_metadata = excluded.public_metadata,
            created_at = excluded.created_at, updated_at = excluded.updated_at
      where m.* is distinct from excluded.*;
  end if;
  if takes or context.checks_all then
    return array(select row('membership', id, true, null, null, null, organization_id, user_id, role, permissions, created_at, updated_at)::clerk_sync.intent
                   from unnest(membership_rows, win) r where r.unnest);
  end if;
  return null;
end
$$;

revoke all on function clerk_sync.write_memberships(clerk_sync.membership_row_v1[], boolean[], boolean, clerk_sync.context) from public, anon, authenticated, service_role;
