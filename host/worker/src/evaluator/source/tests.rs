//! Real repositories, friendly and hostile, checked out by the real git.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harmonia_egress::Egress;

use super::*;

/// Git repositories below one temporary folder.
pub(in crate::evaluator) struct Repositories {
    pub(in crate::evaluator) dir: tempfile::TempDir,
}

impl Repositories {
    pub(in crate::evaluator) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("directory") }
    }

    pub(in crate::evaluator) fn git(&self, name: &str, arguments: &[&str]) -> String {
        let output = Command::new("git")
            .current_dir(self.dir.path().join(name))
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.dir.path())
            .env("GIT_AUTHOR_DATE", "1700000000 +0000")
            .env("GIT_COMMITTER_DATE", "1700000000 +0000")
            .args(["-c", "user.name=A. Uthor", "-c", "user.email=a@example.org", "-c", "protocol.file.allow=always"])
            .args(["-c", "init.defaultBranch=main"])
            .args(arguments)
            .output()
            .expect("git runs");
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }

    pub(in crate::evaluator) fn create(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir(&path).expect("directory");
        self.git(name, &["init", "--quiet"]);
        path
    }

    /// A bundle of HEAD.
    pub(in crate::evaluator) fn bundle(&self, name: &str) -> Vec<u8> {
        let bundle = self.dir.path().join("x.bundle");
        self.git(name, &["bundle", "create", "--quiet", bundle.to_str().expect("text"), "HEAD"]);
        std::fs::read(bundle).expect("bundle")
    }

    pub(in crate::evaluator) fn commit(&self, name: &str, title: &str) -> String {
        self.git(name, &["add", "--all"]);
        self.git(name, &["commit", "--quiet", "--allow-empty", "-m", title]);
        self.git(name, &["rev-parse", "HEAD"])
    }

    pub(in crate::evaluator) fn sources(&self, allow_file_urls: bool) -> GitSources {
        GitSources {
            git: "git".into(),
            mirrors: Mirrors::new(
                self.dir.path().join("mirrors"),
                MirrorLimits { bytes_max: 1 << 30, unused_max: Duration::from_hours(24) },
            ),
            scratch_dir: self.dir.path().join("scratch"),
            allow_file_urls,
            egress: egress(&["127.0.0.0/8"]),
        }
    }

    pub(in crate::evaluator) fn url(&self, name: &str) -> Origin {
        Origin::Url(format!("file://{}", self.dir.path().join(name).display()))
    }
}

/// A way to public addresses and to these.
pub(in crate::evaluator) fn egress(listed: &[&str]) -> Egress {
    let allowed = listed.iter().map(|text| text.parse().expect("a grant")).collect();
    crate::git::way::egress(allowed)
}

fn wanted<'a>(commit: Option<&'a str>, branch: &'a str) -> Wanted<'a> {
    Wanted { commit, branch, ..Wanted::default() }
}

fn write(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join(name), text).expect("file");
}

#[tokio::test]
async fn a_commit_comes_from_a_url_and_later_from_its_mirror() {
    let world = Repositories::new();
    let dir = world.create("repo");
    write(&dir, "a", "first");
    let first = world.commit("repo", "first title\n\nand a body");
    write(&dir, "a", "second");
    std::os::unix::fs::symlink("a", dir.join("link")).expect("symlink");
    let second = world.commit("repo", "second");

    let sources = world.sources(true);
    let old = checkout(&sources, &world.url("repo"), &wanted(Some(&first), "main")).await.expect("checks out");
    assert_eq!(std::fs::read_to_string(old.dir.path().join("a")).expect("file"), "first");
    assert!(!old.dir.path().join(".git").exists());
    assert_eq!(
        (old.title.as_str(), old.author.as_str(), old.committed_at_s),
        ("first title", "A. Uthor", 1_700_000_000)
    );
    assert_eq!(old.tree_hash, world.git("repo", &["rev-parse", &format!("{first}^{{tree}}")]));

    let head = checkout(&sources, &world.url("repo"), &wanted(None, "main")).await.expect("checks out");
    assert_eq!(head.commit, second);
    assert_eq!(std::fs::read_link(head.dir.path().join("link")).expect("symlink"), Path::new("a"));

    // A lock that a killed fetch left behind is no obstacle.
    write(&dir, "a", "third");
    let third = world.commit("repo", "third");
    let mirror = std::fs::read_dir(world.dir.path().join("mirrors"))
        .expect("mirrors")
        .next()
        .expect("one")
        .expect("readable")
        .path();
    for lock in ["refs/fetched/head.lock", "packed-refs.lock", "shallow.lock", "objects/pack/tmp_pack_x"] {
        std::fs::create_dir_all(mirror.join(lock).parent().expect("within")).expect("directory");
        write(&mirror, lock, "");
    }
    checkout(&sources, &world.url("repo"), &wanted(Some(&third), "main")).await.expect("after a new start");
    checkout(&sources, &world.url("repo"), &wanted(Some(&first), "main")).await.expect("old ones, too");

    std::fs::remove_dir_all(&dir).expect("removes");
    checkout(&sources, &world.url("repo"), &wanted(Some(&first), "main")).await.expect("from the mirror");
    let error = checkout(&sources, &world.url("repo"), &wanted(None, "main")).await.expect_err("gone");
    assert!(matches!(error, GitError::Failed { command: "fetch", .. }), "{error}");
}

#[tokio::test]
async fn a_commit_comes_from_a_bundle() {
    let world = Repositories::new();
    let dir = world.create("repo");
    write(&dir, "a", "bundled");
    let commit = world.commit("repo", "one");
    let bundle = world.dir.path().join("x.bundle");
    world.git("repo", &["bundle", "create", "--quiet", bundle.to_str().expect("text"), "HEAD"]);
    let origin = Origin::Bundle(bundle.clone());
    let checked_out =
        checkout(&world.sources(false), &origin, &wanted(Some(&commit), "main")).await.expect("checks out");
    assert_eq!(std::fs::read_to_string(checked_out.dir.path().join("a")).expect("file"), "bundled");
    assert_eq!(checked_out.flake_dir, None);
    // The folder of the flake may come along.
    std::fs::write(dir.join("where"), "sub/flake").expect("file");
    let text = world.git("repo", &["hash-object", "-w", "where"]);
    let sent = harmonia_core::git::FLAKE_DIR_REF;
    world.git("repo", &["update-ref", sent, &text]);
    world.git("repo", &["bundle", "create", "--quiet", bundle.to_str().expect("text"), "HEAD", sent]);
    let found = checkout(&world.sources(false), &origin, &wanted(Some(&commit), "main")).await.expect("checks out");
    assert_eq!((found.commit, found.flake_dir.as_deref()), (commit.clone(), Some("sub/flake")));
    let other = "0".repeat(40);
    let error = checkout(&world.sources(false), &origin, &wanted(Some(&other), "main")).await.expect_err("not there");
    assert!(matches!(error, GitError::NoCommit { .. }), "{error}");
    std::fs::write(&bundle, "not a bundle").expect("file");
    let error = checkout(&world.sources(false), &origin, &wanted(Some(&commit), "main")).await.expect_err("broken");
    assert!(matches!(error, GitError::Failed { .. }), "{error}");
}

#[tokio::test]
async fn submodules_are_fetched_but_never_from_this_machine() {
    let world = Repositories::new();
    let inner = world.create("inner");
    write(&inner, "secret", "of this machine");
    world.commit("inner", "inner");
    world.create("outer");
    let url = format!("file://{}", inner.display());
    world.git("outer", &["submodule", "--quiet", "add", &url, "stolen"]);
    let commit = world.commit("outer", "outer");
    let error =
        checkout(&world.sources(true), &world.url("outer"), &wanted(Some(&commit), "main")).await.expect_err("refused");
    let message = error.to_string();
    assert!(matches!(error, GitError::Submodule { .. }), "{message}");
    assert!(message.contains("must not come from this machine"), "{message}");
}

#[tokio::test]
async fn hostile_names_never_reach_git() {
    let world = Repositories::new();
    let sources = world.sources(false);
    let good = Origin::Url("https://127.0.0.1:1/x".to_owned());
    for branch in ["--upload-pack=touch /tmp/x", "", "a..b", "a b", "-x", "x.lock", "a\nb", "@{-1}", "a:b"] {
        let error = checkout(&sources, &good, &wanted(None, branch)).await.expect_err(branch);
        assert!(matches!(error, GitError::RefName(_)), "{branch}: {error}");
    }
    for commit in ["HEAD", "--all", "abc", &"g".repeat(40), &"A".repeat(40)] {
        let error = checkout(&sources, &good, &wanted(Some(commit), "main")).await.expect_err(commit);
        assert!(matches!(error, GitError::Commit(_)), "{commit}: {error}");
    }
    for url in
        ["ext::sh -c touch% /tmp/x", "file:///etc", "/etc", "--upload-pack=x", "ssh://-oProxyCommand=x/y", "fd::3"]
    {
        let error = checkout(&sources, &Origin::Url(url.to_owned()), &wanted(None, "main")).await.expect_err(url);
        assert!(matches!(error, GitError::Url { .. }), "{url}: {error}");
    }
}

#[test]
fn a_configuration_that_leads_out_of_the_repository_is_refused() {
    let dir = tempfile::tempdir().expect("directory");
    assert_eq!(read_config(dir.path()).expect("default"), harmonia_core::project_config::ParsedConfig::default());
    std::os::unix::fs::symlink("/etc/passwd", dir.path().join(".harmonia-ci.toml")).expect("symlink");
    let error = read_config(dir.path()).expect_err("escapes");
    assert!(matches!(error, ReadConfigError::Read { .. }), "{error}");
    assert!(!format!("{error:?}").contains("root:"));

    std::fs::remove_file(dir.path().join(".harmonia-ci.toml")).expect("removes");
    write(dir.path(), "buildbot-nix.toml", "attribute = \"packages\"\n");
    assert_eq!(read_config(dir.path()).expect("reads").config.attrs, [["packages"]]);
    write(dir.path(), "ours", "attrs = [\"x\"]\n");
    std::os::unix::fs::symlink("ours", dir.path().join(".harmonia-ci.toml")).expect("symlink");
    assert_eq!(read_config(dir.path()).expect("a symlink within").config.attrs, [["x"]]);
    write(dir.path(), "ours", "attrs = 1\n");
    assert!(read_config(dir.path()).expect_err("malformed").to_string().starts_with(".harmonia-ci.toml:1:9"));
}

fn pull<'a>(head: &'a str, base: &'a str) -> Wanted<'a> {
    let merge = MergeWanted { head_ref: Some("refs/pull/7/head"), base_branch: "main", base_commit: Some(base) };
    Wanted { commit: Some(head), branch: "pull/7", merge: Some(merge), ..Wanted::default() }
}

/// `main` and a topic that left it one commit ago; returns base and head.
fn fork(world: &Repositories, ours: (&str, &str), theirs: (&str, &str)) -> (String, String) {
    let dir = world.create("repo");
    write(&dir, "a", "first\n");
    write(&dir, ".harmonia-ci.toml", "allow-ifd = false\n");
    world.commit("repo", "first");
    world.git("repo", &["checkout", "--quiet", "-b", "topic"]);
    write(&dir, theirs.0, theirs.1);
    let head = world.commit("repo", "a topic");
    world.git("repo", &["update-ref", "refs/pull/7/head", &head]);
    world.git("repo", &["checkout", "--quiet", "main"]);
    write(&dir, ours.0, ours.1);
    (world.commit("repo", "second"), head)
}

#[tokio::test]
async fn a_pull_request_is_its_head_merged_onto_the_base_the_same_way_every_time() {
    let world = Repositories::new();
    let (base, head) = fork(&world, ("ours", "x"), ("theirs", "y"));
    // A later push moves the forge's ref: what was asked for is merged all the same.
    world.git("repo", &["checkout", "--quiet", "topic"]);
    write(&world.dir.path().join("repo"), "later", "not approved");
    let later = world.commit("repo", "later");
    world.git("repo", &["update-ref", "refs/pull/7/head", &later]);
    let sources = world.sources(true);
    let first = checkout(&sources, &world.url("repo"), &pull(&head, &base)).await.expect("merges");
    for (file, there) in [("ours", true), ("theirs", true), ("a", true), ("later", false)] {
        assert_eq!(first.dir.path().join(file).exists(), there, "{file}");
    }
    let merged = first.merged.clone().expect("merged");
    assert_eq!((merged.head.as_str(), merged.base.as_str()), (head.as_str(), base.as_str()));
    assert_eq!((first.title.as_str(), first.author.as_str()), ("a topic", "A. Uthor"));
    assert!(first.commit != head && first.commit != base);
    let again = checkout(&sources, &world.url("repo"), &pull(&head, &base)).await.expect("merges");
    assert_eq!((&again.commit, &again.tree_hash), (&first.commit, &first.tree_hash));
    // The base was rewritten: its branch's head stands in.
    let gone = "1".repeat(40);
    let rebased = checkout(&sources, &world.url("repo"), &pull(&head, &gone)).await.expect("merges");
    assert_eq!(rebased.merged.expect("merged").base, base);
}

#[tokio::test]
async fn a_pull_request_with_conflicts_names_them() {
    let world = Repositories::new();
    let (base, head) = fork(&world, ("a", "ours\n"), ("a", "theirs\n"));
    let error = checkout(&world.sources(true), &world.url("repo"), &pull(&head, &base)).await.expect_err("conflict");
    assert_eq!(error.to_string(), "the pull request cannot be merged into main: conflicts in a");

    let world = Repositories::new();
    let (base, _) = fork(&world, ("a", "x"), ("b", "y"));
    world.git("repo", &["checkout", "--quiet", "--orphan", "alone"]);
    let alone = world.commit("repo", "alone");
    let error = checkout(&world.sources(true), &world.url("repo"), &pull(&alone, &base)).await.expect_err("unrelated");
    assert!(error.to_string().contains("nothing in common"), "{error}");
}

#[tokio::test]
async fn what_a_stranger_may_not_decide_comes_from_the_base() {
    let world = Repositories::new();
    let (base, head) = fork(
        &world,
        ("ours", "x"),
        (".harmonia-ci.toml", "allow-ifd = true\neval-timeout = \"5h\"\nattrs = [\"packages\"]\n"),
    );
    let out = checkout(&world.sources(true), &world.url("repo"), &pull(&head, &base)).await.expect("merges");
    let mut config = read_config(out.dir.path()).expect("reads");
    assert!(config.config.allow_ifd, "the merged file is the stranger's");
    bind_to_base(&mut config, out.merged.expect("merged").base_config.as_ref());
    assert!(!config.config.allow_ifd && config.config.eval_timeout.is_none());
    assert_eq!(config.config.attrs, [["packages"]]);
    assert_eq!(config.warnings.len(), 2, "{:?}", config.warnings);
}

#[tokio::test]
async fn a_tag_is_found_among_the_tags() {
    let world = Repositories::new();
    let dir = world.create("repo");
    write(&dir, "a", "one");
    let tagged = world.commit("repo", "one");
    world.git("repo", &["tag", "v1"]);
    write(&dir, "a", "two");
    world.commit("repo", "two");
    let wanted = Wanted { branch: "v1", is_tag: true, ..Wanted::default() };
    assert_eq!(checkout(&world.sources(true), &world.url("repo"), &wanted).await.expect("found").commit, tagged);
}
