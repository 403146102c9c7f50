// The guide's integration and today's, as their users run them: type-checked, built, served by Next.js with Clerk's own
// library, in front of PostgREST. Clerk's API alone is simulated.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { pathToFileURL } from 'node:url'
import { createClient } from '@supabase/supabase-js'
import { clerkApi } from './clerk-api.js'
import { signIn } from './clerk-browser.js'
import { Clerk } from './clerk.js'
import { copy, read, serve, typeCheck } from './examples.js'
import { PUBLISHABLE_KEY, Stack } from './stack.js'
import { issuer } from './tokens.js'

test('the examples ask for the packages that they are tested with', () => {
  const { devDependencies: ours } = JSON.parse(readFileSync(new URL('package.json', import.meta.url)))
  for (const example of ['seed', 'nextjs']) {
    const { dependencies, devDependencies } = JSON.parse(read(`${example}/package.json`))
    for (const [name, version] of Object.entries({ ...dependencies, ...devDependencies })) assert.equal(version, ours[name], name)
  }
})

const get = async (url, token) => {
  const answer = await fetch(url, { headers: token ? { authorization: `Bearer ${token}` } : {} })
  return { status: answer.status, body: await answer.json() }
}

describe("the guide's integration, by JWT template", () => {
  const stack = new Stack()
  const folder = copy('seed')
  let tokens, api
  const inAcme = { organization: 'org_acme' }

  before(async () => {
    tokens = await issuer()
    const postgres = await stack.postgres()
    const project = await postgres.project('seed', { migrated: false })
    await project.run(read('seed/documents.sql'))
    await project.run(read('seed/policies.sql'))
    await project.run(`insert into documents (clerk_user_id, org_id, title) values
      ('user_ada', null, 'of Ada'), ('user_ben', null, 'of Ben'), (null, 'org_acme', 'of Acme'), (null, 'org_other', 'of Other')`)
    api = await stack.dataApi(project, tokens.jwks, ['public'])
  })
  after(() => stack.end())

  const titles = async (token) => {
    const supabase = createClient(api, PUBLISHABLE_KEY, { global: { headers: { Authorization: `Bearer ${token}` } } })
    const { data, error } = await supabase.from('documents').select('title').order('id')
    return error ? error.code : data.map((row) => row.title)
  }

  test('it fits the libraries of today', () => typeCheck(folder))

  test("a template token sees the user's documents and those of the active organization", async () => {
    assert.deepEqual(await titles(await tokens.template('user_ada', inAcme)), ['of Ada', 'of Acme'])
    assert.deepEqual(await titles(await tokens.template('user_ada')), ['of Ada'])
    assert.deepEqual(await titles(await tokens.v1('user_ada', inAcme)), ['of Ada', 'of Acme'])
  })

  test("a token of today sees the user's documents; its organization is in another claim than the policy reads", async () => {
    assert.deepEqual(await titles(await tokens.v2('user_ada', inAcme)), ['of Ada'])
  })

  test('a token that the project does not trust is refused, as is the word null', async () => {
    assert.equal(await titles(await tokens.forged('user_ada')), 'PGRST301')
    assert.equal(await titles('null'), 'PGRST301')
  })

  test('without a role claim the request runs as anon, whom policies without "to authenticated" let pass', async () => {
    const roleless = await tokens.v2('user_ada', { claims: { role: undefined } })
    assert.deepEqual(await titles(roleless), ['of Ada'], 'this project grants new tables to anon')
  })

  test('a user inserts his own documents and nobody else\'s', async () => {
    const supabase = createClient(api, PUBLISHABLE_KEY, {
      global: { headers: { Authorization: `Bearer ${await tokens.template('user_cleo')}` } },
    })
    const insert = (clerk_user_id) => supabase.from('documents').insert({ clerk_user_id, title: 'new' }).rollback()
    assert.equal((await insert('user_cleo')).status, 201)
    assert.equal((await insert('user_ada')).error.code, '42501')
  })

  test('the client hook asks Clerk for the template token with each request', async () => {
    process.env.NEXT_PUBLIC_SUPABASE_URL = api
    process.env.NEXT_PUBLIC_SUPABASE_ANON_KEY = PUBLISHABLE_KEY
    const { useSupabaseClient } = await import(pathToFileURL(join(folder, 'lib/supabase-client.ts')))
    const asked = []
    let user = 'user_ada'
    signIn(async (options) => {
      asked.push(options)
      return tokens.template(user)
    })
    const supabase = useSupabaseClient()
    const seen = async () => (await supabase.from('documents').select('title').throwOnError()).data.map((row) => row.title)
    assert.deepEqual(await seen(), ['of Ada'])
    user = 'user_ben'
    assert.deepEqual(await seen(), ['of Ben'])
    assert.deepEqual(asked, [{ template: 'supabase' }, { template: 'supabase' }])
  })

  test("the route handler returns the caller's documents and no other", async () => {
    const clerk = await clerkApi(stack, tokens.clerkKeys, (user) => tokens.template(user, user === 'user_ben' ? inAcme : {}))
    const { url } = await serve(stack, folder, api, clerk)
    const documents = `${url}/api/documents`
    assert.deepEqual(await get(documents), { status: 401, body: { error: 'Unauthorized' } })
    for (const [user, expected] of [
      ['user_ada', ['of Ada']],
      ['user_ben', ['of Ben', 'of Acme']],
      ['user_cleo', []],
    ]) {
      const { status, body } = await get(documents, await tokens.v2(user))
      assert.equal(status, 200)
      assert.deepEqual(body.map((row) => row.title), expected, user)
    }
    assert.equal((await get(documents, await tokens.forged('user_ada'))).status, 401)
  })
})

describe("today's integration, with our tables", () => {
  const stack = new Stack()
  const folder = copy('nextjs')
  const migration = read('nextjs/supabase/migrations/20260101000001_documents.sql')
  let project, tokens, clerk, url

  before(async () => {
    tokens = await issuer()
    const postgres = await stack.postgres()
    project = await postgres.project('nextjs', { autoExpose: false })
    await project.run(migration)
    clerk = new Clerk(await stack.clerkSync(project))
    for (const name of ['ada', 'ben', 'cleo']) await clerk.user(name)
    for (const name of ['acme', 'other']) await clerk.organization(name)
    await clerk.membership('orgmem_ada', 'org_acme', 'user_ada', 'org:admin')
    await clerk.membership('orgmem_ben', 'org_acme', 'user_ben', 'org:member')
    await clerk.membership('orgmem_cleo', 'org_other', 'user_cleo', 'org:admin')
    const api = await stack.dataApi(project, tokens.jwks, ['public', 'clerk'])
    const served = await serve(stack, folder, api, await clerkApi(stack, tokens.clerkKeys))
    url = served.url
  })
  after(() => stack.end())

  const of = (user, organization) => tokens.v2(user, { organization })
  const post = async (token, title) => {
    const headers = { authorization: `Bearer ${token}`, 'content-type': 'application/json' }
    return (await fetch(`${url}/api/documents`, { method: 'POST', headers, body: JSON.stringify({ title }) })).status
  }
  const titles = async (token) => (await get(`${url}/api/documents`, token)).body.map((row) => row.title)

  test('it fits the libraries of today', () => typeCheck(folder))

  test('its policies are those that clerk-sync prints', () => {
    const commands = migration.matchAll(/^-- clerk-sync (policy print .*)$/gm)
    const printed = [...commands].flatMap(([, command]) => project.clerkSync(...command.split(' ')).match(/create policy[^;]*;/g))
    assert.deepEqual(migration.match(/create policy[^;]*;/g), printed)
  })

  test('members share documents, and nobody writes into an organization by what the token says alone', async () => {
    assert.equal(await post(await of('user_ada', 'org_acme'), 'plan'), 201)
    assert.equal(await post(await of('user_cleo', 'org_other'), 'other plan'), 201)
    assert.equal(await post(await of('user_cleo', 'org_acme'), 'intruder'), 403)
    assert.equal(await post(await of('user_cleo'), 'homeless'), 401)
    assert.deepEqual(await titles(await of('user_ben', 'org_acme')), ['plan'])
    assert.deepEqual(await titles(await of('user_cleo', 'org_other')), ['other plan'])
    assert.equal((await get(`${url}/api/documents`)).status, 401)
  })

  test('the page shows the people of my organizations', async () => {
    const page = async (token) => (await (await fetch(url, { headers: { authorization: `Bearer ${token}` } })).text()).match(/<li>.*?<\/li>/g)
    assert.deepEqual(await page(await of('user_ben')), ['<li>Ada Example, org:admin of acme</li>', '<li>Ben Example, org:member of acme</li>'])
    assert.deepEqual(await page(await of('user_cleo')), ['<li>Cleo Example, org:admin of other</li>'])
  })

  test('the page asks a visitor to sign in, and says why it is empty', async () => {
    const page = async (token) => (await fetch(url, { headers: token ? { authorization: `Bearer ${token}` } : {} })).text()
    assert.match(await page(), /Sign in to see the people/)
    assert.match(await page(await of('user_nobody')), /You are not in an organization yet/)
    const roleless = await tokens.v2('user_ada', { claims: { role: undefined } })
    assert.match(await page(roleless), /activate the Supabase integration/)
  })

  test('an ex-member with a valid token gets nothing from the next request on', async () => {
    const token = await of('user_ben', 'org_acme')
    assert.deepEqual(await titles(token), ['plan'])
    await clerk.membership('orgmem_ben', 'org_acme', 'user_ben', 'org:member', { event: 'deleted' })
    assert.deepEqual(await titles(token), [])
    assert.equal(await post(token, 'farewell'), 403)
  })
})
