//! `keygen`: an Ed25519 key pair in Nix's format.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use harmonia_nix::signature::SecretKey;

use crate::cli::KeygenArgs;
use crate::exit::Failure;

/// Makes a key, writes the secret to the file and prints the public key.
pub(crate) fn run(args: &KeygenArgs) -> Result<(), Failure> {
    let public = generate(&args.name, &args.out)?;
    outln!("{public}");
    eprintln!("The secret key is in {} (mode 0600). Clients need this line:", args.out.display());
    eprintln!("  trusted-public-keys = {public}");
    Ok(())
}

/// Writes a new secret key to `path`, which must not exist, and gives the public key's text.
pub(crate) fn generate(name: &str, path: &Path) -> Result<String, Failure> {
    let seed: [u8; 32] = rand::random();
    let secret = SecretKey::from_seed(name, &seed).map_err(|error| {
        Failure::usage(error.to_string()).hint("use letters, digits, dots and dashes: cache.example.org-1")
    })?;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| Failure::failed(format!("could not create {}: {error}", path.display())))?;
    file.write_all(secret.to_secret_text().as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(|error| Failure::failed(format!("could not write {}: {error}", path.display())))?;
    Ok(secret.public_key().to_string())
}
