use proptest::prelude::*;

use super::*;
use crate::ids::JobId;
use crate::policy::{AskingNode, Candidate, FirstInFirstOut, Policy, PolicyError, ProjectLoad};

fn projects(shares: &[u32]) -> Vec<SimulatedProject> {
    shares.iter().enumerate().map(|(n, shares)| SimulatedProject { name: format!("p{n}"), shares: *shares }).collect()
}

fn job(project: u32, queued_at_s: f64, seconds: f64, inputs: &[u32]) -> SimulatedJob {
    SimulatedJob { project, class: 1, priority: 0, queued_at_s, seconds, inputs: inputs.to_vec() }
}

fn workload(shares: &[u32], jobs: Vec<SimulatedJob>) -> Workload {
    Workload::new(projects(shares), jobs).expect("a workload")
}

fn one_slot() -> Fleet {
    Fleet { builders: 1, slots: 1 }
}

/// The smallest account for its shares first, with 10 seconds for what runs or was picked: the default policy in short.
struct Shares;
impl Policy for Shares {
    fn rank(
        &self,
        _: &AskingNode,
        projects: &[ProjectLoad],
        candidates: &[Candidate],
    ) -> Result<Vec<JobId>, PolicyError> {
        let mut picked: Vec<u32> = projects.iter().map(|load| load.running).collect();
        let mut left: Vec<&Candidate> = candidates.iter().collect();
        let mut order = Vec::new();
        while !left.is_empty() {
            let account = |candidate: &Candidate| {
                let place = projects.iter().position(|load| load.project == candidate.project).expect("described");
                let load = &projects[place];
                (load.consumed_seconds + 10.0 * f64::from(picked[place])) / f64::from(load.shares)
            };
            let best = (0..left.len())
                .min_by(|a, b| account(left[*a]).total_cmp(&account(left[*b])).then(left[*a].job.cmp(&left[*b].job)))
                .expect("not empty");
            let candidate = left.swap_remove(best);
            picked[projects.iter().position(|load| load.project == candidate.project).expect("described")] += 1;
            order.push(candidate.job);
        }
        Ok(order)
    }
    fn charge(&self, charges: &[(ProjectLoad, f64)]) -> Result<Vec<f64>, PolicyError> {
        FirstInFirstOut.charge(charges)
    }
    fn decay(&self, consumed_seconds: &[f64], seconds: f64) -> Result<Vec<f64>, PolicyError> {
        FirstInFirstOut.decay(consumed_seconds, seconds)
    }
}

#[test]
fn small_queues_go_as_by_hand() {
    // One slot, three jobs of 10 s: one after the other.
    let three = workload(&[100], vec![job(0, 0.0, 10.0, &[]), job(0, 0.0, 10.0, &[]), job(0, 5.0, 10.0, &[])]);
    let outcome = run(&three, one_slot(), &FirstInFirstOut);
    assert_eq!(outcome.spans_s, [(0.0, 10.0), (10.0, 20.0), (20.0, 30.0)]);
    assert_eq!((outcome.makespan_s, outcome.utilisation), (30.0, 1.0));
    assert_eq!(outcome.waits, Waits { mean_s: 25.0 / 3.0, p50_s: 10.0, p95_s: 15.0, max_s: 15.0 });

    // A diamond on two slots, its last job waits for both sides: 1 + 4 + 2, while a slot is empty.
    let diamond = workload(
        &[100],
        vec![job(0, 0.0, 1.0, &[]), job(0, 0.0, 4.0, &[0]), job(0, 0.0, 3.0, &[0]), job(0, 0.0, 2.0, &[1, 2])],
    );
    let outcome = run(&diamond, Fleet { builders: 2, slots: 1 }, &FirstInFirstOut);
    assert_eq!(outcome.spans_s, [(0.0, 1.0), (1.0, 5.0), (1.0, 4.0), (5.0, 7.0)]);
    assert_eq!(outcome.bounds, Bounds { critical_path_s: 7.0, work_s: 10.0, work_over_slots_s: 5.0 });
    assert!((outcome.utilisation - 10.0 / 14.0).abs() < 1e-12);

    // A boosted job goes before older ones, whatever the policy.
    let boosted = SimulatedJob { priority: 100, ..job(0, 1.0, 1.0, &[]) };
    let queue = workload(&[100], vec![job(0, 0.0, 5.0, &[]), job(0, 0.0, 5.0, &[]), boosted]);
    assert_eq!(run(&queue, one_slot(), &FirstInFirstOut).spans_s, [(0.0, 5.0), (6.0, 11.0), (5.0, 6.0)]);

    // A late job finds an idle builder; nothing is contended.
    let late = workload(&[100], vec![job(0, 100.0, 1.0, &[])]);
    let outcome = run(&late, one_slot(), &FirstInFirstOut);
    assert_eq!((outcome.spans_s[0], outcome.fairness, outcome.waits.max_s), ((100.0, 101.0), None, 0.0));
}

#[test]
fn nothing_to_do_and_nobody_to_do_it_end_at_once() {
    let empty = run(&workload(&[100], vec![]), one_slot(), &FirstInFirstOut);
    assert_eq!((empty.jobs, empty.makespan_s, empty.utilisation), (0, 0.0, 0.0));
    let nobody = run(&workload(&[100], vec![job(0, 0.0, 1.0, &[])]), Fleet { builders: 0, slots: 4 }, &FirstInFirstOut);
    assert_eq!((nobody.jobs, nobody.makespan_s), (0, 0.0));
}

#[test]
fn jains_index() {
    let index = |amounts: &[f64]| jain(amounts).expect("somebody");
    assert_eq!(jain(&[]), None);
    assert!((index(&[3.0, 3.0, 3.0]) - 1.0).abs() < 1e-12, "equal shares");
    assert!((index(&[9.0, 0.0, 0.0]) - 1.0 / 3.0).abs() < 1e-12, "one has it all");
    assert!((index(&[1.0, 2.0, 3.0]) - 36.0 / 42.0).abs() < 1e-12);
    assert!((index(&[0.0, 0.0]) - 1.0).abs() < 1e-12);
}

/// A project that queued everything a moment before another: 2,000 jobs of 10 s each, 8 slots.
fn one_after_the_other(shares: &[u32]) -> Workload {
    let jobs = (0..4_000).map(|n| job(n / 2_000, if n < 2_000 { 0.0 } else { 1.0 }, 10.0, &[]));
    workload(shares, jobs.collect())
}

#[test]
fn shares_make_it_fair_where_first_come_is_not() {
    let fleet = Fleet { builders: 8, slots: 1 };
    let first_come = run(&one_after_the_other(&[100, 100]), fleet, &FirstInFirstOut);
    assert!(first_come.fairness.is_some_and(|index| index < 0.55), "{:?}", first_come.fairness);
    let fair = run(&one_after_the_other(&[100, 100]), fleet, &Shares);
    assert!(fair.fairness.is_some_and(|index| index > 0.95), "{:?}", fair.fairness);
    assert!(fair.projects[1].waits.p50_s < 0.8 * first_come.projects[1].waits.p50_s);
    // Work is conserved: nobody is faster in total.
    assert!((fair.makespan_s - first_come.makespan_s).abs() < 30.0);
    // Three times the shares, three times the slots, which is what the index calls fair.
    let weighted = run(&one_after_the_other(&[300, 100]), fleet, &Shares);
    assert!(weighted.fairness.is_some_and(|index| index > 0.95), "{:?}", weighted.fairness);
    assert!(weighted.projects[0].finished_at_s < 0.75 * weighted.projects[1].finished_at_s);
}

/// Gives nothing, or nonsense, or fails.
struct Broken(u8);
impl Policy for Broken {
    fn rank(&self, _: &AskingNode, _: &[ProjectLoad], _: &[Candidate]) -> Result<Vec<JobId>, PolicyError> {
        match self.0 {
            0 => Ok(Vec::new()),
            1 => Ok(vec![JobId(-1), JobId(i64::MAX)]),
            _ => Err(PolicyError { reason: "it trapped".to_owned() }),
        }
    }
    fn charge(&self, _: &[(ProjectLoad, f64)]) -> Result<Vec<f64>, PolicyError> {
        Ok(vec![f64::NAN])
    }
    fn decay(&self, _: &[f64], _: f64) -> Result<Vec<f64>, PolicyError> {
        Ok(Vec::new())
    }
}

#[test]
fn a_broken_policy_is_first_in_first_out_and_counted() {
    let queue = one_after_the_other(&[100, 100]);
    let fleet = Fleet { builders: 4, slots: 2 };
    let expected = run(&queue, fleet, &FirstInFirstOut);
    for kind in 0..3 {
        let outcome = run(&queue, fleet, &Broken(kind));
        assert_eq!(outcome.spans_s, expected.spans_s, "kind {kind}");
        assert!(
            outcome.policy.failures >= outcome.policy.ranks && outcome.policy.first.is_some(),
            "{:?}",
            outcome.policy
        );
    }
}

#[test]
fn generated_workloads_follow_from_their_seed() {
    let wanted = Generated { jobs: 20_000, projects: 20, arrive_within_s: 600.0, shape: Shape::Layered, seed: 7 };
    let one = generate(&wanted).expect("a workload");
    assert_eq!(one, generate(&wanted).expect("a workload"), "the same seed, the same jobs");
    assert_ne!(one, generate(&Generated { seed: 8, ..wanted }).expect("a workload"));
    assert_eq!(one.jobs().len(), 20_000);
    let of = |project| one.jobs().iter().filter(|job| job.project == project).count();
    assert!(of(0) > 5 * of(9) && of(9) > 0, "Zipf: {} and {}", of(0), of(9));
    let edges: usize = one.jobs().iter().map(|job| job.inputs.len()).sum();
    assert!((1.5..4.5).contains(&(edges as f64 / 20_000.0)), "{edges} edges");
    let mut seconds: Vec<f64> = one.jobs().iter().map(|job| job.seconds).collect();
    seconds.sort_unstable_by(f64::total_cmp);
    assert!((10.0..14.0).contains(&seconds[10_000]) && seconds[19_990] > 600.0, "heavy-tailed");
    assert!(one.jobs().windows(2).all(|pair| pair[0].queued_at_s <= pair[1].queued_at_s), "ids are ages");
    let deepest = |shape| {
        let queue = generate(&Generated { shape, ..wanted }).expect("a workload");
        queue.path_lengths.iter().copied().max().expect("jobs")
    };
    assert_eq!(deepest(Shape::Wide), 1);
    assert!(deepest(Shape::Deep) > deepest(Shape::Layered));
}

#[test]
fn the_default_shapes_keep_many_builders_busy() {
    let wanted = Generated { jobs: 20_000, projects: 30, arrive_within_s: 0.0, shape: Shape::Wide, seed: 1 };
    let queue = generate(&wanted).expect("a workload");
    let outcome = run(&queue, Fleet { builders: 100, slots: 2 }, &Shares);
    assert_eq!(outcome.jobs, 20_000);
    assert!(outcome.makespan_s < 2.0 * outcome.bounds.makespan_s(), "{} of {:?}", outcome.makespan_s, outcome.bounds);
    let picture = svg(&outcome, "a <b> & \"c\"");
    assert!(picture.contains("a &lt;b&gt; &amp; &quot;c&quot;") && picture.ends_with("</svg>\n"));
    assert!(picture.contains("project-1<") && picture.contains("100 %"));
    assert!(!picture.contains("NaN") && !picture.contains("inf"));
}

#[test]
fn recorded_queues_are_read_and_others_refused() {
    let file = format!(
        "{{\"format\":\"{RECORD_FORMAT}\"}}\n{}\n{}\n\n{}\n",
        r#"{"job":12,"project":"b","seconds":4,"inputs":[7,3],"queued_at_s":1005.5,"class":"x"}"#,
        r#"{"job":7,"project":"a","shares":300,"seconds":2.5,"queued_at_s":1000,"priority":100}"#,
        r#"{"job":13,"project":"b","inputs":[12],"queued_at_s":1006}"#,
    );
    let queue = read_record(file.as_bytes()).expect("a queue");
    let expected = workload(
        &[300, 100],
        vec![
            SimulatedJob { priority: 100, ..job(0, 0.0, 2.5, &[]) },
            SimulatedJob { class: 2, ..job(1, 5.5, 4.0, &[0]) },
            job(1, 6.0, 4.0, &[1]),
        ],
    );
    assert_eq!(queue.jobs(), expected.jobs(), "older first; unknown inputs are built; unknown times are the median");
    assert_eq!(queue.projects()[0], SimulatedProject { name: "a".to_owned(), shares: 300 });
    let refused = |text: &str| read_record(text.as_bytes()).expect_err("refused").to_string();
    let head = format!("{{\"format\":\"{RECORD_FORMAT}\"}}\n");
    assert!(refused("").contains("no recorded queue"));
    assert!(refused("{\"job\":1}\n").contains("no recorded queue"));
    assert!(refused(&format!("{head}{{}}\n")).contains("line 2"));
    assert!(refused(&format!("{head}{0}{0}", "{\"job\":1,\"project\":\"a\"}\n")).contains("job 1 is there twice"));
    let circle = "{\"job\":1,\"project\":\"a\",\"inputs\":[2]}\n{\"job\":2,\"project\":\"a\",\"inputs\":[1]}\n";
    assert!(refused(&format!("{head}{circle}")).contains("cannot be replayed"));
    assert!(refused(&format!("{head}{{\"job\":1,\"project\":\"a\",\"seconds\":-1}}\n")).contains("cannot be replayed"));
    assert!(refused(&format!("{head}{}", "x".repeat(5 << 20))).contains("beyond"));
}

fn any_workload() -> impl Strategy<Value = Workload> {
    let jobs = prop::collection::vec(
        (0_u32..4, 0_i32..2, 0.0_f64..50.0, 0.0_f64..30.0, prop::collection::vec(any::<prop::sample::Index>(), 0..3)),
        1..60,
    );
    (prop::collection::vec(1_u32..400, 4), jobs).prop_map(|(shares, jobs)| {
        let jobs = jobs.into_iter().enumerate().map(|(n, (project, priority, queued_at_s, seconds, inputs))| {
            let mut inputs: Vec<u32> =
                if n == 0 { Vec::new() } else { inputs.iter().map(|input| input.index(n) as u32).collect() };
            inputs.sort_unstable();
            inputs.dedup();
            SimulatedJob { project, class: 1, priority: priority * 100, queued_at_s, seconds, inputs }
        });
        workload(&shares, jobs.collect())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_job_runs_once_after_its_inputs_on_no_more_slots_than_there_are(
        queue in any_workload(), builders in 1_u32..5, slots in 1_u32..4, fair in any::<bool>()
    ) {
        let fleet = Fleet { builders, slots };
        let policy: &dyn Policy = if fair { &Shares } else { &FirstInFirstOut };
        let outcome = run(&queue, fleet, policy);
        prop_assert_eq!(outcome.jobs as usize, queue.jobs().len());
        for (job, (start, end)) in queue.jobs().iter().zip(&outcome.spans_s) {
            prop_assert!(*start >= job.queued_at_s && (end - start - job.seconds).abs() < 1e-9);
            for input in &job.inputs {
                prop_assert!(*start >= outcome.spans_s[*input as usize].1, "before its input");
            }
        }
        // At each start, those that run (including it) fit the slots.
        for (start, _) in &outcome.spans_s {
            let running = outcome.spans_s.iter().filter(|(from, to)| from <= start && start < to).count();
            prop_assert!(running as u64 <= fleet.slots_total());
        }
        prop_assert!(outcome.makespan_s >= outcome.bounds.makespan_s() - 1e-6);
        prop_assert!(outcome.utilisation <= 1.0 + 1e-9);
        prop_assert!(outcome.timeline.iter().all(|sample| sample.utilisation <= 1.0 + 1e-9));
        prop_assert!(outcome.fairness.is_none_or(|index| index > 0.0 && index <= 1.0 + 1e-9));
        // No slot idles while a ready job waits: list scheduling ends within twice the least (Graham 1966), counted from
        // the last arrival.
        let arrived = queue.jobs().iter().map(|job| job.queued_at_s).fold(0.0, f64::max);
        prop_assert!(outcome.makespan_s <= arrived + 2.0 * outcome.bounds.makespan_s() + 1e-6);
        prop_assert_eq!(run(&queue, fleet, policy), outcome, "the same again");
    }
}
