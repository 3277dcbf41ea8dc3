//! What a program in a sandbox may see and use. Start at [`SandboxSpec`].

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::builder::Builder;
use crate::error::SandboxError;

/// Largest specification that is read, in bytes.
const SPEC_BYTES_MAX: usize = 64 << 20;

/// A program and its world. Whatever is not named here does not exist for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Files and directories of the host that appear inside.
    #[serde(default)]
    pub binds: Vec<Bind>,
    /// Symlinks made inside: (path, what it points to).
    #[serde(default)]
    pub symlinks: Vec<(PathBuf, PathBuf)>,
    /// Small files made inside, read-only.
    #[serde(default)]
    pub files: Vec<TextFile>,
    /// Empty writable directories in memory, owned by the program's user.
    #[serde(default)]
    pub private: Vec<PrivateDirectory>,
    /// A `/dev` with null, zero, full, random, urandom and the standard streams.
    #[serde(default)]
    pub dev: bool,
    /// A `/proc` of the own PID namespace.
    #[serde(default)]
    pub proc: bool,
    /// The whole environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Program (an absolute path inside) and arguments.
    pub argv: Vec<String>,
    /// Working directory, inside.
    pub cwd: PathBuf,
    /// What of the network it has.
    #[serde(default)]
    pub network: Network,
    /// Resource limits.
    #[serde(default)]
    pub limits: Limits,
    /// A file on the host that tells, once the program has ended, how much memory it used ([`crate::read_usage`]). The
    /// program cannot reach it.
    #[serde(default)]
    pub usage_file: Option<PathBuf>,
    /// Who it is.
    pub user: User,
    /// Set for the builder of a derivation, whose walls are those of builds; `argv`, `env`, `dev` and `usage_file` are
    /// not used then.
    #[serde(default)]
    pub builder: Option<Builder>,
}

/// What of the network a program has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// Nothing: a loopback interface of its own, and that is down.
    #[default]
    None,
    /// A loopback interface of its own.
    Loopback,
    /// A loopback interface of its own with one listener, which the helper hands to whoever started it
    /// ([`crate::proxied::receive_listener`]); the standard input must be a Unix socket for that.
    Proxied {
        /// Where the listener is, on 127.0.0.1.
        port: u16,
    },
    /// The host's.
    Host,
}

/// One file or directory of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// On the host; symlinks are followed there.
    pub source: PathBuf,
    /// Inside.
    pub target: PathBuf,
    /// Whether it can be written, as far as the program's user may.
    #[serde(default)]
    pub writable: bool,
    /// Left out, rather than an error, when the host does not have it.
    #[serde(default)]
    pub optional: bool,
    /// Device files in it work.
    #[serde(default)]
    pub devices: bool,
}

/// A small file made inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextFile {
    /// Inside.
    pub path: PathBuf,
    /// Its content.
    pub text: String,
}

/// An empty writable directory in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrivateDirectory {
    /// Inside.
    pub path: PathBuf,
    /// How much fits, in bytes.
    pub size_bytes: u64,
}

/// Resource limits of each process of the sandbox; `None`: as the caller has them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Writable memory of one process, in bytes.
    pub memory_bytes: Option<u64>,
    /// CPU time of one process, in seconds.
    pub cpu_seconds: Option<u64>,
    /// Processes and threads of the program's user.
    pub processes: Option<u64>,
    /// Open files of one process.
    pub open_files: Option<u64>,
    /// Largest file written, in bytes.
    pub file_bytes: Option<u64>,
}

/// The program's user. Run by root, the program gets these ids for real; otherwise they stand for the caller's own ids
/// in a user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id, not 0.
    pub uid: u32,
    /// Group id, not 0.
    pub gid: u32,
}

impl Default for User {
    fn default() -> Self {
        // "nobody" everywhere.
        Self { uid: 65_534, gid: 65_534 }
    }
}

impl Bind {
    /// A read-only view of the same path.
    pub fn same(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { source: path.clone(), target: path, writable: false, optional: false, devices: false }
    }

    /// A read-only view of `source` at `target`.
    pub fn at(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self { source: source.into(), target: target.into(), writable: false, optional: false, devices: false }
    }

    /// As it is, but left out when the host does not have it.
    #[must_use]
    pub fn if_there(mut self) -> Self {
        self.optional = true;
        self
    }
}

impl SandboxSpec {
    /// Adds the host's programs and libraries (`/usr` and what belongs to it), as they are: where `/bin` is a symlink
    /// it is one inside, too.
    pub fn add_system(&mut self) {
        for name in ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"] {
            let path = Path::new(name);
            match std::fs::read_link(path) {
                Ok(target) => self.symlinks.push((path.to_owned(), target)),
                Err(_) if path.is_dir() => self.binds.push(Bind::same(path)),
                Err(_) => {}
            }
        }
        // Certificates and names; passwords and keys are never in these.
        for name in [
            "/etc/ssl",
            "/etc/pki",
            "/etc/ca-certificates",
            "/etc/alternatives",
            "/etc/ld.so.cache",
            "/etc/resolv.conf",
            "/etc/hosts",
            "/etc/nsswitch.conf",
            "/etc/services",
            "/etc/protocols",
            "/etc/static/ssl",
        ] {
            self.binds.push(Bind::same(name).if_there());
        }
        let User { uid, gid } = self.user;
        self.files.push(TextFile {
            path: PathBuf::from("/etc/passwd"),
            text: format!(
                "root:x:0:0:root:/nonexistent:/bin/false\nsandbox:x:{uid}:{gid}:sandbox:/nonexistent:/bin/false\n"
            ),
        });
        self.files.push(TextFile { path: PathBuf::from("/etc/group"), text: format!("root:x:0:\nsandbox:x:{gid}:\n") });
    }

    /// What a helper expects first on its standard input.
    pub fn header(&self) -> Result<Vec<u8>, SandboxError> {
        let json = serde_json::to_vec(self).map_err(|error| SandboxError::Spec(error.to_string()))?;
        let mut header = format!("{}\n", json.len()).into_bytes();
        header.extend_from_slice(&json);
        Ok(header)
    }

    /// Reads a header and not a byte more: the rest of the stream is the program's.
    pub fn read(mut input: impl Read) -> Result<Self, SandboxError> {
        let mut length: usize = 0;
        loop {
            let mut byte = [0];
            input.read_exact(&mut byte).map_err(SandboxError::ReadSpec)?;
            match byte[0] {
                b'\n' => break,
                digit @ b'0'..=b'9' if length <= SPEC_BYTES_MAX => length = length * 10 + usize::from(digit - b'0'),
                _ => return Err(SandboxError::Spec("its length is no number, or too large".to_owned())),
            }
        }
        if length > SPEC_BYTES_MAX {
            return Err(SandboxError::Spec(format!("it has {length} bytes, at most {SPEC_BYTES_MAX} are read")));
        }
        let mut json = vec![0; length];
        input.read_exact(&mut json).map_err(SandboxError::ReadSpec)?;
        let spec: Self =
            serde_json::from_slice(&json).map_err(|error| SandboxError::ReadSpec(io::Error::other(error)))?;
        spec.check()?;
        Ok(spec)
    }

    /// Refuses what cannot be meant: paths that are not plain absolute ones, root as the user, no program.
    pub fn check(&self) -> Result<(), SandboxError> {
        let inside = self
            .binds
            .iter()
            .map(|bind| &bind.target)
            .chain(self.symlinks.iter().map(|(path, _)| path))
            .chain(self.files.iter().map(|file| &file.path))
            .chain(self.private.iter().map(|directory| &directory.path));
        for path in inside {
            let plain = path.is_absolute()
                && path != Path::new("/")
                && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
            if !plain {
                return Err(SandboxError::Spec(format!("'{}' is not a plain absolute path", path.display())));
            }
        }
        if self.builder.is_none() && !self.argv.first().is_some_and(|program| program.starts_with('/')) {
            return Err(SandboxError::Spec("the program is not an absolute path".to_owned()));
        }
        let host_user = self.builder.as_ref().and_then(|builder| builder.host_user);
        for user in [Some(self.user), host_user].into_iter().flatten() {
            if user.uid == 0 || user.gid == 0 {
                return Err(SandboxError::Spec("the program must not run as root".to_owned()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> SandboxSpec {
        SandboxSpec { argv: vec!["/bin/true".to_owned()], cwd: "/".into(), ..SandboxSpec::default() }
    }

    #[test]
    fn a_header_is_read_and_what_follows_is_left() {
        let mut spec = plain();
        spec.add_system();
        spec.env.insert("A".to_owned(), "ü\n".to_owned());
        let mut bytes = spec.header().expect("serializes");
        bytes.extend_from_slice(b"the program's");
        let mut input = bytes.as_slice();
        assert_eq!(SandboxSpec::read(&mut input).expect("reads"), spec);
        assert_eq!(input, b"the program's");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let with = |change: &dyn Fn(&mut SandboxSpec)| {
            let mut spec = plain();
            change(&mut spec);
            spec.check()
        };
        assert!(with(&|_| {}).is_ok());
        assert!(with(&|spec| spec.argv.clear()).is_err());
        assert!(with(&|spec| spec.argv[0] = "true".to_owned()).is_err());
        assert!(with(&|spec| spec.user.uid = 0).is_err());
        assert!(with(&|spec| spec.binds.push(Bind::at("/usr", "/a/../etc"))).is_err());
        assert!(with(&|spec| spec.binds.push(Bind::at("/usr", "usr"))).is_err());
        assert!(with(&|spec| spec.private.push(PrivateDirectory { path: "/".into(), size_bytes: 1 })).is_err());
        for bad in [&b"x"[..], b"", b"5\n{}", b"99999999999\n", b"2\n{}"] {
            assert!(SandboxSpec::read(bad).is_err());
        }
    }
}
