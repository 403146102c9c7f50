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
  'the kit: `= any (array(select clerk_rls.organization_ids()))`': 'organization_id = any (array(select clerk_rls.organization_ids()))',
  'a claim, one organization only: `= (auth.jwt() ->> \'org_id\')`': "organization_id = (auth.jwt() ->> 'org_id')",
  '`in (select clerk_rls.organization_ids())`': 'organization_id in (select clerk_rls.organization_ids())',
  '`in (select … join)` to the mirror': `organization_id in (${member} = ${claimed})`,
  '`exists (select …)` of the mirror': `exists (${member} = ${claimed} and m.organization_id = documents.organization_id)`,
  'a function for each row': 'public.is_member(organization_id)',
}

const QUESTIONS = {
  'count(*)': (where) => `select count(*) from documents where ${where('true')}`,
  'newest 20': (where) => `select * from documents where ${where('true')} order by created_at desc limit 20`,
  "one organization's page": (where) =>
    `select * from documents where ${where("organization_id = 'org_1'")} order by created_at desc limit 20`,
  'insert': () => `insert into documents (organization_id, created_at, title) values ('org_1', now(), 'new')`,
}

/** The same question by hand: the member's rows and no other. */
const byHand = (way, user) => (condition) => {
  const mine = `${member} = '${user}'`
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

/** The median time of planning and running on the server, in ms, and how many rows came. */
async function time(client, sql) {
  const times = []
  let rows
  for (const end = Date.now() + 2_000; times.length < 31 && (times.length < 1 || Date.now() < end); ) {
    await client.query('savepoint before')
    const answer = await client.query(`explain (analyze, timing off, format json) ${sql}`)
    await client.query('rollback to before')
    const plan = answer.rows[0]['QUERY PLAN'][0]
    times.push(plan['Planning Time'] + plan['Execution Time'])
    rows = plan.Plan['Actual Rows']
  }
  // The first ones of a session fill its caches.
  const warm = times.length > 5 ? times.slice(3) : times
  return { ms: warm.sort((a, b) => a - b)[Math.floor(warm.length / 2)], rows }
}

async function measure(project, way, policy, caller, question) {
  const client = new pg.Client({ connectionString: project.url })
  await client.connect()
  try {
    await client.query('begin')
    if (policy) {
      const claims = { role: 'authenticated', sub: `caller_${caller}`, org_id: 'org_1' }
      await client.query("select set_config('request.jwt.claims', $1, true), set_config('role', 'authenticated', true)", [JSON.stringify(claims)])
    }
    const where = policy ? (condition) => condition : byHand(way, `caller_${caller}`)
    return await time(client, question(where))
  } finally {
    await client.end()
  }
}

const digits = (ms) => (ms < 1 ? ms.toFixed(2) : ms < 100 ? ms.toFixed(1) : String(Math.round(ms)))

const stack = new Stack()
try {
  const project = await (await stack.postgres()).project('bench')
  await fill(project)
  const results = Object.fromEntries(Object.keys(QUESTIONS).map((question) => [question, {}]))
  for (const [way, policy] of Object.entries(WAYS)) {
    await project.run('drop policy if exists bench on documents')
    if (policy) await project.run(`create policy bench on documents to authenticated using (${policy}) with check (${policy})`)
    for (const [question, sql] of Object.entries(QUESTIONS)) {
      results[question][way] = []
      for (const caller of CALLERS) results[question][way].push(await measure(project, way, policy, caller, sql))
    }
  }
  const [{ version }] = await project.run("select split_part(version(), ' ', 2) as version")
  const number = (n) => n.toLocaleString('en-US')
  console.log(`${number(SIZE.documents)} documents, ${number(SIZE.organizations)} organizations, ${number(SIZE.memberships)} memberships; PostgreSQL ${version}.\n`)
  for (const [question, ways] of Object.entries(results)) {
    console.log(`### ${question}\n`)
    console.log(`| written as | ${CALLERS.map((caller) => `in ${number(caller)}`).join(' | ')} |\n| --- | ${CALLERS.map(() => '---:').join(' | ')} |`)
    const hands = Object.keys(WAYS).filter((way) => !WAYS[way]).map((way) => ways[way])
    const best = CALLERS.map((_, column) => Math.min(...hands.map((times) => times[column].ms)))
    for (const [way, times] of Object.entries(ways)) {
      const cells = times.map(({ ms }, column) => `${digits(ms)} (${digits(ms / best[column])}×)`)
      console.log(`| ${way} | ${cells.join(' | ')} |`)
    }
    console.log()
  }
} finally {
  await stack.end()
}
