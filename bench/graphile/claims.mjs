// Claims of graphile-worker as fast as they go, by the statement that its workers send: what claims.sh compares with.
//
// In a database of its own, `graphile`, of the server whose socket is in FOLDER:
// node claims.mjs fill FOLDER JOBS                     makes it, with JOBS jobs that are all ready
// node claims.mjs refill FOLDER                        makes what was claimed ready again
// node claims.mjs claim FOLDER CLAIMERS SECONDS on|off  prints claims a second and latencies; the last is synchronous_commit

import { createRequire } from 'node:module';
import { runMigrations } from 'graphile-worker';
import pg from 'pg';

const require = createRequire(import.meta.url);
const { processSharedOptions } = require('graphile-worker/dist/lib.js');
const { batchGetJobs } = require('graphile-worker/dist/sql/getJobs.js');
const tasks = { bench: () => {} };

const url = (folder, database) => `postgres://postgres@localhost/${database}?host=${encodeURIComponent(folder)}`;

async function statements(connectionString, ...texts) {
  const client = new pg.Client({ connectionString });
  await client.connect();
  for (const text of texts) await client.query(text);
  await client.end();
}

async function fill(folder, jobs) {
  await statements(url(folder, 'postgres'), 'CREATE DATABASE graphile');
  await runMigrations({ connectionString: url(folder, 'graphile') });
  await statements(
    url(folder, 'graphile'),
    `INSERT INTO graphile_worker._private_tasks (identifier) VALUES ('bench')`,
    `INSERT INTO graphile_worker._private_jobs (task_id, payload)
     SELECT t.id, json_build_object('n', n) FROM graphile_worker._private_tasks t, generate_series(1, ${Number(jobs)}) AS n`,
    'VACUUM ANALYZE',
  );
}

function refill(folder) {
  return statements(
    url(folder, 'graphile'),
    'UPDATE graphile_worker._private_jobs SET locked_at = NULL, locked_by = NULL, attempts = 0 WHERE locked_at IS NOT NULL',
    'VACUUM ANALYZE',
    'CHECKPOINT',
  );
}

async function claim(folder, claimers, seconds, synchronousCommit) {
  const connectionString = `${url(folder, 'graphile')}&options=${encodeURIComponent(`-c synchronous_commit=${synchronousCommit}`)}`;
  const options = processSharedOptions({ connectionString });
  const clients = await Promise.all(
    Array.from({ length: claimers }, async () => {
      const client = new pg.Client({ connectionString });
      await client.connect();
      return client;
    }),
  );
  const latencies = [];
  let claims = 0;
  const run = async (client, number, end) => {
    const withRetries = (use) => use(client);
    const withPgClient = Object.assign(withRetries, { withRetries });
    while (performance.now() < end) {
      const start = performance.now();
      const jobs = await batchGetJobs(options, withPgClient, tasks, `bench-${number}`, null, 1);
      latencies.push(performance.now() - start);
      claims += jobs.length;
    }
  };
  const measure = (time) => {
    latencies.length = claims = 0;
    const end = performance.now() + time * 1000;
    return Promise.all(clients.map((client, number) => run(client, number, end)));
  };
  await measure(1); // Connections and plans are warm.
  await measure(seconds);
  await Promise.all(clients.map((client) => client.end()));
  latencies.sort((a, b) => a - b);
  const rank = (part) => latencies[Math.min(Math.floor(part * latencies.length), latencies.length - 1)].toFixed(1);
  console.log(
    `${Math.round(claims / seconds)} claims/s (${claims} claims in ${seconds} s, ${latencies.length} calls; ` +
      `p50 ${rank(0.5)} ms, p99 ${rank(0.99)} ms)`,
  );
}

const [what, folder, ...rest] = process.argv.slice(2);
if (what === 'fill') await fill(folder, rest[0]);
else if (what === 'refill') await refill(folder);
else if (what === 'claim') await claim(folder, Number(rest[0]), Number(rest[1]), rest[2]);
else throw new Error('usage: claims.mjs fill FOLDER JOBS | refill FOLDER | claim FOLDER CLAIMERS SECONDS on|off');
