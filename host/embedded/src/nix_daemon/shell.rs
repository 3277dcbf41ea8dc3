//! The shell of the sandbox: nothing else is there, not even a dynamic linker, so it has to be statically linked.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::NixDaemonError;
use crate::process::find_program;

const PT_INTERP: u32 = 3;
const PROGRAM_HEADERS_MAX: usize = 64;

/// The configured shell, or a static busybox of the machine.
pub(crate) fn find(configured: Option<&Path>) -> Result<PathBuf, NixDaemonError> {
    let candidates: Vec<PathBuf> = match configured {
        Some(path) => vec![path.to_owned()],
        None => ["/bin/busybox", "/usr/bin/busybox"].iter().map(PathBuf::from).chain(find_program("busybox")).collect(),
    };
    candidates.iter().find(|path| is_static(path)).cloned().ok_or_else(|| {
        let names: Vec<_> = candidates.iter().map(|path| path.display().to_string()).collect();
        NixDaemonError::NoStaticShell { looked_at: names.join(", ") }
    })
}

/// Whether this is an ELF program that asks for no interpreter (the dynamic linker).
fn is_static(path: &Path) -> bool {
    let mut head = Vec::new();
    let read = std::fs::File::open(path)
        .and_then(|file| file.take(64 + 56 * PROGRAM_HEADERS_MAX as u64).read_to_end(&mut head));
    read.is_ok() && has_interpreter(&head) == Some(false)
}

/// elf(5), 64 bits: `e_phoff` at 32, `e_phentsize` at 54, `e_phnum` at 56; the type is a program header's first word.
fn has_interpreter(head: &[u8]) -> Option<bool> {
    let bytes = |at: usize, length: usize| head.get(at..at.checked_add(length)?);
    let little_endian = match bytes(0, 6)? {
        [0x7f, b'E', b'L', b'F', 2, order] => *order == 1,
        _ => return None,
    };
    let number = |at: usize, length: usize| -> Option<usize> {
        let raw = bytes(at, length)?;
        let digit = |value: usize, byte: &u8| value << 8 | usize::from(*byte);
        Some(if little_endian { raw.iter().rev().fold(0, digit) } else { raw.iter().fold(0, digit) })
    };
    let (offset, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for index in 0..count.min(PROGRAM_HEADERS_MAX) {
        if number(offset.checked_add(index * size)?, 4)? == PT_INTERP as usize {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_program_is_dynamic_and_text_is_no_program() {
        let us = std::env::current_exe().expect("our path");
        assert!(!is_static(&us));
        assert_eq!(has_interpreter(b"#!/bin/sh"), None);
        assert_eq!(has_interpreter(b"\x7fELF\x02\x01"), None);
        let error = find(Some(&us)).expect_err("dynamic");
        assert!(error.to_string().contains("busybox-static"), "{error}");
    }

    #[test]
    fn the_machine_has_a_static_shell() {
        assert!(is_static(&find(None).expect("busybox-static is installed")));
    }
}
