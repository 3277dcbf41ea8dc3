//! Every configuration key with its meaning: for `config check`, and to name the nearest one when a key is unknown.

/// `section.key` and what it means.
pub(crate) const KEYS: &[(&str, &str)] = &[
    ("node.name", "name of this node, unique in the cluster; default: the host's name"),
    ("node.capabilities", "what it does: frontend, evaluator, signer, builder"),
    ("node.listen", "address of the HTTP listener"),
    ("node.endpoint", "URL under which other nodes reach this one; default: http://<listen>"),
    ("node.public_url", "URL under which people and forges reach the pages; default: the endpoint"),
    ("node.state_dir", "folder for this node's own files (spools, git mirrors)"),
    ("node.plugins_dir", "folder with the plugins that come with the program; default: looked for beside the program"),
    ("http.connections_max", "connections that this node's listener has at once; later ones wait"),
    (
        "http.connections_per_client_max",
        "of them, from one address (or IPv6 /64 network); this machine itself, a proxy for instance, is not counted",
    ),
    ("http.head_timeout", "a connection is closed when the head of its next request is not complete after so long"),
    ("http.trusted_proxies", "addresses of proxies, beside this machine's own, whose X-Forwarded-For names the client"),
    ("http.ca_file", "certificates (PEM) of authorities that may vouch for other nodes, beside the system's"),
    (
        "auth.local_projects",
        "public or private: who may see projects without a forge, unless `project set` says otherwise of one; default: private, \
         of `up` on a loopback address without node.public_url: public",
    ),
    ("database.url", "PostgreSQL URL; put one with a password into a file and use url_file"),
    ("database.url_file", "file that holds the PostgreSQL URL"),
    (
        "database.max_connections",
        "most connections this node opens for statements; beside them one listens, and each held chore has one",
    ),
    ("object_store.endpoint", "URL of the S3 endpoint; without it AWS's own of the region"),
    ("object_store.region", "region of the bucket"),
    ("object_store.bucket", "name of the bucket"),
    ("object_store.path_style", "address the bucket in the path (most stores but AWS)"),
    ("object_store.access_key_file", "file that holds the access key id"),
    ("object_store.secret_key_file", "file that holds the secret access key"),
    ("signer.key_files", "files with secret signing keys (harmonia-ci keygen); every path is signed with each"),
    (
        "signer.verify",
        "which uploaded archives are read again before they are signed (hashes, size, references): declared (only those whose \
         path requires it; builders are believed), always, or a share such as sample:0.05",
    ),
    (
        "signer.small_objects",
        "where small logs and listings are kept: database, or bucket, when clients read the bucket without our endpoint",
    ),
    ("cache.url", "URL of the binary cache as builders and clients see it; default: the public URL's root"),
    ("cache.public_keys", "public keys (name:base64) whose signatures count, beside those of signer.key_files"),
    (
        "cache.substituters",
        "binary caches asked after our own: URLs, or { url, public_keys } where other keys than cache.public_keys count",
    ),
    ("cache.priority", "priority in nix-cache-info; lower is asked first"),
    ("store.daemon", "which store daemon `up` brings along: harmonia, or nix (the nix-daemon of an installed Nix)"),
    ("store.daemon_socket", "socket of the Nix daemon that builds"),
    ("store.root", "folder under which that daemon's /nix lies; / for the system's own"),
    ("builder.max_jobs", "builds at once; default: one a processor"),
    ("builder.systems", "systems this node builds"),
    ("builder.features", "system features it offers (kvm, big-parallel, …)"),
    ("builder.min_free", "claims pause when the store's disk has less free"),
    ("builder.prepare_timeout", "longest time for making the inputs of a build ready"),
    ("builder.upload_timeout", "longest time for publishing what a build made"),
    ("build.timeout", "longest build"),
    ("build.max_silent", "longest time without a line of log"),
    ("build.output_max", "largest output of one derivation"),
    ("build.log_max", "a log is cut there; the build goes on"),
    ("build.cores", "NIX_BUILD_CORES; 0 means all"),
    ("evaluator.max_evals", "evaluations at once"),
    ("evaluator.workers", "processes of one evaluation"),
    ("evaluator.mirrors_max", "disk for mirrors of repositories; those used longest ago go first"),
    ("evaluator.mirrors_keep", "a mirror that was not used for so long goes"),
    ("eval.engine", "auto (nix-eval-jobs when it is on PATH, else nix), nix or nix-eval-jobs"),
    ("eval.nix_eval_jobs", "program to run when eval.engine is nix-eval-jobs"),
    (
        "eval.allow_ifd",
        "whether evaluating may build (import from derivation), where the repository does not forbid it",
    ),
    ("eval.allow_file_urls", "whether git URLs may be file://, which reads this machine's disk; `up` allows it"),
    ("eval.timeout", "longest evaluation, with fetching"),
    (
        "eval.fetch_timeout",
        "a server that takes longer to give out a repository is left alone for as long, then tried again",
    ),
    (
        "eval.wait_max",
        "an evaluation waits so long for a forge or frontend that is away, then it fails; 0 s: not at all",
    ),
    ("eval.memory_max", "memory bound of one engine process; its temporary files take as much again at most"),
    ("eval.network", "whether the engine may reach the network (to fetch flake inputs)"),
    (
        "eval.allow_hosts",
        "what engines, and git for submodules, reach beside public addresses: private:git.corp.example, \
         http://127.0.0.1:3000, 10.20.0.0/16",
    ),
    ("eval.require_sandbox", "refuse to evaluate when the kernel denies a wall of the sandbox"),
    ("intervals.heartbeat", "how often a node says that it lives"),
    ("intervals.node_dead_after", "silent for so long, a node counts as dead and its work is given to others"),
    ("intervals.chores", "how often the chores run (reaper, invariant sweep, …)"),
    (
        "intervals.unsupported_after",
        "a job waits so long for a node that offers its system and features, when none did within 30 days; then it fails as unsupported",
    ),
    ("intervals.charging", "how often running builds are charged to their projects"),
    ("intervals.discovery", "how often a forge is asked for all its repositories"),
    ("intervals.forge_loops", "how often deliveries, polls and hooks are looked for, besides being told"),
    ("intervals.reports", "statuses of one evaluation are sent at most this often"),
    ("intervals.plugin_reload", "how often the files of plugins are looked at for a change"),
    ("forges.merge_branches", "globs of branches that merge queues write: always built, and none supersedes another"),
    ("statuses.prefix", "what the names of commit statuses begin with; branch protection may require them"),
    ("statuses.failed_attributes_max", "most failed attributes of an evaluation that get a status of their own"),
    ("log.level", "tracing filter: error, warn, info, debug, or per module"),
    ("log.format", "pretty or json"),
];

/// Keys of each `[[plugins]]`, and what they mean.
pub(crate) const PLUGIN_KEYS: &[(&str, &str)] = &[
    ("plugins.name", "name of the instance; of a forge also its name in POST /webhook/<name>"),
    ("plugins.path", "the component (.wasm)"),
    ("plugins.sha256", "another file than the one with this SHA-256 is refused"),
    ("plugins.allow_hosts", "hosts it may call over https (or http://host:port)"),
    ("plugins.settings", "strings it may read"),
    ("plugins.secrets", "files of secrets it may use, but not read; { file, hosts } binds one to hosts"),
    ("plugins.limits", "memory, cpu, time, output, http_requests, http_body, http_time of one call"),
    ("plugins.wasi", "none, empty (interfaces with nothing behind them) or scratch (and a folder of its own)"),
    ("plugins.auto_enable", "topics and names of repositories that are enabled when they are discovered"),
];

/// The known key nearest to `unknown` (by edit distance), when it is near enough to be what was meant.
pub(crate) fn nearest(unknown: &str) -> Option<&'static str> {
    let last = |key: &str| key.rsplit('.').next().unwrap_or(key).to_owned();
    KEYS.iter()
        .chain(PLUGIN_KEYS)
        .map(|(key, _)| {
            let whole = distance(unknown, key);
            let key_only =
                distance(&last(unknown), &last(key)) + usize::from(unknown.split('.').next() != key.split('.').next());
            (whole.min(key_only), *key)
        })
        .min()
        .filter(|(distance, key)| *distance <= key.len() / 2)
        .map(|(_, key)| key)
}

/// Levenshtein distance in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let replace = diagonal + usize::from(left != *right);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_typo_finds_the_key_that_was_meant() {
        for (typo, meant) in [
            ("build.time_out", "build.timeout"),
            ("database.uri", "database.url"),
            ("builder.max-jobs", "builder.max_jobs"),
            ("node.timeout", "build.timeout"),
        ] {
            assert_eq!(nearest(typo), Some(meant), "{typo}");
        }
        assert_eq!(nearest("zzzzzzzzzzzz.qqqqqqqqqqq"), None);
    }

    #[test]
    fn the_table_names_exactly_the_keys_that_are_read() {
        // Every key of the table is accepted…
        for (key, meaning) in KEYS {
            let (section, name) = key.split_once('.').expect("section.key");
            assert!(!meaning.is_empty());
            let text = format!("[{section}]\n{name} = {{ not_a_value = true }}\n");
            let error = toml::from_str::<Config>(&text).expect_err("a table is no value of any key").to_string();
            assert!(!error.contains("unknown field `"), "{key} is not read: {error}");
        }
        // …and every key that is read and has a default is in the table.
        let defaults = toml::Table::try_from(Config::default()).expect("defaults serialize");
        let plugin = "name = \"a\"\npath = \"b\"\n";
        for (key, meaning) in PLUGIN_KEYS {
            let name = key.strip_prefix("plugins.").expect("of plugins");
            let text = format!("[[plugins]]\n{}{name} = 7\n", plugin.replace(&format!("{name} = "), "#"));
            let error = toml::from_str::<Config>(&text).expect_err("a number is no value of any key").to_string();
            assert!(!meaning.is_empty() && !error.contains("unknown field `"), "{key} is not read: {error}");
        }
        for (section, values) in &defaults {
            for name in values.as_table().expect("sections are tables").keys() {
                let key = format!("{section}.{name}");
                assert!(KEYS.iter().any(|(known, _)| *known == key), "{key} is missing in KEYS");
            }
        }
    }
}
