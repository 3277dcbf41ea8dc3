use std::collections::BTreeSet;

use harmonia_nix::{DerivationOutput, Sha256Hash};

use super::*;

fn hash(text: &str) -> Sha256Hash {
    Sha256Hash::of(text.as_bytes())
}

fn path(name: &str) -> StorePath {
    StorePath::make_text(name, hash(name), &BTreeSet::new()).expect("valid")
}

fn upload(path: StorePath, references: &[&StorePath]) -> Upload {
    Upload {
        path,
        nar_hash: hash("nar"),
        nar_size: 100,
        object: Object { hash: hash("file"), size: 50 },
        references: references.iter().copied().cloned().collect(),
        deriver: None,
        ca: None,
        listing: None,
    }
}

fn source(name: &str, references: &[&StorePath]) -> Upload {
    let address = ContentAddress::recursive(hash("nar").into());
    let links = References::to(references.iter().copied().cloned());
    let path = StorePath::make_fixed_output(name, address, &links).expect("valid");
    Upload { ca: Some(address), ..upload(path, references) }
}

fn derivation(outputs: Vec<(&str, DerivationOutput)>) -> Outputs {
    outputs.into_iter().map(|(name, output)| (name.to_owned(), output)).collect()
}

fn plain(name: &str) -> DerivationOutput {
    DerivationOutput::InputAddressed(path(name))
}

#[test]
fn an_object_is_the_declared_one_or_not() {
    let declared = Object { hash: hash("x"), size: 5 };
    let head = |size, sha256| ObjectHead { size, sha256, etag: None };
    for (found, state) in [
        (None, ObjectState::Differs(ObjectDifference::Missing)),
        (Some(head(5, Some(hash("x")))), ObjectState::Present),
        (Some(head(5, Some(hash("y")))), ObjectState::Differs(ObjectDifference::Checksum)),
        (Some(head(4, Some(hash("x")))), ObjectState::Differs(ObjectDifference::Size { declared: 5, found: 4 })),
        (Some(head(4, None)), ObjectState::Differs(ObjectDifference::Size { declared: 5, found: 4 })),
        (Some(head(5, None)), ObjectState::Unknown),
    ] {
        assert_eq!(judge_object(&declared, found.as_ref()), state, "{found:?}");
    }
}

#[test]
fn a_source_belongs_to_its_content() {
    let other = path("other");
    assert_eq!(check_source(&source("s", &[])).expect("sound"), Binding::NarHash);
    assert_eq!(check_source(&source("s", &[&other])).expect("sound"), Binding::NarHash);

    let text = ContentAddress::text(hash("text").into());
    let links = BTreeSet::from([other.clone()]);
    let text_path = StorePath::make_text("t", hash("text"), &links).expect("valid");
    let text_upload = Upload { ca: Some(text), ..upload(text_path, &[&other]) };
    assert_eq!(check_source(&text_upload).expect("sound"), Binding::Content(text), "the text has to be read");

    let message = |upload: Upload| check_source(&upload).expect_err("refused").to_string();
    let plain = upload(path("s"), &[]);
    assert!(message(plain).contains("not content-addressed"));
    assert!(message(Upload { path: path("s"), ..source("s", &[]) }).contains("does not belong to its content"));
    assert!(message(Upload { references: links.clone(), ..source("s", &[]) }).contains("does not belong"));
    assert!(message(Upload { nar_hash: hash("forged"), ..source("s", &[]) }).contains("must have the content"));
    let own = source("s", &[]);
    let itself = BTreeSet::from([own.path.clone()]);
    assert!(message(Upload { references: itself, ..own }).contains("refers to itself"));
    let flat = ContentAddress::flat(hash("x").into());
    assert!(message(Upload { ca: Some(flat), ..upload(path("f"), &[&other]) }).contains("cannot be addressed"));
}

#[test]
fn outputs_are_those_of_the_derivation() {
    let drv = path("a.drv");
    let two = derivation(vec![("dev", plain("a-dev")), ("out", plain("a"))]);
    let named = |name: &str, upload: Upload| (name.to_owned(), upload);
    let out = || named("out", upload(path("a"), &[]));
    let dev = || named("dev", upload(path("a-dev"), &[]));

    let checked = check_outputs(&drv, &two, vec![out(), dev()]).expect("sound");
    assert_eq!(checked.len(), 2);
    assert!(checked.iter().all(|output| output.upload.deriver.as_ref() == Some(&drv) && output.binding.is_none()));

    let message = |outputs| check_outputs(&drv, &two, outputs).expect_err("refused").to_string();
    assert!(message(vec![out()]).contains("'dev' is missing"));
    assert!(message(vec![out(), out()]).contains("named twice"));
    assert!(message(vec![out(), dev(), named("lib", upload(path("l"), &[]))]).contains("no output 'lib'"));
    assert!(message(vec![dev(), named("out", upload(path("victim"), &[]))]).contains("'out' is"), "a foreign path");
    assert!(message(vec![named("out", dev().1), named("dev", out().1)]).contains("'dev' is"), "exchanged");

    let floating =
        DerivationOutput::Floating { method: ContentAddressMethod::Recursive, algorithm: HashAlgorithm::Sha256 };
    let error = check_outputs(&drv, &derivation(vec![("out", floating)]), vec![out()]).expect_err("refused");
    assert!(matches!(error, Refusal::Floating { .. }));
}

#[test]
fn a_content_address_is_the_derivations_word_not_the_builders() {
    let drv = path("a.drv");
    let claimed = ContentAddress::recursive(hash("nar").into());
    let out = Upload { ca: Some(claimed), deriver: Some(path("b.drv")), ..upload(path("a"), &[]) };
    let checked = check_outputs(&drv, &derivation(vec![("out", plain("a"))]), vec![("out".to_owned(), out)]);
    let checked = checked.expect("sound").remove(0);
    assert_eq!(checked.upload.ca, None);
    assert_eq!(checked.upload.deriver, Some(drv));
}

#[test]
fn a_fixed_output_has_its_hash() {
    let drv = path("a.drv");
    let check = |address: ContentAddress, nar_hash| {
        let output = DerivationOutput::fixed("a", "out", address).expect("valid");
        let out = Upload { nar_hash, ..upload(output.path().expect("fixed").clone(), &[]) };
        let checked = check_outputs(&drv, &derivation(vec![("out", output)]), vec![("out".to_owned(), out)]);
        checked.map(|mut checked| checked.remove(0).binding)
    };
    let recursive = ContentAddress::recursive(hash("nar").into());
    assert_eq!(check(recursive, hash("nar")).expect("sound"), Some(Binding::NarHash));
    assert!(matches!(check(recursive, hash("other")), Err(Refusal::WrongHash { .. })));
    for address in
        [ContentAddress::flat(hash("file").into()), ContentAddress::recursive(Hash::of(HashAlgorithm::Sha1, b"nar"))]
    {
        assert_eq!(check(address, hash("nar")).expect("to be read"), Some(Binding::Content(address)));
    }
}

#[test]
fn what_may_come_along() {
    let known = derivation(vec![("out", plain("known"))]);
    let drv = path("known.drv");
    let mut output = Upload { deriver: Some(drv.clone()), ..upload(path("known"), &[]) };
    assert_eq!(check_extra(&mut output, Some(&known)).expect("a known output"), None);
    assert_eq!(output.deriver, Some(drv));

    let mut foreign = upload(path("victim"), &[]);
    assert!(check_extra(&mut foreign.clone(), Some(&known)).is_err(), "not among its outputs");
    assert!(check_extra(&mut foreign, None).is_err(), "no derivation known");

    let mut claimed = Upload { deriver: Some(path("x.drv")), ..source("s", &[]) };
    assert_eq!(check_extra(&mut claimed, None).expect("a source"), Some(Binding::NarHash));
    assert_eq!(claimed.deriver, None);
    let mut forged = Upload { path: path("victim"), ..source("s", &[]) };
    assert!(check_extra(&mut forged, None).is_err());
}

#[test]
fn what_comes_along_is_needed() {
    let inner = upload(path("inner"), &[]);
    let outer = upload(path("outer"), &[&inner.path]);
    let out = upload(path("out"), &[&outer.path]);
    let check = |extras: &[Upload]| check_needed([&out].into_iter(), extras);
    assert!(check(&[inner.clone(), outer.clone()]).is_ok(), "through each other, in any order");
    assert!(check(&[]).is_ok());
    assert!(check(std::slice::from_ref(&inner)).is_err(), "nothing leads there");
    assert!(check(&[inner, outer, upload(path("stranger"), &[])]).is_err());
}

#[test]
fn the_gate_asks_for_what_does_not_come_along() {
    let out = upload(path("out"), &[&path("dep"), &path("out"), &path("dev")]);
    let dev = upload(path("dev"), &[&path("out"), &path("libc")]);
    let together = [&out, &dev];
    let asked = outer_references(together.iter().map(|upload| (&upload.path, &upload.references)));
    let mut expected = vec![path("dep"), path("libc")];
    expected.sort();
    assert_eq!(asked, expected);
    let blamed = blame(together.into_iter(), &[path("libc")]).expect("somebody");
    assert!(blamed.to_string().contains("-dev refers to paths that no cache has"), "{blamed}");
    assert!(blame(together.into_iter(), &[]).is_none());
}

#[test]
fn what_is_read_before_it_is_signed() {
    let content = Some(Binding::Content(ContentAddress::flat(hash("x").into())));
    for (binding, verify, chance, must) in [
        (None, Verify::Declared, 0.0, false),
        (Some(Binding::NarHash), Verify::Declared, 0.0, false),
        (content, Verify::Declared, 0.99, true),
        (None, Verify::Always, 0.99, true),
        (None, Verify::Sample(0.05), 0.04, true),
        (None, Verify::Sample(0.05), 0.05, false),
        (content, Verify::Sample(0.0), 0.5, true),
    ] {
        assert_eq!(must_read(binding, verify, chance), must, "{binding:?} {verify:?} {chance}");
    }
}
