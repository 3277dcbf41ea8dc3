//! The helper that starts builders, alone, for the tests of this crate.

fn main() {
    harmonia_daemon::build::helper_main()
}
