//! Which store paths an archive refers to, found as Nix finds them. Start at [`ReferenceScanner`].
//!
//! A path refers to another when the 32 digits of the other's hash stand anywhere in its NAR: in a file, in the name of
//! one, in the target of a link. Only paths that are known beforehand can be found (Nix's `libstore/references.cc`).

use std::collections::{BTreeSet, HashMap};

use crate::StorePath;
use crate::base32::is_digit;
use crate::store_path::HASH_DIGITS;

/// The last bytes of a piece that may be the beginning of a hash.
const CARRIED_MAX: usize = HASH_DIGITS - 1;

/// Looks for the hashes of candidates in a stream of bytes.
///
/// Takes the memory of its candidates and 62 bytes; a byte costs one look into a table, and a hash of it where 32 digits
/// stand in a row.
#[derive(Debug)]
pub struct ReferenceScanner {
    /// By hash; those of one hash are found together.
    wanted: HashMap<[u8; HASH_DIGITS], Vec<StorePath>>,
    found: BTreeSet<StorePath>,
    /// The end of what was seen.
    carried: Vec<u8>,
}

impl ReferenceScanner {
    /// Looks for these.
    pub fn new(candidates: impl IntoIterator<Item = StorePath>) -> Self {
        let mut wanted: HashMap<[u8; HASH_DIGITS], Vec<StorePath>> = HashMap::new();
        for path in candidates {
            let mut digits = [0; HASH_DIGITS];
            digits.copy_from_slice(path.hash_part().as_bytes());
            wanted.entry(digits).or_default().push(path);
        }
        Self { wanted, found: BTreeSet::new(), carried: Vec::with_capacity(2 * CARRIED_MAX) }
    }

    /// The next piece of the archive, of any length.
    pub fn update(&mut self, piece: &[u8]) {
        if self.wanted.is_empty() {
            return;
        }
        let mut seam = std::mem::take(&mut self.carried);
        seam.extend_from_slice(&piece[..piece.len().min(CARRIED_MAX)]);
        self.search(&seam);
        self.search(piece);
        if piece.len() >= CARRIED_MAX {
            seam.clear();
            seam.extend_from_slice(&piece[piece.len() - CARRIED_MAX..]);
        } else {
            seam.drain(..seam.len().saturating_sub(CARRIED_MAX));
        }
        self.carried = seam;
    }

    /// The candidates that were found.
    pub fn finish(self) -> BTreeSet<StorePath> {
        self.found
    }

    fn search(&mut self, bytes: &[u8]) {
        // The window begins at `start`; its first `digits` bytes are known to be digits.
        let (mut start, mut digits) = (0, 0);
        while let Some(window) = bytes.get(start..start + HASH_DIGITS) {
            // From its end, as no window over the last byte that is none can match.
            if let Some(last) = window[digits..].iter().rposition(|byte| !is_digit(*byte)) {
                start += digits + last + 1;
                digits = HASH_DIGITS - (digits + last + 1);
                continue;
            }
            if let Some(paths) = self.wanted.remove(window) {
                self.found.extend(paths);
            }
            start += 1;
            digits = CARRIED_MAX;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    fn path(hash: u8, name: &str) -> StorePath {
        StorePath::from_parts(&[hash; 20], name).expect("valid name")
    }

    fn found(candidates: &[&StorePath], pieces: &[&[u8]]) -> Vec<StorePath> {
        let mut scanner = ReferenceScanner::new(candidates.iter().copied().cloned());
        for piece in pieces {
            scanner.update(piece);
        }
        scanner.finish().into_iter().collect()
    }

    #[test]
    fn the_hash_is_what_counts() {
        let (a, b) = (path(1, "a"), path(2, "b"));
        let only_a = std::slice::from_ref(&a);
        let hash = a.hash_part().as_bytes();
        assert_eq!(found(&[&a, &b], &[a.as_str().as_bytes()]), only_a);
        assert_eq!(found(&[&a], &[hash]), only_a, "nothing around it");
        assert_eq!(found(&[&a], &[b"0123", hash, b"zzzz"]), only_a, "other digits around it");
        assert_eq!(found(&[&a], &[&hash[..31]]), []);
        assert_eq!(found(&[&a], &[&hash[..31], b"-", &hash[31..]]), []);
        assert_eq!(found(&[&a], &[&hash.to_ascii_uppercase()]), []);
        assert_eq!(found(&[], &[hash]), []);
        let same = path(1, "of-the-same-hash");
        assert_eq!(found(&[&a, &same], &[hash]), [a.clone(), same], "nobody can tell which is meant");
    }

    #[test]
    fn a_hash_is_found_across_pieces() {
        let a = path(1, "a");
        let only_a = std::slice::from_ref(&a);
        let text = format!("before /nix/store/{}/bin after", a.base_name());
        for size in 1..text.len() {
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
            assert_eq!(found(&[&a], &pieces), only_a, "pieces of {size} bytes");
        }
    }

    proptest! {
        /// However long the rows of digits are and wherever the stream is cut: as the simplest search.
        #[test]
        fn it_is_what_a_search_in_the_whole_finds(
            noise in vec(prop_oneof![4 => Just(b'a'), 4 => Just(b'0'), 1 => Just(b'e'), 1 => any::<u8>()], 0..400),
            places in vec((0_u8..6, any::<Index>()), 0..6),
            cuts in vec(any::<Index>(), 0..8),
        ) {
            let candidates: Vec<StorePath> = (0..6).map(|hash| path(hash, "x")).collect();
            let mut bytes = noise;
            for (hash, place) in places {
                let at = place.index(bytes.len() + 1);
                bytes.splice(at..at, candidates[usize::from(hash)].hash_part().bytes());
            }
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let mut scanner = ReferenceScanner::new(candidates.clone());
            let mut from = 0;
            for cut in cuts {
                scanner.update(&bytes[from..cut]);
                from = cut;
            }
            let expected: BTreeSet<StorePath> = candidates
                .into_iter()
                .filter(|path| bytes.windows(HASH_DIGITS).any(|window| window == path.hash_part().as_bytes()))
                .collect();
            prop_assert_eq!(scanner.finish(), expected);
        }
    }
}
