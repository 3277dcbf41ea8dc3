#!/usr/bin/env bash
# Whole-system overhead: a graph of trivial derivations, cold, through `harmonia-ci` (evaluated, queued, built, packed,
# uploaded, signed, served) against stock `nix-build` of the same graph through the same nix-daemon. Both in one run,
# alternating; prints each time and the ratio of the medians.
#
# ./dev bench overhead [DERIVATIONS] [RUNS]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
derivations=${1:-200}
runs=${2:-5}

export SQLX_OFFLINE=true
# HARMONIA_BENCH_PROFILE=dev measures a debug build: to compare with another one, not with nix-build.
profile=${HARMONIA_BENCH_PROFILE:-release}
cargo build --quiet --locked --profile "$profile" -p harmonia-ci
bin="${CARGO_TARGET_DIR:-target}/$([ "$profile" = dev ] && echo debug || echo "$profile")/harmonia-ci"
bin=$(realpath "$bin")
system="$(uname -m)-linux"
work=$(mktemp -d "${TMPDIR:-/tmp}/harmonia-ci-bench.XXXXXX")
chmod 755 "$work"
server=
finish() {
  [ -z "$server" ] || { kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; }
  chmod -R u+w "$work" 2>/dev/null || true
  rm -rf "$work"
}
trap finish EXIT

# A layered graph: each derivation depends on up to three of the layer before.
graph() { # seed
  cat <<NIX
let
  width = 20;
  sh = name: inputs: derivation (inputs // {
    inherit name; system = "$system"; builder = "/bin/sh"; args = [ "-c" "echo \$name $1 > \$out" ];
  });
  node = layer: i: sh "n-\${toString layer}-\${toString i}" (if layer == 0 then {} else {
    a = at (layer - 1) i; b = at (layer - 1) (i + 1); c = at (layer - 1) (i + 7);
  });
  layers = builtins.genList (l: builtins.genList (i: node l i) width) ($derivations / width);
  at = layer: i: builtins.elemAt (builtins.elemAt layers layer) (i - (i / width) * width);
in builtins.listToAttrs (builtins.concatLists (builtins.genList (l: builtins.genList (i:
  { name = "n\${toString l}-\${toString i}"; value = at l i; }) width) ($derivations / width)))
NIX
}

now_ms() { date +%s%3N; }

"$bin" up --data-dir "$work/up" --listen 127.0.0.1:0 >"$work/up.out" 2>"$work/up.err" &
server=$!
until grep -q '^ready' "$work/up.out"; do
  kill -0 "$server" || { cat "$work/up.err" >&2; exit 1; }
  read -r -t 0.1 <> <(:) || true
done
export HARMONIA_CI_DATA_DIR="$work/up"
mkdir -p "$work/conf"
cat >"$work/conf/nix.conf" <<CONF
build-users-group =
substituters =
sandbox = true
sandbox-paths = /bin/sh=/bin/busybox
experimental-features = nix-command flakes
max-jobs = $(nproc)
CONF

ours=() stock=()
for run in $(seq "$runs"); do
  repository="$work/repository"
  mkdir -p "$repository"
  graph "ours-$run" >"$repository/graph.nix"
  echo "{ outputs = { self }: { checks.$system = import ./graph.nix; }; }" >"$repository/flake.nix"
  git -C "$repository" init --quiet 2>/dev/null || true
  git -C "$repository" add --all
  git -C "$repository" -c user.name=bench -c user.email=bench@localhost commit --quiet -m "run $run"
  start=$(now_ms)
  "$bin" eval "$repository" --wait --json >"$work/result.json" 2>"$work/eval.err" || { cat "$work/eval.err" >&2; exit 1; }
  ours+=($(($(now_ms) - start)))

  graph "stock-$run" >"$work/stock.nix"
  start=$(now_ms)
  NIX_CONF_DIR="$work/conf" NIX_DAEMON_SOCKET_PATH="$work/stock.sock" nix-daemon --store "local?root=$work/stock" >"$work/daemon.log" 2>&1 &
  daemon=$!
  until [ -S "$work/stock.sock" ]; do read -r -t 0.01 <> <(:) || true; done
  NIX_CONF_DIR="$work/conf" NIX_REMOTE="unix://$work/stock.sock" HOME="$work" \
    nix-build --no-out-link "$work/stock.nix" >"$work/stock.out" 2>"$work/stock.err" || { tail "$work/stock.err" >&2; exit 1; }
  stock+=($(($(now_ms) - start)))
  kill "$daemon"; wait "$daemon" 2>/dev/null || true
  printf 'run %s: ours %s ms, nix-build %s ms\n' "$run" "${ours[-1]}" "${stock[-1]}"
done

median() { printf '%s\n' "$@" | sort -n | awk '{ v[NR] = $1 } END { print (NR % 2) ? v[(NR + 1) / 2] : int((v[NR / 2] + v[NR / 2 + 1]) / 2) }'; }
a=$(median "${ours[@]}") b=$(median "${stock[@]}")
awk -v a="$a" -v b="$b" -v n="$derivations" -v r="$runs" 'BEGIN { printf "%d derivations, median of %d: ours %d ms, nix-build %d ms, ratio %.2f\n", n, r, a, b, a / b }'
