//! Servers that never finish. Start at [`Drip`] and [`Held`].

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// Between two bytes of a drip.
const DRIP: Duration = Duration::from_millis(20);

/// A server that answers byte by byte, for ever, so that the connection is never idle for long.
pub struct Drip {
    url: String,
    task: JoinHandle<()>,
}

impl Drop for Drip {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Drip {
    /// Drips its body.
    pub async fn start() -> Self {
        let (url, task) = serve(|mut stream| async move {
            let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n";
            if read_head(&mut stream).await.is_none() || stream.write_all(head.as_bytes()).await.is_err() {
                return;
            }
            drip(stream).await;
        })
        .await;
        Self { url, task }
    }

    /// Drips the head already: one endless header.
    pub async fn start_in_headers() -> Self {
        let (url, task) = serve(|mut stream| async move {
            let head = "HTTP/1.1 200 OK\r\nx-endless: ";
            if read_head(&mut stream).await.is_none() || stream.write_all(head.as_bytes()).await.is_err() {
                return;
            }
            drip(stream).await;
        })
        .await;
        Self { url, task }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }
}

async fn drip(mut stream: TcpStream) {
    let mut ticks = tokio::time::interval(DRIP);
    loop {
        ticks.tick().await;
        if stream.write_all(b"x").await.is_err() {
            return;
        }
    }
}

/// A server that takes requests, says that it has them, and answers `200 held` when it is told to.
pub struct Held {
    url: String,
    task: JoinHandle<()>,
    arrived: mpsc::UnboundedReceiver<()>,
    release: watch::Sender<bool>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Held {
    /// Starts one.
    pub async fn start() -> Self {
        let (tell, arrived) = mpsc::unbounded_channel();
        let (release, released) = watch::channel(false);
        let (url, task) = serve(move |mut stream| {
            let (tell, mut released) = (tell.clone(), released.clone());
            async move {
                if read_head(&mut stream).await.is_none() || tell.send(()).is_err() {
                    return;
                }
                if released.wait_for(|released| *released).await.is_ok() {
                    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nheld";
                    // A client that went away misses its answer, and nothing else.
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            }
        })
        .await;
        Self { url, task, arrived, release }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Waits for a request.
    ///
    /// # Panics
    /// When there can be none any more.
    pub async fn arrived(&mut self) {
        self.arrived.recv().await.expect("the server runs");
    }

    /// Answers all that wait, and whatever else comes.
    pub fn release(&self) {
        self.release.send_replace(true);
    }
}

async fn serve<F>(answer: impl Fn(TcpStream) -> F + Send + 'static) -> (String, JoinHandle<()>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    });
    (url, task)
}

/// Reads up to the empty line behind the headers; `None` when the client went away.
async fn read_head(stream: &mut TcpStream) -> Option<()> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        let count = stream.read(&mut buffer).await.ok().filter(|count| *count > 0)?;
        head.extend_from_slice(&buffer[..count]);
    }
    Some(())
}
