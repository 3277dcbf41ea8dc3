//! A throw-away PostgreSQL cluster for development and tests: `cargo run -p harmonia-embedded --example dev_postgres -- DIR`.
//!
//! Prints the administration URL on one line when the cluster answers, and stops it on SIGTERM, SIGINT or, unless
//! `--stay` is given, when standard input ends. It does not survive a power cut.

use std::path::PathBuf;
use std::process::ExitCode;

use harmonia_embedded::postgres::{PostgresError, PostgresOptions, PrivatePostgres};
use tokio::io::AsyncReadExt;
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
    let input_ends = async {
        if stay {
            std::future::pending::<()>().await;
        }
        let mut input = tokio::io::stdin();
        let mut buffer = [0; 256];
        while input.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = input_ends => {}
    }
    postgres.stop().await;
    // The runtime would wait for the blocking read of standard input.
    std::process::exit(0);
}
