//! Strings of an answer that become secrets before the guest sees the answer. Start at [`capture`].

use serde_json::Value;
use zeroize::Zeroizing;

use harmonia_egress::Target;

use super::binding::{Binding, BoundHost};
use super::{Capture, HttpError};
use crate::capabilities::secrets::{Origin, SecretHandle};
use crate::capabilities::{CallState, Shared};

/// Longest pointer that is followed.
const POINTER_BYTES_MAX: usize = 1024;

/// Hosts that one captured secret may be bound to.
const HOSTS_MAX: usize = 16;

/// A capture that was checked: its pointer, and where the secret may go (`None`: back to who answers).
pub(super) struct Checked {
    pointer: String,
    hosts: Option<Vec<BoundHost>>,
}

/// Checks a capture before anything is sent.
pub(super) fn check(shared: &Shared, capture: Capture) -> Result<Checked, HttpError> {
    let Capture { pointer, hosts } = capture;
    if pointer.len() > POINTER_BYTES_MAX || !(pointer.is_empty() || pointer.starts_with('/')) {
        return Err(HttpError::Invalid("a pointer begins with / and has at most 1024 bytes".to_owned()));
    }
    if hosts.len() > HOSTS_MAX {
        return Err(HttpError::Limit(format!("a captured secret has at most {HOSTS_MAX} hosts")));
    }
    let mut bound = Vec::with_capacity(hosts.len());
    for text in hosts {
        let host: BoundHost = text.parse().map_err(|error| HttpError::Invalid(format!("{error}")))?;
        if !shared.grants.allow_hosts.iter().any(|grant| host.is_within(grant)) {
            let key = shared.grants.key("allow_hosts");
            return Err(HttpError::Denied(format!("`{text}` is not granted to captured secrets: add it to {key}")));
        }
        bound.push(host);
    }
    Ok(Checked { pointer, hosts: (!bound.is_empty()).then_some(bound) })
}

impl CallState {
    /// Takes the strings out of an answer. They are known to the call afterwards, so they are redacted like all others.
    pub(super) fn capture(
        &mut self,
        captures: Vec<Checked>,
        body: &[u8],
        from: &Target,
    ) -> Result<Vec<Option<SecretHandle>>, HttpError> {
        if captures.is_empty() {
            return Ok(Vec::new());
        }
        let answer: Option<Value> = serde_json::from_slice(body).ok();
        let mut captured = Vec::with_capacity(captures.len());
        for capture in captures {
            let text = answer.as_ref().and_then(|value| value.pointer(&capture.pointer)).and_then(Value::as_str);
            captured.push(match text {
                None => None,
                Some(text) => Some(self.captured_secret(capture, text, from)?),
            });
        }
        Ok(captured)
    }

    fn captured_secret(&mut self, capture: Checked, text: &str, from: &Target) -> Result<SecretHandle, HttpError> {
        let pointer = capture.pointer;
        let most = self.limits().captured_secret_bytes;
        if text.len() > most {
            let key = self.shared.grants.limit("captured_secret_bytes");
            return Err(HttpError::Limit(format!("the string at {pointer} is larger than {most} bytes: {key}")));
        }
        let own = capture.hosts.map_or_else(|| Binding::Target(from.clone()), Binding::Hosts);
        let mut bindings = vec![own];
        // An answer may repeat a secret that we know. Captured, it must not get further than it could before.
        let opened = self.shared.opened.all();
        for known in self.secrets.iter().chain(opened.values()) {
            // Where captured ones may go was the plugin's own choice.
            if *known.origin() != Origin::Captured && contains(text.as_bytes(), known.bytes()) {
                let more: Vec<_> =
                    known.bindings().iter().filter(|binding| !bindings.contains(binding)).cloned().collect();
                bindings.extend(more);
            }
        }
        let bytes = Zeroizing::new(text.as_bytes().to_vec());
        // The guest must not see it either, so there is no answer rather than one with it.
        let secret = SecretHandle::new(Origin::Captured, bytes, bindings, None)
            .map_err(|reason| HttpError::Unavailable(format!("the string at {pointer} {reason}")))?;
        self.know(&secret).map_err(|error| HttpError::Limit(error.to_string()))?;
        Ok(secret)
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
