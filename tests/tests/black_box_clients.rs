//! Stock Nix as a user of the cache: the journeys of somebody who builds a flake that was built here before. And what people
//! read when something failed, which has to be the reason in the words of whichever Nix this is.

use std::path::Path;

use harmonia_tests::repository::{commit, flake};
use harmonia_tests::server::{Server, folder, parse, text};
use harmonia_tests::stock_nix::StockNix;
use serde_json::Value;

/// The attribute of this name.
fn attr<'a>(detail: &'a Value, name: &str) -> &'a Value {
    let mut attrs = detail["attrs"].as_array().expect("attributes").iter();
    attrs
        .find(|attr| attr["attr"].as_str().is_some_and(|attr| attr.ends_with(&format!(".{name}"))))
        .unwrap_or_else(|| panic!("no {name} in {detail}"))
}

fn output(detail: &Value, name: &str) -> String {
    attr(detail, name)["outputs"]["out"].as_str().expect("a path").to_owned()
}

/// `nix build` of an attribute of the flake in a repository.
fn build(nix: &StockNix, repository: &Path, name: &str) -> std::process::Output {
    let system = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    let installable = format!("git+file://{}#checks.{system}.{name}", repository.display());
    // Nix 2.8 knows no `--print-out-paths`.
    nix.run("nix", &["build", "--no-link", "--json", &installable])
}

#[test]
fn whoever_builds_what_was_built_here_gets_it_from_the_cache() {
    let data = folder();
    let server = Server::up(&data.path().join("up"), &[], &[]);
    let repository = data.path().join("repository");
    let body = r#"rec { base = sh "base" "echo base > $out" { }; top = sh "top" "echo $base > $out" { inherit base; };
        unbuilt = sh "unbuilt" "exit 1" { }; }"#;
    commit(&repository, &[("flake.nix", &flake(body))]);
    let path = repository.to_str().expect("UTF-8");
    let detail = parse(&server.run(&["eval", path, "--wait", "--json"]));
    let (base, top) = (output(&detail, "base"), output(&detail, "top"));

    let nix = StockNix::trusting(&server.public_key());
    // What is in the cache can be asked without fetching it.
    let known = nix.run("nix", &["path-info", "--recursive", "--store", &server.url, &top]);
    let mut known: Vec<&str> = std::str::from_utf8(&known.stdout).expect("UTF-8").lines().collect();
    known.sort_unstable();
    let mut closure = [base.as_str(), top.as_str()];
    closure.sort_unstable();
    assert_eq!(known, closure);
    let signed = nix.run("nix", &["path-info", "--sigs", "--store", &server.url, &base]);
    let key_name = server.public_key().split(':').next().expect("a name").to_owned();
    assert!(String::from_utf8_lossy(&signed.stdout).contains(&format!("{key_name}:")), "{}", text(&signed));
    let absent =
        nix.run("nix", &["path-info", "--store", &server.url, "/nix/store/00000000000000000000000000000000-x"]);
    assert!(!absent.status.success() && text(&absent).contains("is not valid"), "{}", text(&absent));

    // The flake of the same commit is evaluated to the same paths, which come from the cache with all they need.
    nix.only_substitute_from(&server.url);
    let built = build(&nix, &repository, "top");
    assert!(built.status.success(), "{}", text(&built));
    assert_eq!(parse(&built)[0]["outputs"]["out"], top);
    assert_eq!(std::fs::read_to_string(nix.physical(&top)).expect("it is there").trim(), base);
    assert_eq!(std::fs::read_to_string(nix.physical(&base)).expect("what it refers to").trim(), "base");
    let unbuilt = build(&nix, &repository, "unbuilt");
    assert!(!unbuilt.status.success(), "what failed is not served: {}", text(&unbuilt));
    // So does the older command, with nothing but the path.
    let other = StockNix::trusting(&server.public_key());
    other.only_substitute_from(&server.url);
    let realised = other.run("nix-store", &["--realise", &base]);
    assert!(realised.status.success(), "{}", text(&realised));
    assert_eq!(std::fs::read_to_string(other.physical(&base)).expect("it is there").trim(), "base");
}

#[test]
fn a_private_project_is_built_from_by_who_has_the_token_and_by_nobody_else() {
    let data = folder();
    let up = data.path().join("up");
    let server = Server::up(&up, &[], &[("HARMONIA_CI__AUTH__LOCAL_PROJECTS", "private")]);
    let repository = data.path().join("repository");
    commit(&repository, &[("flake.nix", &flake(r#"{ secret = sh "secret" "echo hush > $out" { }; }"#))]);
    let detail = parse(&server.run(&["eval", repository.to_str().expect("UTF-8"), "--wait", "--json"]));
    let secret = output(&detail, "secret");

    let nix = StockNix::trusting(&server.public_key());
    nix.only_substitute_from(&server.url);
    assert!(!nix.run("nix", &["path-info", "--store", &server.url, &secret]).status.success());
    let refused = build(&nix, &repository, "secret");
    assert!(!refused.status.success() && !nix.physical(&secret).exists(), "{}", text(&refused));

    nix.send_token(std::fs::read_to_string(up.join("keys/api-token")).expect("a token").trim());
    let built = build(&nix, &repository, "secret");
    assert!(built.status.success(), "{}", text(&built));
    assert_eq!(std::fs::read_to_string(nix.physical(&secret)).expect("it is there").trim(), "hush");
    let known = nix.run("nix", &["path-info", "--store", &server.url, &secret]);
    assert!(known.status.success(), "{}", text(&known));
    let log = nix.run("nix", &["log", "--store", &server.url, &secret]);
    assert!(log.status.success(), "{}", text(&log));
}

#[test]
fn what_failed_says_why_in_its_first_line() {
    let data = folder();
    let server = Server::up(&data.path().join("up"), &[], &[]);
    let repository = data.path().join("repository");
    let body = r#"{
        thrown = throw "the author's own words"; missing = sh "missing" { }.nothing { };
        deep = let f = n: if n == 0 then abort "far below" else f (n - 1) + 1; in sh "deep" (toString (f 3)) { };
        exits = sh "exits" "echo its last line; exit 3" { };
        no-output = sh "no-output" "true" { };
        below = sh "below" "true" { input = sh "input" "exit 4" { }; };
        wrong-hash = sh "wrong-hash" "echo other > $out"
          { outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = "0000000000000000000000000000000000000000000000000000"; };
        imported = import (sh "imported" "exit 5" { });
    }"#;
    commit(&repository, &[("flake.nix", &flake(body))]);
    let detail = parse(&server.run(&["eval", repository.to_str().expect("UTF-8"), "--wait", "--json"]));
    for (name, state, words) in [
        ("thrown", "error", "the author's own words"),
        ("missing", "error", "attribute 'nothing' missing"),
        ("deep", "error", "far below"),
        ("imported", "error", "exit code 5"),
        ("exits", "failed", "exit code 3"),
        ("no-output", "failed", "failed to produce output"),
        ("wrong-hash", "failed", "hash mismatch"),
        ("below", "dep-failed", "the dependency input failed"),
    ] {
        let attr = attr(&detail, name);
        let first = attr["error"].as_str().and_then(|error| error.lines().next()).unwrap_or_default();
        assert_eq!(attr["state"].as_str(), Some(state), "{attr}");
        assert!(first.contains(words), "{name} begins with {first:?}: {attr}");
    }
}
