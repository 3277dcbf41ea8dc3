//! The private root: an empty file system in memory into which the spec's mounts are put. Start at [`build`].

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use crate::error::{SandboxError, step};
use crate::spec::{Bind, PrivateDirectory, SandboxSpec};

/// Where the host's root is while the new one is filled.
const OLD: &str = "/.old";
/// The root holds mount points and small files only.
const ROOT_BYTES: u64 = 16 << 20;
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];

enum Mount<'a> {
    Bind(&'a Bind, PathBuf),
    Private(&'a PrivateDirectory),
    Proc,
}

/// Fills a new root and makes it ours. To be called in a mount namespace of our own, as PID 1.
pub(crate) fn build(spec: &SandboxSpec) -> Result<(), SandboxError> {
    let sources = resolve_sources(spec)?;
    step(
        || "make the mounts private".to_owned(),
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC),
    )?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    enter_new_root()?;

    for (path, target) in &spec.symlinks {
        make_parent(path)?;
        step(|| format!("make the symlink {}", path.display()), symlink(target, path))?;
    }
    for file in &spec.files {
        make_parent(&file.path)?;
        step(|| format!("write {}", file.path.display()), fs::write(&file.path, &file.text))?;
    }
    let mut mounts: Vec<(&Path, Mount<'_>)> = sources
        .into_iter()
        .map(|(bind, source)| (bind.target.as_path(), Mount::Bind(bind, source)))
        .chain(spec.private.iter().map(|directory| (directory.path.as_path(), Mount::Private(directory))))
        .collect();
    if spec.proc {
        mounts.push((Path::new("/proc"), Mount::Proc));
    }
    // Outer ones first, or they would cover the inner ones.
    mounts.sort_by_key(|(target, _)| target.components().count());
    for (target, mount) in mounts {
        put(spec, target, mount)?;
    }
    if let Some(builder) = &spec.builder {
        make_devices()?;
        make_builder_devices(builder.shm_bytes)?;
    } else if spec.dev {
        make_devices()?;
    }
    step(|| "leave the host's root".to_owned(), rustix::mount::unmount(OLD, UnmountFlags::DETACH))?;
    step(|| format!("remove {OLD}"), fs::remove_dir(OLD))?;
    set_attributes(Path::new("/"), libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV, false)
}

/// Symlinks of the host mean the host's root, so they are followed before it goes away.
fn resolve_sources(spec: &SandboxSpec) -> Result<Vec<(&Bind, PathBuf)>, SandboxError> {
    let mut sources = Vec::new();
    for bind in &spec.binds {
        match fs::canonicalize(&bind.source) {
            Ok(source) => sources.push((bind, source)),
            Err(error) if bind.optional && error.kind() == io::ErrorKind::NotFound => {}
            Err(cause) => {
                return Err(SandboxError::Step { step: format!("find {}", bind.source.display()), cause });
            }
        }
    }
    Ok(sources)
}

fn enter_new_root() -> Result<(), SandboxError> {
    // Any directory will do: the mount moves away from it at once.
    let base = ["/tmp", "/run", "/var", "/usr"].into_iter().find(|path| Path::new(path).is_dir()).unwrap_or("/dev");
    mount_memory(Path::new(base), ROOT_BYTES, "mode=0755")?;
    let old = format!("{base}{OLD}");
    step(|| format!("make {old}"), DirBuilder::new().mode(0o700).create(&old))?;
    step(|| format!("enter {base}"), std::env::set_current_dir(base))?;
    step(|| "change the root".to_owned(), rustix::process::pivot_root(".", OLD.trim_start_matches('/')))?;
    step(|| "enter the new root".to_owned(), std::env::set_current_dir("/"))
}

fn put(spec: &SandboxSpec, target: &Path, mount: Mount<'_>) -> Result<(), SandboxError> {
    match mount {
        Mount::Proc => {
            make_directory(target)?;
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            step(|| "mount /proc".to_owned(), rustix::mount::mount("proc", target, "proc", flags, None))
        }
        Mount::Private(directory) => {
            make_directory(target)?;
            let owner = format!("mode=0700,uid={},gid={}", spec.user.uid, spec.user.gid);
            mount_memory(target, directory.size_bytes, &owner)
        }
        Mount::Bind(bind, source) => {
            let old = Path::new(OLD).join(source.strip_prefix("/").unwrap_or(&source));
            bind_mount(&old, target)?;
            let mut attributes = libc::MOUNT_ATTR_NOSUID;
            if !bind.devices {
                attributes |= libc::MOUNT_ATTR_NODEV;
            }
            if !bind.writable {
                attributes |= libc::MOUNT_ATTR_RDONLY;
            }
            set_attributes(target, attributes, true)
        }
    }
}

fn make_devices() -> Result<(), SandboxError> {
    for name in DEVICES {
        bind_mount(&Path::new(OLD).join("dev").join(name), &Path::new("/dev").join(name))?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        step(|| format!("make /dev/{name}"), symlink(target, Path::new("/dev").join(name)))?;
    }
    Ok(())
}

/// What else builders find in Nix's sandbox: shared memory, terminals of their own, and `/dev/tty`.
fn make_builder_devices(shm_bytes: u64) -> Result<(), SandboxError> {
    bind_mount(&Path::new(OLD).join("dev/tty"), Path::new("/dev/tty"))?;
    make_directory(Path::new("/dev/shm"))?;
    mount_memory(Path::new("/dev/shm"), shm_bytes, "mode=1777")?;
    make_directory(Path::new("/dev/pts"))?;
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    step(
        || "mount /dev/pts".to_owned(),
        rustix::mount::mount("devpts", "/dev/pts", "devpts", flags, c"newinstance,mode=0620,ptmxmode=0666"),
    )?;
    step(|| "make /dev/ptmx".to_owned(), symlink("/dev/pts/ptmx", "/dev/ptmx"))
}

fn bind_mount(source: &Path, target: &Path) -> Result<(), SandboxError> {
    let is_directory = step(|| format!("look at {}", source.display()), fs::metadata(source))?.is_dir();
    if is_directory {
        make_directory(target)?;
    } else {
        make_parent(target)?;
        // What is there already may be a file of the host, in a directory that is mounted here.
        let made = match File::create_new(target) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made.map(drop),
        };
        step(|| format!("make the mount point {}", target.display()), made)?;
    }
    step(
        || format!("bind {} to {}", source.display(), target.display()),
        rustix::mount::mount_bind_recursive(source, target),
    )
}

fn mount_memory(target: &Path, size_bytes: u64, options: &str) -> Result<(), SandboxError> {
    // Zero would mean that everything fits.
    let size = if size_bytes == 0 { String::new() } else { format!("size={size_bytes},") };
    let data = format!("{size}{options}\0");
    let data =
        std::ffi::CStr::from_bytes_with_nul(data.as_bytes()).map_err(|error| SandboxError::Spec(error.to_string()))?;
    step(
        || format!("mount memory at {}", target.display()),
        rustix::mount::mount("tmpfs", target, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, data),
    )
}

fn make_parent(path: &Path) -> Result<(), SandboxError> {
    path.parent().map_or(Ok(()), make_directory)
}

fn make_directory(path: &Path) -> Result<(), SandboxError> {
    step(
        || format!("make the directory {}", path.display()),
        DirBuilder::new().recursive(true).mode(0o755).create(path),
    )
}

/// Adds mount attributes, with `recursive` for everything mounted below, too (which a remount cannot; Linux 5.12).
fn set_attributes(target: &Path, attributes: u64, recursive: bool) -> Result<(), SandboxError> {
    use std::os::unix::ffi::OsStrExt;
    let path =
        std::ffi::CString::new(target.as_os_str().as_bytes()).map_err(|error| SandboxError::Spec(error.to_string()))?;
    let change = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path ends in a NUL and the structure lives until the call returns; the kernel only reads both, and
    // is told the structure's size.
    #[expect(unsafe_code, reason = "no safe wrapper exists")]
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            &raw const change,
            size_of::<libc::mount_attr>(),
        )
    };
    let outcome = if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    step(|| format!("protect the mount {} (needs Linux 5.12)", target.display()), outcome)
}
