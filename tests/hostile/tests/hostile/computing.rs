//! Guests that use up processor, stack or memory, or end badly.

use harmonia_hostile_tests::{Log, World};

#[tokio::test]
async fn whatever_a_guest_does_the_error_names_it_its_limit_and_the_key() {
    let world = World::new();
    let log = Log::capture();
    let cases: [(&str, &str, &[&str]); 8] = [
        (
            "spins",
            "",
            &[
                "stopped in branches.head: more than 100 ms of processor time",
                "`limits.cpu_ms_max` of the plugin `spins`",
            ],
        ),
        ("recurses", "", &["stopped in branches.head: more than 524288 bytes of stack"]),
        // Its own memory ends where that stack does.
        ("recurses", "memory", &["trapped in branches.head: wasm trap: out of bounds memory access"]),
        (
            "allocates",
            "",
            &["more than 16777216 bytes of memory", "`limits.memory_bytes_max` of the plugin `allocates`"],
        ),
        ("panics", "with this", &["trapped in branches.head", "panics.rs", "on purpose: with this"]),
        ("traps", "", &["trapped in branches.head", "unreachable"]),
        ("returns_garbage", "", &["branches.head", "UTF-8"]),
        (
            "returns_too_much",
            "65537",
            &["more than 65536 bytes handed to the host", "`limits.output_bytes_max` of the plugin `returns_too_much`"],
        ),
    ];
    for (name, argument, expected) in cases {
        world.load(vec![world.guest(name), world.guest("empty")]).await;
        let text = world.fault(name, argument).await;
        assert!(text.contains(&format!("plugin {name}")), "{name}: {text}");
        for part in expected {
            assert!(text.to_lowercase().contains(&part.to_lowercase()), "{name}: {text}");
        }
        let status = world.status(name);
        assert_eq!((status.calls, status.failures, status.broken_for_s), (1, 1, None), "{name}");
        assert_eq!(status.last_error.as_deref(), Some(text.as_str()), "an operator reads it on the nodes page");
        let logged = log.lines().into_iter().any(|line| line.plugin == name && line.message.contains(&text));
        assert!(logged, "{name}: {}", log.text());
        // Neither its next call nor anybody else suffers.
        world.good_call(name).await;
        assert_eq!(world.answer("empty", "").await, "");
        assert_eq!(world.status("empty").failures, 0);
        // The next case begins without a record.
        world.load(vec![world.guest("empty")]).await;
    }
}

#[tokio::test]
async fn an_operator_reads_what_a_guest_panicked_with_and_where_it_trapped() {
    let world = World::new();
    let log = Log::capture();
    world.load(vec![world.guest("panics"), world.guest("traps")]).await;
    world.fault("panics", "the wheel fell off").await;
    let told = log.written_by("panics");
    assert!(
        told.iter().any(|line| {
            line.message.contains("on purpose: the wheel fell off") && line.message.contains("panics.rs")
        }),
        "{told:?}"
    );
    let last_error = world.status("panics").last_error.expect("told");
    assert!(
        last_error.contains("panicked at ") && last_error.contains("on purpose: the wheel fell off"),
        "what it said last explains the trap: {last_error}"
    );
    world.fault("traps", "").await;
    let traced = log.lines().into_iter().any(|line| line.plugin == "traps" && line.others.contains("backtrace="));
    assert!(traced, "{}", log.text());
    let metrics = world.metrics("traps");
    assert_eq!((metrics.traps, metrics.limits, metrics.failures), (1, 0, 1));
}

#[tokio::test]
async fn last_words_are_one_line_of_bounded_length_and_hold_no_secret() {
    let world = World::new();
    world.load(vec![world.guest_with_secret("panics", "correct-horse-battery")]).await;
    let text = world.fault("panics", "with correct-horse-battery\nERROR forged").await;
    assert!(text.contains(r"on purpose: with [secret]\nERROR forged"), "{text}");
    let text = world.fault("panics", &"long ".repeat(4_000)).await;
    assert!(text.contains("on purpose: long long") && text.ends_with("[cut]") && text.len() < 1_300, "{}", text.len());
    assert_eq!(world.status("panics").last_error.as_deref(), Some(text.as_str()));
}

#[tokio::test]
async fn a_bound_is_a_bound_not_a_cliff_before_it() {
    let world = World::new();
    world.load(vec![world.guest("returns_too_much"), world.guest("echoes")]).await;
    assert_eq!(world.answer("returns_too_much", "60000").await.len(), 60_000);
    let long = "é".repeat(1_000);
    assert_eq!(world.answer("echoes", &long).await, long);
    assert_eq!(world.status("returns_too_much").failures, 0);
}

/// The processor's time is counted by a thread that rests when no guest runs: that it wakes up is what this is about.
#[tokio::test]
async fn the_ticker_runs_for_every_call_that_needs_it() {
    let world = World::new();
    let mut spec = world.guest("spins");
    spec.limits.call.cpu_ms_max = Some(20);
    // So long that only the ticker can be what ends the calls.
    spec.limits.call.wall_ms_max = Some(3_600_000);
    world.load(vec![spec]).await;
    for _ in 0..4 {
        let text = world.fault("spins", "").await;
        assert!(text.contains("more than 20 ms of processor time"), "{text}");
        world.good_call("spins").await;
        // Longer than the ticker goes on without a guest.
        tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    }
    assert_eq!(world.metrics("spins").limits, 4);
}
