-- After the schemas of clerk-sync: `clerk-sync migrate`, or its printed file as 20260101000000_clerk_sync.sql.

create table public.documents (
  id              bigint generated always as identity primary key,
  organization_id text not null references clerk.organizations,
  author_id       text not null references clerk.users,
  title           text not null,
  created_at      timestamptz not null default now()
);
-- Foreign keys are looked up from the other side, too.
create index on public.documents (author_id);

-- Everybody in the organization reads and writes; a new document is its writer's own; only admins delete.
-- clerk-sync policy print documents --organization-column organization_id --for select,insert,update
-- clerk-sync policy print documents --organization-column organization_id --role org:admin --for delete
-- clerk-sync policy print documents --user-column author_id --restrictive --for insert
alter table public.documents enable row level security;
grant select, insert, update, delete on table public.documents to authenticated;

create policy "select by members" on public.documents for select to authenticated
  using (organization_id = any (array(select clerk_rls.organization_ids())));

create policy "insert by members" on public.documents for insert to authenticated
  with check (organization_id = any (array(select clerk_rls.organization_ids())));

create policy "update by members" on public.documents for update to authenticated
  using (organization_id = any (array(select clerk_rls.organization_ids())))
  with check (organization_id = any (array(select clerk_rls.organization_ids())));

create policy "delete by org:admin" on public.documents for delete to authenticated
  using (organization_id = any (array(select clerk_rls.organization_ids_by_role('org:admin'))));

create policy "insert only by owner" on public.documents as restrictive for insert to authenticated
  with check (author_id = (select clerk_rls.user_id()));

create index on public.documents (organization_id);
