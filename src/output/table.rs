//! Tables for people: columns two blanks apart, and a page of `key: value` lines for one object.

use super::record::Record;

/// One line per record under a header. All records have the same fields.
pub(super) fn rows(records: &[Record], wide: bool) -> String {
    let Some(first) = records.first() else { return String::new() };
    let header: Vec<String> = first.shown(wide).map(|field| field.title.to_owned()).collect();
    let lines = records.iter().map(|record| record.shown(wide).map(|field| field.value.cell()).collect());
    align(std::iter::once(header).chain(lines).collect(), "  ")
}

/// One line per field.
pub(super) fn page(record: &Record, wide: bool) -> String {
    let line = |title: &str, cell: String| vec![format!("{}:", title.to_lowercase()), cell];
    align(record.page(wide).map(|field| line(field.title, field.value.cell())).collect(), "  ")
}

/// Widths are in characters: names are ASCII, so wide glyphs do not come up.
fn align(lines: Vec<Vec<String>>, gap: &str) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join(gap).trim_end());
        text.push('\n');
    }
    text
}
