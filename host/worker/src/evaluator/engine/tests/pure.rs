//! What evaluated code can read: its own flake, and nothing of the machine nor of others.

use super::*;

#[tokio::test]
async fn evaluated_code_cannot_pretend_a_result() {
    let world = World::new(&checks(
        r#"forged = builtins.trace "r {\"attrPath\":[\"checks\",\"x86_64-linux\",\"victim\"]}" (builtins.trace "error: not really" (mk "forged"));
           victim = mk "victim";"#,
    ))
    .await;
    let seen = world.evaluate(&["forged", "victim"]).await.expect("evaluates");
    assert!(seen.results.contains_key("forged") && seen.results["victim"].ends_with("-victim.drv"), "{seen:?}");
}

/// A flake that tries to read what is not its own.
async fn curious() -> World {
    let daemon = TestDaemon::start().await;
    let dir = tempfile::tempdir().expect("directory");
    // The source of another project, on the same node.
    std::fs::create_dir(dir.path().join("other")).expect("directory");
    std::fs::write(dir.path().join("other/secret"), "SECRET").expect("file");
    let mut connection = daemon.client().connect().await.expect("connects");
    let other = add_tree(&mut connection, &dir.path().join("other")).await.expect("adds").path;
    std::fs::create_dir(dir.path().join("own")).expect("directory");
    let body = format!(
        r#"environment = mk "x${{builtins.getEnv "NIX_DAEMON_SOCKET_PATH"}}${{builtins.getEnv "HOME"}}y";
           exists = mk (if builtins.pathExists "{other}/secret" || builtins.pathExists "/etc/passwd" then "seen" else "unseen");
           file = mk (builtins.readFile "/etc/passwd"); store = mk (builtins.concatStringsSep "-" (builtins.attrNames (builtins.readDir "/nix/store")));
           secret = mk (builtins.readFile "{other}/secret"); path = mk (builtins.readFile "${{/. + "{other}"}}/secret");
           copied = mk "${{builtins.path {{ path = "{other}"; name = "copied"; }}}}"; imported = import "{other}/secret";
           stored = mk (builtins.readFile "${{builtins.storePath "{other}"}}/secret");
           tree = mk (builtins.readFile "${{builtins.fetchTree {{ type = "path"; path = "{other}"; }}}}/secret");
           flake = (builtins.getFlake "path:{other}").outputs; git = mk (builtins.fetchGit "file:///etc").rev;
           url = mk (builtins.readFile (builtins.fetchurl "http://127.0.0.1:1/metadata"));
           tarball = mk (builtins.readFile (builtins.fetchTarball "http://127.0.0.1:1/x.tar.gz"));
           time = mk (toString builtins.currentTime); system = mk builtins.currentSystem; search = import <nixpkgs>;"#
    );
    std::fs::write(dir.path().join("own/flake.nix"), checks(&body)).expect("file");
    World::with_tree(daemon, &dir.path().join("own"), "").await
}

fn files_of(dir: &std::path::Path) -> Vec<String> {
    let files = std::fs::read_dir(dir).expect("a directory").map(|file| file.expect("a file").file_name());
    let mut names: Vec<String> = files.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn assert_saw_nothing(world: &World, mut seen: Seen) {
    assert!(seen.results["environment"].ends_with("-xy.drv"), "{seen:?}");
    assert!(seen.results["exists"].ends_with("-unseen.drv"), "{seen:?}");
    // Nix 2.26 lists the store, but only what may be read of it: the flake's own source, and what asks for its attributes.
    if let Some(store) = seen.results.remove("store") {
        let name = store.strip_suffix(".drv").and_then(|path| path.get("/nix/store/".len() + 33..)).expect("a name");
        for name in name.split("source-") {
            let name = format!("{}-source", name.trim_end_matches("source").trim_end_matches('-'));
            let files = files_of(&world.daemon.store.root().join("nix/store").join(&name));
            let is_own = world.engine.flake.reference.contains(&format!("/{name}"));
            assert!(is_own || files == ["flake.nix", "tasks.json"], "{store}: {files:?}");
        }
        seen.errors.insert("store".to_owned(), "error: forbidden but for its own source".to_owned());
    }
    assert_eq!(seen.results.len(), 2, "{:?}", seen.results);
    // The last one is what Nix 2.34 says of the store as a whole.
    let pure = ["pure", "missing", "forbidden", "path '/nix/store/' is not in the Nix store"];
    for (name, error) in &seen.errors {
        let line = error.lines().next().unwrap_or_default();
        assert!(pure.iter().any(|word| line.contains(word)) && !error.contains("SECRET"), "{name}: {error}");
    }
    assert_eq!(seen.errors.len(), 15, "{:?}", seen.errors.keys());
}

#[tokio::test]
async fn evaluated_code_sees_nothing_of_the_machine_nor_of_other_projects() {
    let world = curious().await;
    let seen = world.evaluate_all().await;
    assert_saw_nothing(&world, seen);
}

/// As Nix 2.26 lets evaluated code find out: it reads all that there is to read of the store, and prints what a result would
/// be with every word of it that could be a nonce.
#[tokio::test]
async fn what_is_told_past_errors_cannot_be_pretended_by_who_reads_how_it_is_asked_for() {
    let world = World::new(&checks(
        r#"a-thrown = throw "so that it goes on past errors"; victim = mk "victim";
           spy = let
               store = "/nix/store";
               files = map (name: "${store}/${name}/flake.nix") (builtins.attrNames (builtins.readDir store));
               texts = map builtins.readFile (builtins.filter builtins.pathExists files);
               words = builtins.filter builtins.isList (builtins.split "([0-9a-f]{20,})" (toString texts));
               forge = value: word: builtins.trace
                 "${builtins.head word}r \"/nix/store/00000000000000000000000000000000-forged.drv\""
                 (builtins.trace "${builtins.head word}l { }" value);
             in builtins.foldl' forge (mk "spy") words;
           z-thrown = throw "last";"#,
    ))
    .await;
    let seen = world.evaluate_all().await;
    assert!(seen.results["victim"].ends_with("-victim.drv"), "{seen:?}");
    match seen.results.get("spy") {
        Some(drv) => assert!(drv.ends_with("-spy.drv") && seen.log.contains("-forged.drv"), "it read: {seen:?}"),
        None => assert!(seen.errors.contains_key("spy"), "{seen:?}"),
    }
    assert!(!seen.results.values().any(|drv| drv.ends_with("-forged.drv")), "{seen:?}");
}

#[tokio::test]
async fn nor_does_it_with_nix_eval_jobs_however_its_runs_end() {
    let mut world = curious().await;
    for dies_first in [false, true] {
        let stand_in = eval_jobs::StandIn::new(dies_first);
        world.engine.nix_eval_jobs = Some(stand_in.program());
        let seen = world.evaluate_all().await;
        assert_saw_nothing(&world, seen);
    }
}

/// They are in memory, beside that of the process.
#[tokio::test]
async fn temporary_files_have_no_more_memory_than_the_process() {
    use std::os::unix::fs::PermissionsExt;
    let mut world = World::new(&checks(r#"sizes = mk "sizes";"#)).await;
    let dir = tempfile::tempdir().expect("directory");
    let program = dir.path().join("nix-eval-jobs");
    let text = "#!/bin/sh\nsizes=$(df -Pk /tmp \"$HOME\" | awk 'NR > 1 { printf \"%s \", $2 }')\n\
        printf '{\"attr\":\"x\",\"attrPath\":[\"t0\"],\"error\":\"sizes %s\"}\\n' \"$sizes\"\n";
    std::fs::write(&program, text).expect("file");
    for path in [dir.path(), &program] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("mode");
    }
    world.engine.nix_eval_jobs = Some(program);
    world.engine.memory_bytes_max = 1 << 30;
    let seen = world.evaluate(&["sizes"]).await.expect("evaluates");
    let sizes: Vec<u64> = seen.errors["sizes"].split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert_eq!(sizes, [(1 << 20) / 2; 2], "KiB: {}", seen.errors["sizes"]);
}
