//! Parts of addresses.

/// `host` or `host:port` of a URL, as `allow_hosts` and the hosts of secrets are written; empty when there is none.
pub fn host_of(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::host_of;

    #[test]
    fn hosts_of_urls() {
        for (url, host) in [
            ("https://codeberg.org", "codeberg.org"),
            ("http://127.0.0.1:3000/git/", "127.0.0.1:3000"),
            ("https://x?y=https://z/", "x"),
            ("", ""),
        ] {
            assert_eq!(host_of(url), host);
        }
    }
}
