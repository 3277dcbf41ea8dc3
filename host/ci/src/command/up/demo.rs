//! `up --demo`: builds the example repository before the user's eyes and says how to fetch a result.

use std::io::IsTerminal as _;

use harmonia_core::api::{AttrState, EvaluationCreated, EvaluationDetail, NewEvaluation, Source};
use url::Url;

use super::data::DataDir;
use crate::client::Client;
use crate::command::eval;
use crate::exit::{Failure, chain};

/// Writes the repository, evaluates it, shows the builds, and prints what to try next.
pub(super) async fn build(client: &Client, data: &DataDir, public_key: &str, url: &Url) -> Result<(), Failure> {
    let folder = data.demo();
    harmonia_embedded::demo::write(&folder, &crate::config::current_system())
        .await
        .map_err(|error| Failure::failed(format!("could not write the demo repository: {}", chain(&error))))?;
    let snapshot = eval::repository::snapshot(&folder, false).await?;
    let bundle = eval::upload(client, &snapshot).await?;
    let wanted = NewEvaluation {
        project: "local/demo".to_owned(),
        source: Source::Bundle { bundle },
        commit: Some(snapshot.commit.clone()),
        branch: Some(snapshot.branch.clone()),
        attrs: None,
        dirty: false,
        title: snapshot.title.clone(),
        author: snapshot.author.clone(),
    };
    let created: EvaluationCreated = client.post("/api/v1/evaluations", &wanted).await?;
    eprintln!("\nThe demo repository is in {}; evaluation {}:", folder.display(), client.url(&created.page));
    let detail = if std::io::stderr().is_terminal() {
        eval::watch(client, created.id, &mut eval::progress::Screen::new()).await?
    } else {
        eval::watch(client, created.id, &mut eval::progress::Lines::default()).await?
    };
    let c = &detail.evaluation.counts;
    eprintln!(
        "\ndemo: {} of {} attributes succeeded; {} failed, {} failed because of that, {} did not evaluate (as they should)",
        c.succeeded, c.total, c.failed, c.dep_failed, c.eval_errors
    );
    if let Some(path) = a_result(&detail) {
        eprintln!("\nFetch a result with stock Nix (NIX_REMOTE picks a store of your own):");
        eprintln!(
            "  NIX_REMOTE=local?root=$HOME/demo-store nix --extra-experimental-features nix-command copy \\\n    \
             --from {} --option trusted-public-keys {public_key} {path}\n",
            url.as_str().trim_end_matches('/')
        );
    }
    Ok(())
}

fn a_result(detail: &EvaluationDetail) -> Option<&String> {
    let mut built = detail.attrs.iter().filter(|attr| matches!(attr.state, AttrState::Succeeded | AttrState::Cached));
    built.find_map(|attr| attr.outputs.get("out").and_then(Option::as_ref))
}
