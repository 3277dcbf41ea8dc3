//! A node process that does the cryptography (node/helper.mjs), so that signatures are not made by what verifies them.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::files::crate_folder;

/// One process; ends with this value.
pub(crate) struct Helper {
    process: Mutex<Process>,
}

struct Process {
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// A signature and a fresh random id.
pub(crate) struct Signed {
    pub(crate) signature: String,
    pub(crate) id: String,
}

/// An RSA key in PEM.
pub(crate) struct KeyPair {
    pub(crate) private_pkcs1: String,
    pub(crate) private_pkcs8: String,
    pub(crate) public: String,
}

impl Helper {
    pub(crate) fn start() -> Self {
        let packages = crate_folder().join("node_modules/@octokit/webhooks-methods");
        assert!(packages.is_dir(), "{} is missing: run `./dev setup`, which installs it", packages.display());
        let mut child = Command::new("node")
            .arg(crate_folder().join("node/helper.mjs"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start node ({error}): run `./dev setup`, which installs it"));
        let requests = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("its output is a pipe"));
        Self { process: Mutex::new(Process { child, requests, answers }) }
    }

    pub(crate) fn sign_github(&self, secret: &str, data: &[u8]) -> Signed {
        self.signed("sign-github", secret, data)
    }

    /// In hexadecimal.
    pub(crate) fn hmac_sha256(&self, secret: &str, data: &[u8]) -> Signed {
        self.signed("hmac-sha256", secret, data)
    }

    /// In hexadecimal.
    pub(crate) fn hmac_sha1(&self, secret: &str, data: &[u8]) -> String {
        self.signed("hmac-sha1", secret, data).signature
    }

    pub(crate) fn sha256_base64url(&self, data: &[u8]) -> String {
        text(&self.ask(&json!({ "operation": "sha256-base64url", "data": STANDARD.encode(data) })), "digest")
    }

    /// Whether `signature` (base64url) is that of `data` by the key whose public half is `key`.
    pub(crate) fn verify_rs256(&self, key: &str, data: &[u8], signature: &str) -> bool {
        let request =
            json!({ "operation": "verify-rs256", "key": key, "data": STANDARD.encode(data), "signature": signature });
        self.ask(&request)["valid"] == true
    }

    pub(crate) fn key_pair(&self) -> KeyPair {
        let answer = self.ask(&json!({ "operation": "key-pair" }));
        KeyPair {
            private_pkcs1: text(&answer, "private"),
            private_pkcs8: text(&answer, "private_pkcs8"),
            public: text(&answer, "public"),
        }
    }

    fn signed(&self, operation: &str, secret: &str, data: &[u8]) -> Signed {
        let answer = self.ask(&json!({ "operation": operation, "secret": secret, "data": STANDARD.encode(data) }));
        Signed { signature: text(&answer, "signature"), id: text(&answer, "id") }
    }

    fn ask(&self, request: &Value) -> Value {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let requests = process.requests.as_mut().expect("it runs until it is dropped");
        writeln!(requests, "{request}").expect("node reads");
        let mut line = String::new();
        process.answers.read_line(&mut line).expect("node answers");
        let answer: Value = serde_json::from_str(&line).expect("node answers in JSON");
        assert!(answer.get("error").is_none(), "node could not: {answer}");
        answer
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let process = self.process.get_mut().unwrap_or_else(PoisonError::into_inner);
        // It ends when its input ends.
        drop(process.requests.take());
        let _status = process.child.wait();
    }
}

fn text(answer: &Value, field: &str) -> String {
    answer[field].as_str().unwrap_or_else(|| panic!("node answers with {field}: {answer}")).to_owned()
}
