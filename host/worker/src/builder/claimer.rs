//! One claim of a node: which candidates, in which order, and what is kept of that for the next. Start at
//! [`Claimer::claim`].

use std::sync::Arc;
use std::time::Instant;

use harmonia_core::policy::{AskingNode, CachedOrder, Policy, PolicyError, order_candidates};
use harmonia_core::{ClaimToken, ClassId, Incarnation, JobId, NodeId};
use harmonia_db::{ClaimedJob, Db, DbError};

/// How often a claim looks again, at twice as many candidates, when others were quicker with those that it saw.
const LOOKS_MAX: u32 = 4;
/// Most heads of each queue that a claim asks for.
const HEADS_MAX: u32 = 64;
/// How many candidates more than it wants a claim tries at first, for each that it wants: others may have the first ones.
const SPARE_EACH: usize = 32;

/// What policies hear of a node's build speed: nobody measures it yet.
const SPEED_AVERAGE: f64 = 1.0;

/// Claims for one node.
pub struct Claimer {
    db: Db,
    node: NodeId,
    incarnation: Incarnation,
    policy: Arc<dyn Policy>,
    kept: CachedOrder,
    /// How many heads of each queue to ask for at least, so that what is kept lasts about as long as it may: a node that
    /// claims now and then needs one, one that claims all the time many.
    ahead: u32,
}

/// What came of a claim.
#[derive(Debug, Default)]
pub struct Claims {
    /// Jobs that the node now holds.
    pub jobs: Vec<ClaimedJob>,
    /// Tokens of a call that failed: it may have been carried out all the same, with the answer lost on its way.
    pub unacknowledged: Vec<ClaimToken>,
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
        Self { db, node, incarnation, policy, kept: CachedOrder::default(), ahead: 1 }
    }

    /// Claims up to `wanted` jobs of `classes`.
    ///
    /// From the order that was kept, if there is one that is fresh: one statement, which checks again all that the order
    /// took for granted. Else, and for the rest: heads of the ready queues → the policy's order → the first that can be
    /// locked. To fill n slots, up to n heads of each queue; more only when others were quicker with those, or when orders
    /// are used up before they are old.
    pub async fn claim(&mut self, classes: &[ClassId], wanted: u32, now: Instant) -> Claims {
        let mut claims = Claims::default();
        let result = match self.claim_kept(&mut claims, classes, wanted as usize, now).await {
            Ok(()) if claims.jobs.len() < wanted as usize => {
                self.look_and_claim(&mut claims, classes, wanted as usize, now).await
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
        // Where others have all of the first ones they are ahead: then further down, before the queue is looked at again.
        for count in [wanted * (1 + SPARE_EACH), usize::MAX] {
            let order = self.kept.first(count);
            if order.is_empty() {
                break;
            }
            self.take(claims, &order, wanted - claims.jobs.len(), true).await?;
            if claims.jobs.len() == wanted {
                return Ok(());
            }
        }
        // It was used up before it was old: more would have served more claims.
        self.ahead = self.heads(wanted).saturating_mul(2).min(HEADS_MAX);
        Ok(())
    }

    /// How many heads of each queue a claim of `wanted` jobs asks for at first.
    fn heads(&self, wanted: usize) -> u32 {
        u32::try_from(wanted).unwrap_or(u32::MAX).max(self.ahead).min(HEADS_MAX)
    }

    async fn look_and_claim(
        &mut self,
        claims: &mut Claims,
        classes: &[ClassId],
        wanted: usize,
        now: Instant,
    ) -> Result<(), DbError> {
        let mut each = self.heads(wanted);
        for _ in 0..LOOKS_MAX {
            let slots = wanted - claims.jobs.len();
            let heads = self.db.queue_heads(classes, each).await?;
            claims.looks += 1;
            if heads.candidates.is_empty() {
                self.kept = CachedOrder::default();
                break;
            }
            let asking = AskingNode { node: self.node.clone(), slots: slots as u32, speed_factor: SPEED_AVERAGE };
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
            self.kept = CachedOrder::new(&order, &candidates, each, classes, now);
            // Others may have all of the first ones by now.
            let (first, rest) = order.split_at(order.len().min(slots * (1 + SPARE_EACH)));
            self.take(claims, first, slots, false).await?;
            if claims.jobs.len() < wanted {
                self.take(claims, rest, wanted - claims.jobs.len(), false).await?;
            }
            // All that there was, or all that the policy wants built.
            if claims.jobs.len() >= wanted || order.len() < slots || each >= HEADS_MAX {
                break;
            }
            each = each.saturating_mul(2).min(HEADS_MAX);
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
                self.kept.tried(order.len(), &ids, slots);
                claims.jobs.extend(jobs);
                Ok(())
            }
            Err(error) => {
                self.kept = CachedOrder::default();
                claims.unacknowledged.extend(tokens);
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests;
