// The Advisor has nothing to say of our schemas and of the example beside them, however the project is set up.

import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { advisors, types } from './advisor.js'
import { read } from './examples.js'
import { Stack } from './stack.js'

const names = (findings) => findings.map((finding) => finding.name).sort()

describe('the Advisor', () => {
  const stack = new Stack()
  let postgres

  before(async () => {
    postgres = await stack.postgres()
  })
  after(() => stack.end())

  for (const autoExpose of [true, false]) {
    test(`finds nothing, where new tables are ${autoExpose ? '' : 'not '}granted by themselves, with clerk exposed and not`, async () => {
      const project = await postgres.project(`advised_${autoExpose}`, { autoExpose })
      await project.run(read('nextjs/supabase/migrations/20260101000001_documents.sql'))
      for (const exposed of [['public'], ['public', 'clerk']]) assert.deepEqual(advisors(project, exposed), [])
      assert.equal(project.clerkSync('policy', 'check'), 'Tables checked: 1. Findings: 0.\n')
    })
  }

  // Its command line leaves out 0025 to 0029. 0025 is about storage. The others ask who can reach what.
  test('would find nothing by its rules 0026 to 0029 either, but that signed-in users read the mirror', async () => {
    const project = await postgres.project('reachable')
    const read = (role) =>
      `select c.oid::regclass::text as name from pg_class c where c.relkind in ('r', 'v', 'm', 'f')
         and c.relnamespace in ('public'::regnamespace, 'clerk'::regnamespace, 'clerk_rls'::regnamespace, 'clerk_sync'::regnamespace)
         and has_any_column_privilege('${role}', c.oid, 'select') order by 1`
    const call = (role) =>
      `select p.oid::regprocedure::text as name from pg_proc p where p.prosecdef and has_function_privilege('${role}', p.oid, 'execute')
         and p.pronamespace in ('public'::regnamespace, 'clerk'::regnamespace)`
    assert.deepEqual(await project.run(read('anon')), [], '0026')
    // 0027 speaks up only where pg_graphql is installed, and of every table that signed-in users may read at all.
    const readable = (await project.run(read('authenticated'))).map(({ name }) => name)
    const mirror = ['clerk.organization_memberships', 'clerk.organizations', 'clerk.user_details', 'clerk.users', 'clerk_rls.able_users']
    assert.deepEqual(readable, mirror, '0027')
    assert.deepEqual(await project.run(call('anon')), [], '0028')
    assert.deepEqual(await project.run(call('authenticated')), [], '0029')
  })

  test('finds what the guide leaves behind', async () => {
    const project = await postgres.project('guide', { migrated: false })
    await project.run(read('seed/documents.sql'))
    await project.run(read('seed/policies.sql'))
    const found = names(advisors(project, ['public']))
    assert.deepEqual([...new Set(found)], ['auth_rls_initplan', 'multiple_permissive_policies'])
  })

  test('finds our table of migrations where another tool would have put it', async () => {
    const project = await postgres.project('planted')
    await project.run('create table public._sqlx_migrations (version bigint primary key)')
    assert.deepEqual(names(advisors(project, ['public'])), ['rls_disabled_in_public'])
  })

  test('shares its command line with the generated types, and the example has those', async () => {
    const project = await postgres.project('typed')
    await project.run(read('nextjs/supabase/migrations/20260101000001_documents.sql'))
    assert.equal(types(project, ['public', 'clerk']), read('nextjs/database.types.ts'))
  })
})
