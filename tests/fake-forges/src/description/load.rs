//! From a published document, OpenAPI 3.0 (what `node/extract.mjs` kept of it) or Swagger 2.0, to a [`Description`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;

use serde_json::{Map, Value, json};

use super::path::Template;
use super::{Description, Operation, Parameter, Place, RequestBody};

const METHODS: [&str; 5] = ["get", "put", "post", "patch", "delete"];

impl Description {
    /// From an OpenAPI 3.0 document.
    pub(crate) fn from_openapi(document: &Value) -> Self {
        let mut operations = Vec::new();
        for (path, method, operation) in each_operation(document) {
            let resolved: Vec<&Value> = list(&operation["parameters"]).map(|entry| resolve(document, entry)).collect();
            let many =
                |name: &str| resolved.iter().any(|known| known["name"] == name && known["x-multi-segment"] == true);
            let parameters = resolved.iter().filter_map(|entry| parameter(entry, convert(&entry["schema"]))).collect();
            let body = operation.get("requestBody").map(|body| resolve(document, body)).map(|body| RequestBody {
                required: body["required"] == true,
                schema: convert(&body["content"]["application/json"]["schema"]),
            });
            let responses = statuses(operation, |response| {
                let json = resolve(document, response).get("content")?.get("application/json")?;
                json.get("schema").map(convert)
            });
            operations.push(Operation {
                method: method.to_uppercase(),
                template: Template::new(path, many),
                parameters,
                body,
                responses,
            });
        }
        let components = &document["components"];
        let converted =
            |part: &Value| part.as_object().into_iter().flatten().map(|(n, s)| (n.clone(), convert(s))).collect();
        Self {
            operations,
            known: list(&document["known"]).filter_map(Value::as_str).map(str::to_owned).collect(),
            definitions: converted(&components["schemas"]),
            examples: object(&components["examples"])
                .map(|(name, entry)| (name.clone(), entry["value"].clone()))
                .collect(),
            webhooks: converted(&document["x-webhooks"]),
            silent_about_null: false,
            compiled: Mutex::new(HashMap::new()),
        }
    }

    /// From a Swagger 2.0 document. Paths keep the base path.
    pub(crate) fn from_swagger(document: &Value) -> Self {
        let base = document["basePath"].as_str().unwrap_or("");
        let mut operations = Vec::new();
        let mut known = BTreeSet::new();
        for (path, method, operation) in each_operation(document) {
            // `{sha}.{diffType}` and the like: two parameters in a segment.
            if path.contains("}.") {
                continue;
            }
            let all: Vec<&Value> = list(&operation["parameters"]).collect();
            let parameters = all.iter().filter_map(|entry| parameter(entry, convert(entry))).collect();
            let body = all.iter().find(|entry| entry["in"] == "body").map(|entry| RequestBody {
                // The forge marks no body as required, but binds an empty one as an error.
                required: true,
                schema: convert(&entry["schema"]),
            });
            let responses = statuses(operation, |response| resolve(document, response).get("schema").map(convert));
            // Routed with a wildcard at the end.
            let many = |name: &str| {
                path.ends_with(&format!("/branches/{{{name}}}")) || path.ends_with(&format!("/refs/{{{name}}}"))
            };
            let full = format!("{base}{path}");
            known.insert(format!("{} {full}", method.to_uppercase()));
            operations.push(Operation {
                method: method.to_uppercase(),
                template: Template::new(&full, many),
                parameters,
                body,
                responses,
            });
        }
        Self {
            operations,
            known,
            definitions: object(&document["definitions"])
                .map(|(name, schema)| (name.clone(), convert(schema)))
                .collect(),
            examples: Map::new(),
            webhooks: Map::new(),
            silent_about_null: true,
            compiled: Mutex::new(HashMap::new()),
        }
    }
}

fn each_operation(document: &Value) -> impl Iterator<Item = (&String, &String, &Value)> {
    object(&document["paths"]).flat_map(|(path, item)| {
        object(item)
            .filter(|(method, _)| METHODS.contains(&method.as_str()))
            .map(move |(method, operation)| (path, method, operation))
    })
}

fn object(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Follows a reference to a parameter, a response or a body.
fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value.get("$ref").and_then(Value::as_str) {
        Some(target) => document
            .pointer(target.trim_start_matches('#'))
            .unwrap_or_else(|| panic!("the description refers to {target}, which it does not contain")),
        None => value,
    }
}

fn parameter(entry: &Value, schema: Value) -> Option<Parameter> {
    let place = match entry["in"].as_str()? {
        "path" => Place::Path,
        "query" => Place::Query,
        _ => return None,
    };
    // In Swagger 2.0 the type stands beside the name.
    let schema = match schema {
        Value::Object(mut members) => {
            for not_schema in ["name", "in", "required", "collectionFormat"] {
                members.remove(not_schema);
            }
            Value::Object(members)
        }
        other => other,
    };
    Some(Parameter { name: entry["name"].as_str()?.to_owned(), place, required: entry["required"] == true, schema })
}

fn statuses(operation: &Value, schema: impl Fn(&Value) -> Option<Value>) -> BTreeMap<u16, Option<Value>> {
    object(&operation["responses"])
        .filter_map(|(status, response)| Some((status.parse().ok()?, schema(response))))
        .collect()
}

/// A schema in the form of JSON Schema, draft 4, without what only people read.
fn convert(schema: &Value) -> Value {
    let Some(members) = schema.as_object() else { return schema.clone() };
    if let Some(target) = members.get("$ref").and_then(Value::as_str) {
        let name = target.rsplit('/').next().unwrap_or(target);
        let converted = json!({ "$ref": format!("#/definitions/{name}") });
        return if members.get("nullable") == Some(&Value::Bool(true)) { or_null(converted) } else { converted };
    }
    let mut converted = Map::new();
    for (name, member) in members {
        let value = match name.as_str() {
            "description" | "title" | "example" | "examples" | "default" | "deprecated" | "discriminator"
            | "externalDocs" | "nullable" | "readOnly" | "xml" => continue,
            extension if extension.starts_with("x-") => continue,
            "properties" | "patternProperties" => {
                Value::Object(object(member).map(|(name, schema)| (name.clone(), convert(schema))).collect())
            }
            "allOf" | "anyOf" | "oneOf" => Value::Array(list(member).map(convert).collect()),
            "items" | "not" | "additionalProperties" => convert(member),
            // Needs at least one name in draft 4.
            "required" if member.as_array().is_some_and(Vec::is_empty) => continue,
            _ => member.clone(),
        };
        converted.insert(name.clone(), value);
    }
    let converted = Value::Object(converted);
    if members.get("nullable") == Some(&Value::Bool(true)) { or_null(converted) } else { converted }
}

fn or_null(schema: Value) -> Value {
    json!({ "anyOf": [schema, { "type": "null" }] })
}
