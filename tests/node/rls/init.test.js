// From an empty folder: `clerk-sync init`, the first webhook, a printed policy, and then the right rows through PostgREST.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { after, test } from 'node:test'
import { Webhook } from 'svix'
import { simulate } from '../clerk/simulated.js'
import { SIGNING_SECRET } from './clerk.js'
import { client } from './matrix.js'
import { CLERK_SYNC, Stack } from './stack.js'
import { issuer } from './tokens.js'

const stack = new Stack()
after(() => stack.end())

test('init, a webhook and a printed policy give each member the rows of their organizations', async () => {
  const began = Date.now()
  const simulated = await simulate('--users', '12', '--organizations', '3', '--memberships', '12')
  stack.onEnd(simulated.stop)
  const folder = mkdtempSync(join(tmpdir(), 'clerk-sync-init-'))
  stack.onEnd(() => rmSync(folder, { recursive: true }))
  const project = await (await stack.postgres()).project('init', { migrated: false })
  const env = {
    DATABASE_URL: project.url,
    CLERK_SECRET_KEY: simulated.secretKey,
    CLERK_API_URL: simulated.url,
    CLERK_WEBHOOK_SIGNING_SECRET: SIGNING_SECRET,
    LISTEN_ADDR: '127.0.0.1:0',
  }
  const child = spawn(CLERK_SYNC, ['init', '--yes', '--url', 'https://sync.example.com'], { cwd: folder, env, stdio: ['ignore', 'pipe', 'inherit'] })
  const ended = once(child, 'exit')
  const said = []
  for await (const line of createInterface(child.stdout)) {
    said.push(line)
    const [, address] = line.match(/^Waiting for the first webhook on (\S+)\. /) ?? []
    if (address) await update(simulated, `http://${address}/webhooks/clerk`)
  }
  assert.deepEqual(await ended, [0, null], said.join('\n'))
  assert.ok(said.includes('A webhook came, and its signature is right.'), said.join('\n'))
  assert.match(readFileSync(join(folder, '.env'), 'utf8'), /^CLERK_WEBHOOK_SIGNING_SECRET=whsec_/m)

  const { data: memberships } = await asked(simulated, '/organization_memberships?limit=100')
  const organizations = [...new Set(memberships.map((membership) => membership.organization.id))]
  await project.run('create table documents (id text primary key, organization_id text not null); grant select on documents to authenticated')
  await project.run(organizations.map((id) => `insert into documents values ('of ${id}', '${id}')`).join(';'))
  await project.run(project.clerkSync('policy', 'print', 'documents', '--organization-column', 'organization_id', '--for', 'select'))
  const tokens = await issuer()
  const url = await stack.dataApi(project, tokens.jwks, ['public'])
  const seen = async (user) => {
    const { data, error } = await client(url, await tokens.v2(user)).from('documents').select('id').order('id')
    assert.equal(error, null)
    return data.map((row) => row.id)
  }
  for (const user of new Set(memberships.map((membership) => membership.public_user_data.user_id))) {
    const theirs = memberships.filter((membership) => membership.public_user_data.user_id === user)
    assert.deepEqual(await seen(user), theirs.map((membership) => `of ${membership.organization.id}`).sort())
  }
  assert.deepEqual(await seen('user_stranger'), [])
  console.log(`from an empty folder to rows through PostgREST: ${Date.now() - began} ms`)
})

async function asked(simulated, path) {
  const response = await fetch(`${simulated.url}/v1${path}`, {
    headers: { Authorization: `Bearer ${simulated.secretKey}`, 'Clerk-API-Version': '2026-05-12' },
  })
  return response.json()
}

/** Posts the webhook of a user who was just updated. */
async function update(simulated, endpoint) {
  const [user] = await asked(simulated, '/users?limit=1')
  const { id: instance_id } = await asked(simulated, '/instance')
  const now = new Date()
  const body = JSON.stringify({ object: 'event', type: 'user.updated', data: user, instance_id, timestamp: now.getTime() })
  const headers = {
    'content-type': 'application/json',
    'svix-id': 'msg_first',
    'svix-timestamp': String(Math.floor(now.getTime() / 1000)),
    'svix-signature': new Webhook(SIGNING_SECRET).sign('msg_first', now, body),
  }
  const answer = await fetch(endpoint, { method: 'POST', body, headers })
  assert.equal(answer.status, 204)
}
