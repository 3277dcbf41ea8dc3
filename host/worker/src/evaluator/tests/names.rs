//! Names that are known before anything is evaluated: each has a result or an error in the end, whatever the engine says.

use std::os::unix::fs::PermissionsExt;

use tokio::sync::mpsc;

use super::super::engine::{EngineEvent, EngineLine};
use super::super::evaluation::{EvaluateError, conclude, explain};
use super::super::insert::Inserter;
use super::*;

/// Several workers of nix-eval-jobs print in no order: one tells what is in `s.m` while another comes to `s`.
const IN_NO_ORDER: &str = r#"#!/bin/sh
for expression; do :; done
nonce=$(printf '%s\n' "$expression" | sed -n 's/^  nonce = "\([0-9a-f]*\)";$/\1/p')
say() { printf '{"attr":"x","attrPath":[%s],"error":"%s"}\n' "$1" "$2"; }
say '"t0","_m","!"' "error: ${nonce}n [\\\"x\\\"]"
say '"t0","_none","!"' "error: ${nonce}x 0"
say '"t0","_m","_x"' 'error: of x'
say '"t0","!"' "error: ${nonce}n [\\\"m\\\",\\\"none\\\"]"
"#;

#[tokio::test]
async fn members_that_are_told_of_before_their_set_are_not_missed() {
    let dir = tempfile::tempdir().expect("folder");
    let program = dir.path().join("nix-eval-jobs");
    std::fs::write(&program, IN_NO_ORDER).expect("file");
    for path in [dir.path(), &program] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("mode");
    }
    let engine = EngineChoice::NixEvalJobs(program);
    let world = World::start_as(async |database| database.db.clone(), |options| options.engine = engine).await;
    let flake = "{ outputs = { self }: { checks.x86_64-linux.s = { }; }; }";
    let view = world.ended(world.queue("main", &[("flake.nix", flake)], None).await).await;
    assert_eq!(view.evaluation.status, EvalStatus::Succeeded, "{:?}", view.evaluation.error);
    let attrs: Vec<(&str, Option<&str>)> =
        view.attrs.iter().map(|attr| (attr.attr.as_str(), attr.error.as_deref())).collect();
    assert_eq!(attrs, [("checks.x86_64-linux.s.m.x", Some("error: of x"))]);
    world.stop().await;
}

/// No engine loses one (those that get no line are asked for alone, and then in error); were one lost on the way from
/// there, the evaluation says so.
#[tokio::test]
async fn an_evaluation_that_lost_a_name_fails_and_names_it() {
    let mut options = None;
    let mut world = World::start_as(async |database| database.db.clone(), |used| options = Some(used.clone())).await;
    world.drain.cancel();
    world.gone().await;
    let settings = super::super::probe::prepare(options.expect("just set")).await.expect("prepared");
    let id = world.queue("main", &[("flake.nix", "{ }")], None).await;
    let (db, token) = (&settings.options.db, ClaimToken::from_random(rand::random()));
    let claimed = db.claim_evaluation(&settings.options.node, settings.options.incarnation, &token).await;
    assert_eq!(claimed.expect("claims").map(|claimed| claimed.id), Some(id));

    let path = |name: &str| vec!["checks".to_owned(), name.to_owned()];
    let (events, received) = mpsc::channel(10);
    let line = EngineLine { attr_path: path("told"), result: Err("error: its own".to_owned()) };
    for event in [EngineEvent::Expected(vec![path("lost"), path("told")]), EngineEvent::Line(line)] {
        events.send(event).await.expect("room");
    }
    drop(events);
    let connection = settings.daemon.connect().await.expect("connects");
    let mut inserter = Inserter::new(&settings, id, &token, connection, None);
    inserter.take_all(received).await.expect("inserted");
    let ended = conclude(db, (id, &token), inserter, false, None).await;
    let error = ended.expect_err("a name was lost");
    assert!(matches!(error, EvaluateError::Incomplete(_)), "{error:?}");
    assert_eq!(explain(&error), "the engine gave neither a result nor an error for checks.lost");
    let view = world.view(id).await;
    assert_eq!((view.evaluation.status, view.evaluation.complete), (EvalStatus::Running, false));
}
