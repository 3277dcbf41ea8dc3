//! Who a user is, by the files of this machine. Users of a directory service are known by their number only.

use std::collections::BTreeSet;
use std::fs;

/// `/etc/passwd` and `/etc/group`, as they are now.
#[derive(Debug, Clone, Default)]
pub struct Users {
    passwd: String,
    group: String,
}

/// A user of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The name, or the number where there is none.
    pub name: String,
    /// The number.
    pub uid: u32,
    /// Names of the groups, or the number of the first where it has no name.
    pub groups: BTreeSet<String>,
}

impl Users {
    /// Reads the files anew, since users come and go.
    pub fn of_this_machine() -> Self {
        let read = |path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        Self { passwd: read("/etc/passwd"), group: read("/etc/group") }
    }

    /// Who has these numbers.
    pub fn user(&self, uid: u32, gid: u32) -> User {
        let mut rows = rows_of(&self.passwd).filter(|row| row.get(2).and_then(|id| id.parse().ok()) == Some(uid));
        let name = rows.next().map_or_else(|| uid.to_string(), |row| row[0].to_owned());
        let mut groups = BTreeSet::new();
        let mut first = None;
        for row in rows_of(&self.group) {
            let [group, _, id, members] = row[..] else { continue };
            if id.parse() == Ok(gid) {
                first = Some(group);
            }
            if members.split(',').any(|member| member == name) {
                groups.insert(group.to_owned());
            }
        }
        groups.insert(first.map_or_else(|| gid.to_string(), str::to_owned));
        User { name, uid, groups }
    }

    /// The number of a group.
    pub fn group_id(&self, name: &str) -> Option<u32> {
        rows_of(&self.group).find(|row| row.first() == Some(&name)).and_then(|row| row.get(2)?.parse().ok())
    }
}

impl User {
    /// Whether a list names this user: `*`, a name, or `@` and a group.
    pub fn is_among(&self, list: &[String]) -> bool {
        list.iter().any(|entry| match entry.strip_prefix('@') {
            Some(group) => self.groups.contains(group),
            None => entry == "*" || *entry == self.name,
        })
    }
}

fn rows_of(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(':').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_known_by_name_and_by_group() {
        let users = Users {
            passwd: "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:100::/home/alice:/bin/sh\n".to_owned(),
            group: "root:x:0:\nusers:x:100:\nwheel:x:10:bob,alice\nnixbld:x:30000:\n".to_owned(),
        };
        let alice = users.user(1000, 100);
        assert_eq!((alice.name.as_str(), alice.groups.len()), ("alice", 2));
        let among = |list: &[&str]| alice.is_among(&list.iter().map(|entry| (*entry).to_owned()).collect::<Vec<_>>());
        assert!(among(&["*"]) && among(&["root", "alice"]) && among(&["@wheel"]) && among(&["@users"]));
        assert!(!among(&["root", "@root", "@alice", "wheel", ""]));
        let stranger = users.user(1234, 4321);
        assert_eq!((stranger.name.as_str(), stranger.groups.len()), ("1234", 1));
        assert_eq!(users.group_id("nixbld"), Some(30000));
        assert_eq!(users.group_id("absent"), None);
    }
}
