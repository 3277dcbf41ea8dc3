//! The command line.

use std::path::PathBuf;

/// What `--help` prints.
pub const USAGE: &str = "\
Builds plugins of Harmonia CI into WebAssembly components.

harmonia-plugin-build [OPTIONS] FOLDER...   plugin crates: their library, and with --examples their cdylib examples
harmonia-plugin-build [OPTIONS] --all       every plugin of the workspace here, with examples
harmonia-plugin-build --check FILE...       only say whether these components are plugins that import nothing foreign

  --out FOLDER   where to put FOLDER's name + .wasm (default: plugins/ in cargo's target folder)
  --examples     build examples of crate-type cdylib too, each a plugin of its own
  --locked       fail instead of changing Cargo.lock
";

/// What to build.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Build {
    /// Folders of crates; empty with `all`.
    pub folders: Vec<PathBuf>,
    /// Every plugin of the workspace that the current folder is in.
    pub all: bool,
    /// Examples of crate-type `cdylib` too.
    pub examples: bool,
    /// Fail instead of changing `Cargo.lock`.
    pub locked: bool,
    /// Where components go; none: `plugins/` in cargo's target folder.
    pub out: Option<PathBuf>,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Build plugins.
    Build(Build),
    /// Check components.
    Check(Vec<PathBuf>),
    /// Print [`USAGE`].
    Help,
}

/// Reads arguments, without the program's name. The error is for people.
pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Command, String> {
    let mut build = Build::default();
    let mut is_check = false;
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--help" | "-h" => return Ok(Command::Help),
            "--all" => build.all = true,
            "--examples" => build.examples = true,
            "--locked" => build.locked = true,
            "--check" => is_check = true,
            "--out" => build.out = Some(arguments.next().ok_or("--out needs a folder")?.into()),
            option if option.starts_with('-') => return Err(format!("there is no option {option}")),
            _ => build.folders.push(argument.into()),
        }
    }
    match (is_check, build.all, build.folders.is_empty()) {
        (_, true, false) => Err("--all names no folders".to_owned()),
        (true, true, _) => Err("--check takes files, not --all".to_owned()),
        (_, false, true) => Err("name the folders of crates (or files, with --check), or say --all".to_owned()),
        (true, ..) => Ok(Command::Check(build.folders)),
        (false, all, _) => Ok(Command::Build(Build { examples: build.examples || all, ..build })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn lines() {
        let build = Build { folders: vec!["a".into(), "b".into()], out: Some("o".into()), ..Build::default() };
        assert_eq!(read("a --out o b"), Ok(Command::Build(build)));
        let all = Build { all: true, examples: true, locked: true, ..Build::default() };
        assert_eq!(read("--all --locked"), Ok(Command::Build(all)));
        assert_eq!(read("--check x.wasm"), Ok(Command::Check(vec!["x.wasm".into()])));
        for wrong in ["", "--all a", "--check", "--check --all", "--frob", "a --out"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
