// A project with an application of two tenants on it: the tables of the matrix, their policies, their rows.

import { Clerk } from './clerk.js'
import { tell } from './personas.js'

/** One table for each way to write a policy; `of` is the column that says whose a row is. */
export const TABLES = {
  documents: { of: 'org_id', policy: 'clerk-sync policy print --organization-column' },
  managed: { of: 'org_id', policy: 'clerk-sync policy print --organization-column --role org:admin' },
  notes: { of: 'user_id', policy: 'clerk-sync policy print --user-column' },
  active: { of: 'org_id', policy: 'the active organization, by hand' },
  joined: { of: 'org_id', policy: 'exists, a plain join to clerk.organization_memberships' },
}

const BY_HAND = {
  active: 'org_id = (select clerk_rls.active_organization_id())',
  joined: `exists (select from clerk.organization_memberships m
                    where m.organization_id = joined.org_id and m.user_id = ((select auth.jwt()) ->> 'sub'))`,
}

/** The project, filled by webhooks to the real endpoint. */
export async function application(stack, postgres, name, options) {
  const project = await postgres.project(name, options)
  for (const [table, { of }] of Object.entries(TABLES)) {
    await project.run(`create table public.${table} (id text primary key, ${of} text not null, title text)`)
    const rows = of === 'org_id' ? ['acme-1', 'acme-2', 'other-1', 'gone-1'] : ['ada-1', 'ben-1', 'cleo-1', 'dora-1', 'emil-1', 'finn-1', 'gala-1', 'hugo-1', 'iris-1', 'jan-1']
    const prefix = of === 'org_id' ? 'org' : 'user'
    for (const row of rows) await project.run(`insert into public.${table} values ('${row}', '${prefix}_${row.split('-')[0]}', 'first')`)
  }
  // As printed, without a change.
  await project.run(project.clerkSync('policy', 'print', 'documents', '--organization-column', 'org_id'))
  await project.run(project.clerkSync('policy', 'print', 'managed', '--organization-column', 'org_id', '--role', 'org:admin'))
  await project.run(project.clerkSync('policy', 'print', 'notes', '--user-column', 'user_id'))
  for (const [table, condition] of Object.entries(BY_HAND)) {
    await project.run(`alter table public.${table} enable row level security;
      grant select, insert, update, delete on public.${table} to authenticated;
      create policy members on public.${table} to authenticated using (${condition}) with check (${condition});
      create index on public.${table} (org_id);`)
  }
  const clerk = new Clerk(await stack.clerkSync(project))
  await tell(clerk)
  return { project, clerk }
}
