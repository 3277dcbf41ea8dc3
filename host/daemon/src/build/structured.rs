//! Structured attributes as builders get them: `.attrs.json`, and `.attrs.sh` for what bash can represent. Start at
//! [`files`].

use std::collections::BTreeMap;

use harmonia_nix::store_path::StorePath;
use serde_json::{Map, Value};

use super::export;
use super::json;
use super::rewrite::Rewrites;
use super::{BuildFailure, BuildRequest};

/// The two files: (name, text).
pub(super) fn files(
    request: &BuildRequest,
    attributes: &Map<String, Value>,
    outputs: &BTreeMap<String, StorePath>,
    rewrites: &Rewrites,
) -> Result<Vec<(String, Vec<u8>)>, BuildFailure> {
    let mut attributes = attributes.clone();
    let paths = outputs.iter().map(|(name, path)| (name.clone(), Value::from(path.as_str())));
    attributes.insert("outputs".to_owned(), Value::Object(paths.collect()));
    if let Some(Value::Object(graphs)) = attributes.get("exportReferencesGraph").cloned() {
        for (key, paths) in graphs {
            let paths: Vec<String> = match &paths {
                Value::Array(paths) => paths.iter().filter_map(|path| path.as_str().map(str::to_owned)).collect(),
                Value::String(path) => vec![path.clone()],
                _ => Vec::new(),
            };
            attributes.insert(key, export::described(request, &paths)?);
        }
    }
    let shell = shell(&attributes);
    let json = json::print(&Value::Object(attributes));
    Ok(vec![
        (".attrs.sh".to_owned(), rewrites.apply(shell.as_bytes())),
        (".attrs.json".to_owned(), rewrites.apply(json.as_bytes())),
    ])
}

/// Declarations of all that is a string, a whole number, null, a Boolean, or a list or set of those alone.
fn shell(attributes: &Map<String, Value>) -> String {
    let mut text = String::new();
    let sorted: BTreeMap<&String, &Value> = attributes.iter().collect();
    for (name, value) in sorted {
        if !is_variable(name) {
            continue;
        }
        let declaration = match value {
            Value::Array(values) => values
                .iter()
                .map(|value| simple(value).map(|text| text + " "))
                .collect::<Option<String>>()
                .map(|values| format!("declare -a {name}=({values})\n")),
            Value::Object(values) => {
                let sorted: BTreeMap<&String, &Value> = values.iter().collect();
                sorted
                    .into_iter()
                    .map(|(key, value)| simple(value).map(|text| format!("[{}]={text} ", quoted(key))))
                    .collect::<Option<String>>()
                    .map(|values| format!("declare -A {name}=({values})\n"))
            }
            value => simple(value).map(|value| format!("declare {name}={value}\n")),
        };
        text.extend(declaration);
    }
    text
}

fn is_variable(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn simple(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(quoted(text)),
        // Nix puts whole numbers through a C++ `int`.
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(whole), _, _) => Some((whole as i32).to_string()),
            (_, Some(whole), _) => Some((whole as i32).to_string()),
            (_, _, Some(float)) if (float as f32).ceil().to_bits() == (float as f32).to_bits() => {
                Some((float as i32).to_string())
            }
            _ => None,
        },
        Value::Null => Some("''".to_owned()),
        Value::Bool(flag) => Some(if *flag { "1" } else { "" }.to_owned()),
        Value::Array(_) | Value::Object(_) => None,
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bash_gets_what_it_can_represent() {
        let attributes: Value = serde_json::from_str(
            r#"{"b":true,"no-variable":1,"n":null,"s":"it's","list":[1,"x y",false],"deep":[[1]],
                "set":{"a b":1,"c":2.0},"half":1.5,"big":5000000000}"#,
        )
        .expect("JSON");
        let Value::Object(attributes) = attributes else { panic!("an object") };
        assert_eq!(
            shell(&attributes),
            "declare b=1\ndeclare big=705032704\ndeclare -a list=(1 'x y'  )\ndeclare n=''\ndeclare s='it'\\''s'\n\
             declare -A set=(['a b']=1 ['c']=2 )\n"
        );
    }
}
