// Reduces the description that a Forgejo or Gitea publishes about its API (Swagger 2.0, /swagger.v1.json of any instance) to
// what the fake holds requests against: paths, methods, parameters, fields and types. What only people read is left out.
//   node reduce.mjs swagger.v1.json > ../published/forgejo-16.json
import { readFileSync } from "node:fs";

const document = JSON.parse(readFileSync(process.argv[2]));
const methods = /^(get|put|post|patch|delete)$/;
const prose = new Set(["description", "title", "summary", "example", "examples", "externalDocs", "default"]);

// Of `properties` the names are fields of the API and no keywords.
function facts(schema) {
  if (Array.isArray(schema)) return schema.map(facts);
  if (schema === null || typeof schema !== "object") return schema;
  const kept = Object.entries(schema).filter(([key]) => !prose.has(key) && !key.startsWith("x-"));
  return Object.fromEntries(kept.map(([key, value]) => [
    key,
    key === "properties" ? Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, facts(inner)])) : facts(value),
  ]));
}
const each = (object, change) => Object.fromEntries(Object.entries(object ?? {}).map(([key, value]) => [key, change(value)]));
const response = ({ $ref, schema }) => ($ref ? { $ref } : schema ? { schema: facts(schema) } : {});
const operation = ({ parameters, responses }) => ({ parameters: facts(parameters ?? []), responses: each(responses, response) });
const path = (item) =>
  Object.fromEntries(Object.entries(item).filter(([key]) => methods.test(key)).map(([key, value]) => [key, operation(value)]));

const reduced = {
  swagger: document.swagger,
  basePath: document.basePath,
  paths: each(document.paths, path),
  definitions: each(document.definitions, facts),
  responses: each(document.responses, response),
};

// A line for each path, definition and response, so that the next version shows as a readable difference.
const section = (object) => `{\n${Object.entries(object).map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`).join(",\n")}\n}`;
process.stdout.write(`{\n${Object.entries(reduced).map(([key, value]) =>
  `${JSON.stringify(key)}:${typeof value === "object" ? section(value) : JSON.stringify(value)}`).join(",\n")}\n}\n`);
