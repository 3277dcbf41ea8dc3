//! The engine with the real Nix, a real store daemon and the real sandbox. The helper is this crate's example.

mod egress;
mod eval_jobs;
mod past_errors;
mod printed;
mod pure;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::*;
use crate::evaluator::source::{add_tree, pin};
use crate::test_parts::TestDaemon;

const SYSTEM: &str = "x86_64-linux";

/// Cargo puts examples beside the directory of test binaries.
pub(in crate::evaluator) fn helper() -> Vec<OsString> {
    let test = std::env::current_exe().expect("own path");
    let target = test.parent().and_then(std::path::Path::parent).expect("target directory");
    vec![target.join("examples/evaluator_sandbox").into()]
}

fn program(name: &str) -> PathBuf {
    std::env::split_paths(&std::env::var_os("PATH").expect("PATH"))
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed"))
}

struct World {
    daemon: TestDaemon,
    engine: Engine,
}

#[derive(Debug, Default)]
struct Seen {
    results: BTreeMap<String, String>,
    /// `meta.timeout` and `meta.maxSilent` of those that have one.
    limits: BTreeMap<String, (Option<u64>, Option<u64>)>,
    errors: BTreeMap<String, String>,
    left_out: Vec<String>,
    warnings: Vec<String>,
    log: String,
}

impl World {
    async fn new(flake: &str) -> Self {
        let daemon = TestDaemon::start().await;
        let dir = tempfile::tempdir().expect("directory");
        std::fs::write(dir.path().join("flake.nix"), flake).expect("file");
        Self::with_tree(daemon, dir.path(), "").await
    }

    async fn with_tree(daemon: TestDaemon, tree: &std::path::Path, flake_dir: &str) -> Self {
        let mut connection = daemon.client().connect().await.expect("connects");
        let source = add_tree(&mut connection, tree).await.expect("adds");
        let commit = "12".repeat(20);
        let flake = pin(&mut connection, &source, tree, flake_dir, Some(&commit), 1_700_000_000).await.expect("pins");
        let engine = Engine {
            nix_instantiate: program("nix-instantiate"),
            nix: Some(program("nix")),
            // For those who have it: everything here is true of both engines.
            nix_eval_jobs: std::env::var_os("HARMONIA_TEST_NIX_EVAL_JOBS").map(PathBuf::from),
            confinement: Confinement {
                helper: Some(helper()),
                daemon_socket: daemon.socket(),
                store_dir: daemon.store.root().join("nix/store"),
                egress: None,
                scratch_dir: "/tmp".into(),
            },
            flake,
            workers: 1,
            memory_bytes_max: 2 << 30,
            allow_ifd: true,
        };
        Self { daemon, engine }
    }

    async fn enumerate(&self, prefixes: &[&[&str]], systems: Option<&[&str]>) -> Result<Enumeration, EngineError> {
        let (events, mut received) = mpsc::channel(64);
        let prefixes: Vec<Task> = prefixes.iter().map(|path| task(path)).collect();
        let systems: Option<Vec<String>> = systems.map(|systems| systems.iter().map(ToString::to_string).collect());
        let drain = async { while received.recv().await.is_some() {} };
        let work = async {
            let answer = self.engine.enumerate(prefixes, systems.as_deref(), &events).await;
            drop(events);
            answer
        };
        tokio::join!(work, drain).0
    }

    /// Evaluates these checks.
    async fn evaluate(&self, names: &[&str]) -> Result<Seen, EngineError> {
        self.evaluate_tasks(names.iter().map(|name| task(&["checks", SYSTEM, name])).collect()).await
    }

    /// Evaluates everything below `checks`, as an evaluation does.
    async fn evaluate_all(&self) -> Seen {
        let names = self.enumerate(&[&["checks"]], Some(&[SYSTEM])).await.expect("enumerates");
        assert_eq!((names.refused.len(), names.failed.len()), (0, 0), "{names:?}");
        self.evaluate_tasks(names.tasks).await.expect("evaluates")
    }

    async fn evaluate_tasks(&self, tasks: Vec<Task>) -> Result<Seen, EngineError> {
        let (events, mut received) = mpsc::channel(64);
        let mut open: BTreeSet<Vec<String>> = tasks.iter().map(|task| task.path.clone()).collect();
        let work = async {
            let answer = self.engine.evaluate(tasks, &events).await;
            drop(events);
            answer
        };
        let listen = async {
            let mut seen = Seen::default();
            while let Some(event) = received.recv().await {
                match event {
                    EngineEvent::Line(line) => {
                        open.remove(&line.attr_path);
                        let name = shown(&line.attr_path);
                        let old = match line.result {
                            Ok(found) => {
                                if found.timeout_s.is_some() || found.max_silent_s.is_some() {
                                    seen.limits.insert(name.clone(), (found.timeout_s, found.max_silent_s));
                                }
                                seen.results.insert(name, found.drv_path.to_string())
                            }
                            Err(error) => seen.errors.insert(name, error),
                        };
                        assert_eq!(old, None, "two results for one attribute");
                    }
                    EngineEvent::Set { path, members } => {
                        open.remove(&path);
                        open.extend(members);
                    }
                    EngineEvent::LeftOut { path, warning } => {
                        open.remove(&path);
                        seen.left_out.push(shown(&path));
                        seen.warnings.extend(warning);
                    }
                    EngineEvent::Log(text) => seen.log.push_str(&text),
                    EngineEvent::Warning(text) => seen.warnings.push(text),
                    EngineEvent::Expected(_) => panic!("an engine expects nothing of itself"),
                }
            }
            seen
        };
        let (done, seen) = tokio::join!(work, listen);
        done?;
        let answered =
            |path: &Vec<String>| seen.results.contains_key(&shown(path)) || seen.errors.contains_key(&shown(path));
        open.retain(|path| !answered(path));
        assert_eq!(open, BTreeSet::new(), "every name has an answer");
        Ok(seen)
    }
}

fn task(path: &[&str]) -> Task {
    Task::found(path.iter().map(ToString::to_string).collect())
}

/// Without `checks` and the system.
fn shown(path: &[String]) -> String {
    path.iter().skip(2).cloned().collect::<Vec<_>>().join(".")
}

const MAKE: &str = r#"mk = name: derivation { inherit name; system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" "echo > $out" ]; };"#;

fn checks(body: &str) -> String {
    format!("{{ outputs = {{ self }}: let {MAKE} in {{ checks.{SYSTEM} = {{ {body} }}; }}; }}")
}

#[tokio::test]
async fn every_kind_of_failure_costs_its_attribute_alone() {
    let world = World::new(&checks(
        r#"ok1 = mk "ok1"; ok2 = mk "ok2"; ok3 = mk "ok3";
           thrown = throw "my\nmessage"; aborted = builtins.abort "gave up"; typed = mk (1 + "a");
           loop = let a = a; in a; endless = builtins.seq (let f = x: f (x + 1) + 1; in f 0) (mk "x");
           missing = mk ({ }.foo); fake = { type = "derivation"; drvPath = "/etc/passwd"; name = "x"; };
           nodrv = 5; "dotted.name" = mk "dotted"; "ünï code" = mk "unicode"; "q\"uote$\{x}" = mk "quote";
           nested = { recurseForDerivations = true; inner = mk "inner"; deeper.x = mk "x"; bad = throw "inner error"; };
           warned = builtins.trace "warning: beware" (mk "warned");
           rev = mk "rev-${self.rev}-${toString self.lastModified}";"#,
    ))
    .await;
    let seen = world.evaluate_all().await;
    let good: Vec<&str> = seen.results.keys().map(String::as_str).collect();
    assert_eq!(
        good,
        [
            "dotted.name",
            "nested.deeper.x",
            "nested.inner",
            "ok1",
            "ok2",
            "ok3",
            "q\"uote${x}",
            "rev",
            "warned",
            "ünï code"
        ]
    );
    assert!(seen.results["rev"].ends_with(&format!("-rev-{}-1700000000.drv", "12".repeat(20))));
    for (name, error) in [
        ("thrown", "error: my\n"),
        ("aborted", "evaluation aborted with the following error message: 'gave up'"),
        ("typed", "cannot add a string to an integer"),
        ("loop", "infinite recursion encountered"),
        ("endless", "stack overflow"),
        ("missing", "attribute 'foo' missing"),
        ("fake", "not a derivation: its drvPath '/etc/passwd' is no store path"),
        ("nodrv", "checks.x86_64-linux.nodrv is a number, not a derivation"),
        ("nested.bad", "inner error"),
    ] {
        assert!(seen.errors[name].contains(error), "{name}: {}", seen.errors[name]);
    }
    assert_eq!(seen.errors.len(), 9, "{:?}", seen.errors.keys());
    assert!(
        seen.errors["thrown"].contains("while evaluating the attribute 'thrown'"),
        "the trace: {}",
        seen.errors["thrown"]
    );
    assert!(seen.errors["typed"].contains("flake.nix:1:"), "the place: {}", seen.errors["typed"]);
    assert!(!seen.errors["missing"].contains("stdin"), "{}", seen.errors["missing"]);
    assert!(seen.log.contains("warning: beware"), "{}", seen.log);
    assert_eq!(seen.warnings.len(), 0, "{:?}", seen.warnings);
    assert_eq!(seen.left_out, ["nested.recurseForDerivations"]);
    // What it says it instantiated is there.
    for drv in seen.results.values() {
        let name = drv.strip_prefix("/nix/store/").expect("a store path");
        assert!(world.daemon.store.root().join("nix/store").join(name).is_file(), "{drv}");
    }
}

#[tokio::test]
async fn nothing_is_evaluated_twice_when_all_succeed() {
    let mut world = World::new(&format!(
        "{{ outputs = {{ self }}: let {MAKE} in {{ checks.{SYSTEM} = builtins.listToAttrs (builtins.genList (i: \
         {{ name = \"a${{toString i}}\"; value = builtins.trace \"evaluated ${{toString i}}.\" (mk \"a${{toString i}}\"); }}) 300); }}; }}"
    ))
    .await;
    world.engine.workers = 2;
    let seen = world.evaluate_all().await;
    assert_eq!((seen.results.len(), seen.errors.len()), (300, 0));
    for index in 0..300 {
        assert_eq!(seen.log.matches(&format!("evaluated {index}.")).count(), 1, "{index}");
    }
}

#[tokio::test]
async fn a_memory_hog_costs_itself_alone() {
    let mut world = World::new(&checks(
        r#"a = mk "a"; b = mk "b"; z = mk "z";
           hog = builtins.seq (builtins.foldl' (all: n: all ++ [ (builtins.genList (x: x + n) 100000) ]) [ ]
             (builtins.genList (x: builtins.deepSeq (builtins.genList (y: y) 10) x) 100000)) (mk "hog");"#,
    ))
    .await;
    world.engine.memory_bytes_max = 512 << 20;
    let seen = world.evaluate(&["a", "hog", "b", "z"]).await.expect("evaluates");
    assert_eq!(seen.results.keys().collect::<Vec<_>>(), ["a", "b", "z"]);
    assert!(seen.errors["hog"].contains("512 MiB"), "{}", seen.errors["hog"]);
    assert!(seen.log.contains("checks.x86_64-linux.hog: ") && seen.log.contains("in a fresh process"), "{}", seen.log);
}

#[tokio::test]
async fn building_during_evaluation_is_allowed_or_not() {
    let mut world = World::new(&checks(
        r#"ifd = mk (builtins.readFile (derivation { name = "ifd"; system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" "echo -n name-from-a-build > $out" ]; }));
           plain = mk "plain";"#,
    ))
    .await;
    world.engine.allow_ifd = false;
    let seen = world.evaluate(&["ifd", "plain"]).await.expect("evaluates");
    assert!(seen.results.contains_key("plain"));
    assert!(seen.errors["ifd"].contains("allow-import-from-derivation"), "{}", seen.errors["ifd"]);
    world.engine.allow_ifd = true;
    let seen = world.evaluate(&["ifd", "plain"]).await.expect("evaluates");
    assert!(seen.results["ifd"].ends_with("-name-from-a-build.drv"), "{seen:?}");
}

#[tokio::test]
async fn names_are_found_without_evaluating_what_they_name() {
    let world = World::new(&format!(
        r#"{{ outputs = {{ self }}: let {MAKE} in {{
            checks.{SYSTEM}.a = throw "not forced"; checks.aarch64-darwin.a = throw "not forced";
            checks.armv7l-linux = throw "not wanted, so not forced";
            hydraJobs = {{ tests.{SYSTEM} = throw "not forced"; "b.c" = throw "not forced"; }};
            single = mk "single"; empty = {{ }}; number = 5; packages.{SYSTEM}.x86_64-linux = throw "not a system here"; }}; }}"#
    ))
    .await;
    let names = world
        .enumerate(
            &[
                &["checks"],
                &["hydraJobs"],
                &["single"],
                &["empty"],
                &["number"],
                &["nosuch"],
                &["packages", SYSTEM],
                &["checks", SYSTEM, "b"],
            ],
            Some(&[SYSTEM]),
        )
        .await
        .expect("enumerates");
    let shown: Vec<String> =
        names.tasks.iter().map(|task| harmonia_core::project_config::print_attr_path(&task.path)).collect();
    assert_eq!(
        shown,
        [
            "checks.x86_64-linux.a",
            "hydraJobs.\"b.c\"",
            "hydraJobs.tests",
            "single",
            "number",
            "packages.x86_64-linux.x86_64-linux"
        ]
    );
    assert_eq!(names.left_out.iter().map(String::as_str).collect::<Vec<_>>(), ["aarch64-darwin", "armv7l-linux"]);
    let missing: Vec<String> = names.missing.iter().map(Missing::sentence).collect();
    assert_eq!(
        missing,
        [
            "the flake has no output 'nosuch': it has checks, empty, hydraJobs, number, packages, single",
            "the flake has no attribute 'checks.x86_64-linux.b': 'checks.x86_64-linux' has a"
        ]
    );
    assert!(names.failed.is_empty(), "{names:?}");
}

#[tokio::test]
async fn a_flake_that_is_none_says_why() {
    for (files, expected) in [
        (&[("flake.nix", "{ outputs = { self }: { checks = ; }; }")][..], "syntax error"),
        (&[("other.nix", "{ }")], "flake.nix"),
        (&[("flake.nix", "{ outputs = { self }: throw \"at the root\"; }")], "at the root"),
        (&[("flake.nix", "{ inputs.x.url = \"github:nobody/nothing\"; outputs = { self, x }: { }; }")], "in pure mode"),
    ] {
        let daemon = TestDaemon::start().await;
        let dir = tempfile::tempdir().expect("directory");
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).expect("file");
        }
        let world = World::with_tree(daemon, dir.path(), "").await;
        let error = world.enumerate(&[&["checks"]], None).await.expect_err(expected);
        assert!(matches!(error, EngineError::Failed(_)), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn the_flake_may_be_in_a_directory_and_see_what_is_beside_it() {
    let dir = tempfile::tempdir().expect("directory");
    std::fs::create_dir_all(dir.path().join("nix/my ci")).expect("directory");
    std::fs::write(dir.path().join("name"), "beside").expect("file");
    std::fs::create_dir_all(dir.path().join("dep")).expect("directory");
    // Two inputs, locked: one of them follows the other.
    let daemon = TestDaemon::start().await;
    std::fs::write(dir.path().join("dep/flake.nix"), "{ outputs = { self }: { word = \"locked\"; }; }").expect("file");
    let mut connection = daemon.client().connect().await.expect("connects");
    let dep = add_tree(&mut connection, &dir.path().join("dep")).await.expect("adds");
    let locked = serde_json::json!({ "type": "path", "path": dep.path.as_str(), "narHash": dep.nar_hash_sri, "lastModified": 1 });
    let lock = serde_json::json!({ "version": 7, "root": "top", "nodes": {
        "top": { "inputs": { "dep": "dep_2", "same": ["dep"] } },
        "dep_2": { "locked": locked, "original": { "type": "path", "path": "/somewhere/else" } },
    } });
    std::fs::write(dir.path().join("nix/my ci/flake.lock"), lock.to_string()).expect("file");
    let flake = checks("a = mk ((builtins.readFile ../../name) + dep.word + same.word);").replace(
        "outputs = { self }",
        "inputs.dep.url = \"path:/somewhere/else\"; inputs.same.follows = \"dep\"; outputs = { self, dep, same }",
    );
    std::fs::write(dir.path().join("nix/my ci/flake.nix"), flake).expect("file");
    let world = World::with_tree(daemon, dir.path(), "nix/my ci").await;
    let seen = world.evaluate(&["a"]).await.expect("evaluates");
    assert!(seen.results.get("a").is_some_and(|drv| drv.ends_with("-besidelockedlocked.drv")), "{seen:?}");
}

#[tokio::test]
async fn giving_up_kills_the_engine_at_once() {
    let world = World::new(&checks(r#"a = builtins.seq (let f = n: if n == 0 then 0 else f (n - 1); in builtins.foldl' (s: n: s + f 1000) 0 (builtins.genList (x: x) 100000000)) (mk "a");"#)).await;
    let engine = world.engine.clone();
    let (events, mut received) = mpsc::channel(64);
    let tasks = vec![task(&["checks", SYSTEM, "a"])];
    let connections = || {
        let id = world.daemon.id();
        std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).expect("children").split_whitespace().count()
    };
    // The one that added the source may still be on its way out.
    wait_until(Duration::from_secs(30), || connections() == 0).await;
    let task = tokio::spawn(async move { engine.evaluate(tasks, &events).await });
    wait_until(Duration::from_secs(30), || connections() > 0).await;
    let asked = Instant::now();
    task.abort();
    assert!(task.await.expect_err("aborted").is_cancelled());
    // Its connection to the daemon ends when the engine does, deep inside the sandbox.
    wait_until(Duration::from_secs(2), || connections() == 0).await;
    assert!(asked.elapsed() < Duration::from_secs(2));
    assert!(received.recv().await.is_none());
}

async fn wait_until(patience: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !condition() {
        assert!(Instant::now() < deadline, "it did not happen within {patience:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
