//! The same tree under another commit: evaluated once, as long as nothing depends on the commit.

use std::time::Duration;

use harmonia_core::api::ProjectChanges;
use harmonia_core::{Incarnation, NodeId};

use crate::forge::{REPOSITORY, journeys};
use crate::world::{World, push_event};

journeys! {
    both: a_tree_that_was_evaluated_is_shown_at_once_for_another_commit,
        a_tree_is_evaluated_again_when_something_depends_on_its_commit_or_is_not_known,
        nothing_is_reused_where_it_is_switched_off;
    github: ;
    gitea: ;
}

/// The evaluators are of this kind now; gives the rules by which they evaluate.
async fn engine(world: &World, engine: &str) -> String {
    world.db.set_evaluator_engine(&NodeId("played".to_owned()), Incarnation(1), engine).await.expect("says its engine");
    world.db.reuse_key(Duration::from_mins(2)).await.expect("asked").expect("all evaluators are of one kind")
}

/// Evaluates what is queued next, and says what shows that it depends on its commit.
async fn evaluated(world: &World, key: &str, embeds_commit: Option<bool>, numbers: &[usize]) -> bool {
    let Some(taken) = world.claim_evaluation().await else { return false };
    let (id, token) = (taken.claimed.id, &taken.token);
    world.db.set_evaluation_reuse(id, token, key, embeds_commit).await.expect("says so");
    world.finish(&taken, numbers).await;
    true
}

/// Pushes another commit with the tree of `first`.
async fn pushed_again(world: &World, first: &str) -> String {
    let (before, after) = world.push("main");
    {
        let mut forge = world.forge.world();
        let commits = &mut forge.repository_mut(REPOSITORY).commits;
        let tree = commits[first].tree.clone();
        commits.get_mut(&after).expect("just pushed").tree = tree;
    }
    world.happens(push_event("refs/heads/main", &before, &after)).await;
    after
}

async fn a_tree_that_was_evaluated_is_shown_at_once_for_another_commit(world: &World) {
    let key = engine(world, "one").await;
    let first = world.pushed("main").await;
    assert!(evaluated(world, &key, Some(false), &[1, 2]).await);
    let second = pushed_again(world, &first).await;
    assert!(world.claim_evaluation().await.is_none(), "there is nothing to evaluate");
    world.assert_shown(&second, "success", "pending");
    // What the first one wanted, the second wants now; both are shown how it ended.
    assert_eq!(world.built(&[]).await, 2);
    world.settle().await;
    world.assert_shown(&second, "success", "success");
    // Everything is there already: the first word is the last.
    let third = pushed_again(world, &first).await;
    assert!(world.claim_evaluation().await.is_none());
    world.assert_shown(&third, "success", "success");
    assert_eq!(world.forge.repetitions(&third), 0);
}

async fn a_tree_is_evaluated_again_when_something_depends_on_its_commit_or_is_not_known(world: &World) {
    let key = engine(world, "one").await;
    let first = world.pushed("main").await;
    assert!(evaluated(world, &key, Some(true), &[1]).await);
    for embeds in [None, Some(true), Some(false)] {
        pushed_again(world, &first).await;
        assert!(evaluated(world, &key, embeds, &[1]).await, "before one that is {embeds:?}");
    }
    // The last one depends on nothing. But now others evaluate.
    let newer = engine(world, "two").await;
    let fifth = pushed_again(world, &first).await;
    assert!(evaluated(world, &newer, Some(false), &[1]).await);
    world.settle().await;
    world.assert_shown(&fifth, "success", "pending");
    // What failed is not shown as the result of what nobody tried.
    world.built(&[1]).await;
    let sixth = pushed_again(world, &first).await;
    assert!(evaluated(world, &newer, Some(false), &[2]).await);
    world.built(&[]).await;
    world.settle().await;
    world.assert_shown(&sixth, "success", "success");
}

async fn nothing_is_reused_where_it_is_switched_off(world: &World) {
    let key = engine(world, "one").await;
    let first = world.pushed("main").await;
    assert!(evaluated(world, &key, Some(false), &[1]).await);
    world.built(&[]).await;
    let off = ProjectChanges { reuse_trees: Some(false), ..ProjectChanges::default() };
    world.db.set_project(REPOSITORY, &off, "ada").await.expect("switched off");
    pushed_again(world, &first).await;
    assert!(evaluated(world, &key, Some(false), &[1]).await, "switched off");
    let on = ProjectChanges { reuse_trees: Some(true), ..ProjectChanges::default() };
    world.db.set_project(REPOSITORY, &on, "ada").await.expect("switched on");
    let second = pushed_again(world, &first).await;
    assert!(world.claim_evaluation().await.is_none(), "switched on");
    world.assert_shown(&second, "success", "success");
}
