//! JSON configurations with diffusers' conventions.

use std::fmt::Display;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde::de::value::{Error, MapDeserializer};
use serde::de::{Deserializer, Error as _, IntoDeserializer, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::{Map, Value};

/// Reads a configuration: its `_class_name`, and its fields without those that
/// start with an underscore (diffusers' own bookkeeping).
pub(super) fn read(path: &Path) -> Result<(String, Map<String, Value>)> {
    let read = || {
        // Python writes an unlimited `lambda_min_clipped` as a word that JSON lacks.
        let text = text(path)?.replace(": -Infinity", ": null");
        let mut fields = object(&text)?;
        let class = match fields.get("_class_name") {
            Some(Value::String(class)) => class.to_owned(),
            Some(other) => bail!("`_class_name` is {other}; expected the name of a class"),
            // LeRobot's policies.
            None => match fields.get("type") {
                Some(Value::String(kind)) if kind == "diffusion" => {
                    super::policy::LEROBOT.to_owned()
                }
                Some(other) => {
                    bail!("`type` is {other}; expected \"diffusion\", or a `_class_name`")
                }
                None => bail!("`_class_name` is missing; expected the name of a class"),
            },
        };
        fields.retain(|key, _| !key.starts_with('_'));
        Ok((class, fields))
    };
    read().with_context(|| path.display().to_string())
}

/// A file's text, without the mark that some editors begin it with.
pub(super) fn text(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path)?;
    refuse_pointer(text.as_bytes())?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

/// A JSON object.
pub(super) fn object(text: &str) -> Result<Map<String, Value>> {
    match serde_json::from_str(text)? {
        Value::Object(fields) => Ok(fields),
        other => bail!("the file holds {}; expected a JSON object", short(&other)),
    }
}

/// Refuses what Git leaves where Git LFS is not installed.
pub(super) fn refuse_pointer(bytes: &[u8]) -> Result<()> {
    if bytes.starts_with(b"version https://git-lfs") {
        bail!("the file is a pointer of Git LFS; expected what it points to: git lfs pull");
    }
    Ok(())
}

/// The fields as a struct. What is wrong with one of them is said with its name and
/// its value.
pub(super) fn parse<T: for<'de> Deserialize<'de>>(fields: Map<String, Value>) -> Result<T> {
    let values: Map<String, Value> = fields.clone();
    let named = fields.into_iter().map(|(name, value)| {
        let field = Field {
            name: name.clone(),
            value,
        };
        (name, field)
    });
    T::deserialize(MapDeserializer::<_, Error>::new(named)).map_err(|error| {
        let error = error.to_string();
        let quoted = error.split('`').nth(1).unwrap_or_default();
        match (error.strip_prefix("unknown field "), values.get(quoted)) {
            (Some(rest), Some(value)) => {
                let known = rest.split_once("expected ").map_or("", |(_, known)| known);
                anyhow!(
                    "`{quoted}` is {}; expected no such field, but {known}",
                    short(value)
                )
            }
            _ if error.starts_with("missing field") => {
                anyhow!("`{quoted}` is missing; this class needs it")
            }
            _ => anyhow!("{error}"),
        }
    })
}

/// A value that knows whose it is.
struct Field {
    name: String,
    value: Value,
}

impl IntoDeserializer<'_, Error> for Field {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl Field {
    /// The value read by `read`, or why it cannot be.
    fn read<T>(self, read: impl FnOnce(Value) -> serde_json::Result<T>) -> Result<T, Error> {
        let Self { name, value } = self;
        let what = short(&value);
        let list = value.is_array();
        read(value).map_err(|error| {
            Error::custom(format!(
                "`{name}` is {what}; expected {}",
                expected(&error, list)
            ))
        })
    }
}

impl<'de> Deserializer<'de> for Field {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.read(|value| value.deserialize_any(visitor))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.read(|value| value.deserialize_option(visitor))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// serde's words for a type, in people's. In a list it speaks of one element.
fn expected(error: &impl Display, list: bool) -> String {
    let error = error.to_string();
    if error.contains("untagged enum Size") {
        return "a number of rows and columns, or a list of both".to_owned();
    }
    let Some((_, what)) = error.rsplit_once("expected ") else {
        return format!("something else ({error})");
    };
    match (what, list && !what.contains("sequence")) {
        ("usize" | "u32" | "u64", false) => "a whole number, 0 or more".to_owned(),
        ("usize" | "u32" | "u64", true) => "a list of whole numbers, or one".to_owned(),
        ("f32" | "f64", false) => "a number".to_owned(),
        ("f32" | "f64", true) => "a list of numbers, or one".to_owned(),
        ("a string", true) => "a list of words, or one".to_owned(),
        ("a string", false) => "a word".to_owned(),
        ("a boolean", _) => "true or false".to_owned(),
        ("a sequence", _) => "a list".to_owned(),
        (other, _) => other.to_owned(),
    }
}

/// A value for a message: not all of a long one.
fn short(value: &Value) -> String {
    const MOST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
