//! The daemon's `nix.conf` and environment.

use std::path::{Path, PathBuf};

use tokio::process::Command;

use super::{NixDaemonError, NixDaemonOptions, SOCKET_PATH_BYTES_MAX};

/// What the surrounding environment may say about another Nix.
const FOREIGN_VARIABLES: [&str; 10] = [
    "NIX_REMOTE",
    "NIX_ROOT_DIR",
    "NIX_STORE_DIR",
    "NIX_STATE_DIR",
    "NIX_LOG_DIR",
    "NIX_STORE",
    "NIX_CONFIG",
    "NIX_PATH",
    "NIX_USER_CONF_FILES",
    "LD_PRELOAD",
];

/// Refuses what would be read as something else in `nix.conf`, a store URL or a socket address.
pub(crate) fn check(options: &NixDaemonOptions) -> Result<(), NixDaemonError> {
    let paths = [&options.root, &options.state_dir, &options.socket].into_iter().chain(&options.shell);
    for path in paths {
        let plain = path.to_str().is_some_and(|text| {
            path.is_absolute() && !text.chars().any(|c| c.is_whitespace() || c.is_control() || "?&%#=".contains(c))
        });
        if !plain {
            return Err(NixDaemonError::Unusable { what: path.display().to_string() });
        }
    }
    for (name, value) in &options.settings {
        if name.is_empty()
            || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            || value.contains(['\n', '\r'])
        {
            return Err(NixDaemonError::Unusable { what: format!("the setting {name:?}") });
        }
    }
    let length = options.socket.as_os_str().len();
    if length > SOCKET_PATH_BYTES_MAX {
        return Err(NixDaemonError::SocketTooLong { socket: options.socket.clone(), length });
    }
    Ok(())
}

pub(crate) fn nix_conf(options: &NixDaemonOptions, shell: Option<&Path>) -> String {
    let mut lines = vec![
        "# Written at every start.".to_owned(),
        // We are one user, and the sandbox maps it away.
        "build-users-group =".to_owned(),
        // Unreachable caches would make every command wait; clients name theirs.
        "substituters =".to_owned(),
        "builders =".to_owned(),
        "experimental-features = nix-command flakes".to_owned(),
        "keep-build-log = true".to_owned(),
        "compress-build-log = true".to_owned(),
        "fsync-metadata = true".to_owned(),
        format!("trusted-users = {}", user_name()),
        format!("max-jobs = {}", options.max_jobs),
        format!("cores = {}", options.cores),
        format!("sandbox = {}", options.sandbox),
        // A build that cannot be closed in must fail, not run in the open.
        "sandbox-fallback = false".to_owned(),
    ];
    if let Some(shell) = shell {
        lines.push(format!("sandbox-paths = /bin/sh={}", shell.display()));
    }
    lines.extend(options.settings.iter().map(|(name, value)| format!("{name} = {value}")));
    lines.join("\n") + "\n"
}

/// The store itself, without a daemon.
pub(crate) fn local_store(root: &Path) -> String {
    format!("local?root={}", root.display())
}

/// Makes a program of Nix see our configuration and no other.
pub(crate) fn isolate(command: &mut Command, conf_dir: &Path) {
    for name in FOREIGN_VARIABLES {
        command.env_remove(name);
    }
    command.env("NIX_CONF_DIR", conf_dir).env("NIX_USER_CONF_FILES", conf_dir.join("no-user-settings"));
}

/// Our name as the daemon will see it: from the account database, else the number.
fn user_name() -> String {
    let uid = rustix::process::geteuid().as_raw().to_string();
    std::fs::read_to_string(PathBuf::from("/etc/passwd"))
        .unwrap_or_default()
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)? == uid).then(|| name.to_owned())
        })
        .unwrap_or(uid)
}

#[cfg(test)]
mod tests {
    use super::super::DaemonProgram;
    use super::*;

    fn options() -> NixDaemonOptions {
        NixDaemonOptions {
            program: DaemonProgram::Nix,
            root: "/d/store".into(),
            state_dir: "/d/state".into(),
            socket: "/d/run/socket".into(),
            sandbox: true,
            shell: None,
            max_jobs: 3,
            cores: 1,
            settings: vec![("timeout".to_owned(), "60".to_owned())],
        }
    }

    #[test]
    fn the_configuration_says_what_was_asked() {
        let text = nix_conf(&options(), Some(Path::new("/bin/busybox")));
        for line in
            ["max-jobs = 3", "sandbox = true", "sandbox-paths = /bin/sh=/bin/busybox", "substituters =", "timeout = 60"]
        {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }

    #[test]
    fn what_would_be_misread_is_refused() {
        check(&options()).expect("fine");
        for root in ["relative", "/with space", "/a?b", "/a\nsandbox=false"] {
            let error = check(&NixDaemonOptions { root: root.into(), ..options() }).expect_err(root);
            assert!(matches!(error, NixDaemonError::Unusable { .. }), "{error}");
        }
        let smuggled = vec![("timeout".to_owned(), "1\nsandbox = false".to_owned())];
        assert!(check(&NixDaemonOptions { settings: smuggled, ..options() }).is_err());
        let error =
            check(&NixDaemonOptions { socket: format!("/{}", "s".repeat(107)).into(), ..options() }).expect_err("long");
        assert!(error.to_string().contains("108 bytes"), "{error}");
    }
}
