//! Small tools for JSON bodies: patching examples with the values of the world.

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Replaces text in every string of `value`, the longest match of `pairs` first where several begin at one place.
pub(crate) fn replace_text(value: &mut Value, pairs: &[(&str, &str)]) {
    match value {
        Value::String(text) => {
            for (from, to) in pairs {
                if text.contains(from) {
                    *text = text.replace(from, to);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| replace_text(item, pairs)),
        Value::Object(members) => members.values_mut().for_each(|member| replace_text(member, pairs)),
        _ => {}
    }
}

/// Sets what `pointer` (`/a/b/0/c`) names; objects on the way must exist, the last member need not.
pub(crate) fn set(value: &mut Value, pointer: &str, new: impl Into<Value>) {
    let (parent, last) = pointer.rsplit_once('/').unwrap_or(("", pointer));
    match value.pointer_mut(parent) {
        Some(Value::Object(members)) => {
            members.insert(last.to_owned(), new.into());
        }
        Some(Value::Array(items)) => {
            let index: usize = last.parse().unwrap_or_else(|_| panic!("{pointer}: no index"));
            items[index] = new.into();
        }
        _ => panic!("there is no {parent} to set {last} in"),
    }
}

/// Sets several members at once.
pub(crate) fn patch<const N: usize>(value: &mut Value, members: [(&str, Value); N]) {
    for (pointer, new) in members {
        set(value, pointer, new);
    }
}

/// Removes a member.
pub(crate) fn remove(value: &mut Value, pointer: &str) {
    let (parent, last) = pointer.rsplit_once('/').unwrap_or(("", pointer));
    if let Some(members) = value.pointer_mut(parent).and_then(Value::as_object_mut) {
        members.remove(last);
    }
}

/// Without members that are null: how a description without nullability has to be read.
pub(crate) fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        Value::Object(members) => Value::Object(
            members
                .iter()
                .filter(|(_, member)| !member.is_null())
                .map(|(name, member)| (name.clone(), without_nulls(member)))
                .collect::<Map<_, _>>(),
        ),
        other => other.clone(),
    }
}

/// `2026-11-22T01:02:03Z`, as both forges write it.
pub(crate) fn timestamp(time: OffsetDateTime) -> Value {
    let whole_seconds = time.replace_nanosecond(0).unwrap_or(time);
    Value::String(whole_seconds.format(&Rfc3339).expect("a time can be written"))
}

/// Takes text if it is there.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str)
}
