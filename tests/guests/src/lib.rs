//! Guest programs, one for each behaviour of the plugin host, good and bad: see `examples/`. Each is a component of its own,
//! `guests/<name>.wasm`; `tests/hostile` calls them.
//!
//! Most are forges of one function: `branches.head(repository, branch)` takes its argument as `branch` and answers in
//! `commit`, because that call may use everything that a plugin may.

pub use harmonia_plugin;

/// A guest of one function, from text to text.
#[macro_export]
macro_rules! guest {
    ($run:expr) => {
        struct Guest;

        impl $crate::harmonia_plugin::Plugin for Guest {
            fn describe() -> $crate::harmonia_plugin::Description {
                $crate::harmonia_plugin::Description::new("guest", "0.0.1", "A program that tests the plugin host.")
            }
        }

        impl $crate::harmonia_plugin::forge::Branches for Guest {
            fn branch_head(
                _: $crate::harmonia_plugin::forge::RepositoryRef,
                branch: String,
            ) -> Result<$crate::harmonia_plugin::forge::BranchHead, $crate::harmonia_plugin::forge::Error> {
                let run: fn(&str) -> Result<String, $crate::harmonia_plugin::forge::Error> = $run;
                run(&branch).map(|commit| $crate::harmonia_plugin::forge::BranchHead {
                    commit,
                    author: String::new(),
                    message: String::new(),
                })
            }

            fn tree_hash(
                _: $crate::harmonia_plugin::forge::RepositoryRef,
                commit: String,
            ) -> Result<String, $crate::harmonia_plugin::forge::Error> {
                Ok(commit)
            }
        }

        $crate::harmonia_plugin::export!(Guest: forge[branches]);
    };
}
