//! How objects are printed. An object describes itself once as a [`Record`]; every format is made from that, so a key is
//! in all of them or in none, and JSON cannot drift from the table.
//!
//! Data goes to stdout and only there. Keys are stable; sizes are bytes and end in `_bytes`, times are RFC 3339 and end
//! in `_at`, log times are milliseconds and end in `_log_ms`.

mod csv;
mod json;
mod record;
mod table;
mod yaml;

use std::io::{self, IsTerminal as _, Write as _};

pub(crate) use record::{Record, Value};

use crate::error::Failure;

/// The formats of `-o`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Format {
    /// Columns for people.
    Table,
    /// More columns for people.
    Wide,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
    /// Comma-separated values with a header line (RFC 4180).
    Csv,
    /// Names only, one a line.
    Name,
}

/// What a command has to show.
#[derive(Debug)]
pub(crate) enum Document {
    /// Objects of one kind; the plural noun is for saying that there are none.
    List(&'static str, Vec<Record>),
    /// One object.
    One(Record),
}

/// Prints to stdout. A reader that went away (`| head`) is no failure: there is nobody left to tell.
pub(crate) fn print(document: &Document, format: Format) -> Result<(), Failure> {
    if let (Document::List(noun, records), Format::Table | Format::Wide) = (document, format)
        && records.is_empty()
    {
        eprintln!("no {noun}");
        return Ok(());
    }
    write_out(&render(document, format))
}

/// Plain text to stdout, under the same rules.
pub(crate) fn write_out(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::io("write the output", error)),
        _ => Ok(()),
    }
}

/// Empties the screen for the next picture of `--watch`; in a pipe pictures follow one another.
pub(crate) fn clear_screen() -> Result<(), Failure> {
    if io::stdout().is_terminal() { write_out("\x1b[H\x1b[2J") } else { Ok(()) }
}

/// Whether stdout takes colours: a terminal, and nobody said `NO_COLOR`.
pub(crate) fn colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

pub(crate) fn render(document: &Document, format: Format) -> String {
    match (format, document) {
        (Format::Table, Document::List(_, records)) => table::rows(records, false),
        (Format::Wide, Document::List(_, records)) => table::rows(records, true),
        (Format::Table | Format::Wide, Document::One(record)) => table::page(record, format == Format::Wide),
        (Format::Json, _) => json::render(&value(document)),
        (Format::Yaml, _) => yaml::render(&value(document)),
        (Format::Csv, Document::List(_, records)) => csv::render(records),
        (Format::Csv, Document::One(record)) => csv::render(std::slice::from_ref(record)),
        (Format::Name, Document::List(_, records)) => records.iter().map(|r| format!("{}\n", r.name)).collect(),
        (Format::Name, Document::One(record)) => format!("{}\n", record.name),
    }
}

fn value(document: &Document) -> Value {
    match document {
        Document::List(_, records) => Value::List(records.iter().map(Record::value).collect()),
        Document::One(record) => record.value(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str, size: u64) -> Record {
        Record::new(name)
            .column("name", "NAME", name)
            .wide("id", "ID", 7u64)
            .column("size_bytes", "SIZE", Value::Bytes(size))
            .column("mapped_to", "MAPPED TO", vec!["sdc1", "a,b"])
            .hidden("created_at", Value::Time(0))
            .hidden("parent", Value::Null)
    }

    fn list() -> Document {
        Document::List("volumes", vec![volume("demo", 1 << 30), volume("long-name", 4096)])
    }

    #[test]
    fn a_table_is_aligned_and_wide_has_more() {
        let expected = "NAME       SIZE   MAPPED TO\ndemo       1 GiB  sdc1,a,b\nlong-name  4 KiB  sdc1,a,b\n";
        assert_eq!(render(&list(), Format::Table), expected);
        assert!(render(&list(), Format::Wide).starts_with("NAME       ID  SIZE   MAPPED TO\ndemo       7   1 GiB"));
    }

    #[test]
    fn one_object_is_a_page() {
        let page = render(&Document::One(volume("demo", 1 << 30)), Format::Table);
        assert_eq!(page, "name:       demo\nsize:       1 GiB\nmapped to:  sdc1,a,b\n");
    }

    #[test]
    fn json_keeps_all_keys_in_their_order_and_bytes() {
        let json = render(&Document::One(volume("demo", 1 << 30)), Format::Json);
        let expected = r#"{
  "name": "demo",
  "id": 7,
  "size_bytes": 1073741824,
  "mapped_to": [
    "sdc1",
    "a,b"
  ],
  "created_at": "1970-01-01T00:00:00.000Z",
  "parent": null
}
"#;
        assert_eq!(json, expected);
        assert_eq!(render(&Document::List("volumes", vec![]), Format::Json), "[]\n");
    }

    #[test]
    fn yaml_reads_back_as_the_same_values() {
        let yaml = render(&Document::List("volumes", vec![volume("no", 4096)]), Format::Yaml);
        let expected = "- name: \"no\"\n  id: 7\n  size_bytes: 4096\n  mapped_to:\n  - sdc1\n  - \"a,b\"\n  created_at: \
                        \"1970-01-01T00:00:00.000Z\"\n  parent: null\n";
        assert_eq!(yaml, expected);
        assert_eq!(render(&Document::List("volumes", vec![]), Format::Yaml), "[]\n");
    }

    #[test]
    fn csv_quotes_what_needs_it() {
        let csv = render(&list(), Format::Csv);
        let mut lines = csv.lines();
        assert_eq!(lines.next(), Some("name,id,size_bytes,mapped_to,created_at,parent"));
        assert_eq!(lines.next(), Some("demo,7,1073741824,\"sdc1 a,b\",1970-01-01T00:00:00.000Z,"));
    }

    #[test]
    fn names_are_one_a_line() {
        assert_eq!(render(&list(), Format::Name), "demo\nlong-name\n");
    }
}
