//! Attempts that failed: their log is kept, the rest is the database's decision.

use harmonia_core::ClaimToken;
use harmonia_core::limits::ERROR_BYTES_MAX;
use harmonia_core::signer_api::{BuildFailed, BuildFailedAnswer, Failure};
use harmonia_db::{DbError, FailOutcome};

use super::error::SignError;
use super::{Answered, Signer, wire};

impl Signer {
    /// Records how an attempt failed and makes its log the latest of its derivation.
    pub async fn build_failed(&self, token: &ClaimToken, call: &BuildFailed) -> Result<BuildFailedAnswer, SignError> {
        if let Some(Answered::Failed(answer)) = self.answered(call.attempt, token) {
            return Ok(answer);
        }
        let declared = call.log.as_ref().map(wire::log).transpose()?;
        let scope = self.db().attempt_scope(call.attempt, token).await?;
        let mut log_key = self.publish_log(&scope.drv_path, call.attempt, declared.as_ref()).await;
        if let Some(bytes) = declared.and_then(|log| log.bytes).filter(|_| !self.inner.options.small_in_bucket) {
            match self.db().keep_log(call.attempt, token, &bytes).await {
                Ok(()) => {}
                Err(error @ DbError::StaleClaim) => return Err(error.into()),
                Err(error) => {
                    tracing::warn!(attempt = %call.attempt, error = &error as &dyn std::error::Error, "could not keep a log");
                    log_key = None;
                }
            }
        }
        let failure = Failure { message: shorten(&call.failure.message), ..call.failure.clone() };
        let outcome = self.db().fail_attempt(call.attempt, token, &failure, &call.usage, log_key.as_deref()).await?;
        let answer = BuildFailedAnswer { retried: matches!(outcome, FailOutcome::Retried { .. }) };
        self.remember_answer(call.attempt, token, Answered::Failed(answer.clone()));
        Ok(answer)
    }
}

/// Stands for what was left out.
const GAP: &str = "\n[…]\n";

/// Keeps head and end of what is too long, where the reason usually stands.
fn shorten(message: &str) -> String {
    if message.len() <= ERROR_BYTES_MAX {
        return message.to_owned();
    }
    let half = (ERROR_BYTES_MAX - GAP.len()) / 2;
    let head_end = message.floor_char_boundary(half);
    let tail_start = message.ceil_char_boundary(message.len() - half);
    [&message[..head_end], GAP, &message[tail_start..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_keep_head_and_end() {
        assert_eq!(shorten("short"), "short");
        let long = format!("head{}end", "é".repeat(ERROR_BYTES_MAX));
        let kept = shorten(&long);
        assert!(kept.len() <= ERROR_BYTES_MAX && kept.starts_with("headé") && kept.ends_with("éend"), "{}", kept.len());
    }
}
