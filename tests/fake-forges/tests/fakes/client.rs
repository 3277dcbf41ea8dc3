//! A plain client for tests of the fakes, and tokens made the way an app makes them.

use std::io::Write;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use harmonia_fake_forges::FakeGithub;
use serde_json::{Value, json};

pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
    authorization: String,
}

impl Client {
    pub(crate) fn new(url: &str, authorization: &str) -> Self {
        Self { http: reqwest::Client::new(), url: url.to_owned(), authorization: authorization.to_owned() }
    }

    pub(crate) fn authorization(&self) -> &str {
        &self.authorization
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        self.http
            .request(method.parse().expect("a method"), format!("{}{path}", self.url))
            .header("user-agent", "harmonia-test")
            .header("accept", "application/json")
            .header("authorization", &self.authorization)
    }

    pub(crate) async fn send(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let request = self.request(method, path);
        let request = if body.is_null() { request } else { request.json(body) };
        let response = request.send().await.expect("it answers");
        let status = response.status().as_u16();
        let bytes = response.bytes().await.expect("a body");
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        self.send("GET", path, &Value::Null).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send("POST", path, body).await
    }

    pub(crate) async fn patch(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send("PATCH", path, body).await
    }
}

/// A token of the app, signed by node: `from` and `until` in seconds from now.
pub(crate) fn jwt(forge: &FakeGithub, from: i64, until: i64) -> String {
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    let claims = json!({ "iss": forge.app_id().to_string(), "iat": now + from, "exp": now + until });
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&json!({ "alg": "RS256", "typ": "JWT" })), part(&claims));
    let script = "process.stdout.write(c.sign('RSA-SHA256',Buffer.from(i.data,'base64'),i.key).toString('base64url'))";
    let signature = node(script, &json!({ "key": forge.private_key(), "data": STANDARD.encode(&signed) }));
    format!("{signed}.{signature}")
}

/// HMAC-SHA256 of each body in hexadecimal.
pub(crate) fn hmac_sha256(secret: &str, bodies: &[Vec<u8>]) -> Vec<String> {
    let script = "const h=d=>c.createHmac('sha256',i.secret).update(Buffer.from(d,'base64')).digest('hex');\
                  process.stdout.write(i.data.map(h).join(' '))";
    let data: Vec<String> = bodies.iter().map(|body| STANDARD.encode(body)).collect();
    node(script, &json!({ "secret": secret, "data": data })).split(' ').map(str::to_owned).collect()
}

/// Runs a line of JavaScript with `c` the crypto module and `i` the input: neither the fakes' signer nor ours.
fn node(script: &str, input: &Value) -> String {
    let whole = format!(
        "const c=require('crypto');let s='';process.stdin.on('data',d=>s+=d).on('end',()=>{{const i=JSON.parse(s);{script}}})"
    );
    let mut node = Command::new("node")
        .args(["-e", &whole])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("node starts");
    node.stdin.take().expect("a pipe").write_all(input.to_string().as_bytes()).expect("node reads");
    let output = node.wait_with_output().expect("node ends");
    assert!(output.status.success());
    String::from_utf8(output.stdout).expect("text")
}
