//! How git reaches servers: through an egress proxy of one checkout or one question alone. Start at [`Way::open`].
//!
//! Whoever wrote a commit names the servers of its submodules, and every server may lead to another one. So git is told of a
//! proxy that goes to public addresses, to what the operator lists, and to the one server that the project itself is on:
//! that one was named by whoever set the project up.

use std::io;
use std::sync::Arc;

use harmonia_egress::{
    Egress, EgressGrant, EgressLimits, EgressRules, Refusal, Scheme, Session, SystemResolver, Target,
};
use url::Url;

use super::GitCommand;

/// Public addresses, and what `eval.allow_hosts` lists.
pub(crate) fn egress(allow_hosts: Vec<EgressGrant>) -> Egress {
    let rules = EgressRules { allowed: allow_hosts, setting: "eval.allow_hosts" };
    Egress::new(rules, Arc::new(SystemResolver), EgressLimits::default())
}

/// The way of one checkout or question. Once it is dropped, it leads nowhere.
#[derive(Debug)]
pub(crate) struct Way {
    pub(crate) session: Session,
    /// The proxy's URL, with its password.
    proxy: String,
    /// Where the project is.
    own: Option<Url>,
}

impl Way {
    /// `own`: the URL that the project is fetched from.
    pub(crate) async fn open(egress: &Egress, own: Option<&Url>) -> io::Result<Self> {
        let own_target = own.and_then(target);
        // Servers lead from plain http to https.
        let secure = own_target.clone().filter(|target| (target.scheme, target.port) == (Scheme::Http, 80));
        let secure = secure.map(|target| Target { scheme: Scheme::Https, port: 443, ..target });
        let mut session = egress.session(own_target.iter().chain(&secure).map(EgressGrant::of_target).collect());
        let proxy = session.serve_here().await?;
        Ok(Self { session, proxy, own: own.cloned() })
    }

    /// For a command that fetches.
    pub(crate) fn apply(&self, command: GitCommand) -> GitCommand {
        ["http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]
            .iter()
            .fold(command, |command, name| command.env(name, &self.proxy))
    }

    /// Whether a URL that no proxy can be asked for (ssh, git) may be fetched from all the same.
    pub(crate) fn is_own_server(&self, url: &Url) -> bool {
        let place = |url: &Url| (url.scheme().to_owned(), url.host_str().map(str::to_owned), url.port());
        self.own.as_ref().is_some_and(|own| place(own) == place(url))
    }

    /// What was refused after `before` was, or earlier of the same server.
    pub(crate) fn refusal(&self, url: &str, before: &[Refusal]) -> Option<Refusal> {
        let asked = Url::parse(url).ok().as_ref().and_then(target);
        let is_why = |refusal: &Refusal| !before.contains(refusal) || Some(&refusal.target) == asked.as_ref();
        self.session.refused().into_iter().find(is_why)
    }

    /// A client that goes the same way.
    pub(crate) fn client(&self) -> Result<reqwest::Client, reqwest::Error> {
        reqwest::Client::builder().proxy(reqwest::Proxy::all(&self.proxy)?).build()
    }
}

/// The server of an http(s) URL, whoever asks.
pub(crate) fn target(url: &Url) -> Option<Target> {
    let mut url = url.clone();
    url.set_username("").ok()?;
    url.set_password(None).ok()?;
    Target::of(&url).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_projects_own_server_is_one_server() {
        for (own, others) in [
            ("https://u:p@10.0.0.1/a/x.git", &[("https://10.0.0.1/b", true), ("http://10.0.0.1/b", false)][..]),
            ("http://10.0.0.1/a", &[("http://10.0.0.1/b", true), ("https://10.0.0.1/b", true)]),
            ("http://10.0.0.1:3000/a", &[("http://10.0.0.1:3000/b", true), ("https://10.0.0.1/b", false)]),
            ("https://10.0.0.1:3000/a", &[("https://10.0.0.1:3001/b", false), ("https://10.0.0.2:3000/b", false)]),
            ("ssh://10.0.0.1/a", &[("https://10.0.0.1/b", false)]),
        ] {
            let own = Url::parse(own).expect("a URL");
            let way = Way::open(&egress(Vec::new()), Some(&own)).await.expect("listens");
            for (other, is_allowed) in others {
                let target = target(&Url::parse(other).expect("a URL")).expect("a target");
                let address = target.host.to_string().parse().expect("an address");
                let judged = way.session.judge(&target, &[address]);
                assert_eq!(judged.is_ok(), *is_allowed, "{own} {other}");
            }
        }
    }
}
