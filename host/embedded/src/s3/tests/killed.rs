//! An endpoint in a process of its own, which is killed, or has a disk of its own that is full.

use tokio::io::AsyncWriteExt;

use super::*;

/// Not a test of its own: the endpoint in a process that `an_endpoint_killed_…` and `a_full_disk_…` start.
#[tokio::test]
async fn endpoint_process() {
    let Some(folder) = std::env::var_os("HARMONIA_TEST_S3_FOLDER") else { return };
    let endpoint = S3Endpoint::start(options(Path::new(&folder)), Arc::new(SystemClock)).await.expect("starts");
    println!("endpoint={}", endpoint.url());
    // Ends with its parent at the latest.
    tokio::task::spawn_blocking(|| drop(std::io::copy(&mut std::io::stdin(), &mut std::io::sink())))
        .await
        .expect("reads");
}

struct EndpointProcess {
    child: tokio::process::Child,
    url: String,
}

impl EndpointProcess {
    /// `wrapper` is a shell command that runs its arguments.
    async fn start(folder: &Path, wrapper: Option<&str>) -> Self {
        let us = std::env::current_exe().expect("our path");
        let mut command = match wrapper {
            None => tokio::process::Command::new(&us),
            Some(script) => {
                let mut command = tokio::process::Command::new("unshare");
                command.args(["--mount", "--map-root-user", "--", "sh", "-euc", script, "sh"]).arg(&us);
                command
            }
        };
        command
            .args(["--exact", "s3::tests::killed::endpoint_process", "--nocapture"])
            .env("HARMONIA_TEST_S3_FOLDER", folder);
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("spawns");
        let mut lines =
            tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stdout.take().expect("piped")));
        let url = loop {
            let line = lines.next_line().await.expect("reads").expect("prints its address");
            if let Some((_, url)) = line.split_once("endpoint=") {
                break url.to_owned();
            }
        };
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { child, url }
    }
}

#[tokio::test]
async fn an_endpoint_killed_in_the_middle_of_a_put_has_nothing_of_it() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let mut process = EndpointProcess::start(folder.path(), None).await;
    let signer = client(&process.url, SECRET_KEY, RequestChecksumCalculation::WhenRequired);
    let body = vec![7u8; 8 << 20];
    signer.put_object().bucket(BUCKET).key("whole").body(ByteStream::from(body.clone())).send().await.expect("puts");
    let request = signer
        .put_object()
        .bucket(BUCKET)
        .key("half")
        .content_length(body.len() as i64)
        .presigned(PresigningConfig::expires_in(Duration::from_mins(1)).expect("valid"))
        .await
        .expect("presigns");
    let address = process.url.strip_prefix("http://").expect("plain");
    let mut connection = TcpStream::connect(address).await.expect("connects");
    let (_, target) = request.uri().split_once(address).expect("ours");
    let mut head = format!("PUT {target} HTTP/1.1\r\nhost: {address}\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in request.headers().filter(|(name, _)| !matches!(*name, "host" | "content-length")) {
        head.extend([name, ": ", value, "\r\n"]);
    }
    connection.write_all(head.as_bytes()).await.expect("writes");
    connection.write_all(b"\r\n").await.expect("writes");
    connection.write_all(&body[..body.len() / 2]).await.expect("writes");
    let temporary = folder.path().join("tmp");
    let has_some = || {
        std::fs::read_dir(&temporary)
            .expect("readable")
            .flatten()
            .any(|file| file.metadata().is_ok_and(|m| m.len() > 1 << 20))
    };
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !has_some() {
        assert!(std::time::Instant::now() < deadline, "the first half never arrived");
        tokio::task::yield_now().await;
    }
    process.child.kill().await.expect("kills");
    assert!(has_some(), "killed in the middle");

    let endpoint = S3Endpoint::start(options(folder.path()), Arc::new(SystemClock)).await.expect("starts again");
    let client = client(&endpoint.url(), SECRET_KEY, RequestChecksumCalculation::WhenRequired);
    let world = World { folder, endpoint, client, http: reqwest::Client::new() };
    assert_eq!(world.temporary_files(), 0);
    assert_eq!(world.get("half").await, None);
    assert_eq!(world.get("whole").await, Some(body));
}

#[tokio::test]
async fn a_full_disk_is_said_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let script = r#"mount -t tmpfs -o size=2m tmpfs "$HARMONIA_TEST_S3_FOLDER"; exec "$@""#;
    let process = EndpointProcess::start(folder.path(), Some(script)).await;
    let client = client(&process.url, SECRET_KEY, RequestChecksumCalculation::WhenRequired);
    let put = |key: &'static str, size: usize| {
        client.put_object().bucket(BUCKET).key(key).body(ByteStream::from(vec![1u8; size])).send()
    };
    put("fits", 1 << 20).await.expect("fits");
    let error = put("too-big", 3 << 20).await.expect_err("does not fit");
    assert_eq!(error.code(), Some("InsufficientStorage"));
    assert_eq!(error.raw_response().expect("answered").status().as_u16(), 507);
    assert!(client.head_object().bucket(BUCKET).key("too-big").send().await.is_err());
    let copy = client.copy_object().copy_source(format!("{BUCKET}/fits")).bucket(BUCKET).key("copied").send().await;
    assert_eq!(copy.expect_err("does not fit").code(), Some("InsufficientStorage"));
    assert!(client.head_object().bucket(BUCKET).key("copied").send().await.is_err());
    put("fits-too", 512 << 10).await.expect("what the failed one took is free again");
}
