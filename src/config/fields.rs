//! Reading the fields of a JSON object, with errors that name them.

use serde_json::{Map, Value};

/// The fields of a JSON object. `within` is what stands before their names in errors.
pub(super) struct Fields<'a> {
    pub(super) object: &'a Map<String, Value>,
    pub(super) within: &'static str,
}

impl Fields<'_> {
    /// What `read` makes of a field, if there is one.
    pub(super) fn get<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let Some(value) = self.object.get(name) else { return Ok(None) };
        let read = read(value).ok_or_else(|| format!("{}{name} {value} is not {expected}", self.within))?;
        Ok(Some(read))
    }

    /// The same, where null means that there is none.
    pub(super) fn nullable<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, String> {
        match self.object.get(name) {
            Some(Value::Null) => Ok(None),
            _ => self.get(name, expected, read),
        }
    }
}

pub(super) fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

pub(super) fn count(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|count| usize::try_from(count).ok())
}

pub(super) fn port(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|port| u16::try_from(port).ok())
}

/// A float in vLLM. Above 2^53 it is no longer exact to the byte, and no machine has that much.
pub(super) fn bytes(value: &Value) -> Option<usize> {
    let bytes = value.as_f64().filter(|bytes| (1.0..=9_007_199_254_740_992.0).contains(bytes))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
    usize::try_from(bytes as u64).ok()
}
