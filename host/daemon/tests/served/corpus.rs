//! Derivations of every feature (`corpus.nix`), built by Nix's daemon and by ours in stores of their own: they end
//! alike, and leave the same archives and the same rows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use harmonia_nix::nar::pack_path;
use harmonia_nix::worker_protocol::{BuildMode, BuildStatus, ClientError, ClientOptions, DerivedPath, OutputNames};
use harmonia_nix::{NarHash, StorePath};

use crate::daemon::{Daemon, Maker};

/// How one derivation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    /// With this status; the outputs with the hashes of their files.
    Result(BuildStatus, BTreeMap<String, (StorePath, NarHash)>),
    /// The whole operation failed: Nix does so where a failure is none of the kinds that it tells apart.
    Refused,
}

struct Corpus {
    daemon: Daemon,
    /// By name of the derivation.
    ends: BTreeMap<String, End>,
    messages: BTreeMap<String, String>,
}

impl Corpus {
    async fn build(maker: Maker) -> Self {
        let daemon = Daemon::start(maker).await;
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/served/corpus.nix");
        let derivations: BTreeSet<StorePath> = daemon.instantiate(&file).into_iter().collect();
        let (mut ends, mut messages) = (BTreeMap::new(), BTreeMap::new());
        for derivation in derivations {
            let name = derivation.derivation_name().expect("a derivation").to_owned();
            let (end, message) = build(&daemon, derivation).await;
            ends.insert(name.clone(), end);
            messages.insert(name, message);
        }
        Self { daemon, ends, messages }
    }

    /// The rows of a query, as text.
    fn rows(&self, sql: &str) -> BTreeSet<String> {
        let database = rusqlite::Connection::open(self.daemon.database()).expect("a database");
        let mut statement = database.prepare(sql).expect("a query");
        let rows = statement.query_map([], |row| row.get::<_, String>(0)).expect("rows");
        rows.map(|row| row.expect("a row")).collect()
    }
}

async fn build(daemon: &Daemon, derivation: StorePath) -> (End, String) {
    let mut client = daemon.connect().await;
    client.set_options(&ClientOptions { verbosity: 0, ..ClientOptions::default() }).await.expect("options");
    let targets = [DerivedPath::Built { derivation, outputs: OutputNames::All }];
    let mut results = match client.build_paths_with_results(&targets, BuildMode::Normal).await {
        Ok(results) => results,
        Err(ClientError::Daemon(error)) => return (End::Refused, error.plain_message()),
        Err(error) => panic!("{targets:?}: {error}\n{}", daemon.log()),
    };
    let (_, result) = results.pop().expect("one target, one result");
    let hashed = result.built_outputs.into_iter().map(|(name, output)| {
        let mut archive = Vec::new();
        pack_path(&daemon.real(&output.path), &mut archive).expect("a tree");
        (name, (output.path, NarHash::of(&archive)))
    });
    (End::Result(result.status, hashed.collect()), result.error_message)
}

/// Everything in the database but for times and numbers.
const ROWS: [&str; 3] = [
    "select 'path=' || path || ' hash=' || hash || ' size=' || ifnull(narSize, '-') || ' ultimate=' || ifnull(ultimate, 0) || \
     ' deriver=' || ifnull(deriver, '-') || ' sigs=' || ifnull(sigs, '-') || ' ca=' || ifnull(ca, '-') from ValidPaths",
    "select a.path || ' -> ' || b.path from Refs join ValidPaths a on referrer = a.id join ValidPaths b on reference = b.id",
    "select v.path || '!' || o.id || ' = ' || o.path from DerivationOutputs o join ValidPaths v on o.drv = v.id",
];

#[tokio::test]
async fn every_derivation_ends_as_with_nix_and_leaves_the_same() {
    let (theirs, ours) = tokio::join!(Corpus::build(Maker::Nix), Corpus::build(Maker::Ours));
    assert!(theirs.ends.len() >= 60, "only {} derivations", theirs.ends.len());
    let mut differences = Vec::new();
    for (name, their_end) in &theirs.ends {
        let our_end = &ours.ends[name];
        let is_same = match (their_end, our_end) {
            (End::Refused, End::Result(_, outputs)) => outputs.is_empty(),
            (theirs, ours) => theirs == ours,
        };
        if !is_same {
            let (their_message, our_message) = (&theirs.messages[name], &ours.messages[name]);
            differences
                .push(format!("{name}:\n  Nix  {their_end:?} {their_message}\n  ours {our_end:?} {our_message}"));
        }
    }
    for sql in ROWS {
        let (their_rows, our_rows) = (theirs.rows(sql), ours.rows(sql));
        differences.extend(their_rows.difference(&our_rows).map(|row| format!("only Nix: {row}")));
        differences.extend(our_rows.difference(&their_rows).map(|row| format!("only ours: {row}")));
    }
    assert!(
        differences.is_empty(),
        "{} differences:\n{}\n{}",
        differences.len(),
        differences.join("\n"),
        ours.daemon.log()
    );
}
