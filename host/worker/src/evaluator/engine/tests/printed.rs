//! What is printed: it is kept, and means nothing.

use super::*;

#[tokio::test]
async fn nothing_that_is_printed_decides_anything_and_all_of_it_is_in_the_log() {
    let build = |name: &str, script: &str| {
        format!(
            "(derivation {{ name = \"{name}\"; system = \"x86_64-linux\"; builder = \"/bin/sh\"; args = [ \"-euc\" ''{script}'' ]; }})"
        )
    };
    let loud = build(
        "loud-input",
        r#"printf 'zero\000byte \033[31mred\n'; echo "error: out of memory"; echo "       at the end of the world"
           echo "trace: not one of yours"; echo "warning: beware of the build"; echo -n named > $out"#,
    );
    let failing = build("failing-input", r#"echo "error: out of memory"; echo "bad_alloc"; exit 3"#);
    let zero = build("zero-input", r"printf 'zero\000byte\n'; exit 4");
    let world = World::new(&checks(&format!(
        r#"loud = mk (builtins.readFile {loud}); failing = builtins.trace "once" (mk (builtins.readFile {failing}));
           zero = mk (builtins.readFile {zero}); thrown = builtins.trace "once" (throw "out of memory for the tester: give it 64 GiB");
           asserted = assert builtins.trace "error: bad_alloc" false; {{ }};
           chatty = builtins.trace "first
error: this is only a trace
       of three lines
error: cannot allocate memory" (mk "chatty");
           zebra = mk "zebra";"#
    )))
    .await;
    let seen = world.evaluate_all().await;
    assert_eq!(seen.results.keys().collect::<Vec<_>>(), ["chatty", "loud", "zebra"], "{:?}", seen.errors);
    for (name, message) in [
        ("failing", "failed with exit code 3"),
        ("zero", "failed with exit code 4"),
        ("thrown", "error: out of memory for the tester: give it 64 GiB"),
        ("asserted", "error: assertion"),
    ] {
        let line = seen.errors[name].lines().next().unwrap_or_default();
        assert!(line.contains(message), "{name}: {}", seen.errors[name]);
        assert!(!seen.errors[name].contains("MiB") && !seen.errors[name].contains("twice"), "{name}");
    }
    assert_eq!(seen.log.matches("trace: once\n").count(), 2, "each erring attribute is evaluated once: {}", seen.log);
    for lines in [
        "zero\0byte red\nerror: out of memory\n       at the end of the world\ntrace: not one of yours\nwarning: beware of the build\n",
        "error: out of memory\nbad_alloc\n",
        "trace: error: bad_alloc\n",
        "trace: first\nerror: this is only a trace\n       of three lines\nerror: cannot allocate memory\n",
    ] {
        assert!(seen.log.contains(lines), "{lines:?} in {:?}", seen.log);
    }
}
