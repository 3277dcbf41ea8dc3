//! One process goes on past errors: what that costs, whose errors they are, and what it does where Nix is otherwise.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;

use super::*;

/// Programs that say so when they are started.
struct Counted {
    dir: tempfile::TempDir,
}

impl Counted {
    fn new(world: &mut World) -> Self {
        let counted = Self { dir: tempfile::tempdir().expect("directory") };
        std::fs::set_permissions(counted.dir.path(), PermissionsExt::from_mode(0o755)).expect("mode");
        world.engine.nix_instantiate = counted.program("nix-instantiate", "");
        world.engine.nix = Some(counted.program("nix", ""));
        world.engine.nix_eval_jobs = None;
        counted
    }

    /// One that does this before it is what it is called.
    fn program(&self, name: &str, before: &str) -> PathBuf {
        let file = self.dir.path().join(name);
        let real = program(name);
        std::fs::write(
            &file,
            format!("#!/bin/sh\necho 'started {name}.' >&2\n{before}\nexec {} \"$@\"\n", real.display()),
        )
        .expect("file");
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).expect("mode");
        file
    }
}

/// How often plain Nix was started, and how often one that goes on.
fn starts(seen: &Seen) -> (usize, usize) {
    (seen.log.matches("started nix-instantiate.").count(), seen.log.matches("started nix.").count())
}

fn first_line(error: &str) -> &str {
    error.lines().next().unwrap_or_default()
}

#[tokio::test]
async fn errors_cost_one_start_for_all_of_them_also_in_sets() {
    let list = r#"builtins.listToAttrs (builtins.genList (i: { name = "a${toString i}"; value =
        if i / 2 * 2 == i then mk "a${toString i}" else if i / 3 * 3 == i then abort "no ${toString i}." else throw "no ${toString i}."; }) 60)"#;
    let mut world = World::new(&checks(&format!("plain = {list}; deep.er = {list}; zebra = mk \"zebra\";"))).await;
    let _counted = Counted::new(&mut world);
    let seen = world.evaluate_all().await;
    assert_eq!((seen.results.len(), seen.errors.len()), (61, 60), "{seen:?}");
    for (name, error) in &seen.errors {
        let number = name.rsplit_once('a').expect("a number").1;
        assert!(first_line(error).contains(&format!("no {number}.")), "{name}: {error}");
        assert!(error.contains("flake.nix:"), "with its trace: {error}");
        for ours in ["hydraJobs", "Hydra", "tasks.json", "each", "'get'", "fromJSON"] {
            assert!(!error.contains(ours), "{ours} in {error}");
        }
    }
    assert_eq!(starts(&seen), (1, 1), "{}", seen.log);
    for said in ["evaluating flake", "Hydra", "Internet", "errors were encountered", "no 1."] {
        assert!(!seen.log.contains(said), "{said} in {}", seen.log);
    }
    // As if it were started anew behind each.
    world.engine.nix = None;
    let anew = world.evaluate_all().await;
    assert_eq!((&anew.results, &anew.left_out), (&seen.results, &seen.left_out));
    assert_eq!(starts(&anew).1, 0);
    assert!(starts(&anew).0 >= 60);
    for (name, error) in &anew.errors {
        assert_eq!(first_line(error), first_line(&seen.errors[name]), "{name}");
    }
}

/// A pseudo-random attribute; what it says when it fails has its path in it.
fn attribute(seed: &mut u64, path: &str, depth: usize) -> String {
    // xorshift: only variety counts.
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    match *seed % if depth < 3 { 16 } else { 13 } {
        0..4 => format!("mk \"{path}\""),
        4 => format!("throw \"no {path}.\""),
        5 => format!("abort \"no {path}.\""),
        6 => format!("mk ({{ }}.\"no {path}.\")"),
        7 => format!("shared \"no {path}.\""),
        8 => format!("builtins.seq (let f = x: f (x + 1) + 1; in f 0) (throw \"never {path}.\")"),
        9 => format!("mk \"{path}\" // {{ meta.timeout = abort \"no {path}.\"; }}"),
        10 => format!("{{ type = throw \"no {path}.type.\"; inner = mk \"{path}.inner\"; }}"),
        11 => format!("builtins.trace \"error: not {path}.\" (mk \"{path}\")"),
        12 => format!("builtins.trace \"error (ignored): error: not {path}.\" (throw \"no {path}.\")"),
        _ => {
            let count = *seed % 5;
            let member = |member| format!("m{member} = {}; ", attribute(seed, &format!("{path}.m{member}"), depth + 1));
            let members = (0..count).map(member).collect::<Vec<_>>().concat();
            format!("{{ {members}}}")
        }
    }
}

#[tokio::test]
async fn whatever_fails_beside_it_each_attribute_has_its_own_result_and_its_own_error() {
    for seed in [1, 7_919] {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed);
        let mut body = String::new();
        for number in 0..70 {
            let _ = write!(body, "a{number} = {}; ", attribute(&mut state, &format!("a{number}"), 0));
        }
        let flake = checks(&body)
            .replace("in {", "shared = text: if broken text then 1 else 2; broken = text: throw text; in {");
        let mut world = World::new(&flake).await;
        let counted = Counted::new(&mut world);
        let overflows = body.matches("never ").count();
        // As if it were started anew behind each error.
        let mut before: Option<Seen> = None;
        for workers in [2, 1] {
            world.engine.workers = workers;
            let seen = world.evaluate_all().await;
            assert!(seen.errors.len() > 15, "seed {seed}: {:?}", seen.errors.keys());
            for (name, error) in &seen.errors {
                let is_its_own = first_line(error).contains(&format!("no {name}.")) || error.contains("stack overflow");
                assert!(is_its_own, "seed {seed}, {name}: {error}");
            }
            for (name, drv) in &seen.results {
                assert!(drv.ends_with(&format!("-{name}.drv")), "seed {seed}, {name}: {drv}");
            }
            // One for each share, one behind its first error, one for what that could not tell; what no process survives
            // ends one more each.
            let (plain, past) = starts(&seen);
            assert!(plain + past <= workers * 3 + overflows, "seed {seed}: {plain}, {past}, {overflows}: {}", seen.log);
            let anew = if let Some(anew) = before.take() {
                anew
            } else {
                world.engine.nix = None;
                world.evaluate_all().await
            };
            world.engine.nix = Some(counted.dir.path().join("nix"));
            assert_eq!(seen.results, anew.results, "seed {seed}");
            assert_eq!(seen.errors.keys().collect::<Vec<_>>(), anew.errors.keys().collect::<Vec<_>>(), "seed {seed}");
            for list in [|seen: &Seen| seen.warnings.clone(), |seen: &Seen| seen.left_out.clone()] {
                let sorted = |seen: &Seen| list(seen).into_iter().collect::<BTreeSet<_>>();
                assert_eq!(sorted(&seen), sorted(&anew), "seed {seed}");
            }
            before = Some(anew);
        }
    }
}

/// Nothing is taken from a version: what a Nix that does otherwise cannot tell is found out in the old way.
#[tokio::test]
async fn a_nix_that_does_otherwise_past_errors_costs_starts_and_no_result() {
    let body = r#"a = mk "a"; b = throw "no b."; c = mk "c"; d = throw "no d."; e = mk "e"; f = abort "no f."; g = mk "g";
                  set = { h = throw "no set.h."; i = mk "i"; };"#;
    let mut world = World::new(&checks(body)).await;
    let counted = Counted::new(&mut world);
    let real = program("nix");
    let real = real.display();
    for (what, script) in [
        ("it knows no such command", "echo 'error: unrecognised' >&2; exit 1".to_owned()),
        ("it says nothing", "exit 0".to_owned()),
        ("it is killed", "kill -9 $$".to_owned()),
        ("it stops at the first error", format!(r#"exec {real} $(echo " $* " | sed 's/ --keep-going / /')"#)),
        ("it keeps errors to itself", format!(r#"{real} "$@" 2>&1 | grep '^trace: ' >&2; exit 1"#)),
        (
            "it tells errors at its end",
            format!(
                r#"{real} "$@" 2>"$HOME/said"; grep '^trace: ' "$HOME/said" >&2; grep -v '^trace: ' "$HOME/said" >&2; exit 1"#
            ),
        ),
    ] {
        world.engine.nix = Some(counted.program("nix", &script));
        let seen = world.evaluate_all().await;
        let good: Vec<&str> = seen.results.keys().map(String::as_str).collect();
        assert_eq!(good, ["a", "c", "e", "g", "set.i"], "{what}: {seen:?}");
        assert_eq!(seen.errors.keys().collect::<Vec<_>>(), ["b", "d", "f", "set.h"], "{what}");
        for (name, error) in &seen.errors {
            assert!(first_line(error).contains(&format!("no {name}.")), "{what}, {name}: {error}");
        }
        assert!(starts(&seen).1 >= 1, "{what}: it was tried");
    }
}

/// An error may come of what was evaluated before, which left too little memory. Here something beside Nix uses it.
#[tokio::test]
async fn what_fails_where_much_memory_is_used_is_tried_again_in_a_fresh_process() {
    let body = (0..6).map(|number| format!("a{number} = throw \"no a{number}.\"; ")).collect::<Vec<_>>().concat();
    let mut world = World::new(&checks(&body)).await;
    let counted = Counted::new(&mut world);
    world.engine.memory_bytes_max = 512 << 20;
    let uses_much = "{ head -c 290000000 /dev/zero; sleep 300; } | tail -c 285000000 >/dev/null &
until [ \"$(awk '/VmHWM/ { print $2 }' /proc/$!/status)\" -gt 270000 ]; do :; done";
    world.engine.nix = Some(counted.program("nix", uses_much));
    let seen = world.evaluate_all().await;
    assert_eq!(seen.errors.len(), 6, "{seen:?}");
    for (name, error) in &seen.errors {
        assert!(first_line(error).contains(&format!("no {name}.")), "{name}: {error}");
    }
    let again = seen.log.matches("trying it again in a fresh process").count();
    assert!(again >= 2, "{again}: {}", seen.log);
}
