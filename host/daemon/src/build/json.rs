//! JSON in the very bytes in which Nix writes it: keys sorted, no spaces, numbers as its library prints them. Start at
//! [`print`].

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Number, Value};

/// The text of a value.
pub(super) fn print(value: &Value) -> String {
    let mut text = String::new();
    put(&mut text, value);
    text
}

fn put(text: &mut String, value: &Value) {
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => put_plain(text, value),
        Value::Number(number) => text.push_str(&number_text(number)),
        Value::Array(values) => {
            text.push('[');
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                put(text, value);
            }
            text.push(']');
        }
        Value::Object(object) => {
            text.push('{');
            let sorted: BTreeMap<&String, &Value> = object.iter().collect();
            for (index, (key, value)) in sorted.into_iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                put_plain(text, &Value::String(key.clone()));
                text.push(':');
                put(text, value);
            }
            text.push('}');
        }
    }
}

fn put_plain(text: &mut String, value: &Value) {
    let _never_fails = write!(text, "{value}");
}

/// Whole numbers as they are; others with the fewest digits that mean them, an exponent of two digits or more, and a point
/// for values up to 10^15 and from 10^-4.
fn number_text(number: &Number) -> String {
    let Some(float) = number.as_f64().filter(|_| number.is_f64()) else { return number.to_string() };
    let scientific = format!("{:e}", float.abs());
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let digits: String = mantissa.chars().filter(|character| *character != '.').collect();
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let count = digits.len() as i32;
    // Where the point is, counted from before the first digit.
    let point = exponent + 1;
    let sign = if float.is_sign_negative() { "-" } else { "" };
    let zeros = |number: i32| "0".repeat(usize::try_from(number).unwrap_or(0));
    let split = |at: i32| digits.split_at(usize::try_from(at).unwrap_or(0).min(digits.len()));
    let body = if float == 0.0 {
        "0.0".to_owned()
    } else if count <= point && point <= 15 {
        format!("{digits}{}.0", zeros(point - count))
    } else if 0 < point && point <= 15 {
        let (whole, fraction) = split(point);
        format!("{whole}.{fraction}")
    } else if -4 < point && point <= 0 {
        format!("0.{}{digits}", zeros(-point))
    } else {
        let (first, rest) = split(1);
        let point = if rest.is_empty() { String::new() } else { format!(".{rest}") };
        let (sign, size) = if exponent < 0 { ('-', -exponent) } else { ('+', exponent) };
        format!("{first}{point}e{sign}{size:02}")
    };
    format!("{sign}{body}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_keys_are_as_nix_prints_them() {
        let value: Value = serde_json::from_str(
            r#"{"z":[1,-2,1.5,1.0,1e100,1e-7,0.001,123456789012345680.0,0.0,-0.25,18446744073709551615],"a":{"ü":"\u0001\"/\n","b":null}}"#,
        )
        .expect("JSON");
        assert_eq!(
            print(&value),
            "{\"a\":{\"b\":null,\"ü\":\"\\u0001\\\"/\\n\"},\
             \"z\":[1,-2,1.5,1.0,1e+100,1e-07,0.001,1.2345678901234568e+17,0.0,-0.25,18446744073709551615]}"
        );
    }
}
