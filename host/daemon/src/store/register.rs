//! Making paths valid: their files are in place, and one transaction says so of all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use harmonia_nix::derivation::Derivation;
use harmonia_nix::narinfo::fingerprint;
use harmonia_nix::signature::{Signature, verify_any};
use harmonia_nix::store_path::{References, StorePath};
use harmonia_nix::worker_protocol::{PathInfo, ValidPathInfo};
use rusqlite::{Connection, params};

use super::query::{path_info, referrers, valid_id};
use super::{Store, StoreError};

impl Store {
    /// Makes all of these valid, or none of them. Their files must be in place and final.
    ///
    /// What they refer to must be valid or among them. Of a path that is valid already, hash, size, signatures and content
    /// address are replaced, as stock Nix does when it repairs.
    pub fn register(&self, paths: &[ValidPathInfo]) -> Result<(), StoreError> {
        refuse_cycles(paths)?;
        let mut derivations = BTreeMap::new();
        for ValidPathInfo { path, .. } in paths.iter().filter(|valid| valid.path.is_derivation()) {
            derivations.insert(path.clone(), self.read_derivation_file(path)?);
        }
        for (path, derivation) in &derivations {
            self.check_outputs(path, derivation)?;
        }
        let registered_now = now_s();
        self.database.write(|db| {
            for ValidPathInfo { path, info } in paths {
                if valid_id(db, path)?.is_some() {
                    update(db, path, info)?;
                } else {
                    insert(db, path, info, registered_now, derivations.get(path))?;
                }
            }
            for ValidPathInfo { path, info } in paths {
                let referrer = needed_id(db, path)?;
                let mut statement =
                    db.prepare_cached("insert or replace into Refs (referrer, reference) values (?, ?)")?;
                for reference in &info.references {
                    statement.execute(params![referrer, needed_id(db, reference)?])?;
                }
            }
            Ok(())
        })
    }

    /// Adds signatures to a valid path.
    pub fn add_signatures(&self, path: &StorePath, signatures: &BTreeSet<String>) -> Result<(), StoreError> {
        self.database.write(|db| {
            let mut info = path_info(db, path)?.ok_or_else(|| StoreError::Invalid(path.clone()))?;
            info.signatures.extend(signatures.iter().cloned());
            update(db, path, &info)
        })
    }

    /// Whether the path may be added: content-addressed, signed by a trusted key, or no signature is asked for.
    pub fn is_trustworthy(&self, path: &StorePath, info: &PathInfo) -> bool {
        if !self.settings.require_signatures {
            return true;
        }
        if let Some(address) = info.content_address {
            let references = References::of(path, info.references.iter().cloned());
            if path.is_content_addressed_by(address, &references) {
                return true;
            }
        }
        let text = fingerprint(path, &info.nar_hash, info.nar_size_bytes, &info.references);
        let signatures: Vec<Signature> = info.signatures.iter().filter_map(|text| text.parse().ok()).collect();
        verify_any(&self.settings.trusted_keys, text.as_bytes(), &signatures)
    }

    /// Fills in a size that an old Nix did not know.
    pub(super) fn set_size(&self, path: &StorePath, nar_size_bytes: u64) -> Result<(), StoreError> {
        self.database.write(|db| {
            let mut statement = db.prepare_cached("update ValidPaths set narSize = ? where path = ?")?;
            statement.execute(params![nar_size_bytes.cast_signed(), path.as_str()])?;
            Ok(())
        })
    }

    /// Makes a path invalid, unless another path refers to it. Its files stay.
    pub(super) fn invalidate(&self, path: &StorePath) -> Result<(), StoreError> {
        self.database.write(|db| {
            if valid_id(db, path)?.is_none() {
                return Ok(());
            }
            let mut others = referrers(db, path)?;
            others.remove(path);
            if !others.is_empty() {
                return Err(StoreError::InUse { path: path.clone(), referrers: others.into_iter().collect() });
            }
            db.prepare_cached("delete from ValidPaths where path = ?")?.execute(params![path.as_str()])?;
            Ok(())
        })
    }
}

fn insert(
    db: &Connection,
    path: &StorePath,
    info: &PathInfo,
    now_s: u64,
    derivation: Option<&Derivation>,
) -> Result<(), StoreError> {
    if let Some(address) = info.content_address {
        let references = References::of(path, info.references.iter().cloned());
        if !path.is_content_addressed_by(address, &references) {
            return Err(StoreError::NotContentAddressed(path.clone()));
        }
    }
    let registered = if info.registration_time_s == 0 { now_s } else { info.registration_time_s };
    db.prepare_cached(
        "insert into ValidPaths (path, hash, registrationTime, deriver, narSize, ultimate, sigs, ca) \
         values (?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        path.as_str(),
        hash_text(info),
        registered.cast_signed(),
        info.deriver.as_ref().map(StorePath::as_str),
        size(info),
        info.ultimate.then_some(1),
        signatures_text(info),
        info.content_address.map(|address| address.to_string()),
    ])?;
    let Some(derivation) = derivation else { return Ok(()) };
    let id = db.last_insert_rowid();
    let mut statement =
        db.prepare_cached("insert or replace into DerivationOutputs (drv, id, path) values (?, ?, ?)")?;
    for (output, path) in derivation.output_paths() {
        if let Some(path) = path {
            statement.execute(params![id, output, path.as_str()])?;
        }
    }
    Ok(())
}

fn update(db: &Connection, path: &StorePath, info: &PathInfo) -> Result<(), StoreError> {
    db.prepare_cached("update ValidPaths set narSize = ?, hash = ?, ultimate = ?, sigs = ?, ca = ? where path = ?")?
        .execute(params![
            size(info),
            hash_text(info),
            info.ultimate.then_some(1),
            signatures_text(info),
            info.content_address.map(|address| address.to_string()),
            path.as_str(),
        ])?;
    Ok(())
}

fn needed_id(db: &Connection, path: &StorePath) -> Result<i64, StoreError> {
    valid_id(db, path)?.ok_or_else(|| StoreError::Invalid(path.clone()))
}

fn hash_text(info: &PathInfo) -> String {
    format!("sha256:{}", info.nar_hash.to_base16())
}

/// Null where the size is not known.
fn size(info: &PathInfo) -> Option<i64> {
    (info.nar_size_bytes != 0).then_some(info.nar_size_bytes.cast_signed())
}

fn signatures_text(info: &PathInfo) -> Option<String> {
    (!info.signatures.is_empty()).then(|| info.signatures.iter().map(String::as_str).collect::<Vec<_>>().join(" "))
}

/// Seconds of Unix time.
pub(super) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// References can only go round among outputs that are registered together.
fn refuse_cycles(paths: &[ValidPathInfo]) -> Result<(), StoreError> {
    let infos: BTreeMap<&StorePath, &PathInfo> = paths.iter().map(|valid| (&valid.path, &valid.info)).collect();
    let mut done: BTreeSet<&StorePath> = BTreeSet::new();
    for start in infos.keys() {
        // The way down, with what is left to visit of each.
        let mut way = vec![(*start, infos[start].references.iter())];
        let mut on_the_way = BTreeSet::from([*start]);
        while let Some((path, references)) = way.last_mut() {
            let path = *path;
            let Some(next) = references.next() else {
                on_the_way.remove(path);
                done.insert(path);
                way.pop();
                continue;
            };
            if next == path || done.contains(next) {
                continue;
            }
            if on_the_way.contains(next) {
                return Err(StoreError::Cycle(next.clone(), path.clone()));
            }
            if let Some((next, info)) = infos.get_key_value(next) {
                on_the_way.insert(*next);
                way.push((*next, info.references.iter()));
            }
        }
    }
    Ok(())
}
