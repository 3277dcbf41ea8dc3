//! `migrate`: brings the schema up to date; nodes refuse to start on an older one.

use crate::cli::ConfigArgs;
use crate::config::load;
use crate::exit::{Failure, chain};
use crate::node;

/// Applies what is missing and says what that was.
pub(crate) async fn run(args: &ConfigArgs) -> Result<(), Failure> {
    let config = load::load(args.config.as_deref(), &std::env::vars().collect())?;
    let db = node::connect(&config).await?;
    let migrated = db.migrate().await.map_err(|error| Failure::failed(chain(&error)))?;
    if migrated.applied.is_empty() {
        outln!("the schema is up to date");
    }
    for name in &migrated.applied {
        outln!("applied {name}");
    }
    Ok(())
}
