//! Who a builder is when root starts it: a user of the host that nobody else is, and inside the one that every build
//! sees. Start at [`take`].
//!
//! The builder alone enters a user namespace, after all mounts are made. So the mounts belong to a namespace in which it
//! is nobody, whatever it may do in its own.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use rustix::process::Pid;
use rustix::thread::{Gid, Uid, UnshareFlags};

use crate::error::{SandboxError, step};
use crate::namespaces;
use crate::spec::User;

/// The two ends over which [`take`] and [`give`] talk.
pub(crate) fn pair() -> Result<(UnixStream, UnixStream), SandboxError> {
    step(|| "make a pair of sockets".to_owned(), UnixStream::pair())
}

/// In the child: becomes that user of the host, and enters a user namespace whose ids `give` sets.
pub(crate) fn take(host_user: User, mut parent: UnixStream) -> Result<(), SandboxError> {
    become_user(host_user)?;
    namespaces::unshare("make a user namespace", UnshareFlags::NEWUSER)?;
    step(|| "ask for ids".to_owned(), parent.write_all(b"u"))?;
    step(|| "wait for ids".to_owned(), parent.read_exact(&mut [0]))
}

/// In the parent, which is still root: maps the child's one user and one group.
pub(crate) fn give(child: Pid, host: User, inside: User, mut stream: UnixStream) -> Result<(), SandboxError> {
    if stream.read_exact(&mut [0]).is_err() {
        // It failed, and says why itself.
        return Ok(());
    }
    let child = child.as_raw_nonzero();
    let write = |file: &str, text: &str| {
        let path = format!("/proc/{child}/{file}");
        let written = File::options().write(true).open(&path).and_then(|mut file| file.write_all(text.as_bytes()));
        step(|| format!("write '{text}' to {path}"), written)
    };
    write("setgroups", "deny")?;
    write("uid_map", &format!("{} {} 1", inside.uid, host.uid))?;
    write("gid_map", &format!("{} {} 1", inside.gid, host.gid))?;
    step(|| "give ids".to_owned(), stream.write_all(b"g"))
}

/// Leaves all groups and becomes that user for good. Needs root.
pub(crate) fn become_user(user: User) -> Result<(), SandboxError> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    step(|| "leave all groups".to_owned(), rustix::thread::set_thread_groups(&[]))?;
    step(|| format!("become group {gid:?}"), rustix::thread::set_thread_res_gid(gid, gid, gid))?;
    step(|| format!("become user {uid:?}"), rustix::thread::set_thread_res_uid(uid, uid, uid))
}
