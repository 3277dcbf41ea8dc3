//! Bounds of what one plugin may ask of the host. Start at [`CapabilityLimits`]; `docs/limits.md` lists them for operators.

use serde::Deserialize;

/// Bounds of one plugin. Each has a default and is a key under `limits` of the plugin's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CapabilityLimits {
    /// Requests that one call may send (redirects not counted: see `redirects_per_request`).
    pub requests_per_call: u32,
    /// Wall clock of one request with all its redirects, from name resolution to the last byte.
    pub request_timeout_ms: u64,
    /// Bytes of a request's URL.
    pub url_bytes: usize,
    /// Headers of a request.
    pub headers_per_request: usize,
    /// Bytes of all names and values of a request's headers.
    pub request_header_bytes: usize,
    /// Bytes of a request's body, with the secrets in it.
    pub request_body_bytes: usize,
    /// Bytes of all names and values of an answer's headers.
    pub response_header_bytes: usize,
    /// Bytes of one answer.
    pub response_body_bytes: usize,
    /// Bytes of all answers of one call.
    pub response_bytes_per_call: usize,
    /// Redirects that one request follows.
    pub redirects_per_request: u32,
    /// Secrets that go out with one request.
    pub auth_per_request: usize,
    /// Strings of one answer that become secrets.
    pub captures_per_request: usize,
    /// Longest time for which a host's rate limit holds back requests to it.
    pub hold_back_s: u32,
    /// Bytes of the file of a granted secret.
    pub secret_file_bytes: u64,
    /// Bytes of a captured or derived secret.
    pub captured_secret_bytes: usize,
    /// Handles that one call may have made.
    pub secrets_per_call: usize,
    /// Secrets kept between calls; beyond it, the one whose time is over first makes room.
    pub kept_secrets: usize,
    /// How long a call waits for a secret that another call of the plugin may be about to keep, in milliseconds.
    pub kept_wait_ms: u64,
    /// Bytes that `sign-rs256` signs.
    pub sign_bytes: usize,
    /// Bytes of the claims of a token.
    pub claims_bytes: usize,
    /// Bytes of a line of the log; the rest is cut, and marked as cut.
    pub log_line_bytes: usize,
    /// Lines of the log that one call may write.
    pub log_lines_per_call: u32,
    /// Lines of the log that all calls together may write in a minute.
    pub log_lines_per_minute: u32,
    /// Reads and writes of the store by one call.
    pub kv_operations_per_call: u32,
    /// Bytes of a key of the store.
    pub kv_key_bytes: usize,
    /// Bytes of a value of the store.
    pub kv_value_bytes: usize,
}

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

impl Default for CapabilityLimits {
    fn default() -> Self {
        Self {
            requests_per_call: 30,
            request_timeout_ms: 10_000,
            url_bytes: 8 * KIB,
            headers_per_request: 64,
            request_header_bytes: 32 * KIB,
            request_body_bytes: 4 * MIB,
            response_header_bytes: 64 * KIB,
            response_body_bytes: 4 * MIB,
            response_bytes_per_call: 64 * MIB,
            redirects_per_request: 5,
            auth_per_request: 4,
            captures_per_request: 4,
            hold_back_s: 3600,
            secret_file_bytes: 64 * KIB as u64,
            captured_secret_bytes: 16 * KIB,
            secrets_per_call: 256,
            kept_secrets: 1000,
            kept_wait_ms: 10_000,
            sign_bytes: 64 * KIB,
            claims_bytes: 4 * KIB,
            log_line_bytes: 4 * KIB,
            log_lines_per_call: 200,
            log_lines_per_minute: 2000,
            kv_operations_per_call: 500,
            kv_key_bytes: 512,
            kv_value_bytes: 64 * KIB,
        }
    }
}
