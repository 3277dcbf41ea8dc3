use super::*;

fn grant(text: &str) -> HostGrant {
    text.parse().expect("a grant")
}

fn target(url: &str) -> Target {
    Target::of(&Url::parse(url).expect("a URL")).expect("a target")
}

#[test]
fn a_grant_means_scheme_host_and_port() {
    let cases = [
        ("api.example.org", "https://api.example.org/x", true),
        ("api.example.org", "https://API.example.org/", true),
        ("api.example.org", "https://api.example.org:443/", true),
        ("api.example.org", "http://api.example.org/", false),
        ("api.example.org", "https://api.example.org:444/", false),
        ("api.example.org", "https://xapi.example.org/", false),
        ("api.example.org", "https://api.example.org./", false),
        ("api.example.org", "https://api.example.org.evil.net/", false),
        ("api.example.org:8443", "https://api.example.org:8443/", true),
        ("api.example.org:8443", "https://api.example.org/", false),
        ("http://127.0.0.1:3000", "http://127.0.0.1:3000/", true),
        ("http://127.0.0.1:3000", "http://0x7f.1:3000/", true),
        ("http://127.0.0.1:3000", "http://[::ffff:127.0.0.1]:3000/", false),
        ("http://127.0.0.1:3000", "https://127.0.0.1:3000/", false),
        ("http://[::1]:80", "http://[0:0:0:0:0:0:0:1]/", true),
        ("[::1]", "https://[::1]/", true),
        ("*.example.org", "https://a.example.org/", true),
        ("*.example.org", "https://a.b.example.org/", true),
        ("*.example.org", "https://example.org/", false),
        ("*.example.org", "https://.example.org/", false),
        ("*.example.org", "https://badexample.org/", false),
        ("bücher.example", "https://xn--bcher-kva.example/", true),
    ];
    for (text, url, expected) in cases {
        let Ok(target) = Target::of(&Url::parse(url).expect("a URL")) else { panic!("{url}") };
        assert_eq!(grant(text).matches(&target), expected, "{text} {url}");
    }
}

#[test]
fn what_cannot_be_granted_says_why() {
    let cases = [
        ("", "no host"),
        ("ftp://a.example", "scheme"),
        ("a.example/path", "not users or paths"),
        ("user@a.example", "not users or paths"),
        ("a b", "not users or paths"),
        ("a.example:0", "port"),
        ("a.example:", "port"),
        ("a.example:65536", "port"),
        ("a.example:+80", "port"),
        ("::1", "brackets"),
        ("*", "beginning"),
        ("*.", "no host name"),
        ("*.org", "two labels"),
        ("a.*.org", "beginning"),
        ("*.*.example.org", "two labels"),
        ("*.1.2.3.4", "two labels"),
        ("0.0.0.0", "no host"),
        ("[::]", "no host"),
        ("224.0.0.1", "no host"),
        ("255.255.255.255", "no host"),
    ];
    for (text, reason) in cases {
        let error = text.parse::<HostGrant>().expect_err(text).to_string();
        assert!(error.contains(reason), "{text}: {error}");
    }
}

#[test]
fn a_grant_prints_as_it_is_written() {
    for text in ["a.example", "a.example:8443", "http://a.example", "private:*.a.example", "http://[::1]:3000"] {
        assert_eq!(grant(text).to_string(), text);
    }
    assert_eq!(grant("https://a.example:443").to_string(), "a.example");
}

#[test]
fn a_target_suggests_the_grant_that_would_allow_it() {
    for url in ["https://a.example/", "http://a.example/", "https://a.example:1/", "http://[::1]:3/", "http://1.2.3.4/"]
    {
        let target = target(url);
        assert!(grant(&target.as_grant()).matches(&target), "{url}");
    }
}

#[test]
fn only_marked_grants_allow_private_addresses() {
    assert_eq!(grant("a.example").address_policy(), AddressPolicy::Public);
    assert_eq!(grant("http://localhost:1").address_policy(), AddressPolicy::ThisMachine);
    assert_eq!(grant("private:a.example").address_policy(), AddressPolicy::Private);
    let grants = [grant("private:*.a.example"), grant("b.a.example")];
    let found = find_grant(&grants, &target("https://b.a.example")).expect("granted");
    assert_eq!(found.address_policy(), AddressPolicy::Private);
    assert!(find_grant(&grants, &target("https://a.example")).is_none());
}

#[test]
fn a_url_with_a_user_is_no_target() {
    for url in ["https://u@a.example/", "https://u:p@a.example/", "ftp://a.example/", "https://a.example:0/"] {
        assert!(Target::of(&Url::parse(url).expect("a URL")).is_err(), "{url}");
    }
}
