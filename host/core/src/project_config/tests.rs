//! The configuration file by tables: what it may say, and what it may not.

use super::*;

fn ours(text: &str) -> ParsedConfig {
    parse(Dialect::Harmonia, text.as_bytes()).expect(text)
}

fn refused(dialect: Dialect, text: &str) -> String {
    parse(dialect, text.as_bytes()).expect_err(text).to_string()
}

#[test]
fn an_empty_file_is_the_default() {
    assert_eq!(ours(""), ParsedConfig::default());
    assert_eq!(ours("").config.attrs, [["checks"]]);
}

#[test]
fn every_key_is_read() {
    let parsed = ours(
        r#"
attrs = ["checks", 'packages.x86_64-linux."a.b"']
retention = "30d"
allow-ifd = false
eval-timeout = 90
systems = ["x86_64-linux", "aarch64-darwin"]
flake-dir = "./nix/ci/"
branches = ["release/*"]
paths = ["src/**"]
allow-empty = true
"#,
    );
    assert_eq!(parsed.warnings, Vec::<String>::new());
    assert_eq!(
        parsed.config,
        ProjectConfig {
            attrs: vec![
                vec!["checks".to_owned()],
                vec!["packages".to_owned(), "x86_64-linux".to_owned(), "a.b".to_owned()]
            ],
            attrs_are_named: true,
            retention: Some(Duration::from_hours(30 * 24)),
            allow_ifd: false,
            eval_timeout: Some(Duration::from_secs(90)),
            systems: Some(vec!["x86_64-linux".to_owned(), "aarch64-darwin".to_owned()]),
            flake_dir: "nix/ci".to_owned(),
            branches: vec!["release/*".to_owned()],
            paths: vec!["src/**".to_owned()],
            allow_empty: true,
        }
    );
}

#[test]
fn an_unknown_key_is_a_warning_with_the_nearest_name() {
    let parsed = ours("atrs = [\"packages\"]\nshares = 5\n");
    assert_eq!(parsed.config, ProjectConfig::default());
    assert_eq!(parsed.warnings.len(), 2);
    assert!(parsed.warnings[0].contains("'atrs'") && parsed.warnings[0].contains("did you mean 'attrs'?"));
    assert!(parsed.warnings[1].contains("'shares'") && parsed.warnings[1].contains("known keys: attrs, "));
}

#[test]
fn a_malformed_file_names_file_line_and_column() {
    for (text, expected) in [
        ("attrs = [\"a\"]\nretention = \n", ".harmonia-ci.toml:2:"),
        ("attrs = 5", ".harmonia-ci.toml:1:9: attrs: expected a list of strings, found a whole number"),
        ("attrs = []", ".harmonia-ci.toml:1:9: attrs: names no attribute"),
        ("attrs = [\"a..b\"]", "attrs: 'a..b' has an empty part"),
        ("\n\n  allow-ifd = \"yes\"", ".harmonia-ci.toml:3:15: allow-ifd: expected true or false"),
        ("eval-timeout = \"soon\"", "expected a duration such as"),
        ("eval-timeout = \"0s\"", "more than nothing"),
        ("eval-timeout = -5", "expected a duration"),
        ("eval-timeout = \"25h\"", "at most 86400 s"),
        ("retention = \"99999d\"", "at most"),
        ("systems = [\"linux\"]", "'linux' is not a system"),
        ("systems = [\"x86_64-linux; rm\"]", "is not a system"),
        ("flake-dir = \"/etc\"", "relative to the repository's root"),
        ("flake-dir = \"a/../../etc\"", "leads out of the repository"),
        ("paths = [\"\"]", "empty pattern"),
        ("a = 1\na = 2", ".harmonia-ci.toml:2:1"),
    ] {
        let error = refused(Dialect::Harmonia, text);
        assert!(error.starts_with(".harmonia-ci.toml:") && error.contains(expected), "{text:?}: {error}");
    }
}

#[test]
fn everything_is_bounded() {
    let list = |count: usize| format!("branches = [{}]", "\"b\",".repeat(count));
    assert_eq!(ours(&list(LIST_ENTRIES_MAX)).config.branches.len(), LIST_ENTRIES_MAX);
    assert!(refused(Dialect::Harmonia, &list(LIST_ENTRIES_MAX + 1)).contains("at most 256"));
    let long = format!("attrs = [\"{}\"]", "a".repeat(ATTR_BYTES_MAX + 1));
    assert!(refused(Dialect::Harmonia, &long).contains("at most 1024"));
    let large = format!("# {}\n", "x".repeat(FILE_BYTES_MAX));
    assert!(refused(Dialect::Harmonia, &large).contains("at most 65536"));
    let deep = format!("attrs = {}", "[".repeat(10_000));
    assert!(refused(Dialect::Harmonia, &deep).starts_with(".harmonia-ci.toml:1:"));
    let error = parse(Dialect::Harmonia, b"a = 1\n# \xff").expect_err("not UTF-8");
    assert_eq!((error.line, error.column), (2, 3));
}

#[test]
fn the_file_of_buildbot_nix_is_understood() {
    let parsed = parse(
        Dialect::BuildbotNix,
        b"attribute = \"packages\"\nflake_dir = \".\"\nlock_file = \"other.lock\"\nflake_dirs = 1\neffects_branches = []\n",
    )
    .expect("parses");
    assert_eq!(
        parsed.config,
        ProjectConfig { attrs: vec![vec!["packages".to_owned()]], attrs_are_named: true, ..ProjectConfig::default() }
    );
    assert_eq!(parsed.warnings.len(), 3);
    assert!(parsed.warnings.iter().any(|warning| warning.contains("did you mean 'flake_dir'?")));
    assert!(parsed.warnings.iter().any(|warning| warning.contains("other.lock")));
    assert!(refused(Dialect::BuildbotNix, "attribute = 1").starts_with("buildbot-nix.toml:1:13: attribute"));
}
