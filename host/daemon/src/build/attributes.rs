//! The attributes of a derivation that its builder's world depends on: from its environment or, structured, from JSON.

use std::collections::BTreeMap;

use bstr::ByteSlice;
use harmonia_nix::derivation::BasicDerivation;
use harmonia_nix::worker_protocol::BuildStatus;
use serde_json::Value;

use super::{BuildFailure, BuildRequest};

/// The attributes of one derivation.
pub(super) struct Attributes<'a> {
    derivation: &'a BasicDerivation,
    drv_path: &'a str,
    /// With `__structuredAttrs`.
    pub(super) structured: Option<serde_json::Map<String, Value>>,
}

impl<'a> Attributes<'a> {
    pub(super) fn of(request: &'a BuildRequest) -> Result<Self, BuildFailure> {
        let drv_path = request.drv_path.as_str();
        let structured = match request.derivation.env.get("__json".as_bytes()) {
            None => None,
            Some(json) => match serde_json::from_slice(json) {
                Ok(Value::Object(object)) => Some(object),
                Ok(_) => return Err(rejected(format!("the __json attribute of '{drv_path}' is no object"))),
                Err(error) => {
                    return Err(rejected(format!("cannot process __json attribute of '{drv_path}': {error}")));
                }
            },
        };
        Ok(Self { derivation: &request.derivation, drv_path, structured })
    }

    /// The variable of the environment, of a derivation without structured attributes.
    pub(super) fn variable(&self, name: &str) -> Option<&'a [u8]> {
        self.derivation.env.get(name.as_bytes()).map(|value| value.as_slice())
    }

    pub(super) fn flag(&self, name: &str) -> Result<bool, BuildFailure> {
        match &self.structured {
            None => Ok(self.variable(name) == Some(b"1")),
            Some(attributes) => match attributes.get(name) {
                None => Ok(false),
                Some(Value::Bool(flag)) => Ok(*flag),
                Some(_) => Err(self.wrong(name, "a Boolean")),
            },
        }
    }

    pub(super) fn strings(&self, name: &str) -> Result<Option<Vec<String>>, BuildFailure> {
        match &self.structured {
            None => Ok(self.variable(name).map(words)),
            Some(attributes) => attributes.get(name).map(|value| self.strings_of(name, value)).transpose(),
        }
    }

    pub(super) fn strings_of(&self, name: &str, value: &Value) -> Result<Vec<String>, BuildFailure> {
        let strings = value.as_array().and_then(|values| {
            values.iter().map(|value| value.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        });
        strings.ok_or_else(|| self.wrong(name, "a list of strings"))
    }

    /// The outputs whose references are not kept (`unsafeDiscardReferences`, with structured attributes only).
    pub(super) fn discarded_references(&self) -> Result<BTreeMap<String, bool>, BuildFailure> {
        let name = "unsafeDiscardReferences";
        match self.structured.as_ref().and_then(|attributes| attributes.get(name)) {
            None => Ok(BTreeMap::new()),
            Some(value) => serde_json::from_value(value.clone()).map_err(|_| self.wrong(name, "a set of Booleans")),
        }
    }

    fn wrong(&self, name: &str, expected: &str) -> BuildFailure {
        rejected(format!("attribute '{name}' of derivation '{}' must be {expected}", self.drv_path))
    }
}

/// What nobody can build.
pub(super) fn rejected(message: String) -> BuildFailure {
    BuildFailure::new(BuildStatus::InputRejected, message)
}

/// Split at white space, as Nix does.
pub(super) fn words(text: &[u8]) -> Vec<String> {
    text.split(|byte| b" \t\n\r".contains(byte))
        .filter(|word| !word.is_empty())
        .map(|word| word.to_str_lossy().into_owned())
        .collect()
}
