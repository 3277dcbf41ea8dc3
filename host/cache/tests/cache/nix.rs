//! Stock Nix as the judge: what it instantiates is accepted, what we publish it substitutes with signatures required.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use futures_util::TryStreamExt as _;
use harmonia_cache::{SignErrorKind, SignerOptions, Verify};
use harmonia_core::Viewer;
use harmonia_core::signer_api::{BuildCompleteAnswer, Holder, PathInfo, SourcesComplete};
use harmonia_nix::nar::pack_path;
use harmonia_nix::{ContentAddress, Derivation, Hash, HashAlgorithm, NarInfo, Sha256Hash, StorePath};
use tempfile::TempDir;

use crate::world::{Drv, Nar, World, secret_key};

/// A Nix store of its own below a temporary folder.
struct NixStore {
    folder: TempDir,
}

impl NixStore {
    fn new() -> Self {
        Self::with("sandbox = false\n")
    }

    /// One that can build: with a root of its own, Nix has to change into it.
    fn building() -> Self {
        Self::with("sandbox = true\nsandbox-paths = /bin/sh=/bin/busybox\n")
    }

    fn with(settings: &str) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let config = folder.path().join("etc");
        std::fs::create_dir(&config).expect("folder");
        let text = "build-users-group =\nsubstituters =\nexperimental-features = nix-command flakes\n";
        std::fs::write(config.join("nix.conf"), format!("{text}{settings}")).expect("written");
        Self { folder }
    }

    fn url(&self) -> String {
        format!("local?root={}", self.folder.path().join("root").display())
    }

    /// Where the files of a store path really are.
    fn real(&self, path: &StorePath) -> PathBuf {
        self.folder.path().join("root").join(path.as_str().trim_start_matches('/'))
    }

    fn try_run(&self, program: &str, args: &[&str]) -> Result<String, String> {
        let output = Command::new(program)
            .args(args)
            .env("NIX_CONF_DIR", self.folder.path().join("etc"))
            .env("HOME", self.folder.path())
            .env_remove("NIX_REMOTE")
            .env_remove("NIX_PATH")
            .output()
            .expect("Nix is installed");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn run(&self, program: &str, args: &[&str]) -> String {
        self.try_run(program, args).unwrap_or_else(|error| panic!("{program} {args:?}: {error}"))
    }

    fn references(&self, path: &StorePath) -> BTreeSet<StorePath> {
        let text = self.run("nix-store", &["--store", &self.url(), "-q", "--references", path.as_str()]);
        text.lines().map(|line| StorePath::parse(line).expect("a path")).collect()
    }
}

const EXPRESSION: &str = r#"
    let
      make = name: attrs: derivation ({ inherit name; system = "x86_64-linux"; builder = "/bin/sh"; } // attrs);
      source = builtins.path { path = ./source; name = "source"; };
      text = builtins.toFile "notes" "see ${source}";
      fetched = make "fetched" { outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = "HASH"; };
      lib = make "lib" { outputs = [ "out" "dev" ]; args = [ source fetched ]; };
    in make "app" { inherit text; inputs = [ lib.dev lib.out ]; __json = builtins.toJSON { a = "ü"; }; }
"#;

/// Name, content and references of an output.
type Output<'a> = (&'a str, &'a Nar, &'a [&'a StorePath]);

#[tokio::test]
async fn stock_nix_accepts_what_is_published() {
    let world = World::start().await;
    let nix = NixStore::new();
    let app = instantiate(&nix);
    let drvs = closure(&nix, &app);
    publish_sources(&world, &nix, &drvs).await;

    // The derivations, dependencies first, as Nix wrote them.
    let refs: Vec<&Drv> = drvs.iter().collect();
    world.insert(&refs, &[]).await;
    let by_name: BTreeMap<&str, &Drv> = drvs.iter().map(|drv| (drv.derivation.name.as_str(), drv)).collect();
    let (fetched, lib, app) = (by_name["fetched"], by_name["lib"], by_name["app"]);

    // What they make. Nobody runs the builders here: any content is theirs.
    let tarball = Nar::file("a tarball");
    let out = Nar::file("lib");
    let dev = Nar::file("headers");
    let program = Nar::file("app");
    let of_out = [fetched.output("out")];
    let of_dev = [lib.output("out"), lib.output("dev")];
    let of_app = [lib.output("dev")];
    let builds: [(&Drv, Vec<Output<'_>>); 3] = [
        (fetched, vec![("out", &tarball, &[])]),
        (lib, vec![("out", &out, &of_out), ("dev", &dev, &of_dev)]),
        (app, vec![("out", &program, &of_app)]),
    ];
    for (drv, outputs) in &builds {
        let (attempt, call) = world.built(drv, outputs).await;
        let answer = world.signer.build_complete(&attempt.token, call).await.expect("accepted");
        assert_eq!(answer, BuildCompleteAnswer::Published);
    }

    // Another store takes everything, with signatures required and only our key trusted.
    let cache = tempfile::tempdir().expect("temporary folder");
    write_cache(&world, app.output("out"), cache.path()).await;
    let user = NixStore::new();
    let from = format!("file://{}", cache.path().display());
    let copy = |key: &str| {
        let options = ["--option", "require-sigs", "true", "--option", "trusted-public-keys", key];
        let to = user.url();
        let args = [&["copy", "--from", &from, "--to", &to, app.output("out").as_str()], &options[..]].concat();
        user.try_run("nix", &args)
    };
    let other_key = harmonia_nix::SecretKey::from_seed("test-1", &[1; 32]).expect("valid").public_key().to_string();
    let error = copy(&other_key).expect_err("another key of the same name");
    assert!(error.contains("signature"), "{error}");
    copy(&secret_key().public_key().to_string()).expect("our key");

    for (drv, outputs) in &builds {
        for (name, nar, references) in outputs {
            let path = drv.output(name);
            let mut found = Vec::new();
            pack_path(&user.real(path), &mut found).expect("it is there");
            assert!(found == nar.bytes, "{path}");
            assert_eq!(user.references(path), references.iter().map(|path| (*path).clone()).collect());
        }
    }
    let json = user.run("nix", &["path-info", "--store", &user.url(), "--json", fetched.output("out").as_str()]);
    let address = ContentAddress::flat(Hash::of(HashAlgorithm::Sha256, b"a tarball"));
    assert!(json.contains(&address.to_string()), "{json}");
}

/// `far` is no input of `user`, which learns of it from `near`. `user` names itself and its other output, too.
const BUILT: &str = r#"
    let
      make = name: outputs: script: derivation {
        inherit name outputs; system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" script ];
      };
      far = make "far" [ "out" ] "echo far > $out";
      near = make "near" [ "out" ] "echo ${far} > $out";
    in make "user" [ "out" "dev" ] "read -r far < ${near}; echo x > $dev; (echo $far; echo $out; echo $dev) > $out"
"#;

/// What Nix found by its own search is what a signer finds, and nothing else is signed.
#[tokio::test]
async fn a_signer_finds_the_references_that_nix_found() {
    let options = SignerOptions { verify: Verify::Always, ..SignerOptions::default() };
    let world = World::with(options).await;
    let nix = NixStore::building();
    let user = write_and_instantiate(&nix, BUILT);
    nix.run("nix-store", &["--store", &nix.url(), "--realise", user.as_str()]);
    let drvs = closure(&nix, &user);
    world.insert(&drvs.iter().collect::<Vec<_>>(), &[]).await;
    let far = drvs.iter().find(|drv| drv.derivation.name == "far").expect("built").output("out").clone();

    let mut unclaimed = 0;
    for drv in &drvs {
        let built: Vec<(String, Nar, BTreeSet<StorePath>)> = drv
            .derivation
            .outputs
            .keys()
            .map(|name| {
                let mut bytes = Vec::new();
                pack_path(&nix.real(drv.output(name)), &mut bytes).expect("packed");
                (name.clone(), Nar::of(bytes), nix.references(drv.output(name)))
            })
            .collect();
        let links: Vec<Vec<&StorePath>> = built.iter().map(|(.., references)| references.iter().collect()).collect();
        let outputs: Vec<Output<'_>> =
            built.iter().zip(&links).map(|((name, nar, _), links)| (name.as_str(), nar, links.as_slice())).collect();
        let (attempt, call) = world.built(drv, &outputs).await;
        let lie = async |output: usize, references: Vec<String>, words: &str| {
            let mut lie = call.clone();
            lie.outputs[output].info.references = references;
            let error = world.signer.build_complete(&attempt.token, lie).await.expect_err(words);
            assert_eq!(error.kind(), SignErrorKind::Refused, "{error:?}");
            assert!(error.public_message().contains(words), "{}", error.public_message());
        };
        for (index, output) in call.outputs.iter().enumerate() {
            let references = &output.info.references;
            for left_out in references.iter().filter(|path| **path != output.info.path) {
                let others = references.iter().filter(|path| *path != left_out).cloned().collect();
                lie(index, others, &format!("it refers to {left_out}, which its references leave out")).await;
                unclaimed += 1;
            }
            if drv.derivation.name != "far" && !references.contains(&far.to_string()) {
                let more = references.iter().cloned().chain([far.to_string()]).collect();
                lie(index, more, &format!("nothing in it refers to {far}, as its references say")).await;
            }
        }
        let answer = world.signer.build_complete(&attempt.token, call.clone()).await.expect("as Nix says");
        assert_eq!(answer, BuildCompleteAnswer::Published);
    }
    assert_eq!(unclaimed, 3, "near → far, user → far, user → its other output");
}

fn instantiate(nix: &NixStore) -> StorePath {
    let hash = Hash::of(HashAlgorithm::Sha256, b"a tarball").to_base32();
    write_and_instantiate(nix, &EXPRESSION.replace("HASH", &hash))
}

fn write_and_instantiate(nix: &NixStore, expression: &str) -> StorePath {
    let folder = nix.folder.path().join("expression");
    std::fs::create_dir_all(folder.join("source")).expect("folder");
    std::fs::write(folder.join("source/file"), "a source").expect("written");
    std::fs::write(folder.join("default.nix"), expression).expect("written");
    let file = folder.join("default.nix");
    let path = nix.run("nix-instantiate", &["--store", &nix.url(), file.to_str().expect("UTF-8")]);
    StorePath::parse(path.split('!').next().expect("a path")).expect("a store path")
}

/// The derivations below `drv` and itself, dependencies first.
fn closure(nix: &NixStore, drv: &StorePath) -> Vec<Drv> {
    let text = nix.run("nix-store", &["--store", &nix.url(), "-q", "--requisites", drv.as_str()]);
    let paths = text.lines().map(|line| StorePath::parse(line).expect("a path")).filter(StorePath::is_derivation);
    paths
        .map(|path| {
            let text = std::fs::read(nix.real(&path)).expect("readable");
            let derivation = Derivation::from_file(&path, &text).expect("a derivation");
            Drv { path, derivation, text }
        })
        .collect()
}

async fn publish_sources(world: &World, nix: &NixStore, drvs: &[Drv]) {
    let sources: BTreeSet<&StorePath> = drvs.iter().flat_map(|drv| &drv.derivation.input_srcs).collect();
    assert_eq!(sources.len(), 2, "{sources:?}");
    let mut infos: Vec<(PathInfo, Nar)> = Vec::new();
    for path in sources {
        let mut bytes = Vec::new();
        pack_path(&nix.real(path), &mut bytes).expect("packed");
        let nar = Nar::of(bytes);
        let references = nix.references(path);
        let address = if path.name() == "notes" {
            let content = std::fs::read(nix.real(path)).expect("readable");
            ContentAddress::text(Sha256Hash::of(&content).into())
        } else {
            ContentAddress::recursive(nar.hash().into())
        };
        let info = nar.info(path, &references.iter().collect::<Vec<_>>());
        infos.push((PathInfo { ca: Some(address.to_string()), ..info }, nar));
    }
    let paths: Vec<_> = infos.iter().map(|(info, nar)| (info, nar)).collect();
    world.upload(&world.eval_token, Holder::Evaluation(world.evaluation), &paths, None).await;
    let paths = infos.iter().map(|(info, _)| info.clone()).collect();
    let call = SourcesComplete { evaluation: world.evaluation, paths };
    let answer = world.signer.sources_complete(&world.eval_token, &call).await.expect("published");
    assert_eq!(answer.published, 2);
}

/// Writes what the reader serves of a closure as a `file://` cache.
async fn write_cache(world: &World, root: &StorePath, folder: &Path) {
    std::fs::write(folder.join("nix-cache-info"), world.reader.nix_cache_info()).expect("written");
    std::fs::create_dir(folder.join("nar")).expect("folder");
    let mut open = vec![root.clone()];
    let mut seen = BTreeSet::new();
    while let Some(path) = open.pop() {
        if !seen.insert(path.clone()) {
            continue;
        }
        let text = world.reader.narinfo(Viewer::Public, path.hash_part()).await.expect("known").expect("published");
        let narinfo = NarInfo::parse(std::str::from_utf8(&text).expect("UTF-8")).expect("a narinfo");
        std::fs::write(folder.join(format!("{}.narinfo", path.hash_part())), &text).expect("written");
        let file = narinfo.url.strip_prefix("nar/").expect("below nar/");
        let body = world.reader.nar(Viewer::Token, file, None).await.expect("known").expect("there");
        let pieces: Vec<bytes::Bytes> = body.into_stream().try_collect().await.expect("complete");
        std::fs::write(folder.join(&narinfo.url), pieces.concat()).expect("written");
        open.extend(narinfo.references);
    }
}
