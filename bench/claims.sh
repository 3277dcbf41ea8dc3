#!/usr/bin/env bash
# Claims a second by concurrent claimers, the policy component included, with many jobs pending and with few, and with an old
# snapshot open. PostgreSQL, durable, on the same machine.
#
# ./dev bench claims [PENDING] [RUNS] [SECONDS]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
pending=${1:-1000000}
runs=${2:-5}
seconds=${3:-10}
projects=40
claimers=16

export SQLX_OFFLINE=true
# HARMONIA_BENCH_PROFILE=dev measures a debug build: the statements are what takes the time.
profile=${HARMONIA_BENCH_PROFILE:-release}
cargo build --quiet --locked --profile "$profile" -p harmonia-ci --example claims --bin harmonia-ci
target="${CARGO_TARGET_DIR:-target}/$([ "$profile" = dev ] && echo debug || echo "$profile")"
policy="${CARGO_TARGET_DIR:-target}/plugins/scheduler-fair.wasm"
[ -f "$policy" ] || ./dev plugins --rust
pg=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1 || true)
[ -n "$pg" ] || pg=$(dirname "$(command -v initdb)")

work=$(mktemp -d "${TMPDIR:-/tmp}/harmonia-ci-claims.XXXXXX")
as=()
if [ "$(id -u)" = 0 ]; then
  chown postgres "$work"
  as=(runuser -u postgres --)
fi
finish() {
  (cd / && "${as[@]}" "$pg/pg_ctl" -D "$work/data" -m immediate stop >/dev/null 2>&1) || true
  rm -rf "$work"
}
trap finish EXIT
(cd / && "${as[@]}" "$pg/initdb" -D "$work/data" -U postgres -A trust --locale=C -E UTF8 >/dev/null)
cat >>"$work/data/postgresql.conf" <<CONF
listen_addresses = ''
unix_socket_directories = '$work'
shared_buffers = 512MB
max_wal_size = 4GB
CONF
(cd / && "${as[@]}" "$pg/pg_ctl" -D "$work/data" -l "$work/data/log" -w start >/dev/null)
export PGHOST="$work" PGUSER=postgres

# name, jobs
fill() {
  psql -q -d postgres -c "CREATE DATABASE $1" >/dev/null
  echo "database.url = 'postgres://postgres@localhost/$1?host=$work'" >"$work/$1.toml"
  "$target/harmonia-ci" migrate --config "$work/$1.toml" >/dev/null
  psql -q -d "$1" -v ON_ERROR_STOP=1 -v jobs="$2" -v projects="$projects" -f bench/claims.sql >/dev/null
}
# name, slots, further arguments
claims() {
  psql -q -d postgres -c "CREATE DATABASE run TEMPLATE $1" -c CHECKPOINT
  "$target/examples/claims" --url "postgres://postgres@localhost/run?host=$work" --claimers "$claimers" \
    --seconds "$seconds" --slots "$2" --policy "$policy" "${@:3}"
  psql -q -d postgres -c "DROP DATABASE run"
}
# Reads lines of `claims`, prints the median of their first numbers.
median() { awk '{ print $1 }' | sort -n | awk '{ v[NR] = $1 } END { print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }

echo "$(nproc) cores, load $(cut -d' ' -f1 /proc/loadavg), $claimers claimers, $projects projects, profile $profile"
fill many "$pending"
fill few 1000
for run in $(seq "$runs"); do
  for slots in 1 8; do
    claims many "$slots" | tee -a "$work/many-$slots" | sed "s/^/$pending pending, $slots slot(s): /"
  done
  # Jobs are given back at once, or the short queue would soon be empty.
  claims many 1 --give-back true | tee -a "$work/many-back" | sed "s/^/$pending pending, 1 slot, given back: /"
  claims few 1 --give-back true | tee -a "$work/few-back" | sed "s/^/1000 pending, 1 slot, given back: /"
  psql -q -d postgres -c "CREATE DATABASE old TEMPLATE many"
  psql -q -d old -c "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM build_jobs LIMIT 1; SELECT pg_sleep(3600)" >/dev/null 2>&1 &
  snapshot=$!
  "$target/examples/claims" --url "postgres://postgres@localhost/old?host=$work" --claimers "$claimers" --seconds "$seconds" \
    --slots 1 --policy "$policy" | tee -a "$work/old" | sed "s/^/$pending pending, 1 slot, an old snapshot open: /"
  psql -q -d postgres -c "DROP DATABASE old WITH (FORCE)"
  wait "$snapshot" 2>/dev/null || true
done
echo "medians of $runs: 1 slot $(median <"$work/many-1") claims/s, 8 slots $(median <"$work/many-8") claims/s, 1 slot with an old snapshot $(median <"$work/old") claims/s"
echo "given back at once: $(median <"$work/many-back") claims/s at $pending pending, $(median <"$work/few-back") at 1000"
