// Who asks, with which token, and what they may see. The expectations are written here by hand; nothing is recorded.

/** What Clerk has told, in this order. */
export async function tell(clerk) {
  for (const name of ['ada', 'ben', 'cleo', 'dora', 'emil', 'finn', 'gala', 'hugo', 'iris', 'jan']) await clerk.user(name)
  for (const name of ['acme', 'other', 'gone']) await clerk.organization(name)
  await clerk.membership('orgmem_ada', 'org_acme', 'user_ada', 'org:admin')
  await clerk.membership('orgmem_ben', 'org_acme', 'user_ben', 'org:member')
  await clerk.membership('orgmem_cleo', 'org_other', 'user_cleo', 'org:admin')
  await clerk.membership('orgmem_dora', 'org_acme', 'user_dora', 'org:admin')
  await clerk.membership('orgmem_finn', 'org_acme', 'user_finn', 'org:admin')
  await clerk.membership('orgmem_gala', 'org_acme', 'user_gala', 'org:admin')
  await clerk.membership('orgmem_hugo', 'org_acme', 'user_hugo', 'org:admin')
  await clerk.membership('orgmem_iris', 'org_gone', 'user_iris', 'org:admin')
  // Was an admin, left, came back as a member. The webhook of the leaving is lost, and one of the old time comes late.
  const long_ago = 1_760_000_000_500
  await clerk.membership('orgmem_emil_1', 'org_acme', 'user_emil', 'org:admin', { created_at: long_ago })
  await clerk.membership('orgmem_emil_2', 'org_acme', 'user_emil', 'org:member')
  await clerk.membership('orgmem_emil_1', 'org_acme', 'user_emil', 'org:admin', { created_at: long_ago, event: 'updated' })
  await clerk.membership('orgmem_dora', 'org_acme', 'user_dora', 'org:admin', { event: 'deleted' })
  await clerk.user('finn', { banned: true })
  await clerk.user('gala', { deprovisioned: true })
  await clerk.deleted('user', 'user_hugo')
  await clerk.deleted('organization', 'org_gone')
}

/** The people whom a member of an organization sees there. Finn is banned, Gala deprovisioned; Dora and Hugo are gone. */
export const PEOPLE = { acme: ['ada', 'ben', 'emil'], other: ['cleo'] }

const ANON = { anon: true }
const NOTHING = { organizations: [], manages: [], active: [], self: [] }
const member = (name) => ({ organizations: ['acme'], manages: [], active: ['acme'], self: [name] })

/**
 * Each persona with its token, and either the organizations that it belongs to, manages and works in, with itself if it may
 * see itself; or the error of each of its requests; or `anon`, if the request counts as one without a user.
 */
export const PERSONAS = {
  'no token': [() => null, ANON],
  'member': [(clerk) => clerk.v2('user_ben', { organization: 'org_acme' }), member('ben')],
  'member, token of version 1': [(clerk) => clerk.v1('user_ben', { organization: 'org_acme' }), member('ben')],
  'member, template token': [(clerk) => clerk.template('user_ben', { organization: 'org_acme' }), member('ben')],
  'admin': [
    (clerk) => clerk.v2('user_ada', { organization: 'org_acme', role: 'admin' }),
    { organizations: ['acme'], manages: ['acme'], active: ['acme'], self: ['ada'] },
  ],
  'admin, no active organization': [
    (clerk) => clerk.v2('user_ada'),
    { organizations: ['acme'], manages: ['acme'], active: [], self: ['ada'] },
  ],
  'ex-member, the token still says admin': [
    (clerk) => clerk.v2('user_dora', { organization: 'org_acme', role: 'admin' }),
    { ...NOTHING, self: ['dora'] },
  ],
  'rejoined as member, the token still says admin': [
    (clerk) => clerk.v2('user_emil', { organization: 'org_acme', role: 'admin' }),
    member('emil'),
  ],
  'other tenant': [
    (clerk) => clerk.v2('user_cleo', { organization: 'org_other', role: 'admin' }),
    { organizations: ['other'], manages: ['other'], active: ['other'], self: ['cleo'] },
  ],
  'other tenant, version 2 with an org_id': [
    (clerk) => clerk.v2('user_cleo', { claims: { org_id: 'org_other', org_role: 'org:admin' } }),
    { organizations: ['other'], manages: ['other'], active: [], self: ['cleo'] },
  ],
  'banned': [(clerk) => clerk.v2('user_finn', { organization: 'org_acme', role: 'admin' }), NOTHING],
  'deprovisioned': [(clerk) => clerk.v2('user_gala', { organization: 'org_acme', role: 'admin' }), NOTHING],
  'deleted user': [(clerk) => clerk.v2('user_hugo', { organization: 'org_acme', role: 'admin' }), NOTHING],
  'of a deleted organization': [
    (clerk) => clerk.v2('user_iris', { organization: 'org_gone', role: 'admin' }),
    { ...NOTHING, self: ['iris'] },
  ],
  'of no organization': [(clerk) => clerk.v2('user_jan'), { ...NOTHING, self: ['jan'] }],
  'never heard of': [(clerk) => clerk.v2('user_nobody', { organization: 'org_acme', role: 'admin' }), NOTHING],
  'pending session': [
    (clerk) => clerk.v2('user_ada', { organization: 'org_acme', role: 'admin', claims: { sts: 'pending' } }),
    NOTHING,
  ],
  'expired token': [
    (clerk) => clerk.v2('user_ada', { organization: 'org_acme', claims: { iat: Math.floor(Date.now() / 1000) - 300 } }),
    { error: '401 PGRST301' },
  ],
  'token without a role claim': [
    (clerk) => clerk.v2('user_ada', { organization: 'org_acme', claims: { role: undefined } }),
    ANON,
  ],
  'token with a role that does not exist': [
    (clerk) => clerk.v2('user_ada', { organization: 'org_acme', claims: { role: 'org:admin' } }),
    { error: '400 22023' },
  ],
  'forged signature': [(clerk) => clerk.forged('user_ada'), { error: '401 PGRST301' }],
}
