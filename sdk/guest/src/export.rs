//! The macro that turns a type into a plugin.

/// Makes this crate a plugin, out of a type that implements the traits of its kind.
///
/// ```text
/// harmonia_plugin::export!(MyForge: forge[webhooks, branches]);
/// harmonia_plugin::export!(MyChat: reporter);
/// harmonia_plugin::export!(MyPolicy: scheduler);
/// ```
///
/// Once in a crate, whose `crate-type` has `cdylib`. Every kind needs [`Plugin`](crate::Plugin), and:
///
/// | kind | traits |
/// |---|---|
/// | `forge[…]` | one of [`forge`](crate::forge) for each interface named: `webhooks`, `statuses`, `comments`, `discovery`, `branches`, `pull_requests`, `permissions`, `credentials`, `hooks`, `login` |
/// | `reporter` | [`reporter::Reporter`](crate::reporter::Reporter) |
/// | `scheduler` | [`scheduler::Policy`](crate::scheduler::Policy) |
///
/// A forge lacks what it does not name: the host offers no login through a forge without `login`.
///
/// Every export first installs a panic hook that writes the panic's text to the server's log. Compiled for anything but
/// `wasm32`, the macro only checks that the traits are there, so that the crate's tests run natively.
#[macro_export]
macro_rules! export {
    ($plugin:ty : forge [ $($interface:ident),+ $(,)? ]) => {
        $crate::__export_interface!($plugin, description);
        $( $crate::__export_interface!($plugin, $interface); )+
    };
    ($plugin:ty : reporter) => {
        $crate::__export_interface!($plugin, description);
        $crate::__export_interface!($plugin, reporter);
    };
    ($plugin:ty : scheduler) => {
        $crate::__export_interface!($plugin, description);
        $crate::__export_interface!($plugin, policy);
    };
    ($($other:tt)*) => {
        compile_error!("expected `Type: forge[webhooks, …]`, `Type: reporter` or `Type: scheduler`");
    };
}

/// One interface of a plugin.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_interface {
    ($plugin:ty, description) => {
        $crate::__export_interface!($plugin, description, export_description, $crate::Plugin);
    };
    ($plugin:ty, reporter) => {
        $crate::__export_interface!($plugin, reporter, export_reporter, $crate::reporter::Reporter);
    };
    ($plugin:ty, policy) => {
        $crate::__export_interface!($plugin, policy, export_policy, $crate::scheduler::Policy);
    };
    ($plugin:ty, webhooks) => {
        $crate::__export_interface!($plugin, webhooks, export_webhooks, $crate::forge::Webhooks);
    };
    ($plugin:ty, statuses) => {
        $crate::__export_interface!($plugin, statuses, export_statuses, $crate::forge::Statuses);
    };
    ($plugin:ty, comments) => {
        $crate::__export_interface!($plugin, comments, export_comments, $crate::forge::Comments);
    };
    ($plugin:ty, discovery) => {
        $crate::__export_interface!($plugin, discovery, export_discovery, $crate::forge::Discovery);
    };
    ($plugin:ty, branches) => {
        $crate::__export_interface!($plugin, branches, export_branches, $crate::forge::Branches);
    };
    ($plugin:ty, pull_requests) => {
        $crate::__export_interface!($plugin, pull_requests, export_pull_requests, $crate::forge::PullRequests);
    };
    ($plugin:ty, permissions) => {
        $crate::__export_interface!($plugin, permissions, export_permissions, $crate::forge::Permissions);
    };
    ($plugin:ty, credentials) => {
        $crate::__export_interface!($plugin, credentials, export_credentials, $crate::forge::Credentials);
    };
    ($plugin:ty, hooks) => {
        $crate::__export_interface!($plugin, hooks, export_hooks, $crate::forge::Hooks);
    };
    ($plugin:ty, login) => {
        $crate::__export_interface!($plugin, login, export_login, $crate::forge::Login);
    };
    ($plugin:ty, $unknown:ident) => {
        compile_error!(concat!(
            "a forge has no interface `",
            stringify!($unknown),
            "`; there are webhooks, statuses, comments, discovery, ",
            "branches, pull_requests, permissions, credentials, hooks and login"
        ));
    };
    ($plugin:ty, $module:ident, $export:ident, $required:path) => {
        const _: () = {
            const fn implements<Plugin: $required>() {}
            implements::<$plugin>();

            // The names of exports mean something else to a native linker, and nothing would call them.
            #[cfg(target_arch = "wasm32")]
            type Exported = $crate::bindings::Adapter<$plugin>;
            #[cfg(target_arch = "wasm32")]
    $crate::bindings::$module::$export!(Exported with_types_in $crate::bindings::$module);
        };
    };
}
