//! Builders that want more than is theirs.

use std::io::{Read, Seek, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::{Duration, Instant};

use harmonia_nix::worker_protocol::BuildStatus;

use crate::world::{Build, World, as_ordinary_user, processes_with};

/// Runs Perl, which can make any system call, in the sandbox; the lines that it printed.
fn perl(world: &World, attributes: &str, script: &str) -> Build {
    let expression = format!(
        "derivation ({{ name = \"test\"; system = \"x86_64-linux\"; builder = \"/usr/bin/perl\"; \
           args = [ \"-e\" ''use strict; use warnings; $| = 1; {script}'' ]; }} // {{ {attributes} }})"
    );
    let mut request = world.request(&world.instantiate(&expression));
    for path in ["/usr", "/lib", "/lib64"] {
        request.options.sandbox_paths.push((path.into(), path.into()));
    }
    world.run(request)
}

#[test]
fn system_calls_that_would_leave_more_than_files_are_refused() {
    calls(&World::new());
}

#[test]
fn system_calls_that_would_leave_more_than_files_are_refused_to_an_ordinary_user() {
    if as_ordinary_user("hostile::system_calls_that_would_leave_more_than_files_are_refused_to_an_ordinary_user") {
        calls(&World::new());
    }
}

fn calls(world: &World) {
    // Numbers of x86_64; arguments of Perl's `syscall`.
    let (eperm, enosys, enotsup) = (1, 38, 95);
    let here = -100;
    let cases = [
        ("chmod", "90, $f, 04755".to_owned(), eperm),
        ("chmod, setgid", "90, $f, 02755".to_owned(), eperm),
        ("fchmod", "91, $fd, 04755".to_owned(), eperm),
        ("fchmodat", format!("268, {here}, $f, 04755"), eperm),
        ("fchmodat2", format!("452, {here}, $f, 04755, 0"), eperm),
        ("open", "2, $new, 0101, 04755".to_owned(), eperm),
        ("open, temporary", "2, $ENV{out}, 020200002, 04755".to_owned(), eperm),
        ("openat", format!("257, {here}, $new, 0101, 04755"), eperm),
        ("openat2", format!("437, {here}, $new, $how, 24"), enosys),
        ("creat", "85, $new, 04755".to_owned(), eperm),
        ("mknod", "133, $new, 0104755, 0".to_owned(), eperm),
        ("mknodat", format!("259, {here}, $new, 0104755, 0"), eperm),
        ("setxattr", "188, $f, $x, $x, 1, 0".to_owned(), enotsup),
        ("lsetxattr", "189, $f, $x, $x, 1, 0".to_owned(), enotsup),
        ("fsetxattr", "190, $fd, $x, $x, 1, 0".to_owned(), enotsup),
        ("setxattrat", format!("463, {here}, $f, 0, $x, $how, 16"), enotsup),
        ("io_uring_setup", "425, 8, $how".to_owned(), enosys),
        ("io_uring_enter", "426, 1, 1, 1, 0, 0, 0".to_owned(), enosys),
        ("x32's chmod", "0x4000005a, $f, 04755".to_owned(), enosys),
        ("mount", "165, $x, $f, $x, 0, 0".to_owned(), eperm),
        ("umount", "166, $f, 0".to_owned(), eperm),
        ("fsopen", "430, $x, 0".to_owned(), eperm),
        ("open_tree", format!("428, {here}, $f, 1"), eperm),
        ("mount_setattr", format!("442, {here}, $f, 0, $how, 32"), eperm),
        ("unshare", "272, 0x10000000".to_owned(), eperm),
        ("clone", "56, 0x10000011, 0, 0, 0, 0".to_owned(), eperm),
        ("clone3", "435, $how, 64".to_owned(), enosys),
        ("setns", "308, $fd, 0".to_owned(), eperm),
        ("bpf", "321, 0, $how, 64".to_owned(), eperm),
        ("keyctl", "250, 0, 0, 0, 0, 0".to_owned(), eperm),
        ("open_by_handle_at", "304, $fd, $how, 0".to_owned(), eperm),
        ("ptrace of init", "101, 16, 1, 0, 0".to_owned(), eperm),
        ("a mode without these bits", "90, $f, 0755".to_owned(), 0),
    ];
    let tries: String = cases
        .iter()
        .map(|(name, arguments, _)| {
            format!(
                "$! = 0; my $r{0} = syscall({arguments}); print \"{name}: \" . ($r{0} == -1 ? $! + 0 : 0) . \"\\n\"; ",
                ""
            )
        })
        .map(|text| format!("{{ {text} }} "))
        .collect();
    let build = perl(
        world,
        "",
        &format!(
            "mkdir $ENV{{out}}; my $f = \"$ENV{{out}}/file\"; my $new = \"$ENV{{out}}/new\"; my $x = \"user.x\"; \
             my $how = pack(\"Q32\", 0101, 04755); open(my $h, \">\", $f) or die; my $fd = fileno($h); {tries} \
             printf \"%o\\n\", (stat $f)[2] & 07777; print -e $new ? \"made\\n\" : \"not made\\n\";"
        ),
    );
    build.outputs();
    let mut expected: Vec<String> = cases.iter().map(|(name, _, errno)| format!("{name}: {errno}")).collect();
    expected.extend(["755", "not made"].map(str::to_owned));
    assert_eq!(build.lines, expected);
}

/// A program of i386 that sets a mode and ends with the error it got.
fn program_of_i386(mode: u32) -> String {
    let code: Vec<u8> = [
        &[0xb8, 15, 0, 0, 0][..], // mov eax, chmod
        &[0x8b, 0x5c, 0x24, 8],   // mov ebx, [esp + 8] (the first argument)
        &[0xb9],                  // mov ecx, mode
        &mode.to_le_bytes(),
        &[0xcd, 0x80, 0xf7, 0xd8, 0x89, 0xc3], // int 0x80; neg eax; mov ebx, eax
        &[0xb8, 1, 0, 0, 0, 0xcd, 0x80],       // mov eax, exit; int 0x80
    ]
    .concat();
    let (base, start) = (0x0804_8000_u32, 0x54_u32);
    let size = start + code.len() as u32;
    let mut program = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for half in [2_u16, 3] {
        program.extend(half.to_le_bytes());
    }
    for word in [1, base + start, 0x34, 0, 0] {
        program.extend(word.to_le_bytes());
    }
    for half in [0x34_u16, 0x20, 1, 0x28, 0, 0] {
        program.extend(half.to_le_bytes());
    }
    for word in [1, 0, base, base, size, size, 5, 0x1000] {
        program.extend(word.to_le_bytes());
    }
    program.extend(code);
    program.iter().map(|byte| format!("\\x{byte:02x}")).collect()
}

#[test]
fn calls_of_another_architecture_are_refused_too() {
    let world = World::new();
    let script = |mode| {
        format!(
            "open(my $h, \">\", \"p\") or die; print $h \"{}\"; close $h; chmod 0755, \"p\"; mkdir $ENV{{out}}; \
             system(\"./p\", $ENV{{out}}) == -1 and die \"no programs of i386 here\"; print $? >> 8, \"\\n\";",
            program_of_i386(mode)
        )
    };
    let build = perl(&world, "", &script(0o755));
    if build.outcome.result.is_err() && build.lines.iter().any(|line| line.contains("no programs of i386")) {
        return; // A kernel that runs none has nothing to be refused.
    }
    assert_eq!(build.lines, ["0"]);
    assert_eq!(perl(&world, "", &script(0o4755)).lines, ["1"]);
}

#[test]
fn the_machine_cannot_be_seen_or_changed() {
    machine(&World::new());
}

/// Whose inputs belong to the very user that the builder is.
#[test]
fn the_machine_cannot_be_seen_or_changed_by_an_ordinary_user() {
    if as_ordinary_user("hostile::the_machine_cannot_be_seen_or_changed_by_an_ordinary_user") {
        machine(&World::new());
    }
}

fn machine(world: &World) {
    let secret = world.path("secret");
    std::fs::write(&secret, "secret").expect("written");
    let input = world.ask("nix-store", &["--add", secret.to_str().expect("text")]);
    let script = format!(
        "sub try {{ my ($what, $ok) = @_; print \"$what\\n\" if $ok; }} \
         try(\"sees the machine\", -e \"{secret}\"); try(\"writes its root\", open(my $a, \">\", \"/x\")); \
         try(\"writes an input\", open(my $b, \">>\", \"{input}\")); try(\"changes an input\", chmod 0777, \"{input}\"); \
         try(\"removes an input\", unlink \"{input}\"); try(\"moves an input\", rename \"{input}\", \"/nix/store/x\"); \
         try(\"links an input\", link \"{input}\", $ENV{{out}}); try(\"links one of the machine\", link \"/etc/passwd\", $ENV{{out}}); \
         try(\"writes settings\", open(my $c, \">\", \"/proc/sys/kernel/core_pattern\")); \
         try(\"reads init\", open(my $d, \"<\", \"/proc/1/environ\")); try(\"sees init\", readlink \"/proc/1/root\"); \
         try(\"kills init\", (kill 9, 1) && select(undef, undef, undef, 0.2)); \
         try(\"has ids\", $< != 1000 || $( + 0 != 100); \
         open(my $s, \"<\", \"/proc/self/status\"); \
         while (<$s>) {{ print if /^Cap.*[1-9a-f]$/ or /^NoNewPrivs:\\t0/ or /^Seccomp:\\t[01]/ or /^Groups:.*[0-9]/ }} \
         opendir(my $p, \"/proc\"); print scalar(grep {{ /^[0-9]/ }} readdir $p) < 4 ? \"\" : \"sees processes\\n\"; \
         opendir(my $fds, \"/proc/self/fd\"); print join(\" \", grep {{ $_ > 6 }} grep {{ /[0-9]/ }} readdir $fds); \
         print \"done\\n\"; mkdir $ENV{{out}};",
        secret = secret.display()
    );
    let build = perl(world, &format!("input = builtins.storePath \"{input}\";"), &script);
    build.outputs();
    assert_eq!(build.lines, ["done"]);
}

#[test]
fn a_process_that_outlives_its_builder_changes_nothing() {
    outlives(&World::new());
}

#[test]
fn a_process_that_outlives_its_builder_changes_nothing_without_a_sandbox() {
    if as_ordinary_user("hostile::a_process_that_outlives_its_builder_changes_nothing_without_a_sandbox") {
        outlives(&World::without_sandbox());
    }
}

fn outlives(world: &World) {
    let mark = format!("20{:05}", std::process::id());
    let script = format!(
        "mkdir $out; echo right >$out/file; \
         (trap '' TERM HUP; setsid sh -c 'while true; do echo wrong {mark}; done >$out/file' 2>/dev/null &) ; \
         while ! grep -q wrong $out/file; do :; done"
    );
    let build = world.build(&format!("shell {{ }} \"{script}\""));
    let output = &build.outputs()[0];
    assert_eq!(processes_with(&mark), Vec::<String>::new());
    let mut archive = Vec::new();
    harmonia_nix::nar::pack_path(&output.staged, &mut archive).expect("an archive");
    assert_eq!(harmonia_nix::hash::NarHash::of(&archive), output.nar_hash);
}

/// Listens under a name that is no file, which whoever shares the network namespace can reach.
fn listener(name: &str) -> UnixListener {
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).expect("a name")).expect("listens")
}

#[test]
fn nobody_outside_can_be_reached_without_network() {
    let world = World::new();
    let name = format!("harmonia-test-{}", std::process::id());
    let _listener = listener(&name);
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("listens");
    let script = format!(
        "use Socket; socket(my $u, AF_UNIX, SOCK_STREAM, 0); \
         print connect($u, pack(\"Sa*\", AF_UNIX, \"\\0{name}\")) ? \"reached\\n\" : \"not reached\\n\"; \
         socket(my $t, AF_INET, SOCK_STREAM, 0); \
         print connect($t, pack_sockaddr_in({}, inet_aton(\"127.0.0.1\"))) ? \"reached\\n\" : \"not reached\\n\"; \
         socket(my $l, AF_INET, SOCK_STREAM, 0); bind($l, pack_sockaddr_in(8080, inet_aton(\"127.0.0.1\"))); listen($l, 1); \
         socket(my $o, AF_INET, SOCK_STREAM, 0); \
         print connect($o, pack_sockaddr_in(8080, inet_aton(\"127.0.0.1\"))) ? \"itself\\n\" : \"not itself\\n\"; mkdir $ENV{{out}};",
        tcp.local_addr().expect("bound").port()
    );
    assert_eq!(perl(&world, "", &script).lines, ["not reached", "not reached", "itself"]);
}

#[test]
fn a_descriptor_sent_out_of_a_fixed_output_changes_nothing() {
    let world = World::new();
    let name = format!("harmonia-test-{}", std::process::id());
    let listener = listener(&name);
    let taker = std::thread::spawn(move || {
        let (socket, _) = listener.accept().expect("connects");
        let received =
            harmonia_sandbox::proxied::receive_listener(std::os::fd::AsFd::as_fd(&socket)).expect("receives");
        std::fs::File::from(std::os::fd::OwnedFd::from(received.expect("a descriptor")))
    });
    // `sendmsg` with SCM_RIGHTS, put together by hand.
    let script = format!(
        "use Socket; open(my $h, \"+>\", $ENV{{out}}) or die; syswrite $h, \"hello\"; \
         socket(my $u, AF_UNIX, SOCK_STREAM, 0); connect($u, pack(\"Sa*\", AF_UNIX, \"\\0{name}\")) or die \"not reached\"; \
         my $byte = \"L\"; my $iov = pack(\"PQ\", $byte, 1); my $control = pack(\"QiiiI\", 20, 1, 1, fileno($h), 0); \
         my $message = pack(\"QQPQPQQ\", 0, 0, $iov, 1, $control, 24, 0); \
         syscall(46, fileno($u), $message, 0) == 1 or die \"not sent: $!\";"
    );
    let build = perl(
        &world,
        "outputHashMode = \"flat\"; outputHashAlgo = \"sha256\"; \
         outputHash = \"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824\";",
        &script,
    );
    let output = &build.outputs()[0];
    let mut file = taker.join().expect("took it");
    file.rewind().expect("rewinds");
    file.write_all(b"wrong").expect("its own file can be written");
    let mut text = String::new();
    std::fs::File::open(&output.staged).expect("a file").read_to_string(&mut text).expect("text");
    assert_eq!(text, "hello");
    assert_ne!(file.metadata().expect("a file").ino(), output.staged.metadata().expect("a file").ino());
}

#[test]
fn a_fork_bomb_ends_with_its_build() {
    let world = World::new();
    let mark = format!("30{:05}", std::process::id());
    let mut request = world.request(&world.instantiate(&format!(
        "shell {{ }} \"bomb() {{ bomb & sleep {mark} & bomb & }}; bomb 2>/dev/null; while true; do (sleep {mark} &) 2>/dev/null; done\"",
    )));
    request.options.max_processes = Some(64);
    request.options.timeout = Some(Duration::from_secs(2));
    let began = Instant::now();
    let build = world.run(request);
    assert!(build.outcome.result.is_err());
    assert_eq!(processes_with(&mark), Vec::<String>::new());
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}

#[test]
fn a_file_of_a_tebibyte_is_refused_before_it_is_read() {
    let world = World::new();
    let mut request = world.request(&world.instantiate("shell { } \"mkdir $out; truncate -s 1024G $out/hole\""));
    request.options.max_output_bytes = Some(10 << 30);
    let began = Instant::now();
    let build = world.run(request);
    assert_eq!(build.failure().status, BuildStatus::OutputRejected);
    assert!(build.failure().message.contains("more than 10737418240 bytes"), "{}", build.failure().message);
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_hundred_thousand_files_are_files() {
    let world = World::new();
    let script = "mkdir $ENV{out}; for my $d (1 .. 100) { mkdir \"$ENV{out}/$d\"; \
        for my $f (1 .. 1000) { open(my $h, \">\", \"$ENV{out}/$d/$f\") or die; } }";
    let build = perl(&world, "", script);
    assert!(build.outputs()[0].nar_size_bytes > 10_000_000);
}

#[test]
fn links_are_not_followed_and_modes_keep_nothing_secret() {
    let world = World::new();
    let victim = world.path("victim");
    std::fs::write(&victim, "x").expect("written");
    std::fs::set_permissions(&victim, PermissionsExt::from_mode(0o640)).expect("mode");
    let script = format!(
        "mkdir -p $out/d; ln -s {0} $out/link; ln -s /etc $out/d/etc; echo x >$out/d/x; ln $out/d/x $out/d/y; \
         chmod 000 $out/d/x; chmod 000 $out/d; mkdir -p /build/a/b; chmod 000 /build/a/b /build/a",
        victim.display()
    );
    let build = world.build(&format!("shell {{ }} \"{script}\""));
    let staged = &build.outputs()[0].staged;
    let is = |path: &std::path::Path| {
        let metadata = path.symlink_metadata().expect("there");
        (metadata.mode() & 0o7777, metadata.mtime(), metadata.uid())
    };
    assert_eq!(is(&staged.join("d/x")), (0o444, 1, 0));
    assert_eq!(is(&staged.join("d")), (0o555, 1, 0));
    assert_eq!(is(staged), (0o555, 1, 0));
    assert_eq!((is(&staged.join("link")).1, is(&staged.join("link")).2), (1, 0));
    assert_eq!(is(&victim).0, 0o640);
    assert_ne!(is(&victim).1, 1);
}
