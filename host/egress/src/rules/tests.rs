use url::Url;

use super::*;

fn target(url: &str) -> Target {
    Target::of(&Url::parse(url).expect("a URL")).expect("a target")
}

fn judge(allowed: &[&str], url: &str, addresses: &str) -> Result<(), Refusal> {
    let allowed = allowed.iter().map(|text| text.parse().expect("a grant")).collect();
    let addresses: Vec<IpAddr> =
        addresses.split_whitespace().map(|address| address.parse().expect("an address")).collect();
    EgressRules { allowed, setting: "eval.allow_hosts" }.judge(&target(url), &addresses)
}

#[test]
fn public_addresses_are_reached_and_no_others() {
    judge(&[], "https://a.example/", "1.1.1.1 2606:4700::1111 ::ffff:8.8.8.8 64:ff9b::808:808").expect("public");
    for address in "127.0.0.1 127.1.2.3 ::1 ::ffff:127.0.0.1 ::127.0.0.1 64:ff9b::7f00:1 2002:7f00:1:: 10.0.0.1 \
                    172.16.0.1 192.168.1.1 100.64.0.1 fc00::1 fd12::1 fec0::1 ::ffff:10.0.0.1 64:ff9b::a00:1 \
                    64:ff9b:1::1 2002:a00:1::1 169.254.169.254 ::ffff:169.254.169.254 64:ff9b::a9fe:a9fe fe80::1 \
                    fd00:ec2::254 0.0.0.0 0.1.2.3 :: 224.0.0.1 ff02::1 255.255.255.255 240.0.0.1 192.0.0.192 \
                    198.18.0.1 192.0.2.1 2001:db8::1 2001::1"
        .split_whitespace()
    {
        let refused = judge(&[], "https://a.example/", &format!("1.1.1.1 {address}")).expect_err(address);
        assert_eq!(Ok(refused.address), address.parse());
        let literal = if address.contains(':') { format!("http://[{address}]/") } else { format!("http://{address}/") };
        judge(&[], &literal, address).expect_err(address);
    }
}

#[test]
fn what_is_listed_is_reached_and_not_its_neighbour() {
    for (listed, url, address, is_reached) in [
        ("private:git.corp.example", "https://git.corp.example/x", "10.1.1.1", true),
        ("private:git.corp.example", "https://git.corp.example/x", "127.0.0.1", true),
        ("private:git.corp.example", "http://git.corp.example/x", "10.1.1.1", false),
        ("private:git.corp.example", "https://git.corp.example:8443/x", "10.1.1.1", false),
        ("private:git.corp.example", "https://other.corp.example/x", "10.1.1.1", false),
        // Where clouds keep credentials: no name of a private network is there.
        ("private:git.corp.example", "https://git.corp.example/x", "169.254.169.254", false),
        ("private:*.corp.example", "https://a.b.corp.example/x", "10.1.1.1", true),
        ("http://localhost:3000", "http://localhost:3000/", "127.0.0.1 ::1", true),
        ("http://localhost:3000", "http://localhost:3000/", "10.0.0.1", false),
        ("http://127.0.0.1:3000", "http://127.0.0.1:3000/", "127.0.0.1", true),
        ("http://127.0.0.1:3000", "http://127.0.0.1:3001/", "127.0.0.1", false),
        ("http://127.0.0.1:3000", "http://evil.example:3000/", "127.0.0.1", false),
        ("http://127.0.0.1:3000", "http://[::ffff:127.0.0.1]:3000/", "::ffff:127.0.0.1", false),
        ("http://169.254.169.254", "http://169.254.169.254/latest", "169.254.169.254", true),
        ("10.20.0.0/16", "https://any.example/", "10.20.255.1", true),
        ("10.20.0.0/16", "https://10.20.0.1:9/", "10.20.0.1", true),
        ("10.20.0.0/16", "https://any.example/", "10.21.0.0", false),
        ("10.20.0.0/16", "https://any.example/", "10.20.0.1 10.21.0.0", false),
        ("10.20.0.0/16", "https://any.example/", "::ffff:10.20.0.1", false),
        ("fd00:1::/32", "https://any.example/", "fd00:1:ffff::1", true),
        ("fd00:1::/32", "https://any.example/", "fd00:2::1", false),
        ("127.0.0.1/32", "http://127.0.0.1:1/", "127.0.0.1", true),
        ("127.0.0.1/32", "http://127.0.0.2:1/", "127.0.0.2", false),
        ("0.0.0.0/0", "http://a.example/", "192.168.0.1", true),
        ("0.0.0.0/0", "http://a.example/", "0.0.0.0", false),
        ("0.0.0.0/0", "http://a.example/", "255.255.255.255", false),
        ("::/0", "http://a.example/", "::1", true),
        ("::/0", "http://a.example/", "127.0.0.1", false),
    ] {
        assert_eq!(judge(&[listed], url, address).is_ok(), is_reached, "{listed} {url} {address}");
    }
}

#[test]
fn a_refusal_names_target_address_and_what_would_allow_it() {
    for (url, address, words) in [
        (
            "https://git.corp.example/x",
            "10.1.1.1",
            "https://git.corp.example:443 may not be reached: git.corp.example is at 10.1.1.1 (a private network). If that \
             is right, an operator can write \"private:git.corp.example\" into `eval.allow_hosts`",
        ),
        ("http://127.0.0.1:3000/", "127.0.0.1", "127.0.0.1 is no public address (this machine). If"),
        ("http://127.0.0.1:3000/", "127.0.0.1", "write \"http://127.0.0.1:3000\" into"),
        ("http://localhost:3000/", "127.0.0.1", "write \"http://localhost:3000\" into"),
        ("http://a.example/", "169.254.169.254", "write the network of 169.254.169.254 into"),
    ] {
        let refused = judge(&[], url, address).expect_err(url);
        assert!(refused.to_string().contains(words), "{refused}");
        // What it advises does allow it.
        if let Some(advice) = refused.advice.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
            judge(&[advice], url, address).unwrap_or_else(|error| panic!("{advice}: {error}"));
        }
    }
}

#[test]
fn entries_that_would_allow_nothing_say_so() {
    for (text, words) in [
        ("git.example", "need not be listed"),
        ("*.example.org", "need not be listed"),
        ("10.0.0.0/33", "number of bits"),
        ("10.0.0.0/", "number of bits"),
        ("10.0.0.1/8", "bits behind"),
        ("fd00::/129", "number of bits"),
        ("example.org/8", "not users or paths"),
        ("ftp://a.example", "scheme"),
        ("0.0.0.0", "no host"),
    ] {
        let error = text.parse::<EgressGrant>().expect_err(text).to_string();
        assert!(error.contains(words), "{text}: {error}");
    }
    for text in ["10.0.0.0/8", "fd00::/8", "private:a.example:8443", "http://127.0.0.1:3000", "http://localhost"] {
        assert_eq!(text.parse::<EgressGrant>().expect(text).to_string(), text);
    }
}
