//! What building something would do, without doing it. Start at [`query`].

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use harmonia_nix::derivation::Derivation;
use harmonia_nix::store_path::StorePath;
use harmonia_nix::worker_protocol::{DerivedPath, MissingPaths, OutputNames};

use super::ScheduleError;
use super::building::Wanted;
use super::run::{Run, blocking};

/// What one thing wanted means.
enum Step {
    Nothing,
    Unknown(StorePath),
    /// And what it needs.
    Build(StorePath, Vec<DerivedPath>),
    Substitute {
        path: StorePath,
        download_size_bytes: u64,
        nar_size_bytes: u64,
        references: Vec<DerivedPath>,
    },
    /// These are to be looked at in its place.
    Instead(Vec<DerivedPath>),
}

pub(super) async fn query(run: &Arc<Run>, targets: &[DerivedPath]) -> Result<MissingPaths, ScheduleError> {
    let mut missing = MissingPaths {
        will_build: BTreeSet::new(),
        will_substitute: BTreeSet::new(),
        unknown: BTreeSet::new(),
        download_size_bytes: 0,
        nar_size_bytes: 0,
    };
    let mut seen = BTreeSet::new();
    let mut open: FuturesUnordered<BoxFuture<'_, Result<Step, ScheduleError>>> = FuturesUnordered::new();
    let mut more: Vec<DerivedPath> = targets.to_vec();
    loop {
        for target in more.drain(..) {
            if seen.insert(target.clone()) {
                open.push(look(run, target).boxed());
            }
        }
        match open.next().await.transpose()? {
            None => return Ok(missing),
            Some(Step::Nothing) => {}
            Some(Step::Unknown(path)) => drop(missing.unknown.insert(path)),
            Some(Step::Build(path, inputs)) => {
                missing.will_build.insert(path);
                more = inputs;
            }
            Some(Step::Instead(others)) => more = others,
            Some(Step::Substitute { path, download_size_bytes, nar_size_bytes, references }) => {
                missing.will_substitute.insert(path);
                missing.download_size_bytes += download_size_bytes;
                missing.nar_size_bytes += nar_size_bytes;
                more = references;
            }
        }
    }
}

async fn look(run: &Arc<Run>, target: DerivedPath) -> Result<Step, ScheduleError> {
    match target {
        DerivedPath::Opaque(path) => look_at_path(run, path).await,
        DerivedPath::Built { derivation, outputs } => look_at_derivation(run, derivation, outputs).await,
    }
}

async fn look_at_path(run: &Arc<Run>, path: StorePath) -> Result<Step, ScheduleError> {
    let (store, wanted) = (Arc::clone(&run.scheduler.store), path.clone());
    if blocking(move || store.is_valid(&wanted)).await? {
        return Ok(Step::Nothing);
    }
    let found = run.look_up(&path, None).await;
    let Some(offer) = found.offer() else { return Ok(Step::Unknown(path)) };
    Ok(Step::Substitute {
        path,
        download_size_bytes: offer.info.file_size.unwrap_or_default(),
        nar_size_bytes: offer.info.nar_size,
        references: offer.info.references.iter().cloned().map(DerivedPath::Opaque).collect(),
    })
}

async fn look_at_derivation(run: &Arc<Run>, drv_path: StorePath, outputs: OutputNames) -> Result<Step, ScheduleError> {
    let (store, path) = (Arc::clone(&run.scheduler.store), drv_path.clone());
    let read = blocking(move || {
        if !store.is_valid(&path)? {
            return Ok(None);
        }
        let derivation = store.read_derivation(&path)?;
        let mut wanted = Wanted::default();
        wanted.add(&outputs);
        let known =
            derivation.outputs.iter().filter(|(name, _)| wanted.contains(name)).map(|(_, output)| output.path());
        // What is known only after the build is missing.
        let known: Option<Vec<StorePath>> = known.map(Option::<&StorePath>::cloned).collect();
        let Some(known) = known else { return Ok(Some((derivation, None))) };
        let valid = store.valid_of(&known)?;
        let invalid = known.into_iter().filter(|path| !valid.contains(path)).collect();
        Ok(Some((derivation, Some(invalid))))
    });
    let Some((derivation, invalid)): Option<(Derivation, Option<Vec<StorePath>>)> = read.await? else {
        return Ok(Step::Unknown(drv_path));
    };
    if invalid.as_ref().is_some_and(Vec::is_empty) {
        return Ok(Step::Nothing);
    }
    let may_substitute = derivation.options().is_ok_and(|options| options.allow_substitutes);
    if let Some(invalid) = invalid.filter(|_| may_substitute) {
        let address = |path: &StorePath| {
            let output = derivation.outputs.values().find(|output| output.path() == Some(path))?;
            output.fixed_address().copied()
        };
        let found = join_all(invalid.iter().map(|path| run.look_up(path, address(path)))).await;
        if found.iter().all(|found| found.offer().is_some()) {
            return Ok(Step::Instead(invalid.into_iter().map(DerivedPath::Opaque).collect()));
        }
    }
    let inputs = derivation.input_drvs.into_iter();
    let inputs =
        inputs.map(|(derivation, names)| DerivedPath::Built { derivation, outputs: OutputNames::Named(names) });
    Ok(Step::Build(drv_path, inputs.collect()))
}
