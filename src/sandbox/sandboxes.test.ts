import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { nameLabel } from '../contract/admin.ts';
import type { SandboxState } from '../contract/sandbox.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import { useRunningTime } from '../lib/running-time.fixture.ts';
import { openSqliteStore } from '../store/sqlite/sqlite.ts';
import type { Store } from '../store/store.ts';
import { nowhereElse } from './elsewhere.ts';
import { FakeRuntime, honest, noBuckets } from './fake-runtime.fixture.ts';
import type { SandboxNetwork } from './network.ts';
import type { CreateRequest, SandboxDefaults } from './sandbox.ts';
import { Sandboxes } from './sandboxes.ts';
import { Volumes } from './volumes.ts';
import type { SandboxPorts, SandboxWorkspaces } from './workspaces.ts';

const never = new AbortController().signal;
const request: CreateRequest = {
  image: 'any',
  entrypoint: [],
  env: {},
  metadata: {},
  extensions: {},
  limits: {},
  mounts: [],
};

let home: string;
let store: Store;
let runtime: FakeRuntime;
let open: Sandboxes[];
let now: () => Date;
/** Names of store methods that throw as on a full disk. */
let broken: Set<keyof Store>;
/** What the network around sandboxes was told. */
let told: string[];
/** What the folders and ports of the host around sandboxes were told. */
let surroundings: string[];
let logged: { message: string; fields: Record<string, unknown> }[];

beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), 'glovebox-sandboxes-'));
  broken = new Set();
  const real = openSqliteStore(join(home, 'db'));
  store = new Proxy(real, {
    get: (target, name: keyof Store) => {
      if (broken.has(name)) throw new Failure('full', `${name}: no space left`);
      return target[name];
    },
  });
  runtime = new FakeRuntime();
  open = [];
  now = () => new Date();
  logged = [];
  told = [];
  surroundings = [];
});

afterEach(async () => {
  broken.clear();
  runtime.before.remove = async () => {};
  for (const sandboxes of open) {
    await Promise.allSettled(sandboxes.list().map(({ id }) => sandboxes.remove(id, never)));
    await sandboxes.close();
  }
  for (const machine of runtime.machines.values()) machine.die('exited', 0);
  store.close();
  rmSync(home, { recursive: true, force: true });
});

const write = (fields: Record<string, unknown>, message: string) => void logged.push({ fields, message });
const log: Log = { debug: write, info: write, warn: write, error: write };

/** A network that notes what it is told. */
const network: SandboxNetwork = {
  open: ({ id }) => void told.push(`open ${id}`),
  adopt: ({ id }) => void told.push(`adopt ${id}`),
  files: () => ({ 'ca.crt': 'a certificate' }),
  environment: () => ({ HTTP_PROXY: 'http://127.0.0.1:3128', MINE: 'network' }),
  handOver: async ({ id }) => void told.push(`hand over ${id}`),
  attach: async (id, { walls, fresh }) => void told.push(`attach ${id} ${walls} ${fresh}`),
  allowMeanwhile: async (id, resources) => {
    told.push(`allow ${id} ${resources.join()}`);
    return { [Symbol.dispose]: () => void told.push(`no longer ${id}`) };
  },
  accept: (_id, socket) => socket.destroy(),
  detach: (id) => void told.push(`detach ${id}`),
  forget: async (id) => void told.push(`forget ${id}`),
};

/** Folders and ports of the host that note what they are told. */
const workspaces: SandboxWorkspaces = {
  check: async (requests) => [...requests],
  open: async ({ id, workspaces: wanted }) => {
    if (wanted.length > 0) surroundings.push(`open ${id}`);
    return wanted.map(({ path, readOnly }) => ({ hostPath: path, guestPath: path, readOnly }));
  },
  mounts: async ({ workspaces: wanted }) =>
    wanted.map(({ path, readOnly }) => ({ hostPath: path, guestPath: path, readOnly })),
  attach: async ({ id }, { fresh }) => void surroundings.push(`attach ${id} ${fresh}`),
  beforeCommand: async (_info, label) => void surroundings.push(`before ${label}`),
  detach: async (id) => void surroundings.push(`detach ${id}`),
  forget: async ({ id }) => void surroundings.push(`forget ${id}`),
};
const ports: SandboxPorts = {
  reserve: async () => undefined,
  attach: async ({ id }) => void surroundings.push(`ports ${id}`),
  detach: async (id) => void surroundings.push(`no ports ${id}`),
};

async function start(defaults: SandboxDefaults = {}): Promise<Sandboxes> {
  const folders = { run: join(home, 'run'), machines: join(home, 'machines'), logs: join(home, 'logs') };
  const sandboxes = await Sandboxes.open({
    runtimes: new Map([['fake', runtime]]),
    defaultRuntime: 'fake',
    store,
    elsewhere: nowhereElse,
    network,
    workspaces,
    ports,
    buckets: noBuckets(),
    volumes: new Volumes({ folder: join(home, 'volumes'), records: store.collection('volume'), log, now }),
    folders,
    allowedHostPaths: [],
    defaults,
    log,
    now: () => now(),
  });
  open.push(sandboxes);
  return sandboxes;
}

/** As when the daemon is killed: nothing of it goes on, the machines do. */
async function restart(sandboxes: Sandboxes): Promise<Sandboxes> {
  await sandboxes.close();
  open.splice(open.indexOf(sandboxes), 1);
  return start();
}

async function until(what: string, holds: () => boolean): Promise<void> {
  for (const deadline = performance.now() + 20_000; !holds(); await delay(5))
    if (performance.now() > deadline) throw new Error(`never came: ${what}`);
}

function left(): string[] {
  return ['run', 'machines', 'logs']
    .filter((name) => existsSync(join(home, name)))
    .flatMap((name) => readdirSync(join(home, name)))
    .concat([...runtime.machines.keys()]);
}

const codeOf = (work: Promise<unknown> | (() => unknown)): Promise<string> =>
  Promise.resolve(typeof work === 'function' ? Promise.try(work) : work).then(
    () => 'ok',
    (error: unknown) => (error as Failure).code ?? String(error),
  );

describe('what each state allows', () => {
  const operations = {
    pause: (it: Sandboxes, id: string) => it.pause(id, never),
    resume: (it: Sandboxes, id: string) => it.resume(id, never),
    guest: (it: Sandboxes, id: string) => it.guest(id).ping(),
    renew: (it: Sandboxes, id: string) => it.renew(id, new Date(Date.now() + 1e6)),
    metadata: (it: Sandboxes, id: string) => it.patchMetadata(id, { a: 'b' }),
    remove: (it: Sandboxes, id: string) => it.remove(id, never),
  };
  type Row = Record<keyof typeof operations, string>;
  const usual = { renew: 'ok', metadata: 'ok', remove: 'ok' };
  const table: [SandboxState, Row][] = [
    ['Pending', { ...usual, pause: 'aborted', resume: 'aborted', guest: 'conflict' }],
    ['Running', { ...usual, pause: 'ok', resume: 'conflict', guest: 'ok' }],
    ['Pausing', { ...usual, pause: 'conflict', resume: 'ok', guest: 'conflict' }],
    ['Paused', { ...usual, pause: 'conflict', resume: 'ok', guest: 'conflict' }],
    ['Resuming', { ...usual, pause: 'ok', resume: 'conflict', guest: 'conflict' }],
    ['Terminated', { ...usual, pause: 'conflict', resume: 'conflict', guest: 'conflict' }],
    ['Failed', { ...usual, pause: 'conflict', resume: 'conflict', guest: 'conflict' }],
    ['Stopping', { ...usual, pause: 'conflict', resume: 'conflict', guest: 'conflict' }],
  ];
  const cases = table.flatMap(([state, row]) =>
    Object.entries(row).map(([operation, result]) => [state, operation as keyof Row, result] as const),
  );

  test.each(cases)('%s: %s → %s', async (state, operation, result) => {
    const sandboxes = await start();
    const gate = Promise.withResolvers<void>();
    const waits = async () => await gate.promise;
    const id = await bring(sandboxes, state, waits);
    expect(sandboxes.get(id).state).toBe(state);
    const outcome = codeOf(() => operations[operation](sandboxes, id));
    // What waits for its turn gets it; whoever waits behind a creation is told how that ended.
    if (state === 'Pending' && ['pause', 'resume'].includes(operation)) await sandboxes.remove(id, never);
    gate.resolve();
    const seen = await outcome;
    expect(state === 'Pending' && ['pause', 'resume'].includes(operation) ? 'aborted' : seen).toBe(result);
  });

  /** A sandbox in a state; states on the way last until the gate opens. */
  async function bring(it: Sandboxes, state: SandboxState, waits: () => Promise<void>): Promise<string> {
    if (state === 'Pending')
      runtime.before.create = (signal) =>
        Promise.race([
          waits(),
          new Promise<never>((_, reject) => {
            if (signal.aborted) reject(signal.reason);
            signal.addEventListener('abort', () => reject(signal.reason));
          }),
        ]);
    const creation = it.create({ ...request, timeoutMs: 1e7 }, never);
    creation.catch(() => {});
    const id = (it.list()[0] as { id: string } | undefined)?.id ?? (await idOf(it));
    if (state === 'Pending') return id;
    await creation;
    const machine = runtime.machines.get(id);
    if (state === 'Terminated') machine?.die('exited', 0);
    if (state === 'Failed') machine?.die('out-of-memory');
    if (state === 'Pausing') runtime.before.pause = waits;
    if (['Pausing', 'Paused', 'Resuming'].includes(state)) {
      const paused = it.pause(id, never);
      if (state !== 'Pausing') await paused;
    }
    if (state === 'Resuming') {
      runtime.before.resume = waits;
      void it.resume(id, never);
    }
    if (state === 'Stopping') {
      runtime.before.remove = waits;
      void it.remove(id, never);
    }
    await until(state, () => it.get(id).state === state);
    return id;
  }

  async function idOf(it: Sandboxes): Promise<string> {
    await until('a record', () => it.list().length === 1);
    return (it.list()[0] as { id: string }).id;
  }
});

describe('a creation that fails leaves nothing, and is remembered', () => {
  const hostile = (): ReturnType<typeof honest> => {
    const plain = honest();
    return (call) =>
      call.request.op === 'exec' ? call.stream.reset({ code: 'no', message: 'no' }) : plain(call);
  };
  const steps: [string, string, () => void][] = [
    ['the record cannot be saved', 'full', () => broken.add('saveSandbox')],
    ['the machine cannot be made', 'unavailable', () => failing('create', 'unavailable')],
    [
      'the agent refuses the main process',
      'unknown',
      () => {
        runtime.answer = hostile;
      },
    ],
    ['the command cannot be recorded', 'full', () => broken.add('saveExecution')],
  ];
  test.each(steps)('%s', async (_step, code, prepare) => {
    const sandboxes = await start();
    prepare();
    expect(await codeOf(sandboxes.create({ ...request, entrypoint: ['app'] }, never))).toBe(code);
    expect(sandboxes.list()).toEqual([]);
    expect(left()).toEqual([]);
  });

  test('even when the machine then cannot be removed at once: it is tried again', async () => {
    const sandboxes = await start();
    runtime.answer = hostile;
    failing('remove', 'unavailable');
    expect(await codeOf(sandboxes.create({ ...request, entrypoint: ['app'] }, never))).toBe('unknown');
    expect(sandboxes.list()).toMatchObject([{ state: 'Stopping', reason: 'create-failed' }]);
    const { id } = sandboxes.list()[0] as { id: string };
    delete runtime.before.remove;
    await sandboxes.remove(id, never);
    expect(left()).toEqual([]);
    expect(await codeOf(() => sandboxes.get(id))).toBe('not-found');
    expect(store.death(id)).toMatchObject({ reason: 'create-failed' });
  });

  test('when its sandbox is removed meanwhile, though the agent answers nothing', async () => {
    const sandboxes = await start();
    let asked = false;
    runtime.answer = () => () => {
      asked = true;
    };
    const creation = codeOf(sandboxes.create({ ...request, entrypoint: ['app'] }, never));
    await until('the agent was asked', () => asked);
    await sandboxes.remove((sandboxes.list()[0] as { id: string }).id, never);
    expect(await creation).toBe('aborted');
    expect(left()).toEqual([]);
  });
});

function failing(operation: 'create' | 'list' | 'remove', code: 'unavailable'): void {
  runtime.before[operation] = async () => {
    throw new Failure(code, `${operation} fails on purpose`);
  };
}

describe('a full disk', () => {
  test('stops no removal: that is how room is made', async () => {
    const sandboxes = await start();
    const { id } = await sandboxes.create(request, never);
    broken.add('saveSandbox');
    await sandboxes.remove(id, never);
    expect(left()).toEqual([]);
    expect(store.sandboxes()).toEqual([]);
  });

  test('refuses what cannot be remembered, and nothing has changed', async () => {
    const sandboxes = await start();
    const { id, expiresAt } = await sandboxes.create({ ...request, timeoutMs: 1e6 }, never);
    broken.add('saveSandbox');
    expect(await codeOf(() => sandboxes.renew(id, new Date(Date.now() + 1e9)))).toBe('full');
    expect(await codeOf(() => sandboxes.patchMetadata(id, { a: 'b' }))).toBe('full');
    expect(await codeOf(sandboxes.pause(id, never))).toBe('full');
    expect(sandboxes.get(id)).toMatchObject({ expiresAt, metadata: {}, state: 'Running' });
    expect(runtime.calls).not.toContain('pause');
  });

  test('hides no end of a machine', async () => {
    const sandboxes = await start();
    const { id } = await sandboxes.create(request, never);
    broken.add('saveSandbox');
    runtime.machines.get(id)?.die('out-of-memory');
    await until('Failed', () => sandboxes.get(id).state === 'Failed');
    await until('nothing left', () => left().length === 0);
  });

  test('leaves the last step of a removal for later', async () => {
    const sandboxes = await start();
    const { id } = await sandboxes.create(request, never);
    broken.add('burySandbox');
    expect(await codeOf(sandboxes.remove(id, never))).toBe('full');
    broken.clear();
    await sandboxes.remove(id, never);
    expect(store.death(id)).toMatchObject({ reason: 'removed' });
  });
});

test('of two creations with one name at the same moment, one wins', async () => {
  const sandboxes = await start();
  const named = { ...request, metadata: { [nameLabel]: 'demo' } };
  const outcomes = await Promise.all([
    codeOf(sandboxes.create(named, never)),
    codeOf(sandboxes.create(named, never)),
  ]);
  expect(outcomes.sort()).toEqual(['conflict', 'ok']);
});

test('an expired sandbox that cannot be removed is not tried without a pause', async () => {
  useRunningTime();
  const sandboxes = await start();
  const { id } = await sandboxes.create({ ...request, timeoutMs: 20 }, never);
  failing('remove', 'unavailable');
  await until('the first try', () => runtime.calls.includes('remove'));
  await delay(200);
  expect(runtime.calls.filter((it) => it === 'remove').length).toBeLessThan(3);
  expect(sandboxes.get(id).state).toBe('Stopping');
});

describe('a runtime that cannot be asked when the daemon starts', () => {
  async function downAtStart(timeoutMs?: number): Promise<{ sandboxes: Sandboxes; id: string }> {
    const before = await start();
    const { id } = await before.create({ ...request, ...(timeoutMs ? { timeoutMs } : {}) }, never);
    failing('list', 'unavailable');
    return { sandboxes: await restart(before), id };
  }

  test('is not asked without a pause, though a sandbox of it has expired', async () => {
    useRunningTime();
    const { sandboxes, id } = await downAtStart(1_000);
    now = () => new Date(Date.now() + 1e6);
    await sandboxes.create(request, never).catch(() => {});
    await delay(200);
    expect(runtime.calls.filter((it) => it === 'list').length).toBeLessThan(5);
    expect(runtime.machines.has(id)).toBe(true);
  });

  test('keeps what is asked to be removed until the machine is gone too', async () => {
    const { sandboxes, id } = await downAtStart();
    expect(await codeOf(sandboxes.remove(id, never))).toBe('unavailable');
    expect(sandboxes.get(id)).toMatchObject({ state: 'Stopping', reason: 'removed' });
    expect(runtime.machines.has(id)).toBe(true);
  });

  test('takes nothing that was made meanwhile for lost when it answers', async () => {
    const before = await start();
    await before.create(request, never);
    failing('list', 'unavailable');
    const sandboxes = await restart(before);
    const answer = Promise.withResolvers<void>();
    runtime.before.list = () => answer.promise;
    const again = sandboxes.lookAround();
    const { id } = await sandboxes.create(request, never);
    answer.resolve();
    await again;
    expect(sandboxes.list().map(({ state }) => state)).toEqual(['Running', 'Running']);
    await sandboxes.guest(id).ping();
  });

  test('is compared once, however often it is looked at', async () => {
    const before = await start();
    const { id } = await before.create(request, never);
    failing('list', 'unavailable');
    const sandboxes = await restart(before);
    const answer = Promise.withResolvers<void>();
    runtime.before.list = () => answer.promise;
    const looks = [sandboxes.lookAround(), sandboxes.lookAround()];
    answer.resolve();
    await Promise.all(looks);
    await until('its agent', () => sandboxes.get(id).state === 'Running');
    expect(logged.filter(({ fields }) => fields.reason === 'adopted')).toHaveLength(1);
  });
});

describe('after a restart', () => {
  const cases: [string, SandboxState, (id: string, it: Sandboxes) => void | Promise<void>][] = [
    ['a running sandbox runs', 'Running', () => {}],
    ['a frozen one is frozen', 'Paused', (id, it) => it.pause(id, never)],
    [
      'one that is recorded as frozen and is not, runs',
      'Running',
      async (id, it) => {
        await it.pause(id, never);
        (runtime.machines.get(id) as { paused: boolean }).paused = false;
      },
    ],
    ['one whose machine is gone has failed', 'Failed', (id) => void runtime.machines.delete(id)],
  ];
  test.each(cases)('%s', async (_fact, state, prepare) => {
    const before = await start();
    const { id } = await before.create(request, never);
    await prepare(id, before);
    const after = await restart(before);
    expect(after.get(id).state).toBe(state);
    if (state === 'Running') await after.guest(id).ping();
  });

  test('a sandbox whose machine ends in the same moment has failed, and nothing is left', async () => {
    const before = await start();
    const { id } = await before.create(request, never);
    await before.close();
    runtime.machines.get(id)?.die('lost');
    const after = await start();
    await until('Failed', () => after.get(id).state === 'Failed');
    await until('nothing left', () => left().length === 0);
  });

  test('a stray folder that cannot be removed does not keep the daemon from starting', async () => {
    const before = await start();
    await before.close();
    const { mkdirSync } = await import('node:fs');
    const { execFileSync } = await import('node:child_process');
    const stray = join(home, 'run', 'stray', 'mounted');
    mkdirSync(stray, { recursive: true });
    let mounted = true;
    try {
      execFileSync('mount', ['-t', 'tmpfs', 'none', stray], { stdio: 'ignore' });
    } catch {
      // Not root: the folder can be removed then, and the start is as good.
      mounted = false;
    }
    try {
      await start();
    } finally {
      if (mounted) execFileSync('umount', [stray]);
    }
  });
});

describe('the network around a sandbox', () => {
  test('is in place before the first command, and is taken away before the sandbox is forgotten', async () => {
    const sandboxes = await start();
    let toldAtFirstCommand: string[] = [];
    runtime.answer = () => {
      const usual = honest();
      return (call) => {
        if (call.request.op === 'exec') toldAtFirstCommand = [...told];
        usual(call);
      };
    };
    const { id } = await sandboxes.create({ ...request, entrypoint: ['serve'] }, never);
    expect(toldAtFirstCommand).toEqual([`open ${id}`, `attach ${id} captured true`]);
    await sandboxes.remove(id, never);
    expect(told.slice(2)).toEqual([`detach ${id}`, `forget ${id}`]);
  });

  test('sets variables under those of the creator', async () => {
    const sandboxes = await start();
    const { id } = await sandboxes.create({ ...request, env: { MINE: 'creator' } }, never);
    expect(sandboxes.executions(id).environment()).toEqual({
      PATH: '/bin',
      HTTP_PROXY: 'http://127.0.0.1:3128',
      MINE: 'creator',
    });
  });

  test('takes a sandbox up again after a restart', async () => {
    const before = await start();
    const { id } = await before.create(request, never);
    told = [];
    await restart(before);
    expect(told).toEqual([`adopt ${id}`, `attach ${id} captured false`]);
  });

  test('a policy that it cannot keep fails the creation, and nothing is left', async () => {
    const sandboxes = await start();
    const attach = vi.spyOn(network, 'attach').mockRejectedValue(new Failure('unsupported', 'open walls'));
    expect(await codeOf(sandboxes.create(request, never))).toBe('unsupported');
    attach.mockRestore();
    expect(left()).toEqual([]);
  });
});

describe('what is kept', () => {
  const kept: CreateRequest = { ...request, keep: true };
  const step = (run: string) => ({ run, when: 'start' as const, timeoutSeconds: 5 });

  test('stops with its machine kept, starts on it, and is removed with all it had', async () => {
    const sandboxes = await start();
    const { id } = await sandboxes.create(kept, never);
    await sandboxes.stop(id, never);
    await sandboxes.stop(id, never);
    expect(sandboxes.get(id)).toMatchObject({ state: 'Stopped', reason: 'stopped' });
    expect(runtime.machines.has(id)).toBe(true);
    expect(await codeOf(() => sandboxes.guest(id).ping())).toBe('conflict');
    await sandboxes.start(id, never);
    await sandboxes.start(id, never);
    expect(sandboxes.get(id).state).toBe('Running');
    await sandboxes.guest(id).ping();
    expect(runtime.calls.filter((it) => it === 'start')).toHaveLength(1);
    expect(told).toContain(`attach ${id} captured false`);
    await sandboxes.remove(id, never);
    expect(left()).toEqual([]);
    expect(surroundings.at(-1)).toBe(`forget ${id}`);
  });

  test('a machine that ends by itself, or with a restart of the host, leaves it stopped', async () => {
    const sandboxes = await start();
    const { id } = await sandboxes.create(kept, never);
    runtime.machines.get(id)?.die('lost');
    await until('it to be stopped', () => sandboxes.get(id).state === 'Stopped');
    expect(sandboxes.get(id).reason).toBe('lost');
    await sandboxes.start(id, never);
    const again = await restart(sandboxes);
    await until('it to run', () => again.get(id).state === 'Running');
    runtime.machines.get(id)?.die('exited', 0);
    await until('it to be stopped again', () => again.get(id).state === 'Stopped');
  });

  test('what is not kept can be neither stopped nor left stopped', async () => {
    const sandboxes = await start();
    const { id } = await sandboxes.create(request, never);
    expect(await codeOf(sandboxes.stop(id, never))).toBe('conflict');
    expect(sandboxes.get(id).state).toBe('Running');
  });

  test('a start that fails leaves it stopped, and the next one may succeed', async () => {
    const sandboxes = await start();
    const { id } = await sandboxes.create(kept, never);
    await sandboxes.stop(id, never);
    runtime.before.start = async () => Promise.reject(new Failure('unavailable', 'the engine is down'));
    expect(await codeOf(sandboxes.start(id, never))).toBe('unavailable');
    expect(sandboxes.get(id).state).toBe('Stopped');
    runtime.before.start = async () => undefined;
    await sandboxes.start(id, never);
    expect(sandboxes.get(id).state).toBe('Running');
  });

  test.each([
    'stop',
    'start',
  ] as const)('a daemon that dies while it is to %s leaves it stopped', async (step) => {
    const sandboxes = await start();
    const { id } = await sandboxes.create(kept, never);
    if (step === 'start') await sandboxes.stop(id, never);
    const reached = Promise.withResolvers<void>();
    // The daemon's own end: what waits here never goes on.
    runtime.before[step] = async () => {
      reached.resolve();
      await new Promise(() => {});
    };
    void (step === 'stop' ? sandboxes.stop(id, never) : sandboxes.start(id, never)).catch(() => {});
    await reached.promise;
    runtime.before[step] = async () => undefined;
    open.splice(open.indexOf(sandboxes), 1);
    const again = await start();
    await until('it to be stopped', () => again.get(id).state === 'Stopped');
    await again.start(id, never);
    expect(again.get(id).state).toBe('Running');
  });

  test('left alone for long enough it stops by itself; a hold or a command keeps it', async () => {
    useRunningTime();
    const sandboxes = await start();
    const { id } = await sandboxes.create({ ...kept, autoStopAfterMs: 200 }, never);
    const held = sandboxes.hold(id);
    const command = await sandboxes.executions(id).start({ argv: ['x'], stdin: 'none' });
    expect(sandboxes.activity(id)).toEqual({ holds: 1, commands: 1 });
    held[Symbol.dispose]();
    await command.signal('SIGKILL');
    await until('it to be stopped', () => sandboxes.get(id).state === 'Stopped');
    expect(sandboxes.get(id)).toMatchObject({ reason: 'idle' });
    expect(sandboxes.get(id).lastUsedAt).toBeInstanceOf(Date);
  });

  test('its steps run before it is there to be used: all at first, those of each start again', async () => {
    const sandboxes = await start();
    const commands: string[] = [];
    const plain = honest();
    runtime.answer = () => (call) => {
      if (call.request.op !== 'exec') return plain(call);
      commands.push(String(call.request.shell));
      call.reply({ type: 'started', pid: 9, startedAt: 1, from: 0 });
      call.reply({ type: 'exit', end: 0, exit: { code: 0, signal: null, reason: 'exited' } });
      call.end();
    };
    const setup = [
      { ...step('once'), when: 'create' as const, hosts: ['a.test', 'b.test:80'] },
      step('always'),
    ];
    const { id } = await sandboxes.create({ ...kept, setup }, never);
    expect(commands).toEqual(['once', 'always']);
    // What one step may reach is closed again before the next.
    expect(told).toContain(`allow ${id} a.test:443,b.test:80`);
    expect(told.indexOf(`no longer ${id}`)).toBe(told.indexOf(`allow ${id} a.test:443,b.test:80`) + 1);
    await sandboxes.stop(id, never);
    await sandboxes.start(id, never);
    expect(commands).toEqual(['once', 'always', 'always']);
  });

  test('a step that fails fails the creation, and nothing is left', async () => {
    const sandboxes = await start();
    const plain = honest();
    runtime.answer = () => (call) => {
      if (call.request.op !== 'exec') return plain(call);
      call.reply({ type: 'started', pid: 9, startedAt: 1, from: 0 });
      call.reply({ type: 'exit', end: 0, exit: { code: 3, signal: null, reason: 'exited' } });
      call.end();
    };
    await expect(sandboxes.create({ ...kept, setup: [step('broken')] }, never)).rejects.toMatchObject({
      code: 'invalid',
      message: expect.stringContaining('setup step "broken" ended with exit code 3'),
    });
    expect(sandboxes.list()).toEqual([]);
    expect(left()).toEqual([]);
  });

  test('an image is made of it whether it runs or not', async () => {
    const sandboxes = await start();
    const { id } = await sandboxes.create(kept, never);
    await sandboxes.save(id, 'mine:1', never);
    await sandboxes.stop(id, never);
    await sandboxes.save(id, 'mine:2', never);
    expect(runtime.saved).toEqual(['mine:1', 'mine:2']);
  });
});

describe('use', () => {
  const renewed = { ...request, timeoutMs: 60_000, renewOnAccessMs: 300_000 };

  test('makes a sandbox live longer that asked for it, at most once a minute, and never shorter', async () => {
    let at = Date.now();
    now = () => new Date(at);
    const sandboxes = await start();
    const { id } = await sandboxes.create(renewed, never);
    const plain = await sandboxes.create({ ...request, timeoutMs: 60_000 }, never);
    const left = (of: string) => (sandboxes.get(of).expiresAt?.getTime() ?? 0) - at;
    at += 10_000;
    for (const it of [id, plain.id, 'unknown']) sandboxes.touch(it);
    expect([left(id), left(plain.id)]).toEqual([300_000, 50_000]);
    at += 59_999;
    sandboxes.touch(id);
    expect(left(id)).toBe(300_000 - 59_999);
    at += 1;
    sandboxes.touch(id);
    expect(left(id)).toBe(300_000);
    sandboxes.renew(id, new Date(at + 10_000_000));
    at += 60_000;
    sandboxes.touch(id);
    expect(left(id)).toBe(10_000_000 - 60_000);
    const again = await restart(sandboxes);
    expect(again.get(id).expiresAt?.getTime()).toBe(at + 10_000_000 - 60_000);
  });

  test('is none of what is paused, and a full disk does not fail it', async () => {
    const sandboxes = await start();
    const { id } = await sandboxes.create(renewed, never);
    const before = sandboxes.get(id).expiresAt;
    broken.add('saveSandbox');
    sandboxes.touch(id);
    broken.clear();
    expect(sandboxes.get(id).expiresAt).toEqual(before);
    await sandboxes.pause(id, never);
    sandboxes.touch(id);
    expect(sandboxes.get(id).expiresAt).toEqual(before);
  });

  test('that does not come lets a sandbox be paused, and once more after it was resumed', async () => {
    const sandboxes = await start();
    const { id } = await sandboxes.create({ ...request, autoPauseAfterMs: 50 }, never);
    const paused = () => sandboxes.get(id).state === 'Paused';
    await until('the pause', paused);
    expect(sandboxes.get(id)).toMatchObject({
      reason: 'idle',
      message: expect.stringContaining('nothing ran'),
    });
    expect(runtime.machines.get(id)?.paused).toBe(true);
    await sandboxes.resume(id, never);
    await until('the second pause', paused);
    const states = sandboxes.history(id).transitions?.map(({ state }) => state);
    expect(states?.slice(0, 7)).toEqual([
      'Running',
      'Pausing',
      'Paused',
      'Resuming',
      'Running',
      'Pausing',
      'Paused',
    ]);
  });

  test('or its absence does what the daemon has as its default, unless a request says otherwise', async () => {
    const defaults = { autoPauseAfterMs: 3_600_000, autoStopAfterMs: 7_200_000, renewOnAccessMs: 300_000 };
    const sandboxes = await start(defaults);
    const times = async (more: Partial<CreateRequest>) => {
      const { autoPauseAfterMs, autoStopAfterMs, renewOnAccessMs, id } = await sandboxes.create(
        { ...request, ...more },
        never,
      );
      return { id, times: [autoPauseAfterMs, autoStopAfterMs, renewOnAccessMs] };
    };
    expect((await times({})).times).toEqual([3_600_000, undefined, undefined]);
    expect((await times({ keep: true, timeoutMs: 60_000 })).times).toEqual([3_600_000, 7_200_000, 300_000]);
    const own = await times({ keep: true, autoPauseAfterMs: null, autoStopAfterMs: null });
    expect(own.times).toEqual([undefined, undefined, undefined]);
    expect(
      (await times({ timeoutMs: 9_000, autoPauseAfterMs: 5_000, renewOnAccessMs: 600_000 })).times,
    ).toEqual([5_000, undefined, 600_000]);
    // What is like it is so in this, too.
    const fork = await sandboxes.create({ ...sandboxes.likeness(own.id), pull: 'missing' }, never);
    expect(fork).not.toHaveProperty('autoPauseAfterMs');
    // A machine that cannot be paused is left alone by a default, and refused to who asks for the pause.
    runtime.withoutPause = true;
    const { id, times: shown } = await times({});
    expect(shown).toEqual([undefined, undefined, undefined]);
    const again = await restart(sandboxes);
    expect(again.get(id)).not.toHaveProperty('autoPauseAfterMs');
    await expect(again.create({ ...request, autoPauseAfterMs: 5_000 }, never)).rejects.toMatchObject({
      code: 'unsupported',
    });
  });
});
