//! A private repository over HTTP: git's own server program behind a password.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use harmonia_core::SecretText;
use harmonia_core::forge::CloneCredential;

use crate::evaluator::source::tests::Repositories;
use crate::evaluator::source::{GitError, Origin, Wanted, checkout};
use crate::test_parts::GitServer;

const USER: &str = "x-access-token";
const PASSWORD: &str = "correct horse battery";

#[tokio::test]
async fn a_private_repository_is_fetched_with_its_credential_and_not_without() {
    let world = Repositories::new();
    let dir = world.create("private");
    std::fs::write(dir.join("a"), "secret sauce").expect("file");
    let commit = world.commit("private", "one");
    let server = GitServer::start(world.dir.path(), Some((USER, PASSWORD))).await;
    let origin = Origin::Url(format!("http://{}/private/.git", server.address));
    let sources = world.sources(false);
    let without = Wanted { commit: Some(&commit), branch: "main", ..Wanted::default() };
    let error = checkout(&sources, &origin, &without).await.expect_err("needs a password");
    assert!(matches!(error, GitError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("needs a forge connection"), "{error}");

    let mut credential = CloneCredential {
        user: USER.to_owned(),
        password: SecretText::new(PASSWORD.to_owned()),
        hosts: vec!["elsewhere.example.org".to_owned()],
    };
    let elsewhere = credential.clone();
    let error = checkout(&sources, &origin, &Wanted { credential: Some(&elsewhere), ..without }).await;
    assert!(error.is_err(), "a password for another server");
    assert!(server.seen().iter().all(|(_, with_password)| !with_password), "it was sent there");

    credential.hosts = vec![server.address.clone()];
    let mut wrong = credential.clone();
    wrong.password = SecretText::new("guessed".to_owned());
    let error = checkout(&sources, &origin, &Wanted { credential: Some(&wrong), ..without }).await.expect_err("wrong");
    assert!(matches!(error, GitError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("Grant it") && !error.to_string().contains("guessed"), "{error}");

    let found =
        checkout(&sources, &origin, &Wanted { credential: Some(&credential), ..without }).await.expect("fetches");
    assert_eq!(std::fs::read_to_string(found.dir.path().join("a")).expect("file"), "secret sauce");
    // Nothing of it stays on disk.
    let encoded = STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let kept = std::process::Command::new("grep")
        .args(["-rlE", &format!("{PASSWORD}|{encoded}")])
        .arg(world.dir.path())
        .output()
        .expect("grep");
    assert!(kept.stdout.is_empty(), "{}", String::from_utf8_lossy(&kept.stdout));
}

#[tokio::test]
async fn submodules_of_the_same_owner_get_the_credential_and_those_of_others_do_not() {
    let world = Repositories::new();
    for owner in ["acme", "other"] {
        std::fs::create_dir(world.dir.path().join(owner)).expect("folder");
    }
    let publish = |name: &str, place: &str| {
        std::os::unix::fs::symlink(world.dir.path().join(name).join(".git"), world.dir.path().join(place))
            .expect("link");
    };
    let inner = world.create("inner");
    std::fs::write(inner.join("a"), "inner").expect("file");
    let inside = world.commit("inner", "inner");
    publish("inner", "acme/inner.git");
    publish("inner", "other/inner.git");
    let server = GitServer::start(world.dir.path(), Some((USER, PASSWORD))).await;
    let sources = world.sources(false);
    let credential = CloneCredential {
        user: USER.to_owned(),
        password: SecretText::new(PASSWORD.to_owned()),
        hosts: vec![server.address.clone()],
    };
    // Added by hand, since nobody asks this test's git for a password.
    for (name, url, private_submodules, is_fetched) in [
        ("beside", "../inner.git".to_owned(), true, true),
        ("foreign", format!("http://{}/other/inner.git", server.address), true, false),
        ("public", "../inner.git".to_owned(), false, false),
    ] {
        let dir = world.create(name);
        std::fs::write(dir.join(".gitmodules"), format!("[submodule \"s\"]\n\tpath = s\n\turl = {url}\n"))
            .expect("file");
        world.git(name, &["update-index", "--add", "--cacheinfo", &format!("160000,{inside},s")]);
        world.git(name, &["add", ".gitmodules"]);
        world.git(name, &["commit", "--quiet", "-m", "title"]);
        let commit = world.git(name, &["rev-parse", "HEAD"]);
        publish(name, &format!("acme/{name}.git"));
        let origin = Origin::Url(format!("http://{}/acme/{name}.git", server.address));
        let wanted = Wanted {
            commit: Some(&commit),
            branch: "main",
            credential: Some(&credential),
            private_submodules,
            ..Wanted::default()
        };
        let found = checkout(&sources, &origin, &wanted).await;
        let foreign = server.seen().iter().any(|(line, with_password)| line.contains("/other/") && *with_password);
        assert!(!foreign, "the password went to another owner's repository");
        match found {
            Ok(found) if is_fetched => {
                assert_eq!(std::fs::read_to_string(found.dir.path().join("s/a")).expect("file"), "inner");
            }
            Ok(found) => {
                assert!(!found.dir.path().join("s/a").exists(), "{name}: out of somebody else's mirror");
                assert!(found.warnings[0].contains("does not give out the repository"), "{:?}", found.warnings);
            }
            Err(error) => panic!("{name}: {error:?}"),
        }
    }
}
