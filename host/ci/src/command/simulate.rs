//! `simulate`: what a scheduling policy would make of a recorded or generated queue; with `--record`, records the queue.

mod component;
mod recording;

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use harmonia_core::policy::{FirstInFirstOut, Policy};
use harmonia_core::simulate::{self, Fleet, Generated, Outcome, Shape, Workload};

use crate::cli::{QueueShape, SimulateArgs};
use crate::exit::{Failure, chain};
use crate::table::Table;

/// Most slots of a fleet: the simulator keeps something for each builder.
const SLOTS_MAX: u64 = 10_000_000;
/// Projects that the table shows.
const PROJECTS_SHOWN: usize = 30;

/// Records, or simulates and prints.
pub(crate) async fn run(args: SimulateArgs) -> Result<(), Failure> {
    if let Some(file) = &args.record {
        return recording::record(&args, file).await;
    }
    let fleet = Fleet { builders: args.builders, slots: args.slots };
    if fleet.slots_total() == 0 || fleet.slots_total() > SLOTS_MAX {
        return Err(Failure::usage(format!("--builders times --slots must be 1 to {SLOTS_MAX}")));
    }
    let policy: Arc<dyn Policy> = match &args.policy {
        Some(file) => component::policy(file).await?,
        None => Arc::new(FirstInFirstOut),
    };
    let svg = args.svg.clone();
    let (json, title) = (args.json, title(&args));
    let work = move || {
        let workload = workload(&args, fleet)?;
        let start = Instant::now();
        Ok::<_, Failure>((simulate::run(&workload, fleet, &*policy), start.elapsed()))
    };
    let simulated = tokio::task::spawn_blocking(work).await;
    let (outcome, took) = simulated.map_err(|error| Failure::failed(format!("the simulation ended: {error}")))??;
    if let Some(file) = &svg {
        std::fs::write(file, simulate::svg(&outcome, &title))
            .map_err(|error| Failure::failed(format!("could not write {}: {error}", file.display())))?;
    }
    if json {
        let text = serde_json::to_string_pretty(&outcome).map_err(|error| Failure::failed(error.to_string()))?;
        outln!("{text}");
    } else {
        print(&outcome, took);
    }
    if outcome.policy.failures > 0 {
        let first = outcome.policy.first.as_deref().unwrap_or_default();
        eprintln!(
            "warning: the policy failed in {} calls, which fell back to first in, first out; the first: {first}",
            outcome.policy.failures
        );
    }
    Ok(())
}

fn title(args: &SimulateArgs) -> String {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let policy = args.policy.as_deref().map_or_else(|| "first in, first out".to_owned(), name);
    let queue = args.queue.as_deref().map_or_else(|| format!("generated, seed {}", args.seed), name);
    format!("{policy} · {queue}")
}

fn workload(args: &SimulateArgs, fleet: Fleet) -> Result<Workload, Failure> {
    if let Some(path) = &args.queue {
        let file =
            File::open(path).map_err(|error| Failure::usage(format!("could not open {}: {error}", path.display())))?;
        return simulate::read_record(BufReader::new(file))
            .map_err(|error| Failure::usage(format!("{}: {}", path.display(), chain(&error))));
    }
    let shape = match args.shape {
        QueueShape::Layered => Shape::Layered,
        QueueShape::Wide => Shape::Wide,
        QueueShape::Deep => Shape::Deep,
    };
    let mut wanted =
        Generated { jobs: args.jobs, projects: args.projects, arrive_within_s: 0.0, shape, seed: args.seed };
    let generate = |wanted: &Generated| simulate::generate(wanted).map_err(|error| Failure::usage(chain(&error)));
    wanted.arrive_within_s = match args.arrive_within_s {
        Some(seconds) if seconds.is_finite() && seconds >= 0.0 => seconds,
        Some(_) => return Err(Failure::usage("--arrive-within-s must be a number of seconds")),
        // Half the time that the work takes: so that evaluations meet. The times of builds do not depend on it.
        None => generate(&wanted)?.bounds(fleet.slots_total()).work_over_slots_s / 2.0,
    };
    generate(&wanted)
}

fn print(outcome: &Outcome, took: Duration) {
    let mut table = Table::new(&["PROJECT", "SHARES", "JOBS", "WORK", "WAIT mean", "p50", "p95", "max", "LAST JOB"]);
    let mut projects: Vec<_> = outcome.projects.iter().filter(|project| project.jobs > 0).collect();
    projects.sort_by(|a, b| b.work_s.total_cmp(&a.work_s));
    let waits = |waits: &simulate::Waits| [waits.mean_s, waits.p50_s, waits.p95_s, waits.max_s].map(span);
    for project in projects.iter().take(PROJECTS_SHOWN) {
        let [mean, p50, p95, max] = waits(&project.waits);
        let (shares, jobs) = (project.shares.to_string(), project.jobs.to_string());
        table.row([
            project.name.clone(),
            shares,
            jobs,
            span(project.work_s),
            mean,
            p50,
            p95,
            max,
            span(project.finished_at_s),
        ]);
    }
    let [mean, p50, p95, max] = waits(&outcome.waits);
    let work = span(outcome.bounds.work_s);
    table.row([
        "all".to_owned(),
        String::new(),
        outcome.jobs.to_string(),
        work,
        mean,
        p50,
        p95,
        max,
        span(outcome.makespan_s),
    ]);
    out!("{table}");
    if projects.len() > PROJECTS_SHOWN {
        outln!("({} smaller projects are not shown; --json has them)", projects.len() - PROJECTS_SHOWN);
    }
    let bounds = outcome.bounds;
    outln!("");
    outln!("builders     {} with {} slots in all", outcome.builders, outcome.slots);
    outln!(
        "makespan     {} ({:.2} × the least possible: critical path {}, work over slots {})",
        span(outcome.makespan_s),
        outcome.makespan_s / bounds.makespan_s().max(f64::MIN_POSITIVE),
        span(bounds.critical_path_s),
        span(bounds.work_over_slots_s),
    );
    outln!("utilisation  {:.1} %", 100.0 * outcome.utilisation);
    match outcome.fairness {
        Some(index) => {
            outln!("fairness     {index:.4} (Jain's index of slot time over shares, mean of contended windows)");
        }
        None => outln!("fairness     no window was contended"),
    }
    outln!(
        "simulated    {} calls of the policy in {:.1} s ({:.0} jobs a second)",
        outcome.policy.ranks,
        took.as_secs_f64(),
        outcome.jobs as f64 / took.as_secs_f64().max(f64::MIN_POSITIVE)
    );
}

fn span(seconds: f64) -> String {
    match seconds {
        s if s < 100.0 => format!("{s:.1}s"),
        s if s < 6_000.0 => format!("{:.0}m{:02.0}s", (s / 60.0).floor(), (s % 60.0).floor()),
        s => format!("{:.0}h{:02.0}m", (s / 3600.0).floor(), (s % 3600.0 / 60.0).floor()),
    }
}

#[cfg(test)]
mod tests {
    use super::span;

    #[test]
    fn spans_are_short() {
        let cases = [(0.0, "0.0s"), (99.94, "99.9s"), (119.9, "1m59s"), (3601.0, "60m01s"), (7260.0, "2h01m")];
        for (seconds, expected) in cases {
            assert_eq!(span(seconds), expected);
        }
    }
}
