//! JSON: one document, indented, keys in the order of the record.

use super::record::Value;

pub(super) fn render(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("values have string keys and finite numbers");
    text.push('\n');
    text
}
