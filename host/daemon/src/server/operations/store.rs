//! Requests that concern the store alone. Start at [`answer`].

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use harmonia_nix::worker_protocol::{GcRoot, Request, wire};
use wire::{put_bool, put_bytes, put_list, put_optional_store_path, put_store_path, put_store_paths, put_u64};

use super::{Client, Failure};
use crate::schedule::log;
use crate::store::{AddOptions, KeepOptions};

/// Works on one of them; the answer's bytes.
pub(super) fn answer(client: &Client, request: Request) -> Result<Vec<u8>, Failure> {
    let store = &client.daemon.store;
    let mut bytes = Vec::new();
    let out = &mut bytes;
    match request {
        Request::IsValidPath(path) => put_bool(out, store.is_valid(&path)?),
        Request::QueryReferrers(path) => put_store_paths(out, &store.referrers(&path)?),
        Request::AddTextToStore { name, text, references } => {
            let optimise = client.settings.auto_optimise_store;
            let added = store.add_text(
                &client.roots,
                &name,
                &text,
                &references,
                AddOptions { optimise, ..AddOptions::default() },
            )?;
            put_store_path(out, &added.path);
        }
        Request::AddTempRoot(path) => {
            client.roots.add(&path)?;
            put_u64(out, 1);
        }
        Request::AddIndirectRoot(link) => {
            store.add_indirect_root(&absolute(link)?)?;
            put_u64(out, 1);
        }
        Request::AddPermRoot(path, link) => {
            let link = store.add_perm_root(&client.roots, &path, &absolute(link)?)?;
            put_bytes(out, link.as_os_str().as_encoded_bytes());
        }
        Request::FindRoots => {
            let roots = store.find_roots(!client.is_trusted)?;
            put_u64(out, roots.values().map(|links| links.len() as u64).sum());
            for (target, links) in roots {
                for link in links {
                    GcRoot { link: link.into(), target: target.clone() }.put(out);
                }
            }
        }
        Request::CollectGarbage(request) => {
            if request.ignore_liveness {
                return Err(Failure::new("you are not allowed to ignore liveness"));
            }
            let settings = &client.settings;
            let keep = KeepOptions { outputs: settings.keep_outputs, derivations: settings.keep_derivations };
            let report = store.collect_garbage(&request, keep, &|text| client.log.text(log::INFO, text))?;
            put_list(out, &report.paths);
            put_u64(out, report.freed_bytes);
            put_u64(out, 0);
        }
        Request::SyncWithGC => put_u64(out, 1),
        Request::QueryDeriver(path) => put_optional_store_path(out, store.valid_path_info(&path)?.deriver.as_ref()),
        Request::QueryDerivationOutputs(path) => {
            let outputs = store.derivation_outputs(&path)?;
            put_store_paths(out, &outputs.into_values().collect::<std::collections::BTreeSet<_>>());
        }
        Request::QueryDerivationOutputNames(path) => {
            put_list(out, store.read_derivation(&path)?.outputs.keys());
        }
        Request::QueryDerivationOutputMap(path) => {
            let outputs = store.derivation_outputs(&path)?;
            put_u64(out, outputs.len() as u64);
            for (name, path) in &outputs {
                put_bytes(out, name);
                put_store_path(out, path);
            }
        }
        Request::QueryAllValidPaths => put_store_paths(out, &store.all_valid()?),
        Request::QueryPathInfo(path) => {
            let info = store.path_info(&path)?;
            put_bool(out, info.is_some());
            if let Some(info) = info {
                info.put(out);
            }
        }
        Request::QueryPathFromHashPart(part) => {
            put_optional_store_path(out, store.path_from_hash_part(&part)?.as_ref());
        }
        Request::QueryValidPaths(paths, _) => put_store_paths(out, &store.valid_of(&paths)?),
        Request::QueryValidDerivers(path) => put_store_paths(out, &store.valid_derivers(&path)?),
        Request::AddSignatures(path, signatures) => {
            client.must_be_trusted("add signatures")?;
            store.add_signatures(&path, &signatures)?;
            put_u64(out, 1);
        }
        Request::OptimiseStore => {
            let optimised = store.optimise(&client.roots, &|_, _| ())?;
            let mebibytes = optimised.bytes as f64 / f64::from(1 << 20);
            let text = format!("{mebibytes:.2} MiB freed by hard-linking {} files", optimised.files);
            client.log.text(log::INFO, &text);
            put_u64(out, 1);
        }
        Request::RegisterDrvOutput(_) | Request::QueryRealisation(_) => {
            return Err(Failure::new(
                "content-addressed derivations are not offered by this daemon (experimental Nix feature 'ca-derivations')",
            ));
        }
        other => return Err(Failure::new(format!("this daemon does not offer {}", other.operation()))),
    }
    Ok(bytes)
}

/// The daemon's own directory means nothing to a client.
fn absolute(link: Vec<u8>) -> Result<PathBuf, Failure> {
    let link = PathBuf::from(OsString::from_vec(link));
    if link.is_absolute() {
        Ok(link)
    } else {
        Err(Failure::new(format!("the root '{}' is no absolute path", link.display())))
    }
}
