# Derivations of every kind that Nix 2.8 knows, as the judge of ours.
let
  base = {
    system = "x86_64-linux";
    builder = "/bin/sh";
    args = [ "-c" "echo made > $out" ];
  };
  make = attrs: derivation (base // attrs);
  sha256 = builtins.hashString "sha256" "content";
in
rec {
  plain = make { name = "plain"; };
  strings = make {
    name = "strings+1.0_a?=b";
    quotes = "\"quoted\" \\ back\\slash";
    lines = "a\nb\r\tc\\n";
    empty = "";
    unicode = "grün 🚀";
    latin1 = builtins.readFile ./latin1;
    numbers = [ 1 2 3 ];
    truth = true;
    nothing = null;
    "with space" = "a variable";
    args = [ "-c" "echo \"$0\" \\\n\t > $out" "" "ü" ];
  };
  multi = make {
    name = "multi-2.0";
    outputs = [ "out" "dev" "lib" "a.b" ];
  };
  flat = make { name = "flat"; outputHashAlgo = "sha256"; outputHashMode = "flat"; outputHash = sha256; };
  flatElsewhere = make {
    name = "flat"; outputHashAlgo = "sha256"; outputHashMode = "flat"; outputHash = sha256; mirror = "another";
  };
  recursive = make { name = "recursive"; outputHashAlgo = "sha256"; outputHashMode = "recursive"; outputHash = sha256; };
  sri512 = make { name = "sri512"; outputHash = "sha512-${builtins.concatStringsSep "" (builtins.genList (_: "A") 86)}=="; };
  sha1 = make {
    name = "sha1.tar.gz"; outputHashAlgo = "sha1"; outputHashMode = "recursive";
    outputHash = builtins.hashString "sha1" "content";
  };
  md5 = make { name = "md5"; outputHashAlgo = "md5"; outputHash = builtins.hashString "md5" "content"; };
  fetched = import <nix/fetchurl.nix> { url = "http://127.0.0.1:1/x.tar.gz"; inherit sha256; };
  structured = make {
    name = "structured";
    __structuredAttrs = true;
    outputs = [ "out" "bin" ];
    requiredSystemFeatures = [ "kvm" "big-parallel" ];
    preferLocalBuild = true;
    nested = { list = [ 1 2.5 null true ]; text = "\"\n"; };
  };
  features = make { name = "features"; requiredSystemFeatures = [ "kvm" "nixos-test" ]; preferLocalBuild = true; };
  # Two ways to one fixed output count as one input; several outputs of one derivation as well.
  user = make {
    name = "user";
    inputs = [ plain multi.dev multi.lib flat flatElsewhere fetched structured.bin strings ];
    source = ./latin1;
    text = builtins.toFile "text" "a text";
    placeholder = builtins.placeholder "out";
  };
  chain = builtins.foldl' (before: number: make { name = "chain-${toString number}"; inherit before; }) user
    (builtins.genList (number: number) 30);
  drvAsSource = make { name = "drv-as-source"; drv = builtins.unsafeDiscardOutputDependency chain.drvPath; };
  # Needs the whole closure of a derivation, so that all its outputs are inputs.
  drvWithClosure = make { name = "drv-with-closure"; drv = multi.drvPath; };

  floating = make {
    name = "floating"; outputs = [ "out" "dev" ]; args = [ "-c" "echo o > $out; echo d > $dev" ];
    __contentAddressed = true; outputHashAlgo = "sha256"; outputHashMode = "recursive";
  };
  floatingFlat = make {
    name = "floating-flat"; __contentAddressed = true; outputHashAlgo = "sha1"; outputHashMode = "flat";
  };
  floatingUser = make {
    name = "floating-user"; input = floating; __contentAddressed = true; outputHashAlgo = "sha256"; outputHashMode = "recursive";
    args = [ "-c" "echo ${floating} > $out" ];
  };
  deferred = make {
    name = "deferred"; outputs = [ "out" "doc" ]; input = floatingUser; "${"in" + "put2"}" = floating.dev;
    args = [ "-c" "echo ${floating.dev} > $out; echo ${floatingUser} > $doc" ];
  };
  deferredMore = make { name = "deferred-more"; input = deferred.doc; };
  fixedOnFloating = make {
    name = "fixed-on-floating"; input = floating; outputHashAlgo = "sha256"; outputHash = sha256;
  };
  onFixedOnFloating = make { name = "on-fixed-on-floating"; input = fixedOnFloating; };
  impure = make { name = "impure"; __impure = true; };
  onImpure = make { name = "on-impure"; input = impure; __impure = true; };
}
