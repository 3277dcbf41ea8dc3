//! Values of the component model as JSON, and back by their type. Pure.

use serde_json::{Map, Number, Value, json};
use wasmtime::component::{Type, Val};

/// Input that does not fit.
#[derive(Debug)]
pub(super) struct InputError {
    pub(super) at: String,
    pub(super) reason: String,
}

/// A value as JSON. Handles are secrets.
pub(super) fn to_json(value: &Val) -> Value {
    match value {
        Val::Bool(it) => json!(it),
        Val::S8(it) => json!(it),
        Val::U8(it) => json!(it),
        Val::S16(it) => json!(it),
        Val::U16(it) => json!(it),
        Val::S32(it) => json!(it),
        Val::U32(it) => json!(it),
        Val::S64(it) => json!(it),
        Val::U64(it) => json!(it),
        Val::Float32(it) => float(f64::from(*it)),
        Val::Float64(it) => float(*it),
        Val::Char(it) => json!(it),
        Val::String(it) => json!(it),
        Val::List(list) | Val::FixedLengthList(list) | Val::Tuple(list) => bytes(list).unwrap_or_else(|| array(list)),
        Val::Map(entries) => {
            Value::Array(entries.iter().map(|(key, value)| json!([to_json(key), to_json(value)])).collect())
        }
        Val::Record(fields) => {
            Value::Object(fields.iter().map(|(name, value)| (name.clone(), to_json(value))).collect())
        }
        Val::Variant(name, None) | Val::Enum(name) => json!(name),
        Val::Variant(name, Some(value)) => one(name, to_json(value)),
        Val::Option(Some(value)) => to_json(value),
        Val::Result(Ok(value)) => one("ok", value.as_deref().map_or(Value::Null, to_json)),
        Val::Result(Err(value)) => one("err", value.as_deref().map_or(Value::Null, to_json)),
        Val::Flags(names) => json!(names),
        Val::Resource(_) => json!("[secret]"),
        Val::Option(None) | Val::Future(_) | Val::Stream(_) | Val::ErrorContext(_) => Value::Null,
    }
}

fn one(name: &str, value: Value) -> Value {
    Value::Object(Map::from_iter([(name.to_owned(), value)]))
}

fn array(list: &[Val]) -> Value {
    Value::Array(list.iter().map(to_json).collect())
}

fn float(it: f64) -> Value {
    Number::from_f64(it).map_or_else(|| json!(it.to_string()), Value::Number)
}

/// Bytes as text where they are text.
fn bytes(list: &[Val]) -> Option<Value> {
    if list.is_empty() {
        return None;
    }
    let bytes: Option<Vec<u8>> =
        list.iter().map(|value| if let Val::U8(byte) = value { Some(*byte) } else { None }).collect();
    Some(match String::from_utf8(bytes?) {
        Ok(text) => json!(text),
        Err(error) => json!({ "hex": hex::encode(error.as_bytes()) }),
    })
}

/// JSON as a value of this type. `at` says where it stands.
pub(super) fn from_json(ty: &Type, value: &Value, at: &str) -> Result<Val, InputError> {
    let refuse = |reason: String| Err(InputError { at: at.to_owned(), reason });
    let expected = |what: &str| refuse(format!("{what} is expected, not {}", shown(value)));
    Ok(match ty {
        Type::Bool => match value {
            Value::Bool(it) => Val::Bool(*it),
            _ => return expected("true or false"),
        },
        Type::S8 => Val::S8(integer(value, at)?),
        Type::U8 => Val::U8(integer(value, at)?),
        Type::S16 => Val::S16(integer(value, at)?),
        Type::U16 => Val::U16(integer(value, at)?),
        Type::S32 => Val::S32(integer(value, at)?),
        Type::U32 => Val::U32(integer(value, at)?),
        Type::S64 => Val::S64(integer(value, at)?),
        Type::U64 => Val::U64(integer(value, at)?),
        Type::Float32 | Type::Float64 => match value.as_f64() {
            Some(it) if matches!(ty, Type::Float32) => Val::Float32(it as f32),
            Some(it) => Val::Float64(it),
            None => return expected("a number"),
        },
        Type::Char => match value.as_str().map(|text| text.chars().collect::<Vec<_>>()).as_deref() {
            Some([it]) => Val::Char(*it),
            _ => return expected("one character"),
        },
        Type::String => match value.as_str() {
            Some(text) => Val::String(text.to_owned()),
            None => return expected("a text"),
        },
        Type::List(list) => {
            if matches!(list.ty(), Type::U8)
                && let Some(bytes) = as_bytes(value)
            {
                return Ok(Val::List(bytes.into_iter().map(Val::U8).collect()));
            }
            let Some(items) = value.as_array() else { return expected("a list") };
            let ty = list.ty();
            let convert = |(index, item)| from_json(&ty, item, &format!("{at}[{index}]"));
            Val::List(items.iter().enumerate().map(convert).collect::<Result<_, _>>()?)
        }
        Type::Record(record) => {
            let Some(object) = value.as_object() else { return expected("an object") };
            let fields: Vec<_> = record.fields().map(|field| (field.name.to_owned(), field.ty)).collect();
            if let Some(unknown) = object.keys().find(|key| !fields.iter().any(|(name, _)| name == *key)) {
                let names: Vec<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
                return refuse(format!("no field '{unknown}'; there are: {}", names.join(", ")));
            }
            let convert = |(name, ty): (String, Type)| {
                let field = object.get(&name).unwrap_or(&Value::Null);
                let value = from_json(&ty, field, &format!("{at}.{name}"))?;
                Ok((name, value))
            };
            Val::Record(fields.into_iter().map(convert).collect::<Result<_, _>>()?)
        }
        Type::Tuple(tuple) => {
            let types: Vec<Type> = tuple.types().collect();
            let Some(items) = value.as_array().filter(|items| items.len() == types.len()) else {
                return expected(&format!("a list of {}", types.len()));
            };
            let pairs = types.iter().zip(items).enumerate();
            let convert = |(index, (ty, item))| from_json(ty, item, &format!("{at}[{index}]"));
            Val::Tuple(pairs.map(convert).collect::<Result<_, _>>()?)
        }
        Type::Variant(variant) => {
            let cases: Vec<(String, Option<Type>)> =
                variant.cases().map(|case| (case.name.to_owned(), case.ty)).collect();
            let (name, payload) = match (value, value.as_object().map(|object| object.iter().collect::<Vec<_>>())) {
                (Value::String(name), _) => (name.as_str(), &Value::Null),
                (_, Some(entries)) if entries.len() == 1 => (entries[0].0.as_str(), entries[0].1),
                _ => return expected(&format!("one of {}", names(&cases))),
            };
            match cases.iter().find(|(case, _)| case == name) {
                None => return refuse(format!("no case '{name}'; there are: {}", names(&cases))),
                Some((_, None)) => Val::Variant(name.to_owned(), None),
                Some((_, Some(ty))) => {
                    let payload = from_json(ty, payload, &format!("{at}.{name}"))?;
                    Val::Variant(name.to_owned(), Some(Box::new(payload)))
                }
            }
        }
        Type::Enum(cases) => {
            let known: Vec<&str> = cases.names().collect();
            match value.as_str().filter(|name| known.contains(name)) {
                Some(name) => Val::Enum(name.to_owned()),
                None => return expected(&format!("one of {}", known.join(", "))),
            }
        }
        Type::Option(option) => match value {
            Value::Null => Val::Option(None),
            value => Val::Option(Some(Box::new(from_json(&option.ty(), value, at)?))),
        },
        Type::Flags(flags) => {
            let known: Vec<&str> = flags.names().collect();
            let given: Option<Vec<&str>> = value.as_array().and_then(|items| items.iter().map(Value::as_str).collect());
            match given.filter(|given| given.iter().all(|name| known.contains(name))) {
                Some(given) => Val::Flags(given.into_iter().map(ToOwned::to_owned).collect()),
                None => return expected(&format!("a list of {}", known.join(", "))),
            }
        }
        Type::Map(_)
        | Type::Result(_)
        | Type::Own(_)
        | Type::Borrow(_)
        | Type::Future(_)
        | Type::Stream(_)
        | Type::ErrorContext
        | Type::FixedLengthList(_) => return refuse("values of this type cannot be given as JSON".into()),
    })
}

fn names(cases: &[(String, Option<Type>)]) -> String {
    cases.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
}

fn integer<T: TryFrom<i128>>(value: &Value, at: &str) -> Result<T, InputError> {
    let number = value.as_u64().map(i128::from).or_else(|| value.as_i64().map(i128::from));
    number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| InputError {
        at: at.to_owned(),
        reason: format!("a whole number of {} bytes is expected, not {}", size_of::<T>(), shown(value)),
    })
}

fn as_bytes(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::String(text) => Some(text.as_bytes().to_vec()),
        Value::Object(object) if object.len() == 1 => hex::decode(object.get("hex")?.as_str()?).ok(),
        _ => None,
    }
}

/// Enough of a value to recognise it.
fn shown(value: &Value) -> String {
    if value.is_null() {
        return "nothing".into();
    }
    let text = value.to_string();
    let cut: String = text.chars().take(40).collect();
    if cut.len() < text.len() { format!("{cut}…") } else { text }
}
