//! A store of stock Nix in a temporary directory, and our executor building the same derivations beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harmonia_daemon::build::{
    BuildLog, BuildOptions, BuildOutcome, BuildRequest, BuildUsers, BuiltPath, FixedNetwork, InputPath, SandboxMode,
};
use harmonia_nix::derivation::{BasicDerivation, Derivation};
use harmonia_nix::hash::NarHash;
use harmonia_nix::store_path::StorePath;
use tokio_util::sync::CancellationToken;

pub(crate) struct World {
    place: tempfile::TempDir,
    /// The root of stock Nix's store.
    root: PathBuf,
    shell: &'static str,
}

/// What came of a build, and what it said.
pub(crate) struct Build {
    pub(crate) outcome: BuildOutcome,
    pub(crate) lines: Vec<String>,
    pub(crate) notes: Vec<String>,
}

impl Build {
    pub(crate) fn outputs(&self) -> &[BuiltPath] {
        match &self.outcome.result {
            Ok(outputs) => outputs,
            Err(failure) => panic!("{:?}: {}\n{:?}", failure.status, failure.message, self.lines),
        }
    }

    pub(crate) fn failure(&self) -> &harmonia_daemon::build::BuildFailure {
        self.outcome.result.as_ref().expect_err("a failure")
    }
}

/// Cargo puts examples beside the directory of test binaries.
pub(crate) fn helper() -> PathBuf {
    let test = std::env::current_exe().expect("own path");
    test.parent().and_then(Path::parent).expect("target directory").join("examples/build_helper")
}

impl World {
    pub(crate) fn new() -> Self {
        let place = tempfile::tempdir().expect("a directory");
        std::fs::set_permissions(place.path(), PermissionsExt::from_mode(0o755)).expect("mode");
        let root = place.path().join("stock");
        let world = Self { place, root, shell: "builder = \"/bin/sh\"; args = [ \"-c\" script ];" };
        for directory in ["stock", "conf", "state", "builds", "staging"] {
            std::fs::create_dir(world.path(directory)).expect("a directory");
        }
        std::fs::write(
            world.path("conf/nix.conf"),
            "cores = 2\nsystem-features =\nbuild-users-group =\nsubstituters =\nsandbox = true\nsandbox-fallback = false\n\
             sandbox-paths = /bin/sh=/bin/busybox\nhashed-mirrors =\nexperimental-features = nix-command\n",
        )
        .expect("written");
        world
    }

    /// Both build in `/nix/store` itself, without a sandbox. To be called within [`as_ordinary_user`].
    pub(crate) fn without_sandbox() -> Self {
        let mut world = Self::new();
        world.root = "/".into();
        world.shell = "builder = \"/bin/busybox\"; args = [ \"sh\" \"-c\" script ];";
        let file = world.path("conf/nix.conf");
        let text = std::fs::read_to_string(&file).expect("text").replace("sandbox = true", "sandbox = false");
        std::fs::write(&file, text).expect("written");
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// A command of stock Nix at its store.
    pub(crate) fn nix(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let root = self.root.display();
        let remote = if self.root == Path::new("/") { "local".to_owned() } else { format!("local?root={root}") };
        command
            .env("NIX_REMOTE", remote)
            .env("NIX_CONF_DIR", self.path("conf"))
            .env("NIX_STATE_DIR", "/nix/var/nix")
            .env("HOME", self.place.path())
            .env("TMPDIR", self.path("builds"));
        command
    }

    pub(crate) fn ask(&self, program: &str, arguments: &[&str]) -> String {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let output = self.nix(program).args(arguments).output().expect("nix is installed");
        assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        text(output.stdout).trim().to_owned()
    }

    /// The derivation of an expression. `shell script` in it makes a derivation whose builder is the shell.
    pub(crate) fn instantiate(&self, expression: &str) -> StorePath {
        let expression = format!(
            "let shell = attributes: script: derivation ({{ name = \"test\"; system = \"x86_64-linux\"; {} }} // attributes); \
             in {expression}",
            self.shell
        );
        StorePath::parse(&self.ask("nix-instantiate", &["--expr", &expression])).expect("a path")
    }

    /// Builds with stock Nix: how it ended, and what it said.
    pub(crate) fn stock_build(&self, drv_path: &StorePath) -> (bool, String) {
        let output = self.nix("nix-store").args(["-r", drv_path.as_str()]).output().expect("nix is installed");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    pub(crate) fn derivation(&self, drv_path: &StorePath) -> Derivation {
        let file = self.root.join("nix/store").join(drv_path.base_name());
        Derivation::from_file(drv_path, &std::fs::read(file).expect("a file")).expect("a derivation")
    }

    pub(crate) fn info(&self, path: &StorePath) -> InputPath {
        let query = |what: &str| self.ask("nix-store", &["-q", what, path.as_str()]);
        InputPath {
            real: self.root.join("nix/store").join(path.base_name()),
            nar_hash: query("--hash").parse::<NarHash>().expect("a hash"),
            nar_size_bytes: query("--size").parse().expect("a number"),
            references: query("--references").lines().map(|line| StorePath::parse(line).expect("a path")).collect(),
            content_address: None,
        }
    }

    /// All that the derivation may see, of what stock Nix has.
    pub(crate) fn inputs(&self, derivation: &Derivation) -> BTreeMap<StorePath, InputPath> {
        let mut roots: Vec<String> = derivation.input_srcs.iter().map(ToString::to_string).collect();
        for (input, outputs) in &derivation.input_drvs {
            let input = self.derivation(input);
            roots.extend(outputs.iter().map(|name| input.outputs[name].path().expect("known").to_string()));
        }
        if roots.is_empty() {
            return BTreeMap::new();
        }
        let mut arguments = vec!["-qR"];
        arguments.extend(roots.iter().map(String::as_str));
        let closure: BTreeSet<StorePath> =
            self.ask("nix-store", &arguments).lines().map(|line| StorePath::parse(line).expect("a path")).collect();
        closure.into_iter().map(|path| (path.clone(), self.info(&path))).collect()
    }

    pub(crate) fn request(&self, drv_path: &StorePath) -> BuildRequest {
        let derivation = self.derivation(drv_path);
        let on_store = if self.root == Path::new("/") { "/nix".into() } else { self.path("staging") };
        let staging = tempfile::Builder::new().tempdir_in(on_store).expect("a directory").keep();
        BuildRequest {
            drv_path: drv_path.clone(),
            inputs: self.inputs(&derivation),
            sandbox_inputs: BTreeMap::new(),
            outputs: derivation.outputs.keys().cloned().collect(),
            valid_outputs: BTreeMap::new(),
            store_dir: if self.root == Path::new("/") { "/nix/store".into() } else { self.path("ours/nix/store") },
            staging,
            options: self.options(),
            derivation: BasicDerivation {
                name: derivation.name,
                outputs: derivation.outputs,
                input_srcs: derivation.input_srcs,
                platform: derivation.platform,
                builder: derivation.builder,
                args: derivation.args,
                env: derivation.env,
            },
        }
    }

    pub(crate) fn options(&self) -> BuildOptions {
        BuildOptions {
            cores: 2,
            timeout: Some(Duration::from_mins(2)),
            max_silent: None,
            max_log_bytes: None,
            keep_failed: false,
            sandbox: if self.root == Path::new("/") { SandboxMode::Off } else { SandboxMode::On },
            sandbox_paths: vec![("/bin/sh".into(), "/bin/busybox".into())],
            build_dir: self.path("builds"),
            sandbox_build_dir: "/build".into(),
            shm_bytes: 64 << 20,
            log_lines: 10,
            max_output_bytes: None,
            max_memory_bytes: None,
            max_processes: None,
            build_users: BuildUsers::of_range(&self.path("state")),
            helper: vec![helper().into()],
            fixed_network: FixedNetwork::Host,
            netrc_file: None,
            hashed_mirrors: Vec::new(),
        }
    }

    /// Builds an expression with our executor.
    pub(crate) fn build(&self, expression: &str) -> Build {
        self.run(self.request(&self.instantiate(expression)))
    }

    pub(crate) fn run(&self, request: BuildRequest) -> Build {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        let build = runtime.block_on(build(request, CancellationToken::new()));
        assert_eq!(names(&self.path("builds")), Vec::<String>::new(), "build directories are left");
        build
    }

    /// Builds with both: the same outputs, byte for byte, and the same references.
    pub(crate) fn compare(&self, expression: &str) -> Build {
        let drv_path = self.instantiate(expression);
        let (ours_first, mut before) = (self.root == Path::new("/"), None);
        if ours_first {
            // In one store: what is valid is not built again. Its inputs have to be there.
            for input in self.derivation(&drv_path).input_drvs.keys() {
                assert!(self.stock_build(input).0);
            }
            before = Some(self.run(self.request(&drv_path)));
        }
        let (succeeded, said) = self.stock_build(&drv_path);
        assert!(succeeded, "{said}");
        let build = before.unwrap_or_else(|| self.run(self.request(&drv_path)));
        for output in build.outputs() {
            let stock = self.info(&output.path);
            assert_eq!(output.references, stock.references, "{}", output.path);
            let differs = || {
                let mut diff = Command::new("diff");
                diff.args(["-r", "--no-dereference"]).arg(&stock.real).arg(&output.staged);
                let diff = diff.output().expect("diff is installed");
                format!("{}: {}", output.path, String::from_utf8_lossy(&diff.stdout))
            };
            let is = (output.nar_hash, output.nar_size_bytes);
            assert_eq!(is, (stock.nar_hash, stock.nar_size_bytes), "{}", differs());
            let file = std::fs::File::create(self.path("nar")).expect("a file");
            harmonia_nix::nar::pack_path(&output.staged, std::io::BufWriter::new(file)).expect("an archive");
            let nar = std::fs::read(self.path("nar")).expect("a file");
            assert_eq!(NarHash::of(&nar), output.nar_hash, "what was hashed is what is there");
        }
        build
    }
}

/// Runs the test of this name again, as an ordinary user with a `/nix` of its own; `true`: this is that run. Needs root.
pub(crate) fn as_ordinary_user(test: &str) -> bool {
    as_ordinary_user_after(test, "")
}

/// The same; `before` is what root does first, in a user namespace of its own unless it is empty.
pub(crate) fn as_ordinary_user_after(test: &str, before: &str) -> bool {
    if std::env::var_os("HARMONIA_ORDINARY_USER").is_some() {
        return true;
    }
    assert!(rustix::process::geteuid().is_root(), "these tests become another user, which needs root");
    let place = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(place.path(), PermissionsExt::from_mode(0o755)).expect("mode");
    for (name, file) in [("deps", std::env::current_exe().expect("own path")), ("examples", helper())] {
        std::fs::create_dir(place.path().join(name)).expect("a directory");
        std::fs::copy(&file, place.path().join(name).join(file.file_name().expect("a name"))).expect("copies");
    }
    let own = std::env::current_exe().expect("own path");
    let own = place.path().join("deps").join(own.file_name().expect("a name"));
    let first = if before.is_empty() { "true" } else { before };
    let script = format!(
        "mount --make-rprivate / && mkdir -p /nix && mount -t tmpfs tmpfs /nix && mkdir /nix/store && \
         chown nobody /nix /nix/store && {first} && exec setpriv --reuid nobody --regid nogroup --clear-groups -- \
         \"$0\" --exact \"$1\" --nocapture"
    );
    // A namespace of users in which all are who they are; its users are given from outside.
    let with_users = "unshare --user sh -c 'until grep -q . /proc/self/gid_map; do :; done; \
                      exec \"$@\"' sh unshare -m sh -c \"$0\" \"$@\" & \
                      until [ \"$(readlink /proc/$!/ns/user)\" != \"$(readlink /proc/self/ns/user)\" ]; do :; done; \
                      echo 0 0 65536 >/proc/$!/uid_map; echo 0 0 65536 >/proc/$!/gid_map; wait $!";
    let plain = "exec unshare -m sh -c \"$0\" \"$@\"";
    let status = Command::new("sh")
        .args(["-c", if before.is_empty() { plain } else { with_users }, &script])
        .arg(own)
        .arg(test)
        .env("HARMONIA_ORDINARY_USER", "1")
        .env("TMPDIR", "/tmp")
        .current_dir("/")
        .status()
        .expect("unshare is installed");
    assert!(status.success(), "{status}");
    false
}

pub(crate) async fn build(request: BuildRequest, cancel: CancellationToken) -> Build {
    let (mut lines, mut notes) = (Vec::new(), Vec::new());
    let log = |said: BuildLog<'_>| match said {
        BuildLog::Line(line) => lines.push(String::from_utf8_lossy(line).into_owned()),
        BuildLog::Note(note) => notes.push(note.to_owned()),
        BuildLog::Output(_) => {}
    };
    let outcome = harmonia_daemon::build::run(request, log, cancel).await;
    Build { outcome, lines, notes }
}

pub(crate) fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("a directory");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The command lines of processes in which `mark` stands.
pub(crate) fn processes_with(mark: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").expect("Linux").flatten();
    let lines = processes.filter_map(|process| {
        let line = std::fs::read(process.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    });
    lines.filter(|line| line.contains(mark)).collect()
}
