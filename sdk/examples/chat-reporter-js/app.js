// A reporter that posts what happened, as JSON, to the webhook of a chat: ../chat-reporter in JavaScript.

import { send } from 'harmonia:plugin/http@0.1.0';
import { open } from 'harmonia:plugin/secrets@0.1.0';
import { get as setting } from 'harmonia:plugin/settings@0.1.0';

export const description = {
  describe: () => ({
    name: 'chat-reporter-js',
    version: '0.1.0',
    summary: "Posts failures and repairs to a chat's webhook.",
    settings: [
      { name: 'url', summary: 'Where to post.', required: true },
      { name: 'all', summary: '`true`: post successes too.', required: false },
    ],
    secrets: [{ name: 'token', summary: 'Sent as bearer token.', required: true }],
    hosts: [],
  }),
};

export const reporter = {
  report(event) {
    if (!isNews(event) && setting('all') !== 'true') return;
    const url = setting('url');
    if (url === undefined) throw { tag: 'denied', val: 'the setting `url` is missing' };
    const failures = event.failures.map((failure) => `• ${failure.attr}: ${failure.message}`);
    check(post(url, event.key, { text: [headline(event), ...failures].join('\n'), link: event.url }));
  },
};

// A failure, or the first success after one.
function isNews({ kind, failedBefore }) {
  return kind === 'evaluation-failed' || kind === 'builds-failed' || (kind === 'builds-succeeded' && failedBefore === true);
}

function headline({ project, branch, pullRequest, kind, succeeded, failed, title }) {
  const place = pullRequest === undefined ? `${project} ${branch}` : `${project} #${pullRequest}`;
  const all = succeeded + failed;
  const what = {
    'evaluation-succeeded': 'evaluation succeeded',
    'evaluation-failed': 'evaluation failed',
    'builds-succeeded': `all ${all} builds succeeded`,
    'builds-failed': `${failed} of ${all} builds failed`,
  }[kind];
  return title === '' ? `${place}: ${what}` : `${place}: ${what} (${title})`;
}

// Turns a status that is no success into the error that says whether and when to try again.
function check({ status, headers }) {
  if (status >= 200 && status < 300) return;
  const val = `HTTP ${status}`;
  const wait = Number(headers.find(({ name }) => name === 'retry-after')?.value ?? (status === 429 ? 60 : NaN));
  if ([403, 429, 503].includes(status) && Number.isInteger(wait) && wait >= 0) throw { tag: 'retry-after', val: wait };
  if ([401, 402, 403, 404, 407, 410, 451].includes(status)) throw { tag: 'denied', val };
  if (status >= 500 || [408, 425].includes(status)) throw { tag: 'unavailable', val };
  throw { tag: 'invalid', val };
}

function post(url, key, message) {
  try {
    return send({
      method: 'post',
      url,
      headers: [
        { name: 'content-type', value: 'application/json' },
        { name: 'idempotency-key', value: key },
      ],
      body: new TextEncoder().encode(JSON.stringify(message)),
      auth: [{ secret: open('token'), place: { tag: 'header', val: { name: 'authorization', value: 'Bearer ' } } }],
      capture: [],
    });
  } catch (error) {
    throw toReport(error.payload ?? { tag: 'invalid', val: String(error) });
  }
}

// The errors of `http` and `secrets`, as the one of a report.
function toReport({ tag, val }) {
  switch (tag) {
    case 'retry-after':
      return { tag, val };
    case 'denied':
    case 'not-granted':
    case 'unusable':
      return { tag: 'denied', val };
    case 'invalid':
    case 'limit':
      return { tag: 'invalid', val };
    default:
      return { tag: 'unavailable', val: val ?? tag };
  }
}
