//! What the client makes of each answer, over a real connection to a server that says what it is told to.

use std::collections::VecDeque;
use std::sync::Mutex;

use harmonia_core::EvalId;
use harmonia_core::signer_api::{Holder, PathInfo, Slot};

use super::*;
use crate::test_parts::{Answer, Request, TestServer};

struct Fixed(Vec<String>);

impl SignerDirectory for Fixed {
    fn signers(&self) -> PortFuture<'_, Result<Vec<String>, BoxError>> {
        Box::pin(async move { Ok(self.0.clone()) })
    }
}

fn client(urls: Vec<String>) -> SignerClient {
    let options = SignerOptions {
        patience: Duration::from_millis(600),
        pause_min: Duration::from_millis(5),
        pause_max: Duration::from_millis(20),
        parallel_puts: 2,
    };
    SignerClient::new(reqwest::Client::new(), Arc::new(Fixed(urls)), options)
}

fn token() -> ClaimToken {
    ClaimToken::from_random([7; 32])
}

fn upload() -> DrvUpload {
    DrvUpload { evaluation: EvalId(1), drvs: Vec::new() }
}

/// Gives these answers in turn, the last one for ever, and remembers what was asked.
async fn scripted(answers: Vec<Answer>) -> (TestServer, Arc<Mutex<Vec<Request>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (requests, answers) = (Arc::clone(&seen), Mutex::new(VecDeque::from(answers)));
    let server = TestServer::start(move |request| {
        requests.lock().expect("lock").push(request);
        let mut answers = answers.lock().expect("lock");
        if answers.len() > 1 { answers.pop_front().expect("some") } else { answers[0].clone() }
    })
    .await;
    (server, seen)
}

fn error(status: u16, code: &str) -> Answer {
    let error = ApiError { code: code.to_owned(), message: format!("says {code}"), request_id: None };
    Answer::new(status, serde_json::to_vec(&error).expect("JSON"))
}

#[tokio::test]
async fn each_refusal_means_what_it_means() {
    let stored = DrvUploadAnswer { stored: 3 };
    let (server, seen) = scripted(vec![Answer::json(&stored)]).await;
    assert_eq!(client(vec![server.url.to_string()]).drv_upload(&token(), &upload()).await.expect("stored"), stored);
    let request = seen.lock().expect("lock")[0].clone();
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/api/drv-upload"));
    assert_eq!(request.header("authorization"), Some(format!("Bearer {}", token().to_hex()).as_str()));

    let (server, _) = scripted(vec![error(409, "stale-claim")]).await;
    let answer = client(vec![server.url.to_string()]).drv_upload(&token(), &upload()).await;
    assert!(matches!(answer, Err(SignerError::StaleClaim)), "{answer:?}");

    for status in [400, 401, 413, 422] {
        let (server, seen) = scripted(vec![error(status, "wrong-path")]).await;
        let answer = client(vec![server.url.to_string()]).drv_upload(&token(), &upload()).await.expect_err("refused");
        assert!(!answer.is_transient() && answer.to_string().contains("(wrong-path): says wrong-path"), "{answer}");
        assert_eq!(seen.lock().expect("lock").len(), 1, "{status} is final");
    }
}

#[tokio::test]
async fn it_goes_on_to_the_next_signer_and_waits_for_one() {
    let (busy, _) = scripted(vec![error(503, "unavailable")]).await;
    let (good, seen) = scripted(vec![Answer::json(&DrvUploadAnswer { stored: 1 })]).await;
    let dead = "http://127.0.0.1:1".to_owned();
    let client_of_three = client(vec![dead.clone(), busy.url.to_string(), good.url.to_string()]);
    for _ in 0..3 {
        client_of_three.drv_upload(&token(), &upload()).await.expect("the good one");
    }
    assert_eq!(seen.lock().expect("lock").len(), 3);

    let (late, _) = scripted(vec![
        error(503, "starting"),
        Answer::new(200, "no JSON"),
        Answer::json(&DrvUploadAnswer { stored: 2 }),
    ])
    .await;
    let answer = client(vec![late.url.to_string()]).drv_upload(&token(), &upload()).await.expect("in the end");
    assert_eq!(answer.stored, 2);

    for urls in [vec![], vec![dead], vec![busy.url.to_string()]] {
        let error = client(urls).drv_upload(&token(), &upload()).await.expect_err("nobody");
        assert!(error.is_transient() && matches!(error, SignerError::Unavailable { .. }), "{error}");
        assert!(!format!("{error:?}").contains(&token().to_hex()));
    }
}

fn path(number: u8) -> PathInfo {
    PathInfo {
        path: format!("/nix/store/{}-x", "0".repeat(32)),
        nar_hash: "sha256:0".to_owned(),
        nar_size: 1,
        file_hash: format!("sha256:{number}"),
        file_size: 5,
        references: Vec::new(),
        deriver: None,
        ca: None,
        listing: Some("long".to_owned()),
    }
}

#[tokio::test]
async fn uploads_renew_expired_slots_and_obey_the_store() {
    let puts = Arc::new(Mutex::new(Vec::<Request>::new()));
    let seen = Arc::clone(&puts);
    let script = Mutex::new(VecDeque::from([Answer::new(503, "SlowDown"), Answer::new(403, "Request has expired")]));
    let address = Arc::new(Mutex::new(String::new()));
    let own = Arc::clone(&address);
    let slots_asked = Arc::new(Mutex::new(Vec::<usize>::new()));
    let asked = Arc::clone(&slots_asked);
    let server = TestServer::start(move |request| {
        if request.path.starts_with("/put/") {
            seen.lock().expect("lock").push(request);
            return script.lock().expect("lock").pop_front().unwrap_or_else(|| Answer::new(200, ""));
        }
        let slots: SlotsRequest = serde_json::from_slice(&request.body).expect("JSON");
        assert!(slots.paths.iter().all(|path| path.listing.is_none()), "listings are for completion");
        asked.lock().expect("lock").push(slots.paths.len());
        let slot = |path: &PathInfo| match path.file_hash.as_str() {
            "sha256:1" => Slot::Present,
            other => Slot::Put {
                url: format!("{}put/{other}?X-Amz-Signature=secret", own.lock().expect("lock")),
                headers: vec![
                    ("host".to_owned(), "not.this.one".to_owned()),
                    ("content-length".to_owned(), "5".to_owned()),
                    ("x-amz-checksum-sha256".to_owned(), "abc".to_owned()),
                ],
            },
        };
        Answer::json(&SlotsAnswer { paths: slots.paths.iter().map(slot).collect(), log: None })
    })
    .await;
    *address.lock().expect("lock") = server.url.to_string();

    let dir = tempfile::tempdir().expect("folder");
    let file = dir.path().join("nar");
    std::fs::write(&file, "bytes").expect("file");
    let request = SlotsRequest { holder: Holder::Evaluation(EvalId(1)), paths: vec![path(1), path(2)], log: None };
    let sources = [UploadSource::Bytes("bytes".into()), UploadSource::File(file)];
    client(vec![server.url.to_string()]).upload(&token(), &request, &sources, None).await.expect("uploaded");
    assert_eq!(*slots_asked.lock().expect("lock"), [2, 1], "only what expired is asked for again");
    let puts = puts.lock().expect("lock");
    assert_eq!(puts.len(), 3, "slow down, expired, stored");
    for put in puts.iter() {
        assert_eq!((put.method.as_str(), put.body.as_slice()), ("PUT", &b"bytes"[..]));
        assert_eq!(put.header("x-amz-checksum-sha256"), Some("abc"));
        assert_eq!(put.header("content-length"), Some("5"));
        assert_eq!(put.header("transfer-encoding"), None);
        assert_ne!(put.header("host"), Some("not.this.one"));
        assert_eq!(put.header("authorization"), None, "the token is for signers only");
    }
}

#[tokio::test]
async fn a_put_that_cannot_succeed_ends() {
    let slot = |server: &TestServer| Slot::Put { url: format!("{}x?sig=secret", server.url), headers: Vec::new() };
    let bytes = UploadSource::Bytes("b".into());
    for (answer, outcome) in [
        (200, Some(PutOutcome::Stored)),
        (412, Some(PutOutcome::Stored)),
        (403, Some(PutOutcome::Expired)),
        (400, None),
    ] {
        let (server, _) = scripted(vec![Answer::new(answer, "BadDigest")]).await;
        let put = client(Vec::new()).put(&slot(&server), &bytes).await;
        assert_eq!(put.as_ref().ok().copied(), outcome, "{answer}: {put:?}");
        if let Err(error) = put {
            assert!(matches!(error, SignerError::PutRefused { status: 400, .. }), "{error}");
        }
    }
    let (server, _) = scripted(vec![Answer::new(500, "broken")]).await;
    let error = client(Vec::new()).put(&slot(&server), &bytes).await.expect_err("never");
    assert!(error.is_transient() && !format!("{error:?}").contains("secret"), "{error:?}");
    assert_eq!(client(Vec::new()).put(&Slot::Present, &bytes).await.expect("nothing to do"), PutOutcome::Stored);
    let missing = UploadSource::File("/no/such/file".into());
    assert!(matches!(client(Vec::new()).put(&slot(&server), &missing).await, Err(SignerError::Source(_))));
}
