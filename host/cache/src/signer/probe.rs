//! What the object store enforces of a presigned PUT. Stores differ, and some enforce next to nothing: a deployment
//! should know what stands between a leaked URL and its cache. Start at [`Signer::probe`].

use std::sync::atomic::Ordering;
use std::time::Duration;

use harmonia_core::limits::SLOT_SECONDS;
use harmonia_nix::Sha256Hash;
use time::ext::NumericalDuration as _;

use super::{SignError, Signer};
use crate::{ObjectError, PresignedPut, PutContract, keys};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
const RIGHT: &[u8] = b"what was promised";
const WRONG: &[u8] = b"something of 17 b";
const LONGER: &[u8] = b"what was promised, and more";

/// Which constraints of a presigned PUT the store enforces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent findings, not a state")]
pub struct ProbeReport {
    /// A URL is worth nothing after its time.
    pub expiry: bool,
    /// A body of another length is refused.
    pub length: bool,
    /// Other bytes are refused, and were not stored.
    pub checksum: bool,
    /// An object that exists cannot be replaced. When `false`, signers do not ask for it any more.
    pub write_once: bool,
    /// A HEAD tells the SHA-256. When not, signers read objects to check them, which costs time and traffic.
    pub reports_checksum: bool,
    /// A PUT without any signature is refused.
    pub signature: bool,
}

impl ProbeReport {
    /// What an operator should know, a sentence each; nothing when the store enforces everything.
    pub fn weaknesses(&self) -> Vec<&'static str> {
        let sentences = [
            (self.signature, "the bucket can be written without credentials: forbid anonymous writes"),
            (self.expiry, "expired upload URLs still work: whoever gets hold of one can use it for ever"),
            (self.length, "upload URLs do not bound the size of what is sent"),
            (self.checksum, "upload URLs accept other bytes than promised: signers find out before they publish"),
            (self.write_once, "an upload URL can replace an object that exists, until it expires"),
            (self.reports_checksum, "the store tells no SHA-256: signers read every object to check it, which is slow"),
        ];
        sentences.into_iter().filter(|(holds, _)| !holds).map(|(_, sentence)| sentence).collect()
    }
}

impl Signer {
    /// Tries out what the store enforces, with small objects below `probe/` that are deleted again.
    ///
    /// Fails when not even a correct upload works. Meant for start-up and for the doctor.
    pub async fn probe(&self) -> Result<ProbeReport, SignError> {
        let http = reqwest::Client::builder().timeout(REQUEST_TIMEOUT).build();
        let http = http.map_err(|cause| refused("make an HTTP client", "client", cause))?;
        let prefix = format!("{}{:032x}-", keys::PROBE_PREFIX, rand::random::<u128>());
        let probe = Probe { signer: self, http, prefix };
        let report = probe.run().await;
        for name in Probe::NAMES {
            if let Err(error) = self.store().delete(&probe.key(name)).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "could not delete a probe");
            }
        }
        let report = report?;
        self.inner.write_once.store(report.write_once, Ordering::Relaxed);
        Ok(report)
    }
}

struct Probe<'a> {
    signer: &'a Signer,
    http: reqwest::Client,
    prefix: String,
}

impl Probe<'_> {
    const NAMES: [&'static str; 5] = ["right", "checksum", "length", "expiry", "signature"];

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    async fn run(&self) -> Result<ProbeReport, SignError> {
        let mut write_once = true;
        let mut status = self.put("right", RIGHT, RIGHT, true, false).await?;
        if !is_success(status) {
            // Some stores refuse conditional writes altogether.
            write_once = false;
            status = self.put("right", RIGHT, RIGHT, false, false).await?;
        }
        let head = self.signer.store().head(&self.key("right")).await?;
        let Some(head) = head.filter(|head| is_success(status) && head.size == RIGHT.len() as u64) else {
            let cause = std::io::Error::other("a presigned PUT exactly as signed does not store the object");
            return Err(refused("use the object store for uploads", &format!("HTTP {status}"), cause));
        };
        if write_once {
            write_once = !is_success(self.put("right", RIGHT, RIGHT, true, false).await?);
        }
        Ok(ProbeReport {
            write_once,
            reports_checksum: head.sha256 == Some(Sha256Hash::of(RIGHT)),
            checksum: self.is_refused("checksum", RIGHT, WRONG, false).await?,
            length: self.is_refused("length", RIGHT, LONGER, false).await?,
            expiry: self.is_refused("expiry", RIGHT, RIGHT, true).await?,
            signature: self.is_anonymous_refused().await?,
        })
    }

    /// Whether what was sent is refused, and not stored either.
    async fn is_refused(
        &self,
        name: &str,
        promised: &[u8],
        sent: &'static [u8],
        expired: bool,
    ) -> Result<bool, SignError> {
        let status = self.put(name, promised, sent, false, expired).await?;
        Ok(!is_success(status) && self.signer.store().head(&self.key(name)).await?.is_none())
    }

    async fn is_anonymous_refused(&self) -> Result<bool, SignError> {
        let signed = self.presign("signature", RIGHT, RIGHT, false, false).await?;
        let url = signed.url.split('?').next().unwrap_or_default().to_owned();
        let status = self.send(PresignedPut { url, headers: Vec::new() }, RIGHT).await?;
        Ok(!is_success(status) && self.signer.store().head(&self.key("signature")).await?.is_none())
    }

    async fn presign(
        &self,
        name: &str,
        promised: &[u8],
        sent: &[u8],
        write_once: bool,
        expired: bool,
    ) -> Result<PresignedPut, SignError> {
        let contract = PutContract {
            key: &self.key(name),
            length: promised.len() as u64,
            // When the length is what is wrong, the checksum is right, so that it cannot be the reason.
            sha256: Sha256Hash::of(if promised.len() == sent.len() { promised } else { sent }),
            content_type: "application/octet-stream",
            content_encoding: None,
            write_once,
        };
        let now = self.signer.inner.options.clock.now();
        let age = if expired { (2 * SLOT_SECONDS as i64).seconds() } else { 0.seconds() };
        Ok(self.signer.store().presign_put(&contract, now - age, Duration::from_secs(SLOT_SECONDS)).await?)
    }

    async fn put(
        &self,
        name: &str,
        promised: &[u8],
        sent: &'static [u8],
        write_once: bool,
        expired: bool,
    ) -> Result<u16, SignError> {
        self.send(self.presign(name, promised, sent, write_once, expired).await?, sent).await
    }

    async fn send(&self, put: PresignedPut, body: &'static [u8]) -> Result<u16, SignError> {
        let mut request = self.http.put(&put.url).body(body);
        for (name, value) in &put.headers {
            // The true length of the body goes out in any case.
            if !name.eq_ignore_ascii_case("content-length") && !name.eq_ignore_ascii_case("host") {
                request = request.header(name, value);
            }
        }
        match request.send().await {
            Ok(answer) => Ok(answer.status().as_u16()),
            Err(cause) => {
                let action = "probe the object store".to_owned();
                Err(ObjectError::unavailable(action, "no connection", cause.without_url()).into())
            }
        }
    }
}

fn is_success(status: u16) -> bool {
    (200..300).contains(&status)
}

fn refused(action: &str, code: &str, cause: impl std::error::Error + Send + Sync + 'static) -> SignError {
    ObjectError::Refused { action: action.to_owned(), code: code.to_owned(), cause: cause.into() }.into()
}
