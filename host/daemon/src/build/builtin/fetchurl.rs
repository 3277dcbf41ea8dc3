//! `builtin:fetchurl`: one file from the network or this machine, perhaps an archive to be unpacked. Start at [`run`].
//!
//! Certificates are not checked: what comes is held to its hash.

use std::fs::{self, File, Permissions};
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use harmonia_nix::hash::{Hash, HashAlgorithm};
use harmonia_nix::nar::{Limits, unpack_nar};
use url::Url;

use super::{Input, failed};

/// As many as Nix makes, waiting twice as long each time.
const ATTEMPTS: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(250);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const REDIRECTS_MAX: usize = 10;

pub(super) fn run(input: &Input) -> Result<(), String> {
    let out = PathBuf::from(input.attribute("out")?);
    let url = input.attribute("url")?;
    let fetch = Fetch { input, out: &out, is_xz: url.as_bytes().ends_with(b".xz") };
    if input.attribute("outputHashMode")? == "flat" {
        for mirror in &input.hashed_mirrors {
            if fetch.from(&mirrored(input, mirror)?).is_ok() {
                return Ok(());
            }
        }
    }
    fetch.from(&url)
}

/// Where a mirror has a file of this hash.
fn mirrored(input: &Input, mirror: &str) -> Result<String, String> {
    let text = input.attribute("outputHash")?;
    let hash = match input.optional("outputHashAlgo").filter(|algorithm| !algorithm.is_empty()) {
        Some(algorithm) => {
            let algorithm: HashAlgorithm = algorithm.parse().map_err(failed("outputHashAlgo"))?;
            Hash::parse_as(algorithm, &text)
        }
        None => Hash::parse(&text),
    };
    let hash = hash.map_err(failed("outputHash"))?;
    let slash = if mirror.ends_with('/') { "" } else { "/" };
    Ok(format!("{mirror}{slash}{}/{}", hash.algorithm(), hash.to_base16()))
}

struct Fetch<'a> {
    input: &'a Input,
    out: &'a Path,
    /// Judged by the derivation's own URL, also for what a mirror has.
    is_xz: bool,
}

impl Fetch<'_> {
    fn from(&self, url: &str) -> Result<(), String> {
        let parsed = Url::parse(url).map_err(failed(format!("'{url}' is not a valid URL")))?;
        if !self.input.flag("unpack") {
            self.download(&parsed, self.out)?;
        } else if parsed.scheme() == "file" {
            self.unpack(&local_path(&parsed)?)?;
        } else {
            // In the build directory, which goes away.
            let archive = PathBuf::from("archive");
            self.download(&parsed, &archive)?;
            self.unpack(&archive)?;
        }
        if self.input.flag("executable") {
            fs::set_permissions(self.out, Permissions::from_mode(0o755))
                .map_err(failed(format!("making '{}' executable", self.out.display())))?;
        }
        Ok(())
    }

    fn unpack(&self, archive: &Path) -> Result<(), String> {
        let file = File::open(archive).map_err(failed(format!("opening '{}'", archive.display())))?;
        let mut file = BufReader::new(file);
        let plain: &mut dyn Read =
            if self.is_xz { &mut liblzma::bufread::XzDecoder::new_multi_decoder(file) } else { &mut file };
        let (Some(parent), Some(name)) = (self.out.parent(), self.out.file_name()) else {
            return Err(format!("'{}' is no output path", self.out.display()));
        };
        let parent = Dir::open_ambient_dir(parent, ambient_authority())
            .map_err(failed(format!("opening '{}'", parent.display())))?;
        unpack_nar(plain, &parent, name, Limits::of_size(u64::MAX))
            .map_err(|error| format!("unpacking '{}': {}", archive.display(), chain(&error)))?;
        Ok(())
    }

    fn download(&self, url: &Url, to: &Path) -> Result<(), String> {
        match url.scheme() {
            "file" => {
                let path = local_path(url)?;
                let mut from = File::open(&path).map_err(|error| unable(url, &plain(&error)))?;
                let mut file = create(to)?;
                std::io::copy(&mut from, &mut file).map_err(|error| unable(url, &error.to_string()))?;
                Ok(())
            }
            "http" | "https" => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.map_err(failed("starting to download"))?.block_on(self.download_http(url, to))
            }
            scheme => Err(unable(url, &format!("URLs of scheme '{scheme}' are not supported"))),
        }
    }

    async fn download_http(&self, url: &Url, to: &Path) -> Result<(), String> {
        let client = self.client().map_err(|error| unable(url, &chain(&error)))?;
        let mut wait = FIRST_WAIT;
        for attempt in 1.. {
            match self.attempt(&client, url, to).await {
                Ok(()) => return Ok(()),
                Err(Failed { message, again: true }) if attempt < ATTEMPTS => {
                    eprintln!("warning: {message}; retrying in {} ms", wait.as_millis());
                    tokio::time::sleep(wait).await;
                    wait *= 2;
                }
                Err(Failed { message, .. }) => return Err(message),
            }
        }
        Ok(())
    }

    fn client(&self) -> reqwest::Result<reqwest::Client> {
        let mut client = reqwest::Client::builder()
            .user_agent(concat!("harmonia-daemon/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::limited(REDIRECTS_MAX))
            .tls_danger_accept_invalid_certs(true)
            .no_proxy();
        let proxies = &self.input.proxies;
        let exceptions = proxies.get("no_proxy").and_then(|hosts| reqwest::NoProxy::from_string(hosts));
        for name in ["http_proxy", "https_proxy", "all_proxy"] {
            let Some(proxy) = proxies.get(name).map(String::as_str).filter(|proxy| !proxy.is_empty()) else { continue };
            let proxy = match name {
                "http_proxy" => reqwest::Proxy::http(proxy),
                "https_proxy" => reqwest::Proxy::https(proxy),
                _ => reqwest::Proxy::all(proxy),
            };
            client = client.proxy(proxy?.no_proxy(exceptions.clone()));
        }
        client.build()
    }

    async fn attempt(&self, client: &reqwest::Client, url: &Url, to: &Path) -> Result<(), Failed> {
        let fatal = |message| Failed { message, again: false };
        let broken = |error: &reqwest::Error| Failed { message: unable(url, &chain(error)), again: true };
        let mut request = client.get(url.clone());
        if let Some((login, password)) = url.host_str().and_then(|host| password_for(&self.input.netrc, host)) {
            request = request.basic_auth(login, Some(password));
        }
        let mut response = request.send().await.map_err(|error| broken(&error))?;
        let status = response.status();
        if !status.is_success() {
            let again = status.is_server_error() || matches!(status.as_u16(), 408 | 429);
            return Err(Failed { message: unable(url, &format!("HTTP error {}", status.as_u16())), again });
        }
        let mut file = create(to).map_err(fatal)?;
        while let Some(piece) = response.chunk().await.map_err(|error| broken(&error))? {
            file.write_all(&piece).map_err(|error| fatal(format!("writing '{}': {error}", to.display())))?;
        }
        Ok(())
    }
}

/// Why an attempt failed, and whether another one may succeed.
struct Failed {
    message: String,
    again: bool,
}

fn create(path: &Path) -> Result<File, String> {
    File::create(path).map_err(failed(format!("opening file '{}'", path.display())))
}

fn local_path(url: &Url) -> Result<PathBuf, String> {
    url.to_file_path().map_err(|()| format!("'{url}' names no file of this machine"))
}

fn unable(url: &Url, reason: &str) -> String {
    format!("unable to download '{url}': {reason}")
}

fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split_once(" (os error").map_or(text.clone(), |(words, _)| words.to_owned())
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Login and password for a host: those of its `machine`, or else those of `default`.
fn password_for(netrc: &str, host: &str) -> Option<(String, String)> {
    let mut words = netrc.lines().filter(|line| !line.trim_start().starts_with('#')).flat_map(str::split_whitespace);
    let (mut matches, mut login, mut password) = (false, None, None);
    while let Some(word) = words.next() {
        match word {
            "machine" | "default" => {
                if matches && login.is_some() {
                    break;
                }
                matches = word == "default" || words.next() == Some(host);
            }
            "login" if matches => login = words.next().map(str::to_owned),
            "password" if matches => password = words.next().map(str::to_owned),
            _ => {}
        }
    }
    Some((login?, password.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_has_its_own_password() {
        let netrc = "# machine no login no password no\nmachine a.example login anna\n  password p1\n\
                     machine b.example login bert password p2\ndefault login any password p3\n";
        let found = |host| password_for(netrc, host);
        assert_eq!(found("a.example"), Some(("anna".to_owned(), "p1".to_owned())));
        assert_eq!(found("b.example"), Some(("bert".to_owned(), "p2".to_owned())));
        assert_eq!(found("c.example"), Some(("any".to_owned(), "p3".to_owned())));
        assert_eq!(password_for("machine a login x", "b"), None);
    }
}
