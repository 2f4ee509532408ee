// The machine itself as a place for commands: what outlives whom, what is found again and ended, and what commands are held to.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterAll, afterEach, describe, expect, test } from 'vitest';
import { outcomeOf, run } from '../../../test/agents.ts';
import { leftovers, makeHome } from '../../../test/daemon.ts';
import { type HostAgent, hostAgent, nodeAgent } from '../../agent/bundle.ts';
import { guestProtocol } from '../../contract/guest.ts';
import { homeIdOf } from '../../daemon/platform.ts';
import type { ExecSpec, Guest } from '../../guest/guest.ts';
import { type AgentDoor, openDoor } from '../../sandbox/door.ts';
import { openCgroups } from '../cgroup/open.ts';
import { isAlive } from '../processes/identity.ts';
import type { Machine, MachineSpec } from '../runtime.ts';
import { type HostOptions, HostRuntime } from './host.ts';
import { readRecord, writeRecord } from './record.ts';

const agent = await hostAgent();
const home = makeHome();
const token = 'a-token-of-this-test';
const soon = () => AbortSignal.timeout(60_000);
const open = (more: Partial<HostOptions> = {}) =>
  new HostRuntime({
    ...{ acknowledgeNoIsolation: true, homeId: homeIdOf(home), agent },
    ...{ stateRoot: join(home, 'machines'), folder: join(home, 'host'), ...more },
  });

interface Made {
  machine: Machine;
  guest: Guest;
  door: AgentDoor;
  spec: MachineSpec;
}
const made: { machine: Machine; door: AgentDoor }[] = [];
afterEach(async () => {
  for (const { machine, door } of made.splice(0)) {
    await machine.remove(soon());
    await door.close();
  }
  rmSync(join(home, 'run'), { recursive: true, force: true });
  await expect.poll(() => leftovers(home)).toEqual([]);
  rmSync(home, { recursive: true, force: true });
  mkdirSync(home);
});
afterAll(() => rmSync(home, { recursive: true, force: true }));

const openRun = (id: string) => {
  const runFolder = join(home, 'run', id);
  mkdirSync(runFolder, { recursive: true });
  writeFileSync(
    join(runFolder, 'boot.json'),
    JSON.stringify({ protocol: guestProtocol, sandboxId: id, token }),
  );
  return openDoor({ runFolder, token, onRefused: () => {} });
};
const specOf = (id: string): MachineSpec => ({
  ...{ id, image: 'host', limits: {}, mounts: [], labels: {} },
  ...{ runFolder: join(home, 'run', id), stateFolder: join(home, 'machines', id) },
});
const make = async (runtime: HostRuntime, id: string): Promise<Made> => {
  const spec = specOf(id);
  const door = await openRun(id);
  const machine = await runtime.create(spec, soon());
  made.push({ machine, door });
  return { machine, door, spec, guest: await door.connected(soon()) };
};
const line = (execId: string, shell: string, more: Partial<ExecSpec> = {}): ExecSpec => ({
  ...{ execId, shell, env: {}, stdin: 'none', ...more },
});
/** Starts it and lets it go on. */
const start = async (guest: Guest, spec: ExecSpec) => {
  const command = await guest.exec(spec);
  command.detach();
  return command.pid;
};
const pidIn = async (file: string): Promise<number> => {
  await expect.poll(() => existsSync(file) && readFileSync(file, 'utf8')).toMatch(/\d+\n/);
  return Number(readFileSync(file, 'utf8'));
};
const gone = (pid: number) => expect.poll(() => existsSync(`/proc/${pid}`)).toBe(false);
const numbers = (to: number) => `${Array.from({ length: to }, (_, i) => i + 1).join('\n')}\n`;

test('nobody gets it without saying that they want no walls', () => {
  expect(() => open({ acknowledgeNoIsolation: false })).toThrow(/walls nothing off/);
});

test('who made it is killed, and its commands and their output go on, to the byte', async () => {
  const shell = `i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo $i; [ $((i % 100)) -ne 0 ] || sleep 0.05; done; exit 5`;
  const id = 'survivor';
  const request = JSON.stringify({ home, homeId: homeIdOf(home), id, token, shell });
  const maker = spawn(process.execPath, [join(import.meta.dirname, 'maker.fixture.ts'), request], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const exited = once(maker, 'exit');
  let seen = '';
  for await (const text of createInterface({ input: maker.stdout })) {
    seen += JSON.parse(text).text;
    if (seen.length > 500) break;
  }
  maker.kill('SIGKILL');
  await exited;

  const [machine] = await open().list();
  if (machine === undefined) throw new Error('the machine is not found again');
  const door = await openDoor({ runFolder: join(home, 'run', id), token, onRefused: () => {} });
  made.push({ machine, door });
  const guest = await door.connected(soon());
  expect(await guest.execs()).toMatchObject([{ execId: 'long' }]);
  // What the first reader had seen at its end is known to it alone; this one asks from there.
  const rest = await outcomeOf(await guest.attach('long', seen.length));
  expect(rest).toMatchObject({ code: 5, reason: 'exited' });
  expect(seen + rest.stdout).toBe(numbers(3000));
});

test('a newer agent takes over once nothing runs in the older one, and knows what has run', async () => {
  const { guest, spec } = await make(open({ agent: { ...agent, version: 'older' } }), 'upgraded');
  const file = join(home, 'ran');
  const asked = line('job', `printf x >>${file}; while [ ! -e ${home}/go ]; do sleep 0.05; done; echo done`);
  const command = await guest.exec(asked);
  await expect.poll(() => existsSync(file)).toBe(true);

  const newer = open();
  const [found] = await newer.list();
  if (found === undefined) throw new Error('the machine is not found again');
  let over = false;
  void found.exited.then(() => {
    over = true;
  });
  // It serves on, also for what is new.
  expect(await run(guest, 'echo still here')).toMatchObject({ code: 0, stdout: 'still here\n' });
  expect(over).toBe(false);
  writeFileSync(join(home, 'go'), '');
  expect(await outcomeOf(command)).toMatchObject({ code: 0, stdout: 'done\n' });
  expect(await found.exited).toMatchObject({ reason: 'exited' });
  await found.remove(soon());
  await made.pop()?.door.close();

  const after = await make(newer, 'upgraded');
  expect(readRecord(spec.stateFolder)?.agentVersion).toBe(agent.version);
  expect(await outcomeOf(await after.guest.exec(asked))).toMatchObject({ code: 0, stdout: '' });
  expect(readFileSync(file, 'utf8')).toBe('x');
});

test('its agent is killed: that is noticed, nothing of it goes on, and what may have run is not run again', async () => {
  const runtime = open();
  const { machine, guest, spec } = await make(runtime, 'crashed');
  const file = join(home, 'ran');
  const asked = line('lost', `printf x >>${file}; (setsid sleep 1000 & echo $! >${home}/child); sleep 1000`);
  const pid = await start(guest, asked);
  const child = await pidIn(join(home, 'child'));
  process.kill(readRecord(spec.stateFolder)?.agent?.pid as number, 'SIGKILL');
  expect(await machine.exited).toMatchObject({ reason: 'exited' });
  await gone(pid);
  await gone(child);
  await machine.remove(soon());
  await made.pop()?.door.close();

  const after = await make(runtime, 'crashed');
  await expect(after.guest.exec(asked)).rejects.toMatchObject({ code: 'unknown' });
  await expect(after.guest.exec(line('lost', 'true'))).rejects.toMatchObject({ code: 'conflict' });
  expect(readFileSync(file, 'utf8')).toBe('x');
});

const escapes: [string, string][] = [
  ['in a session of its own', 'setsid sh -c "echo \\$\\$ >FILE; exec sleep 1000" &'],
  ['that ignores SIGTERM', 'trap "" TERM; sh -c "echo \\$\\$ >FILE; exec sleep 1000" &'],
  [
    'of a dead parent, in a session of its own, without its environment',
    'setsid sh -c "env -i sh -c \'echo \\$\\$ >FILE; exec sleep 1000\' & exit" &',
  ],
];
test.each(escapes)('removing ends a child %s', async (_what, shell) => {
  const { machine, guest } = await make(open(), 'removed');
  const file = join(home, 'child');
  await outcomeOf(await guest.exec(line('parent', shell.replace('FILE', file))));
  const child = await pidIn(file);
  await machine.remove(soon());
  await gone(child);
});

test('a command of one machine is not taken for one of another that has the same id', async () => {
  const runtime = open();
  const one = await make(runtime, 'one');
  const two = await make(runtime, 'two');
  await start(one.guest, line('same', 'sleep 1000'));
  const pid = await start(two.guest, line('same', 'sleep 1000'));
  await one.guest.signal('same', 'SIGKILL', { tree: true });
  await expect.poll(async () => (await one.guest.execs())[0]?.exit?.reason).toBe('killed');
  await one.machine.remove(soon());
  expect(existsSync(`/proc/${pid}`)).toBe(true);
  expect((await two.guest.execs())[0]?.exit).toBeUndefined();
});

test('a process that has its agent’s number by now is nobody we know', async () => {
  const runtime = open();
  const { machine, spec } = await make(runtime, 'reused');
  const record = readRecord(spec.stateFolder);
  process.kill(record?.agent?.pid as number, 'SIGKILL');
  await machine.exited;
  const stranger = spawn('sleep', ['1000'], { stdio: 'ignore' });
  try {
    // As after a wrap of the numbers: the same number, started at another time.
    const changed = { pid: stranger.pid as number, startTime: record?.agent?.startTime as string };
    if (record) writeRecord(spec.stateFolder, { ...record, agent: changed });
    const [found] = await open().list();
    expect(await found?.exited).toMatchObject({ reason: 'exited' });
    await found?.remove(soon());
    expect(stranger.exitCode ?? stranger.signalCode).toBeNull();
    expect(isAlive(changed)).toBe(false);
    expect(existsSync(`/proc/${stranger.pid}`)).toBe(true);
  } finally {
    stranger.kill('SIGKILL');
  }
});

test('one whose maker was killed before it knew its agent is found by its mark and ended', async () => {
  const { door, guest, spec } = await make(open(), 'half-made');
  const pid = await start(guest, line('job', 'sleep 1000'));
  const record = readRecord(spec.stateFolder);
  if (record === undefined) throw new Error('no record');
  const { agent: known, ...rest } = record;
  writeRecord(spec.stateFolder, rest);
  const [found] = await open().list();
  await found?.remove(soon());
  await gone(pid);
  await gone(known?.pid as number);
  expect(existsSync(spec.stateFolder)).toBe(false);
  await door.close();
});

test('one of before the host was started anew is lost, and can be taken away', async () => {
  const { machine, spec, door } = await make(open(), 'before');
  const record = readRecord(spec.stateFolder);
  await machine.remove(soon());
  await door.close();
  made.pop();
  mkdirSync(spec.stateFolder, { recursive: true });
  // Its agent's number is somebody else's now: ours.
  if (record)
    writeRecord(spec.stateFolder, {
      ...record,
      bootId: 'earlier',
      agent: { pid: process.pid, startTime: '1' },
    });
  const [found] = await open().list();
  expect(await found?.exited).toMatchObject({ reason: 'lost' });
  await found?.remove(soon());
  expect(existsSync(spec.stateFolder)).toBe(false);
});

test('bounds of the owner hold, whatever the boot file says', async () => {
  const runtime = open({ allowedCommands: ['echo'], folders: [join(home, 'shared')] });
  mkdirSync(join(home, 'shared'));
  const { guest } = await make(runtime, 'bounded');
  expect(await run(guest, ['echo', 'yes'])).toMatchObject({ stdout: 'yes\n' });
  await expect(run(guest, ['id'])).rejects.toMatchObject({ code: 'permission' });
  await expect(guest.stat('/etc/passwd')).rejects.toMatchObject({ code: 'permission' });
  expect(await guest.list(join(home, 'shared'), { depth: 1 })).toEqual([]);
});

describe.each([
  ['on Bun', () => agent],
  ['on Node.js', () => nodeAgent()],
] as [
  string,
  () => HostAgent | Promise<HostAgent>,
][])('commands are held to their limits, %s', (_platform, agentOf) => {
  const groups = openCgroups(`${homeIdOf(home)}-probe`);
  const make1 = async () => make(open({ agent: await agentOf() }), 'limited');

  test('bytes of output', async () => {
    const { guest } = await make1();
    const limits = { outputBytes: 10_000 };
    const flood = await outcomeOf(await guest.exec(line('flood', 'yes', { limits, graceMs: 0 })));
    expect(flood).toMatchObject({ reason: 'output-limit' });
    expect(flood.stdout).toBe('y\n'.repeat(5_000));
    const both = await outcomeOf(await guest.exec(line('both', 'yes >&2 & yes', { limits, graceMs: 0 })));
    expect(both.reason).toBe('output-limit');
    expect(both.stdout.length + both.stderr.length).toBe(10_000);
    const exact = await outcomeOf(await guest.exec(line('exact', 'head -c 10000 /dev/zero', { limits })));
    expect(exact).toMatchObject({ code: 0, reason: 'exited' });
    const none = await outcomeOf(await guest.exec(line('none', 'true', { limits: { outputBytes: 0 } })));
    expect(none).toMatchObject({ code: 0, reason: 'exited' });
  });

  if (groups === undefined)
    test('others are refused, for this host lets us have no control groups', async () => {
      const { guest } = await make1();
      for (const limits of [{ memoryBytes: 2 ** 26 }, { pids: 10 }, { cpu: 1 }])
        await expect(guest.exec(line('limited', 'true', { limits }))).rejects.toMatchObject({
          code: 'unsupported',
        });
    });
  else {
    test.runIf(groups.holds.has('memoryBytes'))('memory, of the whole tree', async () => {
      const { guest } = await make1();
      const limits = { memoryBytes: 32 * 2 ** 20 };
      const direct = await outcomeOf(
        await guest.exec({ ...line('direct', ''), shell: 'exec tail /dev/zero', limits }),
      );
      expect(direct).toMatchObject({ code: 137, reason: 'oom' });
      const child = await outcomeOf(await guest.exec(line('child', 'tail /dev/zero; exit $?', { limits })));
      expect(child).toMatchObject({ code: 137, reason: 'oom' });
      expect(await run(guest, 'echo well', { limits })).toMatchObject({ code: 0, stdout: 'well\n' });
      // The agent itself is none of it.
      expect(await run(guest, 'echo well')).toMatchObject({ code: 0, stdout: 'well\n' });
    });

    test.runIf(groups.holds.has('pids'))('processes', async () => {
      const { guest } = await make1();
      const bomb = line('bomb', 'i=0; while [ $i -lt 50 ]; do sleep 1000 & i=$((i+1)); done; echo all', {
        limits: { pids: 10 },
      });
      const outcome = await outcomeOf(await guest.exec(bomb));
      expect(outcome.stdout).toBe('');
      expect(outcome.stderr).toMatch(/fork/i);
      await guest.signal('bomb', 'SIGKILL', { tree: true });
    });

    test.runIf(groups.holds.has('cpu'))('processors', async () => {
      const { guest } = await make1();
      const shell =
        groups.mode === 'cgroup-v1'
          ? 'g=$(sed -n "s/^[0-9]*:[^:]*\\bcpu\\b[^:]*://p" /proc/self/cgroup); cat /sys/fs/cgroup/cpu$g/cpu.cfs_quota_us /sys/fs/cgroup/cpu$g/cpu.cfs_period_us'
          : 'cat /sys/fs/cgroup$(sed -n "s/^0:://p" /proc/self/cgroup)/cpu.max';
      // Where the agent moves a command into its group after its start, that is a moment later.
      const looked = `i=0; until [ $i -gt 200 ]; do q=$(${shell}); case $q in *50000*) break;; esac; i=$((i+1)); sleep 0.05; done; echo $q`;
      const { stdout } = await run(guest, looked, { limits: { cpu: 0.5 } });
      expect(stdout.trim().split(/\s+/)).toEqual(['50000', '100000']);
    });

    test('what a limited command left behind stays in its group, and goes with the machine', async () => {
      const { machine, guest, spec } = await make1();
      const file = join(home, 'child');
      const shell = `env -i setsid sh -c 'echo $$ >${file}; exec sleep 1000' & while [ ! -s ${file} ]; do sleep 0.01; done`;
      await outcomeOf(await guest.exec(line('parent', shell, { limits: { pids: 20 } })));
      const child = await pidIn(file);
      expect(readFileSync(`/proc/${child}/cgroup`, 'utf8')).toContain(`${spec.id}/exec-1`);
      await guest.signal('parent', 'SIGKILL', { tree: true });
      await gone(child);
      await start(guest, line('again', 'sleep 1000', { limits: { pids: 20 } }));
      await machine.remove(soon());
    });
  }
});

test('what a machine says about commands that ran in it is kept no longer than a day or two', async () => {
  const runtime = open();
  const first = await make(runtime, 'first');
  await run(first.guest, 'true');
  await first.machine.remove(soon());
  await made.pop()?.door.close();
  const receipts = join(home, 'host/receipts');
  expect(readdirSync(receipts)).toEqual(['first']);
  utimesSync(join(receipts, 'first'), new Date(0), new Date(0));
  const second = await make(runtime, 'second');
  expect(readdirSync(receipts)).toEqual([]);
  // Its own begin with the first request, which is when an agent loads what it needs for them.
  await second.guest.ping();
  expect(readdirSync(receipts)).toEqual(['second']);
});
