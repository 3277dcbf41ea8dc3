//! Finds secrets in what goes to a guest or a log, in every form in which servers and libraries write them, and puts
//! [`MARK`] in their place. Start at [`Redactor`].

use std::collections::BTreeSet;
use std::fmt::Write as _;

use aho_corasick::AhoCorasick;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use zeroize::Zeroizing;

/// What stands in a secret's place.
pub(super) const MARK: &str = "[secret]";

/// Shortest secret that is taken: a shorter one would be found everywhere.
pub(super) const SECRET_BYTES_MIN: usize = 4;

/// Bytes of a form that are searched for; where they stand, as much of the rest as agrees is replaced too.
const NEEDLE_BYTES_MAX: usize = 64;

/// Left as they are by encoders of URL components (RFC 3986), beside letters and digits.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// As `encodeURIComponent` does.
const COMPONENT: &AsciiSet = &UNRESERVED.remove(b'!').remove(b'\'').remove(b'(').remove(b')').remove(b'*');

/// Looks for a set of secrets.
pub(super) struct Redactor {
    forms: Vec<Zeroizing<Vec<u8>>>,
    search: Search,
}

enum Search {
    Nothing,
    For(AhoCorasick),
    /// There is no search, so all that might hold a secret is replaced.
    Impossible,
}

impl Redactor {
    /// For these secrets. A form is what [`forms`] gives, or a text that was sent.
    pub(super) fn new<'a>(secrets: impl Iterator<Item = &'a [u8]>, sent: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut all = BTreeSet::new();
        for secret in secrets {
            all.extend(forms(secret));
        }
        all.extend(sent.map(<[u8]>::to_vec));
        let forms: Vec<_> = all.into_iter().filter(|form| !form.is_empty()).map(Zeroizing::new).collect();
        let needles = forms.iter().map(|form| &form[..form.len().min(NEEDLE_BYTES_MAX)]);
        let search = if forms.is_empty() {
            Search::Nothing
        } else {
            AhoCorasick::new(needles).map_or(Search::Impossible, Search::For)
        };
        Self { forms, search }
    }

    /// The bytes without secrets; `None` when there is none in them.
    pub(super) fn bytes(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let search = match &self.search {
            Search::Nothing => return None,
            Search::Impossible => return Some(MARK.as_bytes().to_vec()),
            Search::For(search) => search,
        };
        // A server that knows its secret can make one that overlaps itself everywhere; this much work is done, no more.
        let mut work_left = 16 * (bytes.len() + (1 << 20));
        let mut spans: Vec<(usize, usize)> = Vec::new();
        for found in search.find_overlapping_iter(bytes) {
            let form = &self.forms[found.pattern().as_usize()];
            let rest = &bytes[found.end()..];
            let agreeing = form[found.len()..].iter().zip(rest).take_while(|(a, b)| a == b).count();
            match work_left.checked_sub(agreeing + 1) {
                Some(left) => work_left = left,
                None => return Some(MARK.as_bytes().to_vec()),
            }
            spans.push((found.start(), found.end() + agreeing));
        }
        if spans.is_empty() {
            return None;
        }
        spans.sort_unstable();
        let mut clean = Vec::with_capacity(bytes.len());
        let mut copied = 0;
        let mut covered = None;
        for (start, end) in spans {
            if covered.is_none_or(|covered| start >= covered) {
                clean.extend_from_slice(&bytes[copied..start]);
                clean.extend_from_slice(MARK.as_bytes());
            }
            copied = copied.max(end);
            covered = Some(copied);
        }
        clean.extend_from_slice(&bytes[copied..]);
        Some(clean)
    }

    /// The text without secrets.
    pub(super) fn text(&self, text: &str) -> String {
        match self.bytes(text.as_bytes()) {
            Some(clean) => String::from_utf8_lossy(&clean).into_owned(),
            None => text.to_owned(),
        }
    }

    /// A JSON text without secrets, however they are escaped in it. Only where an escape is used that needs not be used is
    /// the text written anew.
    pub(super) fn json(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let clean = self.bytes(bytes);
        let current = clean.as_deref().unwrap_or(bytes);
        if matches!(self.search, Search::Nothing) || !current.windows(2).any(|pair| pair == b"\\u") {
            return clean;
        }
        let Ok(mut value) = serde_json::from_slice::<serde_json::Value>(current) else { return clean };
        if !self.strings(&mut value) {
            return clean;
        }
        Some(serde_json::to_vec(&value).unwrap_or_else(|_| MARK.as_bytes().to_vec()))
    }

    /// Replaces within all strings and names of a value; says whether there was anything.
    fn strings(&self, value: &mut serde_json::Value) -> bool {
        use serde_json::Value;
        match value {
            Value::String(text) => match self.bytes(text.as_bytes()) {
                Some(clean) => {
                    *text = String::from_utf8_lossy(&clean).into_owned();
                    true
                }
                None => false,
            },
            Value::Array(items) => items.iter_mut().fold(false, |changed, item| self.strings(item) | changed),
            Value::Object(fields) => {
                let renamed: Vec<(String, String)> = fields
                    .keys()
                    .filter_map(|name| Some((name.clone(), self.bytes(name.as_bytes())?)))
                    .map(|(name, clean)| (name, String::from_utf8_lossy(&clean).into_owned()))
                    .collect();
                let mut changed = !renamed.is_empty();
                for (name, clean) in renamed {
                    if let Some(value) = fields.remove(&name) {
                        fields.insert(clean, value);
                    }
                }
                for item in fields.values_mut() {
                    changed |= self.strings(item);
                }
                changed
            }
            _ => false,
        }
    }
}

/// Every way in which a secret is likely to be written.
fn forms(secret: &[u8]) -> BTreeSet<Vec<u8>> {
    let mut forms = BTreeSet::from([secret.to_vec()]);
    forms.insert(hex::encode(secret).into_bytes());
    forms.insert(hex::encode_upper(secret).into_bytes());
    for set in [NON_ALPHANUMERIC, UNRESERVED, COMPONENT] {
        let upper = percent_encode(secret, set).to_string();
        forms.insert(lower_percent(&upper).into_bytes());
        forms.insert(upper.into_bytes());
    }
    let form: String = url::form_urlencoded::byte_serialize(secret).collect();
    forms.insert(lower_percent(&form).into_bytes());
    forms.insert(form.into_bytes());
    if let Ok(text) = std::str::from_utf8(secret) {
        forms.extend(json_forms(text).into_iter().map(String::into_bytes));
    }
    forms.extend(base64_forms(secret).into_iter().map(String::into_bytes));
    forms
}

/// `%2F` as `%2f`.
fn lower_percent(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut parts = text.split('%');
    result.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).unwrap_or((part, ""));
        let _ = write!(result, "%{}{rest}", digits.to_ascii_lowercase());
    }
    result
}

/// Inside of JSON strings: as little escaped as possible, with `\/`, and with all but ASCII escaped.
fn json_forms(text: &str) -> Vec<String> {
    let quoted = serde_json::to_string(text).unwrap_or_default();
    let plain = quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default().to_owned();
    let mut ascii = String::with_capacity(plain.len());
    for c in plain.chars() {
        if c.is_ascii() {
            ascii.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(ascii, "\\u{unit:04x}");
            }
        }
    }
    let slashed = [plain.replace('/', "\\/"), ascii.replace('/', "\\/")];
    [plain, ascii].into_iter().chain(slashed).collect()
}

/// The secret within base64 texts (as the password of basic authentication is): those digits that depend on nothing but
/// the secret, for each of the three places at which it may begin.
fn base64_forms(secret: &[u8]) -> Vec<String> {
    let mut forms = vec![STANDARD.encode(secret), URL_SAFE_NO_PAD.encode(secret)];
    for (before, skipped) in [(0, 0), (1, 2), (2, 3)] {
        let mut bytes = Zeroizing::new(vec![0_u8; before]);
        bytes.extend_from_slice(secret);
        let digits = bytes.len() * 8 / 6;
        for text in [STANDARD_NO_PAD.encode(&*bytes), URL_SAFE_NO_PAD.encode(&*bytes)] {
            let core = text.get(skipped..digits).unwrap_or_default();
            // Four digits at least, because a secret has four bytes at least.
            forms.push(core.to_owned());
            forms.push(core.replace('/', "\\/"));
            forms.push(percent_encode(core.as_bytes(), UNRESERVED).to_string());
        }
    }
    forms
}

/// The value of an `Authorization` header of basic authentication, without `Basic `.
pub(super) fn basic(user: &str, secret: &[u8]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(user.as_bytes().to_vec());
    text.push(b':');
    text.extend_from_slice(secret);
    Zeroizing::new(STANDARD.encode(&*text))
}

#[cfg(test)]
mod tests;
