// A reporter that posts what happened, as JSON, to the webhook of a chat: ../chat-reporter in JavaScript.

import { send } from 'harmonia:plugin/http@0.1.0';
import { open } from 'harmonia:plugin/secrets@0.1.0';
import { get as setting } from 'harmonia:plugin/settings@0.1.0';

const HEADLINES = {
  'evaluation-succeeded': 'evaluation succeeded',
  'evaluation-failed': 'evaluation failed',
  'builds-succeeded': 'everything is built',
  'builds-failed': 'builds failed',
};

export const description = {
  describe: () => ({
    name: 'chat-reporter-js',
    version: '0.1.0',
    summary: "Posts what happened to a chat's webhook.",
    settings: [{ name: 'url', summary: 'Where to post.', required: true }],
    secrets: [{ name: 'token', summary: 'Sent as bearer token.', required: true }],
    hosts: [],
  }),
};

export const reporter = {
  report(event) {
    const url = setting('url');
    if (url === undefined) throw { tag: 'denied', val: 'the setting `url` is missing' };
    const text = [
      `${event.project} ${event.branch}: ${HEADLINES[event.kind]}`,
      ...event.failures.map((failure) => `• ${failure.attr}: ${failure.message}`),
    ].join('\n');
    const { status } = post(url, event.key, { text, link: event.url });
    if (status === 429 || status >= 500) throw { tag: 'unavailable', val: `HTTP ${status}` };
    if (status >= 300) throw { tag: 'denied', val: `HTTP ${status}` };
  },
};

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
