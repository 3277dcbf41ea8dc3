//! Where log lines go and what they look like.

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};
use crate::exit::Failure;

/// Sets the process's log up, once. Lines go to standard error: standard output is for results.
pub(crate) fn set_up(log: &Log) -> Result<(), Failure> {
    // The embedded S3 server reports every refused request as an error of ours; whoever wants that says `s3s=debug`.
    let filter = EnvFilter::try_new(format!("s3s=off,{}", log.level))
        .map_err(|error| Failure::usage(format!("log.level '{}' is no filter: {error}", log.level)))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let done = match log.format {
        LogFormat::Pretty => {
            use std::io::IsTerminal as _;
            builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init()
        }
        LogFormat::Json => builder.json().try_init(),
    };
    done.map_err(|error| Failure::failed(format!("could not set up logging: {error}")))
}
