//! The sandbox helper alone, for tests of the evaluator; in production it is a subcommand of the binary.

fn main() {
    harmonia_sandbox::helper_main()
}
