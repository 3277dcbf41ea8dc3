use std::path::Path;

use harmonia_db::DbError;

use super::*;

#[test]
fn areas() {
    for (path, area) in [
        ("/", Area::Cache),
        ("/nix-cache-info", Area::Cache),
        ("/nar/x", Area::Cache),
        ("/cix", Area::Cache),
        ("/ci", Area::Pages),
        ("/ci/", Area::Pages),
        ("/ci/local/x/", Area::Pages),
        ("/api/upload-slots", Area::Api),
        ("/api/v1/queue", Area::Api),
        ("/ready", Area::Api),
        ("/health", Area::Api),
        ("/readyx", Area::Cache),
    ] {
        assert_eq!(Area::of(path), area, "{path}");
    }
}

#[test]
fn database_errors_have_their_status() {
    for (error, expected) in [
        (DbError::StaleClaim, (409, "stale-claim")),
        (DbError::NotFound { what: "job 7".into() }, (404, "not-found")),
        (DbError::Refused { reason: "no".into() }, (422, "refused")),
        (DbError::SchemaTooOld { missing: vec!["x".into()] }, (503, "database-unavailable")),
        (DbError::SchemaTooNew { oldest_binary: "9".into() }, (503, "database-unavailable")),
        (DbError::OtherLayout { migration: "1 x".into() }, (503, "database-unavailable")),
        (DbError::Corrupt { what: "state".into() }, (500, "database-query")),
    ] {
        let shown = error.to_string();
        assert_eq!(WebError::from(error).status_and_code(), expected, "{shown}");
    }
}

#[test]
fn a_cache_client_never_gets_a_500() {
    let panic = || WebError::from_panic(&"boom");
    assert_eq!(panic().for_area(Area::Cache).status_and_code(), (503, "panic"));
    assert_eq!(panic().for_area(Area::Api).status_and_code(), (500, "panic"));
    assert_eq!(panic().for_area(Area::Pages).status_and_code(), (500, "panic"));
}

#[test]
fn the_public_text_never_holds_the_cause() {
    let error = DbError::Corrupt { what: "password=hunter2".into() };
    let shown = WebError::from(error);
    assert!(!shown.public_text().contains("hunter2"));
    let cause = shown.cause.as_deref().map(|cause| chain(cause)).expect("it is kept for the log");
    assert!(cause.contains("hunter2"), "{cause}");
    let panic = WebError::from_panic(&"secret".to_owned());
    assert!(!panic.public_text().contains("secret"));
    assert_eq!(panic.cause.as_deref().map(|cause| chain(cause)).as_deref(), Some("panic: secret"));
}

#[test]
fn chains_name_every_cause_once() {
    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);
    assert_eq!(chain(&Outer(std::io::Error::other("inner"))), "outer: inner");
}

/// Status codes are decided in `error.rs` alone.
#[test]
fn no_other_file_names_a_status() {
    fn visit(folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).expect("readable").map(|entry| entry.expect("entry").path()) {
            if entry.is_dir() {
                visit(&entry, found);
            } else if !entry.ends_with("src/error.rs")
                && !entry.ends_with("error/tests.rs")
                && std::fs::read_to_string(&entry).expect("text").contains("StatusCode")
            {
                found.push(entry.display().to_string());
            }
        }
    }
    let mut found = Vec::new();
    visit(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    assert_eq!(found, Vec::<String>::new());
}
