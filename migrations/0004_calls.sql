-- The types in which the program and the database speak: what the writer takes, and what it answers. A type that ends in _v1 is
-- never altered once a release has been tagged: a later release adds _v2 beside it (README.md shows how).
--
-- The other types are handed from one step of the writer to the next and leave the database never.

-- What decides whether a change counts travels apart from the row, which is looked at only if the change counts.
create type clerk_sync.change_v1 as (
  n integer, kind text, id text, observed_at bigint, updated_at bigint, content bigint,
  denial integer,                             -- see clerk_sync.versions
  ahead bigint,                               -- Clerk's updated_at where it was ahead of the observation
  row_number integer,                         -- of its row among the rows of its kind, from 1
  read_reason text,                           -- why a read by id is needed as well: what the event does not say
  organization_id text, user_id text          -- of a membership
);
create type clerk_sync.user_row_v1 as (
  id text, first_name text, last_name text, username text, image_url text, has_image boolean,
  email_address text, email_address_verified boolean, phone_number text, phone_number_verified boolean,
  external_id text, banned boolean, locked boolean, deprovisioned boolean, public_metadata jsonb, unsafe_metadata jsonb,
  created_at bigint, updated_at bigint
);
create type clerk_sync.organization_row_v1 as (
  id text, name text, slug text, image_url text, has_image boolean, max_allowed_memberships bigint, public_metadata jsonb,
  created_at bigint, updated_at bigint
);
create type clerk_sync.membership_row_v1 as (
  id text, organization_id text, user_id text, role text, permissions text[], public_metadata jsonb, created_at bigint, updated_at bigint
);
create type clerk_sync.deletion_v1 as (n integer, kind text, id text, observed_at bigint);
-- Several webhooks about one object in one batch: whether a read must tell which came last, whether their times disagree (R9), and the
-- greatest of them.
create type clerk_sync.doubt_v1 as (n integer, asks boolean, in_doubt boolean, updated_at bigint, observed_at bigint, content bigint);
-- What a membership embeds of its user or organization.
create type clerk_sync.stub_v1 as (
  kind text, id text, observed_at bigint, content bigint, image_url text, has_image boolean,
  first_name text, last_name text, username text, banned boolean, deprovisioned boolean,
  name text, slug text, max_allowed_memberships bigint, public_metadata jsonb, created_at bigint
);
-- Evidence that a membership exists or existed.
create type clerk_sync.membership_mention_v1 as (
  organization_id text, user_id text, membership_id text, created_at bigint, observed_at bigint
);
create type clerk_sync.message_v1 as (
  n integer, message_id text, body_hash text, event_type text, entity_id text, instance_id text, event_at bigint, field_errors text[],
  first_hash text           -- of the first message of this id, where the batch has several
);
-- What only a read by id can settle, and what only a reconcile pass can.
create type clerk_sync.pending_read_v1 as (
  n integer, kind text, id text, organization_id text, user_id text, reason text,
  observed_at bigint,       -- null: what asks for it has no time
  reported_deleted boolean
);
create type clerk_sync.requested_pass_v1 as (
  n integer, kind text, organization_id text, reason text,   -- of one organization, or of the kind
  ripe_after_s integer      -- a pass that begins so much later surely sees what asks for it
);
create type clerk_sync.dead_letter_v1 as (n integer, reason text, headers jsonb, body bytea);
create type clerk_sync.batch_v1 as (
  source text,              -- webhook (an event), list (a page of a listing), read (by id), undelete (a read by id for a person),
                            -- development (an answer about a development instance, believed at once)
  fence bigint,             -- of a pass: its lease's token; a lease that was lost writes nothing
  check_instance boolean,   -- whether a message of another Clerk instance is refused
  messages clerk_sync.message_v1[],
  deletions clerk_sync.deletion_v1[],
  changes clerk_sync.change_v1[],
  users clerk_sync.user_row_v1[],                    -- those of the changes, kind by kind in their order
  organizations clerk_sync.organization_row_v1[],
  memberships clerk_sync.membership_row_v1[],
  stubs clerk_sync.stub_v1[],
  mentions clerk_sync.membership_mention_v1[],
  pending_reads clerk_sync.pending_read_v1[],
  requested_passes clerk_sync.requested_pass_v1[],
  dead_letters clerk_sync.dead_letter_v1[],
  superseded text[],        -- memberships that came with a later one of the same pair
  doubts clerk_sync.doubt_v1[],
  mode text,                -- null: all of it. Of one change that was refused: access (what decides access alone), then deny (no row)
  refused_by text[],        -- of the mode deny: the SQLSTATE of the refusal, and what refused
  lock_wait_ms integer      -- how long to wait for a lock on a row of ours; null: as long as the session says
);
-- What a pass is when it is opened, approved or ended: clerk_sync.passes has the meaning of each.
create type clerk_sync.pass_v1 as (
  id bigint, scope text, problem text, step text, position jsonb, approved boolean, backfill boolean, observed_from bigint,
  resumed integer, listed bigint, refreshed bigint, missing bigint, differing bigint, extra bigint
);

create type clerk_sync.outcome as (n integer, outcome text, reason text);
-- What is known before the changes of a batch are judged.
create type clerk_sync.context as (
  from_webhook boolean, from_list boolean, from_read boolean, undelete boolean,
  is_believed boolean,      -- nothing that a read says waits because of what events said (R2, R4, R5)
  in_full boolean,          -- not what is left of a change that was refused
  ahead_limit bigint,       -- what is observed later than this comes from a wrong clock
  has_refused boolean,      -- whether any row was refused before and does not say yet what it should
  checks_all boolean,       -- whether every row that is written is looked at afterwards, not only those that take access away
  instance_id text,         -- the Clerk instance that this database belongs to; null: none is known yet
  user_watermark bigint,    -- R7: when the last complete pass of each kind began,
  organization_watermark bigint,
  membership_watermark bigint,
  is_listing boolean,       -- whether a pass is listing now, when it began, and how far it has come
  user_listing bigint,
  organization_listing bigint,
  membership_listing bigint,
  users_listed_to bigint,
  organizations_listed_to bigint,
  memberships_listed_to bigint
);
-- A change from which more may follow than its row.
create type clerk_sync.follow_up as (
  n integer, kind text, id text, organization_id text, user_id text, read_reason text, state text, reason text,
  observed_at bigint, updated_at bigint, content bigint, known_at bigint, settles_after bigint, said text, wait bigint
);
-- What a row should say of access after a batch: whether a user may act, a membership is there, an organization is not deleted.
create type clerk_sync.intent as (
  kind text, id text, may boolean, gone_at bigint,   -- gone_at: of a tombstone
  banned boolean, deprovisioned boolean,             -- of a user
  organization_id text, user_id text, role text, permissions text[], created_at bigint, updated_at bigint   -- of a membership
);
-- What steps of the writer find, each described there.
create type clerk_sync.parents_found as (unverified text[], stubs clerk_sync.stub_v1[]);
create type clerk_sync.dead_parents as (deleted integer[], doubtful integer[], missing integer[]);
create type clerk_sync.mentions_found as (superseded text[], unproven text[], intents clerk_sync.intent[]);
create type clerk_sync.deletions_found as (
  results clerk_sync.outcome[], users text[], organizations text[], parents text[], intents clerk_sync.intent[]
);
-- *_win: beside the rows of each kind, whether they are to be written. takes: whether a change may take access away.
create type clerk_sync.judged as (
  results clerk_sync.outcome[], users_win boolean[], organizations_win boolean[], memberships_win boolean[],
  follow_ups clerk_sync.follow_up[], takes boolean
);

do $$
declare t regtype;
begin
  for t in select c.oid::pg_catalog.regtype from pg_catalog.pg_type c join pg_catalog.pg_class r on r.oid = c.typrelid
            where c.typnamespace = 'clerk_sync'::pg_catalog.regnamespace and r.relkind = 'c' loop
    execute format('revoke all on type %s from public, anon, authenticated, service_role', t);
  end loop;
end
$$;
