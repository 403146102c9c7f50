// The two answers of Clerk's Backend API that a Next.js server asks for: its keys, and a token of a JWT template.

import { once } from 'node:events'
import { createServer } from 'node:http'

export const SECRET_KEY = 'sk_test_tests'
export const PUBLISHABLE_KEY = `pk_test_${Buffer.from('clerk.example.com$').toString('base64')}`

/** The API's address. `template(user)` makes the token of a session's user. */
export async function clerkApi(stack, keys, template) {
  const server = createServer(async (request, response) => {
    const answer = (status, body) => response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body))
    if (request.headers.authorization !== `Bearer ${SECRET_KEY}`) return answer(401, { errors: [{ code: 'authorization_invalid' }] })
    if (request.url.split('?')[0] === '/v1/jwks') return answer(200, keys)
    const [, user] = request.url.match(/^\/v1\/sessions\/sess_(.+)\/tokens\/supabase$/) ?? []
    if (user && request.method === 'POST') return answer(200, { object: 'token', jwt: await template(user) })
    answer(404, { errors: [{ code: 'resource_not_found' }] })
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  stack.onEnd(() => {
    server.closeAllConnections()
    server.close()
  })
  return `http://127.0.0.1:${server.address().port}`
}
