#!/usr/bin/env bash
# Webhooks accepted a second, end to end: signed pushes of 10 KB over HTTP, the forge's plugin, one durable row each in a
# PostgreSQL on the same machine, 202. Once as fast as answers come and once at a fixed rate; with a forge whose API answers
# 503 to everything that is asked afterwards, and with one whose API never answers. Ends badly when a delivery that was
# accepted is not in the database exactly once.
#
# ./dev bench webhooks [RUNS] [SECONDS] [RATE]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
runs=${1:-5}
seconds=${2:-10}
rate=${3:-1000}
repositories=100
first_id=1000001

export SQLX_OFFLINE=true
# HARMONIA_BENCH_PROFILE=dev measures a debug build: only good to see that it runs.
profile=${HARMONIA_BENCH_PROFILE:-release}
cargo build --quiet --locked --profile "$profile" -p harmonia-ci --example webhooks --bin harmonia-ci
folder="${CARGO_TARGET_DIR:-target}"
target="$folder/$([ "$profile" = dev ] && echo debug || echo "$profile")"
plugin="$folder/plugins/github.wasm"
[ -f "$plugin" ] || ./dev plugins --rust
plugin=$(realpath "$plugin")
examples=tests/fake-forges/generated/github-webhooks.json
[ -s "$examples" ] || { echo "$examples is missing: ./dev setup makes it" >&2; exit 1; }

. bench/postgres.sh
server=
forge=
finish() {
  [ -z "$server" ] || kill "$server" 2>/dev/null || true
  exec 8>&- || true
  [ -z "$forge" ] || wait "$forge" 2>/dev/null || true
  [ -z "$server" ] || wait "$server" 2>/dev/null || true
  stop_postgres
}
trap finish EXIT
start_postgres webhooks

# A push as the forge's own examples have it, with as many commits as make it 10 KB, and places for what differs.
node - "$examples" >"$work/payload" <<'JS'
const examples = JSON.parse(require('fs').readFileSync(process.argv[2]));
const push = examples.push.find((example) => example.ref.startsWith('refs/heads/') && example.head_commit);
push.after = push.head_commit.id = '@COMMIT@';
push.repository.full_name = 'bench/@NAME@';
push.repository.name = '@NAME@';
push.repository.id = '@ID@';
while (JSON.stringify(push).length < 10_000) push.commits.push(push.head_commit);
process.stdout.write(JSON.stringify(push).replace('"@ID@"', '@ID@'));
JS
printf 'a secret that only the forge knows' >"$work/hook"

psql -q -d postgres -c 'CREATE DATABASE empty' >/dev/null
echo "database.url = 'postgres://postgres@localhost/empty?host=$work'" >"$work/migrate.toml"
"$target/harmonia-ci" migrate --config "$work/migrate.toml" >/dev/null
psql -q -d empty -v ON_ERROR_STOP=1 >/dev/null <<SQL
INSERT INTO repositories (forge, external_id, owner, name, full_name, clone_url, html_url, default_branch, is_private)
SELECT 'hub', n, 'bench', 'repository-' || n, 'bench/repository-' || n, 'https://forge.invalid/' || n, 'https://forge.invalid/' || n,
    'master', false
FROM generate_series($first_id, $first_id + $repositories - 1) AS n;
SELECT count(*) FROM repositories r, enable_repository(r.id, ARRAY[r.full_name], 'bench');
SQL

# hang or busy: what the forge's API does. Starts it and the server, on a database of their own.
start() {
  rm -f "$work/stay"
  mkfifo "$work/stay"
  : >"$work/forge"
  "$target/examples/webhooks" forge "$1" --key "$work/key" <"$work/stay" >"$work/forge" &
  forge=$!
  exec 8>"$work/stay"
  psql -q -d postgres -c 'CREATE DATABASE run TEMPLATE empty' -c CHECKPOINT
  rm -f "$work/accepted"
  until [ -s "$work/forge" ]; do kill -0 "$forge"; sleep 0.05; done
  forge_url="http://127.0.0.1:$(cat "$work/forge")"
  cat >"$work/server.toml" <<TOML
[node]
name = "bench"
capabilities = ["frontend"]
listen = "127.0.0.1:0"
state_dir = "$work/state"
[database]
url = "postgres://postgres@localhost/run?host=$work"
[log]
level = "error"
[[plugins]]
name = "hub"
path = "$plugin"
allow_hosts = ["$forge_url"]
settings = { app_id = "1", api_url = "$forge_url", html_url = "$forge_url" }
secrets = { webhook = "$work/hook", key = "$work/key" }
TOML
  : >"$work/server"
  "$target/harmonia-ci" serve --config "$work/server.toml" >"$work/server" 2>"$work/server.log" 8>&- &
  server=$!
  url=
  while [ -z "$url" ]; do
    kill -0 "$server" 2>/dev/null || { cat "$work/server.log" >&2; exit 1; }
    sleep 0.05
    url=$(sed -n 's,^ready \(.*\)ci/$,\1webhook/hub,p' "$work/server")
  done
}

stop() {
  kill "$server"
  wait "$server" || true
  server=
  exec 8>&-
  wait "$forge" || true
  forge=
  psql -q -d postgres -c 'DROP DATABASE run WITH (FORCE)'
}

# connections, seconds, rate
send() {
  "$target/examples/webhooks" send --url "$url" --secret "$work/hook" --payload "$work/payload" --accepted "$work/accepted" \
    --repositories "$repositories" --first-id "$first_id" --connections "$1" --seconds "$2" --rate "$3" \
    --signature 'X-Hub-Signature-256=sha256=' --delivery X-GitHub-Delivery --header X-GitHub-Event=push
}

# Hundredths of a second of processor time: of the server, and of PostgreSQL with what it started.
spent() {
  awk -v server="$server" -v postmaster="$postmaster" '{ sub(/.*\) /, ""); f = FILENAME; gsub(/[^0-9]/, "", f)
    if (f == server) s = $12 + $13
    else if (f == postmaster) p += $12 + $13 + $14 + $15
    else if ($2 == postmaster) p += $12 + $13 } END { print s + 0, p + 0 }' /proc/[0-9]*/stat 2>/dev/null || true
}

# Every delivery that was accepted is there exactly once, and nothing else.
check() {
  psql -q -At -d run -v ON_ERROR_STOP=1 <<SQL
CREATE TEMP TABLE accepted (id text PRIMARY KEY);
\copy accepted FROM '$work/accepted'
SELECT format('%s accepted, %s of them not there exactly once; in the database %s deliveries, %s queued, %s done, %s dead; %s evaluations',
    (SELECT count(*) FROM accepted),
    (SELECT count(*) FROM accepted a WHERE (SELECT count(*) FROM webhook_deliveries d WHERE d.delivery_id = a.id) <> 1),
    (SELECT count(*) FROM webhook_deliveries),
    (SELECT count(*) FROM webhook_deliveries WHERE state = 'queued'),
    (SELECT count(*) FROM webhook_deliveries WHERE state = 'done'),
    (SELECT count(*) FROM webhook_deliveries WHERE state = 'dead'),
    (SELECT count(*) FROM evaluations));
SQL
}

# label, connections, rate
measure() {
  local before after line
  read -r -a before <<<"$(spent)"
  line=$(send "$2" "$seconds" "$3")
  read -r -a after <<<"$(spent)"
  echo "$line" >>"$work/$1"
  echo "$1: $line; processor: server $(((after[0] - before[0]) * 10)) ms, PostgreSQL $(((after[1] - before[1]) * 10)) ms"
}

# Reads lines of `send`, prints the median of the number after a word (or of the first).
median() {
  sed -E "s/^${1:+.*}$1([0-9.]+).*\$/\\1/" | sort -n | awk '{ v[NR] = $1 } END { print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

echo "$(nproc) cores, load $(cut -d' ' -f1 /proc/loadavg), payload $(stat -c %s "$work/payload") bytes, $repositories repositories, profile $profile"
for run in $(seq "$runs"); do
  for api in busy hang; do
    start "$api"
    send 16 2 0 >/dev/null # Connections, plans and code are warm, as on a server that runs.
    measure "$api-16" 16 0
    measure "$api-64" 64 0
    measure "$api-rate" 64 "$rate"
    found=$(check)
    echo "$api: $found; load $(cut -d' ' -f1 /proc/loadavg)"
    stop
    tail -1 "$work/forge"
    case $found in *", 0 of them not there exactly once"*) ;; *) echo "deliveries were lost or doubled" >&2; exit 1 ;; esac
  done
done
echo "medians of $runs, the API answering 503 / never answering:"
for what in 16 64 rate; do
  echo "  $what: $(median '' <"$work/busy-$what") / $(median '' <"$work/hang-$what") webhooks/s," \
    "p50 $(median 'p50 ' <"$work/busy-$what") / $(median 'p50 ' <"$work/hang-$what") ms," \
    "p99 $(median 'p99 ' <"$work/busy-$what") / $(median 'p99 ' <"$work/hang-$what") ms"
done
