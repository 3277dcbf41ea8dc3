//! Whether objects are in the bucket as declared.

use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::error::{NotUploaded, ObjectDifference, SignError};
use super::rules::{ObjectState, judge_object};
use super::wire::Object;
use super::{PARALLEL_REQUESTS, Signer};
use crate::ObjectError;

/// A question to the store: is the object at this key this one?
pub(super) type Look = (String, Object);
/// `None`: it is. Errors are shared by all who asked.
pub(super) type LookAnswer = Result<Option<ObjectDifference>, Arc<ObjectError>>;

impl Signer {
    /// As [`Signer::look`], shared with whoever asks the same at this moment.
    pub(super) async fn look_shared(&self, key: String, object: Object) -> LookAnswer {
        let look = (key.clone(), object);
        self.inner.looks.run(look, || async move { self.look(&key, object).await.map_err(Arc::new) }).await.0
    }

    /// How the object differs from the declared one; `None` when it does not.
    pub(super) async fn look(&self, key: &str, object: Object) -> Result<Option<ObjectDifference>, ObjectError> {
        let head = self.store().head(key).await?;
        match judge_object(&object, head.as_ref()) {
            ObjectState::Present => Ok(None),
            ObjectState::Differs(difference) => Ok(Some(difference)),
            // The store keeps no checksums: the bytes themselves decide.
            ObjectState::Unknown => Ok(match self.store().hash(key).await? {
                None => Some(ObjectDifference::Missing),
                Some((hash, _)) if hash == object.hash => None,
                Some(_) => Some(ObjectDifference::Checksum),
            }),
        }
    }

    /// Fails unless every object is there as declared.
    pub(super) async fn require(&self, objects: Vec<Look>) -> Result<(), SignError> {
        let looks: Vec<_> = objects.into_iter().map(|(key, object)| self.look_for_missing(key, object)).collect();
        let looks: Vec<Option<NotUploaded>> =
            stream::iter(looks).buffer_unordered(PARALLEL_REQUESTS).try_collect().await?;
        let missing: Vec<NotUploaded> = looks.into_iter().flatten().collect();
        if missing.is_empty() { Ok(()) } else { Err(SignError::NotUploaded(missing)) }
    }

    async fn look_for_missing(&self, key: String, object: Object) -> Result<Option<NotUploaded>, ObjectError> {
        let difference = self.look(&key, object).await?;
        Ok(difference.map(|reason| NotUploaded { key, reason }))
    }
}
