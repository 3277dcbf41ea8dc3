//! One evaluation as everybody sees it who looks at it: its head, and which attributes changed with which revision. Start at
//! [`Look::read`], which reads all of it the first time and afterwards only what changed (decision 0021).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use harmonia_core::api::{AttrChange, AttrCounts, AttrState, Evaluation, EvaluationHead, JobCounts};
use harmonia_core::{EvalId, JobId, JobStatus};
use harmonia_db::views::{EvaluationRow, LookedJob, WholeLook};
use harmonia_db::{Db, DbError};

use crate::memory::SHARE;

/// Revisions that are remembered: who was away for longer is told everything.
const REVISIONS_MAX: usize = 256;
/// All of it is read again after so many times as long as that took last time, and not before so many times as long as a look is
/// good in any case: for what is not followed (jobs that had succeeded and are built again, outputs that are gone).
const WHOLE_SHARE: u32 = 10 * SHARE;
const WHOLE_AGES: u32 = 200;

/// An evaluation at one revision.
pub(crate) struct Look {
    /// The number of the last change, and those before: what clients may have seen.
    revisions: Vec<i64>,
    row: EvaluationRow,
    pub(crate) evaluation: Evaluation,
    pub(crate) jobs: JobCounts,
    names: Arc<[Name]>,
    /// Where each of these stands, and since which revision.
    states: Vec<(AttrState, i64)>,
    /// Jobs that are not there yet, as they were seen: (as its row says, as it is shown).
    open: HashMap<JobId, (JobStatus, JobStatus)>,
    /// When all of it was read, and how long that took.
    whole: (Instant, Duration),
}

struct Name {
    attr: Box<str>,
    job: Option<JobId>,
}

impl Look {
    /// The evaluation as it is now, given how it was; `None` when there is none that the viewer may see whose `db` is. `age`: for
    /// how long a look is good.
    pub(crate) async fn read(
        db: &Db,
        id: EvalId,
        known: Option<&Self>,
        age: Duration,
    ) -> Result<Option<Self>, DbError> {
        if let Some(known) = known.filter(|known| known.is_followed(age)) {
            let Some(row) = db.look_at_row(id).await? else { return Ok(None) };
            if row.has_attributes_of(&known.row) {
                return known.again(db, id, row).await.map(Some);
            }
        }
        let began = Instant::now();
        let Some(whole) = db.look_at_evaluation(id).await? else { return Ok(None) };
        let took = began.elapsed();
        let last = known.map_or(0, Self::revision);
        let mut look = Self::of(whole, known, (began, took));
        if known.is_none_or(|known| look.differs_from(known)) {
            look.advance(db.next_revision().await?, last);
        }
        Ok(Some(look))
    }

    /// Whether only what changed needs to be read.
    fn is_followed(&self, age: Duration) -> bool {
        let (at, took) = self.whole;
        at.elapsed() < (age * WHOLE_AGES).max(if age.is_zero() { age } else { took * WHOLE_SHARE })
    }

    async fn again(&self, db: &Db, id: EvalId, row: EvaluationRow) -> Result<Self, DbError> {
        let open: Vec<(JobId, JobStatus)> = self.open.iter().map(|(job, (status, _))| (*job, *status)).collect();
        let changed = if open.is_empty() { Vec::new() } else { db.look_again(&open).await? };
        let jobs: HashSet<JobId> = changed.iter().map(|changed| changed.job).collect();
        let is_changed = |name: &&Name| name.job.is_some_and(|job| jobs.contains(&job));
        let names: Vec<&str> = self.names.iter().filter(is_changed).map(|name| &*name.attr).collect();
        let states: HashMap<String, AttrState> =
            if names.is_empty() { HashMap::new() } else { db.look_at_attrs(id, &names).await?.into_iter().collect() };
        let last = self.revision();
        let mut look = self.followed(row, &changed, &states);
        if look.differs_from(self) {
            look.advance(db.next_revision().await?, last);
        }
        Ok(look)
    }

    fn of(whole: WholeLook, known: Option<&Self>, read: (Instant, Duration)) -> Self {
        let WholeLook { row, jobs, attrs } = whole;
        let mut counts = JobCounts::default();
        let mut open = HashMap::new();
        for LookedJob { job, status, shown } in jobs {
            *counts.of_mut(shown) += 1;
            if status != JobStatus::Succeeded {
                open.insert(job, (status, shown));
            }
        }
        let before: HashMap<&str, (AttrState, i64)> = known.map(Self::by_name).unwrap_or_default();
        // Zero: it is of the revision that comes.
        let states = attrs.iter().map(|attr| match before.get(attr.attr.as_str()) {
            Some((state, since)) if *state == attr.state => (attr.state, *since),
            _ => (attr.state, 0),
        });
        let states: Vec<(AttrState, i64)> = states.collect();
        let names: Arc<[Name]> = attrs.into_iter().map(|attr| Name { attr: attr.attr.into(), job: attr.job }).collect();
        // Clients keep what they were told of; when something is gone, they are told everything.
        let is_gone = known.is_some_and(|known| {
            let now: HashSet<&str> = names.iter().map(|name| &*name.attr).collect();
            known.names.iter().any(|name| !now.contains(&*name.attr))
        });
        let revisions = known.filter(|_| !is_gone).map(|known| known.revisions.clone()).unwrap_or_default();
        let evaluation = row.counted(AttrCounts::of(states.iter().map(|(state, _)| *state)));
        Self { revisions, row, evaluation, jobs: counts, names, states, open, whole: read }
    }

    /// The same after these changes.
    fn followed(&self, row: EvaluationRow, changed: &[LookedJob], states: &HashMap<String, AttrState>) -> Self {
        let (mut jobs, mut open) = (self.jobs, self.open.clone());
        for LookedJob { job, status, shown } in changed.iter().copied() {
            if let Some((_, before)) = open.remove(&job) {
                *jobs.of_mut(before) -= 1;
                *jobs.of_mut(shown) += 1;
            }
            if status != JobStatus::Succeeded {
                open.insert(job, (status, shown));
            }
        }
        let now = self.names.iter().zip(&self.states).map(|(name, before)| match states.get(&*name.attr) {
            Some(state) if *state != before.0 => (*state, 0),
            _ => *before,
        });
        let now: Vec<(AttrState, i64)> = now.collect();
        let evaluation = row.counted(AttrCounts::of(now.iter().map(|(state, _)| *state)));
        let (revisions, names) = (self.revisions.clone(), self.names.clone());
        Self { revisions, row, evaluation, jobs, names, states: now, open, whole: self.whole }
    }

    fn differs_from(&self, known: &Self) -> bool {
        self.row != known.row
            || self.jobs != known.jobs
            || self.names.len() != known.names.len()
            || self.states.iter().any(|(_, since)| *since == 0)
    }

    /// What changed, changed with this revision, which is larger than the last one whoever gave that out.
    fn advance(&mut self, revision: i64, last: i64) {
        let revision = revision.max(last + 1);
        for (_, since) in self.states.iter_mut().filter(|(_, since)| *since == 0) {
            *since = revision;
        }
        if self.revisions.len() >= REVISIONS_MAX {
            self.revisions.remove(0);
        }
        self.revisions.push(revision);
    }

    fn by_name(&self) -> HashMap<&str, (AttrState, i64)> {
        self.names.iter().zip(&self.states).map(|(name, state)| (&*name.attr, *state)).collect()
    }

    /// The number of the last change.
    pub(crate) fn revision(&self) -> i64 {
        self.revisions.last().copied().unwrap_or(0)
    }

    pub(crate) fn warnings(&self) -> &[String] {
        &self.row.warnings
    }

    /// Attributes and where they stand, by name.
    pub(crate) fn attrs(&self) -> impl Iterator<Item = (&str, AttrState)> {
        self.names.iter().zip(&self.states).map(|(name, (state, _))| (&*name.attr, *state))
    }

    /// How it stands, and what changed since a revision that a client has seen.
    pub(crate) fn head(&self, since: Option<i64>) -> EvaluationHead {
        let known = since.filter(|since| self.revisions.contains(since));
        let changed =
            self.names.iter().zip(&self.states).filter(|(_, (_, changed))| known.is_none_or(|since| *changed > since));
        EvaluationHead {
            revision: self.revision(),
            evaluation: self.evaluation.clone(),
            jobs: self.jobs,
            whole: known.is_none(),
            changed: changed
                .map(|(name, (state, _))| AttrChange { attr: name.attr.to_string(), state: *state })
                .collect(),
        }
    }
}
