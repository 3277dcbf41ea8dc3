# Derivations of every feature, by name. Nothing in the sandbox but /bin/sh, which is busybox.
let
  system = builtins.currentSystem;
  make =
    name: attributes:
    derivation (
      {
        inherit name system;
        builder = "/bin/sh";
        args = [ "-c" attributes.script ];
        PATH = "/bin";
      }
      // builtins.removeAttrs attributes [ "script" ]
    );
  source = builtins.toFile "source.txt" "a source\n";
  empty = make "empty" { script = ": > $out"; };
  fixed =
    name: hash: algorithm: mode: script:
    make name {
      inherit script;
      outputHash = hash;
      outputHashAlgo = algorithm;
      outputHashMode = mode;
    };
in
rec {
  inherit empty;

  # What is made.
  file = make "file" { script = "echo hello > $out"; };
  executable = make "executable" { script = "echo 'echo hi' > $out; /bin/sh chmod +x $out 2>/dev/null || chmod 755 $out"; };
  directory = make "directory" { script = "mkdir -p $out/a/b; echo 1 > $out/a/b/c; echo 2 > $out/z; : > $out/A"; };
  symlinks = make "symlinks" { script = "mkdir $out; ln -s nowhere $out/dangling; ln -s ${source} $out/source; ln -s . $out/self"; };
  symlink = make "symlink" { script = "ln -s ${source} $out"; };
  modes = make "modes" {
    script = "mkdir $out; for m in 000 400 644 666 755 777 111; do echo $m > $out/$m; chmod $m $out/$m; done; mkdir $out/d; chmod 700 $out/d";
  };
  times = make "times" { script = "mkdir $out; : > $out/old; touch -d '2001-01-01 00:00' $out/old; date +%s >/dev/null"; };
  names = make "names" { script = "mkdir $out; echo 1 > \"$out/with space\"; echo 2 > $out/-dash; echo 3 > $out/ümläut; echo 4 > $out/.hidden"; };
  hardlinks = make "hardlinks" { script = "mkdir $out; echo same > $out/one; ln $out/one $out/two"; };
  large = make "large" { script = "dd if=/dev/zero of=$out bs=1M count=9"; };
  sparse = make "sparse" { script = "dd if=/dev/zero of=$out bs=1 count=1 seek=3000000"; };
  many = make "many" { script = "mkdir $out; i=0; while [ $i -lt 300 ]; do echo $i > $out/$i; i=$((i+1)); done"; };
  deep = make "deep" { script = "mkdir $out; cd $out; i=0; while [ $i -lt 60 ]; do mkdir d; cd d; i=$((i+1)); done; : > end"; };

  # What is referred to.
  to-source = make "to-source" { script = "echo ${source} > $out"; };
  to-derivation = make "to-derivation" { script = "echo ${file} ${directory} > $out"; };
  to-itself = make "to-itself" { script = "mkdir $out; echo $out > $out/self"; };
  input-not-kept = make "input-not-kept" { script = "read x < ${file}; echo $x > $out"; };
  reference-split = make "reference-split" { script = "echo ${builtins.substring 0 20 "${file}"} > $out; : ${file}"; };
  in-name = make "in-name" { script = "mkdir $out; : > $out/$(basename ${file})"; };
  in-link = make "in-link" { script = "mkdir $out; ln -s ${file} $out/link"; };
  closure = make "closure" { script = "echo ${to-derivation} > $out"; };

  # Several outputs.
  outputs = make "outputs" {
    outputs = [ "out" "dev" "doc" ];
    script = "echo $dev > $out; echo doc > $doc; mkdir $dev; echo $doc > $dev/doc";
  };
  of-outputs = make "of-outputs" { script = "echo ${outputs.dev} > $out"; };
  output-cycle = make "output-cycle" {
    outputs = [ "out" "dev" ];
    script = "echo $dev > $out; echo $out > $dev";
  };
  output-missing = make "output-missing" {
    outputs = [ "out" "dev" ];
    script = "echo > $out";
  };
  placeholder-own = make "placeholder-own" {
    place = builtins.placeholder "out";
    script = "echo $place > $out";
  };

  # The environment.
  environment = make "environment" {
    script = "{ for v in NIX_BUILD_TOP NIX_STORE NIX_LOG_FD TMPDIR TMP TEMP TEMPDIR HOME PATH PWD TERM name system builder; do eval \"echo $v=\\$$v\"; done; } > $out";
  };
  working-directory = make "working-directory" { script = "pwd > $out; ls -a >> $out; id -u >> $out; id -g >> $out; umask >> $out"; };
  arguments = derivation {
    name = "arguments";
    inherit system;
    builder = "/bin/sh";
    args = [ "-c" "for a in \"$@\"; do echo \"[$a]\"; done > $out" "zero" "a b" "" "*" "$x" ];
  };
  pass-as-file = make "pass-as-file" {
    passAsFile = [ "long" "empty" ];
    long = "a text\nof two lines";
    empty = "";
    script = "cat $longPath $emptyPath > $out; echo \${long-unset} >> $out; basename $longPath >> $out";
  };
  structured = make "structured" {
    __structuredAttrs = true;
    number = 7;
    text = "it's \"quoted\" $x";
    list = [ "a" "b c" ];
    nested = { a = { b = [ 1 2.5 null true ]; }; };
    flag = false;
    script = ". ./.attrs.sh; cat .attrs.json .attrs.sh > \${outputs[out]-$out} 2>/dev/null || cat .attrs.json .attrs.sh > $out";
  };
  export-graph = make "export-graph" {
    exportReferencesGraph = [ "graph" closure "other" source ];
    script = "cat graph other > $out";
  };
  # With us only those that require it see /dev/kvm.
  sandboxed = make "sandboxed" { script = "ls -a / > $out; ls /dev | grep -v kvm >> $out; ls /etc >> $out; cat /etc/passwd /etc/group /etc/hosts >> $out; hostname >> $out; ls /nix/store | grep -v chroot >> $out"; };
  log = make "log" { script = "echo to out; echo to err >&2; printf 'no end' ; echo > $out"; };

  # Fixed outputs.
  fixed-flat = fixed "fixed-flat" "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03" "sha256" "flat" "echo hello > $out";
  fixed-md5 = fixed "fixed-md5" "b1946ac92492d2347c6235b4d2611184" "md5" "flat" "echo hello > $out";
  fixed-sha1 = fixed "fixed-sha1" "f572d396fae9206628714fb2ce00f72e94f2258f" "sha1" "flat" "echo hello > $out";
  fixed-wrong = fixed "fixed-wrong" "0000000000000000000000000000000000000000000000000000000000000000" "sha256" "flat" "echo hello > $out";
  fixed-executable = fixed "fixed-executable" "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03" "sha256" "flat" "echo hello > $out; chmod 755 $out";
  fixed-directory-flat = fixed "fixed-directory-flat" "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03" "sha256" "flat" "mkdir $out";
  fixed-recursive-wrong = fixed "fixed-recursive-wrong" "0000000000000000000000000000000000000000000000000000000000000000" "sha256" "recursive" "mkdir $out; echo x > $out/x";
  of-fixed = make "of-fixed" { script = "echo ${fixed-flat} > $out"; };

  # What outputs may refer to.
  allowed-references = make "allowed-references" { allowedReferences = [ source ]; script = "echo ${source} > $out"; };
  allowed-references-refused = make "allowed-references-refused" { allowedReferences = [ ]; script = "echo ${source} > $out"; };
  allowed-out = make "allowed-out" { allowedReferences = [ "out" ]; script = "echo $out > $out"; };
  disallowed-references = make "disallowed-references" { disallowedReferences = [ file ]; script = "echo ${file} > $out"; };
  allowed-requisites = make "allowed-requisites" { allowedRequisites = [ to-derivation file directory ]; script = "echo ${to-derivation} > $out"; };
  allowed-requisites-refused = make "allowed-requisites-refused" { allowedRequisites = [ to-derivation ]; script = "echo ${to-derivation} > $out"; };
  disallowed-requisites = make "disallowed-requisites" { disallowedRequisites = [ directory ]; script = "echo ${to-derivation} > $out"; };

  # Failures.
  fails = make "fails" { script = "echo last words; exit 3"; };
  # The builder itself is the first process of its namespace, which no signal of its own kills.
  killed = make "killed" { script = "/bin/sh -c 'kill -9 $$'; exit $?"; };
  no-output = make "no-output" { script = ":"; };
  no-builder = derivation { name = "no-builder"; inherit system; builder = "/bin/absent"; };
  other-system = derivation { name = "other-system"; system = "m68k-none"; builder = "/bin/sh"; };
  needs-feature = make "needs-feature" { requiredSystemFeatures = [ "absent-feature" ]; script = ": > $out"; };
  of-failure = make "of-failure" { script = "echo ${fails} > $out"; };
  fifo = make "fifo" { script = "mkfifo $out"; };
  no-chroot = make "no-chroot" { __noChroot = true; script = ": > $out"; };
  bad-graph = make "bad-graph" { exportReferencesGraph = [ "a" ]; script = ": > $out"; };
  bad-pass = make "bad-name" { script = "echo ok > $out"; "x" = "y"; };

  # Builders of Nix's own.
  build-env = derivation {
    name = "build-env";
    system = "builtin";
    builder = "builtin:buildenv";
    manifest = source;
    derivations = [ [ "true" 5 1 directory ] [ "true" 5 1 in-link ] ];
  };
}
