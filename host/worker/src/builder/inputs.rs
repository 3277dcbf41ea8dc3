//! From a claimed job to a derivation that the daemon can build: its `.drv`, its inputs' paths, and those made valid
//! and checked in the local store. Start at [`prepare`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read as _;

use harmonia_core::FailureKind;
use harmonia_core::limits::DRV_BYTES_MAX;
use harmonia_db::{BuildInput, ClaimedJob, DbError, UpstreamFault};
use harmonia_nix::{BasicDerivation, Derivation, NarHash, StorePath};

use super::connections::Lent;
use super::failure::{Trouble, chain, permanent, transient, transient_error};
use super::replace::{InUse, delete};
use super::roots::AttemptRoots;
use super::spool::AttemptLog;
use super::{Node, build, persist};
use crate::pack::physical_path;
use crate::store_daemon::Connection;
use crate::substitute::{SubstituteError, SubstituteFailure, Substituter};

/// Most paths in the closure of a build's inputs.
const CLOSURE_PATHS_MAX: usize = 200_000;
/// How often wrong paths are deleted and the rest looked at again.
const VALIDATION_ROUNDS_MAX: usize = 3;
/// Most input derivations fetched because the database does not know their outputs.
const INPUT_DRVS_FETCHED_MAX: usize = 1_000;

/// What came of making everything ready.
#[derive(Debug)]
pub(super) enum Prepared<'a> {
    /// The daemon can build this, over this connection.
    Ready(Box<BasicDerivation>, Lent<'a>),
    /// A local path has to be replaced, and somebody uses it. No root of this attempt keeps anything alive now.
    InUse(InUse),
}

/// Makes everything ready for the build.
pub(super) async fn prepare<'a>(
    node: &'a Node,
    job: &ClaimedJob,
    roots: &AttemptRoots,
    log: &AttemptLog,
) -> Result<Prepared<'a>, Trouble> {
    // Private projects' inputs are for who holds their jobs.
    let substituter = node.substituter.for_claim(&job.token);
    let derivation = fetch_derivation(node, &substituter, &job.drv_path).await?;
    let inputs = known_inputs(node, &substituter, &derivation).await?;
    let basic = derivation
        .resolve(|drv_path, output| inputs.outputs.get(&(drv_path.clone(), output.to_owned())).cloned())
        .map_err(|error| transient_error(&error))?;
    if let Some((name, _)) = basic.outputs.iter().find(|(_, output)| output.path().is_none()) {
        let message = format!(
            "the path of output '{name}' is not known before the build: content-addressed and impure derivations cannot be built yet"
        );
        return Err(permanent(FailureKind::Build, message).into());
    }
    let add_root = |path| {
        roots.add(path).map_err(|error| transient(format!("could not register a garbage collector root: {error}")))
    };
    let (missing, connection) = match validate(node, job, &basic.input_srcs, inputs.published, roots, log).await? {
        Validated::Sound { missing, connection } => (missing, connection),
        Validated::InUse(in_use) => return Ok(Prepared::InUse(in_use)),
    };
    // Not before: an output that is there from another time would keep the inputs that it was made from.
    for path in basic.outputs.values().filter_map(|output| output.path()) {
        add_root(path)?;
    }
    if !missing.is_empty() {
        let plan = match substituter.plan(&missing).await {
            Ok(plan) => plan,
            Err(error) => return Err(substitution_failed(node, job, error).await),
        };
        plan.keep().try_for_each(add_root)?;
        if let Err(error) = substituter.import(plan).await {
            return Err(substitution_failed(node, job, error).await);
        }
    }
    Ok(Prepared::Ready(Box::new(basic), connection))
}

/// The derivation: from the local store if it happens to be there, else from our cache. Its text proves its path.
async fn fetch_derivation(node: &Node, substituter: &Substituter, path: &StorePath) -> Result<Derivation, Trouble> {
    let file = physical_path(node.options.store_root.as_deref(), path);
    let local = match tokio::fs::metadata(&file).await {
        Ok(metadata) if metadata.len() <= DRV_BYTES_MAX as u64 => tokio::fs::read(&file).await.ok(),
        _ => None,
    };
    // A damaged local copy is no reason to fail: the cache may have a sound one.
    if let Some(text) = local
        && let Ok(derivation) = Derivation::from_file(path, &text)
    {
        return Ok(derivation);
    }
    let object = format!("drv/{}.zst", path.base_name());
    let packed = match substituter.own_object(&object, DRV_BYTES_MAX).await {
        Ok(Some(packed)) => packed,
        Ok(None) => return Err(transient(format!("{path} is not in the cache ({object})")).into()),
        Err(error) => {
            return Err(transient(format!("could not fetch {object} from the cache: {}", chain(&error))).into());
        }
    };
    let text = unpack(&packed).map_err(|error| transient(format!("could not unpack {object}: {error}")))?;
    Ok(Derivation::from_file(path, &text).map_err(|error| transient_error(&error))?)
}

fn unpack(packed: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let decoder = zstd::stream::read::Decoder::new(packed)?;
    decoder.take(DRV_BYTES_MAX as u64 + 1).read_to_end(&mut text)?;
    if text.len() > DRV_BYTES_MAX {
        return Err(std::io::Error::other(format!("it is larger than {DRV_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// What is known of a derivation's inputs.
#[derive(Default)]
struct KnownInputs {
    /// The paths of the outputs that they have.
    outputs: HashMap<(StorePath, String), StorePath>,
    /// What the database says of paths: the hash that was published, if one was.
    published: Published,
}

/// Paths that the database was asked for, and the hashes that it has of them.
type Published = BTreeMap<StorePath, Option<String>>;

/// Of the database, in one question; outputs that it does not know are in `.drv` files.
async fn known_inputs(node: &Node, substituter: &Substituter, derivation: &Derivation) -> Result<KnownInputs, Trouble> {
    let drv_paths: Vec<StorePath> = derivation.input_drvs.keys().cloned().collect();
    let sources: Vec<StorePath> = derivation.input_srcs.iter().cloned().collect();
    let KnownInputs { mut outputs, mut published } = KnownInputs::default();
    if !drv_paths.is_empty() || !sources.is_empty() {
        let known = persist(|| node.options.db.build_inputs(&drv_paths, &sources)).await;
        for BuildInput { output, path, nar_hash } in known.map_err(|error| transient_error(&error))? {
            let Some(path) = path else { continue };
            outputs.extend(output.map(|output| (output, path.clone())));
            published.insert(path, nar_hash);
        }
    }
    let mut unknown: BTreeSet<&StorePath> = BTreeSet::new();
    for (drv_path, names) in &derivation.input_drvs {
        if names.iter().any(|name| !outputs.contains_key(&(drv_path.clone(), name.clone()))) {
            unknown.insert(drv_path);
        }
    }
    if unknown.len() > INPUT_DRVS_FETCHED_MAX {
        return Err(transient(format!("the outputs of {} input derivations are not known", unknown.len())).into());
    }
    for drv_path in unknown {
        let input = fetch_derivation(node, substituter, drv_path).await?;
        for (name, path) in input.output_paths() {
            outputs.extend(path.map(|path| ((drv_path.clone(), name.to_owned()), path.clone())));
        }
    }
    Ok(KnownInputs { outputs, published })
}

/// What is there of the inputs.
enum Validated<'a> {
    /// What is there is what the cache published.
    Sound {
        /// What is not there.
        missing: BTreeSet<StorePath>,
        /// Over which that was asked.
        connection: Lent<'a>,
    },
    /// Something else is there, and cannot be deleted yet.
    InUse(InUse),
}

/// Compares what is there with what the cache published: no build may see other inputs than those of everybody else.
/// What differs is deleted.
async fn validate<'a>(
    node: &'a Node,
    job: &ClaimedJob,
    inputs: &BTreeSet<StorePath>,
    mut published: Published,
    roots: &AttemptRoots,
    log: &AttemptLog,
) -> Result<Validated<'a>, Trouble> {
    let options = build::options(job, node.options.cores);
    for _ in 0..VALIDATION_ROUNDS_MAX {
        let mut daemon = node.connections.take(&options).await.map_err(|error| transient_error(&error))?;
        if inputs.is_empty() {
            return Ok(Validated::Sound { missing: BTreeSet::new(), connection: daemon });
        }
        for path in inputs {
            roots
                .add(path)
                .map_err(|error| transient(format!("could not register a garbage collector root: {error}")))?;
        }
        let closure = local_closure(&mut daemon, inputs).await?;
        let wrong = wrong_paths(node, &closure, &mut published).await?;
        if wrong.is_empty() {
            let missing = inputs.iter().filter(|path| !closure.contains_key(*path)).cloned().collect();
            return Ok(Validated::Sound { missing, connection: daemon });
        }
        // Our own roots would keep it alive, and so would what the daemon remembers of earlier builds.
        daemon.close().await;
        for path in inputs {
            roots
                .remove(path)
                .map_err(|error| transient(format!("could not remove a garbage collector root: {error}")))?;
        }
        if let Some(in_use) = delete(node, wrong.iter().map(|(path, ..)| path.clone()).collect()).await? {
            return Ok(Validated::InUse(in_use));
        }
        for (path, local, canonical) in &wrong {
            tracing::warn!(%path, %local, %canonical, "A local path differed from the published one and was deleted");
            let line = format!(
                "[harmonia-ci: the local {path} differs from the published one ({local} instead of {canonical}), it is replaced]"
            );
            log.line(line.as_bytes());
        }
    }
    Err(transient(
        "inputs that differ from the published ones keep coming back: does somebody else build into this store?",
    )
    .into())
}

/// Every valid path of the closure of `inputs` with the hash that the local store has of it.
async fn local_closure(
    daemon: &mut Connection,
    inputs: &BTreeSet<StorePath>,
) -> Result<BTreeMap<StorePath, NarHash>, Trouble> {
    let mut closure = BTreeMap::new();
    let mut seen: BTreeSet<StorePath> = inputs.clone();
    let mut open: Vec<StorePath> = inputs.iter().cloned().collect();
    while let Some(path) = open.pop() {
        let info = daemon.query_path_info(&path).await.map_err(|error| transient_error(&error))?;
        let Some(info) = info else { continue };
        for reference in info.references {
            if seen.insert(reference.clone()) {
                open.push(reference);
            }
        }
        if seen.len() > CLOSURE_PATHS_MAX {
            return Err(transient(format!("the inputs refer to more than {CLOSURE_PATHS_MAX} paths")).into());
        }
        closure.insert(path, info.nar_hash);
    }
    Ok(closure)
}

/// Path, local hash and published hash of what differs. What nobody asked for yet of `published` is added to it.
async fn wrong_paths(
    node: &Node,
    closure: &BTreeMap<StorePath, NarHash>,
    published: &mut Published,
) -> Result<Vec<(StorePath, String, String)>, Trouble> {
    let unasked: Vec<StorePath> = closure.keys().filter(|path| !published.contains_key(*path)).cloned().collect();
    if !unasked.is_empty() {
        let found = persist(|| node.options.db.canonical_paths(&unasked)).await;
        let found = found.map_err(|error| transient_error(&error))?;
        published.extend(unasked.into_iter().map(|path| (path, None)));
        published.extend(found.into_iter().map(|row| (row.path, Some(row.nar_hash))));
    }
    let differs = |(path, local): (&StorePath, &NarHash)| {
        let hash = published.get(path)?.as_ref()?;
        (hash.parse::<NarHash>() != Ok(*local)).then(|| (path.clone(), local.to_string(), hash.clone()))
    };
    Ok(closure.iter().filter_map(differs).collect())
}

/// What a cache did not give is reported, so that others ask that cache themselves, and it is built if need be; this job
/// waits for it then.
async fn substitution_failed(node: &Node, job: &ClaimedJob, failure: SubstituteFailure) -> Trouble {
    let db = &node.options.db;
    let told = |reported: Result<(), DbError>, path: &StorePath| {
        if let Err(error) = reported {
            tracing::warn!(%path, error = %chain(&error), "Could not report that {path} cannot be had");
        }
    };
    if let SubstituteError::Missing { paths, .. } = &failure.cause {
        for path in paths {
            told(persist(|| db.report_missing_path(job.attempt, &job.token, path, false)).await, path);
        }
    }
    for fault in &failure.faults {
        let path = &fault.path;
        if fault.is_own {
            told(persist(|| db.report_missing_path(job.attempt, &job.token, path, true)).await, path);
        } else {
            let fault = UpstreamFault {
                path: path.clone(),
                cache: fault.cache.to_string(),
                roots: fault.roots.clone(),
                reason: fault.reason.clone(),
            };
            told(persist(|| db.report_upstream_fault(job.attempt, &job.token, &fault)).await, path);
        }
    }
    transient(format!("an input could not be substituted: {}", chain(&failure.cause))).into()
}
