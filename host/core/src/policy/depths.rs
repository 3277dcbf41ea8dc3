//! How many heads of each project's queues a claim looks at.

use std::collections::BTreeMap;

use crate::ids::ProjectId;

/// As many of each project, and more of those whose heads were used up before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Depths {
    each: u32,
    /// Only what is more than `each`.
    deeper: BTreeMap<ProjectId, u32>,
}

/// The same of each project.
impl From<u32> for Depths {
    fn from(each: u32) -> Self {
        Self { each, deeper: BTreeMap::new() }
    }
}

impl Depths {
    /// Of a project that nothing else is said of.
    pub fn each(&self) -> u32 {
        self.each
    }

    /// Of this project.
    pub fn of(&self, project: ProjectId) -> u32 {
        self.deeper.get(&project).copied().unwrap_or(self.each)
    }

    /// Projects of which it is more than of each.
    pub fn deeper(&self) -> impl Iterator<Item = (ProjectId, u32)> {
        self.deeper.iter().map(|(project, depth)| (*project, *depth))
    }

    /// At least `each` of every project.
    #[must_use]
    pub fn at_least(mut self, each: u32) -> Self {
        self.each = self.each.max(each);
        let each = self.each;
        self.deeper.retain(|_, depth| *depth > each);
        self
    }

    /// Of this project, at most `max`, or what it is already.
    pub fn deepen(&mut self, project: ProjectId, depth: u32, max: u32) {
        let depth = depth.min(max);
        if depth > self.of(project) {
            self.deeper.insert(project, depth);
        }
    }

    /// Twice as many of all projects, at most `max` (or what it is already).
    #[must_use]
    pub fn doubled(mut self, max: u32) -> Self {
        for depth in self.deeper.values_mut().chain([&mut self.each]) {
            *depth = depth.saturating_mul(2).min(max).max(*depth);
        }
        self.at_least(0)
    }

    /// Half as many of the deeper ones; of each, when none is deeper.
    #[must_use]
    pub fn halved(mut self) -> Self {
        if self.deeper.is_empty() {
            self.each = (self.each / 2).max(1);
        }
        for depth in self.deeper.values_mut() {
            *depth /= 2;
        }
        self.at_least(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ProjectId = ProjectId(1);
    const B: ProjectId = ProjectId(2);

    fn depths(each: u32, a: u32) -> Depths {
        let mut depths = Depths::from(each);
        depths.deepen(A, a, u32::MAX);
        depths
    }

    #[test]
    fn only_what_is_deeper_is_named() {
        for (each, a, least, expected) in
            [(1, 1, 0, (1, 1)), (1, 4, 0, (4, 1)), (1, 4, 3, (4, 3)), (1, 4, 4, (4, 4)), (2, 4, 9, (9, 9))]
        {
            let depths = depths(each, a).at_least(least);
            assert_eq!((depths.of(A), depths.of(B)), expected, "{each} of each, {a} of A, at least {least}");
            assert_eq!(depths.deeper().count(), usize::from(expected.0 > expected.1));
        }
    }

    #[test]
    fn a_project_is_deepened_up_to_a_bound_and_never_made_shallower() {
        for (a, depth, max, expected) in [(1, 2, 64, 2), (4, 8, 64, 8), (4, 8, 6, 6), (8, 4, 64, 8), (8, 16, 4, 8)] {
            let mut depths = depths(1, a);
            depths.deepen(A, depth, max);
            assert_eq!((depths.of(A), depths.of(B)), (expected, 1), "{a} deepened to {depth}, at most {max}");
        }
    }

    #[test]
    fn doubling_is_bounded_and_halving_comes_back_to_one_of_each() {
        assert_eq!(depths(2, 40).doubled(64), depths(4, 64));
        assert_eq!(depths(40, 90).doubled(64), depths(64, 90));
        let mut seen = depths(2, 8);
        let halved = std::iter::repeat_with(|| {
            seen = seen.clone().halved();
            (seen.of(A), seen.of(B))
        });
        assert_eq!(halved.take(5).collect::<Vec<_>>(), [(4, 2), (2, 2), (1, 1), (1, 1), (1, 1)]);
    }
}
