#!/usr/bin/env bash
# Claims a second by concurrent claimers, the policy component included, with many jobs pending and with few, and with an old
# snapshot open; and of graphile-worker, with as many jobs pending on the same server. PostgreSQL, durable, on the same machine.
#
# ./dev bench claims [PENDING] [RUNS] [SECONDS]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
pending=${1:-1000000}
runs=${2:-5}
seconds=${3:-8}
projects=40
claimers=16

export SQLX_OFFLINE=true
# HARMONIA_BENCH_PROFILE=dev measures a debug build: the statements are what takes the time.
profile=${HARMONIA_BENCH_PROFILE:-release}
cargo build --quiet --locked --profile "$profile" -p harmonia-ci --example claims --bin harmonia-ci
target="${CARGO_TARGET_DIR:-target}/$([ "$profile" = dev ] && echo debug || echo "$profile")"
policy="${CARGO_TARGET_DIR:-target}/plugins/scheduler-fair.wasm"
[ -f "$policy" ] || ./dev plugins --rust

# Without npm there is nothing to compare with.
compare=$(command -v npm || true)
[ -z "$compare" ] || (cd bench/graphile && npm ci --silent --ignore-scripts --no-audit --no-fund)
. bench/postgres.sh
finish() {
  [ -z "${work:-}" ] || rm -f "$work/refill"
  stop_postgres
}
trap finish EXIT
start_postgres claims

# name, jobs
fill() {
  psql -q -d postgres -c "CREATE DATABASE $1" >/dev/null
  echo "database.url = 'postgres://postgres@localhost/$1?host=$work'" >"$work/$1.toml"
  "$target/harmonia-ci" migrate --config "$work/$1.toml" >/dev/null
  psql -q -d "$1" -v ON_ERROR_STOP=1 -v jobs="$2" -v projects="$projects" -f bench/claims.sql >/dev/null
}
# A copy of a filled database, to be claimed from.
copy() {
  psql -q -d postgres -c "DROP DATABASE IF EXISTS run WITH (FORCE)" -c "CREATE DATABASE run TEMPLATE $1 STRATEGY file_copy" -c CHECKPOINT 2>/dev/null
}
# slots
claims() {
  "$target/examples/claims" --url "postgres://postgres@localhost/run?host=$work" --claimers "$claimers" \
    --seconds "$seconds" --slots "$1" --policy "$policy" --server-pid "$postmaster"
}
# Makes what was claimed ready again, ten times a second, so that a short queue stays as long as it is. All at once and past
# the state machine: what claims cost is to be measured, not what comes after them. Its work counts as the server's.
refill() {
  while [ -e "$work/refill" ]; do
    sleep 0.1
    echo "BEGIN; SET LOCAL session_replication_role = replica; SET LOCAL synchronous_commit = off;
      WITH held AS (DELETE FROM build_attempts RETURNING job_id)
      UPDATE build_jobs SET status = 'pending', claimed_by = NULL, claim_incarnation = NULL, claim_token_hash = NULL,
        attempt_id = NULL, started_at = NULL FROM held WHERE id = job_id; COMMIT;"
  done | psql -q -d run >/dev/null 2>&1
}
refilled() {
  copy "$1"
  touch "$work/refill"
  refill &
  local refiller=$!
  claims 1
  rm "$work/refill"
  wait "$refiller" || true
}
# Claims of the other queue, waiting for the disk as it comes (on) or, like ours, not (off).
graphile() {
  node bench/graphile/claims.mjs refill "$PGHOST"
  node bench/graphile/claims.mjs claim "$PGHOST" "$claimers" "$seconds" "$1"
}
# Reads lines of `claims`, prints the medians of their rates, their p99 and the server's processor time a claim.
median() { sort -n | awk '{ v[NR] = $1 } END { print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
medians() {
  local of=$work/$1
  local cost=
  grep -q server "$of" && cost=", $(sed 's/.*server \([0-9.]*\).*/\1/' <"$of" | median) ms of the server's processor time a claim"
  echo "$2: $(awk '{ print $1 }' <"$of" | median) claims/s, p99 $(sed 's/.*p99 \([0-9.]*\).*/\1/' <"$of" | median) ms$cost"
}

echo "$(nproc) cores, load $(cut -d' ' -f1 /proc/loadavg), $claimers claimers, $projects projects, profile $profile"
fill many "$pending"
fill few 1000
[ -z "$compare" ] || node bench/graphile/claims.mjs fill "$PGHOST" "$pending"
for run in $(seq "$runs"); do
  copy many
  claims 1 | tee -a "$work/one" | sed "s/^/$pending pending, 1 slot: /"
  claims 8 | tee -a "$work/eight" | sed "s/^/$pending pending, 8 slots: /"
  copy many
  psql -q -d run -c "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM build_jobs LIMIT 1; SELECT pg_sleep(3600)" >/dev/null 2>&1 &
  snapshot=$!
  claims 1 | tee -a "$work/old" | sed "s/^/$pending pending, 1 slot, an old snapshot open: /"
  psql -q -d postgres -c "DROP DATABASE run WITH (FORCE)"
  wait "$snapshot" 2>/dev/null || true
  refilled many | tee -a "$work/many" | sed "s/^/$pending pending, 1 slot, refilled: /"
  refilled few | tee -a "$work/few" | sed "s/^/1000 pending, 1 slot, refilled: /"
  [ -n "$compare" ] || continue
  graphile on | tee -a "$work/graphile" | sed "s/^/graphile-worker, $pending pending: /"
  graphile off | tee -a "$work/graphile-off" | sed "s/^/graphile-worker, $pending pending, synchronous_commit off: /"
done
echo "medians of $runs, load $(cut -d' ' -f1 /proc/loadavg):"
medians one "  1 slot"
medians eight "  8 slots"
medians old "  1 slot, an old snapshot open"
medians many "  1 slot, $pending pending, refilled"
medians few "  1 slot, 1000 pending, refilled"
if [ -n "$compare" ]; then
  medians graphile "  graphile-worker"
  medians graphile-off "  graphile-worker, synchronous_commit off"
fi
