use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};

use super::*;
use crate::capabilities::testing::{Plan, rsa_key};

#[test]
fn only_granted_secrets_open() {
    let world = Plan::default().secret("webhook", "topsecret\n").world();
    let mut call = world.call();
    let error = call.open_secret("other").expect_err("not granted");
    let SecretError::NotGranted(text) = &error else { panic!("{error:?}") };
    assert!(text.contains("`secrets.other` of the plugin `test-forge`"), "{text}");
    let secret = call.open_secret("webhook").expect("granted");
    assert_eq!(format!("{secret:?}"), "[secret]");
    assert_eq!(call.expose(&secret).expect("text").expose(), "topsecret", "the newline is the editor's");
    assert_eq!(call.redact("it is topsecret"), "it is [secret]");
    // Any call finds it from then on.
    assert_eq!(world.call().redact("it is topsecret"), "it is [secret]");
}

#[test]
fn a_secret_that_cannot_be_used_says_why() {
    let world = Plan::default()
        .secret("short", "abc\n")
        .secret("mark", "secret")
        .secret("large", vec![b'x'; 64 * 1024 + 1])
        .secret("fits", vec![b'x'; 64 * 1024])
        .secret("gone", "x")
        .secret("folder", "x")
        .bound_secret("hosts", "a-good-secret", &["ftp://x"])
        .world();
    std::fs::remove_file(world.folder.path().join("gone")).expect("removed");
    std::fs::remove_file(world.folder.path().join("folder")).expect("removed");
    std::fs::create_dir(world.folder.path().join("folder")).expect("a folder");
    let mut call = world.call();
    for (name, reason) in [
        ("short", "4 bytes"),
        ("mark", "`[secret]`"),
        ("large", "65536"),
        ("gone", "No such file"),
        ("folder", "is no file"),
        ("hosts", "scheme"),
    ] {
        match call.open_secret(name) {
            Err(SecretError::Unusable(text)) => {
                assert!(text.contains(reason) && text.contains(&format!("`secrets.{name}`")), "{text}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    call.open_secret("fits").expect("just fits");
}

#[test]
fn a_new_file_is_read_when_it_is_opened_again() {
    let world = Plan::default().secret("webhook", "first-secret").world();
    let first = world.call().open_secret("webhook").expect("opened");
    let again = world.call().open_secret("webhook").expect("opened");
    assert!(first.is(&again));
    std::fs::write(world.folder.path().join("webhook"), "second-secret").expect("written");
    let mut call = world.call();
    let second = call.open_secret("webhook").expect("opened");
    assert_eq!(call.expose(&second).expect("text").expose(), "second-secret");
    // Another file under the name, as secrets are replaced; and none.
    std::fs::write(world.folder.path().join("new"), "secret-third!").expect("written");
    std::fs::rename(world.folder.path().join("new"), world.folder.path().join("webhook")).expect("replaced");
    let third = call.open_secret("webhook").expect("opened");
    assert_eq!(call.expose(&third).expect("text").expose(), "secret-third!");
    std::fs::remove_file(world.folder.path().join("webhook")).expect("removed");
    assert!(matches!(call.open_secret("webhook"), Err(SecretError::Unusable(_))));
}

#[test]
fn a_mac_is_verified() {
    let world = Plan::default().secret("webhook", "key").secret("rfc", "Jefe").world();
    let mut call = world.call();
    // RFC 4231, case 2.
    let secret = call.open_secret("rfc").expect("opened");
    let data = b"what do ya want for nothing?";
    let mac = hex::decode("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843").expect("hex");
    assert!(call.verify_hmac_sha256(&secret, data, &mac));
    for wrong in [&mac[..31], &[], &[mac.as_slice(), &[0]].concat(), &[0; 32]] {
        assert!(!call.verify_hmac_sha256(&secret, data, wrong));
    }
    for bit in 0..256 {
        let mut wrong = mac.clone();
        wrong[bit / 8] ^= 1 << (bit % 8);
        assert!(!call.verify_hmac_sha256(&secret, data, &wrong), "bit {bit}");
    }
    assert!(!call.verify_hmac_sha256(&secret, b"what do ya want for nothing!", &mac));
}

#[test]
fn tokens_are_signed_and_stay_secret() {
    let key = rsa_key();
    let world = Plan::default()
        .secret("pkcs8", &key.pkcs8_pem)
        .secret("pkcs1", &key.pkcs1_pem)
        .secret("text", "no key at all")
        .secret("broken", key.pkcs8_pem.replace("MII", "MIX"))
        .world();
    let public = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &key.public_der);
    let mut call = world.call();
    for name in ["pkcs8", "pkcs1"] {
        let secret = call.open_secret(name).expect("opened");
        let signature = call.sign_rs256(&secret, b"data").expect("signed");
        public.verify(b"data", &signature).expect("a good signature");
        assert!(public.verify(b"other", &signature).is_err());

        let claims = r#"{"iss":"12345","iat":1}"#;
        let token = call.derive_jwt_rs256(&secret, claims, 600).expect("derived");
        let text = call.expose(&token).expect("text").expose().to_owned();
        let (signed, signature) = text.rsplit_once('.').expect("three parts");
        let signature = URL_SAFE_NO_PAD.decode(signature).expect("base64");
        public.verify(signed.as_bytes(), &signature).expect("a good signature");
        let (header, body) = signed.split_once('.').expect("two parts");
        assert_eq!(URL_SAFE_NO_PAD.decode(header).expect("base64"), br#"{"alg":"RS256","typ":"JWT"}"#);
        assert_eq!(URL_SAFE_NO_PAD.decode(body).expect("base64"), claims.as_bytes());
        assert_eq!(call.redact(&format!("<{text}>")), "<[secret]>");
        for (claims, lifetime_s) in [("[]", 60), ("{", 60), ("{}", 0), ("{}", 3601)] {
            assert!(call.derive_jwt_rs256(&secret, claims, lifetime_s).is_err(), "{claims} {lifetime_s}");
        }
        let large = format!(r#"{{"a":"{}"}}"#, "x".repeat(4096));
        assert!(
            matches!(call.derive_jwt_rs256(&secret, &large, 60), Err(SecretError::Limit(text)) if text.contains("claims_bytes"))
        );
        let large = vec![0; 64 * 1024 + 1];
        assert!(
            matches!(call.sign_rs256(&secret, &large), Err(SecretError::Limit(text)) if text.contains("sign_bytes"))
        );
    }
    for name in ["text", "broken"] {
        let secret = call.open_secret(name).expect("opened");
        assert!(matches!(call.sign_rs256(&secret, b"data"), Err(SecretError::Unusable(text)) if text.contains(name)));
    }
}

/// A captured secret as `http` makes it.
fn captured(call: &mut CallState, text: &str) -> SecretHandle {
    let bytes = Zeroizing::new(text.as_bytes().to_vec());
    let secret = SecretHandle::new(Origin::Captured, bytes, vec![Binding::Granted], None).expect("a secret");
    call.know(&secret).expect("known");
    secret
}

#[tokio::test]
async fn what_is_kept_expires() {
    let world = Plan::default().secret("key", rsa_key().pkcs8_pem).world();
    let mut call = world.call();
    let token = captured(&mut call, "captured-token");
    call.keep(&token, "installation/1", 60).expect("kept");
    let key = call.open_secret("key").expect("opened");
    let jwt = call.derive_jwt_rs256(&key, "{}", 30).expect("derived");
    call.keep(&jwt, "jwt", 60).expect("kept");
    assert!(matches!(call.keep(&key, "key", 60), Err(SecretError::Unusable(_))), "it is granted");
    for lifetime_s in [0, 86_401] {
        assert!(matches!(call.keep(&token, "x", lifetime_s), Err(SecretError::Limit(_))));
    }
    assert!(matches!(call.keep(&token, &"x".repeat(257), 60), Err(SecretError::Limit(_))));
    drop(call);

    let mut call = world.call();
    assert!(call.kept_secret("nothing").await.is_none());
    let kept = call.kept_secret("installation/1").await.expect("kept");
    assert_eq!(call.expose(&kept).expect("text").expose(), "captured-token");
    assert_eq!(call.redact("captured-token"), "[secret]", "it is in hand now");
    let jwt = call.kept_secret("jwt").await.expect("kept");
    world.clock.advance(Duration::from_secs(30));
    assert!(call.kept_secret("jwt").await.is_none(), "keeping does not make it live longer");
    assert_eq!(call.expose(&jwt).expect_err("expired"), SecretError::Expired);
    assert!(call.kept_secret("installation/1").await.is_some());
    world.clock.advance(Duration::from_secs(30));
    assert!(call.kept_secret("installation/1").await.is_none());
    assert_eq!(call.expose(&kept).expect_err("expired"), SecretError::Expired);
    assert_eq!(call.keep(&kept, "x", 1).expect_err("expired"), SecretError::Expired);
    assert!(!call.verify_hmac_sha256(&kept, b"", &[0; 32]));
}

#[tokio::test]
async fn the_number_of_secrets_is_bounded() {
    let world = Plan::default().limits(|limits| limits.secrets_per_call = 3000).world();
    let mut call = world.call();
    for number in 0..1005_u32 {
        let secret = captured(&mut call, &format!("token-{number}"));
        // The later, the longer.
        call.keep(&secret, &format!("n{number}"), 1000 + number).expect("kept");
    }
    assert_eq!(world.shared.kept.len(), 1000);
    let mut call = world.call();
    assert!(call.kept_secret("n4").await.is_none(), "those that end first made room");
    assert!(call.kept_secret("n5").await.is_some() && call.kept_secret("n1004").await.is_some());

    let world = Plan::default().secret("key", rsa_key().pkcs8_pem).limits(|limits| limits.secrets_per_call = 3).world();
    let mut call = world.call();
    let key = call.open_secret("key").expect("opened");
    let outcomes: Vec<_> = (0..3).map(|_| call.derive_jwt_rs256(&key, "{}", 60)).collect();
    assert!(outcomes[1].is_ok());
    assert!(matches!(&outcomes[2], Err(SecretError::Limit(text)) if text.contains("secrets_per_call")));
}

#[test]
fn a_secret_goes_to_git_only_where_it_is_bound() {
    let world = Plan::hosts(&["a.example", "b.example", "*.c.example"])
        .secret("anywhere", "one-secret")
        .bound_secret("bound", "two-secret", &["a.example"])
        .world();
    let mut call = world.call();
    let (anywhere, bound) = (call.open_secret("anywhere").expect("opened"), call.open_secret("bound").expect("opened"));
    let hosts = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    call.check_hosts(&anywhere, &hosts(&["a.example", "x.c.example"])).expect("granted");
    call.check_hosts(&bound, &hosts(&["a.example"])).expect("bound");
    for (secret, names, reason) in [
        (&bound, vec!["a.example", "b.example"], "secrets.bound.hosts"),
        (&anywhere, vec!["evil.example"], "allow_hosts"),
        (&anywhere, vec!["a.example:444"], "allow_hosts"),
        (&anywhere, vec!["http://a.example"], "allow_hosts"),
        (&anywhere, vec!["*.c.example"], "allow_hosts"),
        (&bound, vec!["a.example", "x.c.example"], "secrets.bound.hosts"),
        (&anywhere, vec!["a.example/path"], "not users or paths"),
        (&anywhere, vec![], "no host"),
    ] {
        let error = call.check_hosts(secret, &hosts(&names)).expect_err(reason).to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn handles_are_for_every_thread() {
    fn check<T: Send + Sync + Clone>() {}
    fn check_send<T: Send>() {}
    check::<SecretHandle>();
    check::<Arc<Shared>>();
    check_send::<CallState>();
}
