-- Step, R6: a user or organization that is still missing is stubbed from what a membership embeds; R7: unless a pass has read that kind
-- since, then it is read by its id first. Returns what the rows of refused stubs must say of access.
create or replace function clerk_sync.write_stubs(stubs clerk_sync.stub_v1[], context clerk_sync.context) returns clerk_sync.intent[]
  language plpgsql volatile set search_path = '' as $$
#variable_conflict use_column
declare
  margin constant bigint := 300000;
  skew constant bigint := 2100;
  written clerk_sync.stub_v1[];
begin
  if cardinality(stubs) > 0 is not true then
    return null;
  end if;
  with candidate as (
    select c.kind, c.id, c.observed_at, c.content, c as stub, v.state, v.observed_at as known_at, v.content as known_content,
           c.observed_at < case c.kind when 'user' then context.user_watermark else context.organization_watermark end - margin as is_doubtful
      from unnest(stubs) c
      left join lateral (select * from clerk_sync.versions
                          where kind = c.kind and id = c.id
                            and (state = 'deleted' or exists (select from clerk.users where id = c.id and c.kind = 'user')
                                 or exists (select from clerk.organizations where id = c.id and c.kind = 'organization'))
                         offset 0) v on true
     where v.state is null or v.state = 'stub'
  ), written as (
    insert into clerk_sync.versions (kind, id, state, observed_at, content)
      select kind, id, 'stub', observed_at, content from candidate
       where (state is null and is_doubtful is not true)
          or (state = 'stub' and (observed_at, content) > (known_at, known_content))
      on conflict (kind, id) do update
        set state = 'stub', observed_at = excluded.observed_at, content = excluded.content, updated_at = null, denial = null, floor = 0
      returning kind, id
  ), requested as (
    insert into clerk_sync.pending_reads (kind, id, reason, settles_after)
      select kind, id, case when is_doubtful then 'named by a membership older than the last pass' else 'stub' end, observed_at + skew
        from candidate where state is null
      on conflict do nothing
  )
  select array_agg(stub) into written from candidate join written using (kind, id);
  if not context.in_full then
    return array(select row('user', id, (banned is false and deprovisioned is not true), null, banned, deprovisioned,
                            null, null, null, null, null, null)::clerk_sync.intent
                   from unnest(written) where kind = 'user');
  end if;
  if cardinality(written) > 0 then
    insert into clerk.users (id, first_name, last_name, username, image_url, has_image)
      select id, first_name, last_name, username, image_url, has_image from unnest(written) where kind = 'user'
      on conflict (id) do update
        set first_name = excluded.first_name, last_name = excluded.last_name, username = excluded.username,
            image_url = excluded.image_url, has_image = excluded.has_image, deleted_at = null;
    insert into clerk.user_details (id, banned, deprovisioned)
      select id, banned, deprovisioned from unnest(written) where kind = 'user'
      on conflict (id) do update set banned = excluded.banned, deprovisioned = excluded.deprovisioned;
    insert into clerk.organizations (id, name, slug, image_url, has_image, max_allowed_memberships, public_metadata, created_at)
      select id, name, slug, image_url, has_image, max_allowed_memberships, public_metadata,
             pg_catalog.to_timestamp(created_at::double precision / 1000)
        from unnest(written) where kind = 'organization'
      on conflict (id) do update
        set name = excluded.name, slug = excluded.slug, image_url = excluded.image_url, has_image = excluded.has_image,
            max_allowed_memberships = excluded.max_allowed_memberships, public_metadata = excluded.public_metadata,
            created_at = excluded.created_at, deleted_at = null;
  end if;
  return null;
end
$$;

revoke all on function clerk_sync.write_stubs(clerk_sync.stub_v1[], clerk_sync.context) from public, anon, authenticated, service_role;
