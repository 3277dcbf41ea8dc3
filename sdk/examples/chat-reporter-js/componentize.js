// node componentize.js WIT RESULT: app.js as a component that imports nothing but what its world names.

import { readFile, writeFile } from 'node:fs/promises';
import { componentize } from '@bytecodealliance/componentize-js';

const [witPath, result] = process.argv.slice(2);
const { component } = await componentize(await readFile('app.js', 'utf8'), {
  witPath,
  worldName: 'chat-reporter',
  disableFeatures: ['stdio', 'random', 'clocks', 'http', 'fetch-event'],
});
await writeFile(result, component);
