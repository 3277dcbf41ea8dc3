//! The users of builds: of a group of the host, or of a range of ids that belong to nobody. Start at [`lease`].
//!
//! Locks are those of stock Nix, so that both can build on one machine at once.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use harmonia_sandbox::User;
use rustix::fs::FlockOperation;

/// Who builders are when the daemon is root. An ordinary user's builders are that user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildUsers {
    /// The members of a group, such as `nixbld`.
    Group {
        /// Its name.
        name: String,
        /// Where locks are: `userpool` of Nix's state directory.
        locks: PathBuf,
    },
    /// Ids of nobody (`auto-allocate-uids`); each build takes the first of 65,536.
    Range {
        /// The first id.
        first: u32,
        /// How many there are.
        count: u32,
        /// Where locks are: `userpool2` of Nix's state directory.
        locks: PathBuf,
    },
}

/// How many ids Nix gives to one build.
const IDS_EACH: u32 = 1 << 16;

impl BuildUsers {
    /// Nix's own range of ids, below its state directory (`/nix/var/nix`).
    pub fn of_range(state_directory: &Path) -> Self {
        Self::Range { first: 0x3400_0000, count: 0x80_0000, locks: state_directory.join("userpool2") }
    }

    /// A group of the host, below Nix's state directory.
    pub fn of_group(name: &str, state_directory: &Path) -> Self {
        Self::Group { name: name.to_owned(), locks: state_directory.join("userpool") }
    }
}

/// A user that no other build has, until this is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) user: User,
    _lock: File,
}

/// A free user; `None` when all are taken.
pub(super) fn lease(users: &BuildUsers) -> io::Result<Option<Lease>> {
    let (locks, candidates): (&Path, Vec<(String, User)>) = match users {
        BuildUsers::Group { name, locks } => {
            let members = members(name, &read("/etc/group")?, &read("/etc/passwd")?)?;
            (locks, members.into_iter().map(|user| (user.uid.to_string(), user)).collect())
        }
        BuildUsers::Range { first, count, locks } => {
            let slots = (0..count / IDS_EACH).map(|slot| {
                let id = first + slot * IDS_EACH;
                (format!("slot-{slot}"), User { uid: id, gid: id })
            });
            (locks, slots.collect())
        }
    };
    DirBuilder::new().recursive(true).mode(0o755).create(locks)?;
    for (name, user) in candidates {
        let lock = File::options().create(true).truncate(false).write(true).open(locks.join(name))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(Lease { user, _lock: lock })),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

fn read(path: &str) -> io::Result<String> {
    std::fs::read_to_string(path).map_err(|error| io::Error::other(format!("{path}: {error}")))
}

fn members(name: &str, groups: &str, users: &str) -> io::Result<Vec<User>> {
    let group = groups.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == name);
    let group = group.as_deref().and_then(|fields| match fields {
        [_, _, gid, members, ..] => Some((gid.parse::<u32>().ok()?, *members)),
        _ => None,
    });
    let (gid, members) =
        group.ok_or_else(|| io::Error::other(format!("the group '{name}' (build-users-group) does not exist")))?;
    let of_user = |member: &str| {
        let fields =
            users.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == member)?;
        Some(User { uid: fields.get(2)?.parse().ok()?, gid })
    };
    let members: Vec<User> = members.split(',').filter_map(of_user).collect();
    if members.is_empty() {
        return Err(io::Error::other(format!("the build users group '{name}' has no members")));
    }
    if members.iter().any(|user| user.uid == 0 || user.uid == rustix::process::geteuid().as_raw()) {
        return Err(io::Error::other(format!("the build users group '{name}' must not have root as a member")));
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_members_of_a_group_are_its_build_users() {
        let groups = "root:x:0:\nnixbld:x:30000:nixbld1,nixbld2,gone\nempty:x:5:\nbad:x:6:root\n";
        let users = "root:x:0:0:::\nnixbld1:x:30001:30000:::\nnixbld2:x:30002:30000:::\n";
        let found = members("nixbld", groups, users).expect("a group");
        assert_eq!(found, [User { uid: 30_001, gid: 30_000 }, User { uid: 30_002, gid: 30_000 }]);
        for bad in ["empty", "bad", "none"] {
            assert!(members(bad, groups, users).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_two_builds_have_one_user() {
        let folder = tempfile::tempdir().expect("a folder");
        let users = BuildUsers::Range { first: 1 << 20, count: 2 << 16, locks: folder.path().join("locks") };
        let first = lease(&users).expect("locks").expect("free");
        let second = lease(&users).expect("locks").expect("free");
        assert_ne!(first.user, second.user);
        assert!(lease(&users).expect("locks").is_none());
        drop(first);
        assert_eq!(lease(&users).expect("locks").expect("free").user.uid, 1 << 20);
    }
}
