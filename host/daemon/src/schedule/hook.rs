//! The program that is run after each build (`post-build-hook`). Start at [`Run::run_post_build_hook`].

use std::process::Stdio;

use harmonia_nix::store_path::StorePath;
use harmonia_nix::worker_protocol::BuildStatus;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use super::outcome::Outcome;
use super::run::Run;

/// Longest line that is passed on, in bytes; the rest is another one.
const LINE_BYTES_MAX: usize = 64 << 10;

impl Run {
    /// Runs the hook, if there is one, and waits for it: whoever wanted the build wants what the hook does, too.
    pub(super) async fn run_post_build_hook(&self, drv_path: &StorePath, built: &Outcome) -> Result<(), Outcome> {
        let Some(hook) = &self.request.options.post_build_hook else { return Ok(()) };
        let shown = hook.display().to_string();
        let activity = self.request.log.post_build_hook(&self.activity, &shown, drv_path.as_str());
        let failed = |reason: String| {
            let message = format!("post-build-hook '{shown}' {reason} for '{drv_path}', which is built");
            Outcome::failure(BuildStatus::MiscFailure, message)
        };
        let (reader, writer) = std::io::pipe().map_err(|error| failed(format!("could not be started ({error})")))?;
        let also = writer.try_clone().map_err(|error| failed(format!("could not be started ({error})")))?;
        let outputs: Vec<&str> = built.outputs.values().map(StorePath::as_str).collect();
        let mut command = Command::new(hook);
        command
            .env("DRV_PATH", drv_path.as_str())
            .env("OUT_PATHS", outputs.join(" "))
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(also)
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| failed(format!("could not be started ({error})")))?;
        // It holds our ends of the pipe.
        drop(command);
        let reader = tokio::net::unix::pipe::Receiver::from_owned_fd(reader.into());
        let mut reader = BufReader::new(reader.map_err(|error| failed(format!("could not be read ({error})")))?);
        let mut line = Vec::new();
        loop {
            let found = reader.fill_buf().await.map_err(|error| failed(format!("could not be read ({error})")))?;
            if found.is_empty() {
                break;
            }
            let end = found.iter().position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(found.len());
            line.extend_from_slice(&found[..taken]);
            let consumed = taken + usize::from(end.is_some());
            reader.consume(consumed);
            if end.is_some() || line.len() >= LINE_BYTES_MAX {
                activity.hook_line(&line);
                line.clear();
            }
        }
        if !line.is_empty() {
            activity.hook_line(&line);
        }
        match child.wait().await {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(failed(format!("failed with {status}"))),
            Err(error) => Err(failed(format!("was lost ({error})"))),
        }
    }
}
