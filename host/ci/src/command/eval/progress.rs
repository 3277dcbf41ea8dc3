//! What a person sees while an evaluation runs: a live block on a terminal, one line a change elsewhere.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use harmonia_core::EvalStatus;
use harmonia_core::api::{AttrChange, AttrState, EvaluationHead, EvaluationWaits};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::table::clean;

/// Most attributes shown as building at once.
const BUILDING_LINES_MAX: usize = 8;

/// Shows an evaluation as it goes on.
pub(crate) trait Progress: Send {
    /// A newer state, with what changed since the last one.
    fn show(&mut self, head: &EvaluationHead);
    /// Nothing goes on, and why.
    fn waits(&mut self, waits: &EvaluationWaits);
    /// Nothing more comes.
    fn end(&mut self);
}

/// The word for a state, as it stands behind the attribute's name.
pub(crate) const fn word(state: AttrState) -> &'static str {
    match state {
        AttrState::Cached => "is in the cache",
        AttrState::Error => "did not evaluate",
        AttrState::Pending => "waits",
        AttrState::Building => "builds",
        AttrState::Uploading => "uploads",
        AttrState::Succeeded => "succeeded",
        AttrState::Failed => "failed",
        AttrState::DepFailed => "failed because of a dependency",
        AttrState::Cancelled => "was cancelled",
    }
}

const fn symbol(state: AttrState) -> &'static str {
    match state {
        AttrState::Cached | AttrState::Succeeded => "✓",
        AttrState::Error | AttrState::Failed => "✗",
        AttrState::DepFailed => "↯",
        AttrState::Cancelled => "⊘",
        AttrState::Pending => "·",
        AttrState::Building | AttrState::Uploading => "▸",
    }
}

/// The states seen, by name.
#[derive(Default)]
struct Seen(BTreeMap<String, AttrState>);

impl Seen {
    /// Which attributes changed since the last look: the server may tell of more than those.
    fn changed<'a>(&mut self, head: &'a EvaluationHead) -> Vec<&'a AttrChange> {
        let mut gone = if head.whole { std::mem::take(&mut self.0) } else { BTreeMap::new() };
        let is_new = |change: &&AttrChange| {
            let before = self.0.insert(change.attr.clone(), change.state).or_else(|| gone.remove(&change.attr));
            before != Some(change.state)
        };
        head.changed.iter().filter(is_new).collect()
    }

    /// What is built now.
    fn building(&self) -> Vec<AttrChange> {
        let building = self.0.iter().filter(|(_, state)| matches!(state, AttrState::Building | AttrState::Uploading));
        building.map(|(attr, state)| AttrChange { attr: attr.clone(), state: *state }).collect()
    }
}

const fn is_over(state: AttrState) -> bool {
    !matches!(state, AttrState::Pending | AttrState::Building | AttrState::Uploading)
}

fn line(attr: &AttrChange) -> String {
    format!("{} {} {}", symbol(attr.state), clean(&attr.attr), word(attr.state))
}

/// What waits and why, a line each.
fn reasons(waits: &EvaluationWaits) -> Vec<String> {
    let evaluation = waits.evaluation.iter().map(|why| format!("the evaluation waits: {}", clean(why)));
    let jobs = waits.jobs.iter().map(|job| format!("{} waits: {}", clean(&job.name), clean(&job.why.join("; "))));
    evaluation.chain(jobs).collect()
}

/// Plain lines on standard error, for logs and pipes.
#[derive(Default)]
pub(crate) struct Lines {
    seen: Seen,
    status: Option<EvalStatus>,
    waits_for: Option<String>,
    reasons: Vec<String>,
}

impl Progress for Lines {
    fn show(&mut self, head: &EvaluationHead) {
        if self.status != Some(head.evaluation.status) {
            self.status = Some(head.evaluation.status);
            eprintln!("evaluation {}: {}", head.evaluation.id, head.evaluation.status);
        }
        // Between two tries it runs for a moment, which is no reason to say it again.
        if let Some(waiting) = &head.evaluation.waiting
            && self.waits_for.as_ref() != Some(&waiting.reason)
        {
            eprintln!("evaluation {} waits: {}", head.evaluation.id, clean(&waiting.reason));
            self.waits_for = Some(waiting.reason.clone());
        }
        for attr in self.seen.changed(head) {
            // Waiting is no news: the line comes when something happens.
            if attr.state != AttrState::Pending {
                eprintln!("{}", line(attr));
            }
        }
    }

    fn waits(&mut self, waits: &EvaluationWaits) {
        let reasons = reasons(waits);
        for reason in reasons.iter().filter(|reason| !self.reasons.contains(reason)) {
            eprintln!("· {reason}");
        }
        self.reasons = reasons;
    }

    fn end(&mut self) {}
}

/// A progress bar with what builds now below it, and finished attributes scrolling up above it.
pub(crate) struct Screen {
    all: MultiProgress,
    bar: ProgressBar,
    building: Vec<ProgressBar>,
    since: HashMap<String, Instant>,
    seen: Seen,
    /// Why nothing goes on, while nothing does.
    waits: Vec<String>,
}

impl Screen {
    pub(crate) fn new() -> Self {
        let all = MultiProgress::new();
        let bar = all.add(ProgressBar::new(0));
        if let Ok(style) = ProgressStyle::with_template("{spinner:.cyan} {bar:30.green/dim} {pos}/{len} {msg}") {
            bar.set_style(style.progress_chars("━━╌"));
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { all, bar, building: Vec::new(), since: HashMap::new(), seen: Seen::default(), waits: Vec::new() }
    }

    fn show_building(&mut self) {
        let now = self.seen.building();
        self.since.retain(|name, _| now.iter().any(|attr| attr.attr == *name));
        let shown = (now.len() + self.waits.len()).min(BUILDING_LINES_MAX);
        while self.building.len() > shown {
            if let Some(bar) = self.building.pop() {
                bar.finish_and_clear();
                self.all.remove(&bar);
            }
        }
        while self.building.len() < shown {
            let bar = self.all.add(ProgressBar::new_spinner());
            if let Ok(style) = ProgressStyle::with_template("  {msg}") {
                bar.set_style(style);
            }
            self.building.push(bar);
        }
        let building = now.iter().map(|attr| {
            let since = *self.since.entry(attr.attr.clone()).or_insert_with(Instant::now);
            format!("{} ({}s)", line(attr), since.elapsed().as_secs())
        });
        let waits = self.waits.iter().map(|reason| format!("· {reason}"));
        for (bar, text) in self.building.iter().zip(building.chain(waits)) {
            bar.set_message(text);
        }
    }
}

impl Progress for Screen {
    fn show(&mut self, head: &EvaluationHead) {
        for attr in self.seen.changed(head) {
            if is_over(attr.state) {
                // Losing a line of progress is no reason to stop watching.
                let _ = self.all.println(line(attr));
            }
        }
        let counts = &head.evaluation.counts;
        self.bar.set_length(counts.total);
        self.bar
            .set_position(counts.succeeded + counts.failed + counts.dep_failed + counts.eval_errors + counts.cancelled);
        let evaluating = match (head.evaluation.status, &head.evaluation.waiting) {
            (EvalStatus::Queued, Some(waiting)) => format!("waits ({}), ", clean(&waiting.reason)),
            (EvalStatus::Queued, None) => "queued, ".to_owned(),
            (EvalStatus::Running, _) => "evaluating, ".to_owned(),
            _ => String::new(),
        };
        if head.evaluation.status == EvalStatus::Running || head.jobs.building + head.jobs.uploading > 0 {
            self.waits.clear();
        }
        let jobs = crate::command::read::counts(&head.jobs);
        self.bar.set_message(format!("{evaluating}{jobs}"));
        self.show_building();
    }

    fn waits(&mut self, waits: &EvaluationWaits) {
        self.waits = reasons(waits);
    }

    fn end(&mut self) {
        for bar in self.building.drain(..) {
            bar.finish_and_clear();
        }
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(whole: bool, changed: &[(&str, AttrState)]) -> EvaluationHead {
        let changed = changed.iter().map(|(attr, state)| serde_json::json!({ "attr": attr, "state": state }));
        let head = serde_json::json!({
            "revision": 1, "whole": whole, "changed": changed.collect::<Vec<_>>(), "jobs": harmonia_core::api::JobCounts::default(),
            "id": 1, "project": "p", "commit": null, "branch": "main", "attempt": 1, "title": null, "author": null,
            "dirty": false, "status": "running", "verdict": "running", "complete": false, "error": null,
            "counts": harmonia_core::api::AttrCounts::default(), "superseded_by": null,
            "created_at": "2026-01-01T00:00:00Z", "started_at": null, "finished_at": null
        });
        serde_json::from_value(head).expect("a head")
    }

    #[test]
    fn each_change_is_told_once_however_often_the_server_tells_of_it() {
        use AttrState::{Building, Pending, Succeeded};
        let mut seen = Seen::default();
        for (whole, told, news, building) in [
            (true, &[("a", Building), ("b", Pending)][..], &["a", "b"][..], &["a"][..]),
            (false, &[("a", Building), ("b", Building)], &["b"], &["a", "b"]),
            // Another node, or one that was started again.
            (true, &[("a", Succeeded), ("b", Building)], &["a"], &["b"]),
            // It is evaluated again, and there is no `b` any more.
            (true, &[("a", Succeeded)], &[], &[]),
            (false, &[], &[], &[]),
        ] {
            let head = head(whole, told);
            let names =
                |changes: Vec<&AttrChange>| changes.iter().map(|change| change.attr.clone()).collect::<Vec<_>>();
            assert_eq!(names(seen.changed(&head)), news);
            assert_eq!(names(seen.building().iter().collect()), building);
        }
    }
}
