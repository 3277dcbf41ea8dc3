// How long pages and the API take, one request after the other on one connection.
//   scale.mjs URL TOKEN ROUNDS     prints `name<TAB>p50<TAB>p99<TAB>bytes` for each, in ms
//   scale.mjs URL tabs N           N visitors who look at PATHs (arguments behind) every three seconds, until it is ended
import http from 'node:http';

const [url, token, rounds, ...paths] = process.argv.slice(2);
const agent = new http.Agent({ keepAlive: true });

function get(path, options = {}) {
  return new Promise((done, failed) => {
    const started = process.hrtime.bigint();
    http.get(url + path, { agent, ...options }, (answer) => {
      let bytes = 0;
      answer.on('data', (piece) => { bytes += piece.length; });
      answer.on('end', () => {
        if (answer.statusCode !== 200) failed(new Error(`${path}: ${answer.statusCode}`));
        else done({ ms: Number(process.hrtime.bigint() - started) / 1e6, bytes });
      });
    }).on('error', failed);
  });
}

if (token === 'tabs') {
  const each = new http.Agent({ keepAlive: true, maxSockets: Infinity });
  for (let visitor = 0; visitor < Number(rounds); visitor += 1) {
    const look = () => get(paths[visitor % paths.length], { agent: each }).catch(() => {});
    setTimeout(() => { look(); setInterval(look, 3000); }, (3000 * visitor) / Number(rounds));
  }
} else {
  const headers = { authorization: `Bearer ${token}` };
  const all = [
    ['home', '/ci/'], ['queue', '/ci/queue'], ['nodes', '/ci/nodes'], ['project', '/ci/bench/3/'],
    ['evaluation of 20,000', '/ci/bench/1/eval/900000'], ['evaluation of 40', '/ci/bench/3/eval/1000003'],
    ['evaluation that waits', '/ci/bench/2/eval/900001'], ['build', '/ci/bench/1/build/1000001'],
    ['API projects', '/api/v1/projects'], ['API queue', '/api/v1/queue'], ['API status', '/api/v1/status'],
    ['API evaluations', '/api/v1/evaluations'], ['API evaluation of 20,000', '/api/v1/evaluations/900000'],
    ['API head of 20,000', '/api/v1/evaluations/900000/head'], ['API nodes', '/api/v1/nodes'],
  ];
  for (const [name, path] of all) {
    const options = path.startsWith('/api') ? { headers } : {};
    await get(path, options);
    const times = [];
    let bytes = 0;
    for (let round = 0; round < Number(rounds); round += 1) {
      const answer = await get(path, options);
      times.push(answer.ms);
      bytes = answer.bytes;
    }
    times.sort((a, b) => a - b);
    const at = (part) => times[Math.min(times.length - 1, Math.floor(part * times.length))].toFixed(1);
    console.log([name, at(0.5), at(0.99), bytes].join('\t'));
  }
  agent.destroy();
}
