//! Which cache has a path. Start at [`Run::ask_caches`].

use std::sync::Arc;

use harmonia_nix::store_path::StorePath;
use harmonia_nix::{ContentAddress, NarInfo};

use super::run::Run;
use crate::substitute::Cache;

/// A cache that has a path and is to be believed.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) info: NarInfo,
    pub(super) cache: Arc<Cache>,
    /// Which of the caches this is, to go on with the next.
    pub(super) index: usize,
}

/// What the caches say of a path.
#[derive(Debug, Clone)]
pub(super) enum LookUp {
    /// One has it.
    Offer(Arc<Offer>),
    /// None has it.
    Nowhere,
    /// None has it, but one could not be asked.
    Failed(Arc<str>),
}

impl LookUp {
    /// The cache that has it.
    pub(super) fn offer(&self) -> Option<&Arc<Offer>> {
        match self {
            Self::Offer(offer) => Some(offer),
            Self::Nowhere | Self::Failed(_) => None,
        }
    }
}

impl Run {
    /// What the caches from the given one on say of a path; `address`: of a fixed output.
    pub(super) async fn ask_caches(&self, path: &StorePath, address: Option<ContentAddress>, from: usize) -> LookUp {
        let (options, log) = (&self.request.options, &self.request.log);
        let mut failed = None;
        for (index, cache) in self.caches().await.iter().enumerate().skip(from) {
            let answer = match self.scheduler.queries.acquire().await {
                Ok(_permit) => cache.narinfo(path, address).await,
                Err(_closed) => return LookUp::Nowhere,
            };
            match answer {
                Ok(None) => {}
                Ok(Some(info)) if !options.require_signatures || cache.is_believed(&info, &options.trusted_keys) => {
                    return LookUp::Offer(Arc::new(Offer { info, cache: Arc::clone(cache), index }));
                }
                Ok(Some(_)) => log.warn(&format!(
                    "the substitute for '{path}' from '{}' is not signed by any of the keys in 'trusted-public-keys'",
                    cache.uri()
                )),
                Err(error) => {
                    let message = format!("cannot ask '{}' for '{path}': {error}", cache.uri());
                    log.warn(&message);
                    failed.get_or_insert(message);
                }
            }
        }
        failed.map_or(LookUp::Nowhere, |message| LookUp::Failed(message.into()))
    }
}
