//! What wit-bindgen makes of the WIT packages: one world with everything a plugin may import, and one small world for each
//! interface that it may export, because a plugin has some of them and lacks others. wit-component joins the worlds of
//! those that [`export!`](crate::export) picked, and drops the imports that nothing calls.
//!
//! Authors use the modules of the crate's root; this one is public only because the macro reaches into it.

#![expect(clippy::same_length_and_capacity, reason = "generated")]

use std::marker::PhantomData;

/// Stands between the generated traits and the ones of this crate, so that every call first installs the panic hook.
pub struct Adapter<Plugin>(PhantomData<Plugin>);

/// Everything that a plugin may import, and the types that exports share.
pub mod imports {
    wit_bindgen::generate!({
        path: ["../../wit/plugin/0.1", "../../wit/forge/0.1"],
        inline: "
            package harmonia:sdk;
            world sdk-imports {
                include harmonia:plugin/connected@0.1.0;
                import harmonia:forge/types@0.1.0;
            }
        ",
        world: "sdk-imports",
        generate_all,
        generate_unused_types: true,
        additional_derives: [PartialEq],
        additional_derives_ignore: ["auth", "request", "response"],
    });
}

/// `harmonia:plugin/description`.
pub mod description {
    wit_bindgen::generate!({
        path: ["../../wit/plugin/0.1"],
        inline: "
            package harmonia:sdk;
            world sdk-description { export harmonia:plugin/description@0.1.0; }
        ",
        world: "sdk-description",
        generate_all,
        additional_derives: [PartialEq],
        pub_export_macro: true,
        export_macro_name: "export_description",
    });
}

/// `harmonia:reporter/reporter`.
pub mod reporter {
    wit_bindgen::generate!({
        path: ["../../wit/plugin/0.1", "../../wit/reporter/0.1"],
        inline: "
            package harmonia:sdk;
            world sdk-reporter { export harmonia:reporter/reporter@0.1.0; }
        ",
        world: "sdk-reporter",
        generate_all,
        additional_derives: [PartialEq],
        pub_export_macro: true,
        export_macro_name: "export_reporter",
    });
}

/// `harmonia:scheduler/policy`.
pub mod policy {
    wit_bindgen::generate!({
        path: ["../../wit/plugin/0.1", "../../wit/scheduler/0.1"],
        inline: "
            package harmonia:sdk;
            world sdk-policy { export harmonia:scheduler/policy@0.1.0; }
        ",
        world: "sdk-policy",
        generate_all,
        additional_derives: [PartialEq],
        pub_export_macro: true,
        export_macro_name: "export_policy",
    });
}

/// `harmonia:forge/credentials`: the one export that hands out a resource of the host.
pub mod credentials {
    wit_bindgen::generate!({
        path: ["../../wit/plugin/0.1", "../../wit/forge/0.1"],
        inline: "
            package harmonia:sdk;
            world sdk-credentials { export harmonia:forge/credentials@0.1.0; }
        ",
        world: "sdk-credentials",
        with: {
            "harmonia:plugin/secrets@0.1.0": crate::bindings::imports::harmonia::plugin::secrets,
            "harmonia:forge/types@0.1.0": crate::bindings::imports::harmonia::forge::types,
        },
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_credentials",
    });
}

/// A small world around one interface of `harmonia:forge`, which shares `types` with all the others.
macro_rules! forge_interface {
    ($module:ident, $world:literal, $wit:literal, $export:literal) => {
        /// One interface of `harmonia:forge`.
        pub mod $module {
            wit_bindgen::generate!({
                path: ["../../wit/plugin/0.1", "../../wit/forge/0.1"],
                inline: $wit,
                world: $world,
                with: { "harmonia:forge/types@0.1.0": crate::bindings::imports::harmonia::forge::types },
                generate_all,
                additional_derives: [PartialEq],
                pub_export_macro: true,
                export_macro_name: $export,
            });
        }
    };
}

forge_interface!(
    webhooks,
    "sdk-webhooks",
    "package harmonia:sdk; world sdk-webhooks { export harmonia:forge/webhooks@0.1.0; }",
    "export_webhooks"
);
forge_interface!(
    statuses,
    "sdk-statuses",
    "package harmonia:sdk; world sdk-statuses { export harmonia:forge/statuses@0.1.0; }",
    "export_statuses"
);
forge_interface!(
    comments,
    "sdk-comments",
    "package harmonia:sdk; world sdk-comments { export harmonia:forge/comments@0.1.0; }",
    "export_comments"
);
forge_interface!(
    discovery,
    "sdk-discovery",
    "package harmonia:sdk; world sdk-discovery { export harmonia:forge/discovery@0.1.0; }",
    "export_discovery"
);
forge_interface!(
    branches,
    "sdk-branches",
    "package harmonia:sdk; world sdk-branches { export harmonia:forge/branches@0.1.0; }",
    "export_branches"
);
forge_interface!(
    pull_requests,
    "sdk-pull-requests",
    "package harmonia:sdk; world sdk-pull-requests { export harmonia:forge/pull-requests@0.1.0; }",
    "export_pull_requests"
);
forge_interface!(
    permissions,
    "sdk-permissions",
    "package harmonia:sdk; world sdk-permissions { export harmonia:forge/permissions@0.1.0; }",
    "export_permissions"
);
forge_interface!(
    hooks,
    "sdk-hooks",
    "package harmonia:sdk; world sdk-hooks { export harmonia:forge/hooks@0.1.0; }",
    "export_hooks"
);
forge_interface!(
    login,
    "sdk-login",
    "package harmonia:sdk; world sdk-login { export harmonia:forge/login@0.1.0; }",
    "export_login"
);
