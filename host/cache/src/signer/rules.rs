//! The signer's decisions as pure functions: who may upload what, whether an object is the one declared, what a path
//! still lacks before it may be published. Everything else in the signer fetches facts for these and does what they say.

use std::collections::{BTreeMap, BTreeSet};

use harmonia_nix::store_path::References;
use harmonia_nix::{ContentAddress, ContentAddressMethod, Hash, HashAlgorithm, StorePath};

use super::error::{ObjectDifference, Refusal};
use super::wire::{Object, Upload};
use super::{Outputs, Verify};
use crate::ObjectHead;

/// What there is of a declared object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ObjectState {
    /// Exactly the declared one.
    Present,
    /// Not there, or another one.
    Differs(ObjectDifference),
    /// The size is right, but the store keeps no checksum: the bytes have to be read.
    Unknown,
}

/// Is the object in the store the one declared?
pub(super) fn judge_object(declared: &Object, found: Option<&ObjectHead>) -> ObjectState {
    match found {
        None => ObjectState::Differs(ObjectDifference::Missing),
        Some(head) if head.size != declared.size => {
            ObjectState::Differs(ObjectDifference::Size { declared: declared.size, found: head.size })
        }
        Some(head) => match head.sha256 {
            None => ObjectState::Unknown,
            Some(hash) if hash == declared.hash => ObjectState::Present,
            Some(_) => ObjectState::Differs(ObjectDifference::Checksum),
        },
    }
}

/// What binds a content-addressed path to its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Binding {
    /// The NAR hash, which is part of the path.
    NarHash,
    /// A hash of something else than the NAR: the archive has to be read to know it.
    Content(ContentAddress),
}

/// Does this path belong to the content it declares? For sources, whose path is all that is known of them.
pub(super) fn check_source(upload: &Upload) -> Result<Binding, Refusal> {
    let Some(address) = upload.ca else {
        return Err(Refusal::NotCovered { path: upload.path.clone(), why: "not content-addressed" });
    };
    if upload.references.contains(&upload.path) {
        // Its hash would be taken with its own digits masked; no source refers to itself.
        return Err(Refusal::NotCovered { path: upload.path.clone(), why: "a source that refers to itself" });
    }
    let references = References::to(upload.references.iter().cloned());
    let computed = StorePath::make_fixed_output(upload.path.name(), address, &references)
        .map_err(|cause| Refusal::ContentAddress { path: upload.path.clone(), cause: cause.into() })?;
    if computed != upload.path {
        return Err(Refusal::WrongContentPath { declared: upload.path.clone(), computed });
    }
    check_binding(upload, address)
}

/// Must the archive be read before the path is signed? `chance` is a fresh random number from 0 to 1.
pub(super) fn must_read(binding: Option<Binding>, verify: Verify, chance: f64) -> bool {
    match (binding, verify) {
        (Some(Binding::Content(_)), _) | (_, Verify::Always) => true,
        (_, Verify::Declared) => false,
        (_, Verify::Sample(share)) => chance < share,
    }
}

/// Does the declared NAR hash fit the content address, as far as that can be said without reading the archive?
fn check_binding(upload: &Upload, address: ContentAddress) -> Result<Binding, Refusal> {
    let is_nar_hash =
        address.method == ContentAddressMethod::Recursive && address.hash.algorithm() == HashAlgorithm::Sha256;
    let found = Hash::from(upload.nar_hash);
    match is_nar_hash {
        false => Ok(Binding::Content(address)),
        true if address.hash == found => Ok(Binding::NarHash),
        true => Err(Refusal::wrong_hash(&upload.path, address, found)),
    }
}

/// An output that may be published once its object and its references are there.
#[derive(Debug)]
pub(super) struct CheckedOutput {
    pub(super) upload: Upload,
    /// For fixed outputs.
    pub(super) binding: Option<Binding>,
}

/// Are these all outputs of the derivation, and nothing else, under the paths that its `.drv` file gives them?
///
/// Deriver and content address are set from the derivation, whatever the builder said of them.
pub(super) fn check_outputs(
    drv_path: &StorePath,
    declared: &Outputs,
    uploads: Vec<(String, Upload)>,
) -> Result<Vec<CheckedOutput>, Refusal> {
    let refuse = |problem: String| Refusal::Outputs { derivation: drv_path.clone(), problem };
    let mut uploads: BTreeMap<String, Upload> = {
        let count = uploads.len();
        let by_name: BTreeMap<_, _> = uploads.into_iter().collect();
        if by_name.len() != count {
            return Err(refuse("an output is named twice".to_owned()));
        }
        by_name
    };
    let mut checked = Vec::with_capacity(uploads.len());
    for (name, output) in declared {
        let Some(path) = output.path() else {
            return Err(Refusal::Floating { derivation: drv_path.clone(), output: name.clone() });
        };
        let mut upload = uploads.remove(name).ok_or_else(|| refuse(format!("'{name}' is missing")))?;
        if upload.path != *path {
            return Err(refuse(format!("'{name}' is {path}, not {}", upload.path)));
        }
        upload.deriver = Some(drv_path.clone());
        upload.ca = output.fixed_address().copied();
        let binding = upload.ca.map(|address| check_binding(&upload, address)).transpose()?;
        checked.push(CheckedOutput { upload, binding });
    }
    match uploads.first_key_value() {
        None => Ok(checked),
        Some((name, _)) => Err(refuse(format!("it has no output '{}'", name.chars().take(80).collect::<String>()))),
    }
}

/// What a builder may upload beside its outputs: the output of a derivation we know (given here with all that its
/// deriver makes), or a source.
pub(super) fn check_extra(upload: &mut Upload, known: Option<&Outputs>) -> Result<Option<Binding>, Refusal> {
    let mut outputs = known.into_iter().flat_map(Outputs::values);
    match outputs.find(|output| output.path() == Some(&upload.path)) {
        Some(output) => {
            upload.ca = output.fixed_address().copied();
            upload.ca.map(|address| check_binding(upload, address)).transpose()
        }
        None if upload.ca.is_some() => {
            // Who made a source is nobody's word but the uploader's.
            upload.deriver = None;
            check_source(upload).map(Some)
        }
        None => Err(Refusal::NotCovered {
            path: upload.path.clone(),
            why: "neither an output of this build, nor of a derivation we know, nor a source",
        }),
    }
}

/// Do the outputs need each of the paths that come along, directly or through each other? A token is no licence to
/// upload what has nothing to do with the build.
pub(super) fn check_needed<'a>(outputs: impl Iterator<Item = &'a Upload>, extras: &[Upload]) -> Result<(), Refusal> {
    let extra_of: BTreeMap<&StorePath, &Upload> = extras.iter().map(|extra| (&extra.path, extra)).collect();
    let mut reached: BTreeSet<&StorePath> = BTreeSet::new();
    let mut open: Vec<&StorePath> = outputs.flat_map(|upload| &upload.references).collect();
    while let Some(path) = open.pop() {
        if let Some(extra) = extra_of.get(path)
            && reached.insert(path)
        {
            open.extend(&extra.references);
        }
    }
    match extras.iter().find(|extra| !reached.contains(&extra.path)) {
        None => Ok(()),
        Some(extra) => {
            Err(Refusal::NotCovered { path: extra.path.clone(), why: "not needed by any output of this build" })
        }
    }
}

/// The closure gate's question: which paths must be published or upstream before these may be published together?
pub(super) fn outer_references<'a>(
    paths: impl Iterator<Item = (&'a StorePath, &'a BTreeSet<StorePath>)> + Clone,
) -> Vec<StorePath> {
    let together: BTreeSet<&StorePath> = paths.clone().map(|(path, _)| path).collect();
    let outer: BTreeSet<&StorePath> =
        paths.flat_map(|(_, references)| references).filter(|reference| !together.contains(reference)).collect();
    outer.into_iter().cloned().collect()
}

/// The first of the paths that needs one of the missing references, for a message that helps.
pub(super) fn blame<'a>(uploads: impl Iterator<Item = &'a Upload>, missing: &[StorePath]) -> Option<Refusal> {
    uploads.into_iter().find_map(|upload| {
        let missing: Vec<_> = missing.iter().filter(|path| upload.references.contains(*path)).cloned().collect();
        (!missing.is_empty()).then(|| Refusal::MissingReferences { path: upload.path.clone(), missing })
    })
}

#[cfg(test)]
mod tests;
