//! YAML, the small part of it that a tree of values needs. Scalars are JSON's, which YAML 1.2 contains; a text stays
//! bare only where no YAML reader, old or new, can take it for anything else.

use super::record::Value;

pub(super) fn render(value: &Value) -> String {
    let mut text = String::new();
    match scalar(value) {
        Some(scalar) => text = scalar + "\n",
        None => block(value, 0, &mut text),
    }
    text
}

/// Writes a list or an object that is not empty, each line indented by `depth`.
fn block(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::List(values) => {
            for value in values {
                let start = text.len();
                match scalar(value) {
                    Some(scalar) => text.push_str(&format!("{indent}- {scalar}\n")),
                    None => {
                        block(value, depth + 1, text);
                        // The first line of the nested block carries the dash in its indentation.
                        text.replace_range(start..start + indent.len() + 2, &format!("{indent}- "));
                    }
                }
            }
        }
        Value::Object(fields) => {
            for (key, value) in fields {
                match scalar(value) {
                    Some(scalar) => text.push_str(&format!("{indent}{key}: {scalar}\n")),
                    None => {
                        text.push_str(&format!("{indent}{key}:\n"));
                        // A list needs no deeper indentation than its key.
                        block(value, depth + usize::from(matches!(value, Value::Object(_))), text);
                    }
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Text(_) | Value::Count(_) | Value::Bytes(_) | Value::Time(_) => {}
    }
}

/// The value on one line, or none if it takes several.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Text(text) if bare(text) => Some(text.clone()),
        Value::List(values) if values.is_empty() => Some("[]".to_owned()),
        Value::Object(fields) if fields.is_empty() => Some("{}".to_owned()),
        Value::List(_) | Value::Object(_) => None,
        Value::Null | Value::Bool(_) | Value::Text(_) | Value::Count(_) | Value::Bytes(_) | Value::Time(_) => {
            Some(serde_json::to_string(value).expect("scalars are JSON"))
        }
    }
}

fn bare(text: &str) -> bool {
    const WORDS: [&str; 10] = ["true", "false", "yes", "no", "on", "off", "null", "y", "n", "inf"];
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '/' | '.');
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(plain)
        && !WORDS.contains(&text.to_ascii_lowercase().as_str())
}
