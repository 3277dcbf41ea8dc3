//! Mirrors over their lives: what branches do, how they are packed, and when they go.

use super::*;
use crate::evaluator::source::tests::Repositories;
use crate::evaluator::source::{GitSources, Origin, Wanted, checkout};

const LIMITS: MirrorLimits = MirrorLimits { bytes_max: 1 << 30, unused_max: Duration::from_hours(24) };

async fn head(world: &Repositories, sources: &GitSources, branch: &str) -> Result<String, GitError> {
    let wanted = Wanted { branch, ..Wanted::default() };
    checkout(sources, &world.url("repo"), &wanted).await.map(|found| found.commit)
}

fn mirrors_in(world: &Repositories) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(world.dir.path().join("mirrors")).expect("mirrors");
    entries.map(|entry| entry.expect("entry").path()).collect()
}

fn git_in(dir: &Path, arguments: &[&str]) -> String {
    let output = std::process::Command::new("git").current_dir(dir).args(arguments).output().expect("git runs");
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

#[tokio::test]
async fn branches_come_go_and_change_their_names() {
    let world = Repositories::new();
    world.create("repo");
    let sources = world.sources(true);
    let mut heads = Vec::new();
    for branch in ["release", "deep/a/b", "RELEASE", "v1", "feat/#42-größe%41&x=1+'q'"] {
        let commit = world.commit("repo", branch);
        world.git("repo", &["update-ref", &format!("refs/heads/{branch}"), &commit]);
        heads.push((branch, commit));
    }
    let tagged = world.commit("repo", "tagged");
    world.git("repo", &["tag", "-a", "-m", "a tag of a branch's name", "v1", &tagged]);
    for (branch, commit) in &heads {
        assert_eq!(head(&world, &sources, branch).await.expect("there"), *commit, "{branch}");
    }
    let tag = Wanted { branch: "v1", is_tag: true, ..Wanted::default() };
    assert_eq!(checkout(&sources, &world.url("repo"), &tag).await.expect("there").commit, tagged);

    // Each gets in the way of the other's former name.
    for (gone, new) in [("release", "release/1.0"), ("deep/a/b", "deep")] {
        world.git("repo", &["update-ref", "-d", &format!("refs/heads/{gone}")]);
        let commit = world.commit("repo", new);
        world.git("repo", &["update-ref", &format!("refs/heads/{new}"), &commit]);
        assert_eq!(head(&world, &sources, new).await.expect("there"), commit, "{new}");
        let error = head(&world, &sources, gone).await.expect_err("it is gone");
        assert_eq!(error.to_string(), format!("the repository has no commit of that name (branch {gone})"));
    }
    // No common history.
    world.git("repo", &["checkout", "--quiet", "--orphan", "anew"]);
    let rewritten = world.commit("repo", "rewritten");
    world.git("repo", &["update-ref", "refs/heads/v1", &rewritten]);
    assert_eq!(head(&world, &sources, "v1").await.expect("there"), rewritten);
    // A branch whose name is the end of another's only.
    world.git("repo", &["update-ref", "refs/heads/x/refs/heads/y", &rewritten]);
    let error = head(&world, &sources, "y").await.expect_err("there is none");
    assert!(matches!(error, GitError::NoCommit { .. }), "{error:?}");
}

#[tokio::test]
async fn a_mirror_of_many_fetches_is_packed_and_forgets() {
    let world = Repositories::new();
    let dir = world.create("repo");
    let sources = world.sources(true);
    let first = {
        std::fs::write(dir.join("a"), "first").expect("file");
        world.commit("repo", "first")
    };
    assert_eq!(head(&world, &sources, "main").await.expect("there"), first);
    let mirror = mirrors_in(&world).remove(0);
    // Commits of a rewritten branch, that nothing after them holds.
    let mut count = 0;
    let loose = |mirror: &Path| -> u64 {
        let counted = git_in(mirror, &["count-objects"]);
        counted.split(' ').next().and_then(|count| count.parse().ok()).expect("a number")
    };
    while loose(&mirror) <= LOOSE_MAX {
        for file in 0..60 {
            std::fs::write(dir.join(file.to_string()), format!("{file} of {count}")).expect("file");
        }
        count += 1;
        world.git("repo", &["checkout", "--quiet", "--orphan", &format!("anew-{count}")]);
        let commit = world.commit("repo", "anew");
        world.git("repo", &["update-ref", "refs/heads/main", &commit]);
        assert_eq!(head(&world, &sources, "main").await.expect("there"), commit);
    }
    let (git, now) = (Path::new("git"), SystemTime::now());
    let in_use = sources.mirrors.enter(&mirror.file_name().expect("name").to_string_lossy()).await;
    sources.mirrors.tidy(git, now).await.expect("nothing is done to what is in use");
    assert!(loose(&mirror) > LOOSE_MAX);
    drop(in_use);
    sources.mirrors.tidy(git, now).await.expect("tidies");
    assert!(loose(&mirror) < 10, "{}", git_in(&mirror, &["count-objects", "-v"]));
    git_in(&mirror, &["fsck", "--strict"]);
    let wanted = Wanted { commit: Some(&first), branch: "main", ..Wanted::default() };
    std::fs::rename(&dir, world.dir.path().join("away")).expect("moved");
    checkout(&sources, &world.url("repo"), &wanted).await.expect("it was wanted lately");

    // Weeks later nobody knows them, and when that is worth it their objects go.
    let later = now + Duration::from_secs((COMMIT_DAYS + 2) * DAY_S);
    std::fs::write(mirror.join(SIZE_FILE), "0").expect("file");
    std::fs::write(mirror.join("objects/pack/tmp_pack_of_a_git_that_was_killed"), vec![0; 1 << 20]).expect("file");
    let mirror_git =
        Git { program: git, repository: &mirror, transports: Transports::None, authorization: None, way: None };
    mirror_git.tidy_mirror(later, 0).await.expect("tidies");
    assert!(!mirror.join("objects/pack/tmp_pack_of_a_git_that_was_killed").exists());
    assert_eq!(git_in(&mirror, &["for-each-ref", "refs/commits"]), "");
    let error = checkout(&sources, &world.url("repo"), &wanted).await.expect_err("forgotten, and nobody has it");
    assert!(matches!(error, GitError::Failed { .. }), "{error}");
}

#[tokio::test]
async fn mirrors_that_nobody_uses_go_and_those_in_use_stay() {
    let world = Repositories::new();
    let sources = world.sources(true);
    for name in ["old", "new", "used"] {
        world.create(name);
        world.commit(name, name);
        let wanted = Wanted { branch: "main", ..Wanted::default() };
        checkout(&sources, &world.url(name), &wanted).await.expect("checks out");
    }
    let mirror = |name: &str| {
        let Origin::Url(url) = world.url(name) else { unreachable!() };
        super::name(false, &url)
    };
    let now = SystemTime::now();
    for name in ["old", "used"] {
        let file = world.dir.path().join("mirrors").join(mirror(name)).join(USED_FILE);
        let file = std::fs::File::options().write(true).open(file).expect("file");
        file.set_modified(now - Duration::from_hours(25)).expect("as if it was used then");
    }
    std::fs::create_dir(world.dir.path().join("mirrors").join([DOOMED, "x"].concat())).expect("left by a crash");
    let in_use = sources.mirrors.enter(&mirror("used")).await;
    let tidy = async || sources.mirrors.tidy(Path::new("git"), now).await.expect("tidies");
    tidy().await;
    let left = |world: &Repositories| {
        let mut names: Vec<String> = mirrors_in(world)
            .iter()
            .map(|path| path.file_name().expect("name").to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    let mut expected = vec![mirror("new"), mirror("used")];
    expected.sort();
    assert_eq!(left(&world), expected);
    drop(in_use);
    tidy().await;
    assert_eq!(left(&world), [mirror("new")]);
    // Nothing is remembered of those that are gone.
    drop(sources.mirrors.enter("another").await);
    assert_eq!(sources.mirrors.0.locks.lock().expect("unpoisoned").len(), 1);
    // And one that went comes back.
    let wanted = Wanted { branch: "main", ..Wanted::default() };
    checkout(&sources, &world.url("old"), &wanted).await.expect("checks out");
}

#[test]
fn the_oldest_mirrors_go_first() {
    let found = |name: &str, mib: u64, hours: u64| Found {
        name: name.to_owned(),
        bytes: mib << 20,
        unused: Duration::from_hours(hours),
    };
    let all = [found("a", 10, 3), found("b", 10, 1), found("c", 10, 30), found("d", 100, 2), found("e", 1, 5)];
    let limits = |mib: u64| MirrorLimits { bytes_max: mib << 20, unused_max: Duration::from_hours(24) };
    assert_eq!(surplus(&all, 9, LIMITS), ["c"]);
    assert_eq!(surplus(&all, 2, LIMITS), ["a", "e", "c"]);
    assert_eq!(surplus(&all, 9, limits(112)), ["a", "c"]);
    assert_eq!(surplus(&all, 9, limits(25)), ["d", "c"], "one that is too big does not take the others with it");
    assert_eq!(surplus(&[], 0, LIMITS), Vec::<&str>::new());
}

#[test]
fn commits_are_kept_for_days_and_once() {
    let refs: Vec<String> =
        ["refs/commits/100/b", "refs/commits/100/a", "refs/commits/99/a", "refs/commits/80/c", "refs/commits/x"]
            .map(str::to_owned)
            .to_vec();
    assert_eq!(forgotten(&refs, 101), ["refs/commits/99/a", "refs/commits/80/c", "refs/commits/x"]);
    assert_eq!(forgotten(&refs, 100 + COMMIT_DAYS + 1).len(), refs.len());
    let many: Vec<String> = (0..COMMITS_MAX + 7).map(|n| format!("refs/commits/100/{n}")).collect();
    assert_eq!(forgotten(&many, 100).len(), 7);
}
