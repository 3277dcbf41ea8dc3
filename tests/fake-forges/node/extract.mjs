// Cuts what the fake GitHub needs out of the published packages, so that no test has to parse 13 MB.
// Run by `./dev setup`; writes ../generated/, which is never committed.
import { mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";

const read = (path) => JSON.parse(readFileSync(new URL(path, import.meta.url)));
const api = read("../node_modules/@octokit/openapi/generated/api.github.com.json");
const webhooks = read("../node_modules/@octokit/webhooks-examples/api.github.com/index.json");

// The paths that the fake answers; everything else of the description is only known by name.
const answered = [
  "/app",
  "/app/installations",
  "/app/installations/{installation_id}",
  "/app/installations/{installation_id}/access_tokens",
  "/installation/repositories",
  "/rate_limit",
  "/repos/{owner}/{repo}",
  "/repos/{owner}/{repo}/branches/{branch}",
  "/repos/{owner}/{repo}/check-runs",
  "/repos/{owner}/{repo}/check-runs/{check_run_id}",
  "/repos/{owner}/{repo}/collaborators/{username}/permission",
  "/repos/{owner}/{repo}/commits/{ref}",
  "/repos/{owner}/{repo}/commits/{ref}/check-runs",
  "/repos/{owner}/{repo}/commits/{ref}/status",
  "/repos/{owner}/{repo}/commits/{ref}/statuses",
  "/repos/{owner}/{repo}/git/commits/{commit_sha}",
  "/repos/{owner}/{repo}/git/ref/{ref}",
  "/repos/{owner}/{repo}/installation",
  "/repos/{owner}/{repo}/issues/{issue_number}/comments",
  "/repos/{owner}/{repo}/pulls",
  "/repos/{owner}/{repo}/pulls/{pull_number}",
  "/repos/{owner}/{repo}/statuses/{sha}",
  "/user",
];
const events = new Set([
  "check_run", "check_suite", "create", "delete", "installation", "installation_repositories", "issue_comment",
  "member", "membership", "merge_group", "organization", "ping", "pull_request", "push", "repository",
]);

const kept = { components: {}, "x-webhooks": {} };
const at = (pointer) => pointer.slice(2).split("/").reduce((value, key) => value?.[key], api);

// An account is a user or an enterprise; this one place of the description says "and".
const account = api.paths["/app/installations"].get.responses["200"].content["application/json"].schema.items?.properties?.account;
if (account?.allOf?.[1]?.title === "Enterprise") {
  account.anyOf = account.allOf;
  delete account.allOf;
}

// Keeps everything that `value` refers to, through any number of references.
function keep(value) {
  if (Array.isArray(value)) return value.forEach(keep);
  if (value === null || typeof value !== "object") return;
  if (typeof value.$ref === "string") {
    const [, , kind, name] = value.$ref.split("/");
    kept.components[kind] ??= {};
    if (!(name in kept.components[kind])) {
      const target = at(value.$ref);
      if (target === undefined) throw new Error(`${value.$ref} leads nowhere`);
      kept.components[kind][name] = target;
      keep(target);
    }
  }
  Object.values(value).forEach(keep);
}

kept.paths = Object.fromEntries(answered.map((path) => {
  if (!(path in api.paths)) throw new Error(`${path} is not in the description any more`);
  return [path, api.paths[path]];
}));
keep(kept.paths);
// Of the webhooks only the schema of the body.
for (const [name, { post }] of Object.entries(api["x-webhooks"])) {
  const event = name.replaceAll("-", "_");
  if (![...events].some((known) => event === known || event.startsWith(`${known}_`))) continue;
  const schema = post.requestBody.content["application/json"].schema;
  kept["x-webhooks"][name] = schema;
  keep(schema);
}
kept.known = Object.entries(api.paths).flatMap(([path, item]) =>
  Object.keys(item).filter((key) => /^(get|put|post|patch|delete)$/.test(key)).map((key) => `${key.toUpperCase()} ${path}`));

// What only people read is left out of schemas (of properties, the names are no keywords).
const prose = new Set(["description", "title", "example", "examples", "externalDocs"]);
function prune(schema) {
  if (Array.isArray(schema)) return schema.map(prune);
  if (schema === null || typeof schema !== "object") return schema;
  return Object.fromEntries(Object.entries(schema).filter(([key]) => !prose.has(key)).map(([key, value]) => [
    key,
    key === "properties" ? Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, prune(inner)])) : prune(value),
  ]));
}
for (const part of [kept.components.schemas, kept["x-webhooks"]]) {
  for (const name of Object.keys(part)) part[name] = prune(part[name]);
}

const examples = {};
for (const { name, examples: list } of webhooks) if (events.has(name)) examples[name] = list;

mkdirSync(new URL("../generated/", import.meta.url), { recursive: true });
for (const [name, value] of Object.entries({ "github-api.json": kept, "github-webhooks.json": examples })) {
  // Renamed into place: a test that runs meanwhile sees the old file or the new one.
  const path = new URL(`../generated/${name}`, import.meta.url);
  const temporary = new URL(`../generated/${name}.${process.pid}`, import.meta.url);
  writeFileSync(temporary, JSON.stringify(value));
  renameSync(temporary, path);
}
