//! Heads of HTTP/1 messages (RFC 9112): reading, understanding, passing on. Start at [`read`].

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use url::Url;

use crate::grant::Target;

/// Header fields of one request.
const HEADERS_MAX: usize = 100;
/// Header fields that are about one connection, not about the message (RFC 9110, 7.6.1), and `Expect`: nobody needs to be told
/// to go on who goes on anyway.
const OF_CONNECTION: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "proxy-authenticate",
    "te",
    "upgrade",
    "expect",
    "host",
];

/// A head, and what was read behind it.
pub(super) struct Head {
    pub(super) head: Vec<u8>,
    pub(super) rest: Vec<u8>,
}

/// Why there is no head.
#[derive(Debug)]
pub(super) enum HeadError {
    /// The other side hung up.
    Ended,
    TooLong,
}

/// Reads up to the empty line.
pub(super) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    mut bytes: Vec<u8>,
    bytes_max: usize,
) -> io::Result<Result<Head, HeadError>> {
    let mut looked_at = 0;
    loop {
        if let Some(end) = bytes[looked_at..].windows(4).position(|window| window == b"\r\n\r\n") {
            let end = looked_at + end + 4;
            if end > bytes_max {
                return Ok(Err(HeadError::TooLong));
            }
            let rest = bytes.split_off(end);
            return Ok(Ok(Head { head: bytes, rest }));
        }
        if bytes.len() >= bytes_max {
            return Ok(Err(HeadError::TooLong));
        }
        looked_at = bytes.len().saturating_sub(3);
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(Err(HeadError::Ended));
        }
    }
}

/// What a client wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// A tunnel.
    Connect(Target),
    /// That a request is passed on, with this head.
    Forward(Target, Vec<u8>),
}

/// A request's head as it was understood.
#[derive(Debug)]
pub(super) struct Parsed {
    /// Or what is wrong with it.
    pub(super) request: Result<Request, String>,
    /// `Proxy-Authorization`.
    pub(super) authorization: Option<Vec<u8>>,
}

/// Understands a request's head; `None`: it is no HTTP.
pub(super) fn parse(head: &[u8]) -> Option<Parsed> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    if !request.parse(head).ok()?.is_complete() {
        return None;
    }
    let (method, target, version) = (request.method?, request.path?, request.version?);
    let named = |name: &str| request.headers.iter().find(move |header| header.name.eq_ignore_ascii_case(name));
    let authorization = named("proxy-authorization").map(|header| header.value.to_vec());
    let wanted = if method == "CONNECT" {
        tunnel(target).map(Request::Connect)
    } else {
        forwarded(target).map(|(to, url)| {
            let head = rewritten(method, &url, version, request.headers);
            Request::Forward(to, head)
        })
    };
    Some(Parsed { request: wanted, authorization })
}

/// The target of `CONNECT host:port`. What a tunnel carries is not seen; it stands for https.
fn tunnel(authority: &str) -> Result<Target, String> {
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let is_bare = !authority.contains(['/', '?', '#', '@', '\\']);
    let url = Url::parse(&format!("https://{authority}/")).ok().filter(|_| has_port && is_bare);
    let url = url.ok_or("CONNECT needs a host and a port")?;
    Target::of(&url).map_err(str::to_owned)
}

fn forwarded(target: &str) -> Result<(Target, Url), String> {
    let url = Url::parse(target).ok().filter(|url| url.scheme() == "http");
    let url = url.ok_or("this is a proxy: it takes CONNECT, and requests for whole http:// URLs")?;
    Ok((Target::of(&url).map_err(str::to_owned)?, url))
}

/// The head for the server itself: one request, then the connection ends, so that the client's next one comes to us again.
fn rewritten(method: &str, url: &Url, version: u8, headers: &[httparse::Header<'_>]) -> Vec<u8> {
    let connection = headers.iter().filter(|header| header.name.eq_ignore_ascii_case("connection"));
    let mut named_by_connection: Vec<String> = Vec::new();
    for header in connection {
        named_by_connection.extend(String::from_utf8_lossy(header.value).split(',').map(tidy));
    }
    let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let mut head = format!("{method} {}{query} HTTP/1.{version}\r\nHost: {host}{port}\r\n", url.path()).into_bytes();
    for header in headers {
        let name = tidy(header.name);
        let is_framing = matches!(name.as_str(), "content-length" | "transfer-encoding");
        if OF_CONNECTION.contains(&name.as_str()) || (named_by_connection.contains(&name) && !is_framing) {
            continue;
        }
        head.extend_from_slice(header.name.as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(header.value);
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"Connection: close\r\n\r\n");
    head
}

fn tidy(name: &str) -> String {
    name.trim().to_ascii_lowercase()
}

/// An answer's head for the client, told that the connection ends behind it; `None`: it is no HTTP. With whether it only
/// comes before the answer itself (1xx).
pub(super) fn answer(head: &[u8]) -> Option<(Vec<u8>, bool)> {
    let text = head.strip_suffix(b"\r\n\r\n")?;
    let mut lines = text.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let status = lines.next().filter(|line| line.starts_with(b"HTTP/1."))?;
    let is_before = status.get(9) == Some(&b'1');
    let mut passed = [status, b"\r\n"].concat();
    for line in lines {
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        if !["connection", "keep-alive", "proxy-connection"].contains(&tidy(&String::from_utf8_lossy(name)).as_str()) {
            passed.extend_from_slice(line);
            passed.extend_from_slice(b"\r\n");
        }
    }
    passed.extend_from_slice(if is_before { b"\r\n" } else { b"Connection: close\r\n\r\n" });
    Some((passed, is_before))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Target {
        Target::of(&Url::parse(url).expect("a URL")).expect("a target")
    }

    fn request(head: &str) -> Result<Request, String> {
        parse(head.as_bytes()).expect("HTTP").request
    }

    #[test]
    fn what_is_wanted_is_understood_as_the_resolver_would() {
        for (line, url) in [
            ("CONNECT a.example:443", "https://a.example"),
            ("CONNECT A.example:8443", "https://a.example:8443"),
            ("CONNECT [::1]:443", "https://[::1]"),
            // All of these are 127.0.0.1 to whoever connects.
            ("CONNECT 127.1:443", "https://127.0.0.1"),
            ("CONNECT 0x7f000001:443", "https://127.0.0.1"),
            ("CONNECT 2130706433:443", "https://127.0.0.1"),
            ("CONNECT 0177.0.0.1:443", "https://127.0.0.1"),
        ] {
            let found = request(&format!("{line} HTTP/1.1\r\n\r\n")).expect(line);
            assert_eq!(found, Request::Connect(target(url)), "{line}");
        }
        for line in [
            "CONNECT a.example",
            "CONNECT a.example:0",
            "CONNECT a.example:x",
            "CONNECT u@a.example:443",
            "CONNECT a.example/x:443",
            "CONNECT ::1:443:x",
            "GET /",
            "GET https://a.example/",
            "GET ftp://a.example/",
            "GET http://u:p@a.example/",
            "OPTIONS *",
        ] {
            request(&format!("{line} HTTP/1.1\r\n\r\n")).expect_err(line);
        }
        assert!(parse(b"\x16\x03\x01\r\n\r\n").is_none(), "TLS");
        assert!(parse(b"GET http://a/ HTTP/1.1\r\nbad header\r\n\r\n").is_none());
    }

    #[test]
    fn only_what_is_for_the_server_is_passed_on() {
        let head = "POST http://a.example:81/p/q?x=%20 HTTP/1.1\r\nHost: other.example\r\nAccept: */*\r\nConnection: x-hop, \
            content-length\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nProxy-Authorization: Basic eDp5\r\nProxy-Connection: keep-alive\r\n\
            Expect: 100-continue\r\nContent-Length: 3\r\nAuthorization: Basic YTpi\r\n\r\n";
        let parsed = parse(head.as_bytes()).expect("HTTP");
        assert_eq!(parsed.authorization.as_deref(), Some(&b"Basic eDp5"[..]));
        let Ok(Request::Forward(to, head)) = parsed.request else { panic!("a forward") };
        assert_eq!(to, target("http://a.example:81"));
        assert_eq!(
            String::from_utf8(head).expect("text"),
            "POST /p/q?x=%20 HTTP/1.1\r\nHost: a.example:81\r\nAccept: */*\r\nContent-Length: 3\r\n\
             Authorization: Basic YTpi\r\nConnection: close\r\n\r\n"
        );
    }

    #[test]
    fn answers_say_that_the_connection_ends() {
        let (head, is_before) =
            answer(b"HTTP/1.1 200 OK\r\nconnection: keep-alive\r\nKeep-Alive: 5\r\nContent-Length: 1\r\n\r\n")
                .expect("HTTP");
        assert_eq!(
            (String::from_utf8(head).expect("text").as_str(), is_before),
            ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\n", false)
        );
        assert!(answer(b"HTTP/1.1 103 Early Hints\r\n\r\n").expect("HTTP").1);
        assert!(answer(b"220 smtp.example ESMTP\r\n\r\n").is_none());
    }

    #[tokio::test]
    async fn heads_are_bounded_and_end_where_they_end() {
        for (text, most, expected) in [
            ("A\r\n\r\nrest", 100, Some("rest")),
            ("A\r\n\r\n", 5, Some("")),
            ("A\r\n\r\n", 4, None),
            ("AAAAAAAAAAAA", 5, None),
            ("A\r\n", 100, None),
        ] {
            // A byte at a time, and all at once.
            let mut slow = byte_by_byte(text.as_bytes());
            let found = read(&mut slow, Vec::new(), most).await.expect("reads").ok();
            assert_eq!(found.map(|found| found.head.len()), expected.map(|_| 5), "{text:?}");
            let found = read(&mut text.as_bytes(), Vec::new(), most).await.expect("reads").ok();
            let rest = found.map(|found| String::from_utf8(found.rest).expect("text"));
            assert_eq!(rest.as_deref(), expected, "{text:?}");
        }
    }

    /// Gives one byte a read.
    fn byte_by_byte(bytes: &[u8]) -> impl AsyncRead + Unpin + '_ {
        struct Slow<'a>(&'a [u8]);
        impl AsyncRead for Slow<'_> {
            fn poll_read(
                mut self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
                buffer: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<io::Result<()>> {
                if let Some((first, rest)) = self.0.split_first() {
                    buffer.put_slice(&[*first]);
                    self.0 = rest;
                }
                std::task::Poll::Ready(Ok(()))
            }
        }
        Slow(bytes)
    }
}
