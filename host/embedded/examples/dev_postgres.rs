//! A throw-away PostgreSQL cluster for development and tests: `cargo run -p harmonia-embedded --example dev_postgres -- DIR`.
//!
//! Prints the administration URL on one line when the cluster answers, and stops it on SIGTERM, SIGINT or, unless
//! `--stay` is given, when standard input ends. It does not survive a power cut.

use std::path::PathBuf;
use std::process::ExitCode;

use harmonia_embedded::postgres::{PostgresError, PostgresOptions, PrivatePostgres};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> ExitCode {
    let (options, rest): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|word| word.starts_with("--"));
    let [directory] = rest.as_slice() else {
        eprintln!("usage: dev_postgres [--stay] DIR");
        return ExitCode::from(2);
    };
    match run(PathBuf::from(directory), options.iter().any(|option| option == "--stay")).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                eprintln!("  because: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

async fn run(directory: PathBuf, stay: bool) -> Result<(), PostgresError> {
    let data_dir = std::path::absolute(&directory).unwrap_or(directory);
    let io = |cause| PostgresError::Io { doing: "listen for", path: PathBuf::from("signals"), cause };
    let mut terminate = signal(SignalKind::terminate()).map_err(io)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io)?;
    let options = PostgresOptions { durable: false, databases: Vec::new(), ..PostgresOptions::new(data_dir) };
    let postgres = PrivatePostgres::start(options).await?;
    println!("{}", postgres.url("postgres"));
    // A thread of its own: a runtime would wait for the read when it ends.
    let (ended, input_ended) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        drop(std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
        if stay {
            std::mem::forget(ended);
        }
    });
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = input_ended => {}
    }
    postgres.stop().await;
    Ok(())
}
