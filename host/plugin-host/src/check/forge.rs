//! Cases of forges.

use harmonia_core::Timestamp;
use harmonia_core::forge::{
    CommitStatus, ForgeError, ForgeFeature, LoginCompletion, LoginStart, RepositoryRef, StatusState, WebhookRequest,
};
use harmonia_core::ports::Forge;

use super::{Report, garbage};

/// Any answer of its own will do; failing will not.
fn answered<T>(answer: Result<T, ForgeError>) -> Result<(), String> {
    match answer {
        Err(ForgeError::Plugin(text)) => Err(text),
        Err(ForgeError::Unsupported(export)) => Err(format!("it does not export {export}")),
        _ => Ok(()),
    }
}

fn repository() -> RepositoryRef {
    RepositoryRef { id: "1".into(), full_name: "owner/name".into() }
}

pub(super) async fn check(forge: &dyn Forge, report: &mut Report<'_>) {
    if forge.has(ForgeFeature::Webhooks) {
        webhooks(forge, report).await;
    }
    let commit = "0123456789abcdef0123456789abcdef01234567".to_owned();
    if forge.has(ForgeFeature::Statuses) {
        for state in [StatusState::Pending, StatusState::Success, StatusState::Failure, StatusState::Error] {
            let status = CommitStatus {
                repository: repository(),
                commit: commit.clone(),
                context: "harmonia-ci/nix-build".into(),
                state,
                description: "conformance".into(),
                target_url: None,
                summary: String::new(),
                annotations: Vec::new(),
                started_at: Some(Timestamp::UNIX_EPOCH),
                finished_at: None,
            };
            let case = format!("a status ({}) is answered without a network", state.as_str());
            report.add(case, answered(forge.report(status).await));
        }
    }
    if forge.has(ForgeFeature::Comments) {
        let answer = forge.comment(repository(), 1, "key".into(), "text".into()).await;
        report.add("a comment is answered without a network", answered(answer));
    }
    if forge.has(ForgeFeature::Discovery) {
        for (case, cursor) in [("first page", None), ("page of a cursor that it never gave", Some("no such cursor"))] {
            let answer = forge.repositories(cursor.map(ToOwned::to_owned)).await;
            report.add(format!("a {case} of repositories is answered without a network"), answered(answer));
        }
    }
    if forge.has(ForgeFeature::Branches) {
        let answer = forge.branch_head(repository(), "a/branch with \u{1f980}".into()).await;
        report.add("a branch's head is answered without a network", answered(answer));
        let answer = forge.tree_hash(repository(), commit).await;
        report.add("a tree's hash is answered without a network", answered(answer));
    }
    if forge.has(ForgeFeature::PullRequests) {
        let answer = forge.pull_request(repository(), u64::MAX).await;
        report.add("a pull request is answered without a network", answered(answer));
        let answer = forge.open_pull_requests(repository(), None).await;
        report.add("open pull requests are answered without a network", answered(answer));
    }
    if forge.has(ForgeFeature::Permissions) {
        let answer = forge.permission(repository(), "no/../body".into()).await;
        let outcome = match &answer {
            Ok(permission) => Err(format!("it says {permission:?} without having asked anybody")),
            Err(_) => answered(answer),
        };
        report.add("nobody is given a permission without a network", outcome);
    }
    if forge.has(ForgeFeature::Credentials) {
        report.add(
            "a clone credential is answered without a network",
            answered(forge.clone_credential(repository()).await),
        );
    }
    if forge.has(ForgeFeature::Hooks) {
        let url = "https://ci.example/webhook/x".to_owned();
        let answer = forge.install_hook(repository(), url.clone()).await;
        report.add("installing a webhook is answered without a network", answered(answer));
        let answer = forge.remove_hook(repository(), url).await;
        report.add("removing a webhook is answered without a network", answered(answer));
    }
    if forge.has(ForgeFeature::Login) {
        login(forge, report).await;
    }
}

async fn webhooks(forge: &dyn Forge, report: &mut Report<'_>) {
    let unsigned = WebhookRequest {
        headers: vec![("content-type".into(), "application/json".into())],
        body: b"{\"zen\": \"nothing\"}".to_vec(),
    };
    let outcome = match forge.webhook(unsigned).await {
        Err(ForgeError::Denied(_)) => Ok(()),
        other => Err(format!("it answers {other:?}")),
    };
    report.add("a delivery without a signature is denied", outcome);
    for (what, body) in garbage() {
        let headers = vec![("x-event".into(), "push".into()), ("x-signature-256".into(), "sha256=zz".into())];
        let outcome = match forge.webhook(WebhookRequest { headers, body }).await {
            Ok(delivery) => Err(format!("it takes it for {} events", delivery.events.len())),
            answer => answered(answer),
        };
        report.add(format!("a forged delivery of {what} is refused"), outcome);
    }
}

async fn login(forge: &dyn Forge, report: &mut Report<'_>) {
    let start = LoginStart {
        redirect_url: "https://ci.example/login/x/complete".into(),
        state: "a state & more".into(),
        code_challenge: "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM".into(),
    };
    let answer = forge.login_url(start).await;
    let outcome = match &answer {
        Ok(url) if !url.starts_with("https://") && !url.starts_with("http://") => Err(format!("'{url}' is no address")),
        Ok(url) if url.contains("a state & more") => Err("the state stands unescaped in the address".into()),
        _ => answered(answer),
    };
    report.add("a login's address is well-formed", outcome);
    let completion = LoginCompletion {
        code: "a code that nobody gave".into(),
        redirect_url: "https://ci.example/login/x/complete".into(),
        code_verifier: "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk".into(),
    };
    let outcome = match forge.login_complete(completion).await {
        Ok(user) => Err(format!("it says that '{}' logged in without having asked anybody", user.login)),
        answer => answered(answer),
    };
    report.add("nobody is logged in without a network", outcome);
}
