//! Wants an interface that nobody offers.

mod wanted {
    wit_bindgen::generate!({
        inline: "
            package evil:system@1.0.0;
            interface shell { run: func(command: string) -> string; }
            world wants { import shell; }
        ",
        world: "wants",
        generate_all,
    });
}

harmonia_test_guests::guest!(|argument| Ok(wanted::evil::system::shell::run(argument)));
