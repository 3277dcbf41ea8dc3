//! `harmonia-plugin-build`: see [`harmonia_plugin_build::arguments::USAGE`].

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use harmonia_plugin_build::arguments::{self, Command, USAGE};
use harmonia_plugin_build::component::{Component, ComponentError};

fn main() -> ExitCode {
    match arguments::parse(std::env::args().skip(1)) {
        Ok(Command::Help) => {
            print!("{USAGE}");
            ExitCode::SUCCESS
        }
        Ok(Command::Check(files)) => {
            let results: Vec<_> = files.iter().map(|file| check(file)).collect();
            if results.contains(&false) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Ok(Command::Build(build)) => match harmonia_plugin_build::build(&build) {
            Ok(results) => finish(results),
            Err(error) => fail(&error),
        },
        Err(text) => {
            eprint!("{text}\n\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn finish(results: Vec<Result<harmonia_plugin_build::Built, harmonia_plugin_build::BuildError>>) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for result in results {
        match result {
            Ok(built) => {
                let same = if built.unchanged { " (unchanged)" } else { "" };
                println!("{:<36} {}{same}", built.name, built.component);
            }
            Err(error) => code = fail(&error),
        }
    }
    code
}

fn check(file: &Path) -> bool {
    let component = std::fs::read(file).map_err(ComponentError::Read).and_then(|bytes| Component::read(&bytes));
    match component.and_then(|component| component.check().map(|()| component)) {
        Ok(component) => {
            println!("{:<36} {component}", file.display());
            true
        }
        Err(error) => {
            eprintln!("{}:", file.display());
            fail(&error);
            false
        }
    }
}

fn fail(error: &dyn Error) -> ExitCode {
    eprintln!("error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  because: {error}");
        cause = error.source();
    }
    ExitCode::FAILURE
}
