//! An HTTP server that answers what the test says, and remembers what it was asked. Start at [`ScriptedServer`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Most bytes of a request's body.
const BODY_BYTES_MAX: usize = 16 << 20;

/// A request as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// `POST`.
    pub method: String,
    /// Path, with query.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Raw bytes.
    pub body: Vec<u8>,
}

impl Received {
    /// The first header of this name (in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the request's body is JSON")
    }
}

/// Answers by what came.
type AnswerBy = Arc<dyn Fn(&Received) -> Answer + Send + Sync>;

/// What to answer.
#[derive(Debug, Clone)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Take the request, and go away without a word.
    silent: bool,
}

impl Answer {
    /// JSON.
    pub fn json(status: u16, body: &Value) -> Self {
        Self::text(status, &body.to_string()).header("content-type", "application/json")
    }

    /// Text.
    pub fn text(status: u16, body: &str) -> Self {
        Self { status, headers: Vec::new(), body: body.as_bytes().to_vec(), silent: false }
    }

    /// Takes the request and closes the connection: the caller cannot know what became of it.
    pub fn nothing() -> Self {
        Self { silent: true, ..Self::text(200, "") }
    }

    /// With a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

#[derive(Default)]
struct Script {
    /// Method, path, answer; the first that fits is used up.
    answers: Vec<(String, String, Answer)>,
    /// For whatever nothing else fits.
    otherwise: Option<AnswerBy>,
    received: Vec<Received>,
}

/// A server on a loopback port, until it is dropped.
pub struct ScriptedServer {
    url: String,
    script: Arc<Mutex<Script>>,
    task: JoinHandle<()>,
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ScriptedServer {
    /// Starts one.
    ///
    /// # Panics
    /// When there is no port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let script = Arc::new(Mutex::new(Script::default()));
        let shared = Arc::clone(&script);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A client that goes away ends its own connection only.
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Self { url, script, task }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Answers the next request with this method and path (without query) so. Answers of the same are used up in order.
    pub fn answer(&self, method: &str, path: &str, answer: Answer) {
        lock(&self.script).answers.push((method.to_owned(), path.to_owned(), answer));
    }

    /// Answers whatever no other answer is for so, from now on.
    pub fn answer_everything(&self, answer: Answer) {
        self.answer_everything_by(move |_| answer.clone());
    }

    /// Answers whatever no other answer is for by what came, from now on.
    pub fn answer_everything_by(&self, answer: impl Fn(&Received) -> Answer + Send + Sync + 'static) {
        lock(&self.script).otherwise = Some(Arc::new(answer));
    }

    /// What came, in order.
    pub fn requests(&self) -> Vec<Received> {
        lock(&self.script).received.clone()
    }

    /// Answers that nobody asked for.
    pub fn unused(&self) -> Vec<String> {
        lock(&self.script).answers.iter().map(|(method, path, _)| format!("{method} {path}")).collect()
    }
}

fn lock(script: &Mutex<Script>) -> MutexGuard<'_, Script> {
    script.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(stream: TcpStream, script: Arc<Mutex<Script>>) {
    let mut stream = BufReader::new(stream);
    while let Some(received) = read(&mut stream).await {
        let answer = {
            let mut script = lock(&script);
            let path = received.target.split('?').next().unwrap_or_default();
            let fits = |(method, wanted, _): &(String, String, Answer)| *method == received.method && wanted == path;
            let scripted = script.answers.iter().position(fits).map(|place| script.answers.remove(place).2);
            let answer = scripted.or_else(|| script.otherwise.as_ref().map(|answer| answer(&received)));
            script.received.push(received);
            answer.unwrap_or_else(|| Answer::text(404, "nothing is scripted here"))
        };
        if answer.silent || write(&mut stream, &answer).await.is_err() {
            return;
        }
    }
}

/// The next request of a connection; `None` when there is none that can be read.
async fn read(stream: &mut BufReader<TcpStream>) -> Option<Received> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok().filter(|length| *length > 0)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).await.ok()?;
        let Some((name, value)) = header.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length").and_then(|(_, length)| length.parse().ok());
    let mut body = vec![0; length.filter(|length| *length <= BODY_BYTES_MAX).unwrap_or(0)];
    stream.read_exact(&mut body).await.ok()?;
    Some(Received { method, target, headers, body })
}

async fn write(stream: &mut BufReader<TcpStream>, answer: &Answer) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} Scripted\r\ncontent-length: {}\r\n", answer.status, answer.body.len());
    for (name, value) in &answer.headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&answer.body).await?;
    stream.flush().await
}
