//! Which walls of builds this machine gives: each one tried from inside by a builder of our own. Start at [`check`].

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use harmonia_sandbox::{Bind, Builder, BuilderRun, Bytes, End, Network, SandboxSpec};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::place::INSIDE;
use super::{BuildLog, BuildOptions, process, tree, users};

/// One wall.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wall {
    /// What it keeps apart.
    pub name: String,
    /// Why it is missing, if it is.
    pub missing: Option<String>,
    /// Without it nothing is built in a sandbox.
    pub is_required: bool,
}

/// What the probe is given.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Probe {
    /// The namespaces of the daemon, by their names in `/proc/self/ns`.
    namespaces: BTreeMap<String, PathBuf>,
    /// A file that must not be seen.
    hidden: PathBuf,
}

const NAMESPACES: [&str; 6] = ["user", "mnt", "pid", "net", "ipc", "uts"];
/// What a line of the probe begins with.
const MARK: &str = "wall ";

/// Tries them all. A sandbox that cannot be made at all is one wall that is missing, with the kernel's reason.
pub async fn check(options: &BuildOptions) -> Vec<Wall> {
    let mut walls = match probed(options).await {
        Ok(walls) => walls,
        Err(reason) => vec![Wall { name: "a sandbox for builds".to_owned(), missing: Some(reason), is_required: true }],
    };
    walls.push(Wall {
        name: "memory and processes of a whole build".to_owned(),
        missing: Some("limits are those of each process (no control group is used)".to_owned()),
        is_required: false,
    });
    walls
}

async fn probed(options: &BuildOptions) -> Result<Vec<Wall>, String> {
    let lease = if rustix::process::geteuid().is_root() {
        let lease = users::lease(&options.build_users).map_err(|error| error.to_string())?;
        Some(lease.ok_or("all build users are taken")?)
    } else {
        None
    };
    let place = options.build_dir.join(format!("harmonia-check-{}", std::process::id()));
    let made = make(&place, lease.as_ref().map(|lease| lease.user));
    let outcome = match made {
        Err(error) => Err(format!("{}: {error}", place.display())),
        Ok(()) => probe_in(options, &place, lease.as_ref().map(|lease| lease.user)).await,
    };
    tree::remove_tree(&place).map_err(|error| format!("{}: {error}", place.display()))?;
    outcome
}

fn make(place: &Path, user: Option<harmonia_sandbox::User>) -> io::Result<()> {
    fs::create_dir(place)?;
    fs::create_dir(place.join("build"))?;
    fs::write(place.join("hidden"), "")?;
    match user {
        Some(user) => std::os::unix::fs::chown(place.join("build"), Some(user.uid), Some(user.gid)),
        None => Ok(()),
    }
}

async fn probe_in(
    options: &BuildOptions,
    place: &Path,
    host_user: Option<harmonia_sandbox::User>,
) -> Result<Vec<Wall>, String> {
    let mut probe = Probe { hidden: place.join("hidden"), ..Probe::default() };
    for name in NAMESPACES {
        let link = fs::read_link(Path::new("/proc/self/ns").join(name)).map_err(|error| error.to_string())?;
        probe.namespaces.insert(name.to_owned(), link);
    }
    let input = super::builtin::probing(probe).map_err(|error| error.to_string())?;
    let top = PathBuf::from("/build");
    let spec = SandboxSpec {
        binds: vec![Bind { writable: true, ..Bind::at(place.join("build"), &top) }],
        proc: true,
        network: Network::Loopback,
        cwd: top,
        user: INSIDE,
        builder: Some(Builder {
            run: BuilderRun::Builtin(Bytes(input)),
            sandboxed: true,
            host_user,
            ..Builder::default()
        }),
        ..SandboxSpec::default()
    };
    let mut walls = Vec::new();
    let mut log = |said: BuildLog<'_>| {
        if let BuildLog::Line(line) = said
            && let Some(wall) = String::from_utf8_lossy(line).strip_prefix(MARK)
        {
            walls.extend(serde_json::from_str::<Wall>(wall));
        }
    };
    let ended = process::run(&spec, options, "a check of the walls", &mut log, &CancellationToken::new()).await;
    match ended.map_err(|failure| failure.message)?.end {
        End::Exited(0) => Ok(walls),
        End::NotSetUp(reason) => Err(reason),
        end => Err(format!("the check itself failed: {end:?}")),
    }
}

/// The probe's own work, inside.
pub(super) fn run(probe: &Probe) -> Result<(), String> {
    let mut walls = Vec::new();
    let mut wall =
        |name: &str, missing: Option<String>| walls.push(Wall { name: name.to_owned(), missing, is_required: true });
    let unless = |stands: bool, otherwise: &str| (!stands).then(|| otherwise.to_owned());
    for (name, link) in &probe.namespaces {
        let own = fs::read_link(Path::new("/proc/self/ns").join(name));
        let apart = own.is_ok_and(|own| own != *link);
        wall(&format!("a {name} namespace of its own"), unless(apart, "it has the machine's"));
    }
    wall("the machine's files", unless(!probe.hidden.exists(), "they can be seen"));
    let written = fs::write("/written", "");
    wall("its root", unless(written.is_err(), "it can be written"));
    let status = fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim_start_matches(':').trim().to_owned()
    };
    let none =
        ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].iter().all(|set| field(set).trim_matches('0').is_empty());
    wall("no capabilities", unless(none, "it has some"));
    wall("no new privileges", unless(field("NoNewPrivs") == "1", "it can get them"));
    let is_nobody = rustix::process::getuid().as_raw() == INSIDE.uid;
    wall("a user of its own", unless(is_nobody, "it has the daemon's"));
    wall("a filter of system calls", unless(field("Seccomp") == "2", "there is none"));
    let file = Path::new("file");
    fs::write(file, "").map_err(|error| format!("the build directory cannot be written: {error}"))?;
    let setid = fs::set_permissions(file, fs::Permissions::from_mode(0o4755));
    wall("no setuid and setgid bits", unless(setid.is_err(), "they can be set"));
    let attribute = rustix::fs::setxattr(file, "user.x", b"x", rustix::fs::XattrFlags::empty());
    wall("no extended attributes", unless(attribute.is_err(), "they can be set"));
    let interfaces = fs::read_to_string("/proc/net/dev").map_err(|error| error.to_string())?;
    let only_loopback = interfaces.lines().filter(|line| line.contains(':')).all(|line| line.trim().starts_with("lo:"));
    wall("no network", unless(only_loopback, "it has the machine's interfaces"));
    for wall in walls {
        eprintln!("{MARK}{}", serde_json::to_string(&wall).map_err(|error| error.to_string())?);
    }
    Ok(())
}
