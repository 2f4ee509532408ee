// What is told of a sandbox that has ended: each way to end has its own reason, its own words and a next step, also when it is gone.
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { call, create, list, remove, run } from '../client.ts';
import { commandLine, environmentOf } from '../command-line.ts';
import { expectNothingLeft, startDaemon, type TestDaemon, until } from '../daemon.ts';

interface Told {
  id: string;
  name?: string;
  state: string;
  reason: string;
  explanation: string;
  next: string;
  removedBy?: string;
  limits?: { memoryBytes?: number };
  memory?: { peakBytes?: number; kills: number };
  ending?: { of: string; reason: string; exitCode?: number; signal?: string; output?: string };
  command?: { explanation: string; exit?: { code: number }; output?: string };
  commands: { command: string; explanation: string }[];
  refused: { host: string }[];
}

let daemon: TestDaemon;
beforeAll(async () => {
  daemon = await startDaemon({ runtime: 'bubblewrap' });
});
afterAll(async () => {
  for (const { id } of await list(daemon)) await remove(daemon, id);
  expect(await daemon.stop()).toBe(0);
  await expectNothingLeft(daemon.home);
});

async function why(reference: string, command?: string): Promise<Told> {
  const query = command === undefined ? '' : `?command=${command}`;
  const { status, body } = await call(daemon, 'GET', `/v1/sandboxes/${reference}/why${query}`);
  if (status !== 200) throw new Error(`why: ${status} ${JSON.stringify(body)}`);
  return body as unknown as Told;
}

const ended = (id: string) =>
  until(
    'end',
    () => why(id),
    ({ state }) => state === 'Failed' || state === 'Terminated',
  );

const glovebox = (...args: string[]) => commandLine(environmentOf(daemon.home), () => daemon.home)(...args);

test('a main process that fails: its exit code and its last words, and still when the sandbox is removed', async () => {
  const id = await create(daemon, {
    entrypoint: ['sh', '-c', 'seq 5000; echo the disk is on fire >&2; exit 3'],
    metadata: { 'glovebox.name': 'failing' },
  });
  const told = await ended(id);
  expect(told).toMatchObject({ state: 'Failed', reason: 'exited', ending: { of: 'main', exitCode: 3 } });
  expect(told.explanation).toMatch(/main process came to an end.*exit code 3/);
  expect(told.ending?.output).toMatch(/4999\n5000\nthe disk is on fire\n$/);
  expect(told.ending?.output?.length).toBeLessThanOrEqual(4096);
  await remove(daemon, id);
  const gone = await why('failing');
  expect(gone).toMatchObject({ id, state: 'Gone', reason: 'removed', removedBy: 'a caller of the API' });
  expect(gone.ending).toEqual(told.ending);
  expect(gone.explanation).toMatch(/exit code 3\. It was removed by a caller of the API afterwards/);
});

test('a main process that a signal ends is told with it', async () => {
  const id = await create(daemon, { entrypoint: ['sh', '-c', 'sleep 0.3; kill -TERM $$'] });
  expect((await ended(id)).ending).toMatchObject({ of: 'main', exitCode: 143, signal: 'SIGTERM' });
});

test('too much memory: the limit, the peak, and what to do', async () => {
  const id = await create(daemon, {
    entrypoint: ['sh', '-c', 'sleep 0.3; a=x; while :; do a=$a$a; done'],
    resourceLimits: { memory: '64Mi' },
  });
  const told = await ended(id);
  expect(told.explanation).toMatch(/^It ran out of memory/);
  expect(told.next).toMatch(/--memory/);
  expect(told.limits?.memoryBytes).toBe(64 * 1024 * 1024);
  expect(told.memory?.kills).toBeGreaterThan(0);
  expect(told.memory?.peakBytes).toBeGreaterThan(32 * 1024 * 1024);
});

test('a command is told of by itself, in a sandbox that lives and in one that is gone', async () => {
  const id = await create(daemon, { resourceLimits: { memory: '64Mi' } });
  const start = async (line: string) => {
    const { body } = await call(daemon, 'POST', `/v1/sandboxes/${id}/proxy/44772/processes`, {
      argv: ['sh', '-c', line],
      background: true,
    });
    return String(body.id);
  };
  const failing = await start('echo no such luck; exit 7');
  const hungry = await start('a=x; while :; do a=$a$a; done');
  const staying = await start('sleep 1000');
  const told = await until(
    'exit',
    () => why(id, failing),
    ({ command }) => command?.exit !== undefined,
  );
  expect(told.command).toMatchObject({
    exit: { code: 7 },
    explanation: 'It ended with exit code 7.',
    output: 'no such luck\n',
  });
  expect(told.state).toBe('Running');
  const killed = await until(
    'exit',
    () => why(id, hungry),
    ({ command, state }) => state !== 'Running' || command?.exit !== undefined,
  );
  // The kernel chooses whom it kills: the command, or all that the sandbox is.
  if (killed.state === 'Running')
    expect(killed.command?.explanation).toMatch(/SIGKILL.*because the memory limit was reached/);
  else expect(killed.explanation).toMatch(/ran out of memory/);
  expect((await call(daemon, 'GET', `/v1/sandboxes/${id}/why?command=none-such`)).status).toBe(404);
  await remove(daemon, id);
  expect((await why(id, failing)).command).toMatchObject({ exit: { code: 7 } });
  expect((await why(id, staying.slice(0, 12))).command?.explanation).toMatch(
    /ran until the end of its sandbox|ended nobody saw|killed/,
  );
});

test('one whose time is over says so, and how to give it longer', async () => {
  const id = await create(daemon, { timeout: 60 });
  // Far enough off to be in the future still when a slow daemon hears of it.
  const soon = new Date(Date.now() + 4_000).toISOString();
  await call(daemon, 'POST', `/v1/sandboxes/${id}/renew-expiration`, { expiresAt: soon });
  const told = await until(
    'expiry',
    () => why(id),
    ({ state }) => state === 'Gone',
  );
  expect(told).toMatchObject({ reason: 'expired', ending: { of: 'daemon', reason: 'expired' } });
  expect(told.explanation).toContain(soon);
  expect(told.next).toMatch(/--timeout/);
});

test('one that was removed says by whom, and what it was refused before', async () => {
  const id = await create(daemon, { metadata: { 'glovebox.name': 'curious' } });
  await run(daemon, id, 'bash -c "exec 3<>/dev/tcp/refused.example/80; echo GET / >&3; cat <&3"');
  await until(
    'log',
    () => why(id),
    ({ refused }) => refused.some(({ host }) => host === 'refused.example'),
  );
  expect((await glovebox('rm', '-f', 'curious')).code).toBe(0);
  const told = await why(id);
  expect(told).toMatchObject({ name: 'curious', state: 'Gone', removedBy: "the daemon's own user" });
  expect(told.explanation).toBe("It was removed by the daemon's own user.");
  expect(told.refused.map(({ host }) => host)).toContain('refused.example');
});

test('a creation that fails says with which words', async () => {
  const failed = await call(daemon, 'POST', '/v1/sandboxes', {
    image: { uri: 'host' },
    entrypoint: ['no-such-program'],
    resourceLimits: {},
    metadata: { 'glovebox.name': 'stillborn' },
  });
  expect(failed.status).toBeGreaterThanOrEqual(400);
  const told = await why('stillborn');
  expect(told).toMatchObject({ state: 'Gone', reason: 'create-failed' });
  expect(told.explanation).toMatch(/never came to run.*no-such-program/);
});

/** The host's processes in a sandbox's control groups. */
function processesOf(id: string): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => pid !== process.pid && mentions(pid, id));
}

function mentions(pid: number, id: string): boolean {
  try {
    return (
      readFileSync(`/proc/${pid}/cgroup`, 'utf8').includes(id) && readlinkSync(`/proc/${pid}/exe`) !== ''
    );
  } catch {
    return false;
  }
}

test('one whose processes are killed from outside is told as such', async () => {
  const id = await create(daemon);
  const inside = processesOf(id);
  expect(inside.length).toBeGreaterThan(0);
  for (const pid of inside) process.kill(pid, 'SIGKILL');
  const told = await ended(id);
  expect(told).toMatchObject({ state: 'Failed', ending: { of: 'machine' } });
  expect(told.explanation).toMatch(/ended from outside or crashed|was gone/);
});

test('one whose agent alone is killed is told as such, too', async () => {
  const id = await create(daemon);
  const agents = processesOf(id).filter((pid) =>
    readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('/.glovebox/'),
  );
  expect(agents.length).toBeGreaterThan(0);
  for (const pid of agents) process.kill(pid, 'SIGKILL');
  const told = await ended(id);
  expect(told.state).toBe('Failed');
  expect(['machine', 'agent']).toContain(told.ending?.of);
  expect(told.explanation).toMatch(
    /ended from outside or crashed: its agent|lost its way into it: its agent/,
  );
});

test('one that ended while no daemon was there is told so, and what died before a restart is remembered', async () => {
  const before = await create(daemon, { metadata: { 'glovebox.name': 'early' } });
  await remove(daemon, before);
  const id = await create(daemon);
  const inside = processesOf(id);
  await daemon.kill();
  for (const pid of inside) process.kill(pid, 'SIGKILL');
  daemon = await startDaemon({ home: daemon.home, runtime: 'bubblewrap' });
  const told = await ended(id);
  expect(told).toMatchObject({ reason: 'lost', ending: { of: 'machine', reason: 'lost' } });
  expect(told.explanation).toMatch(/ended while no daemon was running/);
  expect(await why('early')).toMatchObject({ id: before, state: 'Gone', removedBy: 'a caller of the API' });
});

test('people read it in words, programs as JSON; of an unknown one is said what is known', async () => {
  const text = await glovebox('why', 'failing');
  expect(text.code).toBe(0);
  expect(text.stdout).toMatch(/failing: Gone since/);
  expect(text.stdout).toMatch(/next: .*glovebox exec/);
  expect(text.stdout).toMatch(/ {2}the disk is on fire/);
  const { stdout } = await glovebox('why', 'failing', '--json');
  expect(JSON.parse(stdout)).toMatchObject({ name: 'failing', ending: { exitCode: 3 } });
  const unknown = await glovebox('why', 'never-was');
  expect(unknown.code).toBe(1);
  expect(unknown.stderr).toMatch(/nothing is known of a sandbox "never-was"/);
});
