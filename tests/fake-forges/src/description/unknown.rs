//! Fields that a schema does not know. JSON Schema lets them pass, and so a misspelt field would pass silently.

use serde_json::{Map, Value};

use super::reference;

/// A schema that refers to itself is followed as deep as the value goes, and values are at most this deep.
const DEPTH_MAX: usize = 64;

/// One sentence for each field of `value` that `schema` does not name.
pub(super) fn fields(definitions: &Map<String, Value>, schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    walk(definitions, &[schema], value, "", DEPTH_MAX, &mut found);
    found
}

fn walk(
    definitions: &Map<String, Value>,
    schemas: &[&Value],
    value: &Value,
    path: &str,
    depth: usize,
    found: &mut Vec<String>,
) {
    if depth == 0 {
        found.push(format!("{path}: nested too deeply"));
        return;
    }
    let mut all = Vec::new();
    for schema in schemas {
        flatten(definitions, schema, &mut all, DEPTH_MAX);
    }
    match value {
        Value::Object(members) => {
            let open = !all.iter().any(|schema| schema.get("properties").is_some())
                || all.iter().any(|schema| schema.get("additionalProperties").is_some_and(Value::is_object));
            for (name, member) in members {
                let inner: Vec<&Value> = all
                    .iter()
                    .filter_map(|schema| schema.get("properties").and_then(|known| known.get(name)))
                    .collect();
                if !inner.is_empty() {
                    walk(definitions, &inner, member, &format!("{path}/{name}"), depth - 1, found);
                } else if !open {
                    found.push(format!("{path}/{name}: there is no such field"));
                }
            }
        }
        Value::Array(items) => {
            let inner: Vec<&Value> = all.iter().filter_map(|schema| schema.get("items")).collect();
            for (index, item) in items.iter().enumerate() {
                walk(definitions, &inner, item, &format!("{path}/{index}"), depth - 1, found);
            }
        }
        _ => {}
    }
}

/// The schema and all that it is composed of.
fn flatten<'a>(definitions: &'a Map<String, Value>, schema: &'a Value, all: &mut Vec<&'a Value>, depth: usize) {
    if depth == 0 {
        return;
    }
    if let Some(target) = reference(schema).and_then(|name| definitions.get(name)) {
        flatten(definitions, target, all, depth - 1);
    }
    all.push(schema);
    for composition in ["allOf", "anyOf", "oneOf"] {
        for part in schema.get(composition).and_then(Value::as_array).into_iter().flatten() {
            flatten(definitions, part, all, depth - 1);
        }
    }
}
