//! Signers that stop half-way, several at once, and buckets that lose objects.

use harmonia_cache::{SignErrorKind, Signer, keys};
use harmonia_core::Viewer;
use harmonia_core::signer_api::{BuildComplete, BuildCompleteAnswer, Holder};
use harmonia_db::{Alongside, NewPath, PathState};
use harmonia_nix::{ContentAddress, NarInfo, Sha256Hash, StorePath};

use crate::world::{Attempt, Drv, Log, Nar, World, poll_once, poll_times};

async fn narinfo(world: &World, path: &StorePath) -> Option<NarInfo> {
    let text = world.reader.narinfo(Viewer::Public, path.hash_part()).await.expect("known")?;
    Some(NarInfo::parse(std::str::from_utf8(&text).expect("UTF-8")).expect("a narinfo"))
}

async fn state(world: &World, path: &StorePath) -> Option<PathState> {
    world.db().path_rows(std::slice::from_ref(path)).await.expect("answers").first().map(|row| row.state)
}

/// A process that ends after the claim leaves what any signer can finish without the builder.
#[tokio::test]
async fn any_signer_finishes_what_was_claimed() {
    let world = World::start().await;
    let lib = Drv::new("lib", &["out"], &[]);
    let app = Drv::new("app", &["out"], &[&lib]);
    world.insert(&[&lib, &app], &[]).await;
    let out = Nar::file("lib");
    let (attempt, call) = world.built(&lib, &[("out", &out, &[])]).await;
    let info = &call.outputs[0].info;
    let new = NewPath {
        path: lib.output("out").clone(),
        nar_hash: info.nar_hash.clone(),
        nar_size: info.nar_size,
        file_hash: info.file_hash.clone(),
        file_size: info.file_size,
        references: vec![],
        ca: None,
        deriver: Some(lib.path.clone()),
    };
    let second = world.second_signer();
    assert_eq!(second.finish_unfinished().await.expect("nothing to do"), 0);
    let log = Log::of("building\n");
    let listing = r#"{"root":{"narOffset":96,"size":3,"type":"regular"},"version":1}"#;
    let along = Alongside {
        log: Some(log.compressed.clone()),
        listings: [(new.path.clone(), listing.to_owned())].into(),
        references: vec![],
    };
    world.db().claim_outputs(attempt.id, &attempt.token, &[new], &along).await.expect("claimed");
    assert!(narinfo(&world, lib.output("out")).await.is_none());

    assert_eq!(second.finish_unfinished().await.expect("finished"), 1);
    assert_eq!(second.finish_unfinished().await.expect("nothing to do"), 0);
    assert_eq!(narinfo(&world, lib.output("out")).await.expect("published").nar_hash, out.hash());
    // With what only the builder had, as far as that was small.
    let found = world.reader.listing(Viewer::Public, lib.output("out").hash_part()).await.expect("known");
    assert_eq!(found.as_deref(), Some(listing.as_bytes()));
    let kept = world.reader.log(Viewer::Public, lib.path.base_name()).await.expect("known").expect("its log");
    assert_eq!(kept.length, log.compressed.len() as u64);
    world.claim(&app).await;
}

/// Whenever a signer dies during a completion, the builder's next call or any signer ends it, with one result.
#[tokio::test]
async fn a_completion_may_end_anywhere() {
    let world = World::start().await;
    let second = world.second_signer();
    let mut interrupted = 0;
    for polls in 1..=40 {
        let (drv, out, dev) = two_outputs(&world, polls).await;
        let (attempt, call) = world.built(&drv, &[("out", &out, &[]), ("dev", &dev, &[])]).await;
        let first = world.second_signer();
        let completion = Box::pin(first.build_complete(&attempt.token, call.clone()));
        if poll_times(completion, polls).await.is_none() {
            interrupted += 1;
            second.finish_unfinished().await.expect("finishes what it can");
            // The builder asks again: either the job is done, which voids its token, or this call does it.
            match second.build_complete(&attempt.token, call).await {
                Ok(answer) => assert_eq!(answer, BuildCompleteAnswer::Published),
                Err(error) => assert_eq!(error.kind(), SignErrorKind::StaleClaim, "{error:?}"),
            }
        }
        assert_published(&world, &drv, &out, &dev).await;
    }
    assert!(interrupted > 5, "{interrupted} interruptions");
    assert_eq!(world.db().sweep_invariants().await.expect("swept"), vec![]);
}

/// As above, at every point after the claim: then no builder is needed.
#[tokio::test]
async fn a_completion_that_ends_after_its_claim_needs_no_builder() {
    let world = World::start().await;
    let second = world.second_signer();
    let mut interrupted = 0;
    for further_polls in 0..12 {
        let (drv, out, dev) = two_outputs(&world, further_polls).await;
        let (attempt, call) = world.built(&drv, &[("out", &out, &[]), ("dev", &dev, &[])]).await;
        let first = world.second_signer();
        let mut completion = Box::pin(first.build_complete(&attempt.token, call));
        // The completion stands still while we look, so that the claim cannot pass unseen.
        while state(&world, drv.output("out")).await.is_none() {
            assert!(poll_once(&mut completion).await.is_none(), "nothing is published before it is claimed");
        }
        let ended = poll_times(completion, further_polls).await;
        let finished = second.finish_unfinished().await.expect("finished");
        interrupted += usize::from(ended.is_none() && finished == 1);
        assert_published(&world, &drv, &out, &dev).await;
    }
    assert!(interrupted > 0, "some were between claim and publication");
    assert_eq!(world.db().sweep_invariants().await.expect("swept"), vec![]);
}

async fn two_outputs(world: &World, number: usize) -> (Drv, Nar, Nar) {
    let drv = Drv::new(&format!("app-{number}"), &["out", "dev"], &[]);
    world.insert(&[&drv], &[]).await;
    (drv, Nar::file(&format!("out {number}")), Nar::file("dev"))
}

async fn assert_published(world: &World, drv: &Drv, out: &Nar, dev: &Nar) {
    for (name, nar) in [("out", out), ("dev", dev)] {
        assert_eq!(state(world, drv.output(name)).await, Some(PathState::Published));
        assert_eq!(narinfo(world, drv.output(name)).await.expect("published").nar_hash, nar.hash());
    }
}

/// Two derivations that differ only in how they fetch have the same output path.
async fn two_ways_to_one_path(world: &World) -> (Drv, Drv) {
    let address = ContentAddress::recursive(Sha256Hash::of(b"fetched").into());
    let fetchers = [Drv::fixed("src", address, "a"), Drv::fixed("src", address, "b")];
    let first = Drv::new("app", &["out"], &[&fetchers[0]]);
    let second = Drv::new("app", &["out"], &[&fetchers[1]]);
    assert_eq!(first.output("out"), second.output("out"));
    assert_ne!(first.path, second.path);
    world.insert_with_attrs(&[(&first, "first"), (&second, "second")], &[&fetchers[0], &fetchers[1]]).await;
    (first, second)
}

#[tokio::test]
async fn the_first_writer_of_a_path_wins() {
    let world = World::start().await;
    let (one, two) = two_ways_to_one_path(&world).await;
    let path = one.output("out").clone();
    let nars = [Nar::file("built at noon"), Nar::file("built at midnight")];
    let (first_attempt, first_call) = world.built(&one, &[("out", &nars[0], &[])]).await;
    let (second_attempt, second_call) = world.built(&two, &[("out", &nars[1], &[])]).await;
    let second_signer = world.second_signer();
    let complete = |signer: Signer, attempt: Attempt, call: BuildComplete| async move {
        signer.build_complete(&attempt.token, call).await.expect("accepted")
    };
    let answers = tokio::join!(
        complete(world.signer.clone(), first_attempt, first_call),
        complete(second_signer, second_attempt, second_call),
    );
    let canonical = BuildCompleteAnswer::Canonical { differs: vec![path.to_string()] };
    let winner = match answers {
        (BuildCompleteAnswer::Published, other) if other == canonical => &nars[0],
        (other, BuildCompleteAnswer::Published) if other == canonical => &nars[1],
        answers => panic!("one wins, the other is told: {answers:?}"),
    };
    let narinfo = narinfo(&world, &path).await.expect("published");
    assert_eq!(narinfo.nar_hash, winner.hash());
    assert_eq!(world.db().sweep_invariants().await.expect("swept"), vec![]);
}

/// The second builder of a path that is published has nothing to upload.
#[tokio::test]
async fn what_is_published_is_not_uploaded_again() {
    let world = World::start().await;
    let (one, two) = two_ways_to_one_path(&world).await;
    let second_attempt = world.claim(&two).await;
    let nar = Nar::file("built");
    let (attempt, call) = world.built(&one, &[("out", &nar, &[])]).await;
    let answer = world.signer.build_complete(&attempt.token, call).await.expect("accepted");
    assert_eq!(answer, BuildCompleteAnswer::Published);

    let other = nar.recompressed();
    let call = two.complete(&second_attempt, &[("out", &other, &[])]);
    let holder = Holder::Attempt(second_attempt.id);
    let puts = world.upload(&second_attempt.token, holder, &[(&call.outputs[0].info, &other)], None).await;
    assert_eq!(puts, 0);
    let answer = world.signer.build_complete(&second_attempt.token, call).await.expect("accepted");
    assert_eq!(answer, BuildCompleteAnswer::Published, "the NAR is the same");
    let narinfo = narinfo(&world, one.output("out")).await.expect("published");
    assert_eq!(narinfo.file_size, Some(nar.compressed.len() as u64));
}

/// A bucket that lost an object: the path goes, its job runs again, and the cache serves the new build.
#[tokio::test]
async fn a_lost_object_is_built_again() {
    let world = World::start().await;
    let lib = Drv::new("lib", &["out"], &[]);
    let app = Drv::new("app", &["out"], &[&lib]);
    world.insert(&[&lib, &app], &[]).await;
    let path = lib.output("out").clone();
    let nar = Nar::file("lib");
    let (attempt, call) = world.built(&lib, &[("out", &nar, &[])]).await;
    world.signer.build_complete(&attempt.token, call).await.expect("accepted");
    assert!(narinfo(&world, &path).await.is_some());

    let user = world.claim(&app).await;
    let report = || world.db().report_missing_path(user.id, &user.token, &path, false);
    report().await.expect("reported");
    assert_eq!(world.signer.check_reported_paths().await.expect("looked"), 0, "it is there");
    world.bucket.store.delete(&keys::nar(&Sha256Hash::of(&nar.compressed))).await.expect("deleted");
    report().await.expect("reported");
    assert_eq!(world.signer.check_reported_paths().await.expect("looked"), 1);
    assert_eq!(world.signer.check_reported_paths().await.expect("looked"), 0, "once");
    assert_eq!(state(&world, &path).await, Some(PathState::Lost));
    assert!(narinfo(&world, &path).await.is_none(), "what cannot be delivered is not promised");

    let again = Nar::file("lib, built again");
    let (attempt, call) = world.built(&lib, &[("out", &again, &[])]).await;
    let answer = world.signer.build_complete(&attempt.token, call).await.expect("accepted");
    assert_eq!(answer, BuildCompleteAnswer::Published);
    assert_eq!(narinfo(&world, &path).await.expect("published").nar_hash, again.hash());
}

/// A row whose object is gone does not stand in the way of somebody who has the path.
#[tokio::test]
async fn a_completion_replaces_what_was_lost() {
    let world = World::start().await;
    let (one, two) = two_ways_to_one_path(&world).await;
    let second_attempt = world.claim(&two).await;
    let nar = Nar::file("built");
    let (attempt, call) = world.built(&one, &[("out", &nar, &[])]).await;
    world.signer.build_complete(&attempt.token, call).await.expect("accepted");
    world.bucket.store.delete(&keys::nar(&Sha256Hash::of(&nar.compressed))).await.expect("deleted");

    let other = nar.recompressed();
    let call = two.complete(&second_attempt, &[("out", &other, &[])]);
    let holder = Holder::Attempt(second_attempt.id);
    assert_eq!(world.upload(&second_attempt.token, holder, &[(&call.outputs[0].info, &other)], None).await, 1);
    let answer = world.signer.build_complete(&second_attempt.token, call).await.expect("accepted");
    assert_eq!(answer, BuildCompleteAnswer::Published);
    let narinfo = narinfo(&world, one.output("out")).await.expect("published");
    assert_eq!(narinfo.file_size, Some(other.compressed.len() as u64));
}
