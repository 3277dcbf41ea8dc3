//! The HTTP API as the CLI uses it: finds the server, sends the token, turns answers into values or clear errors.

use std::path::{Path, PathBuf};
use std::time::Duration;

use harmonia_core::api::ApiError;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::cli::ServerArgs;
use crate::exit::{Failure, chain};

/// Name of the file in `up`'s data directory that tells the CLI where the server is.
pub(crate) const SERVER_FILE: &str = "server.json";

/// Content of [`SERVER_FILE`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ServerFile {
    pub(crate) url: Url,
    pub(crate) token: String,
}

/// A server and the right to change something there.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    base: Url,
    token: Option<String>,
    http: reqwest::Client,
}

/// Why a call gave no answer.
#[derive(Debug)]
pub(crate) enum CallError {
    /// No answer at all.
    Unreachable(String),
    /// The server refused or failed.
    Refused { status: u16, error: ApiError },
    /// The answer made no sense.
    Garbled(String),
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Unreachable(text) => {
                Self::unreachable(text).hint("start one with `harmonia-ci up`, or name one with --server")
            }
            CallError::Refused { status: 503, error } => Self::unreachable(with_request(&error)),
            CallError::Refused { status: 401 | 403, error } => {
                Self::usage(with_request(&error)).hint("set HARMONIA_CI_TOKEN or --token to a valid API token")
            }
            CallError::Refused { status: 400 | 404 | 413 | 422, error } => Self::usage(with_request(&error)),
            CallError::Refused { error, .. } => Self::failed(with_request(&error)),
            CallError::Garbled(text) => Self::failed(text),
        }
    }
}

fn with_request(error: &ApiError) -> String {
    match &error.request_id {
        Some(id) => format!("{} (request {id})", error.message),
        None => error.message.clone(),
    }
}

/// Where `up` keeps its data unless told otherwise.
pub(crate) fn default_data_dir() -> Result<PathBuf, Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/harmonia-ci"));
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    state
        .or_else(home)
        .map(|folder| folder.join("harmonia-ci"))
        .ok_or_else(|| Failure::usage("neither XDG_STATE_HOME nor HOME is set").hint("name a folder with --data-dir"))
}

impl Client {
    /// The server named on the command line, else the one of `up`'s data directory.
    pub(crate) fn find(args: &ServerArgs) -> Result<Self, Failure> {
        let data_dir = match &args.data_dir {
            Some(folder) => folder.clone(),
            None => default_data_dir()?,
        };
        let file = read_server_file(&data_dir)?;
        let (url, token) = match (&args.server, file) {
            (Some(url), file) => {
                // The token of `up` is for its own server only.
                let own = file.filter(|file| file.url.origin() == url.origin()).map(|file| file.token);
                (url.clone(), args.token.clone().or(own))
            }
            (None, Some(file)) => (file.url, args.token.clone().or(Some(file.token))),
            (None, None) => {
                let message = format!("no server is named, and none was started with data in {}", data_dir.display());
                return Err(Failure::unreachable(message)
                    .hint("start one with `harmonia-ci up`, or name one with --server or HARMONIA_CI_SERVER"));
            }
        };
        Self::new(url, token)
    }

    /// A client of `base`.
    pub(crate) fn new(base: Url, token: Option<String>) -> Result<Self, Failure> {
        if !matches!(base.scheme(), "http" | "https") {
            return Err(Failure::usage(format!("'{base}' is not an http:// or https:// URL")));
        }
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .user_agent(concat!("harmonia-ci/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Failure::no_http(&error))?;
        Ok(Self { base, token, http })
    }

    /// URL of `path` on the server.
    pub(crate) fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        url.set_path(path);
        url.set_query(query);
        url
    }

    pub(crate) fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, self.url(path));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends, and turns everything but 2xx into an error.
    pub(crate) async fn send(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, CallError> {
        let answer = request.send().await.map_err(|error| {
            CallError::Unreachable(format!(
                "the server at {} does not answer: {}",
                self.base,
                chain(&error.without_url())
            ))
        })?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap_or_default();
        let error = serde_json::from_str(&text).unwrap_or_else(|_| ApiError {
            code: "unknown".to_owned(),
            message: format!("the server answered {status}: {}", text.chars().take(300).collect::<String>().trim()),
            request_id: None,
        });
        Err(CallError::Refused { status, error })
    }

    /// GET of a JSON answer.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CallError> {
        let answer = self.send(self.request(reqwest::Method::GET, path).timeout(Duration::from_mins(1))).await?;
        Self::json(answer).await
    }

    /// POST of a JSON body.
    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, CallError> {
        let request = self.request(reqwest::Method::POST, path).json(body).timeout(Duration::from_mins(1));
        Self::json(self.send(request).await?).await
    }

    /// Reads a JSON answer.
    pub(crate) async fn json<T: DeserializeOwned>(answer: reqwest::Response) -> Result<T, CallError> {
        let text = answer
            .text()
            .await
            .map_err(|error| CallError::Unreachable(format!("the answer broke off: {}", chain(&error))))?;
        serde_json::from_str(&text).map_err(|error| {
            CallError::Garbled(format!("the server's answer is not what this version expects: {error}"))
        })
    }
}

fn read_server_file(data_dir: &Path) -> Result<Option<ServerFile>, Failure> {
    let path = data_dir.join(SERVER_FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(Failure::usage(format!("could not read {}: {error}", path.display()))
                .hint("name the server with --server and --token, or run as the user that runs `up`"));
        }
    };
    serde_json::from_str(&text).map(Some).map_err(|error| {
        Failure::failed(format!("{} is damaged: {error}", path.display())).hint("start `harmonia-ci up` again")
    })
}
