#!/usr/bin/env bash
# What a trivial job costs, from commit to cache, beside the daemon's own work: wall and processor time, transactions, bytes and
# syncs of PostgreSQL's log, objects, connections to the store daemon; and, where strace is installed, how often our process
# waits for the disk (in a run of its own, as strace slows it down). Several binaries take turns, to be compared.
#
# ./dev bench jobcost [JOBS [RUNS [BINARY...]]]     (200, 3, a release build of this tree)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
jobs=${1:-200}
runs=${2:-3}
binaries=("${@:3}")
if [ ${#binaries[@]} -eq 0 ]; then
  export SQLX_OFFLINE=true
  profile=${HARMONIA_BENCH_PROFILE:-release}
  cargo build --quiet --locked --profile "$profile" --workspace --bin harmonia-ci
  binaries=("$(realpath "${CARGO_TARGET_DIR:-target}/$([ "$profile" = dev ] && echo debug || echo "$profile")/harmonia-ci")")
fi
system="$(uname -m)-linux"
work=$(mktemp -d "${TMPDIR:-/tmp}/harmonia-ci-jobcost.XXXXXX")
chmod 755 "$work"
server='' tracer=''
finish() {
  for pid in $tracer $server; do
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  chmod -R u+w "$work" 2>/dev/null || true
  rm -rf "$work"
}
trap finish EXIT
now_ms() { date +%s%3N; }
settle() { read -r -t "$1" <> <(:) || true; }

# Layers of twenty; each derivation depends on up to three of the layer before.
commit() { # FOLDER SEED JOBS
  mkdir -p "$1"
  cat >"$1/graph.nix" <<NIX
let
  width = 20;
  sh = name: inputs: derivation (inputs // {
    inherit name; system = "$system"; builder = "/bin/sh"; args = [ "-c" "echo \$name $2 > \$out" ];
  });
  node = layer: i: sh "n-\${toString layer}-\${toString i}" (if layer == 0 then {} else {
    a = at (layer - 1) i; b = at (layer - 1) (i + 1); c = at (layer - 1) (i + 7);
  });
  layers = builtins.genList (l: builtins.genList (i: node l i) width) ($3 / width);
  at = layer: i: builtins.elemAt (builtins.elemAt layers layer) (i - (i / width) * width);
in builtins.listToAttrs (builtins.concatLists (builtins.genList (l: builtins.genList (i:
  { name = "n\${toString l}-\${toString i}"; value = at l i; }) width) ($3 / width)))
NIX
  echo "{ outputs = { self }: { checks.$system = import ./graph.nix; }; }" >"$1/flake.nix"
  git -C "$1" init --quiet 2>/dev/null || true
  git -C "$1" add --all
  git -C "$1" -c user.name=bench -c user.email=bench@localhost commit --quiet -m "$2"
}

below() { # PID: it and all processes below it
  echo "$1"
  for child in $(cat "/proc/$1"/task/*/children 2>/dev/null); do below "$child"; done
}
# Processor time in ms, that of ended and waited-for children included.
cpu_of_all() { for pid in $(below "$server"); do awk '{ print $14 + $15 + $16 + $17 }' "/proc/$pid/stat" 2>/dev/null; done | awk '{ s += $1 } END { print s * 10 }'; }
cpu_of_ours() { awk '{ print ($14 + $15) * 10 }' "/proc/$server/stat"; }
sql() { psql -qAt "$url" -c "$1"; }
transactions() { sql 'SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()'; }
wal_syncs() { sql 'SELECT wal_sync FROM pg_stat_wal' 2>/dev/null || sql "SELECT sum(fsyncs) FROM pg_stat_io WHERE object = 'wal'" 2>/dev/null || echo 0; }
objects() { find "$data/objects/buckets" -type f | wc -l; }
connections() { grep -c 'accepted connection' "$data/nix/daemon.log" || true; }

# once BINARY NAME [traced]: prints the figures of one run.
once() {
  data=$work/$2
  : >"$data.out"
  "$1" up --data-dir "$data" --listen 127.0.0.1:0 >"$data.out" 2>"$data.err" &
  server=$!
  until grep -q '^ready' "$data.out"; do
    kill -0 "$server" || { cat "$data.err" >&2; exit 1; }
    settle 0.1
  done
  export HARMONIA_CI_DATA_DIR=$data
  url=$(sed -n 's/^url = "\(postgres:.*\)"$/\1/p' "$data/config.toml" | head -n 1)
  # Caches are warm, and PostgreSQL's counters up to date.
  commit "$data.git" "warm $2" 20
  "$1" eval "$data.git" --wait --json >/dev/null 2>&1
  commit "$data.git" "$2" "$jobs"
  settle 12
  if [ "${3:-}" = traced ]; then
    strace -f -qq -p "$server" -e trace=fsync,fdatasync,syncfs -o "$data.strace" &
    tracer=$!
    settle 1
  fi
  local x s o c a p w started wall
  x=$(transactions) s=$(wal_syncs) o=$(objects) c=$(connections) w=$(sql 'SELECT pg_current_wal_lsn()')
  a=$(cpu_of_all) p=$(cpu_of_ours) started=$(now_ms)
  "$1" eval "$data.git" --wait --json >/dev/null 2>"$data.eval"
  wall=$(($(now_ms) - started)) a=$(($(cpu_of_all) - a)) p=$(($(cpu_of_ours) - p))
  w=$(sql "SELECT pg_current_wal_lsn() - '$w'")
  settle 12
  x=$(($(transactions) - x)) s=$(($(wal_syncs) - s)) o=$(($(objects) - o)) c=$(($(connections) - c))
  if [ -n "$tracer" ]; then
    kill "$tracer"
    wait "$tracer" 2>/dev/null || true
    tracer=
    awk -v n="$jobs" -v f="$(grep -c -E ' (fsync|fdatasync|syncfs)\(' "$data.strace")" 'BEGIN { printf "%.2f\n", f / n }'
  else
    awk -v n="$jobs" -v l="$wall" -v a="$a" -v p="$p" -v x="$x" -v w="$w" -v s="$s" -v o="$o" -v c="$c" \
      'BEGIN { printf "%.1f ms | %.1f ms (ours %.1f) | %.1f | %.0f B | %.1f | %.1f | %.2f\n", l / n, a / n, p / n, x / n, w / n, s / n, o / n, c / n }'
  fi
  kill "$server"
  wait "$server" || true
  server=
  chmod -R u+w "$data"
  rm -rf "$data"
}

echo "$jobs jobs, $(nproc) processors, load $(cut -d' ' -f1 /proc/loadavg); all figures a job"
echo "| binary, run | wall | processor time | transactions | WAL | WAL syncs | objects | connections |"
echo "|---|---|---|---|---|---|---|---|"
for run in $(seq "$runs"); do
  for index in "${!binaries[@]}"; do
    echo "| ${binaries[index]}, $run | $(once "${binaries[index]}" "b$index-$run") |"
  done
done
if command -v strace >/dev/null; then
  for index in "${!binaries[@]}"; do
    echo "${binaries[index]}: $(once "${binaries[index]}" "b$index-traced" traced) syncs of ours a job"
  done
fi
