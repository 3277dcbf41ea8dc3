//! Whether what was evaluated depends on the commit it was evaluated from: start at [`TraceSearch::search`].
//!
//! Everything below the attributes is read, also what was known before: the same derivation may betray this commit and not
//! the one for which it was first seen (two commits of one day share their date). What Nix copied from the tree needs no
//! look, it is the same for every commit with that tree; but a text that evaluation wrote (`builtins.toFile`) is a single
//! file like any other, so single files are looked into, too. What cannot be looked into is not known to be free of traces.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use aho_corasick::AhoCorasick;
use harmonia_core::limits::DRV_BYTES_MAX;
use harmonia_core::reuse::Traces;
use harmonia_nix::{Derivation, StorePath};

use crate::pack::physical_path;

/// Derivations and sources that are looked into; an evaluation with more is never reused.
const PATHS_MAX: usize = 300_000;
/// Largest source that is looked into, in bytes.
const SOURCE_BYTES_MAX: u64 = 16 << 20;

/// What was found so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finding {
    /// No trace.
    Nothing,
    /// A trace.
    Trace,
    /// Something could not be looked into.
    Unknown,
}

/// Looks for traces of one commit.
pub(super) struct TraceSearch {
    /// `None` while a search is under way.
    state: Option<State>,
}

struct State {
    traces: AhoCorasick,
    store_root: Option<PathBuf>,
    paths_max: usize,
    seen: HashSet<[u8; 32]>,
    finding: Finding,
}

impl TraceSearch {
    /// `None` when nothing can be looked for.
    pub(super) fn new(traces: &Traces, store_root: Option<PathBuf>) -> Option<Self> {
        let traces = AhoCorasick::builder().ascii_case_insensitive(true).build(traces.texts()).ok()?;
        let (seen, finding) = (HashSet::new(), Finding::Nothing);
        Some(Self { state: Some(State { traces, store_root, paths_max: PATHS_MAX, seen, finding }) })
    }

    /// Looks into these texts.
    pub(super) fn search_texts<'a>(&mut self, texts: impl IntoIterator<Item = &'a str>) {
        if let Some(state) = &mut self.state
            && state.finding == Finding::Nothing
            && texts.into_iter().any(|text| state.traces.is_match(text))
        {
            state.finding = Finding::Trace;
        }
    }

    /// Looks into these derivations and everything below them that was not looked into before.
    pub(super) async fn search(&mut self, roots: Vec<StorePath>) {
        if self.state.as_ref().is_none_or(|state| state.finding != Finding::Nothing) {
            return;
        }
        let Some(mut state) = self.state.take() else { return };
        // A search that panics leaves nothing behind, which means that it is not known.
        self.state = tokio::task::spawn_blocking(move || {
            state.finding = state.look_below(roots);
            state
        })
        .await
        .ok();
    }

    /// Whether there is a trace, if that is known.
    pub(super) fn embeds_commit(&self) -> Option<bool> {
        match self.state.as_ref()?.finding {
            Finding::Nothing => Some(false),
            Finding::Trace => Some(true),
            Finding::Unknown => None,
        }
    }
}

impl State {
    fn look_below(&mut self, roots: Vec<StorePath>) -> Finding {
        let mut todo = roots;
        while let Some(path) = todo.pop() {
            let Some(key) = path.hash_part().as_bytes().first_chunk::<32>() else { return Finding::Unknown };
            if !self.seen.insert(*key) {
                continue;
            }
            if self.seen.len() > self.paths_max {
                return Finding::Unknown;
            }
            let file = physical_path(self.store_root.as_deref(), &path);
            let bytes_max = if path.is_derivation() { DRV_BYTES_MAX as u64 } else { SOURCE_BYTES_MAX };
            match read(&file, bytes_max) {
                Read::Directory => {}
                Read::Not => return Finding::Unknown,
                Read::Text(text) if self.traces.is_match(&text) => return Finding::Trace,
                Read::Text(text) => {
                    let Some(name) = path.derivation_name() else { continue };
                    let Ok(derivation) = Derivation::parse(name, &text) else { return Finding::Unknown };
                    todo.extend(derivation.input_drvs.into_keys().chain(derivation.input_srcs));
                }
            }
        }
        Finding::Nothing
    }
}

enum Read {
    Text(Vec<u8>),
    Directory,
    Not,
}

fn read(file: &Path, bytes_max: u64) -> Read {
    let Ok(metadata) = std::fs::symlink_metadata(file) else { return Read::Not };
    if metadata.is_dir() {
        return Read::Directory;
    }
    if metadata.is_symlink() {
        return std::fs::read_link(file)
            .map_or(Read::Not, |target| Read::Text(target.into_os_string().into_encoded_bytes()));
    }
    if !metadata.is_file() || metadata.len() > bytes_max {
        return Read::Not;
    }
    std::fs::read(file).map_or(Read::Not, Read::Text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_parts::TestStore;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    const DATE_S: u64 = 1_700_000_000;

    async fn finding(store: &TestStore, expression: &str, change: impl FnOnce(&mut State)) -> Option<bool> {
        let root = store.instantiate(expression);
        let mut search = TraceSearch::new(&Traces::of(COMMIT, DATE_S), Some(store.root())).expect("a search");
        change(search.state.as_mut().expect("idle"));
        search.search(vec![root]).await;
        search.embeds_commit()
    }

    fn derivation(more: &str) -> String {
        format!(
            r#"let mk = name: more: derivation ({{ inherit name; system = "x86_64-linux"; builder = "/bin/sh"; }} // more);
               in mk "top" {{ deps = [ (mk "a" {{ }}) (mk "low" {{ {more} }}) ]; }}"#
        )
    }

    #[tokio::test]
    async fn traces_are_found_wherever_they_are_below_an_attribute() {
        let store = TestStore::new();
        for (more, expected) in [
            (String::new(), false),
            (format!(r#"rev = "{COMMIT}";"#), true),
            (format!(r#"version = "1.0-{}";"#, &COMMIT[..7]), true),
            (format!(r#"version = "1.0-{}";"#, &COMMIT[..6]), false),
            (format!(r#"loud = "{}";"#, COMMIT[..8].to_uppercase()), true),
            (r#"date = "unstable-2023-11-14";"#.to_owned(), true),
            (r"date = 1700000000;".to_owned(), true),
            (r#"date = "20231114221320";"#.to_owned(), true),
            (r#"date = "20231115";"#.to_owned(), false),
            (format!(r#"file = builtins.toFile "note" "of {COMMIT}";"#), true),
            (format!(r#"file = builtins.toFile "outer" "see ${{builtins.toFile "v{}" "x"}}";"#, &COMMIT[..7]), true),
            (r#"file = builtins.toFile "note" "of nothing";"#.to_owned(), false),
        ] {
            assert_eq!(finding(&store, &derivation(&more), |_| {}).await, Some(expected), "{more}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_looked_into_is_not_known() {
        let store = TestStore::new();
        let clean = derivation("");
        assert_eq!(finding(&store, &clean, |state| state.paths_max = 2).await, None);
        assert_eq!(finding(&store, &clean, |state| state.store_root = Some("/nonexistent".into())).await, None);
        assert_eq!(finding(&store, &clean, |state| state.finding = Finding::Unknown).await, None);
        assert_eq!(finding(&store, &clean, |_| {}).await, Some(false));
    }

    #[tokio::test]
    async fn a_trace_stays_found_and_names_count() {
        let store = TestStore::new();
        let mut search = TraceSearch::new(&Traces::of(COMMIT, DATE_S), Some(store.root())).expect("a search");
        search.search_texts(["checks.x86_64-linux.a"]);
        assert_eq!(search.embeds_commit(), Some(false));
        search.search_texts(["checks.x86_64-linux.\"v-0123456\""]);
        search.search(vec![store.instantiate(&derivation(""))]).await;
        assert_eq!(search.embeds_commit(), Some(true));
    }
}
