//! The settings of Nix that mean something here, with Nix's names and defaults. Start at [`Settings`].

use std::collections::BTreeSet;
use std::path::PathBuf;

use harmonia_egress::EgressGrant;
use harmonia_nix::signature::{PublicKey, SecretKey};

use crate::build::SandboxMode;

/// Settings of the daemon, or of one connection: then the client's are in them, as far as it may set them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent switches, each its own key")]
#[expect(missing_docs, reason = "each is the key of nix.conf of the same name")]
pub struct Settings {
    pub allowed_users: Vec<String>,
    pub trusted_users: Vec<String>,
    /// `None`: `nixbld` for root, none for others.
    pub build_users_group: Option<String>,
    pub require_sigs: bool,
    pub trusted_public_keys: Vec<String>,
    pub secret_key_files: Vec<PathBuf>,
    pub substitute: bool,
    pub substituters: Vec<String>,
    pub trusted_substituters: Vec<String>,
    pub connect_timeout_s: u64,
    pub fallback: bool,
    pub max_jobs: usize,
    pub cores: u64,
    pub timeout_s: u64,
    pub max_silent_time_s: u64,
    pub max_build_log_size_bytes: u64,
    pub keep_failed: bool,
    pub keep_going: bool,
    pub keep_build_log: bool,
    pub compress_build_log: bool,
    pub log_lines: usize,
    pub sandbox: SandboxMode,
    pub sandbox_paths: Vec<String>,
    pub build_dir: Option<PathBuf>,
    pub sandbox_build_dir: PathBuf,
    pub sandbox_dev_shm_size_bytes: u64,
    pub auto_allocate_uids: bool,
    pub netrc_file: PathBuf,
    pub hashed_mirrors: Vec<String>,
    /// Whether fixed-output derivations in a sandbox reach the network by the egress proxy only (ours; Nix has no such key).
    pub fixed_output_proxy: bool,
    /// What they may reach beside public addresses (ours).
    pub egress_allow: Vec<String>,
    pub system: String,
    pub extra_platforms: Vec<String>,
    /// `None`: what this machine can do.
    pub system_features: Option<Vec<String>>,
    pub extra_system_features: Vec<String>,
    pub post_build_hook: Option<PathBuf>,
    pub keep_outputs: bool,
    pub keep_derivations: bool,
    pub min_free_bytes: u64,
    pub max_free_bytes: u64,
    pub min_free_check_interval_s: u64,
    pub auto_optimise_store: bool,
    pub fsync_metadata: bool,
    pub allow_symlinked_store: bool,
    /// Messages above this level are not sent: 0 errors to 7 everything.
    pub verbosity: u64,
}

impl Default for Settings {
    fn default() -> Self {
        let text = |text: &str| text.to_owned();
        Self {
            allowed_users: vec![text("*")],
            trusted_users: vec![text("root")],
            build_users_group: None,
            require_sigs: true,
            trusted_public_keys: vec![text("cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=")],
            secret_key_files: Vec::new(),
            substitute: true,
            substituters: vec![text("https://cache.nixos.org/")],
            trusted_substituters: Vec::new(),
            connect_timeout_s: 0,
            fallback: false,
            max_jobs: 1,
            cores: std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64),
            timeout_s: 0,
            max_silent_time_s: 0,
            max_build_log_size_bytes: 0,
            keep_failed: false,
            keep_going: false,
            keep_build_log: true,
            compress_build_log: true,
            log_lines: 10,
            sandbox: SandboxMode::On,
            sandbox_paths: Vec::new(),
            build_dir: None,
            sandbox_build_dir: PathBuf::from("/build"),
            sandbox_dev_shm_size_bytes: 0,
            auto_allocate_uids: false,
            netrc_file: PathBuf::from("/etc/nix/netrc"),
            hashed_mirrors: Vec::new(),
            fixed_output_proxy: true,
            egress_allow: Vec::new(),
            system: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            extra_platforms: if cfg!(target_arch = "x86_64") { vec![text("i686-linux")] } else { Vec::new() },
            system_features: None,
            extra_system_features: Vec::new(),
            post_build_hook: None,
            keep_outputs: false,
            keep_derivations: true,
            min_free_bytes: 0,
            max_free_bytes: u64::MAX,
            min_free_check_interval_s: 5,
            auto_optimise_store: false,
            fsync_metadata: true,
            allow_symlinked_store: false,
            verbosity: 3,
        }
    }
}

/// The key of what fixed-output derivations may reach beside public addresses.
pub(crate) const EGRESS_ALLOW: &str = "egress-allow";

/// Why a setting cannot have a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// Neither true nor false.
    #[error("the setting '{name}' is true or false, not '{value}'")]
    NotABool {
        /// Which one.
        name: String,
        /// The value given.
        value: String,
    },
    /// Not a number.
    #[error("the setting '{name}' is a number, not '{value}'")]
    NotANumber {
        /// Which one.
        name: String,
        /// The value given.
        value: String,
    },
    /// None of the choices.
    #[error("the setting 'sandbox' is true, false or relaxed, not '{0}'")]
    NotASandbox(String),
}

impl Settings {
    /// Sets one by its name in `nix.conf`; `false` when it means nothing here.
    pub fn set(&mut self, name: &str, value: &str) -> Result<bool, SettingError> {
        if let Some(list) = name.strip_prefix("extra-")
            && let Some(list) = self.list(list)
        {
            list.extend(words(value));
            return Ok(true);
        }
        if let Some(list) = self.list(name) {
            *list = words(value).collect();
            return Ok(true);
        }
        if let Some(switch) = self.switch(name) {
            *switch = boolean(name, value)?;
            return Ok(true);
        }
        if let Some(number) = self.number(name) {
            *number = parse_number(name, value)?;
            return Ok(true);
        }
        match name {
            "max-jobs" | "build-max-jobs" => {
                self.max_jobs = if value == "auto" { processors() } else { parse_number(name, value)? as usize };
            }
            "log-lines" => self.log_lines = parse_number(name, value)? as usize,
            "sandbox" | "build-use-sandbox" | "build-use-chroot" => {
                self.sandbox = match value {
                    "true" | "yes" | "1" => SandboxMode::On,
                    "false" | "no" | "0" => SandboxMode::Off,
                    "relaxed" => SandboxMode::Relaxed,
                    other => return Err(SettingError::NotASandbox(other.to_owned())),
                };
            }
            "build-users-group" => self.build_users_group = Some(value.to_owned()),
            "system" => value.clone_into(&mut self.system),
            "system-features" => self.system_features = Some(words(value).collect()),
            "extra-system-features" => self.extra_system_features.extend(words(value)),
            "secret-key-files" => self.secret_key_files = words(value).map(PathBuf::from).collect(),
            "post-build-hook" => self.post_build_hook = some_path(value),
            "build-dir" => self.build_dir = some_path(value),
            "sandbox-build-dir" => self.sandbox_build_dir = value.into(),
            "netrc-file" => self.netrc_file = value.into(),
            // Half of the memory, as the kernel has it, unless it is a number of bytes.
            "sandbox-dev-shm-size" => {
                self.sandbox_dev_shm_size_bytes = if value.ends_with('%') { 0 } else { parse_number(name, value)? };
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The group of the build users; empty: builds run as whoever runs the daemon.
    pub fn build_users_group(&self) -> &str {
        let usual = if rustix::process::getuid().is_root() { "nixbld" } else { "" };
        self.build_users_group.as_deref().unwrap_or(usual)
    }

    /// What fixed-output derivations may reach beside public addresses; what cannot be read is warned of.
    pub fn egress_allow(&self) -> Vec<EgressGrant> {
        let parse = |text: &String| match text.parse() {
            Ok(grant) => Some(grant),
            Err(error) => {
                tracing::warn!(%error, "The setting {EGRESS_ALLOW} has an entry that cannot be read: {text}");
                None
            }
        };
        self.egress_allow.iter().filter_map(parse).collect()
    }

    /// The keys that can be read; others are warned of.
    pub fn trusted_keys(&self) -> Vec<PublicKey> {
        let parse = |text: &String| match text.parse() {
            Ok(key) => Some(key),
            Err(error) => {
                tracing::warn!(key = text, %error, "A key of trusted-public-keys is not valid and is ignored");
                None
            }
        };
        self.trusted_public_keys.iter().filter_map(parse).collect()
    }

    /// The keys in [`Settings::secret_key_files`]; those that cannot be read are warned of.
    pub fn secret_keys(&self) -> Vec<SecretKey> {
        let read = |path: &PathBuf| {
            let text = std::fs::read_to_string(path).map_err(|error| error.to_string());
            match text.and_then(|text| SecretKey::parse(text.trim()).map_err(|error| error.to_string())) {
                Ok(key) => Some(key),
                Err(error) => {
                    tracing::warn!(path = %path.display(), error, "A key of secret-key-files is not used");
                    None
                }
            }
        };
        self.secret_key_files.iter().filter_map(read).collect()
    }

    /// Systems that are built for.
    pub fn systems(&self) -> BTreeSet<String> {
        self.extra_platforms.iter().chain([&self.system]).cloned().collect()
    }

    /// What derivations may require.
    pub fn system_features(&self) -> BTreeSet<String> {
        let usual = || {
            let mut features = vec!["nixos-test".to_owned(), "benchmark".to_owned(), "big-parallel".to_owned()];
            if rustix::fs::access("/dev/kvm", rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK).is_ok() {
                features.push("kvm".to_owned());
            }
            features
        };
        let features = self.system_features.clone().unwrap_or_else(usual);
        features.into_iter().chain(self.extra_system_features.iter().cloned()).collect()
    }

    fn list(&mut self, name: &str) -> Option<&mut Vec<String>> {
        Some(match name {
            "allowed-users" => &mut self.allowed_users,
            "trusted-users" => &mut self.trusted_users,
            "trusted-public-keys" | "binary-cache-public-keys" => &mut self.trusted_public_keys,
            "substituters" | "binary-caches" => &mut self.substituters,
            "trusted-substituters" | "trusted-binary-caches" => &mut self.trusted_substituters,
            "sandbox-paths" | "build-sandbox-paths" | "build-chroot-dirs" => &mut self.sandbox_paths,
            "extra-platforms" => &mut self.extra_platforms,
            "hashed-mirrors" => &mut self.hashed_mirrors,
            EGRESS_ALLOW => &mut self.egress_allow,
            _ => return None,
        })
    }

    fn switch(&mut self, name: &str) -> Option<&mut bool> {
        Some(match name {
            "require-sigs" => &mut self.require_sigs,
            "substitute" | "build-use-substitutes" => &mut self.substitute,
            "fallback" | "build-fallback" => &mut self.fallback,
            "keep-failed" => &mut self.keep_failed,
            "keep-going" => &mut self.keep_going,
            "keep-build-log" | "build-keep-log" => &mut self.keep_build_log,
            "compress-build-log" | "build-compress-log" => &mut self.compress_build_log,
            "keep-outputs" | "gc-keep-outputs" => &mut self.keep_outputs,
            "keep-derivations" | "gc-keep-derivations" => &mut self.keep_derivations,
            "auto-optimise-store" => &mut self.auto_optimise_store,
            "fsync-metadata" => &mut self.fsync_metadata,
            "fixed-output-proxy" => &mut self.fixed_output_proxy,
            "auto-allocate-uids" => &mut self.auto_allocate_uids,
            "allow-symlinked-store" => &mut self.allow_symlinked_store,
            _ => return None,
        })
    }

    fn number(&mut self, name: &str) -> Option<&mut u64> {
        Some(match name {
            "cores" | "build-cores" => &mut self.cores,
            "timeout" | "build-timeout" => &mut self.timeout_s,
            "max-silent-time" | "build-max-silent-time" => &mut self.max_silent_time_s,
            "max-build-log-size" | "build-max-log-size" => &mut self.max_build_log_size_bytes,
            "connect-timeout" => &mut self.connect_timeout_s,
            "min-free" => &mut self.min_free_bytes,
            "max-free" => &mut self.max_free_bytes,
            "min-free-check-interval" => &mut self.min_free_check_interval_s,
            _ => return None,
        })
    }
}

fn words(value: &str) -> impl Iterator<Item = String> {
    value.split_ascii_whitespace().map(str::to_owned)
}

fn some_path(value: &str) -> Option<PathBuf> {
    (!value.is_empty()).then(|| value.into())
}

fn boolean(name: &str, value: &str) -> Result<bool, SettingError> {
    match value {
        "true" | "yes" | "1" => Ok(true),
        "false" | "no" | "0" => Ok(false),
        _ => Err(SettingError::NotABool { name: name.to_owned(), value: value.to_owned() }),
    }
}

/// With the endings K, M, G and T of Nix.
fn parse_number(name: &str, value: &str) -> Result<u64, SettingError> {
    let bad = || SettingError::NotANumber { name: name.to_owned(), value: value.to_owned() };
    let (digits, shift) = match value.as_bytes().last() {
        Some(b'K' | b'k') => (&value[..value.len() - 1], 10),
        Some(b'M' | b'm') => (&value[..value.len() - 1], 20),
        Some(b'G' | b'g') => (&value[..value.len() - 1], 30),
        Some(b'T' | b't') => (&value[..value.len() - 1], 40),
        _ => (value, 0),
    };
    let number: u64 = digits.trim().parse().map_err(|_| bad())?;
    number.checked_mul(1 << shift).ok_or_else(bad)
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_forms_of_nix() {
        let mut settings = Settings::default();
        for (name, value) in [
            ("max-free", "2G"),
            ("min-free", "1048576"),
            ("sandbox", "relaxed"),
            ("binary-caches", "https://a https://b"),
            ("extra-substituters", "https://c"),
            ("max-jobs", "0"),
            ("post-build-hook", ""),
            ("build-use-substitutes", "no"),
        ] {
            assert_eq!(settings.set(name, value), Ok(true), "{name}");
        }
        assert_eq!((settings.max_free_bytes, settings.min_free_bytes), (2 << 30, 1 << 20));
        assert_eq!((settings.sandbox, settings.max_jobs, settings.substitute), (SandboxMode::Relaxed, 0, false));
        assert_eq!(settings.substituters, ["https://a", "https://b", "https://c"]);
        assert_eq!(settings.post_build_hook, None);
        assert_eq!(settings.set("max-jobs", "auto"), Ok(true));
        assert!(settings.max_jobs > 0);
        assert_eq!(settings.set("warn-dirty", "false"), Ok(false), "means nothing here");
        assert!(settings.set("cores", "-1").is_err());
        assert!(settings.set("cores", "99999999T").is_err());
        assert!(settings.set("require-sigs", "maybe").is_err());
        assert!(settings.set("sandbox", "sometimes").is_err());
    }
}
