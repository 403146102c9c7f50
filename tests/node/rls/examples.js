// The examples as their users have them: type-checked, built and served by Next.js, in a folder of their own.

import { spawnSync } from 'node:child_process'
import { cpSync, mkdirSync, readFileSync, rmSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { PUBLISHABLE_KEY as CLERK_PUBLISHABLE_KEY, SECRET_KEY } from './clerk-api.js'
import { PUBLISHABLE_KEY, ROOT, freePort, until } from './stack.js'

const HERE = dirname(fileURLToPath(import.meta.url))
const bin = (name) => join(HERE, 'node_modules/.bin', name)

export const read = (path) => readFileSync(join(ROOT, 'examples', path), 'utf8')

/** A copy below the folder with the packages, so that they are found. */
export function copy(example) {
  const folder = join(HERE, 'copies', example)
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder, { recursive: true })
  cpSync(join(ROOT, 'examples', example), folder, { recursive: true, filter: (path) => !/node_modules|\.next/.test(path) })
  return folder
}

function run(command, args, options) {
  const { status, stdout, stderr } = spawnSync(command, args, { encoding: 'utf8', ...options })
  if (status !== 0) throw new Error(`${command} ${args.join(' ')} ended with ${status}:\n${stdout}${stderr}`)
  return stdout
}

export const typeCheck = (folder) => run(bin('tsc'), ['--project', folder])

/** Builds the example against a project and a Clerk, and serves it: its address. */
export async function serve(stack, folder, supabaseUrl, clerkApiUrl) {
  const env = {
    ...process.env,
    NEXT_TELEMETRY_DISABLED: '1',
    NEXT_PUBLIC_CLERK_TELEMETRY_DISABLED: '1',
    NEXT_PUBLIC_CLERK_PUBLISHABLE_KEY: CLERK_PUBLISHABLE_KEY,
    CLERK_SECRET_KEY: SECRET_KEY,
    CLERK_API_URL: clerkApiUrl,
    NEXT_PUBLIC_SUPABASE_URL: supabaseUrl,
    NEXT_PUBLIC_SUPABASE_ANON_KEY: PUBLISHABLE_KEY,
    NEXT_PUBLIC_SUPABASE_PUBLISHABLE_KEY: PUBLISHABLE_KEY,
  }
  run(process.execPath, [bin('next'), 'build'], { cwd: folder, env })
  const port = await freePort()
  const { child, log } = stack.program(process.execPath, [bin('next'), 'start', '-H', 'localhost', '-p', String(port)], { cwd: folder, env })
  const url = `http://localhost:${port}`
  await until('Next.js', async () => {
    if (child.exitCode !== null) throw new Error(log())
    return (await fetch(url)).status > 0
  })
  return { url, log }
}
