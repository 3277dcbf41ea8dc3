//! Sends a checked request, follows redirects, reads the answer. Start at [`CallState::exchange`].

use std::error::Error;

use harmonia_core::chain;
use harmonia_egress::{AddressClass, AddressPolicy, AddressRefused, HostGrant, Target, find_grant};
use reqwest::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, LOCATION};
use reqwest::{Method, Response};
use url::Url;

use super::request::CheckedRequest;
use super::{Header, HttpError, HttpResponse};
use crate::capabilities::CallState;

impl CallState {
    /// The grant for a target.
    pub(super) fn granted(&self, target: &Target) -> Result<&HostGrant, HttpError> {
        let grants = &self.shared.grants;
        find_grant(&grants.allow_hosts, target).ok_or_else(|| {
            let (host, key) = (target.as_grant(), grants.key("allow_hosts"));
            HttpError::Denied(format!("the host `{host}` is not granted: add \"{host}\" to {key}"))
        })
    }

    /// One request with all its redirects.
    pub(super) async fn exchange(&mut self, mut request: CheckedRequest) -> Result<HttpResponse, HttpError> {
        let redirects_max = self.limits().redirects_per_request;
        let mut redirects = 0;
        loop {
            let invalid = |reason| HttpError::Denied(format!("the answer leads to a URL that is refused: {reason}"));
            let target = Target::of(&request.url).map_err(invalid)?;
            let response = self.hop(&request, &target, redirects > 0).await?;
            let Some(next) = redirect(&response, &request.url)? else {
                return self.answer(request, response, &target).await;
            };
            redirects += 1;
            if redirects > redirects_max {
                let key = self.shared.grants.limit("redirects_per_request");
                return Err(HttpError::Limit(format!("more than {redirects_max} redirects: {key}")));
            }
            self.follow(&mut request, response.status().as_u16(), next, &target)?;
        }
    }

    /// Sends to one host.
    async fn hop(&self, request: &CheckedRequest, target: &Target, is_redirect: bool) -> Result<Response, HttpError> {
        let policy = self.granted(target)?.address_policy();
        let authority = target.authority();
        let now = self.shared.clock.now();
        if let Some(seconds) = self.shared.held_back.wait_s(&authority, now) {
            // "Nothing was sent" is not true any more after a redirect of something that has an effect.
            return Err(if is_redirect && request.method != Method::GET && request.method != Method::HEAD {
                HttpError::Unavailable(format!("the answer leads to {authority}, which asked to wait for {seconds} s"))
            } else {
                HttpError::RetryAfter(seconds)
            });
        }
        let client = self.shared.client.for_policy(policy);
        let mut headers = request.headers.clone();
        for header in &request.secret_headers {
            headers.insert(header.name.clone(), header.value.clone());
        }
        let mut builder = client.request(request.method.clone(), request.url.clone()).headers(headers);
        if let Some(body) = &request.body {
            builder = builder.body(body.clone());
        }
        let response = builder.send().await.map_err(|error| self.failed(&error, target, policy))?;
        let (now, most) = (self.shared.clock.now(), self.limits().hold_back_s);
        self.shared.held_back.learn(&authority, response.status().as_u16(), response.headers(), now, most);
        Ok(response)
    }

    /// Turns the request into the one that a redirect asks for, as browsers do; what must not follow stays behind.
    fn follow(&self, request: &mut CheckedRequest, status: u16, next: Url, from: &Target) -> Result<(), HttpError> {
        let refused = |reason: &str| HttpError::Denied(format!("{from} leads to a URL that is refused: {reason}"));
        let target = Target::of(&next).map_err(refused)?;
        if request.url.scheme() == "https" && next.scheme() != "https" {
            return Err(refused("from https to http"));
        }
        self.granted(&target).map_err(|error| error.with_text(|text| format!("{from} leads elsewhere: {text}")))?;
        let becomes_get = match status {
            301 | 302 => request.method == Method::POST,
            303 => request.method != Method::HEAD,
            _ => false,
        };
        if becomes_get {
            request.method = Method::GET;
            request.body = None;
            request.body_secrets.clear();
            for name in [CONTENT_TYPE, CONTENT_LENGTH, CONTENT_ENCODING] {
                request.headers.remove(name);
            }
        }
        if let Some(secret) = request.body_secrets.iter().find(|secret| !secret.may_go_to(&target)) {
            let text = self.shared.unbound(secret, &target);
            return Err(HttpError::Denied(format!("{from} leads elsewhere with the body: {text}")));
        }
        request.secret_headers.retain(|header| header.secret.may_go_to(&target));
        if target != *from {
            request.headers.remove(AUTHORIZATION);
        }
        request.url = next;
        Ok(())
    }

    /// Reads the answer and cleans it.
    async fn answer(
        &mut self,
        request: CheckedRequest,
        mut response: Response,
        target: &Target,
    ) -> Result<HttpResponse, HttpError> {
        let status = response.status().as_u16();
        self.check_headers(response.headers(), target)?;
        let headers = response.headers().clone();
        let policy = self.granted(target)?.address_policy();
        let limits = self.limits();
        let (one_max, all_max) = (limits.response_body_bytes, limits.response_bytes_per_call);
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.failed(&error, target, policy))? {
            self.response_bytes += chunk.len();
            for (name, is, most) in [
                ("response_body_bytes", body.len() + chunk.len(), one_max),
                ("response_bytes_per_call", self.response_bytes, all_max),
            ] {
                if is > most {
                    let key = self.shared.grants.limit(name);
                    return Err(HttpError::Limit(format!("{target} answers more than {most} bytes: {key}")));
                }
            }
            body.extend_from_slice(&chunk);
        }
        let captured = self.capture(request.captures, &body, target)?;
        let redactor = self.redactor();
        let body = redactor.json(&body).unwrap_or(body);
        let headers = headers
            .iter()
            .map(|(name, value)| Header {
                name: name.as_str().to_owned(),
                value: redactor.text(&String::from_utf8_lossy(value.as_bytes())),
            })
            .collect();
        Ok(HttpResponse { status, headers, body, captured })
    }

    fn check_headers(&self, headers: &HeaderMap, target: &Target) -> Result<(), HttpError> {
        let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        let most = self.limits().response_header_bytes;
        if bytes > most {
            let key = self.shared.grants.limit("response_header_bytes");
            return Err(HttpError::Limit(format!(
                "{target} answers with {bytes} bytes of headers, at most {most}: {key}"
            )));
        }
        // A compressed answer could not be searched for secrets, and could be a bomb.
        let is_plain = |value: &str| value.trim().is_empty() || value.trim().eq_ignore_ascii_case("identity");
        let encoded = headers.get_all(CONTENT_ENCODING).iter().any(|value| !value.to_str().is_ok_and(is_plain));
        if encoded {
            return Err(HttpError::Unavailable(format!("{target} answers compressed, which was not asked for")));
        }
        Ok(())
    }

    /// Our error for one of the client's.
    fn failed(&self, error: &reqwest::Error, target: &Target, policy: AddressPolicy) -> HttpError {
        let mut cause: Option<&(dyn Error + 'static)> = Some(error);
        while let Some(error) = cause {
            if let Some(refused) = error.downcast_ref::<AddressRefused>() {
                return self.refused(refused, target, policy);
            }
            cause = error.source();
        }
        if error.is_timeout() {
            return HttpError::Timeout;
        }
        // Without the outermost text, which repeats the URL.
        let text = error.source().map_or_else(|| "no connection".to_owned(), chain);
        HttpError::Unavailable(format!("{target}: {text}"))
    }

    fn refused(&self, refused: &AddressRefused, target: &Target, policy: AddressPolicy) -> HttpError {
        let grant = target.as_grant();
        let key = self.shared.grants.key("allow_hosts");
        let what = match (policy, refused.class) {
            (AddressPolicy::Public | AddressPolicy::ThisMachine, AddressClass::Loopback | AddressClass::Private) => {
                format!("if that is right, write \"private:{grant}\" in {key}")
            }
            _ => format!("such addresses are called only where {key} lists the address itself"),
        };
        HttpError::Denied(format!("{refused}, which the grant of `{grant}` does not include; {what}"))
    }
}

/// Where an answer leads; `None`: it is the answer.
fn redirect(response: &Response, from: &Url) -> Result<Option<Url>, HttpError> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let Some(location) = response.headers().get::<HeaderName>(LOCATION) else { return Ok(None) };
    let unclear = || HttpError::Unavailable("the answer leads to something that is no URL".to_owned());
    let mut next = from.join(location.to_str().map_err(|_| unclear())?).map_err(|_| unclear())?;
    next.set_fragment(None);
    Ok(Some(next))
}
