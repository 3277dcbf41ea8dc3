//! The format of `nix.conf`: `name = value`, `include FILE`, `!include FILE`, and comments after `#`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::settings::{SettingError, Settings};

/// Files that include each other so deep include each other in a circle.
const DEPTH_MAX: usize = 32;

/// Why the daemon cannot start with its configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file could not be read.
    #[error("could not read the configuration {}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// A line that is none of the forms.
    #[error("line {line} of {} is neither 'name = value' nor an include", path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// A value that the setting cannot have.
    #[error("line {line} of {}", path.display())]
    Value {
        /// Which file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        #[source]
        cause: SettingError,
    },
    /// Files that include each other.
    #[error("{} is included more than {DEPTH_MAX} levels deep", .0.display())]
    TooDeep(PathBuf),
    /// Hashes of store paths depend on the directory.
    #[error("the store directory is {}, but only /nix/store is served (a root directory may be before it: NIX_ROOT_DIR)", .0.display())]
    StoreDir(PathBuf),
}

/// Applies a file; nothing when there is none.
pub fn read_file(path: &Path, settings: &mut Settings) -> Result<(), ConfigError> {
    read(path, settings, false, 0)
}

/// Applies a text that stands for a file.
pub(super) fn read_text(text: &str, path: &Path, settings: &mut Settings) -> Result<(), ConfigError> {
    apply(text, path, settings, 0)
}

fn read(path: &Path, settings: &mut Settings, is_needed: bool, depth: usize) -> Result<(), ConfigError> {
    if depth > DEPTH_MAX {
        return Err(ConfigError::TooDeep(path.to_owned()));
    }
    match fs::read_to_string(path) {
        Ok(text) => apply(&text, path, settings, depth),
        Err(cause) if !is_needed && matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(())
        }
        Err(cause) => Err(ConfigError::Read { path: path.to_owned(), cause }),
    }
}

fn apply(text: &str, path: &Path, settings: &mut Settings, depth: usize) -> Result<(), ConfigError> {
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let line = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words.as_slice() {
            [] => {}
            [include @ ("include" | "!include"), file] => {
                let file = path.parent().unwrap_or(Path::new("/")).join(file);
                read(&file, settings, *include == "include", depth + 1)?;
            }
            [name, "=", value @ ..] => {
                let set = settings.set(name, &value.join(" "));
                set.map_err(|cause| ConfigError::Value { path: path.to_owned(), line: number, cause })?;
            }
            _ => return Err(ConfigError::Line { path: path.to_owned(), line: number }),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_includes_others_and_the_last_word_counts() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("written");
        write(
            "nix.conf",
            "# a comment\ncores = 3 # three\nmax-jobs = 5\n!include not-there\ninclude more/extra.conf\n\
             trusted-users = root\nextra-trusted-users = alice   bob\nkeep-failed = true\n",
        );
        fs::create_dir(folder.path().join("more")).expect("made");
        write("more/extra.conf", "include ../last.conf\nsome-setting-of-tomorrow = x\n");
        write("last.conf", "max-jobs = 7\n");
        let mut settings = Settings::default();
        read_file(&folder.path().join("nix.conf"), &mut settings).expect("read");
        assert_eq!((settings.cores, settings.max_jobs, settings.keep_failed), (3, 7, true));
        assert_eq!(settings.trusted_users, ["root", "alice", "bob"]);
        read_file(&folder.path().join("absent"), &mut settings).expect("nothing");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("nix.conf");
        for (text, expected) in [
            ("\ncores 3\n", "line 2 of"),
            ("cores = many\n", "line 1 of"),
            ("include absent.conf\n", "could not read the configuration"),
            ("include nix.conf\n", "levels deep"),
        ] {
            fs::write(&file, text).expect("written");
            let error = read_file(&file, &mut Settings::default()).expect_err(text);
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
