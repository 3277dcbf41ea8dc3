//! Listing a bucket in key order, a page at a time, with memory for one page only. Start at [`list`].

use std::collections::BinaryHeap;
use std::fs;
use std::io;
use std::path::Path;

use super::keys::{self, Kind};

/// Where a page begins: behind a key, or behind all keys that begin with a common prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum After {
    Key(Vec<u8>),
    Prefix(Vec<u8>),
}

impl After {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Key(bytes) | Self::Prefix(bytes) => bytes,
        }
    }

    fn excludes_key(&self, key: &[u8]) -> bool {
        key <= self.bytes() || matches!(self, Self::Prefix(prefix) if key.starts_with(prefix))
    }

    /// Whether every key that begins with `base` lies before the page.
    fn excludes_all_of(&self, base: &[u8]) -> bool {
        match self {
            Self::Key(key) => base < key.as_slice() && !key.starts_with(base),
            Self::Prefix(prefix) => base.starts_with(prefix) || (base < prefix.as_slice() && !prefix.starts_with(base)),
        }
    }
}

/// One line of a listing, in byte order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    Key(Vec<u8>),
    CommonPrefix(Vec<u8>),
}

/// The first `limit` lines behind `after`. With `by_directory` the keys behind the next slash are one line.
pub(crate) fn list(
    bucket: &Path,
    prefix: &[u8],
    after: After,
    by_directory: bool,
    limit: usize,
) -> io::Result<Vec<Found>> {
    let (directory, base) = keys::deepest_directory(prefix);
    let mut walk = Walk { prefix, after, by_directory, limit, found: Vec::new() };
    walk.directory(&bucket.join(directory), &base)?;
    Ok(walk.found)
}

struct Walk<'a> {
    prefix: &'a [u8],
    after: After,
    by_directory: bool,
    limit: usize,
    found: Vec<Found>,
}

impl Walk<'_> {
    fn directory(&mut self, path: &Path, base: &[u8]) -> io::Result<()> {
        let mut behind: Option<Vec<u8>> = None;
        while self.found.len() < self.limit {
            let (entries, more) = self.smallest_entries(path, base, behind.as_deref())?;
            for (full, kind, name) in entries {
                if self.found.len() >= self.limit {
                    return Ok(());
                }
                match kind {
                    Kind::Object => self.found.push(Found::Key(full.clone())),
                    Kind::Directory if self.is_one_line(&full) => {
                        // Pruning may have left a directory without any object.
                        let mut inside = Walk {
                            prefix: self.prefix,
                            after: self.after.clone(),
                            by_directory: false,
                            limit: 1,
                            found: Vec::new(),
                        };
                        inside.directory(&path.join(name), &full)?;
                        if !inside.found.is_empty() {
                            self.found.push(Found::CommonPrefix(full.clone()));
                        }
                    }
                    Kind::Directory => self.directory(&path.join(name), &full)?,
                    Kind::Shard => self.directory(&path.join(name), base)?,
                }
                behind = Some(full);
            }
            if !more {
                return Ok(());
            }
        }
        Ok(())
    }

    fn is_one_line(&self, full: &[u8]) -> bool {
        self.by_directory && full.ends_with(b"/") && full.len() > self.prefix.len()
    }

    /// The smallest entries of a directory that may hold lines of the page, no more than the page can take, and
    /// whether there are others. A directory is read again for each page, but never kept.
    fn smallest_entries(&self, path: &Path, base: &[u8], behind: Option<&[u8]>) -> io::Result<(Vec<Entry>, bool)> {
        let room = self.limit - self.found.len();
        let mut smallest: BinaryHeap<Entry> = BinaryHeap::new();
        let mut more = false;
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), false)),
            Err(cause) => return Err(cause),
        };
        for entry in entries {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            let Some((added, kind)) = keys::decode(&name) else { continue };
            let full = [base, &added].concat();
            let excluded = match kind {
                Kind::Object => !full.starts_with(self.prefix) || self.after.excludes_key(&full),
                Kind::Directory | Kind::Shard => {
                    !(full.starts_with(self.prefix) || self.prefix.starts_with(&full))
                        || self.after.excludes_all_of(&full)
                }
            };
            if excluded || behind.is_some_and(|behind| full.as_slice() <= behind) {
                continue;
            }
            smallest.push((full, kind, name));
            if smallest.len() > room {
                smallest.pop();
                more = true;
            }
        }
        Ok((smallest.into_sorted_vec(), more))
    }
}

type Entry = (Vec<u8>, Kind, String);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// What S3 says a listing is, over a sorted set of keys.
    fn model(keys: &BTreeSet<String>, prefix: &str, by_directory: bool) -> Vec<Found> {
        let mut lines = Vec::new();
        for key in keys.iter().filter(|key| key.starts_with(prefix)) {
            let line = match key[prefix.len()..].find('/') {
                Some(slash) if by_directory => Found::CommonPrefix(key.as_bytes()[..=prefix.len() + slash].to_vec()),
                _ => Found::Key(key.clone().into_bytes()),
            };
            if lines.last() != Some(&line) {
                lines.push(line);
            }
        }
        lines
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn pages_add_up_to_the_model(
            keys in prop::collection::btree_set(prop_oneof!["[ab/-]{1,6}", "(a{79}|a{80}|a{81})[a/-]{0,3}"], 0..40),
            prefix in prop_oneof!["", "[ab/-]{0,3}", "a{78,81}"],
            by_directory: bool,
            page in 1usize..7,
        ) {
            let bucket = tempfile::tempdir().expect("temporary directory");
            for key in &keys {
                let path = bucket.path().join(crate::s3::keys::path_of(key).expect("a key"));
                fs::create_dir_all(path.parent().expect("below")).expect("directories");
                fs::write(path, "").expect("writes");
            }
            fs::create_dir_all(bucket.path().join("a.d/empty.d")).expect("an empty directory");
            let mut all = Vec::new();
            let mut after = After::Key(Vec::new());
            loop {
                let lines = list(bucket.path(), prefix.as_bytes(), after, by_directory, page).expect("lists");
                prop_assert!(lines.len() <= page);
                let Some(last) = lines.last().cloned() else { break };
                after = match last {
                    Found::Key(key) => After::Key(key),
                    Found::CommonPrefix(prefix) => After::Prefix(prefix),
                };
                all.extend(lines);
            }
            prop_assert_eq!(all, model(&keys, &prefix, by_directory));
        }
    }
}
