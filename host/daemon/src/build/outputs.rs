//! From what a builder left to store paths: canonical, hashed, scanned and checked. Start at [`collect`].
//!
//! Every process of the build is dead by then.

mod canonical;
mod checks;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use harmonia_nix::content_address::{ContentAddress, ContentAddressMethod};
use harmonia_nix::hash::{Hash, HashAlgorithm, Hasher, Sha256Hash};
use harmonia_nix::nar::{self, Limits};
use harmonia_nix::reference_scan::ReferenceScanner;
use harmonia_nix::store_path::{References, StorePath};

use self::canonical::{Canonical, CanonicalError};
use self::checks::refused;
use super::attributes::Attributes;
use super::rewrite::Rewrites;
use super::tree::{move_tree, remove_tree};
use super::{BuildFailure, BuildRequest, BuiltPath};

const BUFFER_BYTES: usize = 128 << 10;

/// Where outputs are, and what may have happened to them.
pub(super) struct Collection<'a> {
    pub(super) request: &'a BuildRequest,
    pub(super) attributes: &'a Attributes<'a>,
    /// What the builder took for its outputs.
    pub(super) scratch: &'a BTreeMap<String, StorePath>,
    /// The directory in which it left them.
    pub(super) left_in: &'a Path,
    /// Hashes of outputs that are elsewhere than they belong, and those that they are to have.
    pub(super) rewrites: &'a Rewrites,
    /// Who made them, when that is not the daemon's own user.
    pub(super) made_by: Option<u32>,
    /// Whether somebody outside of the build may hold descriptors of its files, so that they must be copied.
    pub(super) reachable: bool,
    pub(super) cancelled: &'a (dyn Fn() -> bool + Sync),
}

/// Takes the wanted outputs to the staging directory.
pub(super) fn collect(collection: &Collection<'_>) -> Result<Vec<BuiltPath>, BuildFailure> {
    let request = collection.request;
    let max = request.options.max_output_bytes;
    let mut canonical = Canonical::new(collection.made_by, max, collection.cancelled);
    let mut found = Vec::new();
    for (name, scratch) in collection.scratch.iter().filter(|(name, _)| request.outputs.contains(*name)) {
        let place = collection.left_in.join(scratch.base_name());
        look_at(collection, name, scratch, &place)?;
        let parent = open(collection.left_in)?;
        canonical.tree(&parent, OsStr::new(scratch.base_name()), Path::new(scratch.as_str())).map_err(refused_by)?;
        found.push((name, scratch, place));
    }
    let discarded = collection.attributes.discarded_references()?;
    let mut built = Vec::new();
    for (name, scratch, place) in found {
        let discards = discarded.get(name) == Some(&true);
        built.push(take(collection, name, scratch, &place, discards)?);
    }
    refuse_cycles(request, &built)?;
    check_fixed(request, &mut built)?;
    checks::check(request, collection.attributes, &built)?;
    Ok(built)
}

/// Whether the output is there, and the build's own.
fn look_at(collection: &Collection<'_>, name: &str, scratch: &StorePath, place: &Path) -> Result<(), BuildFailure> {
    let drv_path = &collection.request.drv_path;
    let metadata = match place.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(refused(format!(
                "builder for '{drv_path}' failed to produce output path for output '{name}' at '{scratch}'"
            )));
        }
        Err(cause) => return Err(BuildFailure::machine(format!("look at {}", place.display()), cause)),
    };
    let writable_by_others = !metadata.is_symlink() && metadata.mode() & 0o022 != 0;
    if writable_by_others || collection.made_by.is_some_and(|uid| uid != metadata.uid()) {
        return Err(refused(format!(
            "suspicious ownership or permission on '{scratch}' for output '{name}'; rejecting this build output"
        )));
    }
    Ok(())
}

/// Reads an output once: hashes it, looks for references and, where needed, makes a copy on the way.
fn take(
    collection: &Collection<'_>,
    name: &str,
    scratch: &StorePath,
    place: &Path,
    discards_references: bool,
) -> Result<BuiltPath, BuildFailure> {
    let request = collection.request;
    let own_path = |name: &str, scratch: &StorePath| {
        let path = request.derivation.outputs.get(name).and_then(|output| output.path());
        path.unwrap_or(scratch).clone()
    };
    let path = own_path(name, scratch);
    let address = request.derivation.outputs.get(name).and_then(|output| output.fixed_address()).copied();
    let candidates = collection.scratch.iter().map(|(name, scratch)| own_path(name, scratch));
    let algorithm = address.filter(|address| address.method == ContentAddressMethod::Recursive);
    let reading = Reading {
        nar_hash: Hasher::new(HashAlgorithm::Sha256),
        other_hash: algorithm
            .map(|address| address.hash.algorithm())
            .filter(|algorithm| *algorithm != HashAlgorithm::Sha256)
            .map(Hasher::new),
        references: ReferenceScanner::new(candidates.chain(request.inputs.keys().cloned())),
        bytes: 0,
        cancelled: collection.cancelled,
        copy: None,
    };
    let staged = request.staging.join("outputs").join(path.base_name());
    let reading = if collection.reachable || !collection.rewrites.is_empty() {
        let reading = copy(collection, place, &staged, reading)?;
        remove_tree(place).map_err(|cause| BuildFailure::machine(format!("remove {}", place.display()), cause))?;
        reading
    } else {
        move_tree(place, &staged).map_err(|cause| BuildFailure::machine(format!("move {}", place.display()), cause))?;
        read(&staged, &Rewrites::default(), reading).map_err(|cause| not_read(&path, &cause))?
    };
    let nar_hash = sha256(&reading.nar_hash.finish());
    let content_address = match address {
        None => None,
        Some(ContentAddress { method: ContentAddressMethod::Recursive, .. }) => {
            let hash = reading.other_hash.map_or(Hash::from(nar_hash), Hasher::finish);
            Some(ContentAddress::recursive(hash))
        }
        Some(ContentAddress { hash, .. }) => Some(ContentAddress::flat(flat(&staged, &path, hash.algorithm())?)),
    };
    let references = if discards_references { BTreeSet::new() } else { reading.references.finish() };
    Ok(BuiltPath {
        output: name.to_owned(),
        path,
        staged,
        nar_hash,
        nar_size_bytes: reading.bytes,
        references,
        content_address,
    })
}

/// What is done with the bytes of an archive.
struct Reading<'a> {
    nar_hash: Hasher,
    other_hash: Option<Hasher>,
    references: ReferenceScanner,
    bytes: u64,
    cancelled: &'a (dyn Fn() -> bool + Sync),
    copy: Option<io::PipeWriter>,
}

impl Write for Reading<'_> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if (self.cancelled)() {
            return Err(io::Error::other("the build was cancelled"));
        }
        self.nar_hash.update(piece);
        if let Some(hash) = &mut self.other_hash {
            hash.update(piece);
        }
        self.references.update(piece);
        self.bytes += piece.len() as u64;
        if let Some(copy) = &mut self.copy {
            copy.write_all(piece)?;
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn read<'a>(place: &Path, rewrites: &Rewrites, reading: Reading<'a>) -> io::Result<Reading<'a>> {
    let mut output = BufWriter::with_capacity(BUFFER_BYTES, rewrites.clone().writer(reading));
    nar::pack_path(place, &mut output).map_err(io::Error::other)?;
    output.into_inner().map_err(io::IntoInnerError::into_error)?.finish()
}

/// Reads an output, and unpacks what was read elsewhere: files that nobody has seen.
fn copy<'a>(
    collection: &Collection<'_>,
    place: &Path,
    staged: &Path,
    mut reading: Reading<'a>,
) -> Result<Reading<'a>, BuildFailure> {
    let machine = |cause: io::Error| BuildFailure::machine(format!("copy {}", place.display()), cause);
    let (archive, writer) = io::pipe().map_err(machine)?;
    reading.copy = Some(writer);
    let parent = open(staged.parent().unwrap_or(staged))?;
    let name = staged.file_name().unwrap_or_default();
    let (read, unpacked) = std::thread::scope(|scope| {
        let unpacking = scope.spawn(|| nar::unpack_nar(archive, &parent, name, Limits::of_size(u64::MAX)));
        let read = read(place, collection.rewrites, reading).map(|mut reading| {
            reading.copy = None;
            reading
        });
        (read, unpacking.join())
    });
    match unpacked {
        // Why the reading end failed is the cause of what the other end saw.
        Ok(Err(cause)) if read.is_ok() => return Err(machine(io::Error::other(cause))),
        Ok(_) => {}
        Err(_) => return Err(machine(io::Error::other("the thread that unpacks panicked"))),
    }
    let reading = read.map_err(|cause| not_read(&place.display(), &cause))?;
    Canonical::new(None, None, collection.cancelled).tree(&parent, name, staged).map_err(refused_by)?;
    Ok(reading)
}

fn open(directory: &Path) -> Result<Dir, BuildFailure> {
    Dir::open_ambient_dir(directory, ambient_authority())
        .map_err(|cause| BuildFailure::machine(format!("open {}", directory.display()), cause))
}

fn not_read(path: &dyn std::fmt::Display, cause: &io::Error) -> BuildFailure {
    let mut text = cause.to_string();
    let mut source = cause.get_ref().and_then(|error| error.source());
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    refused(format!("could not read output '{path}': {text}"))
}

fn refused_by(error: CanonicalError) -> BuildFailure {
    match error {
        CanonicalError::File { .. } => BuildFailure::machine("make the outputs canonical", error),
        error => refused(error.to_string()),
    }
}

fn sha256(hash: &Hash) -> Sha256Hash {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(hash.as_bytes());
    Sha256Hash::from_bytes(bytes)
}

/// The hash of one file that cannot be run.
fn flat(staged: &Path, path: &StorePath, algorithm: HashAlgorithm) -> Result<Hash, BuildFailure> {
    let failed = |cause: io::Error| BuildFailure::machine(format!("read {}", staged.display()), cause);
    let metadata = staged.symlink_metadata().map_err(failed)?;
    if !metadata.is_file() || metadata.mode() & 0o100 != 0 {
        return Err(refused(format!(
            "output path '{path}' should be a non-executable regular file since recursive hashing is not enabled \
             (outputHashMode=flat)"
        )));
    }
    let mut file = std::fs::File::open(staged).map_err(failed)?;
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => return Ok(hasher.finish()),
            length => hasher.update(&buffer[..length]),
        }
    }
}

fn refuse_cycles(request: &BuildRequest, built: &[BuiltPath]) -> Result<(), BuildFailure> {
    let mut done: BTreeSet<&str> = BTreeSet::new();
    let mut under_way: Vec<&str> = Vec::new();
    for output in built {
        visit(request, built, output, &mut done, &mut under_way)?;
    }
    Ok(())
}

fn visit<'a>(
    request: &BuildRequest,
    built: &'a [BuiltPath],
    output: &'a BuiltPath,
    done: &mut BTreeSet<&'a str>,
    under_way: &mut Vec<&'a str>,
) -> Result<(), BuildFailure> {
    if done.contains(output.output.as_str()) {
        return Ok(());
    }
    under_way.push(&output.output);
    for next in built.iter().filter(|next| next.path != output.path && output.references.contains(&next.path)) {
        if under_way.contains(&next.output.as_str()) {
            return Err(refused(format!(
                "cycle detected in build of '{}' in the references of output '{}' from output '{}'",
                request.drv_path, next.output, output.output
            )));
        }
        visit(request, built, next, done, under_way)?;
    }
    under_way.pop();
    done.insert(&output.output);
    Ok(())
}

/// Holds a fixed output to its hash.
fn check_fixed(request: &BuildRequest, built: &mut Vec<BuiltPath>) -> Result<(), BuildFailure> {
    let drv_path = &request.drv_path;
    let Some(index) = built.iter().position(|output| output.content_address.is_some()) else { return Ok(()) };
    let output = &built[index];
    let wanted = request.derivation.outputs.get(&output.output).and_then(|output| output.fixed_address());
    let (Some(wanted), Some(got)) = (wanted, output.content_address) else { return Ok(()) };
    if let Some(reference) = output.references.first() {
        return Err(refused(format!(
            "illegal path references in fixed-output derivation '{drv_path}': its output refers to '{reference}'"
        )));
    }
    if wanted.hash == got.hash {
        return Ok(());
    }
    let message = format!(
        "hash mismatch in fixed-output derivation '{drv_path}':\n  specified: {}\n     got:    {}",
        wanted.hash.to_sri(),
        got.hash.to_sri()
    );
    let mut output = built.swap_remove(index);
    let right = StorePath::make_fixed_output(output.path.name(), got, &References::default());
    let mut failure = refused(message);
    failure.mismatched = right.ok().map(|path| {
        output.path = path;
        Box::new(output)
    });
    Err(failure)
}

/// Where the caller finds outputs; made before they are collected.
pub(super) fn staged_in(request: &BuildRequest) -> PathBuf {
    request.staging.join("outputs")
}
