//! What a person sees while an evaluation runs: a live block on a terminal, one line a change elsewhere.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use harmonia_core::EvalStatus;
use harmonia_core::api::{Attr, AttrState, EvaluationDetail, EvaluationWaits};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::table::clean;

/// Most attributes shown as building at once.
const BUILDING_LINES_MAX: usize = 8;

/// Shows an evaluation as it goes on.
pub(crate) trait Progress: Send {
    /// A newer state.
    fn show(&mut self, detail: &EvaluationDetail);
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

/// Which attributes changed since the last look; keeps the states seen.
#[derive(Default)]
struct Seen(HashMap<String, AttrState>);

impl Seen {
    fn changed<'a>(&mut self, detail: &'a EvaluationDetail) -> Vec<&'a Attr> {
        detail.attrs.iter().filter(|attr| self.0.insert(attr.attr.clone(), attr.state) != Some(attr.state)).collect()
    }
}

const fn is_over(state: AttrState) -> bool {
    !matches!(state, AttrState::Pending | AttrState::Building | AttrState::Uploading)
}

fn line(attr: &Attr) -> String {
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
    fn show(&mut self, detail: &EvaluationDetail) {
        if self.status != Some(detail.evaluation.status) {
            self.status = Some(detail.evaluation.status);
            eprintln!("evaluation {}: {}", detail.evaluation.id, detail.evaluation.status);
        }
        // Between two tries it runs for a moment, which is no reason to say it again.
        if let Some(waiting) = &detail.evaluation.waiting
            && self.waits_for.as_ref() != Some(&waiting.reason)
        {
            eprintln!("evaluation {} waits: {}", detail.evaluation.id, clean(&waiting.reason));
            self.waits_for = Some(waiting.reason.clone());
        }
        for attr in self.seen.changed(detail) {
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

    fn show_building(&mut self, detail: &EvaluationDetail) {
        let now: Vec<&Attr> =
            detail.attrs.iter().filter(|a| matches!(a.state, AttrState::Building | AttrState::Uploading)).collect();
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
    fn show(&mut self, detail: &EvaluationDetail) {
        for attr in self.seen.changed(detail) {
            if is_over(attr.state) {
                // Losing a line of progress is no reason to stop watching.
                let _ = self.all.println(line(attr));
            }
        }
        let counts = &detail.evaluation.counts;
        self.bar.set_length(counts.total);
        self.bar
            .set_position(counts.succeeded + counts.failed + counts.dep_failed + counts.eval_errors + counts.cancelled);
        let evaluating = match (detail.evaluation.status, &detail.evaluation.waiting) {
            (EvalStatus::Queued, Some(waiting)) => format!("waits ({}), ", clean(&waiting.reason)),
            (EvalStatus::Queued, None) => "queued, ".to_owned(),
            (EvalStatus::Running, _) => "evaluating, ".to_owned(),
            _ => String::new(),
        };
        if detail.evaluation.status == EvalStatus::Running || detail.jobs.building + detail.jobs.uploading > 0 {
            self.waits.clear();
        }
        let jobs = crate::command::read::counts(&detail.jobs);
        self.bar.set_message(format!("{evaluating}{jobs}"));
        self.show_building(detail);
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
