//! The circuit breaker, by a clock that the test moves.

use harmonia_hostile_tests::World;

#[tokio::test]
async fn the_circuit_opens_half_opens_and_closes() {
    let world = World::new();
    world.load(vec![world.guest("traps"), world.guest("empty")]).await;
    for _ in 0..5 {
        world.fault("traps", "").await;
    }
    assert_eq!(world.status("traps").broken_for_s, Some(10));
    let refused = world.fault("traps", "").await;
    assert!(refused.contains("plugin traps failed too often") && refused.contains("for 10 s"), "{refused}");
    assert_eq!(world.metrics("traps").calls, 5, "the guest is left alone");
    world.answer("empty", "").await;

    world.clock.advance(9);
    assert!(world.fault("traps", "").await.contains("for 1 s"));
    world.clock.advance(1);
    // Half open: one call goes through, and its failure opens the circuit for twice as long.
    assert!(world.fault("traps", "").await.contains("unreachable"));
    assert_eq!((world.metrics("traps").calls, world.status("traps").broken_for_s), (6, Some(20)));
    assert!(world.fault("traps", "").await.contains("for 20 s"));

    world.clock.advance(20);
    world.good_call("traps").await;
    assert_eq!(world.status("traps").broken_for_s, None);
    world.good_call("traps").await;
    // Closed, it takes five faults again.
    for _ in 0..4 {
        world.fault("traps", "").await;
    }
    assert_eq!(world.status("traps").broken_for_s, None);
    let metrics = world.metrics("traps");
    assert_eq!((metrics.breaks, metrics.refused), (2, 3));
}

#[tokio::test]
async fn what_a_forge_refuses_breaks_no_circuit() {
    let world = World::new();
    // It opens no connection and answers its refusals as text, twenty times over.
    world.load(vec![world.guest("fetches")]).await;
    for _ in 0..20 {
        world.answer("fetches", "http://127.0.0.1:9/").await;
    }
    let status = world.status("fetches");
    assert_eq!((status.failures, status.broken_for_s), (0, None));
}
