//! `.harmonia-ci.toml` of a checkout, read without leaving it: whatever is a symlink there was put there by a stranger.

use std::io::Read;
use std::path::Path;

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use harmonia_core::project_config::{Dialect, FILE_BYTES_MAX, ParsedConfig, ProjectConfigError, parse};

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadConfigError {
    /// It cannot be read: leads out of the repository, is no file.
    #[error("could not read {file}; it must be a plain file of the repository")]
    Read {
        file: &'static str,
        #[source]
        cause: std::io::Error,
    },
    /// It says something that cannot be.
    #[error(transparent)]
    Parse(#[from] ProjectConfigError),
}

/// Reads our file, else buildbot-nix's, else gives the default.
pub(crate) fn read_config(checkout: &Path) -> Result<ParsedConfig, ReadConfigError> {
    for dialect in [Dialect::Harmonia, Dialect::BuildbotNix] {
        let file = dialect.file_name();
        match read(checkout, file) {
            Ok(Some(bytes)) => return Ok(parse(dialect, &bytes)?),
            Ok(None) => {}
            Err(cause) => return Err(ReadConfigError::Read { file, cause }),
        }
    }
    Ok(ParsedConfig::default())
}

/// What a pull request's own file may not decide comes from its base: whether evaluating builds, how long it may take, how
/// long results are kept. A base without a (readable) file gives the defaults.
pub(crate) fn bind_to_base(config: &mut ParsedConfig, base: Option<&(Dialect, Vec<u8>)>) {
    let base = base.and_then(|(dialect, bytes)| parse(*dialect, bytes).ok()).unwrap_or_default().config;
    let ours = &mut config.config;
    let changed = [
        ("allow-ifd", ours.allow_ifd != base.allow_ifd),
        ("eval-timeout", ours.eval_timeout != base.eval_timeout),
        ("retention", ours.retention != base.retention),
    ];
    for (key, _) in changed.iter().filter(|(_, changed)| *changed) {
        config.warnings.push(format!("'{key}' of a pull request's own file has no effect: the base branch's holds"));
    }
    ours.allow_ifd = base.allow_ifd;
    ours.eval_timeout = base.eval_timeout;
    ours.retention = base.retention;
}

fn read(checkout: &Path, name: &str) -> std::io::Result<Option<Vec<u8>>> {
    let dir = Dir::open_ambient_dir(checkout, ambient_authority())?;
    match dir.symlink_metadata(name) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    // Follows symlinks within the checkout only. A pipe would block, but git knows files, symlinks and directories.
    let file = dir.open(name)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is not a file"));
    }
    let mut bytes = Vec::new();
    // One more than allowed, so that the parser sees that it is too large.
    file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}
