//! A network namespace with one way out: a listener on its loopback interface that belongs to somebody outside. Start at
//! [`hand_out`], the helper's side; [`receive_listener`] is the other.
//!
//! A socket stays in the namespace that it was made in, whoever holds its descriptor. So the helper makes the listener
//! inside and sends the descriptor out, over the Unix socket that its standard input is; connections to it are accepted
//! outside, without a process in between.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

use crate::error::{SandboxError, step};

/// Goes with the descriptor, since a message needs a byte.
const MARK: u8 = b'L';

/// Listens in the namespace that this process is in, and gives the listener to whoever holds the other end of the standard
/// input. The program gets that input, too, but cannot send anything over it.
pub(crate) fn hand_out(port: u16) -> Result<(), SandboxError> {
    start_loopback()?;
    let listener = step(|| format!("listen on port {port}"), TcpListener::bind((Ipv4Addr::LOCALHOST, port)))?;
    let stdin = io::stdin();
    step(|| "hand out the listener (is the standard input a Unix socket?)".to_owned(), send(stdin.as_fd(), &listener))?;
    step(|| "close the way back".to_owned(), rustix::net::shutdown(stdin.as_fd(), rustix::net::Shutdown::Write))
}

fn send(socket: BorrowedFd<'_>, listener: &TcpListener) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [listener.as_fd()];
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for one descriptor"));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(&[MARK])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Takes the listener out of the socket whose other end the helper has as its standard input. `None`: the helper ended
/// without one. To be called when the socket can be read, or of a blocking one at any time.
pub fn receive_listener(socket: BorrowedFd<'_>) -> io::Result<Option<TcpListener>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut mark = [0];
    let mut pieces = [IoSliceMut::new(&mut mark)];
    let received = rustix::net::recvmsg(socket, &mut pieces, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let descriptors = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let descriptor = descriptors.ok_or_else(|| io::Error::other("the helper sent no listener"))?;
    Ok(Some(TcpListener::from(descriptor)))
}

/// Brings up the loopback interface of the namespace that this process is in.
pub(crate) fn start_loopback() -> Result<(), SandboxError> {
    step(|| "start the loopback interface".to_owned(), set_loopback_up())
}

fn set_loopback_up() -> io::Result<()> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: all of its fields are integers, arrays of them and pointers, for which zero is a value.
    #[expect(unsafe_code, reason = "no safe form exists")]
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(*b"lo") {
        *place = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request is whole, its name ends in a NUL, and it lives until the call has returned.
    #[expect(unsafe_code, reason = "no safe wrapper exists")]
    let outcome = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
