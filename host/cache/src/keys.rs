//! Names of the objects in the bucket: which key holds what, in one place.

use harmonia_core::AttemptId;
use harmonia_nix::{Sha256Hash, StorePath};

/// Where the probes of [`crate::Signer::probe`] are written (and deleted again).
pub(crate) const PROBE_PREFIX: &str = "probe/";

/// `<hash>.narinfo`.
pub fn narinfo(path: &StorePath) -> String {
    format!("{}.narinfo", path.hash_part())
}

/// `<hash>.ls`: the listing.
pub fn listing(path: &StorePath) -> String {
    format!("{}.ls", path.hash_part())
}

/// `nar/<file hash>.nar.zst`. Keyed by the hash of the compressed bytes, so that one key never names two contents.
pub fn nar(file_hash: &Sha256Hash) -> String {
    format!("nar/{}.nar.zst", file_hash.to_base32())
}

/// `drv/<name>.drv.zst`, the derivation as a plain file.
pub fn derivation(drv: &StorePath) -> String {
    format!("drv/{}.zst", drv.base_name())
}

/// `log/<name>.drv`: the log of the latest attempt, where `nix log` looks for it.
pub fn log(drv: &StorePath) -> String {
    format!("log/{}", drv.base_name())
}

/// `log/<name>.drv.<attempt>`: the log of one attempt.
pub fn attempt_log(drv: &StorePath, attempt: AttemptId) -> String {
    format!("log/{}.{attempt}", drv.base_name())
}

/// The file hash in `<file hash>.nar.zst`, as it follows `/nar/` in a request; `None` for anything else.
pub fn parse_nar_file(name: &str) -> Option<Sha256Hash> {
    let digits = name.strip_suffix(".nar.zst")?;
    // Base16 and base64 forms must not become second names of the same object.
    let is_base32 = digits.len() == 52;
    is_base32.then(|| format!("sha256:{digits}").parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout() {
        let drv = StorePath::parse("/nix/store/00000000000000000000000000000000-a.drv").expect("valid");
        let hash = Sha256Hash::of(b"x");
        assert_eq!(narinfo(&drv), "00000000000000000000000000000000.narinfo");
        assert_eq!(listing(&drv), "00000000000000000000000000000000.ls");
        assert_eq!(derivation(&drv), "drv/00000000000000000000000000000000-a.drv.zst");
        assert_eq!(log(&drv), "log/00000000000000000000000000000000-a.drv");
        assert_eq!(attempt_log(&drv, AttemptId(7)), "log/00000000000000000000000000000000-a.drv.7");
        let key = nar(&hash);
        assert_eq!(parse_nar_file(key.strip_prefix("nar/").expect("prefix")), Some(hash));
    }

    #[test]
    fn a_nar_file_has_one_name() {
        let hash = Sha256Hash::of(b"x");
        let base16 = format!("{}.nar.zst", hash.to_base16());
        for bad in ["", ".nar.zst", "x.nar.zst", "../a.nar.zst", &base16, &hash.to_base32(), "é.nar.zst"] {
            assert_eq!(parse_nar_file(bad), None, "{bad}");
        }
    }
}
