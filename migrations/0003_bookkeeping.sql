-- The worker's own tables. Times are bigint milliseconds on Clerk's clock where they take part in a rule (they are compared
-- with what Clerk sent, to the millisecond), timestamptz where people read them.

create table clerk_sync.instance (
  only_row    boolean primary key default true check (only_row),
  instance_id text not null,
  pinned_by   text not null check (pinned_by in ('environment', 'api', 'webhook', 'repin')),
  pinned_at   timestamptz not null default now(),
  environment text   -- as Clerk says: development or production; null: nobody asked
);
comment on table clerk_sync.instance is 'The Clerk instance that the tables of clerk are a copy of.';

-- (Without checks of kind and state: the writer alone writes here, and each of its statements would read them anew.)
create table clerk_sync.versions (
  kind        text not null,   -- user, organization, membership
  id          text not null,
  state       text not null,
  observed_at bigint not null,
  updated_at  bigint,
  content     bigint,
  denial      integer,
  floor       bigint not null default 0,
  first_observed_at bigint,
  event_updated_at  bigint,
  event_observed_at bigint,
  event_content     bigint,
  ahead       bigint,
  by_event    boolean not null default false,
  in_doubt    boolean not null default false,
  inferred    boolean not null default false,
  primary key (id, kind)   -- the ids of different kinds differ early
) with (fillfactor = 90);
create index versions_stubs_idx on clerk_sync.versions (kind, id) where state = 'stub';
comment on table clerk_sync.versions is
  'The version of each row, and the tombstone of each deleted one: they decide whether an observation is newer. Tombstones are never removed.';
comment on column clerk_sync.versions.state is
  'live: the row is complete. stub: a placeholder row, from what a membership embeds. deleted: a tombstone; observed_at is the time of the delete.';
comment on column clerk_sync.versions.updated_at is 'Clerk''s updated_at, at most a second after observed_at.';
comment on column clerk_sync.versions.content is 'Hash of the stored columns: breaks a tie of both times the same way in any order.';
comment on column clerk_sync.versions.denial is
  'Breaks a tie of both times towards less access. A user: 2 banned or deprovisioned, 1 unknown, 0 neither. A membership: minus the number of permissions.';
comment on column clerk_sync.versions.floor is 'A webhook observed before this is stale: a read that contradicted older webhooks was believed.';
comment on column clerk_sync.versions.first_observed_at is 'When the row was first observed.';
comment on column clerk_sync.versions.event_updated_at is
  'With event_observed_at and event_content: the greatest version that a webhook reported, which may be another one than the row''s.';
comment on column clerk_sync.versions.ahead is 'An updated_at that was ahead of its own observation, as Clerk sent it. Null: it was not ahead.';
comment on column clerk_sync.versions.by_event is 'Whether a webhook said what the row says.';
comment on column clerk_sync.versions.in_doubt is 'Webhooks disagree on the order of two states: no read that gives more access is believed at once.';
comment on column clerk_sync.versions.inferred is 'A tombstone without a webhook: Clerk''s API did not find the object.';

create table clerk_sync.generations (
  organization_id text not null,
  user_id         text not null,
  created_at      bigint not null,
  membership_id   text not null,
  rival_id        text,
  rival_since     bigint,
  primary key (organization_id, user_id)
);
comment on table clerk_sync.generations is
  'The newest membership of each pair of user and organization. Only that one may be live. Never removed.';
comment on column clerk_sync.generations.created_at is 'Clerk''s created_at, at most a second after it was observed.';
comment on column clerk_sync.generations.rival_id is 'Another membership of the pair, with an earlier created_at, that reads of the API show in its place.';
comment on column clerk_sync.generations.rival_since is 'When the first of those reads was made, on Clerk''s clock.';

create table clerk_sync.pass_watermarks (
  kind       text primary key check (kind in ('user', 'organization', 'membership')),
  started_at bigint not null
);
comment on table clerk_sync.pass_watermarks is 'When the last complete reconcile of a kind began. Never removed.';

create table clerk_sync.listings (
  kind       text primary key check (kind in ('user', 'organization', 'membership')),
  started_at bigint not null,
  listed_to  bigint not null
);
comment on table clerk_sync.listings is
  'The reconcile of a kind that is running now: for rows created before listed_to (ms) it counts like a complete one. Removed when it ends.';

create table clerk_sync.pending_reads (
  kind            text not null check (kind in ('user', 'organization', 'membership')),
  id              text not null,
  organization_id text,
  user_id         text,
  reason          text not null,
  requested_at        timestamptz not null default now(),
  settles_after   bigint not null default 0,
  reported_deleted    boolean not null default false,
  said            text,
  said_since      bigint,
  tries           integer not null default 0,
  next_at         timestamptz not null default now(),
  primary key (kind, id)
);
create index pending_reads_next_at_idx on clerk_sync.pending_reads (next_at);
create index pending_reads_refused_idx on clerk_sync.pending_reads (kind, id) where reason = 'refused';
comment on table clerk_sync.pending_reads is 'Objects that must be read by id from Clerk''s API.';
comment on column clerk_sync.pending_reads.organization_id is 'Of a membership: with user_id, the only way to ask the API for it.';
comment on column clerk_sync.pending_reads.settles_after is
  'On Clerk''s clock, in ms: a read observed before this decides nothing, because the API may lag behind the webhook that requested it.';
comment on column clerk_sync.pending_reads.reported_deleted is 'A webhook said that the object was deleted, and not when.';
comment on column clerk_sync.pending_reads.said is 'What a read said that contradicts the row, and which version of the row it contradicts (R2).';
comment on column clerk_sync.pending_reads.said_since is 'When a read first said so, on Clerk''s clock, in ms.';
comment on column clerk_sync.pending_reads.tries is 'How many reads have decided nothing.';
comment on column clerk_sync.pending_reads.next_at is 'When it is read again. A reconcile of its kind reads it as well.';

create table clerk_sync.pending_passes (
  kind     text primary key check (kind in ('user', 'organization', 'membership')),
  reason   text not null,
  requested_at timestamptz not null default now(),
  ripe_at  timestamptz not null default now(),
  tried_at timestamptz
);
comment on table clerk_sync.pending_passes is 'Kinds for which a webhook requested a full reconcile.';
comment on column clerk_sync.pending_passes.ripe_at is 'A reconcile that began before this may have seen the old state: another one follows.';
comment on column clerk_sync.pending_passes.tried_at is 'When the last reconcile began that was too early.';

create table clerk_sync.pending_listings (
  organization_id text primary key,
  reason     text not null,
  requested_at   timestamptz not null default now(),
  claimed_at timestamptz,
  listed_at  timestamptz,
  next_at    timestamptz not null default now(),
  tries      integer not null default 0
);
comment on table clerk_sync.pending_listings is
  'Organizations with memberships that must be listed: at once, and once more when all replicas of Clerk''s API must have the change.';
comment on column clerk_sync.pending_listings.next_at is 'When they are listed next. A worker that starts listing them moves it to a later time first.';
comment on column clerk_sync.pending_listings.tries is 'Listings since the last successful one.';

create table clerk_sync.deleted_parents (
  id   text primary key,
  kind text not null check (kind in ('user', 'organization'))
);
comment on table clerk_sync.deleted_parents is
  'Deleted users and organizations with many memberships that are still being removed. Those memberships give no access any more.';

create table clerk_sync.denials (
  kind     text not null check (kind in ('user', 'organization', 'membership')),
  id       text not null,
  since    timestamptz not null default now(),
  sqlstate text not null,
  object   text,
  primary key (kind, id)
);
comment on table clerk_sync.denials is
  'Rows that would still give access that has ended, because an object of the application refuses the change: no policy gives them access. Removed when the row is right.';
comment on column clerk_sync.denials.sqlstate is
  'The error when the row was written; or unsettled: a webhook may have taken access away, and Clerk cannot be asked without a secret key.';
comment on column clerk_sync.denials.object is 'The constraint, index or trigger that refused it, if the database named it.';

create table clerk_sync.receipts (
  message_id  text primary key,
  body_hash   text not null,
  event_type  text not null,
  entity_id   text,
  outcome     text not null,
  reason      text,
  field_errors       text[] not null,
  event_at    timestamptz,
  received_at timestamptz not null default now()
);
create index receipts_entity_id_idx on clerk_sync.receipts (entity_id, received_at desc) where entity_id is not null;
create index receipts_received_at_idx on clerk_sync.receipts (received_at);   -- the oldest are pruned
comment on column clerk_sync.receipts.field_errors is 'Fields that could not be stored as they arrived (left out, or characters replaced), and why.';
comment on table clerk_sync.receipts is
  'One row for each message received, without its payload. It distinguishes a repeated message from a reused id, which is refused; it decides nothing else.';

create table clerk_sync.dead_letters (
  message_id  text not null,
  body_hash   text not null,
  event_type  text,
  reason      text not null,
  headers     jsonb not null,
  body        bytea not null,
  received_at timestamptz not null default now(),
  tries       integer not null default 0,
  tried_at    timestamptz,
  primary key (message_id, body_hash)
);
comment on table clerk_sync.dead_letters is 'Signed messages that could not be used, kept but for private_metadata (where they are JSON). Bodies may hold personal data.';
comment on column clerk_sync.dead_letters.reason is 'Why it could not be applied when it was last tried.';
comment on column clerk_sync.dead_letters.tries is 'How often it was retried. One that can be applied is removed.';

-- One pass at a time, over all replicas and commands.
create table clerk_sync.lease (
  only_row   boolean primary key default true check (only_row),
  token      bigint not null,
  holder     text not null,
  term_ms    integer not null,
  expires_at timestamptz not null
);
comment on table clerk_sync.lease is 'The process that reconciles now. The lease expires, so a process that died does not block others for long.';
comment on column clerk_sync.lease.term_ms is 'How long it is valid without renewal. One that would expire later was taken with a wrong clock, and can be taken over.';
comment on column clerk_sync.lease.token is 'Grows with each holder. A write with an older token is refused, however late it arrives.';

create table clerk_sync.passes (
  id            bigint generated always as identity primary key,
  scope         text not null check (scope in ('user', 'organization', 'membership', 'quick')),
  reason        text not null,
  state         text not null check (state in ('running', 'complete', 'incomplete', 'void', 'braked', 'skipped')),
  problem       text,
  step          text not null default 'list' check (step in ('list', 'confirm', 'reads', 'end')),
  position      jsonb,
  approved      boolean not null default false,
  backfill      boolean not null,
  observed_from bigint not null,
  started_at    timestamptz not null default now(),
  ended_at      timestamptz,
  resumed       integer not null default 0,
  listed        bigint not null default 0,
  refreshed     bigint not null default 0,
  missing       bigint not null default 0,
  differing     bigint not null default 0,
  extra         bigint not null default 0,
  counts        jsonb,
  undecided     jsonb,
  judge_after   timestamptz,
  again_at      timestamptz,
  held          text
);
create index passes_scope_idx on clerk_sync.passes (scope, id desc);
comment on table clerk_sync.passes is 'Each reconcile, one row for each kind: what it found, and how far it is.';
comment on column clerk_sync.passes.scope is 'A kind: all of it. quick: recently changed users, and the counts of all kinds (an incremental reconcile).';
comment on column clerk_sync.passes.state is
  'complete: the tables equal Clerk, except for the rows in "undecided". incomplete: it could not end, or not for all rows; it deleted only what was confirmed by id. void: its list contradicts itself, and the next one starts again. braked: stopped by the deletion limit; everything else was done. skipped: the feature is off at Clerk.';
comment on column clerk_sync.passes.step is 'How far it is. One that has reached "end" is not resumed.';
comment on column clerk_sync.passes.undecided is 'Undecided rows, by reason; null: none.';
comment on column clerk_sync.passes.judge_after is 'When the rows that were seen too recently can be decided, on Clerk''s clock.';
comment on column clerk_sync.passes.again_at is 'When serve starts it again.';
comment on column clerk_sync.passes.held is 'If the deletion limit stopped it: a hash of the ids that wait for approval. The approval is valid for these ids.';
comment on column clerk_sync.passes.backfill is 'The first of its kind (backfill): the rows that it adds are not findings.';
comment on column clerk_sync.passes.position is 'Where the list is continued.';
comment on column clerk_sync.passes.observed_from is 'Clerk''s clock when it began, in ms.';
comment on column clerk_sync.passes.refreshed is 'Rows with newer times only: written, and not a finding.';
comment on column clerk_sync.passes.counts is 'Of an incremental reconcile: rows here and at Clerk, by kind.';

create table clerk_sync.absentees (
  pass_id bigint not null references clerk_sync.passes on delete cascade,
  id      text not null,
  primary key (pass_id, id)
);
comment on table clerk_sync.absentees is 'Rows that a list did not contain: each is read by id before it is deleted.';

create table clerk_sync.findings (
  id              bigint generated always as identity primary key,
  pass_id         bigint not null references clerk_sync.passes on delete cascade,
  kind            text not null check (kind in ('user', 'organization', 'membership')),
  entity_id       text not null,
  drift           text not null check (drift in ('missing', 'differing', 'extra')),
  fields          text[] not null,
  since           timestamptz,
  webhook_at      timestamptz,
  webhook_outcome text,
  cause           text not null,
  repaired_at     timestamptz not null default now()
);
create index findings_pass_id_idx on clerk_sync.findings (pass_id, id);
comment on table clerk_sync.findings is 'Every repair: what was wrong, since when, and whether a webhook had arrived for it. No values.';
comment on column clerk_sync.findings.since is 'No earlier than this: when Clerk last changed it, or when we last saw it.';
comment on column clerk_sync.findings.webhook_at is 'When the last webhook about it arrived; null: none did, as far as receipts are kept.';

create table clerk_sync.write_checks (
  only_row   boolean primary key default true check (only_row),
  checked_at timestamptz not null
);
comment on table clerk_sync.write_checks is 'Written to check whether the database accepts writes again after it did not.';

create table clerk_sync.failed_start (
  only_row boolean primary key default true check (only_row),
  since    timestamptz not null default now(),
  last_at  timestamptz not null default now(),
  tries    integer not null default 1,
  problem  text not null
);
comment on table clerk_sync.failed_start is 'Why no reconcile can start, and since when. Removed when one starts.';

create table clerk_sync.replayed (
  only_row    boolean primary key default true check (only_row),
  generation  integer not null,
  files       jsonb not null,
  release     text not null,
  replayed_at timestamptz not null default now()
);
comment on table clerk_sync.replayed is 'Which views, functions and policies the database has: those of this generation, from this release.';
comment on column clerk_sync.replayed.files is 'The SHA-256 of each of their files. The next release runs those that it changed.';

-- Writers take turns by locking this table: unlike an advisory lock, which any login can take, that needs a right, and only the
-- owner has it. It has no rows; reading it, dumping it and autovacuum hold up no writer.
create table clerk_sync.writer ();
alter table clerk_sync.writer enable row level security;
revoke all on table clerk_sync.writer from public, anon, authenticated, service_role;
comment on table clerk_sync.writer is 'The lock of the writers. No rows, and no grant to anybody: see clerk_sync.lock_writer().';

do $$
declare t text;
begin
  foreach t in array array['instance', 'versions', 'generations', 'pass_watermarks', 'listings', 'pending_reads', 'pending_passes', 'pending_listings', 'deleted_parents', 'receipts', 'dead_letters',
                           'lease', 'passes', 'absentees', 'findings', 'denials', 'write_checks', 'failed_start', 'replayed'] loop
    execute format('alter table clerk_sync.%I enable row level security', t);
    execute format('revoke all on table clerk_sync.%I from public, anon, authenticated, service_role', t);
    execute format('grant select on table clerk_sync.%I to clerk_sync_worker', t);
    execute format('create policy worker_reads on clerk_sync.%I for select to clerk_sync_worker using (true)', t);
  end loop;
end
$$;
revoke all on sequence clerk_sync.passes_id_seq, clerk_sync.findings_id_seq from public, anon, authenticated, service_role;
