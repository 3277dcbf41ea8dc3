//! The files of a cluster: directories and their owners, lock, data, configuration, socket.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use sha2::{Digest, Sha256};
use tokio::process::Command;

use super::account::{self, Account};
use super::{PostgresError, ROLE, sizing};
use crate::percent::percent_encoded;
use crate::process::Incarnation;

/// `sun_path` of unix(7) has 108 bytes with the final NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;
const SOCKET_NAME: &str = ".s.PGSQL.5432";
/// What of a program's output goes into an error.
const OUTPUT_BYTES_MAX: usize = 2_000;
/// A leftover server's time for an orderly end, then for an immediate one.
const LEFT_OVER_PATIENCE: [(Signal, Duration); 3] = [
    (Signal::INT, Duration::from_secs(30)),
    (Signal::QUIT, Duration::from_secs(10)),
    (Signal::KILL, Duration::from_secs(5)),
];

/// Where a cluster lives and as whom its server runs.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) root: PathBuf,
    pub(crate) data: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) socket_dir: PathBuf,
    pub(crate) account: Option<Account>,
}

impl Place {
    /// Makes the directories that are missing and gives them to the server's account.
    pub(crate) fn prepare(data_dir: &Path, account: Option<Account>) -> Result<Self, PostgresError> {
        let unusable = || PostgresError::UnusablePath { path: data_dir.to_owned() };
        let text = data_dir.to_str().ok_or_else(unusable)?;
        if !data_dir.is_absolute() || text.chars().any(char::is_control) {
            return Err(unusable());
        }
        fs::create_dir_all(data_dir).map_err(|cause| failed("create", data_dir, cause))?;
        let root = data_dir.canonicalize().map_err(|cause| failed("resolve", data_dir, cause))?;
        let socket_dir = socket_dir(&root);
        let place = Self { data: root.join("cluster"), log: root.join("log"), socket_dir, root, account };
        place.own(&place.root)?;
        place.make(&place.log)?;
        place.make_socket_dir()?;
        Ok(place)
    }

    fn make(&self, directory: &Path) -> Result<(), PostgresError> {
        match fs::DirBuilder::new().mode(0o700).create(directory) {
            Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => Err(failed("create", directory, cause)),
            _ => self.own(directory),
        }
    }

    /// The server insists on owning its data, and nobody else may come in.
    fn own(&self, directory: &Path) -> Result<(), PostgresError> {
        if let Some(account) = &self.account {
            std::os::unix::fs::chown(directory, Some(account.uid), Some(account.gid))
                .map_err(|cause| failed("give away", directory, cause))?;
        }
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700))
            .map_err(|cause| failed("close to others", directory, cause))
    }

    /// Outside our own directory anybody may have been there before us, so nothing found is taken on trust.
    fn make_socket_dir(&self) -> Result<(), PostgresError> {
        match fs::DirBuilder::new().mode(0o700).create(&self.socket_dir) {
            Ok(()) => return self.own(&self.socket_dir),
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {}
            Err(cause) => return Err(failed("create", &self.socket_dir, cause)),
        }
        let found =
            fs::symlink_metadata(&self.socket_dir).map_err(|cause| failed("examine", &self.socket_dir, cause))?;
        let ourselves = rustix::process::geteuid().as_raw();
        let expected = self.account.as_ref().map_or(ourselves, |account| account.uid);
        if !found.is_dir() || (found.uid() != expected && found.uid() != ourselves) {
            return Err(PostgresError::SocketDirectory { path: self.socket_dir.clone() });
        }
        self.own(&self.socket_dir)
    }

    /// The right to run this cluster; it is let go when the file is dropped or we die.
    pub(crate) fn lock(&self) -> Result<File, PostgresError> {
        let path = self.root.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|cause| failed("open", &path, cause))?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(PostgresError::InUse { data_dir: self.root.clone() }),
            Err(cause) => Err(failed("lock", &path, cause.into())),
        }
    }

    /// The major version of the existing data.
    pub(crate) fn data_major(&self) -> Result<Option<u32>, PostgresError> {
        let path = self.data.join("PG_VERSION");
        match fs::read_to_string(&path) {
            Ok(text) => text
                .trim()
                .parse()
                .map(Some)
                .map_err(|_| failed("read a version from", &path, io::ErrorKind::InvalidData.into())),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(failed("read", &path, cause)),
        }
    }

    /// A command of the server's account in a directory that every account can be in.
    pub(crate) fn adopt(&self, command: &mut Command) {
        command.current_dir("/").env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").env("TZ", "UTC");
        if let Some(account) = &self.account {
            account.apply(command);
        }
    }

    /// Says which directory is closed before the server does so in its own, less helpful words.
    pub(crate) async fn check_reachable(&self, bin_dir: &Path) -> Result<(), PostgresError> {
        let Some(account) = &self.account else { return Ok(()) };
        let mut probe = Command::new(bin_dir.join("postgres"));
        self.adopt(&mut probe);
        // Entering the directory happens after the change of account, so this is the true question.
        probe.arg("--version").current_dir(&self.root).kill_on_drop(true);
        match probe.output().await {
            Ok(_) => Ok(()),
            Err(cause) => match account::first_closed_directory(&self.root, account) {
                Some(directory) => Err(PostgresError::NotTraversable {
                    account: account.name.clone(),
                    directory,
                    data_dir: self.root.clone(),
                }),
                None => Err(failed("use as the server's account", &self.root, cause)),
            },
        }
    }

    /// Ends a server that outlived the run that started it.
    ///
    /// Its id alone proves nothing, as ids are used again: a server stands in its data directory.
    pub(crate) async fn stop_left_over(&self) -> Result<(), PostgresError> {
        let Some(server) = self.left_over() else { return Ok(()) };
        tracing::warn!(
            pid = server.pid.as_raw_nonzero(),
            "Stopping the PostgreSQL server that an earlier run left behind"
        );
        for (signal, patience) in LEFT_OVER_PATIENCE {
            server.signal(signal);
            if server.ended_within(patience).await {
                return Ok(());
            }
        }
        Err(PostgresError::LeftOver { pid: server.pid.as_raw_nonzero().get() })
    }

    fn left_over(&self) -> Option<Incarnation> {
        let text = fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        let pid: i32 = text.lines().next()?.trim().parse().ok()?;
        let server = Incarnation::of(Pid::from_raw(pid.checked_abs()?)?)?;
        let stands_in = fs::read_link(format!("/proc/{}/cwd", server.pid.as_raw_nonzero())).ok()?;
        (stands_in == self.data).then_some(server)
    }

    /// Creates the data directory if there is none. A creation that was cut short leaves nothing that counts.
    pub(crate) async fn initialise(&self, bin_dir: &Path, durable: bool) -> Result<(), PostgresError> {
        let fresh = self.root.join("cluster.new");
        remove_tree(&fresh)?;
        if !self.data.exists() {
            let mut initdb = Command::new(bin_dir.join("initdb"));
            self.adopt(&mut initdb);
            initdb.arg("--pgdata").arg(&fresh).args(["--username", ROLE, "--auth", "trust", "--encoding", "UTF8"]);
            initdb.args(["--locale", "C", "--data-checksums", "--no-instructions"]);
            if !durable {
                initdb.arg("--no-sync");
            }
            run("initdb", &mut initdb).await?;
            append(
                &fresh.join("postgresql.conf"),
                "\n# Ours, written at every start.\ninclude_if_exists = 'harmonia.conf'\n",
            )?;
            fs::rename(&fresh, &self.data).map_err(|cause| failed("rename", &fresh, cause))?;
            sync_dir(&self.root)?;
        }
        self.write(
            &self.data.join("pg_hba.conf"),
            "# Whoever can enter the socket's directory is let in.\nlocal all all trust\n",
        )?;
        let sized = sizing::settings(sizing::machine_memory().unwrap_or_default());
        self.write(&self.data.join("harmonia.conf"), &format!("{SETTINGS}{sized}"))
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), PostgresError> {
        fs::write(path, text).map_err(|cause| failed("write", path, cause))?;
        match &self.account {
            Some(account) => std::os::unix::fs::chown(path, Some(account.uid), Some(account.gid))
                .map_err(|cause| failed("give away", path, cause)),
            None => Ok(()),
        }
    }

    /// What must hold whatever a configuration file says.
    pub(crate) fn fixed_settings(&self, durable: bool) -> Vec<String> {
        let safe = if durable { "on" } else { "off" };
        vec![
            "listen_addresses=".to_owned(),
            "port=5432".to_owned(),
            format!("unix_socket_directories={}", quoted_list_item(&self.socket_dir)),
            "unix_socket_permissions=0700".to_owned(),
            format!("log_directory={}", self.log.display()),
            format!("fsync={safe}"),
            format!("full_page_writes={safe}"),
            format!("synchronous_commit={safe}"),
        ]
    }

    /// Whether the server of this process id has opened its doors, as it notes in its own file (line 8).
    pub(crate) fn is_ready(&self, pid: i32) -> bool {
        fs::read_to_string(self.data.join("postmaster.pid")).is_ok_and(|text| {
            let lines: Vec<&str> = text.lines().map(str::trim).collect();
            lines.first().is_some_and(|line| *line == pid.to_string())
                && lines.get(7).is_some_and(|line| *line == "ready")
        })
    }
}

/// Tuning; `ALTER SYSTEM` goes before it.
const SETTINGS: &str = "\
max_connections = 200
wal_compression = on
# A forgotten transaction would keep the dead rows of the queue alive.
idle_in_transaction_session_timeout = 5min
jit = off
timezone = UTC
log_timezone = UTC
logging_collector = on
# One file a weekday, emptied when its day comes again.
log_filename = 'postgresql-%a.log'
log_file_mode = 0600
log_rotation_age = 1d
log_rotation_size = 0
log_truncate_on_rotation = on
log_line_prefix = '%m [%p] '
# The text of a failed statement may hold what people typed.
log_min_error_statement = panic
";

/// The socket lies with the data unless that path is too long for the kernel.
fn socket_dir(root: &Path) -> PathBuf {
    let inside = root.join("socket");
    if inside.as_os_str().len() + 1 + SOCKET_NAME.len() <= SOCKET_PATH_BYTES_MAX {
        return inside;
    }
    let digest = Sha256::digest(root.as_os_str().as_bytes());
    let name = digest.iter().take(10).fold(String::from("harmonia-pg-"), |name, byte| format!("{name}{byte:02x}"));
    Path::new("/tmp").join(name)
}

/// An item of a list setting such as `unix_socket_directories`: commas and spaces are literal inside quotes.
fn quoted_list_item(path: &Path) -> String {
    format!("\"{}\"", path.display().to_string().replace('"', "\"\""))
}

pub(crate) fn url(socket_dir: &Path, database: &str) -> String {
    format!("postgres://{ROLE}@localhost/{database}?host={}", percent_encoded(socket_dir.as_os_str().as_bytes()))
}

pub(crate) fn check_database_name(name: &str) -> Result<(), PostgresError> {
    let usable = (1..=63).contains(&name.len())
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
        && !name.starts_with(|first: char| first.is_ascii_digit());
    if usable { Ok(()) } else { Err(PostgresError::DatabaseName { name: name.to_owned() }) }
}

/// Runs a short program of the server to its end and returns what it printed.
pub(crate) async fn run(program: &'static str, command: &mut Command) -> Result<String, PostgresError> {
    command.stdin(std::process::Stdio::null()).kill_on_drop(true);
    let output = command.output().await.map_err(|cause| failed("run", Path::new(program), cause))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(PostgresError::Program { program, output: tail(&output.stderr) })
}

/// The end of a program's output, where the reason stands.
pub(crate) fn tail(output: &[u8]) -> String {
    let from = output.len().saturating_sub(OUTPUT_BYTES_MAX);
    String::from_utf8_lossy(&output[from..]).trim().to_owned()
}

pub(crate) fn failed(doing: &'static str, path: &Path, cause: io::Error) -> PostgresError {
    PostgresError::Io { doing, path: path.to_owned(), cause }
}

fn remove_tree(path: &Path) -> Result<(), PostgresError> {
    match fs::remove_dir_all(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(failed("remove", path, cause)),
        _ => Ok(()),
    }
}

fn append(path: &Path, text: &str) -> Result<(), PostgresError> {
    let mut file = File::options().append(true).open(path).map_err(|cause| failed("open", path, cause))?;
    io::Write::write_all(&mut file, text.as_bytes()).map_err(|cause| failed("write", path, cause))
}

fn sync_dir(path: &Path) -> Result<(), PostgresError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(|cause| failed("write out", path, cause))
}
