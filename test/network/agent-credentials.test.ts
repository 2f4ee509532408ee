// A subscription's token of the host's own agent: it stays in the host's file. A guest has a file that looks like it, with a placeholder in it, and what
// goes to the API has the real one put in, as it is in the host's file at that moment.
import { randomUUID } from 'node:crypto';
import { rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:https';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { AgentCatalogue } from '../../src/agents/catalogue.ts';
import { openLog } from '../../src/lib/log.ts';
import { runtimes } from '../runtimes.ts';
import { get, type Hostile, World } from '../security/egress.fixture.ts';

const host = 'api.anthropic.com';
const first = `sk-ant-oat01-${randomUUID()}`;
const second = `sk-ant-oat01-${randomUUID()}`;
const seen: Record<string, string | string[] | undefined>[] = [];

describe.skipIf(runtimes.length === 0)('a subscription', () => {
  let world: World;
  let login: string;
  let placeholder: string;
  const guests = new Map<string, Hostile>();

  beforeAll(async () => {
    world = await World.open({ lab: { hosts: { [host]: 30 } } });
    const { cert, key } = world.lab.certificate({ names: [host] });
    const api = createServer({ cert, key }, (request, response) => {
      seen.push(request.headers);
      // Careless, as an API may be.
      response.end(JSON.stringify(request.headers));
    });
    await world.lab.listen(30, 443, (socket) => api.emit('connection', socket));
    login = join(world.lab.folder, 'credentials.json');
    writeFileSync(login, JSON.stringify({ claudeAiOauth: { accessToken: first } }));
    ({ placeholder } = await world.secret({
      name: 'anthropic-oauth',
      source: { type: 'file', path: login, json: '/claudeAiOauth/accessToken' },
    }));
    const catalogue = new AgentCatalogue({
      ...{ folder: '/nowhere', defaultRuntime: 'bubblewrap', defaultImage: () => 'host' },
      placeholderOf: (service) => (service === 'anthropic-oauth' ? placeholder : undefined),
      log: openLog({ level: 'silent' }),
    });
    const { files, rules } = await catalogue.prepare(
      { image: '', entrypoint: [], env: {}, metadata: {}, extensions: {}, limits: {}, mounts: [] },
      'claude',
      new AbortController().signal,
    );
    for (const runtime of runtimes)
      guests.set(
        runtime,
        await world.guest(runtime, {
          request: {
            glovebox: {
              files,
              rules: [...(rules ?? []), { decision: 'allow', resources: [world.lab.network] }],
            },
          },
        }),
      );
  });
  afterAll(() => world?.[Symbol.asyncDispose]());

  test.each(runtimes)('in %s: the guest says its placeholder, the API hears the token', async (runtime) => {
    const guest = guests.get(runtime) as Hostile;
    const { stdout } = await guest.shell('cat ~/.claude/.credentials.json');
    const { claudeAiOauth } = JSON.parse(stdout);
    expect(claudeAiOauth.accessToken).toBe(placeholder);
    expect(placeholder).toMatch(/^sk-ant-oat01-/);
    expect((await guest.shell('echo $CLAUDE_CODE_OAUTH_TOKEN')).stdout.trim()).toBe(placeholder);
    const ask = async (token: string) => {
      const lines = [`Authorization: Bearer ${token}`, 'X-Api-Key: an-account-of-somebody-else'];
      const { replies } = await guest.https(`${host}:443`, get('/v1/messages', host, ...lines));
      expect(replies[0]?.status).toBe(200);
      return seen.at(-1);
    };
    writeFileSync(login, JSON.stringify({ claudeAiOauth: { accessToken: first } }));
    const heard = await ask(claudeAiOauth.accessToken);
    expect([heard?.authorization, heard?.['x-api-key']]).toEqual([`Bearer ${first}`, undefined]);

    // The host's own program renews it.
    writeFileSync(login, JSON.stringify({ claudeAiOauth: { accessToken: second } }));
    expect((await ask(claudeAiOauth.accessToken))?.authorization).toBe(`Bearer ${second}`);
    // Somebody else's token takes nothing out.
    expect((await ask('sk-ant-oat01-of-somebody-else'))?.authorization).toBe(`Bearer ${second}`);

    for (const token of [first, second]) {
      expect(guest.heard).not.toContain(token);
      expect(
        (await guest.shell(`grep -rl ${token} / --exclude-dir=proc --exclude-dir=sys 2>/dev/null`)).stdout,
      ).toBe('');
      expect(world.placesOnHost(token)).toEqual([]);
    }
  });

  test.each(
    runtimes,
  )('in %s: a host that has logged out fails requests, and says so to the guest', async (runtime) => {
    const guest = guests.get(runtime) as Hostile;
    rmSync(login, { force: true });
    const { replies } = await guest.https(`${host}:443`, get('/v1/messages', host));
    expect(replies[0]).toMatchObject({ status: 502, body: expect.stringContaining('anthropic-oauth') });
  });
});
