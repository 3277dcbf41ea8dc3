//! From valid outputs in the local store to published ones: pack, PUT, complete. Start at [`publish`].

use std::collections::{BTreeMap, BTreeSet};

use harmonia_core::FailureKind;
use harmonia_core::signer_api::{
    AttemptUsage, BuildComplete, BuildCompleteAnswer, Holder, LogBlob, OutputInfo, PathInfo, SlotsRequest,
};
use harmonia_db::ClaimedJob;
use harmonia_nix::worker_protocol::types;
use harmonia_nix::{BasicDerivation, StorePath};

use super::Node;
use super::failure::{Trouble, chain, of_packing, of_signer, permanent, transient, transient_error};
use super::replace::delete;
use super::roots::AttemptRoots;
use super::spool::{OpenLog, log_blob};
use crate::pack::{Compressed, PackOptions, Packed, pack, physical_path};
use crate::signer_client::{Upload, UploadSource};
use crate::store_daemon::Connection;

/// Paths below this size are compressed by the thread that reads them: starting others would take longer.
const SMALL_NAR_BYTES: u64 = 1 << 20;
/// Paths made on the side may refer to others, of which a signer speaks only when it has seen the first.
const EXTRA_ROUNDS_MAX: usize = 8;
/// Most paths uploaded along with the outputs.
const EXTRA_PATHS_MAX: usize = 1_000;

/// What the local store says of outputs.
pub(super) type Infos = BTreeMap<StorePath, types::PathInfo>;

/// Uploads all outputs and the log, and has them published.
pub(super) async fn publish(
    node: &Node,
    job: &ClaimedJob,
    derivation: &BasicDerivation,
    infos: &Infos,
    roots: &AttemptRoots,
    log: &OpenLog,
    usage: &AttemptUsage,
) -> Result<(), Trouble> {
    let outputs = outputs(derivation);
    let mut packed = Vec::new();
    for (name, path) in &outputs {
        let info =
            infos.get(*path).ok_or_else(|| transient(format!("output '{name}' is not valid after the build")))?;
        let (wire, file) = pack_path(node, path, info).await?;
        packed.push((OutputInfo { name: (*name).to_owned(), info: wire }, file));
    }
    let log = compressed_log(log).await;
    let blob = log.as_ref().map(log_blob);
    let uploaded = log.as_ref().zip(blob.as_ref().filter(|blob| blob.bytes_base64.is_none()));
    let upload = Upload {
        request: SlotsRequest {
            holder: Holder::Attempt(job.attempt),
            paths: packed.iter().map(|(output, _)| output.info.clone()).collect(),
            log: uploaded.map(|(_, blob)| blob.clone()),
        },
        sources: packed.iter().map(|(_, packed)| source(packed)).collect(),
        log: uploaded.map(|(log, _)| UploadSource::File(log.file.to_path_buf())),
    };
    node.signer.send(&job.token, &upload).await.map_err(|error| of_signer(&error))?;

    let mut complete = BuildComplete {
        attempt: job.attempt,
        outputs: packed.iter().map(|(output, _)| output.clone()).collect(),
        extra_paths: Vec::new(),
        log: blob,
        usage: *usage,
    };
    // The packed files (here `packed`, `log` and this) live until the end, to be uploaded again if need be.
    let mut extra_files = Vec::new();
    let mut uploads = vec![upload];
    for _ in 0..EXTRA_ROUNDS_MAX {
        let call = || node.signer.build_complete(&job.token, &complete);
        let answer = node.signer.complete(&job.token, &uploads, call).await.map_err(|error| of_signer(&error))?;
        match answer {
            BuildCompleteAnswer::Published => return Ok(()),
            BuildCompleteAnswer::Canonical { differs } => {
                node.held.let_go(job.attempt);
                drop_local(node, &outputs, roots, differs).await;
                return Ok(());
            }
            BuildCompleteAnswer::MissingReferences { paths } => {
                let known: BTreeSet<&str> = complete.extra_paths.iter().map(|info| info.path.as_str()).collect();
                let new: Vec<String> = paths.into_iter().filter(|path| !known.contains(path.as_str())).collect();
                if new.is_empty() || complete.extra_paths.len() + new.len() > EXTRA_PATHS_MAX {
                    let message = "the signer misses references of the outputs although they were uploaded";
                    return Err(permanent(FailureKind::Infrastructure, message).into());
                }
                let (upload, files) = upload_extra(node, job, &new).await?;
                let extra = upload.request.paths.iter().cloned();
                complete.extra_paths = references_first(complete.extra_paths.into_iter().chain(extra).collect());
                uploads.push(upload);
                extra_files.extend(files);
            }
        }
    }
    Err(permanent(FailureKind::Infrastructure, "the outputs refer to ever more paths that are in no cache").into())
}

fn outputs(derivation: &BasicDerivation) -> BTreeMap<&str, &StorePath> {
    derivation.outputs.iter().filter_map(|(name, output)| Some((name.as_str(), output.path()?))).collect()
}

/// What the local store knows of the outputs; an error when they are too large together.
pub(super) async fn output_infos(
    daemon: &mut Connection,
    job: &ClaimedJob,
    derivation: &BasicDerivation,
    usage: &mut AttemptUsage,
) -> Result<Infos, Trouble> {
    let mut infos = BTreeMap::new();
    for path in outputs(derivation).into_values() {
        if let Some(info) = daemon.query_path_info(path).await.map_err(|error| transient_error(&error))? {
            infos.insert(path.clone(), info);
        }
    }
    usage.output_bytes = infos.values().map(|info| info.nar_size_bytes).sum();
    let max = job.limits.output_bytes_max;
    if max > 0 && usage.output_bytes > max {
        let message = format!("the outputs have {} bytes, more than the limit of {max}", usage.output_bytes);
        return Err(permanent(FailureKind::Limit, message).into());
    }
    Ok(infos)
}

async fn pack_path(node: &Node, path: &StorePath, info: &types::PathInfo) -> Result<(PathInfo, Packed), Trouble> {
    let physical = physical_path(node.options.store_root.as_deref(), path);
    let options = PackOptions {
        spool_dir: node.spool.dir().to_owned(),
        level: node.options.compression_level,
        compression_threads: if info.nar_size_bytes < SMALL_NAR_BYTES { 0 } else { node.options.compression_threads },
        nar_bytes_max: info.nar_size_bytes,
    };
    let packed = match pack(physical, options).await {
        Ok(packed) => packed,
        // The bound is what the store promised.
        Err(crate::pack::PackError::TooLarge { .. }) => return Err(changed(path)),
        Err(error) => return Err(of_packing(&error).into()),
    };
    if packed.nar_hash != info.nar_hash {
        return Err(changed(path));
    }
    let wire =
        packed.path_info(path, info.references.iter().cloned(), info.deriver.as_ref(), info.content_address.as_ref());
    Ok((wire, packed))
}

fn changed(path: &StorePath) -> Trouble {
    transient(format!(
        "{path} is not what the local store recorded: run `nix-store --verify --check-contents` on this node"
    ))
    .into()
}

/// A build that printed nothing has an empty log: it must not show that of an earlier try. A log that cannot be compressed
/// (full disk) is no reason to throw a build away.
pub(super) async fn compressed_log(log: &OpenLog) -> Option<Compressed> {
    match log.compress().await {
        Ok(compressed) => Some(compressed),
        Err(error) => {
            tracing::warn!(attempt = %log.attempt(), error = %chain(&error), "Could not compress a build log, it is lost");
            None
        }
    }
}

/// What [`SlotsRequest`] says of a log that goes up alone.
pub(super) fn log_request(attempt: harmonia_core::AttemptId, blob: LogBlob) -> SlotsRequest {
    SlotsRequest { holder: Holder::Attempt(attempt), paths: Vec::new(), log: Some(blob) }
}

fn source(packed: &Packed) -> UploadSource {
    UploadSource::File(packed.file.to_path_buf())
}

/// Uploads paths that the outputs refer to and that are in no cache. Returns what went up, with the files it came from.
async fn upload_extra(node: &Node, job: &ClaimedJob, paths: &[String]) -> Result<(Upload, Vec<Packed>), Trouble> {
    let mut daemon = node.daemon.connect().await.map_err(|error| transient_error(&error))?;
    let mut packed = Vec::new();
    for text in paths {
        let path = StorePath::parse(text).map_err(|error| transient_error(&error))?;
        let info = daemon.query_path_info(&path).await.map_err(|error| transient_error(&error))?;
        let info = info.ok_or_else(|| transient(format!("{path}, which an output refers to, is not valid here")))?;
        packed.push(pack_path(node, &path, &info).await?);
    }
    let (paths, files): (Vec<PathInfo>, Vec<Packed>) = packed.into_iter().unzip();
    let request = SlotsRequest { holder: Holder::Attempt(job.attempt), paths, log: None };
    let upload = Upload { request, sources: files.iter().map(source).collect(), log: None };
    node.signer.send(&job.token, &upload).await.map_err(|error| of_signer(&error))?;
    Ok((upload, files))
}

/// Sorts so that each path comes after those it refers to; what goes round in a circle (which no store has) comes last.
fn references_first(paths: Vec<PathInfo>) -> Vec<PathInfo> {
    let mut left = paths;
    let mut sorted = Vec::with_capacity(left.len());
    loop {
        let names: BTreeSet<String> = left.iter().map(|info| info.path.clone()).collect();
        let is_ready =
            |info: &PathInfo| info.references.iter().all(|other| *other == info.path || !names.contains(other));
        let (ready, waiting): (Vec<_>, Vec<_>) = left.into_iter().partition(is_ready);
        let is_stuck = ready.is_empty();
        sorted.extend(ready);
        left = waiting;
        if left.is_empty() || is_stuck {
            sorted.extend(left);
            return sorted;
        }
    }
}

/// Others published these outputs first, with other bytes: ours must not become inputs of anything here.
async fn drop_local(node: &Node, outputs: &BTreeMap<&str, &StorePath>, roots: &AttemptRoots, differs: Vec<String>) {
    let paths: BTreeSet<StorePath> = outputs
        .values()
        .filter(|path| differs.iter().any(|text| text == path.as_str()))
        .map(|path| (*path).clone())
        .collect();
    for path in outputs.values() {
        // Failing shows below.
        let _ = roots.remove(path);
    }
    tracing::info!(
        ?paths,
        "Another build published these outputs first, with other content; the local ones are deleted"
    );
    let why_not = match delete(node, paths).await {
        Ok(None) => return,
        Ok(Some(in_use)) => in_use.to_string(),
        Err(failure) => failure.message,
    };
    // The next build that needs one of them finds the difference, and waits for whoever uses it.
    tracing::warn!(error = why_not, "Could not delete outputs that differ from the published ones");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_paths_come_after_what_they_refer_to() {
        let info = |path: &str, references: &[&str]| PathInfo {
            path: path.to_owned(),
            nar_hash: String::new(),
            nar_size: 0,
            file_hash: String::new(),
            file_size: 0,
            references: references.iter().map(|&text| text.to_owned()).collect(),
            deriver: None,
            ca: None,
            listing: None,
        };
        let order =
            |paths: Vec<PathInfo>| references_first(paths).into_iter().map(|info| info.path).collect::<Vec<_>>();
        let paths = vec![info("a", &["b", "c", "elsewhere"]), info("b", &["b", "c"]), info("c", &[])];
        assert_eq!(order(paths), ["c", "b", "a"]);
        assert_eq!(order(vec![info("x", &["y"]), info("y", &["x"]), info("z", &[])]), ["z", "x", "y"]);
        assert!(order(Vec::new()).is_empty());
    }
}
