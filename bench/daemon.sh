#!/usr/bin/env bash
# Trivial builds in the sandbox, and idle memory: Nix's daemon and ours, turn by turn in one run, each with a /nix of its own in
# memory. As root; needs Nix, busybox-static and unshare. Arguments: how many builds (1000), how many turns (3).
set -euo pipefail
builds=${1:-1000} turns=${2:-3}
target=${CARGO_TARGET_DIR:-$(dirname "$0")/../target}
ours=${HARMONIA_DAEMON:-$target/release/harmonia-daemon}
[ -x "$ours" ] || cargo build --release --locked -p harmonia-daemon
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/conf"
cat >"$work/conf/nix.conf" <<CONF
build-users-group =
substituters =
sandbox = true
sandbox-paths = /bin/sh=/bin/busybox
cores = 1
max-jobs = 2
CONF
cat >"$work/builds.nix" <<'NIX'
{ count }:
builtins.genList (number: derivation {
  name = "trivial-${toString number}";
  system = builtins.currentSystem;
  builder = "/bin/sh";
  args = [ "-c" "echo ${toString number} > $out" ];
}) count
NIX
cat >"$work/turn.sh" <<'TURN'
set -eu
mount --make-rprivate /
mkdir -p /nix && mount -t tmpfs none /nix && mkdir -p /nix/store
cd "$WORK"
rm -rf state && mkdir state
export NIX_CONF_DIR=$WORK/conf NIX_STATE_DIR=$WORK/state/var NIX_LOG_DIR=$WORK/state/log HOME=$WORK/state
export NIX_DAEMON_SOCKET_PATH=$WORK/state/socket
mkdir -p "$NIX_STATE_DIR"
"$1" >"$WORK/daemon.log" 2>&1 &
daemon=$!
trap 'kill $daemon; wait $daemon 2>/dev/null || true' EXIT
until [ -S "$NIX_DAEMON_SOCKET_PATH" ]; do sleep 0.05; done
export NIX_REMOTE=daemon
derivations=$(nix-instantiate builds.nix --arg count "$BUILDS" 2>/dev/null)
memory=$(awk '/^Rss:/ { rss = $2 } /^Private_(Clean|Dirty):/ { private += $2 } END { print rss " KiB, of its own " private " KiB" }' /proc/$daemon/smaps_rollup)
begun=$(date +%s%N)
nix-store -r -Q $derivations >/dev/null 2>"$WORK/client.log" || { tail -n 5 "$WORK/client.log" >&2; exit 1; }
took=$((($(date +%s%N) - begun) / 1000000))
echo "$2: $BUILDS builds in $took ms, $((BUILDS * 1000 / took)) a second; memory before: $memory"
TURN
for _ in $(seq "$turns"); do
  for daemon in "Nix's:$(command -v nix-daemon)" "ours:$(realpath "$ours")"; do
    WORK=$work BUILDS=$builds unshare -m bash "$work/turn.sh" "${daemon#*:}" "${daemon%%:*}"
  done
done
