// What was acknowledged outlives kill -9 at any moment, and a full disk: refused is what cannot be kept, nothing is half-made, what runs goes on, and all is well when there is room.
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { verifyAudit } from '../../src/journal/audit-verify.ts';
import { type Answer, call, create, list, remove, run } from '../client.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { rootfsTar } from '../images.ts';
import { runtimes } from '../runtimes.ts';

describe.skipIf(!runtimes.includes('bubblewrap') || process.getuid?.() !== 0)('a disk that is full', () => {
  const home = makeHome();
  const filler = join(home, 'filler');
  let daemon: TestDaemon;

  beforeAll(async () => {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=48m,mode=700', 'none', home]);
    daemon = await startDaemon({ home, runtime: 'bubblewrap' });
  });
  afterAll(async () => {
    rmSync(filler, { force: true });
    for (const { id } of await list(daemon)) await remove(daemon, id);
    await daemon.stop();
    execFileSync('umount', [home]);
    await expectNothingLeft(home);
  });

  /** Takes all the room there is. */
  const fill = () => {
    for (let bytes = 64 * 1024 * 1024; bytes >= 4_096; bytes /= 2)
      try {
        for (;;) writeFileSync(filler, Buffer.alloc(bytes), { flag: 'a' });
      } catch (error) {
        expect(error).toMatchObject({ code: 'ENOSPC' });
      }
  };

  const files = () =>
    readdirSync(home, { recursive: true, encoding: 'utf8' })
      .filter((it) => !/^(state|bubblewrap)\//.test(it))
      .sort();
  const asked = (path: string, body: unknown, method = 'POST') => call(daemon, method, path, body);
  const inside = (id: string, path: string) => `/v1/sandboxes/${id}/proxy/44772/${path}`;

  test('refuses each kind of change, keeps all that there is, and takes changes again when there is room', async () => {
    const id = await create(daemon);
    const sleep = { argv: ['sleep', '4321'], background: true };
    expect((await asked(inside(id, 'processes'), sleep)).status).toBe(201);
    const running = async () =>
      (
        (await call(daemon, 'GET', inside(id, 'processes'))).body.items as {
          command: string[];
          running: boolean;
        }[]
      )
        .filter((it) => it.running)
        .map((it) => it.command[0]);
    const sandbox = { image: { uri: 'host' }, entrypoint: ['tail', '-f', '/dev/null'], resourceLimits: {} };
    const rule = { decision: 'allow', resources: ['a.example.com'] };
    const secret = { name: 'github', source: { type: 'value', value: 'x'.repeat(9_000) } };
    const kinds: Record<string, () => Promise<Answer>> = {
      sandbox: () => asked('/v1/sandboxes', sandbox),
      rule: () => asked('/v1/policy/rules', rule),
      preset: () => asked('/v1/policy/init', { preset: 'balanced' }),
      secret: () => asked('/v1/secrets', secret, 'PUT'),
      metadata: () => asked(`/v1/sandboxes/${id}/metadata`, { a: 'b' }, 'PATCH'),
      project: () => asked('/v1/projects', { name: 'team' }),
      command: () => asked(inside(id, 'processes'), sleep),
      image: () =>
        fetch(`${daemon.url}/v1/images?name=busy`, {
          method: 'POST',
          headers: { 'OPEN-SANDBOX-API-KEY': daemon.apiKey, 'Content-Type': 'application/octet-stream' },
          body: readFileSync(rootfsTar('busybox')),
        }).then(async (it) => ({
          status: it.status,
          headers: it.headers,
          body: (await it.json()) as Answer['body'],
        })),
    };
    const state = async () => ({
      sandboxes: await list(daemon),
      metadata: (await call(daemon, 'GET', `/v1/sandboxes/${id}`)).body.metadata,
      running: await running(),
      files: files(),
      rest: await Promise.all(
        ['policy/rules', 'secrets', 'projects', 'images'].map((it) => call(daemon, 'GET', `/v1/${it}`)),
      ).then((all) => all.map(({ status, body }) => [status, body.items])),
    });
    const before = await state();
    fill();
    for (const [kind, change] of Object.entries(kinds)) {
      const { status, body } = await change();
      expect([kind, status, body.code], JSON.stringify(body)).toEqual([
        kind,
        507,
        expect.stringContaining('NO_SPACE'),
      ]);
      expect(body.message).toMatch(/full|no space/i);
    }
    const full = [...before.files, 'filler'].sort();
    await expect.poll(state).toEqual({ ...before, files: full });

    // Of what the one before held some room may be free; a daemon that cannot begin without more says why. Either way nothing ends.
    await daemon.kill();
    const begun = await startDaemon({ home, runtime: 'bubblewrap' }).catch((error: unknown) => String(error));
    if (typeof begun === 'string') expect(begun).toMatch(/no space left on device|disk is full/);
    rmSync(filler);
    daemon = typeof begun === 'string' ? await startDaemon({ home, runtime: 'bubblewrap' }) : begun;
    await until('the command', running, (it) => it.includes('sleep'));
    fill();
    await until('a refusal', kinds.rule as () => Promise<Answer>, ({ status }) => status === 507);

    rmSync(filler);
    for (const [kind, change] of Object.entries(kinds))
      expect([kind, (await until(kind, change, ({ status }) => status !== 507)).status]).toEqual([
        kind,
        expect.toBeOneOf([200, 201, 202]),
      ]);
    expect(await run(daemon, id, 'echo well')).toMatchObject({ stdout: 'well\n' });
    expect(await verifyAudit(join(home, 'audit'))).toMatchObject({ ok: true });
  });
});

/** A small repeatable generator, so that a failure can be played again from its seed. */
function randomFrom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

describe('kill -9 at any moment', () => {
  const rounds = 8;

  test('rules, secrets and projects are as they were acknowledged', async () => {
    const random = randomFrom(20261126);
    const home = makeHome();
    /** What has to be there, and what may be, by kind and name: true is there, false is not. */
    const known = new Map<string, boolean>();
    const doubtful = new Set<string>();
    let made = 0;
    let acknowledged = 0;
    for (let round = 0; round < rounds; round += 1) {
      const daemon = await startDaemon({ home, runtime: 'memory' });
      const there = await present(daemon);
      for (const [name, is] of known)
        if (!doubtful.has(name)) expect([round, name, there.has(name)]).toEqual([round, name, is]);
      for (const name of there.keys())
        expect(known.has(name) || doubtful.has(name), `${name} was never asked for`).toBe(true);
      expect(await verifyAudit(join(home, 'audit'))).toMatchObject({ ok: true });
      // What was in doubt is known now.
      for (const name of doubtful) known.set(name, there.has(name));
      doubtful.clear();
      const work = async (worker: number) => {
        for (;;) {
          const kind = kinds[Math.floor(random() * kinds.length)] as keyof typeof changes;
          const mine = [...there].filter(([name]) => name.startsWith(`${kind} w${worker}`));
          const dropped = random() < 0.4 ? mine[0] : undefined;
          const name = dropped?.[0] ?? `${kind} w${worker}-${++made}`;
          doubtful.add(name);
          const { status, body } = await (dropped === undefined
            ? changes[kind].add(daemon, name.slice(kind.length + 1))
            : changes[kind].drop(daemon, dropped[1]));
          expect([200, 201, 204], `${name}: ${JSON.stringify(body)}`).toContain(status);
          if (dropped === undefined) there.set(name, String(kind === 'project' ? body.name : body.id));
          else there.delete(name);
          known.set(name, dropped === undefined);
          doubtful.delete(name);
          acknowledged += 1;
        }
      };
      const enough = acknowledged + 4 + Math.floor(random() * 24);
      const stopped: unknown[] = [];
      const working = [0, 1, 2].map((worker) =>
        work(worker).catch((error: unknown) => void stopped.push(error)),
      );
      await until(
        'changes',
        () => acknowledged,
        (it) => it >= enough || stopped.length > 0,
      );
      expect(stopped).toEqual([]);
      await daemon.kill();
      await Promise.all(working);
      for (const error of stopped) expect(String(error)).toMatch(/fetch failed|terminated/);
    }
    await expectNothingLeft(home);
  });
});

interface Kind {
  add(daemon: TestDaemon, name: string): Promise<Answer>;
  drop(daemon: TestDaemon, id: string): Promise<Answer>;
  /** Names and ids of all there are. */
  all(daemon: TestDaemon): Promise<[name: string, id: string][]>;
}

const itemsOf = async (daemon: TestDaemon, path: string) =>
  (await call(daemon, 'GET', path)).body.items as Record<string, string>[];

const changes = {
  rule: {
    add: (daemon, name) =>
      call(daemon, 'POST', '/v1/policy/rules', { decision: 'allow', resources: [`${name}.test`] }),
    drop: (daemon, id) => call(daemon, 'DELETE', `/v1/policy/rules/${id}`),
    all: async (daemon) =>
      (await itemsOf(daemon, '/v1/policy/rules')).map((it) => [
        String(it.resources).replace('.test', ''),
        it.id as string,
      ]),
  },
  secret: {
    add: (daemon, name) =>
      call(daemon, 'PUT', '/v1/secrets', {
        ...{ name, source: { type: 'value', value: `value of ${name}` } },
        bindings: [{ hosts: [`${name}.example.com`], header: 'x-key' }],
      }),
    drop: (daemon, id) => call(daemon, 'DELETE', `/v1/secrets/${id}`),
    all: async (daemon) =>
      (await itemsOf(daemon, '/v1/secrets')).map((it) => [it.name as string, it.id as string]),
  },
  project: {
    add: (daemon, name) => call(daemon, 'POST', '/v1/projects', { name }),
    drop: (daemon, id) => call(daemon, 'DELETE', `/v1/projects/${id}`),
    all: async (daemon) =>
      (await itemsOf(daemon, '/v1/projects')).map((it) => [it.name as string, it.name as string]),
  },
} satisfies Record<string, Kind>;
const kinds = Object.keys(changes) as (keyof typeof changes)[];

/** Ids by kind and name. */
async function present(daemon: TestDaemon): Promise<Map<string, string>> {
  const found = new Map<string, string>();
  for (const kind of kinds)
    for (const [name, id] of await changes[kind].all(daemon)) found.set(`${kind} ${name}`, id);
  return found;
}
