use std::pin::pin;
use std::task::Poll;

use super::*;
use crate::capabilities::secrets::Origin;
use crate::capabilities::testing::{Plan, World};

fn token(text: &str) -> SecretHandle {
    let bytes = zeroize::Zeroizing::new(text.as_bytes().to_vec());
    SecretHandle::new(Origin::Captured, bytes, Vec::new(), None).expect("a secret")
}

async fn is_pending<F: Future>(mut future: std::pin::Pin<&mut F>) -> bool {
    std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_pending())).await
}

fn text(call: &CallState, secret: Option<SecretHandle>) -> Option<String> {
    secret.map(|secret| call.expose(&secret).expect("text").expose().to_owned())
}

#[tokio::test]
async fn many_calls_that_find_none_wait_for_the_first() {
    let world = Plan::default().world();
    let mut first = world.call();
    assert!(first.kept_secret("token").await.is_none(), "it fetches");
    assert!(first.kept_secret("token").await.is_none(), "it does not wait for itself");
    let others: Vec<_> = (0..5)
        .map(|_| {
            let mut call = world.call();
            tokio::spawn(async move {
                let found = call.kept_secret("token").await;
                text(&call, found)
            })
        })
        .collect();
    while others_waiting(&world, "token") < 5 {
        tokio::task::yield_now().await;
    }
    let minted = token("minted-token");
    first.keep(&minted, "token", 60).expect("kept");
    for other in others {
        assert_eq!(other.await.expect("no panic").as_deref(), Some("minted-token"));
    }
    assert_eq!(world.shared.kept.len(), 1);
    assert!(lock(&world.shared.kept.fetched).is_empty());
}

/// How many hold what is closed when the name is there, but for the map itself.
fn others_waiting(world: &World, name: &str) -> usize {
    lock(&world.shared.kept.fetched).get(name).map_or(0, |over| Arc::strong_count(over) - 1)
}

#[tokio::test]
async fn who_ends_without_keeping_holds_nobody_up() {
    let world = Plan::default().world();
    let mut first = world.call();
    assert!(first.kept_secret("token").await.is_none());
    let mut second = world.call();
    {
        let mut asking = pin!(second.kept_secret("token"));
        assert!(is_pending(asking.as_mut()).await);
        drop(first);
        assert!(asking.await.is_none(), "it fetches one itself");
    }
    // It did not take over: others are not made to wait one after the other.
    assert!(lock(&world.shared.kept.fetched).is_empty());
}

#[tokio::test]
async fn two_calls_never_wait_for_each_other() {
    let world = Plan::default().world();
    let (mut one, mut other) = (world.call(), world.call());
    assert!(one.kept_secret("a").await.is_none());
    assert!(other.kept_secret("b").await.is_none());
    assert!(one.kept_secret("b").await.is_none(), "somebody may wait for it");
    assert!(other.kept_secret("a").await.is_none());
    // Keeping what it fetched, it may wait again.
    one.keep(&token("token-a"), "a", 60).expect("kept");
    let mut asking = pin!(one.kept_secret("b"));
    assert!(is_pending(asking.as_mut()).await);
    other.keep(&token("token-b"), "b", 60).expect("kept");
    assert!(asking.await.is_some());
}

#[tokio::test]
async fn nobody_waits_for_long_nor_for_who_cannot_fetch() {
    let world = Plan::default().limits(|limits| limits.kept_wait_ms = 20).world();
    let mut offline = CallState::new(world.shared.clone(), false);
    assert!(offline.kept_secret("token").await.is_none());
    let mut slow = world.call();
    assert!(slow.kept_secret("token").await.is_none(), "at once: who has no network holds nobody up");
    let mut other = world.call();
    {
        let mut asking = pin!(other.kept_secret("token"));
        assert!(is_pending(asking.as_mut()).await);
        assert!(asking.await.is_none(), "it ends, although nothing happened");
    }
    assert!(offline.kept_secret("token").await.is_none());
    assert!(world.call().kept_secret(&"x".repeat(300)).await.is_none());
    assert_eq!(lock(&world.shared.kept.fetched).len(), 1);
}
