//! Workers that lie: nothing of what they claim gets into the cache, and the answer says what is wrong.

use std::collections::BTreeSet;

use harmonia_cache::{SignError, SignErrorKind, SignerOptions, Verify};
use harmonia_core::Viewer;
use harmonia_core::signer_api::{
    AttemptUsage, BuildComplete, BuildCompleteAnswer, BuildFailed, DrvFile, Failure, Holder, LogBlob, PathInfo,
    SlotsRequest, SourcesComplete,
};
use harmonia_core::{AttemptId, EvalId};
use harmonia_db::testing::random_token;
use harmonia_nix::{ContentAddress, DerivationOutput, Sha256Hash, StorePath};

use crate::world::{Drv, Nar, World};

fn refusal(error: &SignError) -> String {
    assert_eq!(error.kind(), SignErrorKind::Refused, "{error:?}");
    error.public_message()
}

fn foreign() -> StorePath {
    StorePath::parse("/nix/store/00000000000000000000000000000000-victim").expect("valid")
}

async fn assert_nothing_known(world: &World, paths: &[&StorePath]) {
    let paths: Vec<StorePath> = paths.iter().copied().cloned().collect();
    assert_eq!(world.db().path_rows(&paths).await.expect("answers"), vec![]);
    for path in &paths {
        let narinfo = world.reader.narinfo(Viewer::Token, path.hash_part()).await.expect("known");
        assert_eq!(narinfo, None);
    }
}

type Change = (&'static str, Box<dyn Fn(&mut BuildComplete)>);

#[tokio::test]
async fn a_builder_completes_its_own_outputs_and_nothing_else() {
    let world = World::start().await;
    let drv = Drv::new("app", &["out", "dev"], &[]);
    let other = Drv::new("other", &["out"], &[]);
    world.insert(&[&drv, &other], &[]).await;
    let (out, dev) = (Nar::file("out"), Nar::file("dev"));
    let (attempt, call) = world.built(&drv, &[("out", &out, &[]), ("dev", &dev, &[])]).await;

    let victim = other.output("out").to_string();
    let info = out.info(&foreign(), &[]);
    let changes: Vec<Change> = vec![
        ("'out' is /nix/store/", Box::new(move |call| call.outputs[0].info.path.clone_from(&victim))),
        ("'dev' is missing", Box::new(|call| drop(call.outputs.remove(1)))),
        ("has no output 'lib'", {
            let path = foreign().to_string();
            Box::new(move |call| {
                let mut extra = call.outputs[0].clone();
                extra.name = "lib".to_owned();
                extra.info.path.clone_from(&path);
                call.outputs.push(extra);
            })
        }),
        ("named twice", Box::new(|call| call.outputs.push(call.outputs[0].clone()))),
        ("not needed by any output", {
            let info = info.clone();
            Box::new(move |call| call.extra_paths.push(info.clone()))
        }),
        ("neither an output of this build", {
            let info = info.clone();
            Box::new(move |call| {
                call.outputs[0].info.references.push(info.path.clone());
                call.extra_paths.push(info.clone());
            })
        }),
        ("nar_hash 'x' is not valid", Box::new(|call| call.outputs[0].info.nar_hash = "x".to_owned())),
    ];
    for (words, change) in changes {
        let mut call = call.clone();
        change(&mut call);
        let error = world.signer.build_complete(&attempt.token, call).await.expect_err(words);
        assert!(refusal(&error).contains(words), "{words}: {}", refusal(&error));
    }
    // An extra path that names a known deriver, but is not its output.
    let mut forged = call.clone();
    let deriver = Some(other.path.to_string());
    forged.outputs[0].info.references.push(info.path.clone());
    forged.extra_paths.push(PathInfo { deriver, ..info });
    let error = world.signer.build_complete(&attempt.token, forged).await.expect_err("not an output of other");
    assert!(refusal(&error).contains("neither an output"), "{}", refusal(&error));

    assert_nothing_known(&world, &[drv.output("out"), drv.output("dev"), other.output("out"), &foreign()]).await;
    let answer = world.signer.build_complete(&attempt.token, call).await.expect("the true one is accepted");
    assert_eq!(answer, BuildCompleteAnswer::Published);
}

#[tokio::test]
async fn objects_are_what_was_declared() {
    let world = World::start().await;
    let drv = Drv::new("app", &["out"], &[]);
    world.insert(&[&drv], &[]).await;
    let out = Nar::file("out");
    let (attempt, call) = world.built(&drv, &[("out", &out, &[])]).await;
    let not_uploaded = async |change: &dyn Fn(&mut PathInfo), words: &str| {
        let mut call = call.clone();
        change(&mut call.outputs[0].info);
        let error = world.signer.build_complete(&attempt.token, call).await.expect_err(words);
        assert_eq!(error.kind(), SignErrorKind::NotUploaded, "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
    };
    not_uploaded(&|info| info.file_size += 1, "bytes instead of").await;
    not_uploaded(&|info| info.file_hash = Sha256Hash::of(b"never sent").to_string(), "missing").await;
    assert_nothing_known(&world, &[drv.output("out")]).await;

    // What a slot was not given for cannot be sent.
    let request =
        SlotsRequest { holder: Holder::Attempt(attempt.id), paths: vec![out.info(&foreign(), &[])], log: None };
    let error = world.signer.slots(&attempt.token, &request).await.expect_err("a foreign path");
    assert!(refusal(&error).contains("does not cover"), "{}", refusal(&error));
    let log = Some(LogBlob { file_hash: Sha256Hash::of(b"").to_string(), file_size: u64::MAX, bytes_base64: None });
    let request = SlotsRequest { paths: vec![], log, ..request };
    let error = world.signer.slots(&attempt.token, &request).await.expect_err("a log beyond all bounds");
    assert!(refusal(&error).contains("bytes of one object"), "{}", refusal(&error));
}

/// What a builder says of a NAR is believed unless the operator wants it read.
#[tokio::test]
async fn archives_are_read_when_asked_for() {
    let options = SignerOptions { verify: Verify::Always, ..SignerOptions::default() };
    let world = World::with(options).await;
    let drv = Drv::new("app", &["out"], &[]);
    world.insert(&[&drv], &[]).await;
    let out = Nar::file("out");
    let (attempt, call) = world.built(&drv, &[("out", &out, &[])]).await;
    for (change, words) in [
        (&(|info: &mut PathInfo| info.nar_size -= 8) as &dyn Fn(&mut PathInfo), "more or fewer than the declared"),
        (&|info| info.nar_size += 8, "more or fewer than the declared"),
        (&|info| info.nar_hash = Sha256Hash::of(b"x").to_string(), "its NAR has the hash"),
    ] {
        let mut lie = call.clone();
        change(&mut lie.outputs[0].info);
        let error = world.signer.build_complete(&attempt.token, lie).await.expect_err(words);
        assert!(refusal(&error).contains(words), "{}", refusal(&error));
    }
    // Bytes that are no archive at all.
    let noise = Nar { bytes: out.bytes.clone(), compressed: b"no zstd".to_vec() };
    let lie = drv.complete(&attempt, &[("out", &noise, &[])]);
    world.upload(&attempt.token, Holder::Attempt(attempt.id), &[(&lie.outputs[0].info, &noise)], None).await;
    let error = world.signer.build_complete(&attempt.token, lie).await.expect_err("no archive");
    assert!(refusal(&error).contains("no archive compressed with zstd"), "{}", refusal(&error));

    assert_nothing_known(&world, &[drv.output("out")]).await;
    let answer = world.signer.build_complete(&attempt.token, call).await.expect("the truth is accepted");
    assert_eq!(answer, BuildCompleteAnswer::Published);
}

/// As Nix does it: the references of an archive that is read are the candidates that it names.
#[tokio::test]
async fn references_of_archives_that_are_read_are_those_in_them() {
    let options = SignerOptions { verify: Verify::Always, ..SignerOptions::default() };
    let world = World::with(options).await;
    let lib = Drv::new("lib", &["out", "dev"], &[]);
    let app = Drv::new("app", &["out"], &[&lib]);
    let json = r#"{"unsafeDiscardReferences":{"out":true}}"#;
    let image = Drv::with_env("image", &[&lib], &[("__json", json)]);
    world.insert(&[&lib, &app, &image], &[]).await;
    let (out, dev) = (lib.output("out"), lib.output("dev"));

    let own = Nar::file(&format!("{out}/lib.so"));
    let headers = Nar::file(&format!("{}-and-not-the-whole-name", out.hash_part()));
    let of_out = [out];
    let (attempt, call) = world.built(&lib, &[("out", &own, &[]), ("dev", &headers, &[])]).await;
    let error = world.signer.build_complete(&attempt.token, call).await.expect_err("dev names out");
    assert!(refusal(&error).contains(&format!("it refers to {out}, which its references leave out")));
    // Whether a path is among its own references changes no closure.
    let call = lib.complete(&attempt, &[("out", &own, &[]), ("dev", &headers, &of_out)]);
    let answer = world.signer.build_complete(&attempt.token, call).await.expect("what is in it");
    assert_eq!(answer, BuildCompleteAnswer::Published);

    // `dev` is no input: Nix does not look for it.
    let program = Nar::file(&format!("from {dev}, linked with {out}"));
    let (attempt, call) = world.built(&app, &[("out", &program, &[])]).await;
    let error = world.signer.build_complete(&attempt.token, call).await.expect_err("it names its input");
    assert!(refusal(&error).contains(&format!("it refers to {out}, which")), "{}", refusal(&error));
    let call = app.complete(&attempt, &[("out", &program, &[out])]);
    let answer = world.signer.build_complete(&attempt.token, call).await.expect("its inputs");
    assert_eq!(answer, BuildCompleteAnswer::Published);

    let disk = Nar::file(&format!("a disk with {out}"));
    let (attempt, call) = world.built(&image, &[("out", &disk, &[])]).await;
    let lie = image.complete(&attempt, &[("out", &disk, &[app.output("out")])]);
    let error = world.signer.build_complete(&attempt.token, lie).await.expect_err("it does not name app");
    assert!(refusal(&error).contains("nothing in it refers to"), "{}", refusal(&error));
    let answer = world.signer.build_complete(&attempt.token, call).await.expect("it says that none are kept");
    assert_eq!(answer, BuildCompleteAnswer::Published);
}

#[tokio::test]
async fn a_stale_token_is_refused_at_every_step() {
    let world = World::start().await;
    let drv = Drv::new("app", &["out"], &[]);
    world.insert(&[&drv], &[]).await;
    let out = Nar::file("out");
    let (attempt, complete) = world.built(&drv, &[("out", &out, &[])]).await;
    let (source, source_info) = out.source("s", &[]);
    let failure = Failure { kind: None, message: String::new(), exit_code: None };
    let evaluation = world.evaluation;

    let all_stale = async |token: &harmonia_core::ClaimToken, attempt: AttemptId, evaluation: EvalId| {
        let slots = |holder, paths| SlotsRequest { holder, paths, log: None };
        let signer = &world.signer;
        let complete = BuildComplete { attempt, ..complete.clone() };
        let failed = BuildFailed { attempt, failure: failure.clone(), log: None, usage: AttemptUsage::default() };
        let sources = SourcesComplete { evaluation, paths: vec![source_info.clone()] };
        let mut drvs = world.drv_upload(&[&drv]);
        drvs.evaluation = evaluation;
        for (step, error) in [
            ("slots", signer.slots(token, &slots(Holder::Attempt(attempt), vec![])).await.map(drop)),
            ("slots", signer.slots(token, &slots(Holder::Evaluation(evaluation), vec![])).await.map(drop)),
            ("drvs", signer.drv_upload(token, drvs).await.map(drop)),
            ("sources", signer.sources_complete(token, &sources).await.map(drop)),
            ("complete", signer.build_complete(token, complete).await.map(drop)),
            ("failed", signer.build_failed(token, &failed).await.map(drop)),
        ] {
            let error = error.expect_err(step);
            assert_eq!(error.kind(), SignErrorKind::StaleClaim, "{step}: {error:?}");
            assert_eq!(error.code(), "stale-claim");
        }
    };
    all_stale(&random_token(), attempt.id, evaluation).await;
    // One's own token does not open another's work.
    all_stale(&attempt.token, AttemptId(attempt.id.0 + 1), evaluation).await;
    all_stale(&world.eval_token, attempt.id, EvalId(evaluation.0 + 1)).await;

    // A token that was good until the work was given back.
    world.db().release_attempt(attempt.id, &attempt.token, "shut down").await.expect("released");
    all_stale(&attempt.token, attempt.id, evaluation).await;
    assert_nothing_known(&world, &[drv.output("out"), &source]).await;
}

#[tokio::test]
async fn derivations_are_what_their_paths_say() {
    let world = World::start().await;
    let lib = Drv::new("lib", &["out"], &[]);
    let app = Drv::new("app", &["out"], &[&lib]);
    let upload = async |files: Vec<DrvFile>| {
        let call = harmonia_core::signer_api::DrvUpload { evaluation: world.evaluation, drvs: files };
        world.signer.drv_upload(&world.eval_token, call).await.map(|answer| answer.stored)
    };
    let refused = async |files: Vec<DrvFile>, words: &str| {
        let error = upload(files).await.expect_err(words);
        assert!(refusal(&error).contains(words), "{words}: {}", refusal(&error));
    };

    let mut changed = lib.clone();
    changed.text.extend_from_slice(b" ");
    refused(vec![changed.file()], "is not acceptable").await;
    let renamed = Drv { text: app.text.clone(), ..lib.clone() };
    refused(vec![renamed.file()], "belongs to").await;
    let not_drv = DrvFile { path: foreign().to_string(), ..lib.file() };
    refused(vec![not_drv], "does not end in .drv").await;

    // A derivation that is consistent in itself, but claims somebody else's output path.
    let mut forged = lib.derivation.clone();
    forged.outputs.insert("out".to_owned(), DerivationOutput::InputAddressed(foreign()));
    forged.env.insert("out".into(), foreign().as_str().into());
    let forged = Drv::of(forged);
    refused(vec![forged.file()], "declares outputs that it does not have").await;
    // A fixed output whose path is not that of its hash.
    let address = ContentAddress::recursive(Sha256Hash::of(b"x").into());
    let mut fixed = Drv::fixed("f", address, "").derivation;
    fixed.outputs.insert("out".to_owned(), DerivationOutput::Fixed { path: foreign(), address });
    fixed.env.insert("out".into(), foreign().as_str().into());
    refused(vec![Drv::of(fixed).file()], "declares outputs that it does not have").await;
    // An output path made from an input that nobody has seen.
    refused(vec![app.file()], "which was never uploaded").await;
    refused(vec![app.file(), lib.file()], "which was never uploaded").await;
    // An input that was refused does not become known.
    let mut above = app.derivation.clone();
    above.input_drvs = [(forged.path.clone(), BTreeSet::from(["out".to_owned()]))].into();
    refused(vec![Drv::of(above).file()], "which was never uploaded").await;
    // Nothing is stored when one of several is wrong.
    refused(vec![lib.file(), forged.file()], "declares outputs").await;
    assert!(world.reader.drv(Viewer::Token, lib.path.base_name()).await.expect("known").is_none());

    assert_eq!(upload(vec![lib.file(), app.file()]).await.expect("sound"), 2);
    assert_eq!(upload(vec![app.file()]).await.expect("its input is known now"), 0);
    assert!(world.reader.drv(Viewer::Token, lib.path.base_name()).await.expect("known").is_some());
}

/// The graph is an evaluator's word. It cannot make a builder's token cover what the derivation does not make.
#[tokio::test]
async fn a_forged_graph_gives_no_right_to_foreign_paths() {
    let world = World::start().await;
    let drv = Drv::new("app", &["out"], &[]);
    world.signer.drv_upload(&world.eval_token, world.drv_upload(&[&drv])).await.expect("uploaded");
    let mut lie = drv.clone();
    lie.derivation.outputs.insert("out".to_owned(), DerivationOutput::InputAddressed(foreign()));
    world.insert_graph(&[&lie]).await;
    let attempt = world.claim(&drv).await;
    let out = Nar::file("poison");
    let call = lie.complete(&attempt, &[("out", &out, &[])]);
    let slots =
        SlotsRequest { holder: Holder::Attempt(attempt.id), paths: vec![call.outputs[0].info.clone()], log: None };
    let error = world.signer.slots(&attempt.token, &slots).await.expect_err("not its output");
    assert!(refusal(&error).contains("does not cover it"), "{}", refusal(&error));
    let error = world.signer.build_complete(&attempt.token, call).await.expect_err("not its output");
    assert!(refusal(&error).contains("'out' is"), "{}", refusal(&error));
    assert_nothing_known(&world, &[&foreign(), drv.output("out")]).await;
    // What it makes is what its file says, whatever the graph said.
    let outputs = world.db().derivation_outputs(std::slice::from_ref(&drv.path)).await.expect("read");
    assert_eq!(outputs, [(drv.path.clone(), "out".to_owned(), Some(drv.output("out").clone()))]);
}

#[tokio::test]
async fn sources_belong_to_their_content() {
    let world = World::start().await;
    let nar = Nar::file("content");
    let (path, info) = nar.source("s", &[]);
    let text_hash = Sha256Hash::of(b"what the path says");
    let text_path = StorePath::make_text("t", text_hash, &BTreeSet::new()).expect("valid");
    let text = ContentAddress::text(text_hash.into()).to_string();
    let lying_text = PathInfo { ca: Some(text), ..nar.info(&text_path, &[]) };
    let paths = [(&info, &nar), (&lying_text, &nar)];
    world.upload(&world.eval_token, Holder::Evaluation(world.evaluation), &paths, None).await;

    let refused = async |infos: Vec<PathInfo>, words: &str| {
        let call = SourcesComplete { evaluation: world.evaluation, paths: infos };
        let error = world.signer.sources_complete(&world.eval_token, &call).await.expect_err(words);
        assert!(refusal(&error).contains(words), "{words}: {}", refusal(&error));
    };
    refused(vec![PathInfo { path: foreign().to_string(), ..info.clone() }], "does not belong to its content").await;
    refused(vec![PathInfo { ca: None, ..info.clone() }], "not content-addressed").await;
    refused(vec![PathInfo { references: vec![foreign().to_string()], ..info.clone() }], "does not belong").await;
    refused(vec![lying_text.clone()], "must have the content text:sha256:").await;
    refused(vec![info.clone(), lying_text], "must have the content text:sha256:").await;
    let (outer, outer_info) = nar.source("outer", &[&foreign()]);
    world.upload(&world.eval_token, Holder::Evaluation(world.evaluation), &[(&outer_info, &nar)], None).await;
    refused(vec![outer_info], "refers to paths that no cache has: /nix/store/00000").await;
    assert_nothing_known(&world, &[&path, &text_path, &outer, &foreign()]).await;

    let call = SourcesComplete { evaluation: world.evaluation, paths: vec![info] };
    let answer = world.signer.sources_complete(&world.eval_token, &call).await.expect("the truth is accepted");
    assert_eq!(answer.published, 1);
}
