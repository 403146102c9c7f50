// Who sees and does what, through supabase-js, PostgREST and real policies. Each cell is held against what it should be, and
// the whole against the table that is kept beside this file (UPDATE_SNAPSHOTS=1 writes it anew).

import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { after, before, describe, test } from 'node:test'
import { client, expected, ofApplication, ofMirror, printed } from './matrix.js'
import { PERSONAS } from './personas.js'
import { TABLES, application } from './project.js'
import { Stack } from './stack.js'
import { issuer } from './tokens.js'

for (const autoExpose of [true, false]) {
  describe(`where new tables are ${autoExpose ? '' : 'not '}granted by themselves`, () => {
    const stack = new Stack()
    let clerk, tokens, exposed, hidden
    const matrix = {}

    before(async () => {
      tokens = await issuer()
      const postgres = await stack.postgres()
      const world = await application(stack, postgres, 'matrix', { autoExpose })
      clerk = world.clerk
      exposed = await stack.dataApi(world.project, tokens.jwks, ['public', 'clerk'])
      hidden = await stack.dataApi(world.project, tokens.jwks, ['public'])
    })
    after(() => stack.end())

    for (const [persona, [token, may]] of Object.entries(PERSONAS)) {
      test(`${persona}: each table and verb`, async () => {
        const held = await token(tokens)
        const application = await ofApplication(exposed, held)
        for (const cells of Object.values(application)) {
          assert.ok(cells.moved === null || cells.moved === '403 42501', `a row was moved to another tenant: ${cells.moved}`)
          delete cells.moved
        }
        matrix[persona] = { ...application, ...(await ofMirror(exposed, held)) }
        assert.deepEqual(matrix[persona], expected(may, autoExpose))
      })

      test(`${persona}: the same where the schema clerk is not exposed`, async () => {
        const held = await token(tokens)
        for (const table of Object.keys(TABLES)) {
          const { data, error, status } = await client(hidden, held).from(table).select('id')
          const cell = error ? `${status} ${error.code}` : data.map((row) => row.id).sort().join(' ') || '-'
          assert.equal(cell, matrix[persona][table].select, table)
        }
        const { error, status } = await client(hidden, held, 'clerk').from('users').select('id')
        assert.equal(`${status} ${error.code}`, may.error?.startsWith('401') ? may.error : '406 PGRST106')
      })
    }

    test('the whole is as it is kept', () => {
      const table = printed(matrix)
      const file = new URL(`matrix.auto-expose-${autoExpose ? 'on' : 'off'}.txt`, import.meta.url)
      if (process.env.UPDATE_SNAPSHOTS) writeFileSync(file, table)
      console.log(table)
      assert.equal(table, readFileSync(file, 'utf8'))
    })

    test('memberships embed their organizations and people', async () => {
      const supabase = client(exposed, await tokens.v2('user_ben'), 'clerk')
      const { data, error } = await supabase
        .from('organization_memberships')
        .select('role, organizations(name), users(first_name, image_url)')
        .order('user_id')
      assert.equal(error, null)
      const image_url = 'https://img.clerk.com/eyJ0eXBlIjoiZGVmYXVsdCJ9'
      assert.deepEqual(data, [
        { role: 'org:admin', organizations: { name: 'acme' }, users: { first_name: 'Ada', image_url } },
        { role: 'org:member', organizations: { name: 'acme' }, users: { first_name: 'Ben', image_url } },
        { role: 'org:member', organizations: { name: 'acme' }, users: { first_name: 'Emil', image_url } },
      ])
    })

    test('when Clerk hears that a membership is deleted, the next request with the same token sees nothing', async () => {
      await clerk.user('kim')
      for (let round = 0; round < 10; round += 1) {
        const id = `orgmem_kim_${round}`
        await clerk.membership(id, 'org_acme', 'user_kim', 'org:member')
        const supabase = client(exposed, await tokens.v2('user_kim', { organization: 'org_acme' }))
        const seen = async (table) => (await supabase.from(table).select('id').throwOnError()).data.length
        assert.deepEqual([await seen('documents'), await seen('joined')], [2, 2])
        // `send` wants 204.
        await clerk.membership(id, 'org_acme', 'user_kim', 'org:member', { event: 'deleted' })
        assert.deepEqual([await seen('documents'), await seen('joined')], [0, 0])
      }
    })
  })
}
