// What the screen hears of the bell, from a server that behaves as the test says.
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { SandboxClient } from '../../../sdk/src/index.ts';
import { json, ScriptedServer, sandboxId } from '../../../test/scripted-server.ts';
import { startFeeds } from './feeds.ts';
import { type Event, initialState, type State, update } from './state.ts';

let server: ScriptedServer;
let state: State;
let over: AbortController;

beforeEach(async () => {
  server = await new ScriptedServer().listen();
  state = initialState('/work');
});
afterEach(async () => {
  over.abort();
  await server[Symbol.asyncDispose]();
});

const dispatch = (event: Event) => {
  [state] = update(state, event);
};
function start(): void {
  over = new AbortController();
  const client = new SandboxClient({ url: server.url, apiKey: 'key' });
  startFeeds(client, { state: () => state, dispatch, signal: over.signal });
}
const shows = async (check: () => void) => await vi.waitFor(check, { timeout: 20_000 });

const notification = (seq: number) => ({
  ...{ seq, at: '2026-01-29T10:15:23Z', sandbox: sandboxId, sandboxName: 'web', action: 'notify' },
  ...{ detail: `Build: ${seq}`, decision: 'allow', reason: 'default', outcome: 'ok' },
});

/** As a daemon serves the log: what there is, then nothing more until the stream is ended. */
function serveLog(entries: object[]): { end: () => void } {
  let end = () => {};
  server.on('GET', /^\/v1\/bell\/log$/, ({ query }, response) => {
    if (query.get('follow') === null) return json(response, 200, { items: entries });
    response.writeHead(200, { 'content-type': 'application/x-ndjson' });
    response.write(`\n${entries.map((it) => `${JSON.stringify(it)}\n`).join('')}`);
    end = () => response.end();
  });
  return { end: () => end() };
}

test('what was there before is no news, and what comes while nobody follows is', async () => {
  const entries = [notification(1)];
  const stream = serveLog(entries);
  start();
  await shows(() => expect(server.requests('GET', /bell\/log$/)).toHaveLength(2));
  await shows(() => expect(state.calls?.map((it) => it.seq)).toEqual([1]));

  entries.push(notification(2));
  stream.end();
  await shows(() => expect(state.rung?.text).toBe('web: Build: 2'));

  // Another program has the screen.
  over.abort();
  entries.push(notification(3), notification(4));
  start();
  await shows(() => expect(state.calls?.map((it) => it.seq)).toEqual([1, 2, 3, 4]));
  expect(state.rung?.text).toBe('web: Build: 4');
  expect(server.requests('GET', /bell\/log$/).filter((it) => !it.query.has('follow'))).toHaveLength(1);
});

test('a server without a bell is no trouble, and said in the panel', async () => {
  start();
  await shows(() => expect(state.noBell).toBe('This server has no bell.'));
  await shows(() => expect(state.sandboxes.map((it) => it.name)).toEqual(['web']));
  expect(state.lost).toBeUndefined();
});

test('who may not read the log is told so, until it may be read', async () => {
  server.on('GET', /^\/v1\/bell\/log$/, (_, response) =>
    json(
      response,
      403,
      { code: 'BELL::FORBIDDEN', message: 'only the owner' },
      { 'glovebox-failure': 'permission' },
    ),
  );
  start();
  await shows(() => expect(state.noBell).toContain('only the owner'));
  serveLog([notification(1)]);
  await shows(() => expect(state.calls).toHaveLength(1));
  expect([state.noBell, state.rung]).toEqual([undefined, undefined]);
});
