//! Commits that touch nothing of what their tree calls relevant (`paths`): they show what the nearest ancestor that was
//! evaluated shows, red if that is red. Start at [`skip`].

use harmonia_core::ClaimToken;
use harmonia_core::api::Source;
use harmonia_db::ClaimedEvaluation;

use super::Settings;
use super::evaluation::EvaluateError;
use super::source::{ancestors, touches};

/// Ancestors that are looked at; when none of them was evaluated, the commit is.
const ANCESTORS_MAX: usize = 100;

/// Ends the evaluation of a push that touched no relevant file since an ancestor with results. `false`: evaluate it.
pub(super) async fn skip(
    settings: &Settings,
    claimed: &ClaimedEvaluation,
    token: &ClaimToken,
    commit: &str,
    paths: &[String],
) -> Result<bool, EvaluateError> {
    let Source::Git { url } = &claimed.source else { return Ok(false) };
    // Whoever asks by hand wants an evaluation; a pull request is no push to what its base was evaluated for.
    if paths.is_empty() || claimed.pull_request.is_some() || claimed.attrs.is_some() || claimed.attempt > 1 {
        return Ok(false);
    }
    let db = &settings.options.db;
    let sources = settings.git_sources();
    let before = ancestors(&sources, url, commit, ANCESTORS_MAX).await?;
    let Some((ancestor, evaluated)) = db.evaluated_commit(claimed.project, &before).await? else { return Ok(false) };
    if touches(&sources, url, &ancestor, commit, paths).await? {
        return Ok(false);
    }
    let reason = format!("touches none of 'paths' since {}, which evaluation {evaluated} is of", &ancestor[..12]);
    Ok(db.skip_evaluation(claimed.id, token, evaluated, &reason).await?)
}
