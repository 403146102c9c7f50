-- Step: the rows of users that won. A row that is equal already is not written. (Beside each row whether it won: the column "unnest".)
-- Returns what those that are to be checked must say of access: all of them, or if some may take access away (`takes`) those that do.
create or replace function clerk_sync.write_users(user_rows clerk_sync.user_row_v1[], win boolean[], takes boolean, context clerk_sync.context)
  returns clerk_sync.intent[]
  language plpgsql volatile set search_path = '' as $$
#variable_conflict use_column
begin
  if context.in_full then
    insert into clerk.users as u (id, first_name, last_name, username, image_url, has_image)
      select id, first_name, last_name, username, image_url, has_image from unnest(user_rows, win) r where r.unnest
      on conflict (id) do update
        set first_name = excluded.first_name, last_name = excluded.last_name, username = excluded.username,
            image_url = excluded.image_url, has_image = excluded.has_image, deleted_at = null
      where (u.first_name, u.last_name, u.username, u.image_url, u.has_image, u.deleted_at)
            is distinct from (excluded.first_name, excluded.last_name, excluded.username, excluded.image_url, excluded.has_image, null);
    insert into clerk.user_details as d (id, email_address, email_address_verified, phone_number, phone_number_verified, external_id,
                                         banned, locked, deprovisioned, public_metadata, unsafe_metadata, created_at, updated_at)
      select id, email_address, email_address_verified, phone_number, phone_number_verified, external_id,
             banned, locked, deprovisioned, public_metadata, unsafe_metadata,
             pg_catalog.to_timestamp(created_at::double precision / 1000), pg_catalog.to_timestamp(updated_at::double precision / 1000)
        from unnest(user_rows, win) r where r.unnest
      on conflict (id) do update
        set email_address = excluded.email_address, email_address_verified = excluded.email_address_verified,
            phone_number = excluded.phone_number, phone_number_verified = excluded.phone_number_verified,
            external_id = excluded.external_id, banned = excluded.banned, locked = excluded.locked,
            deprovisioned = excluded.deprovisioned, public_metadata = excluded.public_metadata,
            unsafe_metadata = excluded.unsafe_metadata, created_at = excluded.created_at, updated_at = excluded.updated_at
      where d.* is distinct from excluded.*;
  end if;
  if takes or context.checks_all then
    return array(select row('user', id, (banned is false and deprovisioned is not true), null, banned, deprovisioned,
                            null, null, null, null, null, null)::clerk_sync.intent
                   from unnest(user_rows, win) r where r.unnest and (context.checks_all or banned is not false or deprovisioned));
  end if;
  return null;
end
$$;

revoke all on function clerk_sync.write_users(clerk_sync.user_row_v1[], boolean[], boolean, clerk_sync.context) from public, anon, authenticated, service_role;
