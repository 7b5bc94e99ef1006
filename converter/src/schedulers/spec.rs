//! What a user asks for: `NAME:STEPS[,OPTION[=VALUE]…]`.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail};
use serde_json::{Map, Value};

/// A sampler, its step count and options named as in diffusers.
///
/// `dpmsolver++:8`, `dpmsolver++:8,use_karras_sigmas,solver_order=3`. An option
/// without a value is true. A file keeps the text, so that `quell verify` can
/// make the same solver table again.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// The sampler's name.
    pub sampler: String,
    /// Number of steps.
    pub steps: u32,
    /// The options as they were given, without the first comma.
    pub options: String,
    pub(super) fields: Map<String, Value>,
}

impl FromStr for Spec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (sampler, rest) = text
            .split_once(':')
            .with_context(|| format!("`{text}` has no step count; write NAME:STEPS"))?;
        let (steps, options) = rest.split_once(',').unwrap_or((rest, ""));
        let count = steps.parse().ok().filter(|&count| count > 0);
        let steps = count.with_context(|| format!("`{steps}` is not a number of steps"))?;
        let mut fields = Map::new();
        for option in options.split(',').filter(|_| !options.is_empty()) {
            let (name, value) = match option.split_once('=') {
                // What JSON does not know is a word: `algorithm_type=sde-dpmsolver++`.
                Some((name, value)) => (
                    name,
                    serde_json::from_str(value).unwrap_or_else(|_| value.into()),
                ),
                None => (option, Value::Bool(true)),
            };
            if name.is_empty() || fields.insert(name.to_owned(), value).is_some() {
                bail!("`{option}` in `{text}` is empty or given twice");
            }
        }
        Ok(Self {
            sampler: sampler.to_lowercase(),
            steps,
            options: options.to_owned(),
            fields,
        })
    }
}

impl Display for Spec {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.sampler, self.steps)?;
        match self.options.as_str() {
            "" => Ok(()),
            options => write!(f, ",{options}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_survives() {
        for text in [
            "euler:4",
            "ddim:10,eta=0.5",
            "unipc:8,use_karras_sigmas,solver_type=bh1",
        ] {
            let spec: Spec = text.parse().unwrap();
            assert_eq!(spec.to_string(), text);
        }
        assert_eq!("DDIM:4".parse::<Spec>().unwrap().to_string(), "ddim:4");
        let spec: Spec = "unipc:8,a,b=0.5,c=bh1".parse().unwrap();
        assert_eq!(spec.fields["a"], Value::Bool(true));
        assert_eq!(spec.fields["b"], Value::from(0.5));
        assert_eq!(spec.fields["c"], Value::from("bh1"));
    }

    #[test]
    fn nonsense_is_named() {
        for (text, word) in [
            ("euler", "NAME:STEPS"),
            ("euler:x", "`x`"),
            ("euler:0", "`0`"),
            ("euler:4,a,,b", "empty"),
            ("euler:4,a,a=1", "twice"),
        ] {
            let error = text.parse::<Spec>().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
