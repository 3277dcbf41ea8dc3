//! Webhooks as fast as they are taken, or at a fixed rate: `bench/webhooks.sh` starts the server and runs this.
//!
//! webhooks send --url URL --secret FILE --payload FILE --accepted FILE --repositories 100 --first-id 1 [--connections 16]
//!     [--seconds 10] [--rate 0] [--redeliver 100] [--signature NAME=PREFIX] [--delivery NAME] [--header NAME=VALUE]
//! webhooks forge hang|busy [--key FILE]
//!
//! `send` puts a commit, a repository and a delivery id of its own into every copy of the payload (`@COMMIT@`, `@ID@` and
//! `@NAME@`), signs it, and sends it over connections that stay open. With a rate, latency counts from the moment at which
//! a delivery was due, so that a server that falls behind cannot hide it. Ids that were answered 202 go to a file, one a
//! line: the database must have each of them. Every so many deliveries one is sent a second time.
//!
//! `forge` is what the server believes to be the forge's API: it accepts and never answers, or answers 503 at once. It
//! prints its port, and at the end of its standard input how many connections came.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aws_lc_rs::{hmac, rsa};
use base64::Engine as _;
use reqwest::header::{HeaderName, HeaderValue};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Longest wait for an answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);
/// Most bytes of a request that the forge reads before it answers.
const HEAD_BYTES_MAX: usize = 64 << 10;

struct Sending {
    url: String,
    secret: hmac::Key,
    payload: String,
    repositories: u64,
    first_id: u64,
    signature: (HeaderName, String),
    delivery: HeaderName,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Deliveries a second; 0: as fast as answers come.
    rate: f64,
    redeliver: u64,
    begin: Instant,
    end: Instant,
    next: AtomicU64,
    /// Tells runs over one database apart.
    run: u64,
}

#[derive(Default)]
struct Measured {
    latencies_ms: Vec<f64>,
    accepted: Vec<String>,
    redelivered: usize,
    /// By status, or why there was none.
    refused: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match words.first().map(String::as_str) {
        Some("send") => send(&words[1..]).await,
        Some("forge") => forge(&words[1..]).await,
        _ => Err("`send` or `forge`, see the head of this file".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn options(words: &[String]) -> Result<Vec<(&str, &str)>, Error> {
    let pairs = words.chunks(2).map(|pair| match pair {
        [name, value] => Ok((name.as_str(), value.as_str())),
        _ => Err(format!("{} needs a value", pair[0]).into()),
    });
    pairs.collect()
}

fn named(pair: &str) -> Result<(HeaderName, &str), Error> {
    let (name, value) = pair.split_once('=').ok_or_else(|| format!("{pair}: NAME=VALUE"))?;
    Ok((HeaderName::from_bytes(name.as_bytes())?, value))
}

async fn send(words: &[String]) -> Result<(), Error> {
    let (mut connections, mut seconds, mut rate, mut redeliver) = (16_u32, 10_u64, 0.0, 100);
    let (mut repositories, mut first_id) = (1, 1);
    let (mut url, mut secret, mut payload, mut accepted_file) = (None, None, None, None);
    let mut signature = (HeaderName::from_static("x-signature"), String::new());
    let mut delivery = HeaderName::from_static("x-delivery");
    let mut headers = vec![(HeaderName::from_static("content-type"), HeaderValue::from_static("application/json"))];
    for (name, value) in options(words)? {
        match name {
            "--url" => url = Some(value.to_owned()),
            "--secret" => secret = Some(std::fs::read(value)?),
            "--payload" => payload = Some(std::fs::read_to_string(value)?),
            "--accepted" => accepted_file = Some(PathBuf::from(value)),
            "--repositories" => repositories = value.parse()?,
            "--first-id" => first_id = value.parse()?,
            "--connections" => connections = value.parse()?,
            "--seconds" => seconds = value.parse()?,
            "--rate" => rate = value.parse()?,
            "--redeliver" => redeliver = value.parse()?,
            "--signature" => signature = named(value).map(|(name, prefix)| (name, prefix.to_owned()))?,
            "--delivery" => delivery = HeaderName::from_bytes(value.as_bytes())?,
            "--header" => headers.push(named(value).and_then(|(name, value)| Ok((name, value.parse()?)))?),
            _ => return Err(format!("{name} is unknown").into()),
        }
    }
    let (Some(url), Some(secret), Some(payload), Some(accepted_file)) = (url, secret, payload, accepted_file) else {
        return Err("--url, --secret, --payload and --accepted are needed".into());
    };
    // Before the clock starts: each reads the certificates that it trusts.
    let client = || reqwest::Client::builder().pool_max_idle_per_host(1).timeout(ANSWER_TIME_MAX).build();
    let clients = (0..connections).map(|_| client()).collect::<Result<Vec<_>, _>>()?;
    let begin = Instant::now();
    let sending = Arc::new(Sending {
        url,
        secret: hmac::Key::new(hmac::HMAC_SHA256, secret.trim_ascii()),
        payload,
        repositories,
        first_id,
        signature,
        delivery,
        headers,
        rate,
        redeliver,
        begin,
        end: begin + Duration::from_secs(seconds),
        next: AtomicU64::new(0),
        run: rand::random(),
    });
    let mut tasks = tokio::task::JoinSet::new();
    for client in clients {
        tasks.spawn(connection(Arc::clone(&sending), client));
    }
    let mut all = Measured::default();
    while let Some(measured) = tasks.join_next().await {
        let measured = measured??;
        all.latencies_ms.extend(measured.latencies_ms);
        all.accepted.extend(measured.accepted);
        all.refused.extend(measured.refused);
        all.redelivered += measured.redelivered;
    }
    let took = begin.elapsed().as_secs_f64();
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(accepted_file)?;
    let mut lines = String::new();
    for id in &all.accepted {
        lines.push_str(id);
        lines.push('\n');
    }
    file.write_all(lines.as_bytes())?;
    print(&mut all, took, connections);
    Ok(())
}

fn print(all: &mut Measured, took: f64, connections: u32) {
    all.latencies_ms.sort_unstable_by(f64::total_cmp);
    let rank = |part: f64| {
        let place = (part * all.latencies_ms.len() as f64) as usize;
        all.latencies_ms.get(place.min(all.latencies_ms.len().saturating_sub(1))).copied().unwrap_or_default()
    };
    println!(
        "{:.0} webhooks/s accepted ({} in {took:.1} s, {connections} connections; p50 {:.1} ms, p99 {:.1} ms, \
         longest {:.1} ms; {} sent again, {} refused)",
        all.accepted.len() as f64 / took,
        all.accepted.len(),
        rank(0.5),
        rank(0.99),
        rank(1.0),
        all.redelivered,
        all.refused.len(),
    );
    all.refused.dedup();
    for reason in all.refused.iter().take(5) {
        eprintln!("refused: {reason}");
    }
}

/// One client with one connection: what a forge's worker is.
async fn connection(sending: Arc<Sending>, client: reqwest::Client) -> Result<Measured, Error> {
    let mut measured = Measured::default();
    loop {
        let number = sending.next.fetch_add(1, Ordering::Relaxed);
        let due = if sending.rate > 0.0 {
            let due = sending.begin + Duration::from_secs_f64(number as f64 / sending.rate);
            tokio::time::sleep_until(due.into()).await;
            due
        } else {
            Instant::now()
        };
        if due >= sending.end {
            return Ok(measured);
        }
        let id = format!("{:016x}-{number}", sending.run);
        let request = request(&sending, &client, number, &id)?;
        let again = request.try_clone().filter(|_| sending.redeliver > 0 && number.is_multiple_of(sending.redeliver));
        let answer = client.execute(request).await;
        measured.latencies_ms.push(due.elapsed().as_secs_f64() * 1e3);
        match answer {
            Ok(answer) => {
                let status = answer.status().as_u16();
                let text = answer.text().await.unwrap_or_default();
                if status == 202 && text.contains("queued") {
                    measured.accepted.push(id);
                } else {
                    measured.refused.push(format!("{status} {text}"));
                }
            }
            Err(error) => measured.refused.push(harmonia_core::chain(&error)),
        }
        if let Some(again) = again {
            let text = client.execute(again).await?.text().await?;
            if !text.contains("known already") {
                return Err(format!("a redelivery was answered {text}").into());
            }
            measured.redelivered += 1;
        }
    }
}

fn request(sending: &Sending, client: &reqwest::Client, number: u64, id: &str) -> Result<reqwest::Request, Error> {
    let repository = sending.first_id + number % sending.repositories;
    let body = sending
        .payload
        .replace("@COMMIT@", &format!("{:024x}{number:016x}", sending.run))
        .replace("@ID@", &repository.to_string())
        .replace("@NAME@", &format!("repository-{repository}"));
    let mac: String = hmac::sign(&sending.secret, body.as_bytes()).as_ref().iter().fold(String::new(), |text, byte| {
        use std::fmt::Write as _;
        let mut text = text;
        let _ = write!(text, "{byte:02x}");
        text
    });
    let mut request = client
        .post(&sending.url)
        .header(&sending.signature.0, format!("{}{mac}", sending.signature.1))
        .header(&sending.delivery, id);
    for (name, value) in &sending.headers {
        request = request.header(name, value);
    }
    Ok(request.body(body).build()?)
}

async fn forge(words: &[String]) -> Result<(), Error> {
    let (how, rest) = words.split_first().ok_or("hang or busy")?;
    let hangs = match how.as_str() {
        "hang" => true,
        "busy" => false,
        _ => return Err(format!("{how}: hang or busy").into()),
    };
    for (name, value) in options(rest)? {
        match name {
            "--key" => std::fs::write(value, private_key()?)?,
            _ => return Err(format!("{name} is unknown").into()),
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?.port());
    let mut connections = 0_u64;
    let mut held: Vec<TcpStream> = Vec::new();
    let mut input = tokio::io::stdin();
    let mut ignored = [0; 64];
    loop {
        tokio::select! {
            read = input.read(&mut ignored) => if read? == 0 { break },
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                connections += 1;
                if hangs {
                    held.push(stream);
                } else {
                    tokio::spawn(busy(stream));
                }
            }
        }
    }
    println!("{connections} connections to the forge's API");
    Ok(())
}

async fn busy(mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut part = [0; 4096];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
        let read = stream.read(&mut part).await?;
        if read == 0 {
            return Ok(());
        }
        head.extend_from_slice(&part[..read]);
    }
    stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await?;
    stream.shutdown().await
}

/// An RSA key as PEM (PKCS #8).
fn private_key() -> Result<String, Error> {
    let pair = rsa::KeyPair::generate(rsa::KeySize::Rsa2048)?;
    let der = aws_lc_rs::encoding::AsDer::<aws_lc_rs::encoding::Pkcs8V1Der>::as_der(&pair)?;
    let text = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
    let lines: Vec<&str> = (0..text.len()).step_by(64).map(|at| &text[at..(at + 64).min(text.len())]).collect();
    Ok(format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n")))
}
