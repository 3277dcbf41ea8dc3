//! From a file to compiled code whose place in the contract is known. Start at [`load`].

mod contract;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use wasmtime::component::Component;

pub use self::contract::ImportProblem;
pub(crate) use self::contract::{Contract, contract, import_problems};
use crate::engine::{Compiled, Engines};
use crate::error::LoadError;
use crate::limits::COMPONENT_BYTES_MAX;

/// A component's bytes and their hash.
pub(crate) struct ComponentFile {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Vec<u8>,
    pub(crate) sha256: String,
}

/// A compiled component. Instances of it with different settings share one.
pub(crate) struct Program {
    pub(crate) component: Component,
    pub(crate) is_pooled: bool,
    pub(crate) sha256: String,
    pub(crate) size_bytes: u64,
    pub(crate) contract: Contract,
    pub(crate) imports: Vec<String>,
    pub(crate) exports: Vec<String>,
}

/// Reads a component, checks its size and its pin.
pub(crate) fn read(path: &Path, pin: Option<&str>) -> Result<ComponentFile, LoadError> {
    if let Some(text) = path.to_str().filter(|text| text.contains("://")) {
        return Err(LoadError::Registry(text.to_owned()));
    }
    let failed = |cause| LoadError::Read { path: path.to_owned(), cause };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(COMPONENT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > COMPONENT_BYTES_MAX {
        return Err(LoadError::TooLarge { path: path.to_owned(), limit_bytes: COMPONENT_BYTES_MAX });
    }
    let sha256 = hex::encode(Sha256::digest(&bytes));
    if let Some(pinned) = pin
        && !pinned.eq_ignore_ascii_case(&sha256)
    {
        return Err(LoadError::Pin { path: path.to_owned(), pinned: pinned.to_owned(), actual: sha256 });
    }
    Ok(ComponentFile { path: path.to_owned(), bytes, sha256 })
}

/// Compiles a component and finds its place in the contract. May take seconds of processor time: not on an async thread.
pub(crate) fn load(engines: &Engines, file: &ComponentFile) -> Result<Program, LoadError> {
    let Compiled { component, is_pooled } = engines
        .compile(&file.sha256, &file.bytes)
        .map_err(|reason| LoadError::NotAComponent { path: file.path.clone(), reason })?;
    let engine = component.engine().clone();
    let types = component.component_type();
    let imports: Vec<String> = types.imports(&engine).map(|(name, _)| name.to_owned()).collect();
    let exports: Vec<String> = types.exports(&engine).map(|(name, _)| name.to_owned()).collect();
    Ok(Program {
        contract: contract(&imports, &exports)?,
        component,
        is_pooled,
        sha256: file.sha256.clone(),
        size_bytes: file.bytes.len() as u64,
        imports,
        exports,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn files_are_bounded_pinned_and_local() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.wasm");
        std::fs::write(&path, b"abc").expect("written");
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(read(&path, None).expect("no pin").sha256, sha256);
        read(&path, Some(&sha256.to_uppercase())).expect("the pinned file");
        let error = read(&path, Some("00")).err().expect("another file").to_string();
        assert!(error.contains(sha256) && error.contains("pins 00"), "{error}");
        let error = read(Path::new("oci://registry.example/name@sha256:00"), None).err().expect("no file").to_string();
        assert!(error.contains("only files are loaded"), "{error}");
        let error = read(&folder.path().join("none"), None).err().expect("no such file");
        assert!(matches!(error, LoadError::Read { .. }), "{error}");

        let mut file = std::fs::OpenOptions::new().append(true).open(&path).expect("ours");
        file.write_all(b"d").expect("written");
        file.set_len(COMPONENT_BYTES_MAX + 1).expect("sparse");
        let error = read(&path, None).err().expect("too large").to_string();
        assert!(error.contains("larger than"), "{error}");
    }
}
