// Stands in for Clerk's library in the browser, which a test has none of: `useAuth` gives a token getter, and no more.

import { registerHooks } from 'node:module'

let getToken

registerHooks({
  resolve: (specifier, context, next) =>
    specifier === '@clerk/nextjs' ? { url: 'data:text/javascript,export const useAuth = () => globalThis.clerkAuth', shortCircuit: true } : next(specifier, context),
})

/** Signs somebody in: `tokens` answers what Clerk would be asked for. */
export function signIn(tokens) {
  getToken = tokens
  globalThis.clerkAuth = { getToken: (...args) => getToken(...args) }
}
