//! What every plugin of a kind must pass: the cases of `harmonia-ci plugin check`, and what needs a server that answers.

use harmonia_core::forge::{ForgeError, ForgeFeature, RepositoryRef, WebhookRequest};
use harmonia_core::plugin::PluginKind;

use crate::{Answer, Running};

/// Runs the suite for the plugin's kind; gives what failed, a sentence each. Empty: it conforms.
///
/// The scripted server answers every request with an error of each kind in turn, so call this on a plugin of its own.
pub async fn conformance(plugin: &Running) -> Vec<String> {
    let checks = plugin.host().check(plugin.spec().clone()).await;
    let mut failed: Vec<String> = checks
        .iter()
        .filter_map(|check| check.problem.as_ref().map(|problem| format!("{}: {problem}", check.case)))
        .collect();
    if checks.is_empty() {
        failed.push("no case was tried".to_owned());
    }
    if plugin.status().kind == Some(PluginKind::Forge) {
        failed.extend(forge(plugin).await);
    }
    failed
}

/// Whether an error is the one that was meant.
type Meant = fn(&ForgeError) -> bool;

/// What a server says becomes an error of the right kind, and never a fault of the plugin.
async fn forge(plugin: &Running) -> Vec<String> {
    let mut failed = Vec::new();
    let forge = plugin.forge();
    if forge.has(ForgeFeature::Webhooks) {
        for body in [b"".to_vec(), b"{}".to_vec(), b"\xff\xfe".to_vec(), b"[1,2".to_vec(), vec![b'['; 200_000]] {
            let request = WebhookRequest { headers: Vec::new(), body: body.clone() };
            if !matches!(forge.webhook(request).await, Err(ForgeError::Denied(_))) {
                failed.push(format!("a delivery without a signature ({} bytes) is not denied", body.len()));
            }
        }
    }
    if !forge.has(ForgeFeature::Branches) {
        return failed;
    }
    let repository = RepositoryRef { id: "1".to_owned(), full_name: "owner/name".to_owned() };
    let garbage = Answer::text(200, "<html>not what you think</html>");
    let deep = Answer::text(200, &"[".repeat(100_000));
    let cases: [(&str, Answer, Meant); 6] = [
        ("a server error", Answer::text(502, "bad gateway"), |error| matches!(error, ForgeError::Unavailable(_))),
        ("a refusal", Answer::text(403, "no"), |error| matches!(error, ForgeError::Denied(_))),
        ("something that is not there", Answer::text(404, "no"), |error| {
            matches!(error, ForgeError::NotFound | ForgeError::Denied(_))
        }),
        ("garbage", garbage, |error| matches!(error, ForgeError::Invalid(_) | ForgeError::Unavailable(_))),
        ("an endless nesting", deep, |error| matches!(error, ForgeError::Invalid(_) | ForgeError::Unavailable(_))),
        // Last: the host leaves the server alone from then on.
        ("a rate limit", Answer::text(429, "slow down").header("retry-after", "7"), |error| {
            matches!(error, ForgeError::RetryAfter(_))
        }),
    ];
    for (what, answer, meant) in cases {
        plugin.server().answer_everything(answer);
        match forge.branch_head(repository.clone(), "main".to_owned()).await {
            Err(error) if meant(&error) => {}
            Err(error) => failed.push(format!("{what} becomes {error:?}")),
            Ok(head) => failed.push(format!("{what} becomes the head {head:?}")),
        }
    }
    failed
}
