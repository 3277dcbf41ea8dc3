//! nix-eval-jobs as the engine. The real one is not installed here; what it prints was recorded (see `line.rs`). Where it
//! matters what the expression means, stock Nix evaluates it ([`StandIn`]).

use std::os::unix::fs::PermissionsExt;

use harmonia_fixtures::{Archive, recording};

use super::*;

/// Does with stock Nix what nix-eval-jobs does with its expression and its options: each derivation in a set of sets gets a
/// line, whatever throws gets an error, other values get nothing. A name that is a number selects from a list.
pub(super) struct StandIn {
    dir: tempfile::TempDir,
}

const STAND_IN: &str = r#"#!/bin/sh
options="--option pure-eval false"
while [ $# -gt 0 ]; do
  case "$1" in
    --option) options="$options --option $2 $3"; shift 3 ;;
    --expr) expression=$2; shift 2 ;;
    --workers|--max-memory-size) shift 2 ;;
    *) shift ;;
  esac
done
fails() { # JSON of the path, its error as JSON
  printf '%s\n' "{\"attr\":\"x\",\"attrPath\":[$1],\"error\":$2}"
}
visit() { # nix selection, JSON of the path, the last name in it
  case "$3" in
    *[!0-9]* | '') ;;
    *) fails "$2" '"error: the expression selected by the selection path should be a list but is a set"'; return ;;
  esac
  if found=$(nix-instantiate --eval --strict --json --read-write-mode --show-trace $options --expr "let v = ($expression)$1; in
      if !(builtins.isAttrs v) then null
      else if (v.type or null) == \"derivation\" then { inherit (v) drvPath; meta = v.meta or null; } else builtins.attrNames v" 2>/tmp/error); then
    case "$found" in
      '{'*) printf '%s\n' "{\"attr\":\"x\",\"attrPath\":[$2],${found#?}" ;;
      '['*) for name in $(echo "$found" | tr -d '[]"' | tr ',' ' '); do
              (visit "$1.\"$name\"" "$2${2:+,}\"$name\"" "$name")
            done ;;
    esac
  else
    cat /tmp/error >&2
    error=$(nix-instantiate --eval --json --option pure-eval false --expr 'builtins.readFile /tmp/error' 2>/dev/null)
    fails "$2" "$error"
  fi
}
MODE
visit "" "" ""
"#;

impl StandIn {
    /// `dies_first`: it ends by a signal, without a line, when it is asked for more than one attribute.
    pub(super) fn new(dies_first: bool) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let mode = if dies_first { r#"case "$expression" in *'"t1" = '*) kill -9 $$ ;; esac"# } else { "" };
        write_program(&dir.path().join("nix-eval-jobs"), &STAND_IN.replace("MODE", mode));
        Self { dir }
    }

    pub(super) fn program(&self) -> PathBuf {
        self.dir.path().join("nix-eval-jobs")
    }
}

fn write_program(file: &std::path::Path, text: &str) {
    std::fs::write(file, text).expect("file");
    for path in [file.parent().expect("a directory"), file] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("mode");
    }
}

/// Something of every kind. What the real nix-eval-jobs said of it was recorded: change it, and record that again.
const BODY: &str = r#"good = mk "good" // { meta = { timeout = 7; maxSilent = throw "none"; description = abort "none"; }; };
        thrown = throw "my own"; nothing = null; list = [ ]; callable = { __functor = self: x: 1; }; empty = { };
        nested = { inner = mk "inner"; deeper = { x = mk "x"; bad = throw "inner error"; }; off.recurseForDerivations = false; };
        private = { recurseForDerivations = false; never = throw "never"; }; text = { value = "a"; };
        typed = { type = throw "no type"; inner = mk "typed"; }; fake = { type = "derivation"; drvPath = "/etc/passwd"; };
        unmade = { type = "derivation"; name = "x"; }; ring = let ring = { again = ring; }; in ring;"#;

fn assert_same(plain: Seen, jobs: Seen) {
    assert_eq!(plain.results, jobs.results, "{jobs:?}");
    assert_eq!(plain.limits, jobs.limits);
    assert_eq!(plain.limits["good"], (Some(7), None));
    let messages = |seen: &Seen| -> BTreeMap<String, String> {
        let line = |text: &String| text.lines().next().unwrap_or_default().to_owned();
        seen.errors.iter().map(|(name, error)| (name.clone(), line(error))).collect()
    };
    assert_eq!(messages(&plain), messages(&jobs));
    assert_eq!(plain.errors.len(), 8, "{:?}", plain.errors.keys());
    let sorted = |mut texts: Vec<String>| {
        texts.sort();
        texts
    };
    assert_eq!(sorted(plain.left_out), sorted(jobs.left_out));
    assert_eq!(sorted(plain.warnings), sorted(jobs.warnings));
    assert!(jobs.log.contains("my own") && !jobs.log.contains("listToAttrs"), "{}", jobs.log);
}

#[tokio::test]
async fn both_engines_give_the_same() {
    let mut world = World::new(&checks(BODY)).await;
    let stand_in = StandIn::new(false);
    let jobs = world.engine.nix_eval_jobs.take().unwrap_or_else(|| stand_in.program());
    let plain = world.evaluate_all().await;
    world.engine.nix_eval_jobs = Some(jobs);
    assert_same(plain, world.evaluate_all().await);
}

#[tokio::test]
async fn what_the_real_nix_eval_jobs_said_is_what_plain_nix_finds() {
    let recorded = recording(Archive::NixEvalJobs);
    let dir = tempfile::tempdir().expect("directory");
    for name in ["stdout.jsonl", "stderr"] {
        let file = dir.path().join(name);
        std::fs::write(&file, &recorded[&format!("k-expression/base/{name}")]).expect("file");
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).expect("mode");
    }
    let replays = r#"#!/bin/sh
for expression; do :; done
nonce=$(printf '%s\n' "$expression" | sed -n 's/^  nonce = "\([0-9a-f]*\)";$/\1/p')
sed "s/NONCE/$nonce/g" "${0%/*}/stderr" >&2
sed "s/NONCE/$nonce/g" "${0%/*}/stdout.jsonl"
"#;
    let program = dir.path().join("nix-eval-jobs");
    write_program(&program, replays);
    let mut world = World::new(&checks(BODY)).await;
    world.engine.nix_eval_jobs = None;
    let plain = world.evaluate_all().await;
    world.engine.nix_eval_jobs = Some(program);
    assert_same(plain, world.evaluate_all().await);
}

/// Why the expression names attributes as it does.
#[test]
fn the_stand_in_takes_names_for_indexes_as_the_real_one_does() {
    let recorded = recording(Archive::NixEvalJobs);
    let said = String::from_utf8_lossy(&recorded["k-names/base/stdout.jsonl"]).into_owned();
    for (name, words) in [("0", "should be a list but is a set"), (r#"a.q\"uote"#, "missing closing quote")] {
        let line = said.lines().find(|line| line.contains(&format!(r#""attr":"{name}""#))).expect("a line");
        assert!(line.contains(words), "{line}");
    }
    assert!(STAND_IN.contains("should be a list but is a set") && !said.contains("function"), "{said}");
}

#[tokio::test]
async fn a_line_that_is_lost_is_never_green_however_well_a_run_ends() {
    let mut world = World::new(&checks("")).await;
    let dir = tempfile::tempdir().expect("directory");
    let program = dir.path().join("nix-eval-jobs");
    write_program(
        &program,
        "#!/bin/sh
exit 0
",
    );
    world.engine.nix_eval_jobs = Some(program);
    let seen = world.evaluate(&["a"]).await.expect("evaluates");
    assert!(seen.errors["a"].contains("gave neither a result nor an error for this attribute"), "{seen:?}");
}

/// Only about what the driver does when runs die.
#[tokio::test]
async fn attributes_lost_behind_a_dead_worker_are_asked_for_again() {
    let mut world = World::new(&checks("")).await;
    let dir = tempfile::tempdir().expect("directory");
    let script = r#"#!/bin/sh
line() { echo "{\"attr\":\"$1\",\"attrPath\":[\"$1\"],\"drvPath\":\"/nix/store/00000000000000000000000000000000-$2.drv\"}"; }
case "$*" in
  *'"t2" ='*) line t0 a; line unwanted x; echo "warning: the first run" >&2; echo 'not JSON' ;;
  *'"t1" ='*) line t0 b; echo "warning: all that is missing" >&2 ;;
  *) echo "error: alone" >&2 ;;
esac
exit 1
"#;
    let fake = dir.path().join("nix-eval-jobs");
    write_program(&fake, script);
    world.engine.nix_eval_jobs = Some(fake);
    let seen = world.evaluate(&["a", "b", "c"]).await.expect("evaluates");
    assert_eq!(seen.results.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert!(seen.results["b"].ends_with("-b.drv"));
    assert!(
        seen.errors["c"].contains("died while this was evaluated alone") && seen.errors["c"].contains("error: alone"),
        "{seen:?}"
    );
    for (text, count) in [("the first run", 1), ("all that is missing", 1), ("error: alone", 2)] {
        assert_eq!(seen.log.matches(text).count(), count, "{}", seen.log);
    }
    assert!(
        seen.warnings.len() == 1 && seen.warnings[0].contains("line 3 is malformed (not JSON)"),
        "{:?}",
        seen.warnings
    );
}
