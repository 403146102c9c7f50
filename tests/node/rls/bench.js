// What a policy costs: each usual way to write one, against the same question asked by hand without Row-Level Security.
// Prints the tables of docs/performance.md.

import pg from 'pg'
import { Stack } from './stack.js'

const SIZE = { documents: 1_000_000, organizations: 10_000, memberships: 200_000 }
const CALLERS = [1, 5, 50, 1_000]

const member = `select m.organization_id from clerk.organization_memberships m where m.user_id`
const claimed = `((select auth.jwt()) ->> 'sub')`

/** The ways to write the policy; `null`: asked by hand, as the owner. */
const WAYS = {
  'by hand, `in (select …)`': null,
  'by hand, `= any (array(select …))`': null,
  'clerk-sync: `= any (array(select clerk_rls.organization_ids()))`': 'organization_id = any (array(select clerk_rls.organization_ids()))',
  'clerk-sync, active organization only: `= (select clerk_rls.active_organization_id())`': 'organization_id = (select clerk_rls.active_organization_id())',
  'a claim, active organization only: `= (auth.jwt() ->> \'org_id\')`': "organization_id = (auth.jwt() ->> 'org_id')",
  '`in (select clerk_rls.organization_ids())`': 'organization_id in (select clerk_rls.organization_ids())',
  '`in (select … join)` to the synced tables': `organization_id in (${member} = ${claimed})`,
  '`exists (select …)` of the synced tables': `exists (${member} = ${claimed} and m.organization_id = documents.organization_id)`,
  'a function for each row': 'public.is_member(organization_id)',
}

const QUESTIONS = {
  'count(*)': (where) => `select count(*) from documents where ${where('true')}`,
  'newest 20': (where) => `select * from documents where ${where('true')} order by created_at desc limit 20`,
  'newest 20, with no index on `created_at` alone': (where) => QUESTIONS['newest 20'](where),
  "one organization's page": (where) =>
    `select * from documents where ${where("organization_id = 'org_1'")} order by created_at desc limit 20`,
  'insert': () => `insert into documents (organization_id, created_at, title) values ('org_1', now(), 'new')`,
}

/** The same question by hand, with the same answer: nothing for who is banned or deprovisioned, or of a deleted organization. */
const byHand = (way, user) => (condition) => {
  const mine = `${member} = '${user}'
    and exists (select from clerk.user_details d where d.id = m.user_id and d.banned is false and d.deprovisioned is not true)
    and not exists (select from clerk.organizations o where o.id = m.organization_id and o.deleted_at is not null)`
  if (condition !== 'true') return `${condition} and exists (${mine} and m.organization_id = 'org_1')`
  return way.includes('any') ? `organization_id = any (array(${mine}))` : `organization_id in (${mine})`
}

async function fill(project) {
  await project.run(`
    insert into clerk.users (id) select 'user_' || n from generate_series(1, 20000) n;
    insert into clerk.users (id) select 'caller_' || n from unnest(array[${CALLERS}]) n;
    insert into clerk.user_details (id, banned, deprovisioned) select id, false, false from clerk.users;
    insert into clerk.organizations (id, name) select 'org_' || n, 'Organization ' || n from generate_series(1, ${SIZE.organizations}) n;
    -- Callers first; the rest is spread evenly.
    insert into clerk.organization_memberships (id, organization_id, user_id, role, permissions, created_at, updated_at)
      select 'orgmem_' || caller || '_' || n, 'org_' || 1 + (n * 7) % ${SIZE.organizations}, 'caller_' || caller, 'org:member', '{}', now(), now()
        from unnest(array[${CALLERS}]) caller cross join lateral generate_series(0, caller - 1) n;
    insert into clerk.organization_memberships (id, organization_id, user_id, role, permissions, created_at, updated_at)
      select 'orgmem_' || n, 'org_' || 1 + n % ${SIZE.organizations}, 'user_' || 1 + n / 10, 'org:member', '{}', now(), now()
        from generate_series(0, ${SIZE.memberships} - 1 - (select count(*) from clerk.organization_memberships)) n;
    create table documents (id bigint generated always as identity primary key, organization_id text not null references clerk.organizations,
                            created_at timestamptz not null, title text not null);
    insert into documents (organization_id, created_at, title)
      select 'org_' || 1 + (n * 7919::bigint) % ${SIZE.organizations}, timestamptz '2026-01-01' + n * interval '1 s', 'Document ' || n
        from generate_series(1, ${SIZE.documents}) n;
    create index on documents (organization_id, created_at desc);
    create index on documents (created_at desc);
    create function public.is_member(organization text) returns boolean language sql stable security definer set search_path = '' as
      $$ select exists (select from clerk.organization_memberships m where m.organization_id = organization
                           and m.user_id = (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')) $$;
    alter table documents enable row level security;
    grant select, insert on documents to authenticated;`)
  await project.run('vacuum analyze')
}

/** A connection that asks in one way, as one caller: a function that takes a question and gives the ms until the answer. */
async function asking(project, [way, policy], index, caller) {
  // Past the proxy that the tests go through.
  const client = new pg.Client({ host: project.server.socket, user: project.server.owner, database: project.name })
  await client.connect()
  await client.query('begin')
  if (policy) {
    const claims = { role: 'authenticated', sub: `caller_${caller}`, org_id: 'org_1' }
    await client.query("select set_config('request.jwt.claims', $1, true), set_config('role', $2, true)", [JSON.stringify(claims), role(index)])
  }
  const where = policy ? (condition) => condition : byHand(way, `caller_${caller}`)
  return {
    end: () => client.end(),
    ask: async (question) => {
      const sql = question(where)
      await client.query('savepoint before')
      const start = process.hrtime.bigint()
      await client.query(sql)
      const ms = Number(process.hrtime.bigint() - start) / 1e6
      await client.query('rollback to before')
      return ms
    },
  }
}

const median = (times) => {
  // The first ones of a session fill its caches.
  const warm = times.length > 20 ? times.slice(10) : times
  return warm.sort((a, b) => a - b)[Math.floor(warm.length / 2)]
}

/** All ways in turn, so that a busy moment of the machine hits them alike; the slow ones less often. */
async function measure(project, caller, question) {
  const askers = await Promise.all(Object.entries(WAYS).map((way, index) => asking(project, way, index, caller)))
  const times = askers.map(() => [])
  for (let round = 0; round < 120; round += 1) {
    for (const [index, { ask }] of askers.entries()) {
      const spent = times[index].reduce((sum, ms) => sum + ms, 0)
      if (spent < 2_000) times[index].push(await ask(question))
    }
  }
  await Promise.all(askers.map(({ end }) => end()))
  return times.map(median)
}

const role = (index) => `bench_${index}`
const digits = (ms) => (ms < 1 ? ms.toFixed(2) : ms < 100 ? ms.toFixed(1) : String(Math.round(ms)))

const stack = new Stack()
try {
  const project = await (await stack.postgres()).project('bench')
  await fill(project)
  // A role for each way, so that its policy can stay.
  for (const [index, policy] of Object.values(WAYS).entries()) {
    if (!policy) continue
    await project.run(`create role ${role(index)}; grant authenticated to ${role(index)}; grant ${role(index)} to ${project.server.owner};
      create policy ${role(index)} on documents to ${role(index)} using (${policy}) with check (${policy})`, project.server.superuser)
  }
  const results = {}
  for (const [question, sql] of Object.entries(QUESTIONS)) {
    if (question.includes('no index')) await project.run('drop index documents_created_at_idx')
    results[question] = []
    for (const caller of CALLERS) results[question].push(await measure(project, caller, sql))
  }
  const [{ version }] = await project.run("select split_part(version(), ' ', 2) as version")
  const number = (n) => n.toLocaleString('en-US')
  console.log(`${number(SIZE.documents)} documents, ${number(SIZE.organizations)} organizations, ${number(SIZE.memberships)} memberships; PostgreSQL ${version}.\n`)
  for (const [question, columns] of Object.entries(results)) {
    console.log(`### ${question}\n`)
    console.log(`| written as | ${CALLERS.map((caller) => `in ${number(caller)}`).join(' | ')} |\n| --- | ${CALLERS.map(() => '---:').join(' | ')} |`)
    const ways = Object.entries(WAYS)
    const best = columns.map((times) => Math.min(...times.filter((_, index) => !ways[index][1])))
    for (const [index, [way]] of ways.entries()) {
      console.log(`| ${way} | ${columns.map((times, column) => `${digits(times[index])} (${digits(times[index] / best[column])}×)`).join(' | ')} |`)
    }
    console.log()
  }
} finally {
  await stack.end()
}
