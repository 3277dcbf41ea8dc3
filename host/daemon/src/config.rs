//! What the daemon is told: `nix.conf` with its include lines, and the environment. Start at [`Config::from_environment`].
//!
//! The keys are those of Nix; those that mean nothing here are ignored, as they may mean something to clients.

mod parse;
mod settings;
mod users;

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use harmonia_nix::STORE_DIR;

use crate::store::{Layout, StoreSettings};

pub use parse::{ConfigError, read_file};
pub(crate) use settings::EGRESS_ALLOW;
pub use settings::{SettingError, Settings};
pub use users::{User, Users};

/// All that the daemon is told when it starts.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the store is.
    pub layout: Layout,
    /// Where clients connect.
    pub socket: PathBuf,
    /// What can be set by files and, within limits, by clients.
    pub settings: Settings,
    /// The program that starts builders, with its first arguments.
    pub build_helper: Vec<OsString>,
}

/// The argument by which the daemon's own executable is the helper that starts builders.
pub const BUILD_HELPER: &str = "build-helper";

impl Config {
    /// From the `NIX_*` variables and the files that they name, or the usual ones.
    ///
    /// A chroot store is asked for with `NIX_ROOT_DIR`, as there is no URL of a store to name it in.
    pub fn from_environment() -> Result<Self, ConfigError> {
        if let Some(dir) = variable("NIX_STORE_DIR").or_else(|| variable("NIX_STORE"))
            && dir != Path::new(STORE_DIR)
        {
            return Err(ConfigError::StoreDir(dir));
        }
        let mut layout = Layout::below(variable("NIX_ROOT_DIR").as_deref());
        if let Some(dir) = variable("NIX_STATE_DIR") {
            layout.state_dir = dir;
        }
        if let Some(dir) = variable("NIX_LOG_DIR") {
            layout.log_dir = dir;
        }
        let socket = variable("NIX_DAEMON_SOCKET_PATH");
        let socket = socket.unwrap_or_else(|| layout.state_dir.join("daemon-socket/socket"));
        let mut settings = Settings::default();
        let conf_dir = variable("NIX_CONF_DIR").unwrap_or_else(|| PathBuf::from("/etc/nix"));
        read_file(&conf_dir.join("nix.conf"), &mut settings)?;
        for file in user_files().into_iter().rev() {
            read_file(&file, &mut settings)?;
        }
        if let Some(text) = env::var_os("NIX_CONFIG") {
            parse::read_text(&text.to_string_lossy(), Path::new("NIX_CONFIG"), &mut settings)?;
        }
        // The file that runs now, also when another has taken its name since.
        let build_helper = vec!["/proc/self/exe".into(), BUILD_HELPER.into()];
        Ok(Self { layout, socket, settings, build_helper })
    }

    /// How the store is kept.
    pub fn store_settings(&self) -> StoreSettings {
        let settings = &self.settings;
        let is_root = rustix::process::getuid().is_root();
        let group = settings.build_users_group();
        let build_users_group =
            if is_root && !group.is_empty() { Users::of_this_machine().group_id(group) } else { None };
        if is_root && !group.is_empty() && build_users_group.is_none() {
            tracing::warn!(group, "The group that build-users-group names does not exist");
        }
        StoreSettings {
            require_signatures: settings.require_sigs,
            trusted_keys: settings.trusted_keys(),
            fsync_metadata: settings.fsync_metadata,
            build_users_group,
            allow_symlinked_store: settings.allow_symlinked_store,
        }
    }
}

/// A path in a variable that is set and not empty.
fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Configuration of the user that the daemon runs as, most important first.
fn user_files() -> Vec<PathBuf> {
    if let Some(files) = env::var_os("NIX_USER_CONF_FILES") {
        return env::split_paths(&files).filter(|file| !file.as_os_str().is_empty()).collect();
    }
    let home = variable("XDG_CONFIG_HOME").or_else(|| variable("HOME").map(|home| home.join(".config")));
    let others = env::var_os("XDG_CONFIG_DIRS").filter(|dirs| !dirs.is_empty()).unwrap_or_else(|| "/etc/xdg".into());
    home.into_iter().chain(env::split_paths(&others)).map(|dir| dir.join("nix/nix.conf")).collect()
}
