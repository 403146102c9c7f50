-- Step: the rows of organizations that won. A row that is equal already is not written. Returns what those that are to be checked must
-- say of access; none of them takes access away.
create or replace function clerk_sync.write_organizations(
    organization_rows clerk_sync.organization_row_v1[], win boolean[], context clerk_sync.context)
  returns clerk_sync.intent[]
  language plpgsql volatile set search_path = '' as $$
#variable_conflict use_column
begin
  if context.in_full then
    insert into clerk.organizations as o (id, name, slug, image_url, has_image, max_allowed_memberships, public_metadata, created_at, updated_at)
      select id, name, slug, image_url, has_image, max_allowed_memberships, public_metadata,
             pg_catalog.to_timestamp(created_at::double precision / 1000), pg_catalog.to_timestamp(updated_at::double precision / 1000)
        from unnest(organization_rows, win) r where r.unnest
      on conflict (id) do update
        set name = excluded.name, slug = excluded.slug, image_url = excluded.image_url, has_image = excluded.has_image,
            max_allowed_memberships = excluded.max_allowed_memberships, public_metadata = excluded.public_metadata,
            created_at = excluded.created_at, updated_at = excluded.updated_at, deleted_at = null
      where o.* is distinct from excluded.*;
  end if;
  if context.checks_all then
    return array(select row('organization', id, true, null, null, null, null, null, null, null, null, null)::clerk_sync.intent
                   from unnest(organization_rows, win) r where r.unnest);
  end if;
  return null;
end
$$;

revoke all on function clerk_sync.write_organizations(clerk_sync.organization_row_v1[], boolean[], clerk_sync.context) from public, anon, authenticated, service_role;
