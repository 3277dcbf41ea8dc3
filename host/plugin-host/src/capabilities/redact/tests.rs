use proptest::prelude::*;

use super::*;

fn redactor(secrets: &[&str]) -> Redactor {
    Redactor::new(secrets.iter().map(|secret| secret.as_bytes()), std::iter::empty())
}

#[test]
fn every_form_of_a_secret_is_found() {
    let secret = "s3cr3t/\"+ é\nend";
    let redactor = redactor(&[secret]);
    let url: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
    for form in [
        secret.to_owned(),
        serde_json::to_string(secret).expect("JSON"),
        r#""s3cr3t\/\"+ \u00e9\nend""#.to_owned(),
        url.clone(),
        url.to_lowercase(),
        "s3cr3t%2F%22%2B%20%C3%A9%0Aend".to_owned(),
        "s3cr3t%2f%22%2b%20%c3%a9%0aend".to_owned(),
        hex::encode(secret),
        STANDARD.encode(secret),
        URL_SAFE_NO_PAD.encode(secret),
    ] {
        let text = redactor.text(&format!("before {form} after"));
        assert!(text.starts_with("before ") && text.ends_with(" after") && text.contains(MARK), "{form}: {text}");
        assert!(!text.contains(&form) && !text.contains("s3cr3t"), "{form}: {text}");
    }
    assert_eq!(redactor.text("nothing here"), "nothing here");
}

#[test]
fn basic_authentication_is_found_whatever_the_user() {
    let redactor = redactor(&["correct-horse"]);
    for user in ["", "a", "ab", "abc", "x-access-token"] {
        let sent = basic(user, b"correct-horse");
        let text = redactor.text(&format!("authorization: Basic {}", *sent));
        assert!(text.contains(MARK), "{user}: {text}");
        assert!(!text.contains(&sent[sent.len() - 10..sent.len() - 4]), "{user}: {text}");
        // What was sent as it is leaves nothing at all.
        let exact = Redactor::new([b"correct-horse".as_slice()].into_iter(), [sent.as_bytes()].into_iter());
        assert_eq!(exact.text(&format!("Basic {}!", *sent)), "Basic [secret]!");
    }
}

#[test]
fn the_shortest_secrets_are_found_in_basic_authentication() {
    for secret in ["pass", "passw", "passwo", "\t\t a"] {
        let redactor = redactor(&[secret]);
        for user in ["", "a", "ab", "abc"] {
            let sent = basic(user, secret.as_bytes());
            let text = redactor.text(&sent);
            assert!(text.contains(MARK) && text != *sent, "{user}:{secret}: {text}");
        }
    }
}

#[test]
fn secrets_that_overlap_leave_no_rest() {
    let redactor = redactor(&["abcdefgh", "efghijkl", "aaaa"]);
    assert_eq!(redactor.text("<abcdefghijkl>"), "<[secret]>");
    assert_eq!(redactor.text("<aaaaaaaaa>"), "<[secret]>");
    assert_eq!(redactor.text("abcdefghabcdefgh"), "[secret][secret]");
}

#[test]
fn a_long_secret_goes_with_all_its_length() {
    let secret: String = (0..5000_u32).map(|n| char::from(b'a' + (n * n % 26) as u8)).collect();
    let redactor = redactor(&[&secret]);
    assert_eq!(redactor.text(&format!("<{secret}>")), "<[secret]>");
    // A part from the beginning goes too.
    assert_eq!(redactor.text(&format!("<{}>", &secret[..1000])), "<[secret]>");
}

#[test]
fn a_text_made_to_be_slow_is_replaced_as_a_whole() {
    let secret = "a".repeat(64 * 1024);
    let redactor = redactor(&[&secret]);
    let text = vec![b'a'; 1 << 20];
    let clean = redactor.bytes(&text).expect("found");
    assert_eq!(clean, MARK.as_bytes());
}

#[test]
fn json_is_searched_behind_needless_escapes() {
    let redactor = redactor(&["hunter22"]);
    let text = r#"{"big":12345678901234567890,"a":"\u0068unter22","hunter2\u0032":[{"x":"a\u0068unter22b"}]}"#;
    let clean = String::from_utf8(redactor.json(text.as_bytes()).expect("found")).expect("text");
    let value: serde_json::Value = serde_json::from_str(&clean).expect("JSON");
    assert_eq!(
        value,
        serde_json::json!({"big": 12_345_678_901_234_567_890_u64, "a": MARK, MARK: [{"x": "a[secret]b"}]})
    );
    let harmless = r#"{"a":"\u00e9","z":1,"b":1.10}"#;
    assert_eq!(redactor.json(harmless.as_bytes()), None, "not written anew without need");
    assert_eq!(redactor.json(b"{\"a\": \"\\u00e9 no JSON"), None);
}

/// A secret that could not be told from what stands for it is never taken (see `SecretHandle::new`).
fn is_taken(secret: &str) -> bool {
    secret.len() >= SECRET_BYTES_MIN && !MARK.contains(secret) && !secret.contains(MARK)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_secret_survives(
        secrets in prop::collection::vec("[ -~éß\n\t\"\\\\/+]{4,80}", 1..5),
        noise in prop::collection::vec("[ -~]{0,12}", 6),
        user in "[a-z]{0,9}",
        order in prop::collection::vec((0_usize..5, 0_usize..8), 0..12),
    ) {
        prop_assume!(secrets.iter().all(|secret| is_taken(secret)));
        let redactor = Redactor::new(secrets.iter().map(String::as_bytes), std::iter::empty());
        let written = |secret: &str, how: usize| match how {
            0 | 1 => secret.to_owned(),
            2 => { let quoted = serde_json::to_string(secret).expect("JSON"); quoted[1..quoted.len() - 1].to_owned() }
            3 => url::form_urlencoded::byte_serialize(secret.as_bytes()).collect(),
            4 => percent_encode(secret.as_bytes(), COMPONENT).to_string(),
            5 => STANDARD.encode(secret),
            6 => basic(&user, secret.as_bytes()).to_string(),
            _ => hex::encode(secret),
        };
        let mut text = String::new();
        for (place, (which, how)) in order.iter().enumerate() {
            text.push_str(&noise[place % noise.len()]);
            text.push_str(&written(&secrets[which % secrets.len()], *how));
        }
        let clean = redactor.text(&text);
        for secret in &secrets {
            for how in 1..8 {
                let form = written(secret, how);
                // The mark itself can complete a form with what stands beside it; that tells nothing.
                let rest: Vec<&str> = clean.split(MARK).collect();
                prop_assert!(!rest.iter().any(|part| part.contains(&form)), "{form:?} in {clean:?}");
            }
        }
    }

    #[test]
    fn nothing_but_secrets_is_changed(text in "[ -~]{0,200}", secret in "[A-Z]{8,20}") {
        let redactor = redactor(&[&secret]);
        let text = text.to_lowercase();
        prop_assert_eq!(redactor.text(&text), text);
    }
}
