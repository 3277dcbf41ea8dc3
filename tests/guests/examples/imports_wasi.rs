//! Wants the environment of the server's process.

mod wanted {
    wit_bindgen::generate!({
        inline: "
            package wasi:cli@0.2.0;
            interface environment { get-environment: func() -> list<tuple<string, string>>; }
            world wants { import environment; }
        ",
        world: "wants",
        generate_all,
    });
}

harmonia_test_guests::guest!(|_| Ok(format!("{:?}", wanted::wasi::cli::environment::get_environment())));
