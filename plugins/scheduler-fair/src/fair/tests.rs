use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn load(project: u64, shares: u32, consumed_seconds: f64, running: u32) -> Load {
    Load { project, shares, consumed_seconds, running }
}

fn head(job: u64, project: u64) -> Head {
    Head { job, project, priority: 0 }
}

/// `count` jobs for each of the projects, ids rising project by project.
fn queues(projects: &[u64], count: u64) -> Vec<Head> {
    projects.iter().flat_map(|project| (0..count).map(move |n| head(project * 100 + n, *project))).collect()
}

/// What it shows, loads, heads, and the jobs in the order wanted.
type Case = (&'static str, Vec<Load>, Vec<Head>, Vec<u64>);

#[test]
fn who_consumed_least_for_its_shares_goes_first() {
    let cases: [Case; 8] = [
        ("nothing", vec![], vec![], vec![]),
        ("less consumed", vec![load(1, 100, 500.0, 0), load(2, 100, 20.0, 0)], queues(&[1, 2], 1), vec![200, 100]),
        ("more shares", vec![load(1, 100, 50.0, 0), load(2, 300, 120.0, 0)], queues(&[1, 2], 1), vec![200, 100]),
        (
            "running counts in advance",
            vec![load(1, 100, 0.0, 3), load(2, 100, 20.0, 0)],
            queues(&[1, 2], 1),
            vec![200, 100],
        ),
        (
            "equal: first in, first out",
            vec![load(1, 100, 0.0, 0), load(2, 100, 0.0, 0)],
            queues(&[1, 2], 2),
            vec![100, 200, 101, 201],
        ),
        ("a project nobody described consumed nothing", vec![load(1, 100, 1.0, 0)], queues(&[1, 2], 1), vec![200, 100]),
        (
            "within a project: boosted, then the oldest",
            vec![load(1, 100, 0.0, 0)],
            vec![head(5, 1), head(3, 1), Head { priority: 100, ..head(9, 1) }],
            vec![9, 3, 5],
        ),
        ("no number", vec![load(1, 0, f64::NAN, 0), load(2, 1, 1e300, 0)], queues(&[1, 2], 1), vec![200, 100]),
    ];
    for (name, loads, heads, expected) in cases {
        assert_eq!(order(&loads, &heads), expected, "{name}");
    }
}

#[test]
fn slots_of_one_claim_are_shared_out() {
    // Equal accounts: every other slot each.
    let equal = order(&[load(1, 100, 0.0, 0), load(2, 100, 0.0, 0)], &queues(&[1, 2], 4));
    assert_eq!(equal, [100, 200, 101, 201, 102, 202, 103, 203]);
    // Three times the shares: three slots of four.
    let shares = order(&[load(1, 300, 0.0, 0), load(2, 100, 0.0, 0)], &queues(&[1, 2], 8));
    assert_eq!(shares[..8].iter().filter(|job| **job < 200).count(), 6, "{shares:?}");
    // Somebody far behind gets everything until the estimates make up for it: 40 s at 10 s a job.
    let behind = order(&[load(1, 100, 40.0, 0), load(2, 100, 0.0, 0)], &queues(&[1, 2], 8));
    assert_eq!(behind[..6], [200, 201, 202, 203, 100, 204]);
}

#[test]
fn consumption_adds_up_and_fades_by_the_hour() {
    assert!((charge(10.0, 5.0) - 15.0).abs() < 1e-12);
    for (hours, left) in [(0.0, 1.0), (1.0, 0.95), (2.0, 0.9025), (13.513_407, 0.5)] {
        assert!((decay(1000.0, hours * 3600.0) - 1000.0 * left).abs() < 1e-3, "after {hours} h");
    }
    assert!(decay(1e9, 1e9) < 1e-9, "an old debt is forgotten");
}

fn a_queue() -> impl Strategy<Value = (Vec<Load>, Vec<Head>)> {
    let loads = prop::collection::vec((1_u32..1000, 0.0_f64..1e7, 0_u32..50), 1..12).prop_map(|loads| {
        (1..)
            .zip(loads)
            .map(|(project, (shares, consumed, running))| load(project, shares, consumed, running))
            .collect()
    });
    let heads = prop::collection::vec((1_u64..14, 0_i32..2), 0..60)
        .prop_map(|heads| (1..).zip(heads).map(|(job, (project, priority))| Head { job, project, priority }).collect());
    (loads, heads)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_job_once_and_the_smallest_account_first((loads, heads) in a_queue()) {
        let ranked = order(&loads, &heads);
        let mut sorted = ranked.clone();
        sorted.sort_unstable();
        let all: Vec<u64> = heads.iter().map(|head| head.job).collect();
        prop_assert_eq!(sorted, all);
        // FakeNode back: whoever is picked has, at that moment, no larger account than anybody who still waits.
        let mut accounts: HashMap<u64, Load> = heads.iter().map(|head| (head.project, load(head.project, 100, 0.0, 0))).collect();
        for load in &loads {
            accounts.entry(load.project).and_modify(|known| *known = *load);
        }
        let project_of: HashMap<u64, u64> = heads.iter().map(|head| (head.job, head.project)).collect();
        for (place, job) in ranked.iter().enumerate() {
            let picked = account(&accounts[&project_of[job]]);
            for waiting in &ranked[place..] {
                prop_assert!(picked <= account(&accounts[&project_of[waiting]]));
            }
            accounts.entry(project_of[job]).and_modify(|load| load.running += 1);
        }
    }

    #[test]
    fn the_order_does_not_depend_on_how_candidates_are_listed((loads, heads) in a_queue()) {
        let (mut loads_reversed, mut heads_reversed) = (loads.clone(), heads.clone());
        loads_reversed.reverse();
        heads_reversed.reverse();
        prop_assert_eq!(order(&loads, &heads), order(&loads_reversed, &heads_reversed));
    }

    #[test]
    fn charges_and_decay_come_to_the_same_in_one_step_or_many(consumed in 0.0_f64..1e7, a in 0.0_f64..1e5, b in 0.0_f64..1e5) {
        prop_assert!((charge(charge(consumed, a), b) - charge(consumed, a + b)).abs() < 1e-6);
        prop_assert!((decay(decay(consumed, a), b) - decay(consumed, a + b)).abs() < 1e-6 * consumed.max(1.0));
        prop_assert!(decay(consumed, a) <= consumed);
    }
}
