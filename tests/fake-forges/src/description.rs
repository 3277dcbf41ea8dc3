//! A published API description, made ready to hold requests and answers against it.
//!
//! Start reading at [`Description::check_request`]. OpenAPI 3.0 and Swagger 2.0 become one form in `description/load.rs`;
//! templates are matched in `description/path.rs`; fields that no schema knows are found in `description/unknown.rs`.

mod load;
mod path;
mod unknown;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use jsonschema::error::ValidationErrorKind;
use jsonschema::{Draft, ValidationError, Validator};
use serde_json::{Map, Value, json};

use path::Template;

/// All of one API that the fakes know of.
pub(crate) struct Description {
    operations: Vec<Operation>,
    /// Every operation that is published, `GET /path/{template}`, whether the fakes answer it or not.
    known: BTreeSet<String>,
    /// Named schemas, references between them in the form `#/definitions/name`.
    definitions: Map<String, Value>,
    /// Example bodies by name.
    examples: Map<String, Value>,
    /// Schemas of webhook payloads by name (`pull-request-opened`).
    webhooks: Map<String, Value>,
    /// The description says nothing about null, but the forge answers with it.
    silent_about_null: bool,
    compiled: Mutex<HashMap<String, Arc<Validator>>>,
}

/// One method of one path.
pub(crate) struct Operation {
    method: String,
    template: Template,
    parameters: Vec<Parameter>,
    body: Option<RequestBody>,
    /// By status: the schema of the JSON body, none when there is no body.
    responses: BTreeMap<u16, Option<Value>>,
}

struct Parameter {
    name: String,
    place: Place,
    required: bool,
    schema: Value,
}

#[derive(PartialEq, Eq)]
enum Place {
    Path,
    Query,
}

struct RequestBody {
    required: bool,
    schema: Value,
}

/// The operation that a request means, and the decoded values of the template's parameters.
pub(crate) struct Match<'a> {
    pub(crate) operation: &'a Operation,
    pub(crate) values: BTreeMap<String, String>,
}

impl Operation {
    /// `GET /path/{template}`
    pub(crate) fn name(&self) -> String {
        format!("{} {}", self.method, self.template.text())
    }
}

impl Description {
    /// Which operation a request means. `path` as it was sent, without the query.
    pub(crate) fn find(&self, method: &str, path: &str) -> Result<Match<'_>, String> {
        let mut best: Option<Match<'_>> = None;
        for operation in self.operations.iter().filter(|operation| operation.method == method) {
            let Some(values) = operation.template.matches(path) else { continue };
            let better =
                best.as_ref().is_none_or(|best| operation.template.literals() > best.operation.template.literals());
            if better {
                best = Some(Match { operation, values });
            }
        }
        best.ok_or_else(|| self.why_not(method, path))
    }

    fn why_not(&self, method: &str, path: &str) -> String {
        let published = self.known.iter().find(|known| {
            known.split_once(' ').is_some_and(|(known_method, template)| {
                known_method == method && Template::new(template, |_| false).matches(path).is_some()
            })
        });
        match published {
            Some(known) => {
                format!("the fake does not answer {known} yet (it is published): add it to tests/fake-forges")
            }
            None => format!("no such operation is published: {method} {path}"),
        }
    }

    /// What the description objects to.
    pub(crate) fn check_request(&self, found: &Match<'_>, query: &[(String, String)], body: &[u8]) -> Vec<String> {
        let operation = found.operation;
        let mut objections = Vec::new();
        for parameter in &operation.parameters {
            let values: Vec<&String> = match parameter.place {
                Place::Path => found.values.get(&parameter.name).into_iter().collect(),
                Place::Query => {
                    query.iter().filter(|(name, _)| *name == parameter.name).map(|(_, value)| value).collect()
                }
            };
            if values.is_empty() && parameter.required {
                objections.push(format!("parameter {} is required", parameter.name));
            }
            for value in values {
                if let Err(objection) = self.check_parameter(parameter, value) {
                    objections.push(format!("parameter {}: {objection}", parameter.name));
                }
            }
        }
        for (name, _) in query {
            if !operation.parameters.iter().any(|known| known.place == Place::Query && known.name == *name) {
                objections.push(format!("query parameter {name} does not exist"));
            }
        }
        self.check_body(operation, body, &mut objections);
        objections
    }

    fn check_body(&self, operation: &Operation, body: &[u8], objections: &mut Vec<String>) {
        match &operation.body {
            None if !body.is_empty() => objections.push("this operation takes no body".to_owned()),
            None => {}
            Some(expected) if body.is_empty() && expected.required => objections.push("a body is required".to_owned()),
            Some(_) if body.is_empty() => {}
            Some(expected) => match serde_json::from_slice::<Value>(body) {
                Err(error) => objections.push(format!("the body is no JSON: {error}")),
                Ok(value) => {
                    objections.extend(self.violations_of(
                        &format!("{} request", operation.name()),
                        &expected.schema,
                        &value,
                    ));
                    objections.extend(unknown::fields(&self.definitions, &expected.schema, &value));
                }
            },
        }
    }

    fn check_parameter(&self, parameter: &Parameter, text: &str) -> Result<(), String> {
        let schema = &parameter.schema;
        let item = if schema["type"] == "array" { &schema["items"] } else { schema };
        let value = match item["type"].as_str() {
            Some("integer") => text.parse::<i64>().map(Value::from).map_err(|_| format!("{text} is no integer"))?,
            Some("boolean") => text.parse::<bool>().map(Value::from).map_err(|_| format!("{text} is no boolean"))?,
            _ => Value::from(text),
        };
        let objections = self.violations_of(&format!("parameter {item}"), item, &value);
        if objections.is_empty() { Ok(()) } else { Err(objections.join("; ")) }
    }

    /// What the description objects to in an answer.
    pub(crate) fn check_response(&self, operation: &Operation, status: u16, body: &[u8]) -> Vec<String> {
        let name = operation.name();
        let Some(expected) = operation.responses.get(&status) else {
            // Redirects and many errors are common to all operations and not repeated in each.
            return if status >= 300 { Vec::new() } else { vec![format!("{name} never answers {status}")] };
        };
        let Some(schema) = expected else {
            return if body.is_empty() { Vec::new() } else { vec![format!("{name} answers {status} without a body")] };
        };
        let value: Value = match serde_json::from_slice(body) {
            Ok(value) => value,
            Err(error) => return vec![format!("{name}: the answer is no JSON: {error}")],
        };
        let value = if self.silent_about_null { crate::json::without_nulls(&value) } else { value };
        let mut objections = self.violations_of(&format!("{name} {status}"), schema, &value);
        if self.silent_about_null {
            objections.extend(unknown::fields(&self.definitions, schema, &value));
        }
        objections.into_iter().map(|objection| format!("{name} answered {status}: {objection}")).collect()
    }

    /// What the description objects to in a webhook's payload; `name` like `pull-request-opened`.
    pub(crate) fn check_webhook(&self, name: &str, payload: &Value) -> Vec<String> {
        let schema = self.webhooks.get(name).unwrap_or_else(|| panic!("no webhook {name} is published"));
        self.violations_of(&format!("webhook {name}"), schema, payload)
    }

    /// What a named schema objects to in `value`, unknown fields included.
    pub(crate) fn check_definition(&self, name: &str, value: &Value) -> Vec<String> {
        let schema = json!({ "$ref": format!("#/definitions/{name}") });
        let value = if self.silent_about_null { crate::json::without_nulls(value) } else { value.clone() };
        let mut objections = self.violations_of(&format!("definition {name}"), &schema, &value);
        objections.extend(unknown::fields(&self.definitions, &schema, &value));
        objections
    }

    /// An example body.
    pub(crate) fn example(&self, name: &str) -> Value {
        self.examples.get(name).unwrap_or_else(|| panic!("no example {name} is published")).clone()
    }

    /// The named schema.
    pub(crate) fn definition(&self, name: &str) -> &Value {
        self.definitions.get(name).unwrap_or_else(|| panic!("no schema {name} is published"))
    }

    fn violations_of(&self, key: &str, schema: &Value, value: &Value) -> Vec<String> {
        let validator = self.validator(key, schema);
        let mut sentences = Vec::new();
        validator.iter_errors(value).for_each(|error| explain(&error, &mut sentences));
        sentences
    }

    fn validator(&self, key: &str, schema: &Value) -> Arc<Validator> {
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(validator) = compiled.get(key) {
            return validator.clone();
        }
        let mut needed = Map::new();
        collect(&self.definitions, schema, &mut needed);
        let whole = json!({ "allOf": [schema], "definitions": needed });
        let validator = jsonschema::options()
            .with_draft(Draft::Draft4)
            .should_validate_formats(true)
            .build(&whole)
            .unwrap_or_else(|error| panic!("the schema of {key} does not compile: {error}"));
        let validator = Arc::new(validator);
        compiled.insert(key.to_owned(), validator.clone());
        validator
    }
}

/// Gathers every definition that `schema` leads to.
fn collect(definitions: &Map<String, Value>, schema: &Value, needed: &mut Map<String, Value>) {
    match schema {
        Value::Array(items) => items.iter().for_each(|item| collect(definitions, item, needed)),
        Value::Object(members) => {
            if let Some(name) = reference(schema)
                && !needed.contains_key(name)
            {
                let target = definitions.get(name).unwrap_or_else(|| panic!("no schema {name} is published"));
                needed.insert(name.to_owned(), target.clone());
                collect(definitions, target, needed);
            }
            members.values().for_each(|member| collect(definitions, member, needed));
        }
        _ => {}
    }
}

/// The definition that this schema stands for.
pub(crate) fn reference(schema: &Value) -> Option<&str> {
    schema.get("$ref")?.as_str()?.strip_prefix("#/definitions/")
}

/// Of alternatives, the one that comes nearest explains most.
fn explain(error: &ValidationError<'_>, sentences: &mut Vec<String>) {
    if let ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } = error.kind() {
        let meant = context
            .iter()
            .min_by_key(|errors| errors.len() + errors.iter().filter(|error| is_type(error)).count() * 10);
        if let Some(errors) = meant {
            for error in errors {
                explain(error, sentences);
            }
            return;
        }
    }
    sentences.push(format!("{}: {}", error.instance_path(), short(&error.to_string())));
}

fn is_type(error: &ValidationError<'_>) -> bool {
    matches!(error.kind(), ValidationErrorKind::Type { .. })
}

/// Messages quote the whole value.
fn short(text: &str) -> String {
    const LENGTH_MAX: usize = 300;
    if text.chars().count() <= LENGTH_MAX {
        return text.to_owned();
    }
    let end: String = text.chars().rev().take(LENGTH_MAX / 2).collect::<Vec<_>>().into_iter().rev().collect();
    format!("{} … {end}", text.chars().take(LENGTH_MAX / 2).collect::<String>())
}
