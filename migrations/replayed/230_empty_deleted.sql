-- Step: the rows of what is deleted. The identity of a user or an organization stays, for the application's foreign keys; everything
-- else goes. (Of one that was deleted before, too: something may have kept the row.)
create or replace function clerk_sync.empty_deleted(
    users text[], organizations text[], deletions clerk_sync.deletion_v1[], in_full boolean)
  returns void
  language plpgsql volatile set search_path = '' as $$
#variable_conflict use_column
declare
  few constant integer := 100;   -- memberships that end in the same statement as their user or organization
  parents constant pg_catalog.text[] := users || organizations;
  ended pg_catalog.text[];
begin
  if in_full and cardinality(users) > 0 then
    insert into clerk.users as u (id, deleted_at)
      select id, pg_catalog.to_timestamp(observed_at::double precision / 1000) from clerk_sync.versions
       where kind = 'user' and id = any (users)
      on conflict (id) do update
        set first_name = null, last_name = null, username = null, image_url = null, has_image = null, deleted_at = excluded.deleted_at
      where (u.first_name, u.last_name, u.username, u.image_url, u.has_image, u.deleted_at)
            is distinct from (null, null, null, null, null, excluded.deleted_at);
    delete from clerk.user_details where id = any (users);
  end if;
  if in_full and cardinality(organizations) > 0 then
    insert into clerk.organizations as o (id, deleted_at)
      select id, pg_catalog.to_timestamp(observed_at::double precision / 1000) from clerk_sync.versions
       where kind = 'organization' and id = any (organizations)
      on conflict (id) do update
        set name = null, slug = null, image_url = null, has_image = null, max_allowed_memberships = null,
            public_metadata = null, created_at = null, updated_at = null, deleted_at = excluded.deleted_at
      where o.* is distinct from excluded.*;
  end if;
  -- Only of what is a tombstone now: a stale inferred delete ends nothing.
  ended := array(
    select c.id from unnest(deletions) c
     where c.kind = 'membership'
       and exists (select from clerk_sync.versions v where v.kind = c.kind and v.id = c.id and v.state = 'deleted'));
  if cardinality(ended) > 0 then
    perform clerk_sync.remove_memberships(ended, in_full);
  end if;
  -- The memberships of a deleted parent go with it, but for those of a large one: nobody waits while they go one by one, and
  -- policies deny them already.
  if cardinality(parents) > 0 then
    ended := array(
      select m.id from unnest(parents) parent
       cross join lateral (
         select id from clerk.organization_memberships where organization_id = parent
         union all select id from clerk.organization_memberships where user_id = parent limit few + 1) m
       limit few + 1);
    if cardinality(ended) > few or not in_full then
      insert into clerk_sync.deleted_parents (id, kind)
        select c.id, c.kind from unnest(deletions) c
         where c.id = any (parents)
           and (exists (select from clerk.organization_memberships where organization_id = c.id)
                or exists (select from clerk.organization_memberships where user_id = c.id))
        on conflict do nothing;
    elsif cardinality(ended) > 0 then
      perform clerk_sync.remove_memberships(ended);
    end if;
  end if;
end
$$;

revoke all on function clerk_sync.empty_deleted(text[], text[], clerk_sync.deletion_v1[], boolean) from public, anon, authenticated, service_role;
