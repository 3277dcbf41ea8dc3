//! Finds the installed PostgreSQL server: Debian's versioned directories, NixOS, `PATH`, `pg_config`.

use std::path::{Path, PathBuf};

use tokio::process::Command;

use super::PostgresError;
use crate::process::{find_program, is_executable};

/// The oldest major version whose features our schema may use.
pub(crate) const OLDEST_MAJOR: u32 = 15;
const DEBIAN_ROOT: &str = "/usr/lib/postgresql";
const NEEDED: [&str; 3] = ["postgres", "initdb", "psql"];

/// A directory with the server's programs and the major version that they say they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) bin_dir: PathBuf,
    pub(crate) major: u32,
}

/// The server to run: the configured one, else one that fits the existing data, else the newest.
pub(crate) async fn discover(configured: Option<&Path>, data_major: Option<u32>) -> Result<Server, PostgresError> {
    let mut looked_in = Vec::new();
    let mut found = Vec::new();
    let candidates = match configured {
        Some(directory) => vec![directory.to_owned()],
        None => candidates().await,
    };
    for directory in candidates {
        if NEEDED.iter().all(|program| is_executable(&directory.join(program)))
            && let Some(major) = major_of(&directory).await
        {
            found.push(Server { bin_dir: directory.clone(), major });
        }
        looked_in.push(directory);
    }
    choose(found, data_major, looked_in)
}

fn choose(found: Vec<Server>, data_major: Option<u32>, looked_in: Vec<PathBuf>) -> Result<Server, PostgresError> {
    let installed: Vec<u32> = found.iter().map(|server| server.major).collect();
    if let Some(wanted) = data_major {
        let fits = found.into_iter().find(|server| server.major == wanted);
        return match fits {
            Some(server) => Ok(server),
            None if installed.is_empty() => Err(PostgresError::NotInstalled { looked_in: Looked(looked_in) }),
            None => Err(PostgresError::VersionMismatch { data: wanted, installed: Majors(installed) }),
        };
    }
    match found.into_iter().max_by_key(|server| server.major) {
        Some(server) if server.major >= OLDEST_MAJOR => Ok(server),
        Some(server) => Err(PostgresError::TooOld { major: server.major, bin_dir: server.bin_dir }),
        None => Err(PostgresError::NotInstalled { looked_in: Looked(looked_in) }),
    }
}

async fn candidates() -> Vec<PathBuf> {
    let mut directories = Vec::new();
    if let Ok(versions) = std::fs::read_dir(DEBIAN_ROOT) {
        directories.extend(versions.flatten().map(|version| version.path().join("bin")));
        directories.sort();
    } else {
        // Named in the error although absent: this is where Debian would have it.
        directories.push(Path::new(DEBIAN_ROOT).join("*/bin"));
    }
    directories.push(PathBuf::from("/run/current-system/sw/bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    directories.extend(std::env::split_paths(&path).filter(|directory| directory.is_absolute()));
    if let Some(pg_config) = find_program("pg_config")
        && let Ok(output) = Command::new(pg_config).arg("--bindir").kill_on_drop(true).output().await
        && let Ok(directory) = String::from_utf8(output.stdout)
        && directory.trim().starts_with('/')
    {
        directories.push(PathBuf::from(directory.trim()));
    }
    let mut seen = std::collections::HashSet::new();
    directories.retain(|directory| seen.insert(directory.clone()));
    directories
}

async fn major_of(bin_dir: &Path) -> Option<u32> {
    let output = Command::new(bin_dir.join("postgres")).arg("--version").kill_on_drop(true).output().await.ok()?;
    parse_version(std::str::from_utf8(&output.stdout).ok()?)
}

/// `postgres (PostgreSQL) 15.18 (Debian …)` or `… 17beta1` → the major version.
fn parse_version(text: &str) -> Option<u32> {
    let (_, version) = text.split_once("(PostgreSQL) ")?;
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().ok()
}

/// The directories looked in, as one readable list.
#[derive(Debug)]
pub struct Looked(pub Vec<PathBuf>);

impl std::fmt::Display for Looked {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.0.iter().map(|path| path.to_string_lossy()).collect();
        formatter.write_str(&names.join(", "))
    }
}

/// Major versions, as one readable list.
#[derive(Debug)]
pub struct Majors(pub Vec<u32>);

impl std::fmt::Display for Majors {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.0.iter().map(u32::to_string).collect();
        formatter.write_str(&names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_the_server_prints_them() {
        assert_eq!(parse_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(15));
        assert_eq!(parse_version("postgres (PostgreSQL) 18beta2\n"), Some(18));
        assert_eq!(parse_version("postgres (EnterpriseDB) 15"), None);
    }

    fn server(major: u32) -> Server {
        Server { bin_dir: PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")), major }
    }

    #[test]
    fn existing_data_decides_else_the_newest() {
        let all = || vec![server(15), server(17), server(16)];
        assert_eq!(choose(all(), None, Vec::new()).expect("found").major, 17);
        assert_eq!(choose(all(), Some(15), Vec::new()).expect("found").major, 15);
        let error = choose(all(), Some(14), Vec::new()).expect_err("no 14 there");
        assert!(error.to_string().contains("version 14") && error.to_string().contains("15, 17, 16"), "{error}");
    }

    #[test]
    fn nothing_and_too_old_say_what_to_do() {
        let error = choose(Vec::new(), None, vec![PathBuf::from("/opt/pg/bin")]).expect_err("nothing there");
        assert!(error.to_string().contains("/opt/pg/bin") && error.to_string().contains("install"), "{error}");
        let error = choose(vec![server(13)], None, Vec::new()).expect_err("too old");
        assert!(error.to_string().contains("13") && error.to_string().contains("15"), "{error}");
    }
}
