//! How many heads a claimer asks for, and how many of a kept order's first jobs it leaves to others: both follow what its
//! last claims met. Start at [`Pacing::took`].

use harmonia_core::ProjectId;
use harmonia_core::policy::Depths;

/// Most candidates of one project and class that a claim looks at, unless that project used them up again and again.
pub(super) const HEADS_MAX: u32 = 64;
/// Most of one that did.
const DEEP_MAX: u32 = 256;
/// Most of each that it looks at for the sake of the claims to come.
const AHEAD_MAX: u32 = 2;
/// How many candidates must be gone for a claim to think that many other nodes claim.
const CROWDED: usize = 3;
/// Most jobs that a claim leaves to others, for each that it wants.
const SPREAD_EACH_MAX: usize = 16;

/// What a claimer learnt of its own speed and of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pacing {
    /// How many heads of each queue to ask for, so that what is kept lasts as long as it may: more of those projects that
    /// the policy takes most from, since it is their last head that ends an order.
    ahead: Depths,
    /// Up to how many jobs at the beginning of a kept order a claim leaves to others: 0 while no other node claims as fast,
    /// else about as many as they claim meanwhile. Whoever goes for the same job has to find out, one lock after the other;
    /// who comes second would go on to the next anyway. What all left behind is first at the next look.
    spread: usize,
}

impl Default for Pacing {
    fn default() -> Self {
        Self { ahead: Depths::from(1), spread: 0 }
    }
}

impl Pacing {
    /// How many heads of each queue a claim of `wanted` jobs asks for at first.
    pub(super) fn heads(&self, wanted: usize) -> Depths {
        self.ahead.clone().at_least(u32::try_from(wanted).unwrap_or(u32::MAX).min(HEADS_MAX))
    }

    /// Up to how many jobs of a kept order to leave to others.
    pub(super) fn spread(&self) -> usize {
        self.spread
    }

    /// An order grew old with plenty left: fewer heads will do.
    pub(super) fn grew_old(&mut self) {
        self.ahead = self.ahead.clone().halved();
    }

    /// An order, made for claims of `wanted` jobs, was used up before it was old. `short_of`: the projects of which more would
    /// have made it longer.
    pub(super) fn ran_out(&mut self, short_of: &[ProjectId], wanted: usize) {
        let seen = self.heads(wanted);
        if self.ahead.each() < AHEAD_MAX {
            self.ahead = self.ahead.clone().doubled(DEEP_MAX);
        }
        for project in short_of {
            self.ahead.deepen(*project, seen.of(*project).saturating_mul(2), DEEP_MAX);
        }
    }

    /// A claim that wanted `wanted` jobs of a kept order got its last one at `place` (from 0).
    pub(super) fn took(&mut self, place: usize, wanted: usize) {
        if place >= wanted + CROWDED {
            self.spread = (self.spread + (place - wanted) / 2).min(SPREAD_EACH_MAX * wanted);
        } else if place < wanted {
            self.spread = self.spread * 3 / 4;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ProjectId = ProjectId(1);
    const B: ProjectId = ProjectId(2);

    fn of(pacing: &Pacing, wanted: usize) -> (u32, u32) {
        let heads = pacing.heads(wanted);
        (heads.of(A), heads.of(B))
    }

    #[test]
    fn heads_are_at_least_what_is_wanted_and_bounded() {
        for (wanted, expected) in [(1, 1), (8, 8), (64, 64), (1000, HEADS_MAX)] {
            assert_eq!(of(&Pacing::default(), wanted), (expected, expected), "{wanted} wanted");
        }
    }

    #[test]
    fn orders_that_run_out_deepen_the_projects_they_were_short_of_and_ones_that_grow_old_undo_that() {
        let mut pacing = Pacing::default();
        let mut seen = Vec::new();
        for _ in 0..9 {
            pacing.ran_out(&[A], 1);
            seen.push(of(&pacing, 1));
        }
        let deepened = [(2, 2), (4, 2), (8, 2), (16, 2), (32, 2), (64, 2), (128, 2), (256, 2), (256, 2)];
        assert_eq!(seen, deepened);
        pacing.ran_out(&[], 1);
        assert_eq!(of(&pacing, 1), (256, 2), "nobody had more");
        seen.clear();
        for _ in 0..10 {
            pacing.grew_old();
            seen.push(of(&pacing, 1));
        }
        let halved = [(128, 2), (64, 2), (32, 2), (16, 2), (8, 2), (4, 2), (2, 2), (1, 1), (1, 1), (1, 1)];
        assert_eq!(seen, halved);
    }

    #[test]
    fn claims_of_many_jobs_deepen_from_as_many() {
        let mut pacing = Pacing::default();
        pacing.ran_out(&[A], 8);
        assert_eq!((of(&pacing, 8), of(&pacing, 1)), ((16, 8), (16, 2)));
    }

    #[test]
    fn who_finds_the_first_jobs_gone_leaves_more_of_them_to_others() {
        for (spread, place, wanted, expected) in [
            (0, 0, 1, 0), // alone
            (0, 1, 1, 0), // one was gone: nothing follows
            (0, 3, 1, 0),
            (0, 4, 1, 1), // crowded
            (0, 20, 1, 9),
            (10, 20, 1, 16), // at most sixteen for each wanted
            (10, 40, 8, 26),
            (10, 0, 1, 7), // the first was free: fewer others
            (10, 7, 8, 7),
            (10, 9, 8, 10),
            (1, 0, 1, 0),
        ] {
            let mut pacing = Pacing { spread, ..Pacing::default() };
            pacing.took(place, wanted);
            assert_eq!(pacing.spread(), expected, "spread {spread}, place {place}, wanted {wanted}");
        }
    }
}
