#!/usr/bin/env bash
# Calls of plugins: the smallest one, a webhook against the same work natively, a policy at 1,000 projects, the reporter in
# three languages, and everybody else's calls while hostile plugins run. No database; the components of `./dev plugins`.
#
# ./dev bench plugins [CALLS]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
calls=${1:-20000}

target="${CARGO_TARGET_DIR:-target}"
for component in github scheduler-fair guests/empty examples/chat-reporter-js examples/chat-reporter-py; do
  [ -f "$target/plugins/$component.wasm" ] || { ./dev plugins; break; }
done
# HARMONIA_BENCH_PROFILE=dev measures a debug build of the host (guests are what they are): only good to see that it runs.
profile=${HARMONIA_BENCH_PROFILE:-release}
cargo build --quiet --locked --profile "$profile" -p harmonia-hostile-tests --example plugin_figures
folder=$([ "$profile" = dev ] && echo debug || echo "$profile")

# A push as GitHub's own examples have it, with as many commits as make it 10 KB.
examples=tests/fake-forges/generated/github-webhooks.json
[ -s "$examples" ] || { echo "$examples is missing: ./dev setup makes it" >&2; exit 1; }
payload=$(mktemp "${TMPDIR:-/tmp}/harmonia-ci-push.XXXXXX")
trap 'rm -f "$payload"' EXIT
node - "$examples" >"$payload" <<'JS'
const examples = JSON.parse(require('fs').readFileSync(process.argv[2]));
const push = examples.push.find((example) => example.ref.startsWith('refs/heads/') && example.head_commit);
while (JSON.stringify(push).length < 10_000) push.commits.push(push.head_commit);
process.stdout.write(JSON.stringify(push));
JS

echo "$(nproc) cores, load $(cut -d' ' -f1 /proc/loadavg), profile $profile, $calls calls"
"$target/$folder/examples/plugin_figures" "$payload" "$calls"
