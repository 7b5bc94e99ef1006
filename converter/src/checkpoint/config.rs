//! JSON configurations with diffusers' conventions.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value};

/// Reads a configuration: its `_class_name`, and its fields without those that
/// start with an underscore (diffusers' own bookkeeping).
pub(super) fn read(path: &Path) -> Result<(String, Map<String, Value>)> {
    let name = || path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(name)?;
    // Python writes an unlimited `lambda_min_clipped` as a word that JSON lacks.
    let text = text.replace(": -Infinity", ": null");
    let mut fields: Map<String, Value> = serde_json::from_str(&text).with_context(name)?;
    let class = fields.get("_class_name").and_then(Value::as_str);
    let class = class.context("the field `_class_name` is missing");
    let class = class.with_context(name)?.to_owned();
    fields.retain(|key, _| !key.starts_with('_'));
    Ok((class, fields))
}
