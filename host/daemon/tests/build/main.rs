//! Builds: what a builder finds, what becomes of its outputs, what stops it; beside stock Nix where that can build the same.

mod builtins;
mod hostile;
mod limits;
mod world;

use harmonia_nix::worker_protocol::BuildStatus;
use world::{World, as_ordinary_user};

#[test]
fn outputs_are_those_of_stock_nix() {
    outputs_of(&World::new());
}

#[test]
fn outputs_are_those_of_stock_nix_for_an_ordinary_user() {
    if as_ordinary_user("outputs_are_those_of_stock_nix_for_an_ordinary_user") {
        outputs_of(&World::new());
    }
}

fn outputs_of(world: &World) {
    let input = "let input = shell { name = \"input\"; } \"mkdir $out; echo text >$out/file\"; in ";
    for script in [
        "echo text >$out",
        "mkdir $out; echo ${input}/file >$out/refers; ln -s ${input} $out/link; ln -s nowhere $out/dangling",
        "mkdir $out; echo $out >$out/self; chmod 4755 $out/self; chmod 755 $out/self; touch $out/a; ln $out/a $out/b",
        "mkdir -p $out/d/e; echo x >$out/d/x; chmod 700 $out/d/x; chmod 0 $out/d/e; chmod 500 $out/d",
        "ln -s ${input} $out",
        "mkdir $out; env | sort >$out/env; pwd >>$out/env; ls -a /build >>$out/env; umask >>$out/env",
        "mkdir $out; id >$out/id; cat /etc/passwd /etc/group /etc/hosts >>$out/id; hostname >>$out/id; \
         ls / /dev /etc /nix /nix/store /proc/self/fd >>$out/id; cat /proc/sys/kernel/hostname >>$out/id; \
         stat -c '%A %n' /tmp /build /nix/store /dev/null >>$out/id; tty >>$out/id; test -t 1 && echo tty >>$out/id; \
         wc -c </proc/self/environ; cat </dev/stdin >>$out/id; echo err >/dev/stderr",
    ] {
        let script = script.replace('"', "\\\"");
        world.compare(&format!("{input} shell {{ }} \"{script}\""));
    }
}

#[test]
fn outputs_without_a_sandbox_are_those_of_stock_nix() {
    if !as_ordinary_user("outputs_without_a_sandbox_are_those_of_stock_nix") {
        return;
    }
    let world = World::without_sandbox();
    let inputs = "let input = shell { name = \"input\"; } \"mkdir $out; echo text >$out/file\"; in ";
    for expression in [
        "shell { } \"mkdir $out; echo ${input}/file $out >$out/refers; ln -s ${input} $out/link\"",
        "shell { outputs = [ \"out\" \"dev\" ]; } \"mkdir $out; echo $out >$dev; echo x >$out/x; chmod 0 $out/x\"",
        "shell { passAsFile = [ \"text\" ]; text = \"text\"; } \"cp $textPath $out; env | grep -v nix-build | sort >>$out\"",
    ] {
        world.compare(&format!("{inputs}{expression}"));
    }
    // What an earlier build left is in the way of none.
    let drv_path = world.instantiate("shell { } \"mkdir $out; echo new >$out/new\"");
    let derivation = world.derivation(&drv_path);
    let out = derivation.outputs["out"].path().expect("known").clone();
    std::fs::create_dir(&out).expect("made");
    std::fs::write(std::path::Path::new(out.as_str()).join("stale"), "").expect("written");
    let build = world.run(world.request(&drv_path));
    assert_eq!(world::names(&build.outputs()[0].staged), ["new"]);
    assert!(!std::path::Path::new(out.as_str()).exists(), "it is where the caller wants it");
}

#[test]
fn what_is_valid_is_not_touched_when_it_is_built_again_without_a_sandbox() {
    if !as_ordinary_user("what_is_valid_is_not_touched_when_it_is_built_again_without_a_sandbox") {
        return;
    }
    let world = World::without_sandbox();
    let expression = "shell { outputs = [ \"out\" \"dev\" ]; } \"mkdir $out; echo $out >$out/self; echo $out >$dev\"";
    world.compare(expression);
    let drv_path = world.instantiate(expression);
    let derivation = world.derivation(&drv_path);
    let mut request = world.request(&drv_path);
    for (name, output) in &derivation.outputs {
        request.valid_outputs.insert(name.clone(), world.info(output.path().expect("known")));
    }
    let before = request.valid_outputs.clone();
    let build = world.run(request);
    for output in build.outputs() {
        let valid = &before[&output.output];
        assert_eq!(output.nar_hash, valid.nar_hash, "{}", output.path);
        assert_eq!(output.references, valid.references);
        let now = world.ask("nix-store", &["--dump", output.path.as_str()]);
        assert!(!now.is_empty(), "it is still there");
    }
    assert_eq!(world.ask("nix-store", &["--verify", "--check-contents"]), "");
    let left: Vec<String> = world::names(std::path::Path::new("/nix/store"));
    assert_eq!(
        left.iter().filter(|name| name.ends_with("-test") || name.ends_with("-test-dev")).count(),
        2,
        "{left:?}"
    );
}

#[test]
fn attributes_reach_builders_as_with_stock_nix() {
    let world = World::new();
    let inputs =
        "let a = shell { name = \"a\"; } \"echo a >$out\"; b = shell { name = \"b\"; } \"echo ${a} >$out\"; in ";
    for expression in [
        // Files instead of variables.
        "shell { passAsFile = [ \"large\" \"mixed\" ]; large = \"text of ${placeholder \"out\"}\"; mixed = \"${a}\"; } \
         \"mkdir $out; cat $largePath $mixedPath >$out/text; ls -a >>$out/text; env | sort >>$out/text\"",
        // Bytes that are no text.
        "shell { bytes = \"ü \\t \\n '\"; } \"mkdir $out; env | sort >$out/env\"",
        // Placeholders, in arguments and variables.
        "shell { outputs = [ \"out\" \"dev\" ]; where = placeholder \"dev\"; } \
         \"mkdir $out $dev; echo ${placeholder \"out\"} $where >$dev/text; echo $out >$out/self\"",
        // The graph of references.
        "shell { exportReferencesGraph = [ \"graph\" b \"more\" a ]; } \"mkdir $out; cp graph more $out; ls -l >$out/ls\"",
        // Structured attributes.
        "derivation { name = \"test\"; system = \"x86_64-linux\"; builder = \"/bin/sh\"; __structuredAttrs = true; \
           args = [ \"-c\" \"out=$(sed -n 's/.*\\\"out\\\":\\\"\\\\([^\\\"]*\\\\)\\\".*/\\\\1/p' .attrs.json); \
             mkdir $out; cp .attrs.json .attrs.sh $out; env | grep -v ATTRS | sort >$out/env\" ]; \
           exportReferencesGraph.closure = [ b ]; number = 12; half = 1.5; whole = 2.0; list = [ 1 \"two\" true null ]; \
           set = { \"a b\" = \"it's\"; c = false; }; nested = [ [ 1 ] ]; text = \"line\\nline ${placeholder \"out\"}\"; }",
    ] {
        world.compare(&format!("{inputs}{expression}"));
    }
}

#[test]
fn fixed_outputs_are_held_to_their_hash() {
    let world = World::new();
    let fixed = |mode: &str, algorithm: &str, hash: &str, script: &str| {
        format!(
            "shell {{ outputHashMode = \"{mode}\"; outputHashAlgo = \"{algorithm}\"; outputHash = \"{hash}\"; }} \"{script}\""
        )
    };
    let text = |algorithm| match algorithm {
        "md5" => "5d41402abc4b2a76b9719d911017c592",
        "sha1" => "aaf4c61ddcc5e8a2dabede0f3b482cd9aea9434d",
        "sha256" => "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        _ => {
            "9b71d224bd62f3785d96d46ad3ea3d73319bfbc2890caadae2dff72519673ca72323c3d99ba5c11d7c7acc6e14b8c5da0c4663475c2e5c3adef46f73bcdec043"
        }
    };
    for algorithm in ["md5", "sha1", "sha256", "sha512"] {
        let build = world.compare(&fixed("flat", algorithm, text(algorithm), "printf hello >$out"));
        let address = build.outputs()[0].content_address.expect("an address");
        assert_eq!(address.hash.to_base16(), text(algorithm));
        // A wrong hash of a tree: what stock Nix says it is is right.
        let wrong = fixed("recursive", algorithm, text(algorithm), "mkdir $out; echo $NIX_OUTPUT_CHECKED >$out/file");
        let (succeeded, said) = world.stock_build(&world.instantiate(&wrong));
        assert!(!succeeded);
        let build = world.build(&wrong);
        let failure = build.failure();
        assert_eq!(failure.status, BuildStatus::OutputRejected);
        for line in failure.message.lines().skip(1) {
            assert!(said.contains(line.trim()), "{line} in {said}");
        }
        let drv = world.instantiate(&wrong);
        assert!(failure.message.starts_with(&format!("hash mismatch in fixed-output derivation '{drv}':\n")));
        let got = failure.message.lines().last().and_then(|line| line.split_whitespace().last()).expect("a hash");
        let right = fixed("recursive", algorithm, got, "mkdir $out; echo $NIX_OUTPUT_CHECKED >$out/file");
        let build = world.compare(&right);
        let mismatched = failure.mismatched.as_ref().expect("what it really is");
        assert_eq!(mismatched.path, build.outputs()[0].path);
        assert_eq!(mismatched.nar_hash, build.outputs()[0].nar_hash);
        assert!(mismatched.staged.join("file").exists());
    }
    for (script, why) in [
        ("printf hello >$out; chmod +x $out", "should be a non-executable regular file"),
        ("mkdir $out", "should be a non-executable regular file"),
        ("echo $out >$out", "illegal path references in fixed-output derivation"),
    ] {
        let build = world.build(&fixed("flat", "sha256", text("sha256"), script));
        assert_eq!(build.failure().status, BuildStatus::OutputRejected);
        assert!(build.failure().message.contains(why), "{}", build.failure().message);
    }
}

#[test]
fn outputs_that_are_not_allowed_are_refused_as_by_stock_nix() {
    let world = World::new();
    let inputs =
        "let a = shell { name = \"a\"; } \"echo a >$out\"; b = shell { name = \"b\"; } \"echo ${a} >$out\"; in ";
    let structured = |checks: &str, script: &str| {
        format!(
            "derivation {{ name = \"test\"; system = \"x86_64-linux\"; builder = \"/bin/sh\"; __structuredAttrs = true; \
             inherit a b; outputChecks.out = {{ {checks} }}; args = [ \"-c\" \"out=${{placeholder \"out\"}}; {script}\" ]; }}"
        )
    };
    let plain =
        |checks: &str, script: &str| format!("shell {{ outputs = [ \"out\" \"dev\" ]; {checks} }} \"{script}\"");
    let cases = [
        // What is refused, with a part of the reason; the empty reason: allowed.
        (plain("allowedReferences = [ ];", "echo >$dev; echo ${a} >$out"), "is not allowed to refer to"),
        (plain("allowedReferences = [ a ];", "echo >$dev; echo ${a} >$out"), ""),
        (plain("allowedReferences = [ \"out\" ];", "echo >$dev; echo $out >$out"), ""),
        (plain("allowedReferences = [ ];", "echo >$dev; echo $out >$out"), "is not allowed to refer to"),
        (plain("allowedReferences = [ \"dev\" ];", "echo >$dev; echo $dev >$out"), ""),
        (plain("allowedReferences = [ \"no\" ];", "echo >$dev; echo >$out"), "illegal reference specifier 'no'"),
        (plain("allowedRequisites = [ b ];", "echo >$dev; echo ${b} >$out"), "is not allowed to refer to"),
        (plain("allowedRequisites = [ a b ];", "echo >$dev; echo ${b} >$out"), ""),
        (plain("disallowedReferences = [ a ];", "echo >$dev; echo ${b} >$out"), ""),
        (plain("disallowedRequisites = [ a ];", "echo >$dev; echo ${b} >$out"), "is not allowed to refer to"),
        (plain("", "echo >$dev"), "failed to produce output path for output 'out' at"),
        (plain("", "echo $out >$dev; echo $dev >$out"), "cycle detected in build of"),
        (plain("", "echo >$dev; mkdir -m 777 $out"), "suspicious ownership or permission on"),
        (plain("", "echo >$dev; mkfifo $out"), "has an unsupported type"),
        (plain("", "echo >$dev; mkdir $out; mknod $out/p p"), "has an unsupported type"),
        (structured("maxSize = 100;", "head -c 200 /dev/zero >$out"), "is too large at"),
        (structured("maxSize = 1000;", "head -c 200 /dev/zero >$out"), ""),
        (structured("maxClosureSize = 300;", "echo ${b} >$out"), "is too large at"),
        (structured("disallowedRequisites = [ a ];", "echo ${b} >$out"), "is not allowed to refer to"),
        (structured("allowedReferences = [ b ];", "echo ${b} >$out"), ""),
        (structured("allowedRequisites = [ ];", "echo $out >$out"), "is not allowed to refer to"),
    ];
    for (expression, why) in cases {
        let expression = format!("{inputs}{expression}");
        let (succeeded, said) = world.stock_build(&world.instantiate(&expression));
        assert_eq!((succeeded, said.contains(why)), (why.is_empty(), true), "{expression}: {said}");
        if why.is_empty() {
            world.compare(&expression);
            continue;
        }
        let build = world.build(&expression);
        assert_eq!(build.failure().status, BuildStatus::OutputRejected, "{expression}");
        assert!(build.failure().message.contains(why), "{expression}: {}", build.failure().message);
        // Stock Nix shows where the chroot is.
        let chroot =
            world.path("stock/nix/store").join(format!("{}.chroot", world.instantiate(&expression).base_name()));
        let said = said.replace(&chroot.display().to_string(), "");
        let mut lines = build.failure().message.lines();
        assert!(lines.all(|line| said.contains(line.trim())), "{} in {said}", build.failure().message);
    }
}

#[test]
fn a_builder_that_fails_says_how() {
    let world = World::new();
    let build = world.build("shell { } \"echo one; echo two >&2; exit 3\"");
    let failure = build.failure();
    assert_eq!(failure.status, BuildStatus::PermanentFailure);
    assert_eq!((failure.exit_code, failure.signal), (Some(3), None));
    let drv = world.instantiate("shell { } \"echo one; echo two >&2; exit 3\"");
    assert_eq!(
        failure.message,
        format!(
            "builder for '{drv}' failed with exit code 3;\nlast 2 log lines:\n> one\n> two\nFor full logs, run 'nix log {drv}'."
        )
    );
    assert_eq!(build.lines, ["one", "two"]);
}

#[test]
fn what_the_sandbox_takes_from_the_store_is_seen_and_not_referred_to() {
    let world = World::new();
    let shell = world.ask("nix-store", &["--add", "/bin/busybox"]);
    let link = world.instantiate(&format!("shell {{ name = \"link\"; }} \"ln -s {shell} $out\""));
    assert!(world.stock_build(&link).0);
    let link = world.derivation(&link).outputs["out"].path().expect("known").clone();
    let shell = harmonia_nix::store_path::StorePath::parse(&shell).expect("a path");
    let mut request =
        world.request(&world.instantiate(&format!("shell {{ }} \"readlink {link}; echo {shell} >$out\"")));
    request.options.sandbox_paths = vec![("/bin/sh".into(), world.info(&shell).real)];
    for path in [&shell, &link] {
        request.sandbox_inputs.insert(path.clone(), world.info(path));
    }
    let build = world.run(request);
    assert_eq!(build.outputs()[0].references.len(), 0);
    assert_eq!(build.lines, [shell.as_str()]);
}

#[test]
fn build_users_that_cannot_write_the_store_are_told_of_at_once() {
    let world = World::new();
    let mut request = world.request(&world.instantiate("shell { } \"echo >$out\""));
    request.options.sandbox = harmonia_daemon::build::SandboxMode::Off;
    request.store_dir = "/nix/store".into();
    if std::fs::create_dir_all("/nix/store").is_err() {
        return; // Not root: there are no build users.
    }
    let build = world.run(request);
    assert_eq!(
        build.failure().message,
        "could not build without a sandbox: build users cannot write /nix/store: set build-users-group to its group, or \
         sandbox = true"
    );
}
