//! What a client may and wants: the daemon's settings with those of `SetOptions` in them. Start at [`with_client`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use harmonia_egress::{Egress, EgressLimits, EgressRules, SystemResolver};
use harmonia_nix::worker_protocol::ClientOptions;

use crate::build::{BuildOptions, BuildUsers, FixedNetwork};
use crate::config::{Config, EGRESS_ALLOW, Settings};
use crate::schedule::{Log, RequestOptions};

/// Anybody may set these.
const HARMLESS: &[&str] = &["timeout", "build-timeout", "connect-timeout"];

/// Settings that say what this daemon is, and which no client changes.
const FIXED: &[&str] = &["experimental-features", "extra-experimental-features", "ssh-auth-sock"];

/// The settings of a connection after `SetOptions`. What a client may not set is ignored; it hears why.
pub(super) fn with_client(base: &Settings, options: &ClientOptions, is_trusted: bool, log: &Log) -> Settings {
    let mut settings = base.clone();
    settings.keep_failed = options.keep_failed;
    settings.keep_going = options.keep_going;
    settings.fallback = options.try_fallback;
    settings.verbosity = options.verbosity;
    settings.max_jobs = usize::try_from(options.max_build_jobs).unwrap_or(usize::MAX);
    settings.max_silent_time_s = options.max_silent_time_s;
    settings.cores = options.build_cores;
    settings.substitute = options.use_substitutes;
    for (name, value) in &options.overrides {
        if FIXED.contains(&name.as_str()) {
            continue;
        }
        if is_trusted || HARMLESS.contains(&name.as_str()) {
            if let Err(error) = settings.set(name, value) {
                log.warn(&error.to_string());
            }
        } else if let Some(list) = substituters(name) {
            let allowed: Vec<String> = value
                .split_ascii_whitespace()
                .filter_map(|url| {
                    let known = known_substituter(base, url);
                    if known.is_none() {
                        log.warn(&format!("ignoring untrusted substituter '{url}'"));
                    }
                    known
                })
                .collect();
            match list {
                List::All => settings.substituters = allowed,
                List::More => settings.substituters.extend(allowed),
            }
        } else {
            tracing::debug!(name, "Ignored a restricted setting of a client that is not trusted");
        }
    }
    settings
}

enum List {
    All,
    More,
}

fn substituters(name: &str) -> Option<List> {
    match name {
        "substituters" | "binary-caches" => Some(List::All),
        "extra-substituters" | "extra-binary-caches" => Some(List::More),
        _ => None,
    }
}

/// As it stands in the daemon's own settings, where a slash at the end makes no difference.
fn known_substituter(base: &Settings, url: &str) -> Option<String> {
    let known = || base.substituters.iter().chain(&base.trusted_substituters);
    let same = |known: &&String| known.as_str() == url || known.strip_suffix('/') == Some(url);
    known().find(same).cloned()
}

/// What the scheduler needs of the settings.
pub(super) fn request_options(config: &Config, settings: &Settings, is_trusted: bool) -> RequestOptions {
    RequestOptions {
        is_trusted,
        keep_going: settings.keep_going,
        try_fallback: settings.fallback,
        max_jobs: settings.max_jobs,
        use_substitutes: settings.substitute,
        substituters: settings.substituters.clone(),
        trusted_keys: settings.trusted_keys(),
        require_signatures: settings.require_sigs,
        // Files that a client names are read only for those whom we trust: nobody else can set this.
        secret_keys: settings.secret_keys(),
        auto_optimise: settings.auto_optimise_store,
        post_build_hook: settings.post_build_hook.clone(),
        build: build_options(config, settings),
    }
}

/// How builds are done for nobody in particular.
pub(super) fn own_build_options(config: &Config) -> BuildOptions {
    build_options(config, &config.settings)
}

fn build_options(config: &Config, settings: &Settings) -> BuildOptions {
    let seconds = |seconds: u64| (seconds > 0).then(|| Duration::from_secs(seconds));
    let max_log_bytes = settings.max_build_log_size_bytes;
    let state_dir = &config.layout.state_dir;
    let group = config.settings.build_users_group();
    BuildOptions {
        cores: settings.cores,
        timeout: seconds(settings.timeout_s),
        max_silent: seconds(settings.max_silent_time_s),
        max_log_bytes: (max_log_bytes > 0).then_some(max_log_bytes),
        keep_failed: settings.keep_failed,
        sandbox: settings.sandbox,
        sandbox_paths: settings.sandbox_paths.iter().map(|text| sandbox_path(text)).collect(),
        build_dir: settings.build_dir.clone().unwrap_or_else(std::env::temp_dir),
        sandbox_build_dir: settings.sandbox_build_dir.clone(),
        shm_bytes: settings.sandbox_dev_shm_size_bytes,
        log_lines: settings.log_lines,
        max_output_bytes: None,
        max_memory_bytes: None,
        max_processes: None,
        build_users: if group.is_empty() || config.settings.auto_allocate_uids {
            BuildUsers::of_range(state_dir)
        } else {
            BuildUsers::of_group(group, state_dir)
        },
        helper: config.build_helper.clone(),
        fixed_network: if config.settings.fixed_output_proxy {
            let rules = EgressRules { allowed: config.settings.egress_allow(), setting: EGRESS_ALLOW };
            FixedNetwork::Proxied(Egress::new(rules, Arc::new(SystemResolver), EgressLimits::default()))
        } else {
            FixedNetwork::Host
        },
        netrc_file: Some(settings.netrc_file.clone()),
        hashed_mirrors: settings.hashed_mirrors.clone(),
    }
}

/// `INSIDE=HOST`, or one path that is both; a `?` at the end stays with the host's.
fn sandbox_path(text: &str) -> (PathBuf, PathBuf) {
    match text.split_once('=') {
        Some((inside, host)) => (inside.into(), host.into()),
        None => (text.strip_suffix('?').unwrap_or(text).into(), text.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(overrides: &[(&str, &str)], is_trusted: bool) -> Settings {
        let base = Settings {
            substituters: vec!["https://cache.example.org/".to_owned()],
            trusted_substituters: vec!["file:///known".to_owned()],
            ..Settings::default()
        };
        let overrides = overrides.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        with_client(&base, &ClientOptions { overrides, ..ClientOptions::default() }, is_trusted, &Log::none())
    }

    #[test]
    fn strangers_set_nothing_that_matters_to_others() {
        let overrides = [
            ("require-sigs", "false"),
            ("trusted-public-keys", "evil:abc"),
            ("sandbox", "false"),
            ("post-build-hook", "/bin/evil"),
            ("sandbox-paths", "/etc"),
            ("trusted-users", "*"),
            ("timeout", "5"),
            ("substituters", "https://cache.example.org file:///known https://evil.example.org"),
        ];
        let stranger = applied(&overrides, false);
        let untouched = applied(&[], false);
        assert_eq!(stranger.substituters, ["https://cache.example.org/", "file:///known"]);
        assert_eq!(stranger.timeout_s, 5);
        let rest = Settings { substituters: untouched.substituters.clone(), timeout_s: 0, ..stranger };
        assert_eq!(rest, untouched);
        let friend = applied(&overrides, true);
        assert_eq!((friend.require_sigs, friend.substituters.len()), (false, 3));
    }

    #[test]
    fn sandbox_paths_may_be_elsewhere_and_absent() {
        let path = |inside: &str, host: &str| (PathBuf::from(inside), PathBuf::from(host));
        assert_eq!(sandbox_path("/bin/sh=/bin/busybox"), path("/bin/sh", "/bin/busybox"));
        assert_eq!(sandbox_path("/dev/kvm?"), path("/dev/kvm", "/dev/kvm?"));
        assert_eq!(sandbox_path("/a=/b?"), path("/a", "/b?"));
    }
}
