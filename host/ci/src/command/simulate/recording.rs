//! Writes the queue of the database as `simulate --queue` reads it.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use harmonia_core::simulate::{RECORD_FORMAT, RecordHead, RecordLine};
use harmonia_core::{JobId, Timestamp};

use crate::cli::SimulateArgs;
use crate::config::load;
use crate::exit::{Failure, chain};
use crate::node;

/// Jobs read at once.
const PAGE: u32 = 5_000;

/// Jobs queued within the days asked for, by id.
pub(super) async fn record(args: &SimulateArgs, path: &Path) -> Result<(), Failure> {
    let config = load::load(args.config.as_deref(), &std::env::vars().collect())?;
    let db = node::connect(&config).await?;
    let since = Timestamp::now_utc() - Duration::from_hours(24 * u64::from(args.days));
    let written = |error: std::io::Error| Failure::failed(format!("could not write {}: {error}", path.display()));
    let mut out = BufWriter::new(File::create(path).map_err(written)?);
    line(&mut out, &RecordHead { format: RECORD_FORMAT.to_owned() }).map_err(written)?;
    let (mut after, mut jobs) = (JobId(0), 0_u64);
    loop {
        let page = db.recorded_jobs(since, after, PAGE).await.map_err(|error| Failure::unreachable(chain(&error)))?;
        let Some(last) = page.last() else { break };
        after = last.job;
        jobs += page.len() as u64;
        for job in page {
            let recorded = RecordLine {
                job: job.job.0,
                project: job.project,
                shares: job.shares,
                class: job.class,
                priority: job.priority,
                queued_at_s: job.queued_at.unix_timestamp_nanos() as f64 / 1e9,
                seconds: job.build_seconds,
                inputs: job.inputs.into_iter().map(|input| input.0).collect(),
                name: job.name,
            };
            line(&mut out, &recorded).map_err(written)?;
        }
    }
    out.flush().map_err(written)?;
    eprintln!("recorded {jobs} jobs in {}", path.display());
    Ok(())
}

fn line(out: &mut impl Write, value: &impl serde::Serialize) -> std::io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}
