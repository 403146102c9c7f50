// Persona by table by verb, asked through supabase-js: what came, and what should.

import { createClient } from '@supabase/supabase-js'
import { PEOPLE } from './personas.js'
import { TABLES } from './project.js'
import { PUBLISHABLE_KEY } from './stack.js'

export const VERBS = ['select', 'insert', 'update', 'delete']
const MIRROR = {
  users: { first_name: 'x' },
  user_details: { external_id: 'x' },
  organizations: { name: 'x' },
  organization_memberships: { role: 'org:admin' },
}
const NOTHING = '-'

export function client(url, token, schema = 'public') {
  return createClient(url, PUBLISHABLE_KEY, { db: { schema }, accessToken: async () => token })
}

const shown = ({ data, error, status }) => {
  if (error) return `${status} ${error.code}`
  return data.map((row) => row.id.replace(/^(user|org|orgmem)_/, '')).sort().join(' ') || NOTHING
}

/** What the holder of a token gets of the application's tables: { table: { verb: cell } }. */
export async function ofApplication(url, token) {
  const supabase = client(url, token)
  const cells = {}
  for (const [table, { of }] of Object.entries(TABLES)) {
    const from = () => supabase.from(table)
    const owners = of === 'org_id' ? ['acme', 'other', 'gone'] : ['ada', 'ben', 'cleo', 'dora', 'emil', 'finn', 'gala', 'hugo', 'iris', 'jan']
    const inserted = []
    for (const owner of owners) {
      const row = { id: 'new', [of]: `${of === 'org_id' ? 'org' : 'user'}_${owner}` }
      inserted.push([owner, shown({ data: [], ...(await from().insert(row).rollback().then(({ error, status }) => ({ error, status }))) })])
    }
    const accepted = inserted.filter(([, cell]) => cell === NOTHING).map(([owner]) => owner)
    const refusals = [...new Set(inserted.map(([, cell]) => cell).filter((cell) => cell !== NOTHING))]
    // Moving a row to a tenant of somebody else's must fail like inserting it there.
    const moved = accepted.length ? shown(await from().update({ [of]: 'org_other_yet' }).eq(of, `${of === 'org_id' ? 'org' : 'user'}_${accepted[0]}`).select('id').rollback()) : null
    cells[table] = {
      select: shown(await from().select('id')),
      insert: accepted.join(' ') || refusals.join(' '),
      update: shown(await from().update({ title: 'x' }).not('id', 'is', null).select('id').rollback()),
      delete: shown(await from().delete().not('id', 'is', null).select('id').rollback()),
      moved,
    }
  }
  return cells
}

/** The same of the mirror's own tables. */
export async function ofMirror(url, token) {
  const supabase = client(url, token, 'clerk')
  const cells = {}
  for (const [table, change] of Object.entries(MIRROR)) {
    const from = () => supabase.from(table)
    cells[`clerk.${table}`] = {
      select: shown(await from().select('id')),
      insert: shown(await from().insert({ id: 'x_new' }).select('id').rollback()),
      update: shown(await from().update(change).not('id', 'is', null).select('id').rollback()),
      delete: shown(await from().delete().not('id', 'is', null).select('id').rollback()),
    }
  }
  return cells
}

const cell = (items) => items.sort().join(' ') || NOTHING
const same = (value) => Object.fromEntries(VERBS.map((verb) => [verb, value]))

/** What should come, from what the persona may. */
export function expected({ organizations, manages, active, self, error, anon }, autoExpose) {
  const tables = [...Object.keys(TABLES), ...Object.keys(MIRROR).map((table) => `clerk.${table}`)]
  if (error) return Object.fromEntries(tables.map((table) => [table, same(error)]))
  if (anon) {
    // With automatic grants a policy hides the rows; without, the right to the table is missing. Ours has none either way.
    const refused = '401 42501'
    const hidden = { select: NOTHING, insert: refused, update: NOTHING, delete: NOTHING }
    return Object.fromEntries(tables.map((table) => [table, autoExpose && !table.startsWith('clerk.') ? hidden : same(refused)]))
  }
  const rows = (owners) => owners.flatMap((owner) => (owner === 'acme' ? ['acme-1', 'acme-2'] : [`${owner}-1`]))
  const of = (owners) => {
    const all = cell(rows(owners))
    return { select: all, insert: [...owners].sort().join(' ') || '403 42501', update: all, delete: all }
  }
  const reads = (items) => ({ ...same('403 42501'), select: cell(items) })
  const people = organizations.flatMap((organization) => PEOPLE[organization])
  const memberships = people.map((name) => (name === 'emil' ? 'emil_2' : name))
  return {
    documents: of(organizations),
    managed: of(manages),
    notes: of(self),
    active: of(active),
    joined: of(organizations),
    'clerk.users': reads([...new Set([...people, ...self])]),
    'clerk.user_details': reads([...self]),
    'clerk.organizations': reads([...organizations]),
    'clerk.organization_memberships': reads(memberships),
  }
}

/** The matrix as a table of text. */
export function printed(matrix) {
  const lines = [['persona', 'table', ...VERBS]]
  for (const [persona, tables] of Object.entries(matrix)) {
    for (const [table, cells] of Object.entries(tables)) lines.push([persona, table, ...VERBS.map((verb) => cells[verb])])
  }
  const widths = lines[0].map((_, column) => Math.max(...lines.map((line) => line[column].length)))
  return lines.map((line) => line.map((text, column) => text.padEnd(widths[column])).join('  ').trimEnd()).join('\n') + '\n'
}
