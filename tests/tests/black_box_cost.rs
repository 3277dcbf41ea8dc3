//! What a trivial job costs: statements, objects, connections to the store daemon. Counted, never timed.

use std::collections::BTreeMap;
use std::path::Path;

use harmonia_tests::repository::{commit, flake};
use harmonia_tests::server::{Server, folder};

/// Derivations of the graph: every second one leans on the one before.
const BUILDS: usize = 40;

/// A statement on a job's way, by something that only it has, and how often it may run for each job.
const STATEMENTS: [(&str, f64); 12] = [
    // More than one only when somebody looked in vain.
    ("FROM claim_jobs(", 1.5),
    ("FROM queue_heads(", 1.5),
    ("LEFT JOIN store_paths s ON s.path = o.output_path", 1.0),
    ("FROM upload_job(", 1.0),
    ("FROM claim_outputs(", 1.0),
    ("SELECT publish_outputs(", 1.0),
    // Of jobs that have to wait for their turn to upload.
    ("SELECT attempt_uploading(", 1.0),
    // Asked about all of them now and then, or only where something is not as usual.
    ("SELECT claim_is_held(", 0.2),
    ("SELECT id, endpoint", 0.3),
    ("SELECT path, nar_hash, nar_size FROM store_paths", 0.1),
    ("SELECT drv_path, output_name, output_path FROM derivation_outputs", 0.3),
    ("generation, state, public FROM store_paths WHERE path", 0.3),
];
/// All of them together: five and a half on a machine that is not busy.
const STATEMENTS_MAX: f64 = 6.5;

fn graph() -> String {
    flake(&format!(
        r#"let
      one = n: sh "job-${{toString n}}" "echo line; echo ${{toString n}} > $out"
        (if n / 2 * 2 == n then {{}} else {{ before = one (n - 1); }});
    in builtins.listToAttrs (builtins.genList (n: {{ name = "job${{toString n}}"; value = one n; }}) {BUILDS})"#
    ))
}

/// How often each statement that the server logged begins with, or contains, one of ours.
fn counted(log: &str) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    // A statement has line breaks, which are followed by a tab.
    let statements = log.replace("\n\t", " ");
    for line in statements.lines().filter(|line| line.contains("execute ") || line.contains("statement: ")) {
        let words = line.split_whitespace().collect::<Vec<_>>().join(" ");
        for (statement, _) in STATEMENTS {
            if words.contains(statement) {
                *counts.entry(statement).or_default() += 1;
            }
        }
    }
    counts
}

fn logs(data: &Path) -> String {
    let folder = std::fs::read_dir(data.join("postgres/log")).expect("logs of the private database");
    let read = |entry: std::fs::DirEntry| std::fs::read(entry.path()).expect("a log");
    folder.flatten().map(|entry| String::from_utf8_lossy(&read(entry)).into_owned()).collect()
}

fn connections(data: &Path) -> usize {
    let log = std::fs::read_to_string(data.join("nix/daemon.log")).expect("the daemon's log");
    log.lines().filter(|line| line.contains("accepted connection")).count()
}

/// Keys of the bucket are paths of files, with an ending each name has.
fn objects(dir: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).expect("a folder of the object store").flatten() {
        let path = entry.path();
        if path.is_dir() {
            objects(&path, found);
        } else {
            found.push(path.to_string_lossy().into_owned());
        }
    }
}

#[tokio::test]
async fn a_trivial_job_costs_few_statements_two_objects_and_no_connection_of_its_own() {
    let data = folder();
    let up = data.path().join("up");
    let repository = data.path().join("repository");
    commit(&repository, &[("flake.nix", &graph())]);
    let server = Server::up(&up, &[], &[("PGOPTIONS", "-c log_statement=all")]);
    let (before, connected) = (counted(&logs(&up)), connections(&up));
    let mut stored = Vec::new();
    objects(&up.join("objects/buckets"), &mut stored);
    let stored_before = stored.len();

    let path = repository.to_str().expect("UTF-8");
    let done = server.json(&["eval", path, "--wait", "--json"]);
    assert_eq!(done["counts"]["succeeded"].as_u64(), Some(BUILDS as u64), "{done}");

    let after = counted(&logs(&up));
    let mut all = 0;
    for (statement, each) in STATEMENTS {
        let count = after.get(statement).unwrap_or(&0) - before.get(statement).unwrap_or(&0);
        println!("{count:5} {statement}");
        let bound = each * BUILDS as f64;
        assert!(count as f64 <= bound, "{statement}: {count} for {BUILDS} jobs, {bound} at most");
        all += count;
    }
    assert!(all >= 3 * BUILDS, "the statements are recognised: {all}");
    assert!(all as f64 <= STATEMENTS_MAX * BUILDS as f64, "{all} statements for {BUILDS} jobs");

    let slots = std::thread::available_parallelism().expect("processors").get();
    let new = connections(&up) - connected;
    // The evaluation has some, too.
    assert!(new <= slots + 6, "{new} connections to the store daemon");

    stored.clear();
    objects(&up.join("objects/buckets"), &mut stored);
    let of = |what: &str| stored.iter().filter(|file| file.contains(what)).count();
    assert!(of(".nar.zst") >= BUILDS && of(".narinfo") >= BUILDS && of(".drv.zst") >= BUILDS, "{stored:#?}");
    assert_eq!(of("/log.d/"), 0, "small logs are no objects: {stored:#?}");
    // Beside the archive and its narinfo the derivation itself; and the source of the flake, with its listing.
    let new = stored.len() - stored_before;
    assert!(new <= 3 * BUILDS + 6, "{new} objects for {BUILDS} jobs");

    // Logs and listings are there all the same.
    let name_of = |ending: &str| {
        let name = |file: &String| Some(file.rsplit_once('/')?.1.strip_suffix(ending)?.to_owned());
        stored.iter().filter_map(name).collect::<Vec<_>>()
    };
    let drv = name_of(".zst.o")
        .into_iter()
        .find(|name| name.contains("-job-") && name.rsplit_once('.').is_some_and(|(_, end)| end == "drv"))
        .expect("a job's");
    let log = reqwest::get(format!("{}/log/{drv}", server.url)).await.expect("answered");
    assert!(log.status().is_success(), "{drv}: {}", log.status());
    assert!(!log.bytes().await.expect("a body").is_empty());
    for hash in name_of(".narinfo.o") {
        let listing = reqwest::get(format!("{}/{hash}.ls", server.url)).await.expect("answered");
        assert!(listing.status().is_success(), "{hash}: {}", listing.status());
        assert!(listing.text().await.expect("text").contains("\"root\""));
    }
}
