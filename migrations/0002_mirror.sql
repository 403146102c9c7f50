-- The mirror: what policies and your own SQL use. Ids are Clerk's, opaque text. No column but an id is unique: Clerk lets
-- two users pass through the same e-mail address, slug or username, and a refused row would be a wrong row.

-- (A page keeps a tenth of its room for updates: a row that stays in its page needs no new index entries.)
create table clerk.users (
  id          text primary key,
  first_name  text,
  last_name   text,
  username    text,
  image_url   text,
  has_image   boolean,
  deleted_at  timestamptz
) with (fillfactor = 90);
comment on table clerk.users is
  'What Clerk shows of a user to fellow members. A deleted user keeps the row with id and deleted_at alone, so that foreign keys hold.';
comment on column clerk.users.id is 'Clerk''s user id: the claim "sub" of a session token.';
comment on column clerk.users.image_url is 'Always set by Clerk, even where the user has uploaded none: see has_image.';
comment on column clerk.users.deleted_at is 'When Clerk deleted the user. Null: not deleted.';

create table clerk.user_details (
  id                     text primary key references clerk.users on delete cascade,
  email_address          text,
  email_address_verified boolean,
  phone_number           text,
  phone_number_verified  boolean,
  external_id            text,
  banned                 boolean,
  locked                 boolean,
  deprovisioned          boolean,
  public_metadata        jsonb,
  unsafe_metadata        jsonb,
  created_at             timestamptz,
  updated_at             timestamptz
) with (fillfactor = 90);
comment on table clerk.user_details is 'What is the user''s own business. Visible to that user alone.';
comment on column clerk.user_details.email_address is 'The primary address, found by its id; null where the user has none.';
comment on column clerk.user_details.email_address_verified is 'Whether that address is verified. Two users may hold one unverified address.';
comment on column clerk.user_details.phone_number is 'The primary number (E.164), found by its id; null where the user has none.';
comment on column clerk.user_details.banned is 'Null: not known yet, and counted as banned until it is.';
comment on column clerk.user_details.locked is 'Locked out of signing in after failed attempts; says nothing about access.';
comment on column clerk.user_details.deprovisioned is 'Deleted or disabled by the identity provider (SCIM).';
comment on column clerk.user_details.public_metadata is 'Written by your backend, readable by the user''s browser.';
comment on column clerk.user_details.unsafe_metadata is 'WRITTEN BY THE USER from the browser. Never decide access by it.';
comment on column clerk.user_details.updated_at is 'Clerk''s updated_at, never later than the moment it was observed.';

create table clerk.organizations (
  id                      text primary key,
  name                    text,
  slug                    text,
  image_url               text,
  has_image               boolean,
  max_allowed_memberships bigint,
  public_metadata         jsonb,
  created_at              timestamptz,
  updated_at              timestamptz,
  deleted_at              timestamptz
);
comment on table clerk.organizations is
  'Clerk organizations. A deleted one keeps the row with id and deleted_at alone, so that foreign keys hold.';
comment on column clerk.organizations.slug is 'Null where slugs are off; for a moment two rows may have the same slug.';
comment on column clerk.organizations.max_allowed_memberships is '0: unlimited.';
comment on column clerk.organizations.deleted_at is 'When Clerk deleted the organization. Null: not deleted.';

create table clerk.organization_memberships (
  id              text primary key,
  organization_id text not null references clerk.organizations,
  user_id         text not null references clerk.users,
  role            text not null,
  permissions     text[] not null,
  public_metadata jsonb,
  created_at      timestamptz not null,
  updated_at      timestamptz not null,
  unique (user_id, organization_id)
) with (fillfactor = 90);
create index organization_memberships_organization_id_idx on clerk.organization_memberships (organization_id);
-- A reconcile pass walks each table in the order in which Clerk lists it.
create index user_details_created_at_idx on clerk.user_details (created_at, id);
create index organizations_created_at_idx on clerk.organizations (created_at, id) where deleted_at is null;
create index organization_memberships_created_at_idx on clerk.organization_memberships (created_at, id);
-- Few are deleted: whether one is can be answered by a page that is always in memory.
create index organizations_deleted_idx on clerk.organizations (id) where deleted_at is not null;
comment on table clerk.organization_memberships is
  'Who belongs to which organization now. The row of an ended membership is gone: no row, no access.';
comment on column clerk.organization_memberships.role is 'The role''s key as Clerk''s API has it, such as org:admin (a token''s "o.rol" lacks the prefix).';
comment on column clerk.organization_memberships.permissions is 'The permission keys of that role, such as org:invoices:read.';

do $$
declare t text;
begin
  foreach t in array array['users', 'user_details', 'organizations', 'organization_memberships'] loop
    execute format('alter table clerk.%I enable row level security', t);
    execute format('revoke all on table clerk.%I from public, anon, authenticated, service_role', t);
    execute format('grant select on table clerk.%I to authenticated, service_role, clerk_sync_worker', t);
    execute format('create policy worker_reads on clerk.%I for select to clerk_sync_worker using (true)', t);
  end loop;
end
$$;
