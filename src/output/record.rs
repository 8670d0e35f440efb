//! An object as every format sees it: named fields in a fixed order, each with the place it takes in a table.

use serde::{
    Serialize, Serializer,
    ser::{SerializeMap as _, SerializeSeq as _},
};

use crate::units::{format_size, format_time};

/// A value, with what a table needs to show it well.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Text(String),
    Count(u64),
    /// A number of bytes: bare in data, with a unit in a table.
    Bytes(u64),
    /// Milliseconds since 1970: RFC 3339 everywhere.
    Time(u64),
    List(Vec<Value>),
    Object(Vec<(&'static str, Value)>),
}

impl Value {
    /// For a table cell.
    pub(super) fn cell(&self) -> String {
        match self {
            Self::Null => "-".to_owned(),
            Self::Bool(true) => "yes".to_owned(),
            Self::Bool(false) => "no".to_owned(),
            Self::Text(text) if text.is_empty() => "-".to_owned(),
            Self::Text(text) => text.clone(),
            Self::Count(count) => count.to_string(),
            Self::Bytes(bytes) => format_size(*bytes),
            Self::Time(ms) => format_time(*ms),
            Self::List(values) if values.is_empty() => "-".to_owned(),
            Self::List(values) => values.iter().map(Self::cell).collect::<Vec<_>>().join(","),
            Self::Object(fields) => fields.iter().map(|(_, value)| value.cell()).collect::<Vec<_>>().join(":"),
        }
    }
}

/// As in JSON; YAML scalars and CSV follow it.
impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Count(number) | Self::Bytes(number) => serializer.serialize_u64(*number),
            Self::Time(ms) => serializer.serialize_str(&format_time(*ms)),
            Self::List(values) => {
                let mut sequence = serializer.serialize_seq(Some(values.len()))?;
                values.iter().try_for_each(|value| sequence.serialize_element(value))?;
                sequence.end()
            }
            Self::Object(fields) => {
                let mut map = serializer.serialize_map(Some(fields.len()))?;
                fields.iter().try_for_each(|(key, value)| map.serialize_entry(key, value))?;
                map.end()
            }
        }
    }
}

macro_rules! value_from {
    ($($raw:ty => |$name:ident| $make:expr;)*) => {$(
        impl From<$raw> for Value {
            fn from($name: $raw) -> Self { $make }
        }
    )*};
}
value_from! {
    &str => |text| Self::Text(text.to_owned());
    &String => |text| Self::Text(text.clone());
    String => |text| Self::Text(text);
    u64 => |count| Self::Count(count);
    u32 => |count| Self::Count(count.into());
    usize => |count| Self::Count(count as u64);
    bool => |value| Self::Bool(value);
}
impl<T: Into<Value>> From<Vec<T>> for Value {
    fn from(values: Vec<T>) -> Self {
        Self::List(values.into_iter().map(Into::into).collect())
    }
}
impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// Which tables show a field. Data formats have all of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Show {
    Always,
    /// The page of one object, and the wide table.
    Detail,
    Wide,
    Never,
}

#[derive(Clone, Debug)]
pub(super) struct Field {
    pub(super) key: &'static str,
    pub(super) title: &'static str,
    pub(super) value: Value,
    pub(super) show: Show,
}

/// An object to print.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// What `-o name` prints: what other commands take to mean this object.
    pub(super) name: String,
    pub(super) fields: Vec<Field>,
}

impl Record {
    pub(crate) fn new(name: impl ToString) -> Self {
        Self { name: name.to_string(), fields: Vec::new() }
    }

    /// A field that each table shows under `title`.
    #[must_use]
    pub(crate) fn column(self, key: &'static str, title: &'static str, value: impl Into<Value>) -> Self {
        self.field(key, title, value.into(), Show::Always)
    }

    /// A field of the wide table.
    #[must_use]
    pub(crate) fn wide(self, key: &'static str, title: &'static str, value: impl Into<Value>) -> Self {
        self.field(key, title, value.into(), Show::Wide)
    }

    /// A field of the page of one object, and of the wide table.
    #[must_use]
    pub(crate) fn detail(self, key: &'static str, title: &'static str, value: impl Into<Value>) -> Self {
        self.field(key, title, value.into(), Show::Detail)
    }

    /// A field of the data formats only.
    #[must_use]
    pub(crate) fn hidden(self, key: &'static str, value: impl Into<Value>) -> Self {
        self.field(key, "", value.into(), Show::Never)
    }

    fn field(mut self, key: &'static str, title: &'static str, value: Value, show: Show) -> Self {
        debug_assert!(self.fields.iter().all(|field| field.key != key), "key {key} twice");
        self.fields.push(Field { key, title, value, show });
        self
    }

    /// The fields that a table of many shows.
    pub(super) fn shown(&self, wide: bool) -> impl Iterator<Item = &Field> {
        self.fields.iter().filter(move |field| match field.show {
            Show::Always => true,
            Show::Detail | Show::Wide => wide,
            Show::Never => false,
        })
    }

    /// The fields of a page about this one.
    pub(super) fn page(&self, wide: bool) -> impl Iterator<Item = &Field> {
        self.fields.iter().filter(move |field| match field.show {
            Show::Always | Show::Detail => true,
            Show::Wide => wide,
            Show::Never => false,
        })
    }

    pub(crate) fn value(&self) -> Value {
        Value::Object(self.fields.iter().map(|field| (field.key, field.value.clone())).collect())
    }
}
