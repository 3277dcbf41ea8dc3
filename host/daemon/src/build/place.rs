//! Where a build runs: its build directory, its store, and the walls around it. Start at [`Place::prepare`].

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use harmonia_nix::derivation::hash_placeholder;
use harmonia_nix::hash::{Sha256Hash, compress_hash};
use harmonia_nix::store_path::{STORE_DIR, StorePath};
use harmonia_sandbox::{Bind, Builder, BuilderRun, Bytes, Limits, Network, SandboxSpec, TextFile, User};

use super::attributes::{Attributes, rejected};
use super::environment::{Environment, HOME};
use super::rewrite::Rewrites;
use super::tree::remove_tree;
use super::users::{self, Lease};
use super::{BuildFailure, BuildRequest, FixedNetwork, SandboxMode, outputs};

/// Who a builder is in a sandbox, whatever it is outside.
pub(super) const INSIDE: User = User { uid: 1000, gid: 100 };

/// Where the proxy is, in the network of a build that has one.
const PROXY_PORT: u16 = 3128;
const PROXY_URL: &str = "http://127.0.0.1:3128";

/// Where a build runs.
pub(super) struct Place {
    pub(super) sandboxed: bool,
    /// Its hash is known, so that it may reach the network.
    pub(super) is_fixed: bool,
    /// What of the network it has, in a sandbox.
    pub(super) network: Network,
    /// It asks for virtual machines (`requiredSystemFeatures`).
    needs_kvm: bool,
    /// The build directory, on the host.
    pub(super) build_dir: PathBuf,
    /// The same, as the builder sees it.
    pub(super) top: PathBuf,
    /// Where it leaves its outputs, by name.
    pub(super) scratch: BTreeMap<String, StorePath>,
    /// The directory of the host that its store is in.
    pub(super) left_in: PathBuf,
    /// What is replaced in what the derivation says.
    pub(super) rewrites: Rewrites,
    /// What is replaced in the outputs.
    pub(super) output_rewrites: Rewrites,
    /// Who it is on the host, when that is not us.
    pub(super) lease: Option<Lease>,
}

/// Whether the build is to be in a sandbox.
fn is_sandboxed(request: &BuildRequest, attributes: &Attributes<'_>, is_fixed: bool) -> Result<bool, BuildFailure> {
    let no_chroot = attributes.flag("__noChroot")?;
    let sandboxed = match request.options.sandbox {
        SandboxMode::On if no_chroot => {
            return Err(rejected(format!(
                "derivation '{}' has '__noChroot' set, but that's not allowed when 'sandbox' is 'true'",
                request.drv_path
            )));
        }
        SandboxMode::On => true,
        SandboxMode::Off => false,
        SandboxMode::Relaxed => !is_fixed && !no_chroot,
    };
    Ok(sandboxed || request.store_dir != Path::new(STORE_DIR))
}

impl Place {
    pub(super) fn prepare(
        request: &BuildRequest,
        attributes: &Attributes<'_>,
        is_fixed: bool,
        lease: Option<Lease>,
    ) -> Result<Self, BuildFailure> {
        let sandboxed = is_sandboxed(request, attributes, is_fixed)?;
        if !sandboxed && Path::new(HOME).exists() {
            return Err(BuildFailure::machine(
                "build without a sandbox",
                format!(
                    "home directory '{HOME}' exists; please remove it to assure purity of builds without sandboxing"
                ),
            ));
        }
        let mut place = Self {
            sandboxed,
            is_fixed,
            network: match &request.options.fixed_network {
                _ if !is_fixed => Network::Loopback,
                FixedNetwork::Host => Network::Host,
                FixedNetwork::Proxied(_) => Network::Proxied { port: PROXY_PORT },
            },
            needs_kvm: attributes
                .strings("requiredSystemFeatures")?
                .unwrap_or_default()
                .iter()
                .any(|name| name == "kvm"),
            build_dir: PathBuf::new(),
            top: request.options.sandbox_build_dir.clone(),
            scratch: BTreeMap::new(),
            left_in: if sandboxed { request.staging.join("store") } else { request.store_dir.clone() },
            rewrites: Rewrites::default(),
            output_rewrites: Rewrites::default(),
            lease,
        };
        place.refuse_what_cannot_work(request)?;
        place.choose_scratch(request)?;
        let made = place.make_directories(request);
        if made.is_err() && !place.build_dir.as_os_str().is_empty() {
            let _the_reason_is_told = remove_tree(&place.build_dir);
        }
        made.map(|()| place)
    }

    /// Without a sandbox a builder makes its outputs in the store itself, where its user must be allowed to.
    fn refuse_what_cannot_work(&self, request: &BuildRequest) -> Result<(), BuildFailure> {
        let Some(lease) = self.lease.as_ref().filter(|_| !self.sandboxed) else { return Ok(()) };
        let step = "build without a sandbox";
        let store = fs::metadata(&request.store_dir).map_err(|cause| BuildFailure::machine(step, cause))?;
        let its_group = store.gid() == lease.user.gid && store.mode() & 0o020 != 0;
        if its_group || store.mode() & 0o002 != 0 {
            return Ok(());
        }
        let store = request.store_dir.display();
        Err(BuildFailure::machine(
            step,
            format!("build users cannot write {store}: set build-users-group to its group, or sandbox = true"),
        ))
    }

    /// Outputs that are valid are not touched: without a sandbox, what is built in their stead has another path.
    fn choose_scratch(&mut self, request: &BuildRequest) -> Result<(), BuildFailure> {
        for (name, output) in &request.derivation.outputs {
            let Some(path) = output.path() else {
                return Err(rejected(format!(
                    "derivation '{}' is content-addressed without a hash that is known, or impure: these are not supported",
                    request.drv_path
                )));
            };
            let mut scratch = path.clone();
            if !self.sandboxed && request.valid_outputs.contains_key(name) {
                let digits = compress_hash(
                    Sha256Hash::of(format!("rewrite:{}:{}", request.drv_path.base_name(), path.base_name()).as_bytes())
                        .as_bytes(),
                );
                scratch = StorePath::from_parts(&digits, path.name()).map_err(|error| rejected(error.to_string()))?;
                self.rewrites.insert(path.hash_part(), scratch.hash_part());
                self.output_rewrites.insert(scratch.hash_part(), path.hash_part());
            }
            self.rewrites.insert(hash_placeholder(name), scratch.as_str());
            self.scratch.insert(name.clone(), scratch);
        }
        Ok(())
    }

    fn make_directories(&mut self, request: &BuildRequest) -> Result<(), BuildFailure> {
        let failed = |what: &'static str| move |cause: io::Error| BuildFailure::machine(what, cause);
        make(&request.staging, 0o755).map_err(failed("make the staging directory"))?;
        make(&outputs::staged_in(request), 0o755).map_err(failed("make the staging directory"))?;
        self.build_dir = make_build_directory(request).map_err(failed("make the build directory"))?;
        if !self.sandboxed {
            self.top.clone_from(&self.build_dir);
            // What an earlier build left, which is not valid.
            return self.remove_scratch().map_err(failed("remove what an earlier build left"));
        }
        make(&self.left_in, 0o755).map_err(failed("make the build's store"))?;
        let tmp = request.staging.join("tmp");
        make(&tmp, 0o755).map_err(failed("make the build's /tmp"))?;
        fs::set_permissions(&tmp, Permissions::from_mode(0o1777)).map_err(failed("open the build's /tmp"))?;
        for (path, input) in request.inputs.iter().chain(&request.sandbox_inputs) {
            // Links cannot be mounted.
            let Ok(target) = fs::read_link(&input.real) else { continue };
            match std::os::unix::fs::symlink(target, self.left_in.join(path.base_name())) {
                // An input that the sandbox needs, too.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                linked => linked.map_err(failed("link an input into the build's store"))?,
            }
        }
        if let Some(lease) = &self.lease {
            std::os::unix::fs::chown(&self.left_in, None, Some(lease.user.gid))
                .map_err(failed("give the build its store"))?;
        }
        fs::set_permissions(&self.left_in, Permissions::from_mode(0o1775)).map_err(failed("open the build's store"))
    }

    /// Removes outputs that were left outside of the staging directory.
    pub(super) fn remove_scratch(&self) -> io::Result<()> {
        if self.sandboxed {
            return Ok(());
        }
        self.scratch.values().try_for_each(|path| remove_tree(&self.left_in.join(path.base_name())))
    }

    /// The one way to the network, if there is just one.
    pub(super) fn proxy(&self) -> Option<&'static str> {
        (self.sandboxed && matches!(self.network, Network::Proxied { .. })).then_some(PROXY_URL)
    }

    /// Writes the files of the build directory and gives it to the builder.
    pub(super) fn fill(&self, environment: &Environment) -> Result<(), BuildFailure> {
        let user = self.lease.as_ref().map(|lease| lease.user);
        let own = |path: &Path| match user {
            Some(user) => std::os::unix::fs::lchown(path, Some(user.uid), Some(user.gid)),
            None => Ok(()),
        };
        let filled = environment.files.iter().try_for_each(|(name, text)| {
            let path = self.build_dir.join(name);
            fs::write(&path, text)?;
            own(&path)
        });
        filled
            .and_then(|()| own(&self.build_dir))
            .map_err(|cause| BuildFailure::machine("fill the build directory", cause))
    }

    /// What the helper is told.
    pub(super) fn spec(&self, request: &BuildRequest, environment: Environment, run: BuilderRun) -> SandboxSpec {
        let options = &request.options;
        let mut spec = SandboxSpec {
            cwd: self.top.clone(),
            user: INSIDE,
            limits: Limits {
                memory_bytes: options.max_memory_bytes,
                processes: options.max_processes,
                ..Limits::default()
            },
            builder: Some(Builder {
                run,
                env: environment.variables.into_iter().map(|(name, value)| (Bytes(name), Bytes(value))).collect(),
                sandboxed: self.sandboxed,
                host_user: self.lease.as_ref().map(|lease| lease.user),
                linux32: std::env::consts::ARCH == "x86_64" && request.derivation.platform == "i686-linux"
                    || ["armv7l-linux", "armv6l-linux"].contains(&request.derivation.platform.as_str()),
                shm_bytes: options.shm_bytes,
            }),
            ..SandboxSpec::default()
        };
        if self.sandboxed {
            self.furnish(request, &mut spec);
        }
        spec
    }

    fn furnish(&self, request: &BuildRequest, spec: &mut SandboxSpec) {
        let options = &request.options;
        spec.proc = true;
        let writable = |source: PathBuf, target: &Path| Bind { writable: true, ..Bind::at(source, target) };
        spec.binds.push(writable(self.build_dir.clone(), &self.top));
        spec.binds.push(writable(request.staging.join("tmp"), Path::new("/tmp")));
        spec.binds.push(writable(self.left_in.clone(), Path::new(STORE_DIR)));
        let own: Vec<&StorePath> = self.scratch.values().collect();
        let others = request.sandbox_inputs.iter().filter(|(path, _)| !request.inputs.contains_key(*path));
        for (path, input) in request.inputs.iter().chain(others) {
            if !own.contains(&path) && !self.left_in.join(path.base_name()).is_symlink() {
                spec.binds.push(Bind::at(&input.real, path.as_str()));
            }
        }
        for (inside, source) in &options.sandbox_paths {
            let text = source.as_os_str().as_encoded_bytes();
            let (source, optional) = match text.strip_suffix(b"?") {
                Some(text) => {
                    (PathBuf::from(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(text)), true)
                }
                None => (source.clone(), false),
            };
            if own.iter().any(|path| inside == Path::new(path.as_str())) {
                continue;
            }
            spec.binds.retain(|bind| bind.target != *inside);
            spec.binds.push(Bind { writable: true, optional, devices: true, ..Bind::at(source, inside) });
        }
        if self.needs_kvm {
            let device = "/dev/kvm";
            spec.binds.push(Bind { writable: true, optional: true, devices: true, ..Bind::same(device) });
        }
        let top = self.top.display();
        let User { uid, gid } = INSIDE;
        let mut files = vec![
            (
                "/etc/passwd",
                format!(
                    "root:x:0:0:Nix build user:{top}:/noshell\nnixbld:x:{uid}:{gid}:Nix build user:{top}:/noshell\n\
                     nobody:x:65534:65534:Nobody:/:/noshell\n"
                ),
            ),
            ("/etc/group", format!("root:x:0:\nnixbld:!:{gid}:\nnogroup:x:65534:\n")),
        ];
        spec.network = self.network;
        if self.network == Network::Host {
            files.push(("/etc/nsswitch.conf", "hosts: files dns\nservices: files\n".to_owned()));
            for path in ["/etc/resolv.conf", "/etc/services", "/etc/hosts"] {
                spec.binds.push(Bind::same(path).if_there());
            }
        } else {
            files.push(("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n".to_owned()));
        }
        let named = |path: &str| spec.binds.iter().any(|bind| bind.target == Path::new(path));
        spec.files = files
            .into_iter()
            .filter(|(path, _)| !named(path))
            .map(|(path, text)| TextFile { path: path.into(), text })
            .collect();
    }
}

/// A user for the build, when we are root.
pub(super) fn lease(request: &BuildRequest) -> Result<Option<Lease>, BuildFailure> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let machine = |cause: &dyn std::fmt::Display| BuildFailure::machine("find a user for the build", cause);
    match users::lease(&request.options.build_users) {
        Ok(Some(lease)) => Ok(Some(lease)),
        Ok(None) => Err(machine(&"all build users are taken; there must be one for every build at a time")),
        Err(error) => Err(machine(&error)),
    }
}

fn make(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// A directory of this build alone, named as Nix names it.
fn make_build_directory(request: &BuildRequest) -> io::Result<PathBuf> {
    let name = request.drv_path.name();
    for number in 0_u32.. {
        let path = request.options.build_dir.join(format!("nix-build-{name}-{number}"));
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|()| path),
        }
    }
    Err(io::Error::other("all names are taken"))
}
