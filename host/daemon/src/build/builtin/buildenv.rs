//! `builtin:buildenv`: a tree of symlinks into packages, as `nix-env` makes profiles. Start at [`run`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{Input, failed};

/// Names that are of no use in a profile, or that every package has.
const LEFT_OUT: [&str; 7] = [
    "/propagated-build-inputs",
    "/nix-support",
    "/perllocal.pod",
    "/info/dir",
    "/log",
    "/manifest.nix",
    "/manifest.json",
];

struct Package {
    path: String,
    priority: i64,
    active: bool,
}

pub(super) fn run(input: &Input) -> Result<(), String> {
    let out = PathBuf::from(input.attribute("out")?);
    fs::create_dir_all(&out).map_err(failed(format!("creating directory '{}'", out.display())))?;
    let mut packages = packages(&input.attribute("derivations")?)?;
    packages.sort_by(|a, b| (a.priority, &a.path).cmp(&(b.priority, &b.path)));
    let mut profile = Profile::default();
    for package in packages.iter().filter(|package| package.active) {
        profile.add(&package.path, &out, package.priority)?;
    }
    // What packages bring along gives way to what was asked for.
    let mut priority = 1000;
    while !profile.postponed.is_empty() {
        for package in std::mem::take(&mut profile.postponed) {
            profile.add(&package, &out, priority)?;
            priority += 1;
        }
    }
    let manifest = out.join("manifest.nix");
    symlink(input.attribute("manifest")?, &manifest)
        .map_err(failed(format!("creating symlink '{}'", manifest.display())))
}

/// Reads `active priority outputs path…`, again and again.
fn packages(text: &str) -> Result<Vec<Package>, String> {
    let mut words = text.split_ascii_whitespace();
    let mut packages = Vec::new();
    while let Some(active) = words.next() {
        let mut number = |what: &str| {
            let word = words.next().ok_or_else(|| format!("attribute 'derivations' ends before {what}"))?;
            word.parse::<i64>().map_err(failed(format!("attribute 'derivations': '{word}' is no {what}")))
        };
        let (priority, outputs) = (number("priority")?, number("number of outputs")?);
        for _ in 0..outputs {
            let path = words.next().ok_or("attribute 'derivations' ends before a path")?;
            packages.push(Package { path: path.to_owned(), priority, active: active != "false" });
        }
    }
    Ok(packages)
}

#[derive(Default)]
struct Profile {
    done: BTreeSet<String>,
    postponed: BTreeSet<String>,
    /// Of each link the priority of the package it is from.
    priorities: BTreeMap<PathBuf, i64>,
}

impl Profile {
    fn add(&mut self, package: &str, out: &Path, priority: i64) -> Result<(), String> {
        if !self.done.insert(package.to_owned()) {
            return Ok(());
        }
        self.link(Path::new(package), out, priority)?;
        let propagated = Path::new(package).join("nix-support/propagated-user-env-packages");
        match fs::read_to_string(&propagated) {
            Ok(text) => {
                let new = text.split([' ', '\n']).filter(|word| !word.is_empty() && !self.done.contains(*word));
                self.postponed.extend(new.map(str::to_owned).collect::<Vec<_>>());
                Ok(())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
            Err(error) => Err(format!("reading '{}': {error}", propagated.display())),
        }
    }

    fn link(&mut self, from: &Path, to: &Path, priority: i64) -> Result<(), String> {
        let entries = match fs::read_dir(from) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                eprintln!(
                    "warning: not including '{}' in the user environment because it's not a directory",
                    from.display()
                );
                return Ok(());
            }
            Err(error) => return Err(format!("reading directory '{}': {error}", from.display())),
        };
        for entry in entries {
            let name = entry.map_err(failed(format!("reading directory '{}'", from.display())))?.file_name();
            if !name.as_encoded_bytes().starts_with(b".") {
                self.entry(&from.join(&name), &to.join(&name), priority)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, source: &Path, target: &Path, priority: i64) -> Result<(), String> {
        let (shown, place) = (source.display(), target.display());
        let is_directory = match fs::metadata(source) {
            Ok(metadata) => metadata.is_dir(),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                eprintln!("warning: skipping dangling symlink '{place}'");
                return Ok(());
            }
            Err(error) => return Err(format!("getting status of '{shown}': {error}")),
        };
        if LEFT_OUT.iter().any(|name| source.as_os_str().as_encoded_bytes().ends_with(name.as_bytes())) {
            return Ok(());
        }
        let there = match fs::symlink_metadata(target) {
            Ok(metadata) => Some(metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(format!("getting status of '{place}': {error}")),
        };
        match there {
            Some(there) if is_directory && there.is_dir() => return self.link(source, target, priority),
            Some(there) if is_directory && there.is_symlink() => {
                let linked = fs::canonicalize(target).map_err(failed(format!("resolving '{place}'")))?;
                if !linked.is_dir() {
                    return Err(format!("collision between '{shown}' and non-directory '{}'", linked.display()));
                }
                fs::remove_file(target).map_err(failed(format!("unlinking '{place}'")))?;
                fs::create_dir(target).map_err(failed(format!("creating directory '{place}'")))?;
                let previous = self.priorities.get(target).copied().unwrap_or(0);
                self.link(&linked, target, previous)?;
                return self.link(source, target, priority);
            }
            Some(there) if !is_directory && there.is_symlink() => {
                let previous = self.priorities.get(target).copied().unwrap_or(0);
                if previous == priority {
                    let other = fs::read_link(target).unwrap_or_default();
                    return Err(format!(
                        "packages '{shown}' and '{}' have the same priority {priority}; use 'nix-env --set-flag \
                         priority NUMBER INSTALLED_PKGNAME' to change the priority of one of the conflicting packages \
                         (0 being the highest priority)",
                        other.display()
                    ));
                }
                if previous < priority {
                    return Ok(());
                }
                fs::remove_file(target).map_err(failed(format!("unlinking '{place}'")))?;
            }
            Some(there) if !is_directory && there.is_dir() => {
                return Err(format!("collision between non-directory '{shown}' and directory '{place}'"));
            }
            _ => {}
        }
        symlink(source, target).map_err(failed(format!("creating symlink '{place}'")))?;
        self.priorities.insert(target.to_owned(), priority);
        Ok(())
    }
}
