#!/usr/bin/env bash
# How fast the simulator is, with the default policy's component: 10,000 builders and 1,000,000 jobs, and what first in, first
# out would make of the same queue.
#
# ./dev bench simulate [JOBS] [BUILDERS] [PROJECTS]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
jobs=${1:-1000000}
builders=${2:-10000}
projects=${3:-100}

export SQLX_OFFLINE=true
profile=${HARMONIA_BENCH_PROFILE:-release}
cargo build --quiet --locked --profile "$profile" -p harmonia-ci
target="${CARGO_TARGET_DIR:-target}/$([ "$profile" = dev ] && echo debug || echo "$profile")"
policy="${CARGO_TARGET_DIR:-target}/plugins/scheduler-fair.wasm"
[ -f "$policy" ] || ./dev plugins --rust
TIMEFORMAT="%R s in all, %U s of CPU"
echo "$(nproc) cores, load $(cut -d' ' -f1 /proc/loadavg), profile $profile"
for arguments in "--policy $policy" ""; do
  echo
  echo "policy: ${arguments:-first in, first out}"
  # shellcheck disable=SC2086
  time "$target/harmonia-ci" simulate $arguments --jobs "$jobs" --builders "$builders" --slots 1 --projects "$projects" |
    grep -vE '^project-([6-9]|[0-9]{2,})'
done
