//! Asking the database.

use std::collections::{BTreeMap, BTreeSet};

use harmonia_nix::hash::{Hash, HashAlgorithm, NarHash};
use harmonia_nix::store_path::{STORE_DIR, StorePath, is_hash_part};
use harmonia_nix::worker_protocol::PathInfo;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Store, StoreError};

impl Store {
    /// Whether a path is complete and registered.
    pub fn is_valid(&self, path: &StorePath) -> Result<bool, StoreError> {
        self.database.read(|db| Ok(valid_id(db, path)?.is_some()))
    }

    /// Which of these are valid.
    pub fn valid_of<'a>(
        &self,
        paths: impl IntoIterator<Item = &'a StorePath>,
    ) -> Result<BTreeSet<StorePath>, StoreError> {
        self.database.read(|db| {
            let mut valid = BTreeSet::new();
            for path in paths {
                if valid_id(db, path)?.is_some() {
                    valid.insert(path.clone());
                }
            }
            Ok(valid)
        })
    }

    /// Every valid path.
    pub fn all_valid(&self) -> Result<BTreeSet<StorePath>, StoreError> {
        self.database.read(|db| paths_of(db, "select path from ValidPaths", params![]))
    }

    /// What is known of a path; `None` when it is not valid.
    pub fn path_info(&self, path: &StorePath) -> Result<Option<PathInfo>, StoreError> {
        self.database.read(|db| path_info(db, path))
    }

    /// The same of a path that must be valid.
    pub fn valid_path_info(&self, path: &StorePath) -> Result<PathInfo, StoreError> {
        self.path_info(path)?.ok_or_else(|| StoreError::Invalid(path.clone()))
    }

    /// These paths, what they refer to, and so on; all must be valid.
    pub fn closure<'a>(
        &self,
        paths: impl IntoIterator<Item = &'a StorePath>,
    ) -> Result<BTreeMap<StorePath, PathInfo>, StoreError> {
        self.database.read(|db| {
            let mut closure = BTreeMap::new();
            let mut todo: Vec<StorePath> = paths.into_iter().cloned().collect();
            while let Some(path) = todo.pop() {
                if closure.contains_key(&path) {
                    continue;
                }
                let info = path_info(db, &path)?.ok_or_else(|| StoreError::Invalid(path.clone()))?;
                todo.extend(info.references.iter().filter(|path| !closure.contains_key(*path)).cloned());
                closure.insert(path, info);
            }
            Ok(closure)
        })
    }

    /// Valid paths that refer to this one, perhaps itself.
    pub fn referrers(&self, path: &StorePath) -> Result<BTreeSet<StorePath>, StoreError> {
        self.database.read(|db| referrers(db, path))
    }

    /// Valid derivations that have this path as an output.
    pub fn valid_derivers(&self, path: &StorePath) -> Result<BTreeSet<StorePath>, StoreError> {
        let sql = "select v.path from DerivationOutputs d join ValidPaths v on d.drv = v.id where d.path = ?";
        self.database.read(|db| paths_of(db, sql, params![path.as_str()]))
    }

    /// Output paths of a valid derivation by name, as far as they are known.
    pub fn derivation_outputs(&self, derivation: &StorePath) -> Result<BTreeMap<String, StorePath>, StoreError> {
        self.database.read(|db| {
            let id = valid_id(db, derivation)?.ok_or_else(|| StoreError::Invalid(derivation.clone()))?;
            let mut statement = db.prepare_cached("select id, path from DerivationOutputs where drv = ?")?;
            let mut rows = statement.query(params![id])?;
            let mut outputs = BTreeMap::new();
            while let Some(row) = rows.next()? {
                outputs.insert(row.get(0)?, path_in(row, 1)?);
            }
            Ok(outputs)
        })
    }

    /// The valid path that has this hash part.
    pub fn path_from_hash_part(&self, hash_part: &str) -> Result<Option<StorePath>, StoreError> {
        if !is_hash_part(hash_part) {
            return Err(StoreError::HashPart(hash_part.chars().take(64).collect()));
        }
        let prefix = format!("{STORE_DIR}/{hash_part}");
        self.database.read(|db| {
            // Not "like", which would not use the index.
            let mut statement = db.prepare_cached("select path from ValidPaths where path >= ? limit 1")?;
            let mut rows = statement.query(params![prefix])?;
            let Some(row) = rows.next()? else { return Ok(None) };
            let path = path_in(row, 0)?;
            Ok((path.hash_part() == hash_part).then_some(path))
        })
    }
}

pub(super) fn valid_id(db: &Connection, path: &StorePath) -> Result<Option<i64>, StoreError> {
    let mut statement = db.prepare_cached("select id from ValidPaths where path = ?")?;
    Ok(statement.query_row(params![path.as_str()], |row| row.get(0)).optional()?)
}

pub(super) fn referrers(db: &Connection, path: &StorePath) -> Result<BTreeSet<StorePath>, StoreError> {
    let sql = "select path from Refs join ValidPaths on referrer = id \
               where reference = (select id from ValidPaths where path = ?)";
    paths_of(db, sql, params![path.as_str()])
}

pub(super) fn path_info(db: &Connection, path: &StorePath) -> Result<Option<PathInfo>, StoreError> {
    let mut statement = db.prepare_cached(
        "select id, hash, registrationTime, deriver, narSize, ultimate, sigs, ca from ValidPaths where path = ?",
    )?;
    let mut rows = statement.query(params![path.as_str()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let bad = |what, found: &str| StoreError::BadRow { what, path: path.to_string(), found: found.to_owned() };
    let hash: String = row.get(1)?;
    let nar_hash = Hash::parse_as(HashAlgorithm::Sha256, &hash).and_then(NarHash::try_from);
    // Zero is what a size that nobody knows is read as.
    let mut info = PathInfo::new(
        nar_hash.map_err(|_| bad("hash", &hash))?,
        row.get::<_, Option<i64>>(4)?.unwrap_or_default().cast_unsigned(),
    );
    info.registration_time_s = row.get::<_, i64>(2)?.cast_unsigned();
    let deriver: Option<String> = row.get(3)?;
    if let Some(deriver) = deriver.filter(|deriver| !deriver.is_empty()) {
        info.deriver = Some(deriver.parse().map_err(|_| bad("deriver", &deriver))?);
    }
    info.ultimate = row.get::<_, Option<i64>>(5)? == Some(1);
    let signatures: Option<String> = row.get(6)?;
    info.signatures = signatures.unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect();
    let address: Option<String> = row.get(7)?;
    if let Some(address) = address.filter(|address| !address.is_empty()) {
        info.content_address = Some(address.parse().map_err(|_| bad("content address", &address))?);
    }
    let sql = "select path from Refs join ValidPaths on reference = id where referrer = ?";
    info.references = paths_of(db, sql, params![row.get::<_, i64>(0)?])?;
    Ok(Some(info))
}

/// The paths in the first column.
pub(super) fn paths_of(
    db: &Connection,
    sql: &str,
    arguments: &[&dyn rusqlite::ToSql],
) -> Result<BTreeSet<StorePath>, StoreError> {
    let mut statement = db.prepare_cached(sql)?;
    let mut rows = statement.query(arguments)?;
    let mut paths = BTreeSet::new();
    while let Some(row) = rows.next()? {
        paths.insert(path_in(row, 0)?);
    }
    Ok(paths)
}

pub(super) fn path_in(row: &Row<'_>, column: usize) -> Result<StorePath, StoreError> {
    let text: String = row.get(column)?;
    text.parse().map_err(|_| StoreError::BadRow { what: "path", path: text.clone(), found: text })
}
