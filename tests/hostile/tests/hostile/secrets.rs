//! A guest that sends its secret to a server that gives it back in every shape; and one that opens secrets without end.

use std::sync::atomic::{AtomicU32, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use harmonia_hostile_tests::{Answer, Log, Received, ScriptedServer, World};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde_json::json;

/// With everything in it that encodings treat differently.
const SECRET: &str = "s3cr/t+\"quoted\" é~&=%";
/// Plain, as forges mint them.
const TOKEN: &str = "hunter2_0123456789abcdef";
/// What the server mints.
const MINTED: &str = "ghs_m1nted/Token+With~all=of:it";

/// The ways in which servers and libraries write a secret.
fn shapes(secret: &str) -> Vec<String> {
    let bytes = secret.as_bytes();
    let json = serde_json::to_string(secret).expect("text");
    let percent = percent_encode(bytes, NON_ALPHANUMERIC).to_string();
    // `%2F` as `%2f`, and the secret's own letters as they are.
    let lower: String = bytes
        .iter()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(*byte).to_string() } else { format!("%{byte:02x}") })
        .collect();
    let mut shapes = vec![
        secret.to_owned(),
        json[1..json.len() - 1].to_owned(),
        json[1..json.len() - 1].replace('/', "\\/"),
        hex::encode(bytes),
        hex::encode_upper(bytes),
        lower,
        percent.replace("%20", "+"),
        percent,
        STANDARD.encode(bytes),
        STANDARD_NO_PAD.encode(bytes),
        URL_SAFE.encode(bytes),
        URL_SAFE_NO_PAD.encode(bytes),
        // As the password of basic authentication, behind users of each length that shifts the digits.
        STANDARD.encode(format!("user:{secret}")),
        STANDARD.encode(format!("users:{secret}")),
        STANDARD.encode(format!("me:{secret}")),
    ];
    shapes.dedup();
    shapes
}

/// In JSON, with every letter escaped although none needs it.
fn units(secret: &str) -> String {
    secret.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect::<Vec<_>>().concat()
}

/// Everything that came, with the secret in all its shapes, in headers and body.
fn echo(received: &Received, secret: &str, mints: bool) -> Answer {
    let minted = if mints { MINTED } else { "not yet" };
    let shapes: Vec<String> = shapes(secret).into_iter().chain(shapes(minted)).collect();
    let body = json!({
        "minted": minted,
        "headers": received.headers,
        "body": String::from_utf8_lossy(&received.body),
        "shapes": shapes,
        (minted): "also as a name",
    });
    // Written by hand, so that the escapes arrive as such.
    let text = body.to_string().replacen('{', &format!("{{\"units\":\"{}\",", units(secret)), 1);
    let mut answer = Answer::text(200, &text).header("content-type", "application/json");
    for (place, shape) in shapes.iter().filter(|shape| shape.is_ascii() && !shape.contains('"')).enumerate() {
        answer = answer.header(&format!("x-shape-{place}"), shape);
    }
    answer
}

/// The text as whoever reads it would understand it: with the escapes of JSON undone, however often.
fn readings(text: &str) -> Vec<String> {
    let unescaped = text.replace("\\/", "/").replace("\\\"", "\"").replace("\\\\", "\\");
    vec![text.to_owned(), unescaped]
}

#[tokio::test]
async fn nothing_that_a_guest_sees_logs_or_stores_holds_a_secret() {
    for secret in [SECRET, TOKEN] {
        let world = World::new();
        let log = Log::capture();
        let server = ScriptedServer::start().await;
        let (echoed, count) = (secret.to_owned(), AtomicU32::new(0));
        // From the request on with which the guest asks for it: what nobody calls a secret is none.
        server.answer_everything_by(move |received| echo(received, &echoed, count.fetch_add(1, Ordering::SeqCst) >= 5));
        let mut spec = world.guest_with_secret("echoes_secrets", secret);
        spec.allow_hosts = vec![server.url().parse().expect("a host")];
        spec.limits.call.output_bytes_max = Some(1 << 20);
        spec.limits.capabilities.log_line_bytes = 1 << 20;
        spec.limits.capabilities.kv_value_bytes = 1 << 20;
        world.load(vec![spec]).await;
        let seen = world.answer("echoes_secrets", server.url()).await;

        // The server got it, each way, and the minted one after it.
        let requests = server.requests();
        assert!(requests.len() == 7, "{}", requests.len());
        let came = format!("{requests:?}");
        assert!(requests.iter().any(|request| request.header("authorization") == Some(&format!("Bearer {MINTED}"))));
        assert!(came.contains("Basic"), "{came}");

        let stored = world.store.get("echoes_secrets".into(), "seen".into()).await.expect("read").expect("written");
        let stored = String::from_utf8(stored.value).expect("text");
        let logged: String = log.written_by("echoes_secrets").into_iter().map(|line| line.message).collect();
        for (where_, text) in [("seen", &seen), ("stored", &stored), ("logged", &logged)] {
            assert!(text.contains("[secret]") && text.contains("x-shape-"), "{where_}: there was something to find");
            for reading in readings(text) {
                for shape in shapes(secret).into_iter().chain(shapes(MINTED)).chain([units(secret)]) {
                    assert!(!reading.contains(&shape), "{secret} {where_}: {shape}\n{reading}");
                    // The beginning alone is as bad.
                    let head: String = shape.chars().take(12).collect();
                    assert!(!reading.contains(&head), "{secret} {where_}: {head} of {shape}\n{reading}");
                }
            }
        }
        // Nor does any other line of the server's log, nor the status.
        for text in [log.text(), format!("{:?}", world.status("echoes_secrets"))] {
            assert!(!text.contains(secret) && !text.contains(MINTED), "{text}");
        }
    }
}

#[tokio::test]
async fn a_secret_goes_nowhere_but_to_its_hosts() {
    let world = World::new();
    let (server, other) = (ScriptedServer::start().await, ScriptedServer::start().await);
    let mut spec = world.guest_with_secret("echoes_secrets", TOKEN);
    spec.allow_hosts = vec![server.url().parse().expect("a host"), other.url().parse().expect("a host")];
    let bound = other.url().to_owned();
    spec.secrets.get_mut("token").expect("there").hosts = Some(vec![bound]);
    world.load(vec![spec]).await;
    let error = world.ask("echoes_secrets", server.url()).await.expect_err("not bound");
    let text = error.to_string();
    assert!(text.contains("the secret `token` is not bound to"), "{text}");
    assert!(text.contains("`secrets.token.hosts` of the plugin `echoes_secrets`"), "{text}");
    assert!(server.requests().is_empty(), "nothing was sent");
}

#[tokio::test]
async fn handles_without_end_meet_their_number() {
    let world = World::new();
    let mut spec = world.guest_with_secret("opens_forever", TOKEN);
    // Each is read from its file.
    spec.limits.call.cpu_ms_max = Some(20_000);
    world.load(vec![spec, world.guest("empty")]).await;
    let text = world.fault("opens_forever", "").await;
    assert!(text.contains("plugin opens_forever") && text.contains("more than 1000 handles at once"), "{text}");
    assert!(!text.contains(TOKEN));
    world.answer("empty", "").await;
}
