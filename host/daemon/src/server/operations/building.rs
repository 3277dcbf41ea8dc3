//! Requests that the scheduler works on. Start at [`answer`].

use std::collections::BTreeSet;

use harmonia_nix::worker_protocol::{BuildResult, DerivedPath, Request, wire};
use wire::{put_bool, put_bytes, put_optional_store_path, put_store_path, put_store_paths, put_u64};

use super::{Client, Failure, blocking};

/// Works on one of them; the answer's bytes.
pub(super) async fn answer(client: &Client, request: Request) -> Result<Vec<u8>, Failure> {
    let scheduler = &client.daemon.scheduler;
    let mut bytes = Vec::new();
    let out = &mut bytes;
    match request {
        Request::BuildPaths(targets, mode) => {
            scheduler.build_paths(client.request(), &targets, mode).await?;
            put_u64(out, 1);
        }
        Request::BuildPathsWithResults(targets, mode) => {
            let results = scheduler.build_paths_with_results(client.request(), &targets, mode).await?;
            put_u64(out, results.len() as u64);
            for (target, result) in &results {
                put_result(client, out, target, result)?;
            }
        }
        Request::BuildDerivation(path, derivation, mode) => {
            let result = scheduler.build_derivation(client.request(), &path, derivation, mode).await?;
            result.put(out, client.version);
        }
        Request::EnsurePath(path) => {
            scheduler.ensure_path(client.request(), &path).await?;
            put_u64(out, 1);
        }
        Request::QueryMissing(targets) => scheduler.query_missing(client.request(), &targets).await?.put(out),
        Request::QuerySubstitutablePaths(paths) => {
            let found = scheduler.query_substitutable(client.request(), &paths).await?;
            put_store_paths(out, &found.into_keys().collect::<BTreeSet<_>>());
        }
        Request::QuerySubstitutablePathInfos(paths) => {
            let paths = paths.into_keys().collect();
            let found = scheduler.query_substitutable(client.request(), &paths).await?;
            put_u64(out, found.len() as u64);
            for (path, info) in &found {
                put_store_path(out, path);
                put_optional_store_path(out, info.deriver.as_ref());
                put_store_paths(out, &info.references);
                put_u64(out, info.download_size_bytes);
                put_u64(out, info.nar_size_bytes);
            }
        }
        Request::QueryValidPaths(paths, _) => {
            scheduler.substitute_paths(client.request(), &paths).await;
            let store = client.daemon.store.clone();
            let valid = blocking(move || Ok(store.valid_of(&paths)?)).await?;
            put_store_paths(out, &valid);
        }
        Request::VerifyStore { check_contents, repair } => {
            put_bool(out, verify(client, check_contents, repair).await?);
        }
        other => return Err(Failure::new(format!("this daemon does not offer {}", other.operation()))),
    }
    Ok(bytes)
}

fn put_result(client: &Client, out: &mut Vec<u8>, target: &DerivedPath, result: &BuildResult) -> Result<(), Failure> {
    let text = target.to_wire(client.version);
    put_bytes(out, text.ok_or_else(|| Failure::new("a result has no form in this version of the protocol"))?);
    result.put(out, client.version);
    Ok(())
}

/// Whether errors are left.
async fn verify(client: &Client, check_contents: bool, repair: bool) -> Result<bool, Failure> {
    if repair {
        client.must_be_trusted("repair paths")?;
    }
    let there = client.clone();
    let told = move |level: u64, text: &str| match level {
        0 => there.log.error(text),
        level => there.log.text(level, text),
    };
    let store = client.daemon.store.clone();
    let verified = blocking(move || Ok(store.verify(check_contents, repair, &told)?)).await?;
    let mut has_errors = verified.has_errors;
    for path in &verified.damaged {
        if !repair {
            has_errors = true;
        } else if let Err(error) = client.daemon.scheduler.repair_path(client.request(), path).await {
            client.log.error(&error.to_string());
            has_errors = true;
        }
    }
    Ok(has_errors)
}
