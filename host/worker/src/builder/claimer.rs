//! One claim of a node: which candidates, in which order, and what is kept of that for the next. Start at
//! [`Claimer::claim`].

use std::sync::Arc;
use std::time::Instant;

use harmonia_core::policy::{AskingNode, KeptOrder, Policy, PolicyError, order_candidates};
use harmonia_core::{ClaimToken, ClassId, Incarnation, JobId, NodeId};
use harmonia_db::{ClaimedJob, Db, DbError};

/// Most candidates of one project and class that a claim looks at.
const HEADS_MAX: u32 = 64;
/// Most that it looks at for the sake of the claims to come.
const HEADS_AHEAD_MAX: u32 = 16;
/// How often a claim looks again, at twice as many candidates, when others were quicker with those that it saw.
const LOOKS_MAX: u32 = 4;
/// How many candidates more than it wants a claim tries of a long order, for each that it wants: others may have the first.
const SPARE_EACH: usize = 32;
/// How many candidates must be gone for a claim to think that many other nodes claim.
const CROWDED: usize = 3;
/// Most jobs that a claim leaves to others, for each that it wants.
const SPREAD_EACH_MAX: usize = 16;

/// Claims for one node.
pub struct Claimer {
    db: Db,
    node: NodeId,
    incarnation: Incarnation,
    policy: Arc<dyn Policy>,
    kept: KeptOrder,
    /// How many heads of each queue to ask for, so that what is kept lasts as long as it may.
    ahead: u32,
    /// Up to how many jobs at the beginning of a kept order a claim leaves to others: 0 while no other node claims as fast,
    /// else about as many as they claim meanwhile. Whoever goes for the same job has to find out, one lock after the other;
    /// who comes second would go on to the next anyway. What all left behind is first at the next look.
    spread: usize,
}

/// What came of a claim.
#[derive(Debug, Default)]
pub struct Claims {
    /// Jobs that the node now holds.
    pub jobs: Vec<ClaimedJob>,
    /// Tokens of a call that failed: it may have been carried out all the same, with the answer lost on its way.
    pub unheard: Vec<ClaimToken>,
    /// Why there are not more.
    pub error: Option<DbError>,
    /// What the policy failed with, or that it did not, when it was asked.
    pub policy: Option<Option<PolicyError>>,
    /// How often the queue was looked at.
    pub looks: u32,
}

impl Claimer {
    /// Nothing is kept yet.
    pub fn new(db: Db, node: NodeId, incarnation: Incarnation, policy: Arc<dyn Policy>) -> Self {
        Self { db, node, incarnation, policy, kept: KeptOrder::default(), ahead: 1, spread: 0 }
    }

    /// Claims up to `wanted` jobs of `classes`.
    ///
    /// From the order that was kept, if there is one that is fresh: one statement, which checks again all that the order
    /// took for granted. Else, and for the rest: heads of the ready queues → the policy's order → the first that can be
    /// locked. To fill n slots, up to n heads of each queue; more only when others were quicker with those, or when orders
    /// are used up before they are old.
    pub async fn claim(&mut self, classes: &[ClassId], speed_factor: f64, wanted: u32, now: Instant) -> Claims {
        let mut claims = Claims::default();
        let result = match self.claim_kept(&mut claims, classes, wanted as usize, now).await {
            Ok(()) if claims.jobs.len() < wanted as usize => {
                self.look_and_claim(&mut claims, classes, speed_factor, wanted as usize, now).await
            }
            result => result,
        };
        claims.error = result.err();
        claims
    }

    async fn claim_kept(
        &mut self,
        claims: &mut Claims,
        classes: &[ClassId],
        wanted: usize,
        now: Instant,
    ) -> Result<(), DbError> {
        if !self.kept.is_fresh(classes, now) {
            // It grew old with plenty left: fewer will do.
            if self.kept.left() > SPARE_EACH * wanted {
                self.ahead = (self.ahead / 2).max(1);
            }
            return Ok(());
        }
        if self.spread > 0 {
            self.kept.skip(rand::random_range(0..=self.spread));
        }
        let order = self.kept.first(wanted * (1 + SPARE_EACH));
        if !order.is_empty() {
            self.take(claims, &order, wanted, true).await?;
            self.spread = match claims.jobs.last().and_then(|last| order.iter().position(|job| *job == last.job)) {
                Some(place) if place >= wanted + CROWDED => {
                    (self.spread + (place - wanted) / 2).min(SPREAD_EACH_MAX * wanted)
                }
                Some(place) if place < wanted => self.spread * 3 / 4,
                _ => self.spread,
            };
        }
        if claims.jobs.len() < wanted {
            self.ahead = (self.ahead * 2).min(HEADS_AHEAD_MAX);
        }
        Ok(())
    }

    async fn look_and_claim(
        &mut self,
        claims: &mut Claims,
        classes: &[ClassId],
        speed_factor: f64,
        wanted: usize,
        now: Instant,
    ) -> Result<(), DbError> {
        let mut per_queue = (wanted as u32).max(self.ahead).min(HEADS_MAX);
        for look in 0..LOOKS_MAX {
            let slots = wanted - claims.jobs.len();
            let heads = self.db.queue_heads(classes, per_queue).await?;
            claims.looks += 1;
            if heads.candidates.is_empty() {
                self.kept = KeptOrder::default();
                break;
            }
            let asking = AskingNode { node: self.node.clone(), slots: slots as u32, speed_factor };
            let policy = Arc::clone(&self.policy);
            // A policy is foreign code with a budget of its own: not on this thread.
            let ranked = tokio::task::spawn_blocking(move || {
                let (order, error) = order_candidates(&*policy, &asking, &heads.projects, &heads.candidates);
                (order, error, heads.candidates)
            })
            .await;
            // Only a runtime that is going down leaves no answer.
            let Ok((order, error, candidates)) = ranked else { break };
            claims.policy = Some(error);
            self.kept = KeptOrder::new(&order, &candidates, per_queue, classes, now);
            let tried = if look == 0 { order.len().min(slots * (1 + SPARE_EACH)) } else { order.len() };
            self.take(claims, &order[..tried], slots, false).await?;
            // All that there was, or all that the policy wants built.
            if claims.jobs.len() >= wanted || order.len() < slots || (per_queue >= HEADS_MAX && tried == order.len()) {
                break;
            }
            per_queue = (per_queue * 2).min(HEADS_MAX);
        }
        Ok(())
    }

    /// Claims the first of `order` that nobody else has.
    async fn take(&mut self, claims: &mut Claims, order: &[JobId], slots: usize, kept: bool) -> Result<(), DbError> {
        let tokens: Vec<ClaimToken> = (0..slots).map(|_| ClaimToken::from_random(rand::random())).collect();
        let taken = if kept {
            self.db.claim_kept_jobs(&self.node, self.incarnation, order, &tokens).await
        } else {
            self.db.claim_jobs(&self.node, self.incarnation, order, &tokens).await
        };
        match taken {
            Ok(jobs) => {
                let ids: Vec<JobId> = jobs.iter().map(|job| job.job).collect();
                self.kept.tried(&ids, slots);
                claims.jobs.extend(jobs);
                Ok(())
            }
            Err(error) => {
                self.kept = KeptOrder::default();
                claims.unheard.extend(tokens);
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests;
