//! CSV by RFC 4180: a header of keys, then the raw values. Lists are joined by blanks, absent values are empty.

use super::record::{Record, Value};
use crate::units::format_time;

pub(super) fn render(records: &[Record]) -> String {
    let Some(first) = records.first() else { return String::new() };
    let mut text = line(first.fields.iter().map(|field| field.key.to_owned()));
    for record in records {
        text.push_str(&line(record.fields.iter().map(|field| raw(&field.value))));
    }
    text
}

fn line(cells: impl Iterator<Item = String>) -> String {
    let mut line = cells.map(quoted).collect::<Vec<_>>().join(",");
    line.push('\n');
    line
}

fn raw(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(value) => value.to_string(),
        Value::Text(text) => text.clone(),
        Value::Count(number) | Value::Bytes(number) => number.to_string(),
        Value::Time(ms) => format_time(*ms),
        Value::List(values) => values.iter().map(raw).collect::<Vec<_>>().join(" "),
        Value::Object(fields) => fields.iter().map(|(_, value)| raw(value)).collect::<Vec<_>>().join(":"),
    }
}

fn quoted(cell: String) -> String {
    if cell.contains([',', '"', '\n', '\r']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell }
}
