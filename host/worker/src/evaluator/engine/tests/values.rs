//! What attributes may be, be called and say of themselves: each costs itself alone.

use std::fmt::Write as _;

use super::*;

#[tokio::test]
async fn values_that_are_no_derivations_say_so() {
    let body = r#"same = good; nothing = null; list = [ good ]; string = "${good}"; path = ./flake.nix;
           function = { x ? 1 }: good; callable = { __functor = self: x: good; }; number = 5; boolean = true; empty = { };
           coerced = { __toString = self: "text"; }; without-path = { type = "derivation"; name = "x"; };
           path-of-file = { type = "derivation"; drvPath = builtins.toFile "no.drv.txt" "x"; };
           path-of-output = good // { drvPath = good.outPath; }; path-is-number = good // { drvPath = 5; };
           path-without-context = good // { drvPath = builtins.unsafeDiscardStringContext good.drvPath; };
           name-is-function = good // { name = x: x; }; system-is-set = good // { system = { }; };
           overridden = good // { outPath = "/nix/store/elsewhere"; out = throw "no"; outputs = throw "no"; };
           type-throws = { type = throw "no type"; drvPath = good.drvPath; }; type-is-list = { type = [ ]; inner = good; };"#;
    let world = World::new(&checks(body).replace("in {", "good = mk \"good\"; in {")).await;
    let seen = world.evaluate_all().await;
    let good: Vec<&str> = seen.results.keys().map(String::as_str).collect();
    let expected =
        ["name-is-function", "overridden", "path-without-context", "same", "system-is-set", "type-is-list.inner"];
    assert_eq!(good, expected);
    for (name, error) in [
        ("list", "checks.x86_64-linux.list is a list, not a derivation"),
        ("string", "is a string, not a derivation"),
        ("path", "is a path, not a derivation"),
        ("function", "is a function, not a derivation"),
        ("number", "is a number, not a derivation"),
        ("boolean", "is true or false, not a derivation"),
        ("without-path", "attribute 'drvPath' missing"),
        ("path-of-file", "-no.drv.txt does not end in .drv"),
        ("path-of-output", "-good does not end in .drv"),
        ("path-is-number", "error: "),
        ("type-throws", "error: no type"),
        ("type-is-list.type", "is a list, not a derivation"),
    ] {
        assert!(seen.errors.get(name).is_some_and(|found| found.contains(error)), "{name}: {:?}", seen.errors);
    }
    assert_eq!(seen.errors.len(), 12, "{:?}", seen.errors.keys());
    assert_eq!(seen.left_out, ["callable.__functor", "coerced.__toString", "empty", "nothing"]);
    let warnings = [
        "checks.x86_64-linux.empty is an empty set: there is nothing to build in it",
        "checks.x86_64-linux.nothing is null, not a derivation: it is left out",
    ];
    assert_eq!(seen.warnings, warnings);
}

#[tokio::test]
async fn an_attribute_called_type_costs_itself_alone_whatever_it_throws() {
    for thrown in [r#"throw "first""#, r#"abort "first""#, "{ }.first", "assert false; 1", "let a = a; in a"] {
        let world = World::new(&checks(&format!(
            r#"type = {thrown}; good = mk "good"; set = {{ type = {thrown}; recurseForDerivations = {thrown}; inner = mk "inner"; }};
               alone = {{ recurseForDerivations = {thrown}; member = mk "member"; }}; zebra = mk "zebra";"#
        )))
        .await;
        let seen = world.evaluate_all().await;
        let good: Vec<&str> = seen.results.keys().map(String::as_str).collect();
        assert_eq!(good, ["alone.member", "good", "set.inner", "zebra"], "{thrown}: {:?}", seen.errors);
        let errors: Vec<&str> = seen.errors.keys().map(String::as_str).collect();
        assert_eq!(
            errors,
            ["alone.recurseForDerivations", "set.recurseForDerivations", "set.type", "type"],
            "{thrown}"
        );
    }
}

#[tokio::test]
async fn sets_are_looked_into_as_far_as_they_let_and_to_an_end() {
    let world = World::new(&checks(
        r#"plain = mk "plain"; ring = let ring = { recurseForDerivations = true; member = mk "member"; again = ring; }; in ring;
           endless = let f = n: { ${toString n} = f (n + 1); }; in f 0;
           private = { recurseForDerivations = false; never = throw "not to be evaluated"; };
           crowd = builtins.listToAttrs (builtins.genList (n: { name = toString n; value = null; }) 100001);"#,
    ))
    .await;
    let seen = world.evaluate_all().await;
    let again = |count: usize| format!("ring.{}", "again.".repeat(count));
    for depth in 0..13 {
        assert!(seen.results.contains_key(&format!("{}member", again(depth))), "{depth}: {:?}", seen.results.keys());
    }
    assert_eq!(seen.results.values().collect::<BTreeSet<_>>().len(), 2, "the same derivation all the way");
    let deepest = again(13).trim_end_matches('.').to_owned();
    let errors: Vec<&str> = seen.errors.keys().map(String::as_str).collect();
    assert_eq!(errors, ["crowd", "endless.0.1.2.3.4.5.6.7.8.9.10.11.12", &deepest]);
    assert!(seen.errors[&deepest].contains("below 16 others, and no deeper is looked: does it contain itself?"));
    assert!(seen.errors["crowd"].contains("has 100001 attributes, and an evaluation has at most 100000"));
    assert!(seen.left_out.contains(&"private".to_owned()) && !seen.log.contains("not to be evaluated"), "{seen:?}");
    // Who asks for it by name wants it.
    let named = Task::named(["checks", SYSTEM, "private"].map(str::to_owned).to_vec());
    let seen = world.evaluate_tasks(vec![named]).await.expect("evaluates");
    assert!(seen.errors["private.never"].contains("not to be evaluated"), "{seen:?}");
}

#[tokio::test]
async fn odd_names_are_told_as_they_are_or_refused_alone() {
    let dir = tempfile::tempdir().expect("directory");
    std::fs::write(dir.path().join("bytes"), b"a\xff\x01b").expect("file");
    let long = "ü名".repeat(400);
    let flake = checks(&format!(
        r#"plain = mk "plain"; "" = mk "empty"; "line\nbreak" = mk "line"; "tab\tand\rreturn" = mk "tab";
           ${{builtins.fromJSON "\"\\u001b[31mred\\u0001\""}} = mk "red"; "${{builtins.readFile ./bytes}}" = mk "bytes";
           "${{"$"}}{{x}}\"\\" = mk "quoted"; "{long}" = throw "not evaluated"; set."{long}" = mk "long"; set.short = mk "short";"#
    ));
    std::fs::write(dir.path().join("flake.nix"), flake).expect("file");
    let world = World::with_tree(TestDaemon::start().await, dir.path(), "").await;
    let names = world.enumerate(&[&["checks"]], None).await.expect("enumerates");
    let refused: Vec<(String, String)> =
        names.refused.into_iter().map(|line| (shown(&line.attr_path), line.result.expect_err("refused"))).collect();
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert_eq!(refused[0].0.chars().next(), Some('a'));
    assert_eq!(refused[0].1, "error: the name of this attribute is not UTF-8");
    assert!(
        refused[1].0 == long && refused[1].1.contains("has 2020 bytes, at most 1024 are allowed"),
        "{}",
        refused[1].1
    );
    let seen = world.evaluate_tasks(names.tasks).await.expect("evaluates");
    let good: BTreeSet<&str> = seen.results.keys().map(String::as_str).collect();
    let expected = ["plain", "", "line\nbreak", "tab\tand\rreturn", "\u{1b}[31mred\u{1}", "${x}\"\\", "set.short"];
    assert_eq!(good, BTreeSet::from(expected));
    assert!(seen.errors[&format!("set.{long}")].contains("has 2024 bytes"), "{:?}", seen.errors);
    assert_eq!(seen.errors.len(), 1);
}

#[tokio::test]
async fn a_prefix_in_error_costs_itself_alone() {
    let flake = format!(
        r#"{{ outputs = {{ self }}: let {MAKE} in {{ checks.{SYSTEM}.a = mk "a"; packages = abort "no packages";
           devShells.{SYSTEM} = throw "no shells"; hydraJobs = 5; formatter.{SYSTEM} = mk "formatter"; legacy.x = let a = a; in a; }}; }}"#
    );
    let world = World::new(&flake).await;
    let prefixes: &[&[&str]] =
        &[&["packages"], &["checks"], &["devShells"], &["hydraJobs"], &["formatter"], &["legacy", "x", "y"]];
    let names = world.enumerate(prefixes, Some(&[SYSTEM])).await.expect("enumerates");
    let tasks: Vec<String> = names.tasks.iter().map(|task| task.path.join(".")).collect();
    assert_eq!(tasks, ["checks.x86_64-linux.a", "hydraJobs", "formatter.x86_64-linux"]);
    let failed: Vec<String> = names
        .failed
        .iter()
        .map(|line| {
            format!(
                "{}: {}",
                line.attr_path.join("."),
                line.result.as_ref().expect_err("an error").lines().next().unwrap_or_default()
            )
        })
        .collect();
    assert_eq!(
        failed,
        [
            "packages: error: evaluation aborted with the following error message: 'no packages'",
            "devShells.x86_64-linux: error: no shells",
            "legacy.x.y: error: infinite recursion encountered",
        ]
    );
}

#[tokio::test]
async fn limits_are_read_apart_and_what_is_wrong_with_them_costs_them_alone() {
    let metas = [
        ("both", "{ timeout = 2; maxSilent = 3; }", Some((Some(2), Some(3)))),
        ("described", "{ timeout = 2; description = abort \"none\"; }", Some((Some(2), None))),
        ("licensed", "{ timeout = 2; license = { }.missing; }", Some((Some(2), None))),
        ("one-throws", "{ timeout = 2; maxSilent = throw \"none\"; }", Some((Some(2), None))),
        ("huge", "{ timeout = 9223372036854775807; }", Some((Some(9_223_372_036_854_775_807), None))),
        ("negative", "{ timeout = -1; maxSilent = 0; }", None),
        ("text", "{ timeout = \"5 minutes\"; maxSilent = [ 1 ]; }", None),
        ("float", "{ timeout = 1.5; }", None),
        ("broken", "(throw \"no meta at all\")", None),
        ("not-a-set", "[ \"meta\" ]", None),
        // Errors that nobody can catch.
        ("aborted", "{ timeout = abort \"no limit\"; }", None),
        ("missing", "{ timeout = { }.missing; }", None),
        ("all-aborted", "(abort \"no meta\")", None),
    ];
    let mut body = String::new();
    for (name, meta, _) in metas {
        let _ = writeln!(body, "{name} = mk \"{name}\" // {{ meta = {meta}; }};");
    }
    let seen = World::new(&checks(&body)).await.evaluate_all().await;
    for (name, _, limits) in metas {
        assert_eq!(seen.limits.get(name).copied(), limits, "{name}");
        assert!(seen.results.contains_key(name), "{name}: {:?}", seen.errors);
    }
    for (name, reason) in [("aborted", "'no limit'"), ("missing", "'missing' missing"), ("all-aborted", "'no meta'")] {
        let said = |warning: &&String| {
            warning.contains(&format!("linux.{name}: its meta.timeout and meta.maxSilent")) && warning.contains(reason)
        };
        assert_eq!(seen.warnings.iter().filter(said).count(), 1, "{name}: {:?}", seen.warnings);
    }
    assert_eq!(seen.warnings.len(), 3);
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Names, from the engine and back to it: all that is held of attributes before and while they are evaluated.
#[tokio::test]
async fn what_is_held_of_a_hundred_thousand_attributes_is_little() {
    let list = |count: usize, what: &str| {
        format!(
            "{what} = builtins.listToAttrs (builtins.genList (n: {{ name = \"an-attribute-like-others-${{toString n}}\"; \
             value = if n == 40 then throw \"broken\" else null; }}) {count});"
        )
    };
    let text = format!("{{ outputs = {{ self }}: {{ few.{SYSTEM} {}; checks.{SYSTEM} {} }}; }}", "", "");
    let text = text.replace(&format!("few.{SYSTEM} ;"), &list(1_000, &format!("few.{SYSTEM}")));
    let text =
        text.replace(&format!("checks.{SYSTEM}  }}"), &format!("{} }}", list(100_000, &format!("checks.{SYSTEM}"))));
    let mut world = World::new(&text).await;
    world.engine.workers = 2;
    let mut peaks = Vec::new();
    for (prefix, count) in [("few", 1_000), ("checks", 100_000)] {
        let names = world.enumerate(&[&[prefix]], Some(&[SYSTEM])).await.expect("enumerates");
        assert_eq!(names.tasks.len(), count);
        let (events, mut received) = mpsc::channel(64);
        let work = async {
            let done = world.engine.evaluate(names.tasks, &events).await;
            drop(events);
            done
        };
        let listen = async {
            let mut seen = 0;
            while let Some(event) = received.recv().await {
                seen += usize::from(matches!(event, EngineEvent::LeftOut { .. } | EngineEvent::Line(_)));
            }
            seen
        };
        let (done, seen) = tokio::join!(work, listen);
        done.expect("evaluates");
        assert_eq!(seen, count);
        peaks.push(resident_kib());
    }
    let grown = (peaks[1] - peaks[0]) >> 10;
    assert!(grown <= 48, "{grown} MiB");
}
