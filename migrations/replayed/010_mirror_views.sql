-- What counts as a row of the mirror.

-- Denials about rows which have ended, and not about what changed: those rows count as gone wherever rows are compared or
-- counted.
create or replace view clerk_sync.ended_rows as
  select d.kind, d.id from clerk_sync.denials d
   where not exists (select from clerk_sync.versions v where v.kind = d.kind and v.id = d.id and v.state <> 'deleted');

-- What counts as a membership, for whoever compares or counts: a row whose user or organization is deleted is gone, though it
-- may still be there.
create or replace view clerk_sync.live_memberships as
  select m.id, m.organization_id, m.user_id, m.role, m.permissions, m.public_metadata, m.created_at, m.updated_at
    from clerk.organization_memberships m
   where m.organization_id <> all (array(select id from clerk_sync.deleted_parents))
     and m.user_id <> all (array(select id from clerk_sync.deleted_parents))
     and m.id <> all (array(select id from clerk_sync.ended_rows where kind = 'membership'));

revoke all on table clerk_sync.live_memberships, clerk_sync.ended_rows from public, anon, authenticated, service_role, clerk_sync_worker;
grant select on table clerk_sync.live_memberships, clerk_sync.ended_rows to clerk_sync_worker;
