//! Whatever is wrong with one attribute, or with a derivation below it, is the error of that attribute with its reason; the
//! others go on.

use std::fmt::Write as _;

use harmonia_core::limits::ATTR_BYTES_MAX;

use super::*;

/// Attribute, its Nix text, and a part of its error.
type Wrong<'a> = (&'a str, String, &'a [&'a str]);

const LIST: &str = "requiredSystemFeatures must be a list of strings";
const STRUCTURED: &str = "__structuredAttrs = true;";

fn below(more: &str) -> String {
    format!("above (mk \"hidden\" {{ {more} }})")
}

#[tokio::test]
async fn what_is_wrong_with_an_attribute_costs_it_alone() {
    // A third of the memory is for each of two evaluations: enough for some 190 derivations.
    let bounds = AttributeBounds { derivations_max: 60, graph_bytes_max: 3 << 16, source_bytes_max: 1 << 20 };
    let world = World::start_as(async |database| database.db.clone(), |options| options.bounds = bounds).await;
    let many = "genList (n: \"f${toString n}\") 100";
    let cases: Vec<Wrong<'_>> = vec![
        (
            "spaced",
            format!("mk \"spaced\" {{ {STRUCTURED} requiredSystemFeatures = [ \"big memory\" ]; }}"),
            &["'big memory'", "-spaced.drv", "requiredSystemFeatures"],
        ),
        (
            "spaced-below",
            below(&format!("{STRUCTURED} requiredSystemFeatures = [ \"\" ];")),
            &["something that it needs", "-hidden.drv", "requiredSystemFeatures"],
        ),
        (
            "newline",
            below(&format!("{STRUCTURED} requiredSystemFeatures = [ \"a\\nb\" ];")),
            &["-hidden.drv", "without blanks"],
        ),
        ("text", format!("mk \"text\" {{ {STRUCTURED} requiredSystemFeatures = \"kvm\"; }}"), &["-text.drv", LIST]),
        ("text-below", below(&format!("{STRUCTURED} requiredSystemFeatures = \"kvm\";")), &["-hidden.drv", LIST]),
        (
            "number-below",
            below(&format!("{STRUCTURED} allowSubstitutes = 1;")),
            &["-hidden.drv", "allowSubstitutes must be true or false"],
        ),
        (
            "features",
            format!("mk \"features\" {{ requiredSystemFeatures = builtins.{many}; }}"),
            &["too many system features"],
        ),
        (
            "system",
            format!("mk \"system\" {{ system = \"{}\"; }}", "x".repeat(3_000)),
            &["the system of the derivation", "longer than 256 bytes"],
        ),
        (
            "system-bytes",
            "mk \"system\" { system = builtins.readFile ./bytes; }".to_owned(),
            &["-system.drv", "not UTF-8"],
        ),
        (
            "outputs-below",
            below("outputs = builtins.genList (n: \"o${toString n}\") 1001;"),
            &["-hidden.drv", "more than 1000 outputs"],
        ),
        (
            "large-below",
            below("large = builtins.foldl' (text: _: text + text) \"0123456789abcdef\" (builtins.genList (n: n) 21);"),
            &["-hidden.drv", "larger than 16777216 bytes"],
        ),
        (
            "deep",
            "builtins.foldl' (low: n: mk \"chain-${toString n}\" { inherit low; }) null (builtins.genList (n: n) 61)"
                .to_owned(),
            &["depends on more than 60 derivations"],
        ),
        (
            "wide",
            "mk \"wide\" { low = builtins.genList (n: mk \"low-${toString n}\" { }) 250; }".to_owned(),
            &["that are not built yet are too many", "of this node's memory"],
        ),
        (
            "source",
            "mk \"source\" { large = ./large; }".to_owned(),
            &["could not pack the source", "larger than the allowed 1048576 bytes"],
        ),
        (
            "source-again",
            "mk \"source-again\" { large = ./large; }".to_owned(),
            &["could not pack the source", "larger than the allowed"],
        ),
        ("refused", "mk \"refused-by-the-signer\" { }".to_owned(), &["is not to its taste"]),
        (
            "unmade",
            format!("{{ type = \"derivation\"; drvPath = \"/nix/store/{}-x.drv\"; }}", "0".repeat(32)),
            &["could not read the derivation", "-x.drv"],
        ),
        ("thrown", "throw \"its own\"".to_owned(), &["error: its own"]),
        ("list", "[ ]".to_owned(), &["is a list, not a derivation"]),
    ];
    let mut flake = format!(
        "{{ outputs = {{ self }}: let {MAKE} above = odd: mk \"above\" {{ inherit odd; }}; in {{ checks.x86_64-linux = {{ \
         plain = mk \"plain\" {{ }}; zebra = mk \"zebra\" {{ }}; odd-but-right = mk \"o\" {{ {STRUCTURED} preferLocalBuild = true; }};\n"
    );
    for (name, text, _) in &cases {
        let _ = writeln!(flake, "{name} = {text};");
    }
    let (fits, over, wide) = ("a".repeat(ATTR_BYTES_MAX - 20), "b".repeat(1_100), "ü名".repeat(400));
    let _ = write!(
        flake,
        "{fits} = mk \"fits\" {{ }}; {over} = mk \"over\" {{ }}; \"{wide}\" = throw \"unseen\"; }}; }}; }}"
    );
    let large = "x".repeat(2 << 20);
    let dir = world.repositories.create("main");
    std::fs::write(dir.join("bytes"), b"x86\xff").expect("file");
    let id = world.queue("main", &[("flake.nix", &flake), ("large", &large)], None).await;
    let view = world.ended(id).await;
    assert_eq!(view.evaluation.status, EvalStatus::Succeeded, "{:?}", view.evaluation.error);
    assert!(view.evaluation.complete);
    let found: std::collections::BTreeMap<&str, (AttrState, &str)> = view
        .attrs
        .iter()
        .map(|attr| (attr.attr.as_str(), (attr.state, attr.error.as_deref().unwrap_or_default())))
        .collect();
    for name in ["plain", "zebra", "odd-but-right", &fits] {
        let (state, error) = found[format!("checks.x86_64-linux.{name}").as_str()];
        assert_eq!((state, error), (AttrState::Pending, ""), "{name}");
    }
    for (name, _, parts) in &cases {
        let (state, error) = found[format!("checks.x86_64-linux.{name}").as_str()];
        assert_eq!(state, AttrState::Error, "{name}");
        for part in *parts {
            assert!(error.contains(part), "{name}: {error}");
        }
    }
    let long: Vec<&str> = found
        .values()
        .map(|(_, error)| *error)
        .filter(|error| error.contains("the path of this attribute has"))
        .collect();
    assert_eq!(long.len(), 2, "{found:?}");
    assert_eq!(found.len(), cases.len() + 4 + 2);
    // Nothing that only an attribute in error needs is built.
    assert_eq!(view.jobs.pending, 4, "plain, zebra, odd-but-right, fits");
    world.stop().await;
}

#[tokio::test]
async fn what_was_asked_for_by_name_and_is_not_there_is_red() {
    let world = World::start().await;
    let flake = format!(
        "{{ outputs = {{ self }}: let {MAKE} in {{ checks.x86_64-linux.small = mk \"small\" {{ }}; packages.x86_64-linux.a = mk \"a\" {{ }}; \
         broken.x86_64-linux = throw \"no system\"; }}; }}"
    );
    let errors = async |name: &str, toml: Option<&str>, attrs: Option<&[&str]>| -> Vec<(String, String)> {
        let mut files = vec![("flake.nix", flake.as_str())];
        files.extend(toml.map(|text| (".harmonia-ci.toml", text)));
        let view = world.ended(world.queue(name, &files, attrs).await).await;
        assert_eq!(view.evaluation.status, EvalStatus::Succeeded, "{name}: {:?}", view.evaluation.error);
        assert!(
            view.attrs.iter().any(|attr| attr.attr == "checks.x86_64-linux.small" && attr.error.is_none()),
            "{name}"
        );
        view.attrs.into_iter().filter_map(|attr| Some((attr.attr, attr.error?))).collect()
    };
    let pair = |attr: &str, error: &str| vec![(attr.to_owned(), error.to_owned())];
    assert_eq!(
        errors("prefix", Some("attrs = [\"checks\", \"package\"]\n"), None).await,
        pair("package", "error: the flake has no output 'package': it has broken, checks, packages")
    );
    let asked: &[&str] = &["checks.x86_64-linux.small", "checks.x86_64-linux.smal"];
    assert_eq!(
        errors("attribute", None, Some(asked)).await,
        pair(
            "checks.x86_64-linux.smal",
            "error: the flake has no attribute 'checks.x86_64-linux.smal': 'checks.x86_64-linux' has small"
        )
    );
    assert_eq!(
        errors("system", Some("systems = [\"x86_64-linux\", \"aarch64-linux\"]\n"), None).await,
        pair(
            "checks.aarch64-linux",
            "error: 'systems' names aarch64-linux, but the outputs to build have only x86_64-linux"
        )
    );
    let found = errors("broken", Some("attrs = [\"checks\", \"broken\"]\n"), None).await;
    assert!(
        found.len() == 1 && found[0].0 == "broken.x86_64-linux" && found[0].1.starts_with("error: no system"),
        "{found:?}"
    );
    // What nobody named is not missed, but what is named is, also where nothing at all would be fine.
    let files = [
        ("flake.nix", "{ outputs = { self }: { }; }"),
        (".harmonia-ci.toml", "attrs = [\"checks\"]\nallow-empty = true\n"),
    ];
    let view = world.ended(world.queue("named", &files, None).await).await;
    assert_eq!((view.evaluation.status, view.attrs.len()), (EvalStatus::Succeeded, 1), "{:?}", view.evaluation.error);
    assert_eq!(view.attrs[0].state, AttrState::Error);
    world.stop().await;
}
