// A Clerk that sends webhooks: bodies with the fields that real ones have, signed as Svix signs, posted to the real endpoint.

import { randomBytes } from 'node:crypto'
import { Webhook } from 'svix'

export const SIGNING_SECRET = `whsec_${Buffer.from('tests sign with this one').toString('base64')}`

const IMAGE = 'https://img.clerk.com/eyJ0eXBlIjoiZGVmYXVsdCJ9'
const START = 1_760_000_000_000

export class Clerk {
  #webhook = new Webhook(SIGNING_SECRET)
  #now = START
  #users = new Map()
  #organizations = new Map()

  constructor(endpoint) {
    this.endpoint = endpoint
  }

  /** Posts one event a second later than the last, and wants it to be durable: 204. */
  async send(type, data) {
    this.#now += 1_000
    const body = JSON.stringify({
      data,
      event_attributes: { http_request: { client_ip: '203.0.113.7', user_agent: 'Mozilla/5.0' } },
      instance_id: 'ins_1',
      object: 'event',
      timestamp: this.#now,
      type,
    })
    const id = `msg_${randomBytes(12).toString('hex')}`
    const sentAt = new Date()
    const answer = await fetch(this.endpoint, {
      method: 'POST',
      body,
      headers: {
        'content-type': 'application/json',
        'svix-id': id,
        'svix-timestamp': String(Math.floor(sentAt.getTime() / 1000)),
        'svix-signature': this.#webhook.sign(id, sentAt, body),
      },
    })
    if (answer.status !== 204) throw new Error(`${type} was answered ${answer.status}: ${await answer.text()}`)
    return answer.headers.get('clerk-sync-outcome')
  }

  user(name, changes = {}) {
    const id = `user_${name}`
    const known = this.#users.has(id)
    const user = {
      object: 'user',
      id,
      first_name: name[0].toUpperCase() + name.slice(1),
      last_name: 'Example',
      username: null,
      image_url: IMAGE,
      has_image: false,
      primary_email_address_id: `idn_${name}`,
      email_addresses: [
        { object: 'email_address', id: `idn_${name}`, email_address: `${name}@example.com`, verification: { status: 'verified', strategy: 'email_code' } },
      ],
      primary_phone_number_id: null,
      phone_numbers: [],
      external_id: null,
      banned: false,
      locked: false,
      deprovisioned: false,
      public_metadata: {},
      private_metadata: {},
      unsafe_metadata: {},
      created_at: START,
      updated_at: this.#now,
      ...changes,
    }
    this.#users.set(id, user)
    return this.send(known ? 'user.updated' : 'user.created', user)
  }

  organization(name) {
    const organization = {
      object: 'organization',
      id: `org_${name}`,
      name,
      slug: name,
      image_url: IMAGE,
      has_image: false,
      max_allowed_memberships: 5,
      public_metadata: {},
      created_at: START,
      updated_at: this.#now,
    }
    this.#organizations.set(organization.id, organization)
    return this.send('organization.created', { ...organization, private_metadata: {}, created_by: 'user_ada' })
  }

  membership(id, organization, user, role, { event = 'created', created_at = this.#now } = {}) {
    const { first_name, last_name, image_url, has_image, username, banned, deprovisioned } = this.#users.get(user)
    return this.send(`organizationMembership.${event}`, {
      object: 'organization_membership',
      id,
      organization: this.#organizations.get(organization),
      public_user_data: { user_id: user, identifier: `${user}@example.com`, first_name, last_name, image_url, has_image, username, banned, deprovisioned },
      role,
      permissions: ['org:sys_memberships:read', ...(role === 'org:admin' ? ['org:sys_memberships:manage'] : [])],
      public_metadata: {},
      private_metadata: {},
      created_at,
      updated_at: this.#now,
    })
  }

  deleted(object, id) {
    return this.send(`${object}.deleted`, { object, id, deleted: true })
  }
}
