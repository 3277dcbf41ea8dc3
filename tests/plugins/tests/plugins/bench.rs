//! A plugin on the bench: calls with as few words as possible, every answer watched. Start at [`Bench`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use harmonia_core::forge::{
    BranchHead, CloneCredential, CommitStatus, Delivery, Event, ForgeError, ForgeRepository, ForgeUser,
    LoginCompletion, LoginStart, Page, Permission, PullRequest, RepositoryRef, StatusState, WebhookRequest,
};
use harmonia_core::ports::Forge;
use harmonia_core::{Clock, Timestamp};
use harmonia_fake_forges::Delivery as Delivered;
use sha2::{Digest as _, Sha256};

use crate::watch::Watch;

/// What calls give.
pub(crate) type Outcome<T> = Result<T, ForgeError>;

/// Where webhooks go.
pub(crate) const HOOK_URL: &str = "https://ci.example.org/webhook/under-test";

/// Where browsers come back to.
pub(crate) const REDIRECT_URL: &str = "https://ci.example.org/login/under-test/complete";

/// A clock that stands until it is moved.
pub(crate) struct StoppedClock(Mutex<Timestamp>);

impl StoppedClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(time::macros::datetime!(2026-11-22 12:00:00 UTC))))
    }

    pub(crate) fn advance(&self, time: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += time;
    }
}

impl Clock for StoppedClock {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A forge plugin that runs.
#[derive(Clone)]
pub(crate) struct Bench {
    pub(crate) forge: Arc<dyn Forge>,
    pub(crate) watch: Arc<Watch>,
}

impl Bench {
    pub(crate) async fn webhook(&self, delivered: &Delivered) -> Outcome<Delivery> {
        let headers = delivered.headers.iter().map(|(name, value)| (name.to_lowercase(), value.clone())).collect();
        let request = WebhookRequest { headers, body: delivered.body.clone() };
        self.watch.said(self.forge.webhook(request).await)
    }

    /// The events of a delivery that must be taken.
    pub(crate) async fn events(&self, delivered: &Delivered) -> Vec<Event> {
        let delivery = self.webhook(delivered).await.expect("the delivery is taken");
        assert!(!delivery.id.is_empty());
        delivery.events
    }

    /// The event of a delivery that says one thing.
    pub(crate) async fn event(&self, delivered: &Delivered) -> Event {
        let mut events = self.events(delivered).await;
        assert_eq!(events.len(), 1, "{events:?}");
        events.remove(0)
    }

    pub(crate) async fn report(&self, status: &CommitStatus) -> Outcome<()> {
        self.watch.said(self.forge.report(status.clone()).await)
    }

    pub(crate) async fn comment(&self, repository: &RepositoryRef, number: u64, key: &str, body: &str) -> Outcome<()> {
        self.watch.said(self.forge.comment(repository.clone(), number, key.to_owned(), body.to_owned()).await)
    }

    pub(crate) async fn page(&self, cursor: Option<String>) -> Outcome<Page<ForgeRepository>> {
        self.watch.said(self.forge.repositories(cursor).await)
    }

    /// All repositories, and how many calls it took.
    pub(crate) async fn discover(&self) -> Outcome<(Vec<ForgeRepository>, usize)> {
        let (mut all, mut cursor, mut calls) = (Vec::new(), None, 0);
        loop {
            let page = self.page(cursor).await?;
            all.extend(page.items);
            calls += 1;
            assert!(calls < 100, "discovery does not end");
            match page.next {
                Some(next) => cursor = Some(next),
                None => return Ok((all, calls)),
            }
        }
    }

    pub(crate) async fn head(&self, repository: &RepositoryRef, branch: &str) -> Outcome<BranchHead> {
        self.watch.said(self.forge.branch_head(repository.clone(), branch.to_owned()).await)
    }

    pub(crate) async fn tree(&self, repository: &RepositoryRef, commit: &str) -> Outcome<String> {
        self.watch.said(self.forge.tree_hash(repository.clone(), commit.to_owned()).await)
    }

    pub(crate) async fn pull_request(&self, repository: &RepositoryRef, number: u64) -> Outcome<PullRequest> {
        self.watch.said(self.forge.pull_request(repository.clone(), number).await)
    }

    /// Numbers of all open pull requests, and how many calls it took.
    pub(crate) async fn open_pull_requests(&self, repository: &RepositoryRef) -> Outcome<(Vec<u64>, usize)> {
        let (mut all, mut cursor, mut calls) = (Vec::new(), None, 0);
        loop {
            let page = self.watch.said(self.forge.open_pull_requests(repository.clone(), cursor).await)?;
            all.extend(page.items.into_iter().map(|pull| pull.number));
            calls += 1;
            assert!(calls < 100, "the list does not end");
            match page.next {
                Some(next) => cursor = Some(next),
                None => return Ok((all, calls)),
            }
        }
    }

    pub(crate) async fn permission(&self, repository: &RepositoryRef, user: &str) -> Outcome<Permission> {
        self.watch.said(self.forge.permission(repository.clone(), user.to_owned()).await)
    }

    pub(crate) async fn credential(&self, repository: &RepositoryRef) -> Outcome<CloneCredential> {
        let found = self.watch.said(self.forge.clone_credential(repository.clone()).await)?;
        Ok(found.expect("a credential is needed"))
    }

    pub(crate) async fn install(&self, repository: &RepositoryRef) -> Outcome<()> {
        self.watch.said(self.forge.install_hook(repository.clone(), HOOK_URL.to_owned()).await)
    }

    pub(crate) async fn remove(&self, repository: &RepositoryRef) -> Outcome<()> {
        self.watch.said(self.forge.remove_hook(repository.clone(), HOOK_URL.to_owned()).await)
    }

    /// The address of a login with this verifier.
    pub(crate) async fn login_url(&self, verifier: &str) -> String {
        let start = LoginStart {
            redirect_url: REDIRECT_URL.to_owned(),
            state: "a state & more".to_owned(),
            code_challenge: URL_SAFE_NO_PAD.encode(Sha256::digest(verifier)),
        };
        self.watch.said(self.forge.login_url(start).await).expect("an address")
    }

    pub(crate) async fn login(&self, code: &str, verifier: &str) -> Outcome<ForgeUser> {
        let completion = LoginCompletion {
            code: code.to_owned(),
            redirect_url: REDIRECT_URL.to_owned(),
            code_verifier: verifier.to_owned(),
        };
        self.watch.said(self.forge.login_complete(completion).await)
    }
}

/// The code in the address that a browser is sent back to, which must carry the state of the login.
pub(crate) fn code_of(back: &str) -> String {
    let back = url::Url::parse(back).expect("an address");
    let value = |wanted: &str| {
        let mut pairs = back.query_pairs().filter(|(name, _)| name == wanted);
        pairs.next().map(|(_, value)| value.into_owned())
    };
    assert_eq!(value("state").as_deref(), Some("a state & more"));
    value("code").expect("a code")
}

/// A verifier of the shortest length that is allowed (RFC 7636), told apart by a digit.
pub(crate) fn verifier(digit: u8) -> String {
    format!("{digit}dBjftJeZ4CVPmB92K27uhbUJU1p1rwW1gFWFOEjXkT")
}

/// The status of a build.
pub(crate) fn status(repository: &RepositoryRef, commit: &str, state: StatusState) -> CommitStatus {
    let started_at = time::macros::datetime!(2026-11-22 11:58:00 UTC);
    let ended = state != StatusState::Pending;
    CommitStatus {
        repository: repository.clone(),
        commit: commit.to_owned(),
        context: "harmonia-ci/nix-build".to_owned(),
        state,
        description: format!("it is {}", state.as_str()),
        target_url: Some("https://ci.example.org/evaluations/7".to_owned()),
        summary: "## Summary\n\n*two* jobs".to_owned(),
        annotations: Vec::new(),
        started_at: Some(started_at),
        finished_at: ended.then(|| started_at + Duration::from_secs(61)),
    }
}
