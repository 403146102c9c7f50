// Tokens as Clerk issues them, and the keys that Supabase checks them with.

import { SignJWT, exportJWK, generateKeyPair } from 'jose'

const ISSUER = 'https://clerk.example.com'
const KEY_ID = 'ins_1'

/** The project's old JWT secret, which Clerk's template signs with. */
const SECRET = new TextEncoder().encode('a secret of at least thirty-two characters')

export async function issuer() {
  const session = await generateKeyPair('RS256')
  const forger = await generateKeyPair('RS256')
  const sign = (claims, key, algorithm) =>
    new SignJWT(claims)
      .setProtectedHeader({ alg: algorithm, typ: 'JWT', ...(algorithm === 'RS256' && { kid: KEY_ID }) })
      .setIssuer(ISSUER)
      .setIssuedAt(claims.iat)
      .setNotBefore((claims.iat ?? now()) - 10)
      .setExpirationTime((claims.iat ?? now()) + 60)
      .sign(key)
  const common = (user) => ({ sub: user, sid: `sess_${user}`, azp: 'https://app.example.com', fva: [3, -1] })
  const published = { ...(await exportJWK(session.publicKey)), kid: KEY_ID, alg: 'RS256', use: 'sig' }
  return {
    /** What Clerk publishes. */
    clerkKeys: { keys: [published] },
    /** What the platform builds from it and the project's secret. */
    jwks: { keys: [published, { kty: 'oct', k: Buffer.from(SECRET).toString('base64url'), alg: 'HS256' }] },
    /** A session token of version 2: the active organization is in `o`, its role without the prefix. */
    v2: (user, { organization, role = 'member', claims } = {}) =>
      sign(
        {
          ...common(user),
          role: 'authenticated',
          v: 2,
          jti: 'f1f5b6',
          sts: 'active',
          pla: 'u:free',
          ...(organization && { o: { id: organization, slg: 'acme', rol: role } }),
          ...claims,
        },
        session.privateKey,
        'RS256',
      ),
    /** A session token of version 1, deprecated in April 2025. */
    v1: (user, { organization, role = 'member' } = {}) =>
      sign(
        {
          ...common(user),
          role: 'authenticated',
          ...(organization && { org_id: organization, org_slug: 'acme', org_role: `org:${role}`, org_permissions: [] }),
        },
        session.privateKey,
        'RS256',
      ),
    /** A token of the JWT template "supabase": only the claims that the template names. */
    template: (user, { organization, role = 'member' } = {}) =>
      sign(
        {
          azp: 'https://app.example.com',
          jti: '06f5b6',
          sub: user,
          aud: 'authenticated',
          role: 'authenticated',
          email: `${user}@example.com`,
          app_metadata: {},
          user_metadata: {},
          org_id: organization ?? null,
          org_role: organization ? `org:${role}` : null,
        },
        SECRET,
        'HS256',
      ),
    forged: (user) => sign({ ...common(user), role: 'authenticated', v: 2 }, forger.privateKey, 'RS256'),
  }
}

const now = () => Math.floor(Date.now() / 1000)
