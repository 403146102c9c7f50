// Supabase's own command line, pointed at a project.

import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const SUPABASE = join(dirname(fileURLToPath(import.meta.url)), 'node_modules/.bin/supabase')

/** What it prints, and the exit code. The schemas that the Data API serves are read from its configuration. */
function supabase(project, exposed, ...args) {
  const folder = mkdtempSync(join(tmpdir(), 'clerk-sync-supabase-'))
  try {
    mkdirSync(join(folder, 'supabase'))
    writeFileSync(join(folder, 'supabase/config.toml'), `project_id = "tests"\n[api]\nschemas = ${JSON.stringify(exposed)}\n`)
    const remote = `${project.url.replace('@', ':x@')}?sslmode=disable`
    const { status, stdout, stderr } = spawnSync(SUPABASE, [...args, '--remote', remote, '--workdir', folder], {
      encoding: 'utf8',
      env: { ...process.env, HOME: folder, SUPABASE_TELEMETRY_DISABLED: '1' },
    })
    return { status, stdout, stderr }
  } finally {
    rmSync(folder, { recursive: true })
  }
}

/** The Advisor's findings of level warn and above. */
export function advisors(project, exposed) {
  const args = ['db', 'advisors', '--type', 'all', '--level', 'warn', '--fail-on', 'warn', '--output-format', 'json']
  const { status, stdout, stderr } = supabase(project, exposed, ...args)
  const results = stdout && JSON.parse(stdout).results
  if (!results || (status === 0) !== (results.length === 0)) throw new Error(`the Advisor ended with ${status}: ${stdout}${stderr}`)
  return results
}

/** The types of these schemas. */
export function types(project, schemas) {
  const { status, stdout, stderr } = supabase(project, schemas, 'gen', 'types', 'typescript', '--schema', schemas.join(','))
  if (status !== 0) throw new Error(stderr)
  return stdout
}
