//! Which project a folder of this machine is. Start at [`project_of`].
//!
//! A folder's project is called like the folder, and the newest evaluation of a branch replaces the older ones. Two folders that
//! are called the same must not replace each other's: the one that was evaluated first has the plain name, others get a hash
//! of their place behind it. Who was first is remembered beside what the command line knows of servers; where that cannot
//! be written, every folder has the plain name.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use harmonia_core::project_name;

/// Name of the file.
pub(crate) const FILE: &str = "folders.json";

/// Folders by project, by server.
type Known = BTreeMap<String, BTreeMap<String, String>>;

/// The project of `folder`, of which `plain` is the name if nobody else has it at this server. `data_dir` has the file.
pub(crate) fn project_of(data_dir: &Path, server: &str, plain: String, folder: &Path) -> String {
    let place = folder.to_string_lossy().into_owned();
    let mut known = read(data_dir);
    let projects = known.entry(server.to_owned()).or_default();
    match projects.get(&plain) {
        Some(owner) if *owner == place => return plain,
        // Where there is no folder any more, nobody is waiting for results.
        Some(owner) if Path::new(owner).exists() => return project_name::beside(&plain, &place),
        _ => {}
    }
    projects.insert(plain.clone(), place);
    if let Err(error) = write(data_dir, &known) {
        tracing::debug!(%error, "Could not remember which folder has the name {plain}");
    }
    plain
}

fn read(data_dir: &Path) -> Known {
    let text = std::fs::read_to_string(data_dir.join(FILE)).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

fn write(data_dir: &Path, known: &Known) -> std::io::Result<()> {
    // That of root is made by the server alone.
    if !rustix::process::geteuid().is_root() {
        std::fs::create_dir_all(data_dir)?;
    }
    let mut file = tempfile::NamedTempFile::new_in(data_dir)?;
    file.write_all(serde_json::to_string_pretty(known)?.as_bytes())?;
    file.persist(data_dir.join(FILE)).map(drop).map_err(|error| error.error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_one_name_are_two_projects_and_stay_what_they_are() {
        let dir = tempfile::tempdir().expect("folder");
        let (data, one, two) = (dir.path().join("data"), dir.path().join("one/site"), dir.path().join("two/site"));
        for folder in [&data, &one, &two] {
            std::fs::create_dir_all(folder).expect("folder");
        }
        let name = |server: &str, folder: &Path| project_of(&data, server, "local/site".to_owned(), folder);
        for _ in 0..2 {
            assert_eq!(name("a", &one), "local/site");
            assert!(name("a", &two).starts_with("local/site-"), "{}", name("a", &two));
        }
        assert_eq!(name("b", &two), "local/site", "another server knows nothing of the first");
        // The first moved away: its name is free.
        std::fs::rename(&one, dir.path().join("moved")).expect("moved");
        assert_eq!(name("a", &two), "local/site");
        // What cannot be read or written is no obstacle.
        std::fs::write(data.join(FILE), "garbage").expect("written");
        assert_eq!(name("a", &two), "local/site");
        assert_eq!(project_of(&dir.path().join("site"), "a", "local/x".to_owned(), &two), "local/x");
    }
}
