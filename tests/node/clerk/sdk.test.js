// The official SDK reads the simulated Clerk as it reads the real one.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { createClerkClient } from "@clerk/backend";
import { simulate } from "./simulated.js";

const USERS = 1_203;
const ORGANIZATIONS = 7;
const MEMBERSHIPS = 61;

let simulated;
let clerk;

before(async () => {
  const population = { users: USERS, organizations: ORGANIZATIONS, memberships: MEMBERSHIPS, tie: 40 };
  simulated = await simulate(...Object.entries(population).flatMap(([name, count]) => [`--${name}`, `${count}`]));
  clerk = createClerkClient({ secretKey: simulated.secretKey, apiUrl: simulated.url });
});
after(() => simulated?.stop());

/** All pages of a list, by offset. */
async function all(list, limit = 500) {
  const rows = [];
  for (;;) {
    const { data, totalCount } = await list({ limit, offset: rows.length });
    rows.push(...data);
    if (data.length === 0) {
      assert.equal(rows.length, totalCount);
      assert.equal(new Set(rows.map((row) => row.id)).size, totalCount, "each row once");
      return rows;
    }
  }
}

test("users are listed, paged and counted", async () => {
  const users = await all((page) => clerk.users.getUserList(page));
  assert.equal(users.length, USERS);
  assert.equal(await clerk.users.getCount(), USERS);
  assert.ok(users.every((user, index) => index === 0 || users[index - 1].createdAt >= user.createdAt), "newest first");
  const oldest = await clerk.users.getUserList({ orderBy: "+created_at", limit: 1 });
  assert.equal(oldest.data[0].createdAt, users.at(-1).createdAt, "a plus sign arrives as one");
  assert.equal((await clerk.users.getUserList()).data.length, 10);
});

test("a user is read as the SDK models one", async () => {
  const { data } = await clerk.users.getUserList({ limit: 50 });
  for (const user of data) {
    const read = await clerk.users.getUser(user.id);
    assert.deepEqual(read.raw, user.raw);
    assert.equal(read.primaryEmailAddress.id, read.primaryEmailAddressId);
    assert.equal(read.primaryEmailAddress.verification.status, "verified");
    assert.equal(read.banned, false);
    assert.equal(read.fullName, `${read.firstName} ${read.lastName}`);
  }
  assert.ok(data.some((user) => user.emailAddresses[0].id !== user.primaryEmailAddressId), "the first is not always it");
});

test("users are asked for by id, up to a hundred", async () => {
  const { data } = await clerk.users.getUserList({ limit: 100 });
  const ids = data.map((user) => user.id);
  const found = await clerk.users.getUserList({ userId: ids, limit: 100 });
  assert.deepEqual(found.data.map((user) => user.id), ids);
  assert.equal(found.totalCount, 100);
});

test("organizations are listed and counted, and found by id and slug", async () => {
  const organizations = await all((page) => clerk.organizations.getOrganizationList(page), 3);
  assert.equal(organizations.length, ORGANIZATIONS);
  const counted = await clerk.organizations.getOrganizationList({ includeMembersCount: true, orderBy: "name" });
  assert.equal(counted.data.reduce((sum, organization) => sum + organization.membersCount, 0), MEMBERSHIPS);
  assert.deepEqual(counted.data.map(({ name }) => name), organizations.map(({ name }) => name).toSorted());
  const [{ id, slug }] = organizations;
  assert.equal((await clerk.organizations.getOrganization({ organizationId: id })).slug, slug);
  assert.equal((await clerk.organizations.getOrganization({ slug })).id, id);
});

test("memberships are the same by instance, by organization and by user", async () => {
  const { data } = await clerk.organizations.getInstanceOrganizationMembershipList({ limit: 500 });
  assert.equal(data.length, MEMBERSHIPS);
  const byOrganization = [];
  for (const { id: organizationId } of (await clerk.organizations.getOrganizationList()).data) {
    const list = (page) => clerk.organizations.getOrganizationMembershipList({ organizationId, ...page });
    byOrganization.push(...(await all(list, 4)));
  }
  const ids = (memberships) => memberships.map(({ id }) => id).toSorted();
  assert.deepEqual(ids(byOrganization), ids(data));
  const { publicUserData, organization } = data[0];
  const mine = await clerk.users.getOrganizationMembershipList({ userId: publicUserData.userId });
  assert.ok(mine.data.some((membership) => membership.organization.id === organization.id));
  const one = await clerk.organizations.getOrganizationMembershipList({
    organizationId: organization.id,
    userId: [publicUserData.userId],
  });
  assert.deepEqual(ids(one.data), [data[0].id]);
});

test("the instance tells its id", async () => {
  const instance = await clerk.instance.get();
  assert.match(instance.id, /^ins_/);
  assert.equal(instance.environmentType, "production");
});

test("errors are read with status, code, parameter and trace id", async () => {
  const thrown = async (promise) => {
    try {
      await promise;
    } catch (error) {
      return error;
    }
    return assert.fail("it was answered");
  };
  const gone = await thrown(clerk.users.getUser("user_gone"));
  assert.equal(gone.status, 404);
  assert.equal(gone.errors[0].code, "resource_not_found");
  assert.match(gone.clerkTraceId, /^[0-9a-f]{32}$/);

  const beyond = await thrown(clerk.users.getUserList({ limit: 501 }));
  assert.equal(beyond.status, 422);
  assert.equal(beyond.errors[0].code, "form_param_value_invalid");
  assert.equal(beyond.errors[0].meta.paramName, "limit");

  const stranger = createClerkClient({ secretKey: "sk_test_of_a_stranger", apiUrl: simulated.url });
  const refused = await thrown(stranger.users.getCount());
  assert.equal(refused.status, 401);
  assert.equal(refused.errors[0].code, "clerk_key_invalid");
});

test("a client that calls too often learns how long to wait", async () => {
  const busy = await simulate("--users", "1", "--rate-limit", "3");
  try {
    const client = createClerkClient({ secretKey: busy.secretKey, apiUrl: busy.url });
    for (let call = 0; call < 3; call += 1) assert.equal(await client.users.getCount(), 1);
    await assert.rejects(client.users.getCount(), (error) => {
      assert.equal(error.status, 429);
      assert.ok(error.retryAfter >= 1 && error.retryAfter <= 10, `${error.retryAfter}`);
      return true;
    });
  } finally {
    await busy.stop();
  }
});
