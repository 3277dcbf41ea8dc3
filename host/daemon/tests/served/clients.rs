//! What several clients, and those that go away, may count on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use harmonia_nix::StorePath;
use harmonia_nix::worker_protocol::{
    BuildMode, BuildResult, BuildStatus, ClientOptions, DerivedPath, LogMessage, LogTarget, OutputNames,
};

use crate::daemon::{Connection, Daemon, Maker, processes_with, until};

fn all(derivation: &StorePath) -> DerivedPath {
    DerivedPath::Built { derivation: derivation.clone(), outputs: OutputNames::All }
}

/// Derivations of shell scripts, by name.
fn scripts(daemon: &Daemon, scripts: &[(&str, &str)]) -> BTreeMap<String, StorePath> {
    let lines = scripts.iter().map(|(name, script)| {
        format!(
            "{name} = derivation {{ name = \"{name}\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
             args = [ \"-c\" ''{script}'' ]; PATH = \"/bin\"; }};"
        )
    });
    let made = daemon.instantiate_text(&format!("rec {{ {} }}", lines.collect::<String>()));
    made.into_iter().map(|path| (path.derivation_name().expect("a derivation").to_owned(), path)).collect()
}

async fn build(client: &mut Connection, targets: &[DerivedPath], mode: BuildMode) -> Vec<BuildResult> {
    let results = client.build_paths_with_results(targets, mode).await.expect("an answer");
    results.into_iter().map(|(_, result)| result).collect()
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_builds_and_so_does_the_daemon() {
    let mut daemon = Daemon::start(Maker::Ours).await;
    let derivations = scripts(&daemon, &[("first", "sleep 84211"), ("second", "sleep 84212")]);
    for (name, marker) in [("first", "84211"), ("second", "84212")] {
        let mut client = daemon.connect().await;
        let targets = [all(&derivations[name])];
        let task = tokio::spawn(async move { client.build_paths(&targets, BuildMode::Normal).await });
        until("the builder runs", || processes_with(marker) > 0).await;
        if name == "first" {
            task.abort();
        } else {
            daemon.kill();
        }
        until("the builder is dead", || processes_with(marker) == 0).await;
    }
}

#[tokio::test]
async fn what_two_clients_want_is_built_once() {
    let daemon = Daemon::start(Maker::Ours).await;
    let derivations = scripts(&daemon, &[("once", "sleep 1; echo done > $out")]);
    let begun = Arc::new(Mutex::new(0));
    let wait = |mut client: Connection| {
        let targets = [all(&derivations["once"])];
        async move { build(&mut client, &targets, BuildMode::Normal).await.remove(0) }
    };
    let client = || async {
        let begun = Arc::clone(&begun);
        let log = LogTarget::callback(move |message| {
            if matches!(message, LogMessage::Start(start) if start.text.starts_with("building")) {
                *begun.lock().expect("counted") += 1;
            }
        });
        daemon.connect_with(log).await
    };
    let (one, other) = tokio::join!(wait(client().await), wait(client().await));
    let mut statuses = [one.status.code(), other.status.code()];
    statuses.sort_unstable();
    assert_eq!(statuses, [BuildStatus::Built.code(), BuildStatus::AlreadyValid.code()]);
    assert_eq!(one.built_outputs, other.built_outputs);
    assert_eq!(*begun.lock().expect("counted"), 1);
}

#[tokio::test]
async fn a_failure_ends_the_rest_unless_the_client_wants_to_go_on() {
    let daemon = Daemon::start(Maker::Ours).await;
    let derivations = scripts(
        &daemon,
        &[
            ("bad", "echo the reason; exit 1"),
            ("needs", "echo ${bad} > $out"),
            ("slow", "sleep 84213"),
            ("good", "sleep 1; echo > $out"),
        ],
    );
    let said = Arc::new(Mutex::new(String::new()));
    let heard = Arc::clone(&said);
    let log = LogTarget::callback(move |message| {
        if let LogMessage::Text(text) = message {
            heard.lock().expect("said").push_str(&text);
        }
    });
    let mut client = daemon.connect_with(log).await;
    let options = ClientOptions { max_build_jobs: 2, ..ClientOptions::default() };
    client.set_options(&options).await.expect("options");
    let results = build(&mut client, &[all(&derivations["needs"]), all(&derivations["slow"])], BuildMode::Normal).await;
    assert_eq!(results[0].status, BuildStatus::DependencyFailed);
    assert!(results[0].error_message.contains("1 dependencies of derivation"), "{}", results[0].error_message);
    assert_eq!((results[1].status, results[1].error_message.as_str()), (BuildStatus::MiscFailure, ""));
    assert!(said.lock().expect("said").contains("the reason"), "{}", said.lock().expect("said"));
    until("the other builder is dead", || processes_with("84213") == 0).await;

    let options = ClientOptions { keep_going: true, ..options };
    client.set_options(&options).await.expect("options");
    let results = build(&mut client, &[all(&derivations["bad"]), all(&derivations["good"])], BuildMode::Normal).await;
    let statuses: Vec<BuildStatus> = results.iter().map(|result| result.status).collect();
    assert_eq!(statuses, [BuildStatus::PermanentFailure, BuildStatus::Built]);
}

#[tokio::test]
async fn checking_finds_what_differs_and_repairing_what_is_damaged() {
    let daemon = Daemon::start(Maker::Ours).await;
    let derivations = scripts(
        &daemon,
        &[("same", "echo same > $out"), ("random", "head -c 16 /dev/urandom > $out"), ("never", "echo > $out")],
    );
    let mut client = daemon.connect().await;
    let targets = [all(&derivations["same"]), all(&derivations["random"])];
    let built = build(&mut client, &targets, BuildMode::Normal).await;
    assert!(built.iter().all(|result| result.status == BuildStatus::Built), "{built:?}");
    let options = ClientOptions { keep_going: true, ..ClientOptions::default() };
    client.set_options(&options).await.expect("options");
    let checked = build(&mut client, &targets, BuildMode::Check).await;
    assert_eq!((checked[0].status, checked[1].status), (BuildStatus::Built, BuildStatus::NotDeterministic));
    assert!(checked[1].error_message.contains("may not be deterministic"), "{}", checked[1].error_message);
    let never = build(&mut client, &[all(&derivations["never"])], BuildMode::Check).await;
    assert!(never[0].error_message.contains("checking is not possible"), "{}", never[0].error_message);

    let file = daemon.real(&built[0].built_outputs["out"].path);
    std::fs::remove_file(&file).expect("removed");
    std::fs::write(&file, "damaged").expect("written");
    let repaired = build(&mut client, &targets[..1], BuildMode::Repair).await;
    assert_eq!(repaired[0].status, BuildStatus::Built, "{}", repaired[0].error_message);
    assert_eq!(std::fs::read(&file).expect("a file"), b"same\n");
}
