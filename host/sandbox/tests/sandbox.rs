//! Programs in real sandboxes: what they see, what they may, how they end. The helper is this crate's example.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use harmonia_sandbox::{Bind, Network, PrivateDirectory, SETUP_FAILED_EXIT_CODE, SandboxSpec};

const UNPRIVILEGED: u32 = 54_321;

/// Cargo puts examples beside the directory of test binaries.
fn helper() -> PathBuf {
    let test = std::env::current_exe().expect("own path");
    let target = test.parent().and_then(Path::parent).expect("target directory");
    target.join("examples/sandbox_exec")
}

fn shell(script: &str) -> SandboxSpec {
    let mut spec = SandboxSpec {
        argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        cwd: "/".into(),
        dev: true,
        proc: true,
        private: vec![PrivateDirectory { path: "/tmp".into(), size_bytes: 1 << 20 }],
        ..SandboxSpec::default()
    };
    spec.env.insert("PATH".to_owned(), "/usr/bin:/bin:/usr/sbin:/sbin".to_owned());
    spec.add_system();
    spec
}

fn start(mut command: Command, spec: &SandboxSpec, input: &[u8]) -> Child {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the helper starts");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(&spec.header().expect("serializes")).expect("the helper reads");
    stdin.write_all(input).expect("the helper reads");
    child
}

fn run(spec: &SandboxSpec) -> Output {
    start(Command::new(helper()), spec, b"").wait_with_output().expect("ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn ok(spec: &SandboxSpec) -> String {
    let output = run(spec);
    assert!(output.status.success(), "{:?}: {}", output.status, text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn it_sees_what_the_spec_names_and_nothing_else() {
    let host = tempfile::tempdir().expect("directory");
    let store = host.path().join("root/nix/store");
    std::fs::create_dir_all(&store).expect("directory");
    std::fs::write(store.join("hello"), "from the store").expect("file");
    std::fs::write(host.path().join("secret"), "of the host").expect("file");

    let mut spec = shell(&format!(
        "cat /nix/store/hello; echo; ls /; ls /nix; ls /proc/1 >/dev/null && tr '\\0' ' ' </proc/1/cmdline; \
         test -e {0}/secret && echo leaked; test -e /etc/shadow && echo leaked; test -e /root && echo leaked; \
         hostname 2>/dev/null || cat /proc/sys/kernel/hostname; env; exit 0",
        host.path().display()
    ));
    spec.binds.push(Bind::at(&store, "/nix/store"));
    let seen = ok(&spec);
    assert!(seen.starts_with("from the store\n"), "{seen}");
    assert!(!seen.contains("leaked") && seen.contains("localhost"), "{seen}");
    let top: Vec<&str> = seen.lines().skip(1).take_while(|line| *line != "store").collect();
    for name in &top {
        assert!(
            ["bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "nix", "proc", "sbin", "tmp", "usr"]
                .contains(name),
            "{name} in {top:?}"
        );
    }
    assert!(!seen.contains("CARGO"), "the caller's environment: {seen}");
}

#[test]
fn only_private_directories_can_be_written() {
    let host = tempfile::tempdir().expect("directory");
    std::fs::set_permissions(host.path(), PermissionsExt::from_mode(0o777)).expect("mode");
    let mut spec = shell(
        "echo x >/tmp/a && echo private; echo x >/data/a && echo bound; echo x >/a && echo root; mkdir /usr/a && echo usr; \
         echo x >/etc/passwd && echo etc; head -c 2000000 /dev/zero >/tmp/big && echo large; echo x >/dev/null && echo null",
    );
    spec.binds.push(Bind::at(host.path(), "/data"));
    let output = run(&spec);
    assert_eq!(text(&output.stdout), "private\nnull\n", "{}", text(&output.stderr));
    assert!(!host.path().join("a").exists());

    let mut spec = shell("echo x >/data/a && echo bound");
    spec.binds.push(Bind { writable: true, ..Bind::at(host.path(), "/data") });
    assert_eq!(ok(&spec), "bound\n");
    assert!(host.path().join("a").exists());
}

#[test]
fn a_file_in_a_directory_of_the_host_is_covered_and_not_emptied() {
    let host = tempfile::tempdir().expect("directory");
    std::fs::set_permissions(host.path(), PermissionsExt::from_mode(0o777)).expect("mode");
    for name in ["file", "other"] {
        std::fs::write(host.path().join(name), name).expect("file");
    }
    let mut spec = shell("cat /data/file");
    spec.binds.push(Bind { writable: true, ..Bind::at(host.path(), "/data") });
    spec.binds.push(Bind::at(host.path().join("other"), "/data/file"));
    assert_eq!(ok(&spec), "other");
    assert_eq!(std::fs::read_to_string(host.path().join("file")).expect("file"), "file");
}

#[test]
fn it_has_no_privileges_and_cannot_get_any() {
    let seen = ok(&shell(
        "id -u; grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; unshare -m true 2>/dev/null && echo unshared; \
         mount -t tmpfs none /tmp 2>/dev/null && echo mounted; echo $$ >/dev/null; ls /proc | grep -c '^[0-9]'; exit 0",
    ));
    assert!(!seen.contains("unshared") && !seen.contains("mounted"), "{seen}");
    assert!(seen.starts_with("65534\n"), "{seen}");
    for line in seen.lines().filter(|line| line.starts_with("Cap")) {
        assert!(line.ends_with("0000000000000000"), "{line}");
    }
    assert_eq!(seen.lines().filter(|line| line.starts_with("Cap")).count(), 5, "{seen}");
    assert!(seen.contains("NoNewPrivs:\t1") && seen.contains("Seccomp:\t2"), "{seen}");
    let processes: u32 = seen.lines().last().and_then(|line| line.parse().ok()).expect("a count");
    assert!(processes <= 5, "only its own processes: {seen}");
}

#[test]
fn it_has_no_network_unless_asked_for() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
    let port = listener.local_addr().expect("bound").port();
    // Whoever gets through is hung up on, which ends nc.
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let script =
        format!("grep -c : /proc/net/dev; busybox nc -w 2 127.0.0.1 {port} </dev/null && echo reached; exit 0");
    let mut spec = shell(&script);
    assert_eq!(ok(&spec), "1\n", "its own loopback, and that is down");
    spec.network = Network::Host;
    assert!(ok(&spec).contains("reached"));
}

/// The helper as another user, and where its copy is.
fn unprivileged() -> (tempfile::TempDir, Command) {
    let place = tempfile::tempdir().expect("directory");
    std::fs::set_permissions(place.path(), PermissionsExt::from_mode(0o755)).expect("mode");
    let copy = place.path().join("helper");
    std::fs::copy(helper(), &copy).expect("copies");
    let mut command = Command::new(&copy);
    command.uid(UNPRIVILEGED).gid(UNPRIVILEGED).current_dir("/");
    (place, command)
}

#[test]
fn one_way_out_is_one_and_belongs_to_who_started_it() {
    only_one_way_out(Command::new(helper()));
    if rustix::process::geteuid().is_root() {
        let (_place, command) = unprivileged();
        only_one_way_out(command);
    }
}

fn only_one_way_out(mut command: Command) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    // Its input; its interfaces; the way out; around it; and the socket that the listener went out by.
    let script = format!(
        "cat; grep -c : /proc/net/dev; busybox nc -w 5 127.0.0.1 3128 </dev/null; \
         busybox nc -w 2 127.0.0.1 {port} </dev/null && echo reached; echo back >&0 && echo told; exit 0"
    );
    let mut spec = shell(&script);
    spec.network = Network::Proxied { port: 3128 };
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
    command.stdin(std::os::fd::OwnedFd::from(theirs)).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("the helper starts");
    drop(command);
    ours.write_all(&spec.header().expect("serializes")).expect("the helper reads");
    let inside = harmonia_sandbox::proxied::receive_listener(ours.as_fd()).expect("receives");
    let Some(inside) = inside else { panic!("{}", text(&child.wait_with_output().expect("ends").stderr)) };
    ours.write_all(b"input\n").expect("writes");
    ours.shutdown(std::net::Shutdown::Write).expect("ends");
    let (mut connection, _) = inside.accept().expect("a connection from inside");
    connection.write_all(b"from outside\n").expect("writes");
    drop(connection);
    let output = child.wait_with_output().expect("ends");
    assert_eq!(text(&output.stdout), "input\n1\nfrom outside\n", "{}", text(&output.stderr));
    let mut told = String::new();
    ours.read_to_string(&mut told).expect("reads");
    assert_eq!(told, "");
}

#[test]
fn without_a_socket_there_is_no_way_out_and_no_program() {
    let mut spec = shell("echo ran");
    spec.network = Network::Proxied { port: 3128 };
    let output = run(&spec);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(SETUP_FAILED_EXIT_CODE), String::new()));
    assert!(text(&output.stderr).contains("hand out the listener"), "{}", text(&output.stderr));
}

#[test]
fn it_ends_as_the_program_ends() {
    assert_eq!(run(&shell("exit 7")).status.code(), Some(7));
    assert_eq!(run(&shell("kill -SEGV $$")).status.signal(), Some(11));
    assert_eq!(run(&shell("kill -KILL $$")).status.signal(), Some(9));
    let output = start(Command::new(helper()), &shell("cat; echo done >&2"), b"what follows").wait_with_output();
    let output = output.expect("ends");
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("what follows".to_owned(), "done\n".to_owned()));
}

#[test]
fn what_cannot_be_set_up_does_not_run() {
    let mut spec = shell("echo ran");
    spec.binds.push(Bind::at("/no/such/thing", "/thing"));
    let output = run(&spec);
    assert_eq!(output.status.code(), Some(SETUP_FAILED_EXIT_CODE));
    assert_eq!(text(&output.stdout), "");
    assert!(text(&output.stderr).contains("could not find /no/such/thing: No such file"), "{}", text(&output.stderr));

    let mut spec = shell("");
    spec.argv = vec!["/no/program".to_owned()];
    let output = run(&spec);
    assert_eq!(output.status.code(), Some(SETUP_FAILED_EXIT_CODE));
    assert!(text(&output.stderr).contains("could not run /no/program"), "{}", text(&output.stderr));
}

#[test]
fn memory_is_bounded() {
    let mut spec = shell("dd if=/dev/zero of=/dev/null bs=200M count=1 2>&1");
    assert!(run(&spec).status.success());
    spec.limits.memory_bytes = Some(100 << 20);
    let output = run(&spec);
    assert!(!output.status.success(), "{}", text(&output.stdout));
}

/// Reads to the end, which comes when nobody holds the other end any more.
fn ends_within(mut stream: impl Read + Send + 'static, patience: Duration) -> bool {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut rest = Vec::new();
        let _broken = stream.read_to_end(&mut rest);
        sender.send(()).expect("the test waits");
    });
    receiver.recv_timeout(patience).is_ok()
}

fn with_descendants() -> (Child, std::process::ChildStdout) {
    let mut child = start(
        Command::new(helper()),
        &shell("setsid sh -c 'trap \"\" TERM HUP; sleep 1000' & echo started; sleep 1000"),
        b"",
    );
    let mut stdout = child.stdout.take().expect("piped");
    let mut line = [0; 8];
    stdout.read_exact(&mut line).expect("it starts");
    assert_eq!(&line, b"started\n");
    (child, stdout)
}

#[test]
fn killing_the_helper_kills_every_descendant() {
    let (mut child, stdout) = with_descendants();
    child.kill().expect("it runs");
    child.wait().expect("ends");
    assert!(ends_within(stdout, Duration::from_secs(5)), "somebody still holds the standard output");
}

#[test]
fn the_death_of_the_caller_kills_every_descendant() {
    let (mut child, stdout) = with_descendants();
    // What the kernel does to our ends when we die.
    drop(child.stderr.take());
    assert!(ends_within(stdout, Duration::from_secs(5)), "somebody still holds the standard output");
    let deadline = Instant::now() + Duration::from_secs(5);
    while child.try_wait().expect("waits").is_none() {
        assert!(Instant::now() < deadline, "the helper outlived its caller");
        std::thread::yield_now();
    }
}

#[test]
fn it_works_for_an_ordinary_user() {
    if !rustix::process::geteuid().is_root() {
        return; // Then every other test has shown it.
    }
    let (_place, command) = unprivileged();
    let spec =
        shell("id -u; echo x >/tmp/a && echo private; grep CapEff /proc/self/status; ls /proc/self/task | wc -l");
    let output = start(command, &spec, b"").wait_with_output().expect("ends");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "65534\nprivate\nCapEff:\t0000000000000000\n1\n");
}

#[test]
fn the_walls_of_this_kernel_are_known() {
    let kernel_features = harmonia_sandbox::kernel_features();
    assert_eq!(kernel_features.root, rustix::process::geteuid().is_root());
    let status = ok(&shell("grep '^Seccomp:' /proc/self/status"));
    assert_eq!(kernel_features.seccomp, status.contains('2'));
}

#[test]
fn how_much_memory_it_used_is_told_by_the_kernel() {
    let dir = tempfile::tempdir().expect("directory");
    let used = |script: &str| {
        let file = dir.path().join("usage");
        std::fs::write(&file, "").expect("file");
        let output = run(&SandboxSpec { usage_file: Some(file.clone()), ..shell(script) });
        (output.status, harmonia_sandbox::read_usage(&file))
    };
    let (status, little) = used("exit 7");
    assert_eq!(status.code(), Some(7));
    let (status, much) = used("dd if=/dev/zero of=/dev/null bs=150M count=1 2>/dev/null; kill -9 $$");
    assert_eq!(status.signal(), Some(9), "also of what was killed");
    let (little, much) = (little.expect("told"), much.expect("told"));
    assert!(little < 100 << 20 && (150 << 20..250 << 20).contains(&much), "{little}, {much}");
    // What the program prints is no evidence, and the file is out of its reach.
    let file = dir.path().join("usage");
    let (_, printed) = used(&format!("echo 999999999999; echo 999999999999 > {}; exit 0", file.display()));
    assert!(printed.expect("told") < 100 << 20);
}
