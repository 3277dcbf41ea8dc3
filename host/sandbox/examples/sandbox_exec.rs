//! The helper alone, for the tests of this crate: a specification on standard input, then the program's own input.

fn main() {
    harmonia_sandbox::helper_main_with(|input| {
        print!("builtin {}", String::from_utf8_lossy(input));
        0
    })
}
