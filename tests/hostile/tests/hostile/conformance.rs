//! The conformance suite: it passes what we ship, and finds guests that break the contract. (Forges and examples are held to
//! it beside their sources.)

use harmonia_plugin_harness::{Harness, component, conformance};

#[tokio::test]
async fn the_shipped_policy_conforms() {
    let failed = conformance(&Harness::new(component("scheduler-fair")).start().await).await;
    assert!(failed.is_empty(), "{failed:#?}");
}

#[tokio::test]
async fn what_does_not_conform_is_found() {
    for (name, expected) in [
        ("traps", "trapped in branches.head"),
        ("spins", "processor time"),
        ("echoes", "becomes the head"),
        ("webhook_calls_out", "without a signature"),
        ("ranks_trapping", "trapped in policy.rank"),
        ("ranks_nonsense", "charge returned NaN"),
    ] {
        let harness = Harness::new(component(&format!("guests/{name}")));
        let harness = harness.configure(|spec| spec.limits.call.cpu_ms_max = Some(100));
        let failed = conformance(&harness.start().await).await;
        assert!(failed.iter().any(|text| text.contains(expected)), "{name}: {failed:#?}");
    }
}
