//! Named fields of a scheduler, each of which is honoured or refused.

use std::cell::RefCell;
use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};
use serde_json::{Map, Value};

/// Fields of a `scheduler_config.json`, or options of a solver table; remembers
/// which ones anybody has asked for. `null` stands for a field's default.
#[derive(Clone, Debug, Default)]
pub struct Options {
    fields: Map<String, Value>,
    taken: RefCell<BTreeSet<String>>,
}

impl Options {
    /// Options that nobody has looked at.
    pub fn new(fields: Map<String, Value>) -> Self {
        Self {
            fields,
            taken: RefCell::default(),
        }
    }

    /// These fields, and `others` where both have one.
    pub(super) fn overlaid(&self, others: &Map<String, Value>) -> Self {
        let mut fields = self.fields.clone();
        fields.extend(others.clone());
        Self::new(fields)
    }

    fn take(&self, name: &str) -> Option<&Value> {
        self.taken.borrow_mut().insert(name.to_owned());
        self.fields.get(name).filter(|value| !value.is_null())
    }

    /// A finite number.
    pub fn number(&self, name: &str, default: f64) -> Result<f64> {
        Ok(self.number_or_null(name)?.unwrap_or(default))
    }

    /// A finite number, where there is one.
    pub fn number_or_null(&self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => bail!("`{name}` is `{value}`; expected a number"),
        }
    }

    /// A whole number that is not negative.
    pub fn integer(&self, name: &str, default: u32) -> Result<u32> {
        let Some(value) = self.take(name) else {
            return Ok(default);
        };
        match value.as_u64().and_then(|n| u32::try_from(n).ok()) {
            Some(number) => Ok(number),
            None => bail!("`{name}` is `{value}`; expected a whole number"),
        }
    }

    /// A truth value.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool> {
        Ok(self.flag_or_null(name)?.unwrap_or(default))
    }

    /// A truth value, where there is one.
    pub fn flag_or_null(&self, name: &str) -> Result<Option<bool>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(value) => bail!("`{name}` is `{value}`; expected true or false"),
        }
    }

    /// A list of numbers, where there is one.
    pub fn numbers(&self, name: &str) -> Result<Option<Vec<f64>>> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let list = value.as_array();
        let numbers = list.and_then(|list| list.iter().map(Value::as_f64).collect());
        match numbers {
            Some(numbers) => Ok(Some(numbers)),
            None => bail!("`{name}` is `{value}`; expected a list of numbers"),
        }
    }

    /// One of several words.
    pub fn word(&self, name: &str, default: &str, allowed: &[&str]) -> Result<String> {
        let word = self.word_or_null(name, allowed)?;
        Ok(word.unwrap_or_else(|| default.to_owned()))
    }

    /// One of several words, where there is one.
    pub fn word_or_null(&self, name: &str, allowed: &[&str]) -> Result<Option<String>> {
        let value = match self.take(name) {
            None => return Ok(None),
            Some(Value::String(word)) => word,
            Some(value) => bail!("`{name}` is `{value}`; expected {}", list(allowed)),
        };
        ensure!(
            allowed.contains(&&**value),
            "`{name}` is `{value}`; expected {}",
            list(allowed)
        );
        Ok(Some(value.to_owned()))
    }

    /// Whether a field has this word.
    pub(crate) fn says(&self, name: &str, word: &str) -> bool {
        self.take(name).and_then(Value::as_str) == Some(word)
    }

    /// Features that are not there: refused where they are asked for.
    pub fn absent(&self, names: &[&str]) -> Result<()> {
        for name in names {
            match self.take(name) {
                None | Some(Value::Bool(false)) => {}
                Some(value) => bail!("`{name}` is `{value}`; expected false or null"),
            }
        }
        Ok(())
    }

    /// Fields without any effect on what is computed here.
    pub fn ignore(&self, names: &[&str]) {
        for name in names {
            self.take(name);
        }
    }

    /// Refuses fields of the wrong type, also those that have no effect here.
    pub fn check_types(&self) -> Result<()> {
        for (name, value) in &self.fields {
            let kind = KINDS
                .iter()
                .find(|(_, names)| names.contains(&name.as_str()));
            let Some((kind, _)) = kind.filter(|_| !value.is_null()) else {
                continue;
            };
            let (fits, expected) = match kind {
                Kind::Flag => (value.is_boolean(), "true or false"),
                Kind::Number => (value.is_number(), "a number"),
                Kind::Count => (value.is_u64(), "a whole number, 0 or more"),
                Kind::Word => (value.is_string(), "a word"),
                Kind::Numbers => (is_numbers(value), "a list of numbers"),
            };
            ensure!(fits, "`{name}` is `{value}`; expected {expected}");
        }
        Ok(())
    }

    /// All fields that nobody has asked for.
    pub fn all_untaken(&self) -> Vec<String> {
        let taken = self.taken.borrow();
        let fields = self.fields.keys();
        fields
            .filter(|name| !taken.contains(*name))
            .cloned()
            .collect()
    }

    /// The first of `names` that nobody has asked for.
    pub(super) fn untaken<'n>(&self, names: impl Iterator<Item = &'n String>) -> Option<&'n str> {
        let taken = self.taken.borrow();
        let mut names = names.map(String::as_str);
        names.find(|name| !taken.contains(*name))
    }

    /// Refuses fields that nobody has asked for: to ignore one is to compute
    /// something else than diffusers does.
    pub fn refuse_unused(&self, class: &str) -> Result<()> {
        match self.untaken(self.fields.keys()) {
            Some(name) => bail!(
                "`{name}` is `{}`; expected no such field: {class} does not have it",
                self.fields[name]
            ),
            None => Ok(()),
        }
    }
}

fn is_numbers(value: &Value) -> bool {
    let list = value.as_array();
    list.is_some_and(|list| list.iter().all(Value::is_number))
}

/// What a field holds.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Flag,
    Number,
    Count,
    Word,
    Numbers,
}

/// The fields of all schedulers.
#[rustfmt::skip]
pub(super) const KINDS: [(Kind, &[&str]); 5] = [
    (Kind::Flag, &[
        "clip_denoised", "clip_sample", "euler_at_final", "invert_sigmas", "lower_order_final", "predict_epsilon",
        "predict_x0", "rescale_betas_zero_snr", "set_alpha_to_one", "skip_prk_steps",
        "stochastic_sampling", "thresholding", "use_beta_sigmas", "use_dynamic_shifting",
        "use_exponential_sigmas", "use_flow_sigmas", "use_karras_sigmas", "use_lu_lambdas",
    ]),
    (Kind::Number, &[
        "base_shift", "beta_end", "beta_start", "clip_sample_range", "dynamic_thresholding_ratio",
        "eta", "flow_shift", "lambda_min_clipped", "max_shift", "mu", "rho", "s_noise",
        "sample_max_value", "shift", "shift_terminal", "sigma_data", "sigma_max", "sigma_min",
        "timestep_scaling",
    ]),
    (Kind::Count, &[
        "base_image_seq_len", "max_image_seq_len", "num_train_timesteps",
        "corrector_order", "original_inference_steps", "predictor_order", "solver_order",
        "steps_offset",
    ]),
    (Kind::Word, &[
        "algorithm_type", "beta_schedule", "final_sigmas_type", "interpolation_type",
        "objective", "prediction_type", "sigma_schedule", "solver_type", "tensor_format",
        "time_shift_type", "timestep_spacing", "timestep_type", "variance_type",
    ]),
    (Kind::Numbers, &["disable_corrector", "timestep_values", "trained_betas"]),
];

/// `a, b or c`.
fn list(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [word] => (*word).to_owned(),
        [words @ .., last] => format!("{} or {last}", words.join(", ")),
    }
}
