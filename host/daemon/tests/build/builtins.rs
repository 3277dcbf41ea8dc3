//! The builders that are built in, beside those of stock Nix.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;

use harmonia_daemon::build::FixedNetwork;
use harmonia_egress::{Egress, EgressLimits, EgressRules, SystemResolver};

use crate::world::World;

fn fetchurl(attributes: &str) -> String {
    format!(
        "derivation ({{ name = \"fetched\"; system = \"builtin\"; builder = \"builtin:fetchurl\"; preferLocalBuild = true; \
           outputHashMode = \"flat\"; outputHashAlgo = \"sha256\"; unpack = false; executable = false; \
           outputHash = \"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824\"; }} // {{ {attributes} }})"
    )
}

/// Answers each request with what `answer` says of its head, and remembers the heads.
fn server(answer: fn(usize, &str) -> String, requests: usize) -> (u16, std::thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
    let port = listener.local_addr().expect("bound").port();
    let serving = std::thread::spawn(move || {
        let mut heads = Vec::new();
        for stream in listener.incoming().take(requests) {
            let mut stream = stream.expect("connects");
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            stream.write_all(answer(heads.len(), &head).as_bytes()).expect("answers");
            heads.push(head);
        }
        heads
    });
    (port, serving)
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

#[test]
fn files_are_fetched_and_unpacked() {
    let world = World::new();
    let file = world.path("file");
    std::fs::write(&file, "hello").expect("written");
    // Without a sandbox, since these are files of the machine.
    let run = |expression: &str| {
        let mut request = world.request(&world.instantiate(expression));
        request.options.sandbox_paths.push((world.path(""), world.path("")));
        world.run(request)
    };
    let build = run(&fetchurl(&format!("url = \"file://{}\";", file.display())));
    assert_eq!(std::fs::read_to_string(&build.outputs()[0].staged).expect("text"), "hello");

    // An archive of a tree, packed and not.
    std::fs::create_dir(world.path("tree")).expect("made");
    std::fs::write(world.path("tree/a"), "a").expect("written");
    let mut nar = Vec::new();
    harmonia_nix::nar::pack_path(&world.path("tree"), &mut nar).expect("packs");
    std::fs::write(world.path("tree.nar"), &nar).expect("written");
    let packed = Command::new("xz").arg("--keep").arg(world.path("tree.nar")).status().expect("xz is installed");
    assert!(packed.success());
    let hash = harmonia_nix::hash::NarHash::of(&nar).to_base16();
    for name in ["tree.nar", "tree.nar.xz"] {
        let url = world.path(name);
        let build = run(&fetchurl(&format!(
            "url = \"file://{}\"; unpack = true; outputHashMode = \"recursive\"; outputHash = \"{hash}\";",
            url.display()
        )));
        assert_eq!(std::fs::read_to_string(build.outputs()[0].staged.join("a")).expect("text"), "a");
    }

    let build = run(&fetchurl("url = \"file:///no/such\";"));
    assert_eq!(build.lines, ["error: unable to download 'file:///no/such': No such file or directory"]);

    let (port, serving) = server(
        |number, _| match number {
            0 => "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned(),
            1 => "HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned(),
            _ => ok("hello"),
        },
        3,
    );
    let netrc = world.path("netrc");
    std::fs::write(&netrc, "machine 127.0.0.1 login anna password secret\n").expect("written");
    let mut request = world.request(&world.instantiate(&fetchurl(&format!("url = \"http://127.0.0.1:{port}/here\";"))));
    request.options.netrc_file = Some(netrc);
    let build = world.run(request);
    assert_eq!(std::fs::read_to_string(&build.outputs()[0].staged).expect("text"), "hello");
    let heads = serving.join().expect("served");
    let asked: Vec<&str> = heads.iter().filter_map(|head| head.lines().next()).collect();
    assert_eq!(asked, ["GET /here HTTP/1.1", "GET /here HTTP/1.1", "GET /there HTTP/1.1"]);
    assert!(heads[0].contains("authorization: Basic YW5uYTpzZWNyZXQ="), "{}", heads[0]);
    assert!(!heads.iter().any(|head| head.to_lowercase().contains("accept-encoding")), "the bytes are what is hashed");

    let (port, serving) =
        server(|_, _| "HTTP/1.1 404 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned(), 1);
    let url = format!("http://127.0.0.1:{port}/gone");
    let build = world.build(&fetchurl(&format!("url = \"{url}\";")));
    assert_eq!(build.lines, [format!("error: unable to download '{url}': HTTP error 404")]);
    serving.join().expect("served");

    // A mirror that has files by their hashes is asked first.
    let (port, serving) = server(|_, _| ok("hello"), 1);
    let mut request = world.request(&world.instantiate(&fetchurl("url = \"http://127.0.0.1:1/not-asked\";")));
    request.options.hashed_mirrors = vec![format!("http://127.0.0.1:{port}")];
    world.run(request).outputs();
    let head = &serving.join().expect("served")[0];
    assert!(
        head.starts_with("GET /sha256/2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824 "),
        "{head}"
    );
}

#[test]
fn fixed_outputs_reach_the_network_by_the_proxy_alone() {
    let world = World::new();
    let egress = |allowed: &[String]| {
        let allowed = allowed.iter().map(|grant| grant.parse().expect("a grant")).collect();
        let rules = EgressRules { allowed, setting: "egress-allow" };
        FixedNetwork::Proxied(Egress::new(rules, Arc::new(SystemResolver), EgressLimits::default()))
    };
    let run = |expression: &str, network: FixedNetwork| {
        let mut request = world.request(&world.instantiate(expression));
        request.options.fixed_network = network;
        world.run(request)
    };
    // What is not public is not reached unless it is listed.
    let (port, serving) = server(|_, _| ok("hello"), 2);
    let url = format!("http://127.0.0.1:{port}/file");
    let build = run(&fetchurl(&format!("url = \"{url}\";")), egress(&[]));
    assert!(build.outcome.result.is_err());
    let refused = format!("the build was not let through to the network: http://127.0.0.1:{port}");
    assert!(build.notes.iter().any(|note| note.starts_with(&refused)), "{:?} {:?}", build.notes, build.lines);
    let allowed = || egress(&[format!("http://127.0.0.1:{port}")]);
    let build = run(&fetchurl(&format!("url = \"{url}\";")), allowed());
    assert_eq!(std::fs::read_to_string(&build.outputs()[0].staged).expect("text"), "hello");
    // Programs find it in their environment, whatever this machine says; beside it nothing is there.
    let script = format!(
        "env | grep -i proxy | sort; grep -c : /proc/net/dev; \
         wget -q -O- -Y off {url} || echo not reached; wget -q -O $out {url}"
    );
    let expression = format!(
        "shell {{ outputHashMode = \"flat\"; outputHashAlgo = \"sha256\"; impureEnvVars = [ \"http_proxy\" \"no_proxy\" ]; \
           outputHash = \"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824\"; }} \"{script}\""
    );
    let build = run(&expression, allowed());
    build.outputs();
    let proxy = "http://127.0.0.1:3128";
    assert_eq!(
        build.lines,
        [
            &format!("ALL_PROXY={proxy}"),
            &format!("HTTPS_PROXY={proxy}"),
            &format!("HTTP_PROXY={proxy}"),
            "NO_PROXY=",
            &format!("all_proxy={proxy}"),
            &format!("http_proxy={proxy}"),
            &format!("https_proxy={proxy}"),
            "impureEnvVars=http_proxy no_proxy",
            "no_proxy=",
            "1",
            "wget: can't connect to remote host (127.0.0.1): Connection refused",
            "not reached",
        ]
    );
    assert_eq!(serving.join().expect("served").len(), 2);
}

#[test]
fn profiles_are_those_of_stock_nix() {
    let world = World::new();
    let packages = "let package = name: script: shell { inherit name; } script; \
        a = package \"a\" \"mkdir -p $out/bin $out/share/x $out/nix-support; echo a >$out/bin/a; echo a >$out/bin/both; \
            echo a >$out/share/x/a; echo ${c} >$out/nix-support/propagated-user-env-packages; ln -s nowhere $out/dangling; \
            echo >$out/.hidden; echo >$out/manifest.nix\"; \
        b = package \"b\" \"mkdir -p $out/bin $out/share; echo b >$out/bin/b; echo b >$out/bin/both; mkdir $out/share/x; \
            echo b >$out/share/x/b\"; \
        c = package \"c\" \"mkdir -p $out/share/x $out/lib; echo c >$out/share/x/c; echo c >$out/lib/c\"; \
        manifest = package \"manifest\" \"echo >$out\"; \
        env = list: derivation { name = \"env\"; system = \"builtin\"; builder = \"builtin:buildenv\"; inherit manifest; \
            derivations = list; }; in ";
    let build = world.compare(&format!("{packages} env [ \"true\" 5 1 a \"true\" 4 1 b \"false\" 3 1 c ]"));
    assert!(build.outputs()[0].staged.join("lib").is_symlink(), "what a brings along");
    for (list, why) in [
        ("[ true 5 1 a true 5 1 b ]", "have the same priority 5"),
        ("[ true 5 ]", "attribute 'derivations' ends before number of outputs"),
    ] {
        let build = world.build(&format!("{packages} env {list}"));
        if list.len() > 12 {
            let (succeeded, said) = world.stock_build(&world.instantiate(&format!("{packages} env {list}")));
            assert!(!succeeded && said.contains(why), "{said}");
        }
        assert!(build.lines.iter().any(|line| line.contains(why)), "{:?}", build.lines);
    }
}

#[test]
fn channels_are_unpacked_as_by_stock_nix() {
    let world = World::new();
    let place = world.path("channel");
    std::fs::create_dir_all(place.join("top/sub")).expect("made");
    std::fs::write(place.join("top/default.nix"), "1").expect("written");
    std::fs::write(place.join("top/sub/run"), "#!").expect("written");
    std::os::unix::fs::symlink("sub/run", place.join("top/link")).expect("linked");
    for (name, option) in [("c.tar", "--auto-compress"), ("c.tar.gz", "-a"), ("c.tar.xz", "-a"), ("c.tar.bz2", "-a")] {
        let made = Command::new("tar").current_dir(&place).args(["-c", option, "-f", name, "top"]).status();
        assert!(made.expect("tar is installed").success());
        let source = place.join(name);
        let expression = format!(
            "derivation {{ name = \"unpacked\"; system = \"builtin\"; builder = \"builtin:unpack-channel\"; \
               channelName = \"mine\"; src = builtins.path {{ name = \"{name}\"; path = {}; }}; }}",
            source.display()
        );
        let build = world.compare(&expression);
        assert!(build.outputs()[0].staged.join("mine/sub/run").exists(), "{name}");
    }
    let two = Command::new("tar").current_dir(&place).args(["-cf", "two.tar", "top", "c.tar"]).status();
    assert!(two.expect("tar is installed").success());
    let build = world.build(&format!(
        "derivation {{ name = \"unpacked\"; system = \"builtin\"; builder = \"builtin:unpack-channel\"; \
           channelName = \"mine\"; src = {}; }}",
        place.join("two.tar").display()
    ));
    assert!(build.lines[0].ends_with("contains more than one file"), "{:?}", build.lines);
}
