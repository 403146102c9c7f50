// What the simulated Clerk answers is valid by Clerk's own OpenAPI description, which is not part of this repository.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import Ajv from "ajv";
import { parse } from "yaml";
import { simulate } from "./simulated.js";

const VERSION = "2026-05-12";
const extra = process.env.CLERK_SYNC_EXTRA_FIXTURES;
const skip = extra ? false : "CLERK_SYNC_EXTRA_FIXTURES is not set: Clerk's OpenAPI description is not at hand";

let description;
let ajv;
let simulated;

before(async () => {
  if (skip) return;
  description = jsonSchema(parse(readFileSync(join(extra, "../reference/openapi/bapi", `${VERSION}.yml`), "utf8")));
  // Formats are about numbers here, and discriminators about a field that real traffic lacks.
  ajv = new Ajv({ strict: false, validateFormats: false, allErrors: true });
  ajv.addSchema(description, "bapi");
  simulated = await simulate("--users", "60", "--organizations", "3", "--memberships", "20", "--tie", "9");
});
after(() => simulated?.stop());

/** OpenAPI 3.0 says `nullable` where JSON Schema has a type of null. */
function jsonSchema(value) {
  if (Array.isArray(value)) return value.map(jsonSchema);
  if (value === null || typeof value !== "object") return value;
  const { nullable, ...rest } = value;
  const schema = Object.fromEntries(Object.entries(rest).map(([key, child]) => [key, jsonSchema(child)]));
  return nullable === true ? { anyOf: [{ type: "null" }, schema] } : schema;
}

/** Asks, and holds the answer against what the description says of that operation and status. Returns the body. */
async function valid(operation, path, status = 200, headers = {}) {
  const response = await fetch(`${simulated.url}/v1${path}`, {
    headers: { Authorization: `Bearer ${simulated.secretKey}`, "Clerk-API-Version": VERSION, ...headers },
  });
  assert.equal(response.status, status, path);
  const body = await response.json();
  const { responses } = description.paths[operation].get;
  assert.ok(responses[status], `${operation} does not answer ${status}`);
  const name = responses[status].$ref.split("/").at(-1);
  const pointer = `#/components/responses/${name}/content/application~1json/schema`;
  const validate = ajv.getSchema(`bapi${pointer}`);
  assert.ok(validate, `${operation} ${status} has no schema`);
  assert.ok(validate(body), `${path}: ${JSON.stringify(validate.errors?.slice(0, 5), null, 1)}`);
  return body;
}

test("every answer about users is valid", { skip }, async () => {
  const users = await valid("/users", "/users?limit=60&order_by=%2Bcreated_at");
  assert.equal(users.length, 60);
  await valid("/users", `/users?limit=10&starting_after=${users[9].id}`);
  await valid("/users/count", "/users/count");
  await valid("/users/{user_id}", `/users/${users[0].id}`);
  const mine = await valid("/users/{user_id}/organization_memberships", `/users/${users[0].id}/organization_memberships`);
  assert.equal(mine.total_count, 1);
});

test("every answer about organizations and memberships is valid", { skip }, async () => {
  const { data } = await valid("/organizations", "/organizations?include_members_count=true");
  assert.equal(data.length, 3);
  await valid("/organizations/{organization_id}", `/organizations/${data[0].slug}`);
  const members = await valid("/organizations/{organization_id}/memberships", `/organizations/${data[0].id}/memberships`);
  assert.ok(members.data.length > 0);
  const memberships = await valid("/organization_memberships", "/organization_memberships?limit=500");
  assert.equal(memberships.data.length, 20);
  await valid("/instance", "/instance");
});

test("every error is valid", { skip }, async () => {
  await valid("/users", "/users?limit=501", 422);
  await valid("/users", "/users?starting_after=user_gone", 422);
  await valid("/users", "/users", 401, { Authorization: "Bearer sk_test_of_a_stranger" });
  await valid("/users", "/users", 400, { "Clerk-API-Version": "2030-01-01" });
  await valid("/users/{user_id}", "/users/user_gone", 404);
  await valid("/organizations/{organization_id}", "/organizations/org_gone", 404);
});

test("the parameters that the description knows are known", { skip }, async () => {
  const values = { array: "x", boolean: "true", integer: "1", string: "x" };
  for (const operation of ["/users", "/users/count", "/organizations", "/organization_memberships"]) {
    for (const parameter of description.paths[operation].get.parameters) {
      const { name, schema } = parameter.$ref ? description.components.parameters[parameter.$ref.split("/").at(-1)] : parameter;
      if (["order_by", "starting_after"].includes(name)) continue;
      await valid(operation, `${operation}?${name}=${values[schema.type]}`);
    }
  }
});
