//! `.drv` files: proven to be what their paths say, kept as plain objects for builders.
//!
//! An object below `drv/` is the word of a signer: its bytes belong to its path, and the output paths in it were
//! recomputed. So are the rows that say what derivations make and need: they are read from the same bytes, and evaluators
//! can only link to them. What a signer decides about outputs goes back to the objects.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use harmonia_core::ClaimToken;
use harmonia_core::limits::DRV_BYTES_MAX;
use harmonia_core::signer_api::{DrvUpload, DrvUploadAnswer};
use harmonia_db::CheckedDerivation;
use harmonia_nix::derivation::{ModuloError, ModuloHash, VerifyOutputsError};
use harmonia_nix::{Derivation, StorePath};

use super::error::{NotUploaded, ObjectDifference, Refusal, SignError};
use super::rows::invalid_row;
use super::wire::{self, SentDerivation};
use super::{Outputs, PARALLEL_REQUESTS, Signer};
use crate::{ObjectError, PutOptions, PutOutcome, keys};

/// Derivations compress well at any level; they are read by builders only.
const ZSTD_LEVEL: i32 = 3;

/// Most derivations looked at below one.
const CLOSURE_MAX: u64 = 50_000;

struct Checked {
    path: StorePath,
    text: Vec<u8>,
    derivation: Derivation,
    modulo: ModuloHash,
}

impl Signer {
    /// Checks `.drv` files and stores them. Nothing is stored unless all of them are right.
    pub async fn drv_upload(&self, token: &ClaimToken, call: DrvUpload) -> Result<DrvUploadAnswer, SignError> {
        self.db().evaluation_scope(call.evaluation, token).await?;
        let parsed = blocking(move || parse(wire::derivations(call.drvs)?)).await?;

        let mut asked: Vec<StorePath> = parsed
            .iter()
            .flat_map(|(sent, derivation)| derivation.input_drvs.keys().chain([&sent.path]))
            .cloned()
            .collect();
        asked.sort_unstable();
        asked.dedup();
        let known = self.known_modulos(&asked).await?;
        let were_known: Vec<bool> = parsed.iter().map(|(sent, _)| known.contains_key(&sent.path)).collect();
        let checked = blocking(move || check(parsed, known)).await?;

        let stores: Vec<_> = checked
            .iter()
            .zip(&were_known)
            .map(|(derivation, was_known)| self.store_derivation(derivation, *was_known))
            .collect();
        let are_new: Vec<bool> = stream::iter(stores).buffer_unordered(PARALLEL_REQUESTS).try_collect().await?;
        let stored = are_new.into_iter().filter(|is_new| *is_new).count();
        // Last: a derivation that is registered implies that the object was stored.
        let rows: Vec<CheckedDerivation> = checked
            .iter()
            .map(|checked| CheckedDerivation::of(&checked.path, &checked.derivation, checked.modulo.to_string()))
            .collect();
        if let Some(path) = self.db().register_derivations(&rows).await?.into_iter().next() {
            tracing::error!(%path, "the database knows a derivation as something else than its file says: refused, see derivation_findings");
            return Err(Refusal::KnownOtherwise(path).into());
        }
        for Checked { path, derivation, .. } in checked {
            self.inner.outputs.insert(path, Arc::new(derivation.outputs));
        }
        Ok(DrvUploadAnswer { stored })
    }

    async fn known_modulos(&self, paths: &[StorePath]) -> Result<HashMap<StorePath, ModuloHash>, SignError> {
        let known = self.db().modulo_hashes(paths).await?;
        known
            .into_iter()
            .map(|(path, text)| match text.parse() {
                Ok(modulo) => Ok((path, modulo)),
                Err(cause) => Err(invalid_row(&path, cause)),
            })
            .collect()
    }

    async fn store_derivation(&self, derivation: &Checked, was_known: bool) -> Result<bool, SignError> {
        let key = keys::derivation(&derivation.path);
        if was_known && self.store().head(&key).await?.is_some() {
            return Ok(false);
        }
        let text = derivation.text.clone();
        let compressed = blocking(move || {
            zstd::encode_all(text.as_slice(), ZSTD_LEVEL).map_err(|cause| {
                let action = "compress a derivation".to_owned();
                ObjectError::Refused { action, code: "zstd".to_owned(), cause: cause.into() }.into()
            })
        })
        .await?;
        let options =
            PutOptions { content_type: "application/zstd", write_once: self.is_write_once(), ..PutOptions::default() };
        Ok(self.store().put(&key, Bytes::from(compressed), options).await? == PutOutcome::Stored)
    }

    /// The outputs of a derivation that some signer stored before; `None` when there is none.
    pub(super) async fn load_outputs(&self, path: &StorePath) -> Result<Option<Arc<Outputs>>, SignError> {
        if let Some(outputs) = self.inner.outputs.get(path) {
            return Ok(Some(outputs));
        }
        let Some(derivation) = self.load_derivation(path).await? else { return Ok(None) };
        let outputs = Arc::new(derivation.outputs);
        self.inner.outputs.insert(path.clone(), Arc::clone(&outputs));
        Ok(Some(outputs))
    }

    /// Which of `wanted` are not below `root`, by the `.drv` files themselves.
    pub(super) async fn outside_of_closure(
        &self,
        root: &StorePath,
        mut wanted: BTreeSet<StorePath>,
    ) -> Result<BTreeSet<StorePath>, SignError> {
        let mut seen = BTreeSet::from([root.clone()]);
        let mut frontier = vec![root.clone()];
        while !wanted.is_empty() && !frontier.is_empty() {
            let loads: Vec<_> = frontier.iter().map(|path| self.load_derivation(path)).collect();
            let loaded: Vec<_> = stream::iter(loads).buffer_unordered(PARALLEL_REQUESTS).try_collect().await?;
            frontier.clear();
            for input in loaded.into_iter().flatten().flat_map(|derivation| derivation.input_drvs.into_keys()) {
                wanted.remove(&input);
                if seen.insert(input.clone()) {
                    frontier.push(input);
                }
            }
            wire::bound("derivations below one", seen.len() as u64, CLOSURE_MAX)?;
        }
        Ok(wanted)
    }

    pub(super) async fn load_derivation(&self, path: &StorePath) -> Result<Option<Derivation>, SignError> {
        let key = keys::derivation(path);
        let Some(compressed) = self.store().get_bytes(&key, DRV_BYTES_MAX).await? else { return Ok(None) };
        let path = path.clone();
        let parse = move || {
            let broken = |cause| {
                let action = format!("read the object '{key}'");
                SignError::from(ObjectError::Refused { action, code: "damaged".to_owned(), cause })
            };
            let text = decompress(&compressed, DRV_BYTES_MAX).map_err(|cause| broken(cause.into()))?;
            Derivation::from_file(&path, &text).map(Some).map_err(|cause| broken(cause.into()))
        };
        blocking(parse).await
    }

    /// As [`Signer::load_outputs`], of a derivation that must be there.
    pub(super) async fn require_outputs(&self, path: &StorePath) -> Result<Arc<Outputs>, SignError> {
        let missing = || NotUploaded { key: keys::derivation(path), reason: ObjectDifference::Missing };
        self.load_outputs(path).await?.ok_or_else(|| SignError::NotUploaded(vec![missing()]))
    }
}

/// Parsing and hashing hundreds of derivations takes longer than others should wait.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SignError> + Send + 'static,
) -> Result<T, SignError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only when the process ends.
            Err(error) => Err(ObjectError::unavailable("check derivations".to_owned(), "shutting down", error).into()),
        },
    }
}

fn parse(sent: Vec<SentDerivation>) -> Result<Vec<(SentDerivation, Derivation)>, SignError> {
    sent.into_iter()
        .map(|sent| match Derivation::from_file(&sent.path, &sent.text) {
            Ok(derivation) => Ok((sent, derivation)),
            Err(cause) => Err(Refusal::DerivationFile { path: sent.path, cause }.into()),
        })
        .collect()
}

/// Recomputes the output paths of each, in order, from those before it and those known already.
fn check(
    parsed: Vec<(SentDerivation, Derivation)>,
    known: HashMap<StorePath, ModuloHash>,
) -> Result<Vec<Checked>, SignError> {
    let mut modulos: BTreeMap<StorePath, ModuloHash> = known.into_iter().collect();
    let mut checked = Vec::with_capacity(parsed.len());
    for (SentDerivation { path, text }, derivation) in parsed {
        let verified = derivation.verify_outputs(|input| modulos.get(input).copied()).map_err(|cause| match cause {
            VerifyOutputsError::Modulo(ModuloError::UnknownInput(input)) => {
                Refusal::UnknownInput { derivation: path.clone(), input }
            }
            cause => Refusal::DerivationOutputs { path: path.clone(), cause },
        })?;
        modulos.insert(path.clone(), verified.modulo);
        checked.push(Checked { path, text, modulo: verified.modulo, derivation });
    }
    Ok(checked)
}

/// Decompresses at most `bytes_max`, whatever the frame says of its size.
fn decompress(compressed: &[u8], bytes_max: usize) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut text = Vec::new();
    zstd::Decoder::new(compressed)?.take(bytes_max as u64 + 1).read_to_end(&mut text)?;
    if text.len() > bytes_max {
        return Err(std::io::Error::other(format!("more than {bytes_max} bytes when decompressed")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decompression_is_bounded() {
        let bomb = zstd::encode_all(vec![0; 1 << 20].as_slice(), 3).expect("in memory");
        assert!(bomb.len() < 1_000);
        assert_eq!(decompress(&bomb, 1 << 20).expect("within the bound").len(), 1 << 20);
        assert!(decompress(&bomb, (1 << 20) - 1).is_err());
        assert!(decompress(b"no zstd", 100).is_err());
    }
}
