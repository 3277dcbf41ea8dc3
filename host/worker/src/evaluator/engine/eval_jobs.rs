//! nix-eval-jobs as the engine. Start at [`evaluate`].
//!
//! A worker of it that dies ends its whole run and loses what lies behind, so runs are repeated with what is missing:
//! first everything below a prefix, then all that is missing, then each missing attribute alone.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::Path;

use harmonia_core::project_config::print_attr_path;
use tokio::sync::mpsc;

use super::line::{EngineLine, parse_line, shorten_error};
use super::process::{Ended, Process};
use super::{ATTRS_MAX, Engine, EngineError, EngineEvent, expression, tell};

pub(super) async fn evaluate(
    engine: &Engine,
    program: &Path,
    attrs: Vec<Vec<String>>,
    events: &mpsc::Sender<EngineEvent>,
) -> Result<BTreeSet<Vec<String>>, EngineError> {
    let mut runs = Runs { engine, program, events, done: BTreeSet::new() };
    let mut groups: BTreeMap<Vec<String>, Vec<Vec<String>>> = BTreeMap::new();
    for attr in attrs {
        let parent = attr.split_last().map(|(_, parent)| parent.to_vec()).unwrap_or_default();
        groups.entry(parent).or_default().push(attr);
    }
    for (parent, members) in groups {
        let inner: &[&str] = if engine.flake.is_wrapped { &["target", "outputs"] } else { &[] };
        let fragment: Vec<&str> = inner.iter().copied().chain(parent.iter().map(String::as_str)).collect();
        let flake = format!("{}#{}", engine.flake.reference, print_attr_path(&fragment));
        let wanted: BTreeSet<&Vec<String>> = members.iter().collect();
        let place = |path: Vec<String>| {
            let full: Vec<String> = parent.iter().cloned().chain(path).collect();
            // Names that were left out on purpose (systems) are below the same prefix.
            wanted.iter().any(|attr| full.starts_with(attr)).then_some(full)
        };
        let first = runs.run(vec!["--flake".into(), flake.into()], place).await?;
        let missing = runs.missing(&members);
        if !missing.is_empty() && !first.is_clean {
            runs.run_selected(&missing).await?;
        }
        for attr in runs.missing(&members) {
            let end =
                if first.is_clean { first.clone() } else { runs.run_selected(std::slice::from_ref(&attr)).await? };
            if !runs.missing(std::slice::from_ref(&attr)).is_empty() {
                runs.give_up(attr, &end).await?;
            }
        }
    }
    Ok(runs.done)
}

#[derive(Clone)]
struct RunEnd {
    /// Exit code 0.
    is_clean: bool,
    last_words: String,
}

struct Runs<'a> {
    engine: &'a Engine,
    program: &'a Path,
    events: &'a mpsc::Sender<EngineEvent>,
    done: BTreeSet<Vec<String>>,
}

impl Runs<'_> {
    fn missing(&self, attrs: &[Vec<String>]) -> Vec<Vec<String>> {
        let answered =
            |attr: &&Vec<String>| !self.done.range((*attr).clone()..).next().is_some_and(|done| done.starts_with(attr));
        attrs.iter().filter(answered).cloned().collect()
    }

    async fn run_selected(&mut self, attrs: &[Vec<String>]) -> Result<RunEnd, EngineError> {
        let text = expression::selection(&self.engine.flake, attrs);
        let place = |path: Vec<String>| {
            let (index, rest) = path.split_first()?;
            let attr = attrs.get(index.parse::<usize>().ok()?)?;
            Some(attr.iter().chain(rest).cloned().collect())
        };
        self.run(vec!["--expr".into(), text.into()], place).await
    }

    async fn run(
        &mut self,
        what: Vec<OsString>,
        place: impl Fn(Vec<String>) -> Option<Vec<String>>,
    ) -> Result<RunEnd, EngineError> {
        let mut arguments = self.arguments();
        arguments.extend(what);
        let mut process = Process::start(self.engine, self.program, arguments, String::new())?;
        let mut tail = String::new();
        let mut number = 0;
        let (mut stdout_open, mut stderr_open) = (true, true);
        while stdout_open || stderr_open {
            let (is_result, line) = tokio::select! {
                line = process.stdout.next(), if stdout_open => (true, line?),
                line = process.stderr.next(), if stderr_open => (false, line?),
            };
            match (is_result, line) {
                (true, None) => stdout_open = false,
                (false, None) => stderr_open = false,
                (true, Some(line)) => {
                    number += 1;
                    let line = parse_line(number, &line).map_err(EngineError::Line)?;
                    let Some(attr_path) = place(line.attr_path) else { continue };
                    if self.done.len() >= ATTRS_MAX {
                        return Err(EngineError::TooMany);
                    }
                    if self.done.insert(attr_path.clone()) {
                        tell(self.events, EngineEvent::Line(EngineLine { attr_path, result: line.result })).await?;
                    }
                }
                (false, Some(line)) => {
                    let text =
                        format!("{}\n", harmonia_nix::worker_protocol::strip_ansi(&String::from_utf8_lossy(&line)));
                    tail.push_str(&text);
                    if tail.len() > 64 << 10 {
                        tail.drain(..tail.ceil_char_boundary(tail.len() - (32 << 10)));
                    }
                    tell(self.events, EngineEvent::Log(text)).await?;
                }
            }
        }
        let last_words = tail.find("error:").map_or(tail.as_str(), |start| &tail[start..]).trim().to_owned();
        let ended = process.ended(&tail).await?;
        Ok(RunEnd { is_clean: matches!(ended, Ended::Exited(0)), last_words })
    }

    async fn give_up(&mut self, attr: Vec<String>, end: &RunEnd) -> Result<(), EngineError> {
        if end.is_clean {
            let warning =
                format!("{} is neither a derivation nor a set of some: it is left out", print_attr_path(&attr));
            return tell(self.events, EngineEvent::Warning(warning)).await;
        }
        let error =
            shorten_error(&format!("error: nix-eval-jobs died while this was evaluated alone\n{}", end.last_words));
        self.done.insert(attr.clone());
        tell(self.events, EngineEvent::Line(EngineLine { attr_path: attr, result: Err(error) })).await
    }

    fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> =
            ["--meta", "--force-recurse", "--show-input-drvs", "--gc-roots-dir", "/tmp/gcroots"]
                .map(OsString::from)
                .to_vec();
        arguments.extend(["--workers".into(), self.engine.workers.max(1).to_string().into()]);
        arguments.extend(["--max-memory-size".into(), (self.engine.memory_bytes_max >> 20).to_string().into()]);
        let ifd = if self.engine.allow_ifd { "true" } else { "false" };
        arguments.extend(["--option", "allow-import-from-derivation", ifd].map(OsString::from));
        arguments
    }
}
