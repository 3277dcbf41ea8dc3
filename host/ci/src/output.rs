//! What the commands print: start at [`write`]. `outln!` and `out!` are `println!` and `print!` that end the program in order
//! when nobody reads any more (`harmonia-ci evals | head -n 1`), and with an error when the output cannot be written.

use std::fmt::Arguments;
use std::io::{self, Write as _};
use std::process;

/// What a shell reports of a program that was ended by `SIGPIPE`, as programs in a pipe usually are.
const NOBODY_READS: i32 = 141;

/// Prints a line on standard output.
macro_rules! outln {
    ($($text:tt)*) => { $crate::output::write(format_args!("{}\n", format_args!($($text)*))) };
}

/// Prints on standard output.
macro_rules! out {
    ($($text:tt)*) => { $crate::output::write(format_args!($($text)*)) };
}

/// Writes to standard output, or ends the program.
pub(crate) fn write(text: Arguments<'_>) {
    let mut output = io::stdout().lock();
    let Err(error) = output.write_fmt(text).and_then(|()| output.flush()) else { return };
    if error.kind() == io::ErrorKind::BrokenPipe {
        process::exit(NOBODY_READS);
    }
    eprintln!("error: could not write to standard output: {error}");
    process::exit(1);
}

/// Says that a server answers. Whether anybody reads that is no matter to the server.
pub(crate) fn say_ready(url: &impl std::fmt::Display) {
    let mut output = io::stdout().lock();
    drop(output.write_fmt(format_args!("ready {url}ci/\n")).and_then(|()| output.flush()));
}
