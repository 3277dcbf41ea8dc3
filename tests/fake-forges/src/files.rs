//! Where descriptions and examples lie on disk: `published/` is part of the repository, `generated/` is made by `./dev setup`.

use std::path::Path;

use serde_json::Value;

/// The folder of this crate: its node packages are installed there.
pub(crate) fn crate_folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file that `./dev setup` cut out of the published packages.
pub(crate) fn generated(name: &str) -> Value {
    read(&crate_folder().join("generated").join(name), "run `./dev setup`, which installs it")
}

/// A published API description, reduced to its facts by `node/reduce.mjs`.
pub(crate) fn published(name: &str) -> Value {
    read(&crate_folder().join("published").join(name), "it is part of the repository")
}

fn read(path: &Path, what_to_do: &str) -> Value {
    let bytes =
        std::fs::read(path).unwrap_or_else(|error| panic!("cannot read {} ({error}): {what_to_do}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{} is no JSON: {error}", path.display()))
}
