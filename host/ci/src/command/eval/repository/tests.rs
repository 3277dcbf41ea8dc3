//! Clones as people have them, by the real git.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use proptest::prelude::*;

use super::*;

/// A folder for repositories, and a home for git's configuration.
struct World(TempDir);

impl World {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("temporary folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn git(&self, folder: &str, arguments: &[&str]) -> String {
        let output = Command::new("git")
            .current_dir(self.path(folder))
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .args(["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"])
            .args(["-c", "protocol.file.allow=always"])
            .args(arguments)
            .output()
            .expect("git runs");
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.path(file);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("folder");
        std::fs::write(path, text).expect("written");
    }

    /// A repository `name` with `flake.nix`, `sub/file`, `sub/flake/flake.nix` and two commits.
    fn repository(&self, name: &str) {
        std::fs::create_dir_all(self.path(name)).expect("folder");
        self.git(name, &["init", "--quiet", "."]);
        self.write(&format!("{name}/flake.nix"), "{ }");
        self.write(&format!("{name}/sub/flake/flake.nix"), "{ }");
        for text in ["one", "two"] {
            self.write(&format!("{name}/sub/file"), text);
            self.git(name, &["add", "--all"]);
            self.git(name, &["commit", "--quiet", "-m", text]);
        }
    }

    /// Everything in a clone that evaluating must not change.
    fn state(&self, folder: &str) -> Vec<String> {
        let mut state = vec![
            self.git(folder, &["status", "--porcelain", "-uall"]),
            self.git(folder, &["count-objects", "-v"]),
            self.git(folder, &["for-each-ref"]),
            self.git(folder, &["config", "--local", "--list"]),
            self.git(folder, &["ls-files", "--stage", "-v"]),
        ];
        let git_dir = self.git(folder, &["rev-parse", "--absolute-git-dir"]);
        let mut files: Vec<String> = std::fs::read_dir(git_dir)
            .expect("git directory")
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
            .collect();
        files.sort();
        state.extend(files);
        state
    }

    /// The files of a bundle's commit, by name.
    fn files(&self, snapshot: &Snapshot) -> BTreeMap<String, String> {
        let out = tempfile::tempdir_in(self.0.path()).expect("folder");
        let name = out.path().file_name().expect("name").to_string_lossy().into_owned();
        let bundle = snapshot.bundle.to_str().expect("text");
        self.git(&name, &["clone", "--quiet", "--bare", bundle, "x.git"]);
        let git_dir = format!("{name}/x.git");
        assert_eq!(self.git(&git_dir, &["rev-parse", BUNDLE_REF]), snapshot.commit);
        self.git(&git_dir, &["fsck", "--strict"]);
        self.tree(&git_dir, &snapshot.commit)
    }

    fn tree(&self, git_dir: &str, tree: &str) -> BTreeMap<String, String> {
        let listed = self.git(git_dir, &["ls-tree", "-r", "-z", tree]);
        let entries = listed.split('\0').filter_map(|entry| entry.split_once('\t'));
        entries.map(|(object, name)| (name.to_owned(), object.to_owned())).collect()
    }
}

async fn snap(world: &World, folder: &str, dirty: bool) -> Snapshot {
    let before = world.state(folder.split('/').next().expect("name"));
    let snapshot = snapshot(&world.path(folder), dirty).await;
    let snapshot = snapshot.unwrap_or_else(|failure| panic!("{folder}: {failure:?}"));
    assert_eq!(world.state(folder.split('/').next().expect("name")), before, "{folder} was changed");
    snapshot
}

#[tokio::test]
async fn every_kind_of_clone_is_packed_and_stays_as_it_is() {
    let world = World::new();
    world.repository("origin");
    world.git("origin", &["config", "uploadpack.allowFilter", "true"]);
    let url = format!("file://{}", world.path("origin").display());
    let head = world.git("origin", &["rev-parse", "HEAD"]);
    world.git("origin", &["worktree", "add", "--quiet", "-b", "beside", "../worktree"]);
    for (name, options) in [
        ("shared", &["--shared"][..]),
        ("blobless", &["--filter=blob:none"]),
        ("treeless", &["--filter=tree:0"]),
        ("sparse", &["--sparse"]),
        ("both", &["--sparse", "--filter=blob:none"]),
        ("a\"b ", &[]),
        ("-dash", &[]),
    ] {
        let target = world.path(name);
        let from = if name == "shared" { world.path("origin").display().to_string() } else { url.clone() };
        let clone = ["clone", "--quiet"].iter().chain(options);
        let clone: Vec<&str> = clone.copied().chain(["--", &from, target.to_str().expect("text")]).collect();
        world.git(".", &clone);
    }
    world.git(".", &["clone", "--quiet", &url, "detached"]);
    world.git("detached", &["checkout", "--quiet", "--detach", "HEAD~1"]);
    let whole = ["flake.nix", "sub/file", "sub/flake/flake.nix"];
    for (name, branch) in [
        ("origin", "main"),
        ("worktree", "beside"),
        ("shared", "main"),
        ("blobless", "main"),
        ("treeless", "main"),
        ("sparse", "main"),
        ("both", "main"),
        ("detached", "detached"),
        ("a\"b ", "main"),
        ("-dash", "main"),
    ] {
        for dirty in [false, true] {
            let found = snap(&world, name, dirty).await;
            let expected = if name == "detached" { world.git(name, &["rev-parse", "HEAD"]) } else { head.clone() };
            assert_eq!((&found.commit, found.branch.as_str(), found.dirty), (&expected, branch, false), "{name}");
            assert_eq!(world.files(&found).into_keys().collect::<Vec<_>>(), whole, "{name}");
            assert_eq!((found.name.as_str(), found.flake_dir.as_str()), (name, ""));
        }
    }
    // What a partial clone lacks, and nobody gives: one sentence.
    std::fs::rename(world.path("origin"), world.path("elsewhere")).expect("moved");
    let failure = snapshot(&world.path("blobless"), false).await.err().expect("lacks old blobs");
    assert!(format!("{failure:?}").contains("partial clone"), "{failure:?}");
}

#[tokio::test]
async fn a_folder_means_the_nearest_flake_around_it() {
    let world = World::new();
    world.repository("repo");
    for (path, flake_dir) in
        [("repo", ""), ("repo/sub", ""), ("repo/sub/flake", "sub/flake"), ("repo/sub/flake/flake.nix", "sub/flake")]
    {
        let found = snap(&world, path, false).await;
        assert_eq!((found.name.as_str(), found.flake_dir.as_str()), ("repo", flake_dir), "{path}");
        let bundled = world.git(".", &["bundle", "list-heads", found.bundle.to_str().expect("text")]);
        assert_eq!(bundled.contains(FLAKE_DIR_REF), !flake_dir.is_empty(), "{bundled}");
    }
    // One that is not committed is there in a dirty tree only.
    world.write("repo/sub/flake/deep/flake.nix", "{ }");
    assert_eq!(snap(&world, "repo/sub/flake/deep", false).await.flake_dir, "sub/flake");
    assert_eq!(snap(&world, "repo/sub/flake/deep", true).await.flake_dir, "sub/flake/deep");
}

#[tokio::test]
async fn a_dirty_tree_is_what_git_status_shows() {
    let world = World::new();
    world.repository("repo");
    world.write("repo/new file", "x");
    world.write("repo/secret-token", "x");
    world.write("repo/later", "x");
    world.git("repo", &["add", "--intent-to-add", "later"]);
    world.write("repo/.git/info/exclude", "secret-token\n");
    world.write("ignored-by-me", "*.mine\n");
    world.write("repo/x.mine", "x");
    world.git("repo", &["config", "core.excludesFile", world.path("ignored-by-me").to_str().expect("text")]);
    std::fs::remove_file(world.path("repo/sub/file")).expect("removed");
    let clean = snap(&world, "repo", false).await;
    assert!(clean.ignored_changes && !clean.dirty && clean.title.as_deref() == Some("two"));
    let dirty = snap(&world, "repo", true).await;
    assert!(dirty.dirty && !dirty.ignored_changes && dirty.commit != clean.commit);
    let files: Vec<String> = world.files(&dirty).into_keys().collect();
    assert_eq!(files, ["flake.nix", "later", "new file", "sub/flake/flake.nix"]);

    // What a sparse checkout leaves out is not deleted, and what lies there is new.
    world.git("repo", &["reset", "--quiet", "--hard"]);
    world.git("repo", &["clean", "--quiet", "-d", "--force"]);
    world.git("repo", &["sparse-checkout", "set", "--cone"]);
    assert!(!world.path("repo/sub").exists());
    world.write("repo/new", "x");
    world.write("repo/other/new", "x");
    let sparse = world.files(&snap(&world, "repo", true).await);
    assert_eq!(sparse.keys().collect::<Vec<_>>(), ["flake.nix", "new", "other/new", "sub/file", "sub/flake/flake.nix"]);
}

#[tokio::test]
async fn submodules_of_a_dirty_tree_are_where_they_stand() {
    let world = World::new();
    world.repository("inner");
    world.repository("outer");
    world.git("outer", &["submodule", "--quiet", "add", world.path("inner").to_str().expect("text"), "lib"]);
    world.git("outer", &["commit", "--quiet", "-m", "with lib"]);
    world.git("outer/lib", &["checkout", "--quiet", "--detach", "HEAD~1"]);
    world.write("outer/lib/unsaved", "x");
    let moved = world.git("outer/lib", &["rev-parse", "HEAD"]);
    let dirty = snap(&world, "outer", true).await;
    assert_eq!(world.files(&dirty).get("lib"), Some(&format!("160000 commit {moved}")));
    // The submodule itself is a repository, too.
    assert_eq!(snap(&world, "outer/lib", false).await.commit, moved);
}

#[tokio::test]
async fn what_cannot_be_packed_says_why() {
    let world = World::new();
    std::fs::create_dir(world.path("empty")).expect("folder");
    let why = async |path: &str, dirty: bool| {
        let failure = snapshot(&world.path(path), dirty).await.err().expect(path);
        format!("{failure:?}")
    };
    assert!(why("absent", false).await.contains("no file or folder"));
    assert!(why("empty", false).await.contains("not in a git repository"));
    world.git("empty", &["init", "--quiet", "."]);
    assert!(why("empty", false).await.contains("no commit yet"));
    world.git(".", &["init", "--quiet", "--bare", "bare.git"]);
    assert!(why("bare.git", false).await.contains("with a work tree"));
    world.repository("repo");
    let url = format!("file://{}", world.path("repo").display());
    world.git(".", &["clone", "--quiet", "--depth", "1", &url, "shallow"]);
    assert!(why("shallow", false).await.contains("shallow clone"));
    world.git("repo", &["checkout", "--quiet", "-b", "topic", "HEAD~1"]);
    world.write("repo/sub/file", "three");
    world.git("repo", &["commit", "--quiet", "--all", "-m", "three"]);
    let merge = Command::new("git").current_dir(world.path("repo")).args(["merge", "--quiet", "main"]).output();
    assert!(!merge.expect("git runs").status.success(), "conflicts");
    assert!(why("repo", true).await.contains("conflicts"));
}

/// What happens to a work tree.
#[derive(Debug, Clone)]
enum Change {
    Write(u8, u8),
    Delete(u8),
    Move(u8, u8),
    Stage(u8),
    IntendToAdd(u8),
    Unstage(u8),
    Executable(u8),
    Link(u8),
    Exclude(u8),
    Ignore(u8),
    Commit,
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let file = 0..8_u8;
    let change = prop_oneof![
        (file.clone(), 0..3_u8).prop_map(|(f, t)| Change::Write(f, t)),
        (file.clone(), 0..3_u8).prop_map(|(f, t)| Change::Write(f, t)),
        file.clone().prop_map(Change::Delete),
        (file.clone(), file.clone()).prop_map(|(a, b)| Change::Move(a, b)),
        file.clone().prop_map(Change::Stage),
        file.clone().prop_map(Change::IntendToAdd),
        file.clone().prop_map(Change::Unstage),
        file.clone().prop_map(Change::Executable),
        file.clone().prop_map(Change::Link),
        file.clone().prop_map(Change::Exclude),
        file.prop_map(Change::Ignore),
        Just(Change::Commit),
    ];
    proptest::collection::vec(change, 0..25)
}

/// Files, some of them in folders, one that is a folder of another.
fn name(file: u8) -> String {
    ["a", "b", "dir/a", "dir/b", "dir/deep/a", "ü x", "b.mine", "dir/b.mine"][usize::from(file) % 8].to_owned()
}

impl Change {
    fn apply(&self, world: &World) {
        let path = |file: &u8| world.path("repo").join(name(*file));
        // What cannot be done is not done.
        let git = |arguments: &[&str]| {
            drop(Command::new("git").current_dir(world.path("repo")).args(arguments).output().expect("git runs"));
        };
        match self {
            Self::Write(file, text) => {
                drop(std::fs::remove_file(path(file)));
                world.write(&format!("repo/{}", name(*file)), &format!("text {text}"));
            }
            Self::Delete(file) => drop(std::fs::remove_file(path(file))),
            Self::Move(from, to) => {
                drop(std::fs::create_dir_all(path(to).parent().expect("folder")));
                drop(std::fs::rename(path(from), path(to)));
            }
            Self::Stage(file) => git(&["add", "--", &name(*file)]),
            Self::IntendToAdd(file) => git(&["add", "--intent-to-add", "--", &name(*file)]),
            Self::Unstage(file) => git(&["reset", "--quiet", "--", &name(*file)]),
            Self::Executable(file) => {
                drop(std::fs::set_permissions(path(file), std::os::unix::fs::PermissionsExt::from_mode(0o755)));
            }
            Self::Link(file) => {
                drop(std::fs::remove_file(path(file)));
                drop(std::fs::create_dir_all(path(file).parent().expect("folder")));
                drop(std::os::unix::fs::symlink("a", path(file)));
            }
            Self::Exclude(file) => world.write("repo/.git/info/exclude", &format!("{}\n", name(*file))),
            Self::Ignore(file) => {
                world.write("repo/dir/.gitignore", &format!("/{}\n", name(*file).replace("dir/", "")));
            }
            Self::Commit => git(&["-c", "user.name=A", "-c", "user.email=a@b", "commit", "--quiet", "-m", "x"]),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 60, ..ProptestConfig::default() })]

    /// What is sent is what `git stash create` would keep, with the new files that `git status` shows.
    #[test]
    fn a_dirty_tree_is_what_git_itself_would_keep(changes in changes()) {
        let world = World::new();
        world.repository("repo");
        world.write("mine", "*.mine\n");
        world.git("repo", &["config", "core.excludesFile", world.path("mine").to_str().expect("text")]);
        for change in &changes {
            change.apply(&world);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let found = world.files(&runtime.block_on(snap(&world, "repo", true)));

        // Stashing refuses files that are only meant to be added.
        world.git("repo", &["add", "--update"]);
        let kept = world.git("repo", &["stash", "create"]);
        let kept = if kept.is_empty() { "HEAD".to_owned() } else { kept };
        let mut expected = world.tree("repo", &kept);
        let status = world.git("repo", &["status", "--porcelain", "-z", "-uall"]);
        let new: BTreeSet<&str> = status.split('\0').filter_map(|entry| entry.strip_prefix("?? ")).collect();
        for file in new {
            let path = world.path("repo").join(file);
            let mode = match std::fs::symlink_metadata(&path).expect("there") {
                link if link.is_symlink() => "120000",
                file if std::os::unix::fs::PermissionsExt::mode(&file.permissions()) & 0o100 != 0 => "100755",
                _ => "100644",
            };
            let hash = match std::fs::read_link(&path) {
                Ok(target) => {
                    world.write("target", target.to_str().expect("text"));
                    world.git("repo", &["hash-object", "--no-filters", "../target"])
                }
                Err(_) => world.git("repo", &["hash-object", "--", file]),
            };
            expected.insert(file.to_owned(), format!("{mode} blob {hash}"));
        }
        prop_assert_eq!(found, expected);
    }
}
