//! Adding paths. Start at [`Store::add_nar`] for what is known beforehand, [`Store::add_content`] for what is not.
//!
//! Everything is unpacked under a staging name, hashed meanwhile, made canonical, moved to its place in one step, and only
//! then registered: whenever this is cut off, the path is valid or it is not.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use harmonia_nix::content_address::{ContentAddress, ContentAddressMethod};
use harmonia_nix::hash::{Hash, HashAlgorithm, Hasher, NarHash};
use harmonia_nix::nar::{Limits, NarReader, pack_path, unpack_next};
use harmonia_nix::store_path::{References, StorePath};
use harmonia_nix::worker_protocol::{PathInfo, ValidPathInfo};

use super::{PathLocks, Store, StoreError, TempRoots};

/// Content up to this many bytes is hashed in memory first: most of what is added is small and there already.
const IN_MEMORY_BYTES: u64 = 256 << 10;

const BUFFER_BYTES: usize = 128 << 10;

/// The name of what is staged, in its staging directory.
const STAGED: &str = "x";

/// How to add.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AddOptions {
    /// Replace the files of a path that is valid.
    pub repair: bool,
    /// Whether signatures do not matter, as for clients who are trusted.
    pub unsigned: bool,
    /// Link its files to equal ones at once (`auto-optimise-store`).
    pub optimise: bool,
}

impl Store {
    /// Adds a path of which all is known, reading exactly one archive from `archive` (or nothing, when it is valid).
    ///
    /// What it refers to must be valid.
    pub fn add_nar(
        &self,
        roots: &TempRoots,
        valid: &ValidPathInfo,
        archive: impl BufRead,
        options: AddOptions,
    ) -> Result<(), StoreError> {
        if self.is_trusted_and_valid(roots, valid, options)? && !options.repair {
            return Ok(());
        }
        let locks = self.lock_paths(roots, &BTreeSet::from([valid.path.clone()]))?;
        if let Some(_locks) = self.unpack_nar(roots, valid, archive, options, locks)? {
            self.register(std::slice::from_ref(valid))?;
        }
        Ok(())
    }

    fn is_trusted_and_valid(
        &self,
        roots: &TempRoots,
        valid: &ValidPathInfo,
        options: AddOptions,
    ) -> Result<bool, StoreError> {
        if !options.unsigned && !self.is_trustworthy(&valid.path, &valid.info) {
            return Err(StoreError::Unsigned(valid.path.clone()));
        }
        roots.add(&valid.path)?;
        self.is_valid(&valid.path)
    }

    /// The first part of [`Store::add_nar`], by the holder of the path's lock: the files are in place, to be registered while
    /// the lock lasts. `None` when the path is valid and nothing was read.
    pub fn unpack_nar(
        &self,
        roots: &TempRoots,
        valid: &ValidPathInfo,
        archive: impl BufRead,
        options: AddOptions,
        locks: PathLocks,
    ) -> Result<Option<PathLocks>, StoreError> {
        let ValidPathInfo { path, info } = valid;
        if self.is_trusted_and_valid(roots, valid, options)? && !options.repair {
            return Ok(None);
        }
        let staging = self.staging(roots)?;
        let mut archive = Hashing::new(archive, HashAlgorithm::Sha256);
        unpack(&mut archive, staging.dir(), path.as_str(), Limits::of_size(u64::MAX))?;
        let (got, size) = archive.finish();
        let specified = Hash::from(info.nar_hash);
        if got != specified {
            let (specified, got) = (specified.to_string(), got.to_string());
            return Err(StoreError::HashMismatch { path: path.clone(), specified, got });
        }
        if size != info.nar_size_bytes {
            let (path, specified) = (path.clone(), info.nar_size_bytes);
            return Err(StoreError::SizeMismatch { path, specified, got: size });
        }
        let staged = staging.dir().join(STAGED);
        if let Some(address) = info.content_address {
            check_address(&staged, valid, address)?;
        }
        self.finish_staged(&staged, path, options.optimise)?;
        Ok(Some(locks))
    }

    /// Adds content whose hash determines its path. `source` is an archive for the recursive method, else the bytes of the
    /// file; it is read to the end of the archive or its own.
    pub fn add_content(
        &self,
        roots: &TempRoots,
        name: &str,
        (method, algorithm): (ContentAddressMethod, HashAlgorithm),
        references: &BTreeSet<StorePath>,
        source: impl BufRead,
        options: AddOptions,
    ) -> Result<ValidPathInfo, StoreError> {
        let address = |hash| ContentAddress { method, hash };
        let path_of = |hash| {
            StorePath::make_fixed_output(name, address(hash), &References::to(references.iter().cloned()))
                .map_err(StoreError::name(name))
        };
        // Refused before anything is read.
        path_of(Hasher::new(algorithm).finish())?;

        let mut source = Hashing::new(source, algorithm);
        let mut begin = Vec::new();
        let is_whole = read_begin(&mut source, name, &mut begin)?;
        if is_whole {
            let (hash, _) = source.finish();
            let path = path_of(hash)?;
            roots.add(&path)?;
            if !options.repair
                && let Some(info) = self.path_info(&path)?
            {
                return Ok(ValidPathInfo { path, info });
            }
            let staging = self.staging(roots)?;
            write_content(staging.dir(), method, name, &mut begin.as_slice())?;
            return self.finish_content(roots, path, address(hash), references, staging.dir(), options);
        }
        let staging = self.staging(roots)?;
        // What was read of an archive is unpacked from memory, the rest as it comes.
        let mut whole = BufReader::with_capacity(BUFFER_BYTES, begin.as_slice().chain(&mut source));
        write_content(staging.dir(), method, name, &mut whole)?;
        drop(whole);
        let (hash, _) = source.finish();
        let path = path_of(hash)?;
        self.finish_content(roots, path, address(hash), references, staging.dir(), options)
    }

    /// Adds a text that may refer to other paths: a `.drv`, or what `builtins.toFile` makes.
    pub fn add_text(
        &self,
        roots: &TempRoots,
        name: &str,
        text: &[u8],
        references: &BTreeSet<StorePath>,
        options: AddOptions,
    ) -> Result<ValidPathInfo, StoreError> {
        let kind = (ContentAddressMethod::Text, HashAlgorithm::Sha256);
        self.add_content(roots, name, kind, references, text, options)
    }

    /// Whether the files of a valid path are there and have the hash that they were registered with.
    pub fn is_sound(&self, path: &StorePath) -> Result<bool, StoreError> {
        let Some(info) = self.path_info(path)? else { return Ok(false) };
        let real = self.real_path(path);
        if fs::symlink_metadata(&real).is_err() {
            return Ok(false);
        }
        Ok(hash_archive(&real)?.0 == info.nar_hash)
    }

    fn finish_content(
        &self,
        roots: &TempRoots,
        path: StorePath,
        address: ContentAddress,
        references: &BTreeSet<StorePath>,
        staging: &Path,
        options: AddOptions,
    ) -> Result<ValidPathInfo, StoreError> {
        let _locks = self.lock_paths(roots, &BTreeSet::from([path.clone()]))?;
        if !options.repair
            && let Some(info) = self.path_info(&path)?
        {
            return Ok(ValidPathInfo { path, info });
        }
        let staged = staging.join(STAGED);
        let (nar_hash, nar_size_bytes) = hash_archive(&staged)?;
        let mut info = PathInfo::new(nar_hash, nar_size_bytes);
        info.references.clone_from(references);
        info.content_address = Some(address);
        info.registration_time_s = super::register::now_s();
        self.finish_staged(&staged, &path, options.optimise)?;
        let valid = ValidPathInfo { path, info };
        self.register(std::slice::from_ref(&valid))?;
        Ok(valid)
    }
}

/// Reads up to [`IN_MEMORY_BYTES`]; whether that is all there is.
fn read_begin(source: &mut impl BufRead, name: &str, begin: &mut Vec<u8>) -> Result<bool, StoreError> {
    let read = source.take(IN_MEMORY_BYTES).read_to_end(begin);
    read.map_err(|cause| StoreError::Io { action: "read what is to be added as", path: name.into(), cause })?;
    if (begin.len() as u64) < IN_MEMORY_BYTES {
        return Ok(true);
    }
    let rest = source.fill_buf();
    let rest =
        rest.map_err(|cause| StoreError::Io { action: "read what is to be added as", path: name.into(), cause })?;
    Ok(rest.is_empty())
}

/// Makes what was sent under the staging name.
fn write_content(
    staging: &Path,
    method: ContentAddressMethod,
    name: &str,
    source: &mut impl BufRead,
) -> Result<(), StoreError> {
    if method == ContentAddressMethod::Recursive {
        unpack(source, staging, name, Limits::of_size(u64::MAX))?;
        let rest = source.fill_buf();
        let rest = rest.map_err(|cause| StoreError::Io { action: "read", path: name.into(), cause })?;
        if !rest.is_empty() {
            let cause = harmonia_nix::nar::NarError::TrailingData { offset: 0 };
            return Err(StoreError::Archive { path: name.to_owned(), cause });
        }
        return Ok(());
    }
    let staged = staging.join(STAGED);
    let mut file = File::create_new(&staged).map_err(StoreError::io("make the file", &staged))?;
    io::copy(source, &mut file).map_err(StoreError::io("write", &staged))?;
    Ok(())
}

fn unpack(source: &mut impl BufRead, staging: &Path, what: &str, limits: Limits) -> Result<(), StoreError> {
    let dir = Dir::open_ambient_dir(staging, ambient_authority()).map_err(StoreError::io("open", staging))?;
    let mut reader = NarReader::new(source, limits);
    unpack_next(&mut reader, &dir, STAGED).map_err(|cause| StoreError::Archive { path: what.to_owned(), cause })
}

/// Hash and size of the archive of a tree.
pub(super) fn hash_archive(path: &Path) -> Result<(NarHash, u64), StoreError> {
    let mut hasher = HashWriter(Hasher::new(HashAlgorithm::Sha256));
    let size = {
        let mut buffered = io::BufWriter::with_capacity(BUFFER_BYTES, &mut hasher);
        let size = pack_path(path, &mut buffered);
        let size = size.map_err(|cause| StoreError::Pack { path: path.to_owned(), cause })?;
        buffered.flush().map_err(StoreError::io("hash", path))?;
        size
    };
    match NarHash::try_from(hasher.0.finish()) {
        Ok(hash) => Ok((hash, size)),
        Err(error) => Err(StoreError::io("hash", path)(io::Error::other(error))),
    }
}

/// Whether the content of what was unpacked is what its address says. That the path follows from it was checked before.
fn check_address(staged: &Path, valid: &ValidPathInfo, address: ContentAddress) -> Result<(), StoreError> {
    let ValidPathInfo { path, info } = valid;
    let algorithm = address.hash.algorithm();
    let got = match address.method {
        ContentAddressMethod::Recursive if !info.references.contains(path) && algorithm == HashAlgorithm::Sha256 => {
            Hash::from(info.nar_hash)
        }
        ContentAddressMethod::Recursive => {
            let mut modulo = ModuloWriter::new(algorithm, path.hash_part());
            {
                let mut buffered = io::BufWriter::with_capacity(BUFFER_BYTES, &mut modulo);
                let packed = pack_path(staged, &mut buffered);
                packed.map_err(|cause| StoreError::Pack { path: staged.to_owned(), cause })?;
                buffered.flush().map_err(StoreError::io("hash", staged))?;
            }
            modulo.finish()
        }
        ContentAddressMethod::Flat | ContentAddressMethod::Text => {
            let found = fs::symlink_metadata(staged).map_err(StoreError::io("look at", staged))?;
            if !found.is_file() {
                return Err(StoreError::NotAFile(path.to_string()));
            }
            let mut hasher = HashWriter(Hasher::new(algorithm));
            let mut file = File::open(staged).map_err(StoreError::io("open", staged))?;
            io::copy(&mut file, &mut hasher).map_err(StoreError::io("read", staged))?;
            hasher.0.finish()
        }
    };
    if got == address.hash {
        return Ok(());
    }
    let (specified, got) = (address.hash.to_string(), got.to_string());
    Err(StoreError::AddressMismatch { path: path.clone(), specified, got })
}

/// Hashes what is written.
pub(super) struct HashWriter(pub(super) Hasher);

impl Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hashes with zeros in place of a hash part, then where it stood: how Nix hashes what refers to itself.
struct ModuloWriter {
    hasher: Hasher,
    wanted: Vec<u8>,
    /// Not hashed yet: the end of what came, shorter than a hash part.
    kept: Vec<u8>,
    /// Bytes hashed.
    hashed: u64,
    found: Vec<u64>,
}

impl ModuloWriter {
    fn new(algorithm: HashAlgorithm, hash_part: &str) -> Self {
        let (hasher, wanted) = (Hasher::new(algorithm), hash_part.as_bytes().to_vec());
        Self { hasher, wanted, kept: Vec::new(), hashed: 0, found: Vec::new() }
    }

    fn finish(mut self) -> Hash {
        self.hasher.update(&self.kept);
        for position in self.found {
            self.hasher.update(format!("|{position}").as_bytes());
        }
        self.hasher.finish()
    }
}

impl Write for ModuloWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.kept.extend_from_slice(bytes);
        let length = self.wanted.len();
        let mut from = 0;
        while let Some(window) = self.kept.get(from..from + length) {
            if window == self.wanted {
                self.found.push(self.hashed + from as u64);
                self.kept[from..from + length].fill(0);
                from += length;
            } else {
                from += 1;
            }
        }
        // No hash part begins before this place any more.
        self.hasher.update(&self.kept[..from]);
        self.hashed += from as u64;
        self.kept.drain(..from);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hashes what is consumed, and nothing that is only looked at.
struct Hashing<R> {
    input: R,
    hasher: Hasher,
    size: u64,
}

impl<R: BufRead> Hashing<R> {
    fn new(input: R, algorithm: HashAlgorithm) -> Self {
        Self { input, hasher: Hasher::new(algorithm), size: 0 }
    }

    fn finish(self) -> (Hash, u64) {
        (self.hasher.finish(), self.size)
    }
}

impl<R: BufRead> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.input.read(buffer)?;
        self.hasher.update(&buffer[..length]);
        self.size += length as u64;
        Ok(length)
    }
}

impl<R: BufRead> BufRead for Hashing<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.input.fill_buf()
    }

    fn consume(&mut self, length: usize) {
        // Readers answer this from their buffer, as they did when the bytes were looked at.
        if length > 0
            && let Ok(buffer) = self.input.fill_buf()
        {
            self.hasher.update(&buffer[..length]);
            self.size += length as u64;
        }
        self.input.consume(length);
    }
}
