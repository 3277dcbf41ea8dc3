//! Builds: what a builder finds, what becomes of its outputs, what stops it; beside stock Nix where that can build the same.

mod world;

use harmonia_nix::worker_protocol::BuildStatus;
use world::World;

#[test]
fn outputs_are_those_of_stock_nix() {
    let world = World::new();
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
         stat -c '%A %u %g %n' /tmp /build /nix/store /dev/null >>$out/id; tty >>$out/id; test -t 1 && echo tty >>$out/id; \
         wc -c </proc/self/environ; cat </dev/stdin >>$out/id; echo err >/dev/stderr",
    ] {
        let script = script.replace('"', "\\\"");
        world.compare(&format!("{input} shell {{ }} \"{script}\""));
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
