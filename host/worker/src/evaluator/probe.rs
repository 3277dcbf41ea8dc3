//! What is found out once, at start: programs, the store, whether the sandbox works. Start at [`prepare`].

use std::path::{Path, PathBuf};

use harmonia_nix::STORE_DIR;

use super::engine::{Confinement, Engine, EngineError};
use super::source::{MirrorLocks, PinnedFlake};
use super::upstream::Upstream;
use super::{EngineChoice, EvaluatorError, EvaluatorOptions, Settings};
use crate::store_daemon::StoreDaemon;

/// Where programs are looked for besides `PATH`, which a service often has a bare one of.
const USUAL_DIRECTORIES: [&str; 4] =
    ["/usr/local/bin", "/usr/bin", "/run/current-system/sw/bin", "/nix/var/nix/profiles/default/bin"];

/// Checks everything that an evaluation needs of the machine.
pub(super) async fn prepare(options: EvaluatorOptions) -> Result<Settings, EvaluatorError> {
    for name in ["tmp", "mirrors", "home"] {
        let dir = options.state_dir.join(name);
        // What an earlier process left half done.
        if name == "tmp" && dir.exists() {
            std::fs::remove_dir_all(&dir).map_err(|cause| EvaluatorError::State { dir: dir.clone(), cause })?;
        }
        std::fs::create_dir_all(&dir).map_err(|cause| EvaluatorError::State { dir, cause })?;
    }
    let git = find("git")?;
    let nix_instantiate = find("nix-instantiate")?;
    let nix_eval_jobs = match &options.engine {
        EngineChoice::Nix => None,
        EngineChoice::NixEvalJobs(program) => Some(program.clone()),
        EngineChoice::Auto => find("nix-eval-jobs").ok(),
    };
    let daemon = StoreDaemon::new(&options.daemon_socket);
    // The first connection makes a new store's directories, without which there is nothing to show to the engine.
    drop(daemon.connect().await?);
    let store_dir = match &options.store_root {
        Some(root) => root.join(STORE_DIR.trim_start_matches('/')),
        None => PathBuf::from(STORE_DIR),
    };
    let mut settings = Settings {
        upstream: Upstream::new(options.http.clone(), options.substituters.clone()),
        daemon,
        locks: MirrorLocks::default(),
        git,
        nix_instantiate,
        nix_eval_jobs,
        confinement: Confinement {
            helper: Some(options.sandbox_helper.clone()),
            daemon_socket: options.daemon_socket.clone(),
            store_dir,
            network: options.network,
            scratch_dir: options.state_dir.join("home"),
        },
        options,
    };
    for missing in harmonia_sandbox::abilities().missing() {
        tracing::warn!("Evaluator: {missing}");
    }
    if let Err(reason) = try_sandbox(&settings).await {
        if settings.options.require_sandbox || settings.options.store_root.is_some() {
            return Err(EvaluatorError::Sandbox { reason });
        }
        tracing::warn!(%reason, "Flakes are evaluated WITHOUT a sandbox: evaluated code runs as this user");
        settings.confinement.helper = None;
    }
    Ok(settings)
}

/// Evaluates something small, exactly as flakes are.
async fn try_sandbox(settings: &Settings) -> Result<(), String> {
    if settings.options.sandbox_helper.is_empty() {
        return Err("no helper command is configured".to_owned());
    }
    let nothing = PinnedFlake { reference: "path:/nix/store/none".to_owned(), is_wrapped: false };
    let engine: Engine = settings.engine(nothing, false);
    match engine.try_out().await {
        Ok(()) => Ok(()),
        Err(EngineError::Sandbox(reason) | EngineError::Failed(reason)) => Err(reason),
        Err(error) => Err(harmonia_core::chain(&error)),
    }
}

fn find(name: &'static str) -> Result<PathBuf, EvaluatorError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .filter(|directory| directory.is_absolute())
        .chain(USUAL_DIRECTORIES.iter().map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|file| is_program(file))
        .ok_or(EvaluatorError::Program(name))
}

fn is_program(file: &Path) -> bool {
    file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
}
