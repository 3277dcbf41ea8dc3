#!/usr/bin/env bash
# What grows with what a server has behind it, and what does not:
#   ./dev bench scale [JOBS [PARTS]]     (1,000,000; parts: pages,evaluations,tabs,builds)
# Pages and API with 1,000 and with JOBS jobs in the past (and a quarter of them ready, 250,000 at most); evaluations of 1,000,
# 5,000 and 20,000 attributes against `nix-instantiate` through a stock nix-daemon; a build of 500 trivial derivations alone and
# beside 50 visitors who look at it every three seconds; 1,000 trivial derivations against nix-build. A release build;
# HARMONIA_BENCH_PROFILE=dev only shows that it runs. Reports, never asserts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
jobs=${1:-1000000}
parts=,${2:-pages,evaluations,tabs,builds},

export SQLX_OFFLINE=true
profile=${HARMONIA_BENCH_PROFILE:-release}
cargo build --quiet --locked --profile "$profile" --workspace --bin harmonia-ci
bin=$(realpath "${CARGO_TARGET_DIR:-target}/$([ "$profile" = dev ] && echo debug || echo "$profile")/harmonia-ci")
system="$(uname -m)-linux"
work=$(mktemp -d "${TMPDIR:-/tmp}/harmonia-ci-scale.XXXXXX")
chmod 755 "$work"
running=()
finish() {
  for pid in "${running[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${running[@]}"; do wait "$pid" 2>/dev/null || true; done
  chmod -R u+w "$work" 2>/dev/null || true
  rm -rf "$work"
}
trap finish EXIT
now_ms() { date +%s%3N; }
wanted() { case "$parts" in *",$1,"*) ;; *) return 1 ;; esac }
echo "$(nproc) cores, load $(cut -d' ' -f1 /proc/loadavg), profile $profile, $(git describe --always --dirty 2>/dev/null || true)"

# up NAME [ENVIRONMENT…]: starts a server of its own; sets url, data and server.
up() {
  data=$work/$1
  env "${@:2}" "$bin" up --data-dir "$data" --listen 127.0.0.1:0 >"$data.out" 2>"$data.err" &
  server=$!
  running+=("$server")
  until grep -q '^ready' "$data.out"; do
    kill -0 "$server" || { cat "$data.err" >&2; exit 1; }
    read -r -t 0.1 <> <(:) || true
  done
  url=$(sed -n 's|^ready \(.*\)/ci/$|\1|p' "$data.out")
  export HARMONIA_CI_DATA_DIR=$data
}
down() {
  kill "$server"
  wait "$server" || true
}
# flake FOLDER ATTRIBUTES SEED [EVERY]: each attribute depends on one or two of a twentieth as many shared derivations;
# every EVERYth throws.
flake() {
  mkdir -p "$1"
  cat >"$1/graph.nix" <<NIX
let
  n = $2; shared = (n + 19) / 20; every = ${4:-0};
  mod = a: b: a - (a / b) * b;
  sh = name: inputs: derivation (inputs // {
    inherit name; system = "$system"; builder = "/bin/sh"; args = [ "-c" "echo \$name $3 > \$out" ];
  });
  bases = builtins.genList (i: sh "base-\${toString i}" {}) shared;
  base = i: builtins.elemAt bases (mod i shared);
  one = i: if every != 0 && mod i every == 0 then throw "attribute \${toString i} is broken"
    else sh "a-\${toString i}" ({ a = base i; } // (if mod i 2 == 0 then { b = base (i + 1); } else { }));
in builtins.listToAttrs (builtins.genList (i: { name = "a\${toString i}"; value = one i; }) n)
NIX
  echo "{ outputs = { self }: { checks.$system = import ./graph.nix; }; }" >"$1/flake.nix"
  git -C "$1" init --quiet 2>/dev/null
  git -C "$1" add --all
  git -C "$1" -c user.name=bench -c user.email=bench@localhost commit --quiet -m "$3"
}

if wanted pages; then
  for size in 1000 "$jobs"; do
    ready=$((size / 4 > 250000 ? 250000 : size / 4))
    # Nothing is claimed, whatever waits.
    up "pages-$size" HARMONIA_CI__BUILDER__MIN_FREE=100000TiB
    database=$(sed -n 's/^url = "\(postgres:.*\)"$/\1/p' "$data/config.toml" | head -n 1)
    started=$(now_ms)
    psql -q -v ON_ERROR_STOP=1 -v jobs="$size" -v ready="$ready" -v attributes=20000 -f bench/scale.sql "$database" >/dev/null
    echo "$size jobs, $ready more are ready: filled in $((($(now_ms) - started) / 1000)) s, $(psql -qAt -c 'SELECT pg_size_pretty(pg_database_size(current_database()))' "$database")"
    node bench/scale.mjs "$url" "$(cat "$data/keys/api-token")" 60 >"$work/pages-$size.tsv" || { cp "$work"/*.err /tmp/ ; exit 1; }
    down
  done
  echo "| page or API | p50 at 1,000 | p99 at 1,000 | p50 at $jobs | p99 at $jobs | ratio of p50 | bytes |"
  echo "|---|---|---|---|---|---|---|"
  paste "$work/pages-1000.tsv" "$work/pages-$jobs.tsv" |
    awk -F'\t' '{ printf "| %s | %s ms | %s ms | %s ms | %s ms | %.2f | %d |\n", $1, $2, $3, $6, $7, $6 / ($2 + 0.0001), $8 }'
fi

if wanted evaluations; then
  up evaluations HARMONIA_CI__BUILDER__MIN_FREE=100000TiB
  mkdir -p "$work/conf"
  printf 'build-users-group =\nsubstituters =\n' >"$work/conf/nix.conf"
  NIX_CONF_DIR="$work/conf" NIX_DAEMON_SOCKET_PATH="$work/stock.sock" nix-daemon --store "local?root=$work/stock" >"$work/daemon.log" 2>&1 &
  running+=("$!")
  until [ -S "$work/stock.sock" ]; do read -r -t 0.05 <> <(:) || true; done
  # How long an evaluation took by itself, whatever is not built.
  evaluated() { # FOLDER
    "$bin" eval "$1" --json >"$work/id.json"
    local id status=
    id=$(node -pe 'JSON.parse(require("fs").readFileSync(0)).id' <"$work/id.json")
    until [ "$status" = succeeded ] || [ "$status" = failed ]; do
      read -r -t 0.3 <> <(:) || true
      status=$(psql -qAt -c "SELECT status FROM evaluations WHERE id = $id" "$database")
    done
    psql -qAt -c "SELECT (extract(epoch FROM finished_at - started_at) * 1000)::bigint FROM evaluations WHERE id = $id" "$database"
  }
  database=$(sed -n 's/^url = "\(postgres:.*\)"$/\1/p' "$data/config.toml" | head -n 1)
  echo "| evaluation | ours | nix-instantiate | ratio |"
  echo "|---|---|---|---|"
  for count in 1000 5000 20000; do
    flake "$work/flake-$count" "$count" "seed $count"
    ours=$(evaluated "$work/flake-$count")
    started=$(now_ms)
    NIX_CONF_DIR="$work/conf" NIX_REMOTE="unix://$work/stock.sock" HOME="$work" nix-instantiate "$work/flake-$count/graph.nix" >/dev/null 2>&1
    stock=$(($(now_ms) - started))
    awk -v n="$count" -v a="$ours" -v b="$stock" 'BEGIN { printf "| %d attributes | %.1f s | %.1f s | %.2f |\n", n, a / 1000, b / 1000, a / b }'
  done
  flake "$work/throws" 1000 "throws" 4
  flake "$work/throws-not" 1000 "throws not"
  with=$(evaluated "$work/throws") without=$(evaluated "$work/throws-not")
  awk -v a="$with" -v b="$without" 'BEGIN { printf "an attribute that throws costs %.1f ms more than one that does not (250 of 1,000 throw)\n", (a - b) / 250 }'
  down
fi

if wanted tabs; then
  up tabs
  flake "$work/tabs-flake" 500 warm
  "$bin" eval "$work/tabs-flake" --wait >/dev/null 2>&1
  for visitors in 0 50; do
    flake "$work/tabs-flake" 500 "visitors $visitors"
    watchers=
    started=$(now_ms)
    "$bin" eval "$work/tabs-flake" --json >"$work/id.json"
    id=$(node -pe 'JSON.parse(require("fs").readFileSync(0)).id' <"$work/id.json")
    project=$(node -pe 'JSON.parse(require("fs").readFileSync(0)).project' <"$work/id.json")
    if [ "$visitors" -gt 0 ]; then
      node bench/scale.mjs "$url" tabs "$visitors" "/ci/$project/eval/$id" /ci/queue /ci/ &
      watchers=$!
      running+=("$watchers")
    fi
    "$bin" eval "$work/tabs-flake" --wait --json >/dev/null 2>&1 || true
    took=$(($(now_ms) - started))
    [ -z "$watchers" ] || kill "$watchers"
    echo "500 derivations beside $visitors visitors: $((took / 1000)).$((took % 1000 / 100)) s"
  done
  down
fi

if wanted builds; then
  finish
  trap - EXIT
  bench/overhead.sh 1000 1
fi
