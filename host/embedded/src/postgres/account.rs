//! The unprivileged account of the server, which refuses to run as root.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use super::PostgresError;

/// Tried in this order when none is configured: the distribution's own, then the one that owns nothing.
const USUAL_ACCOUNTS: [&str; 2] = ["postgres", "nobody"];
const PASSWD: &str = "/etc/passwd";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Account {
    /// Makes the command run as this account. The standard library drops the supplementary groups of root with it.
    pub(crate) fn apply(&self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }
}

/// `None` when we are not root: then the server simply runs as ourselves.
pub(crate) fn choose(configured: Option<&str>) -> Result<Option<Account>, PostgresError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let passwd = std::fs::read_to_string(PASSWD).map_err(|cause| PostgresError::Io {
        doing: "read",
        path: PathBuf::from(PASSWD),
        cause,
    })?;
    let wanted: Vec<&str> = configured.map_or_else(|| USUAL_ACCOUNTS.to_vec(), |name| vec![name]);
    wanted
        .iter()
        .find_map(|name| find(&passwd, name))
        .map(Some)
        .ok_or_else(|| PostgresError::NoAccount { wanted: wanted.join(" or ") })
}

fn find(passwd: &str, name: &str) -> Option<Account> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [found, _, uid, gid, ..] = fields.as_slice() else { return None };
        let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
        (*found == name && uid != 0).then(|| Account { name: name.to_owned(), uid, gid })
    })
}

/// The outermost directory on the way to `path` that the account may not pass, going by its mode bits.
pub(crate) fn first_closed_directory(path: &Path, account: &Account) -> Option<PathBuf> {
    let mut way: Vec<&Path> = path.ancestors().collect();
    way.reverse();
    way.into_iter()
        .find(|directory| {
            directory.metadata().is_ok_and(|metadata| {
                let bit = if metadata.uid() == account.uid {
                    0o100
                } else if metadata.gid() == account.gid {
                    0o010
                } else {
                    0o001
                };
                metadata.mode() & bit == 0
            })
        })
        .map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_account_is_found_by_its_exact_name_and_never_is_root() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\npostgres2:x:5:6::/:/bin/sh\npostgres:x:101:104:P:/:/bin/sh\ntoor:x:0:0::/:/bin/sh\n";
        assert_eq!(find(passwd, "postgres"), Some(Account { name: "postgres".to_owned(), uid: 101, gid: 104 }));
        assert_eq!(find(passwd, "toor"), None);
        assert_eq!(find(passwd, "nobody"), None);
    }

    #[test]
    fn the_closed_directory_is_named() {
        let root = tempfile::tempdir().expect("temporary directory");
        let closed = root.path().join("closed");
        std::fs::create_dir_all(closed.join("inner")).expect("directories");
        std::fs::set_permissions(root.path(), PermissionsExt::from_mode(0o755)).expect("mode");
        std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).expect("mode");
        let stranger = Account { name: "stranger".to_owned(), uid: 54_321, gid: 54_321 };
        assert_eq!(first_closed_directory(&closed.join("inner"), &stranger), Some(closed));
        assert_eq!(first_closed_directory(root.path(), &stranger), None);
    }
}
