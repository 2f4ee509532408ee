// Agents for tests: the real bundle as a process of this host (or under a command that walls it off), and the agent in this process on Node.js.
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import type { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { agentCommand, agentEnvironment, ensureAgentBundle } from '../src/agent/bundle.ts';
import { Call } from '../src/agent/call.ts';
import { NodePlatform } from '../src/agent/platform/node.ts';
import type { Receipts } from '../src/agent/receipts.ts';
import { Agent } from '../src/agent/serve.ts';
import { Acceptor } from '../src/channel/acceptor.ts';
import { systemClock } from '../src/channel/clock.ts';
import { Dialer, localBackOff } from '../src/channel/dialer.ts';
import { memoryPair } from '../src/channel/memory.ts';
import { type AgentBoot, guestFolder, guestProtocol } from '../src/contract/guest.ts';
import type { Guest, GuestProcess } from '../src/guest/guest.ts';
import { createGuest } from '../src/guest/guest-channel.ts';
import { type AgentDoor, openDoor } from '../src/sandbox/door.ts';

export interface BundledAgent extends AsyncDisposable {
  readonly guest: Guest;
  readonly door: AgentDoor;
  readonly process: ChildProcess;
  readonly folder: string;
  /** From the start of the process to the agent's hello. */
  readonly helloMs: number;
  readonly stderr: () => string;
}

export interface BundledOptions {
  /** Stands in front of the agent's command line, e.g. `unshare -p -f`. */
  prefix?: string[];
  env?: Record<string, string>;
  cwd?: string;
  /** Over what its boot file says otherwise. */
  boot?: Partial<AgentBoot>;
  /** Takes what the agent sends to the world. */
  onEgress?: (socket: Socket) => void;
  /** In place of the whole command: gets the bundle's folder and the run folder. */
  command?: (bundle: string, runFolder: string) => string[];
}

/** The agent's command line where the bundle and the run folder lie elsewhere than in a guest. */
export function agentAt(bundle: string, runFolder: string): string[] {
  return agentCommand().map((it) =>
    it.replace(`${guestFolder}/agent`, bundle).replace(`${guestFolder}/run`, runFolder),
  );
}

export async function startBundledAgent(options: BundledOptions = {}): Promise<BundledAgent> {
  const bundle = await ensureAgentBundle();
  const folder = await mkdtemp(join(tmpdir(), 'glovebox-agent-'));
  const boot: AgentBoot = {
    protocol: guestProtocol,
    sandboxId: 'test',
    token: randomBytes(16).toString('hex'),
    ...options.boot,
  };
  // The guest may run as anybody.
  await chmod(folder, 0o755);
  await writeFile(join(folder, 'boot.json'), JSON.stringify(boot));
  const door = await openDoor({
    ...{ runFolder: folder, token: boot.token, onRefused: () => {} },
    ...(options.onEgress && { onEgress: options.onEgress }),
  });
  const command = options.command?.(bundle, folder) ?? [
    ...(options.prefix ?? []),
    ...agentAt(bundle, folder),
  ];
  const startedAt = performance.now();
  const [program = '', ...args] = command;
  const child = spawn(program, args, {
    cwd: options.cwd ?? '/',
    env: { ...options.env, ...agentEnvironment() },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let stderr = '';
  child.stderr?.on('data', (bytes) => {
    stderr += bytes;
  });
  const exited = once(child, 'exit');
  const dispose = async () => {
    await door.close();
    child.kill('SIGTERM');
    await exited;
    await rm(folder, { recursive: true, force: true });
  };
  try {
    const early = exited.then(() => Promise.reject(new Error(`the agent ended before its hello: ${stderr}`)));
    early.catch(() => {});
    const guest = await Promise.race([door.connected(AbortSignal.timeout(60_000)), early]);
    const helloMs = performance.now() - startedAt;
    return {
      guest,
      door,
      process: child,
      folder,
      helloMs,
      stderr: () => stderr,
      [Symbol.asyncDispose]: dispose,
    };
  } catch (thrown) {
    child.kill('SIGKILL');
    await dispose();
    throw thrown;
  }
}

export interface LocalAgent extends AsyncDisposable {
  readonly guest: Guest;
}

/** The agent inside this process, over a pair of carriers in memory. */
export async function startLocalAgent(
  options: { boot?: Partial<AgentBoot>; receipts?: Receipts } = {},
): Promise<LocalAgent> {
  const agent = new Agent({
    platform: new NodePlatform(),
    boot: { protocol: guestProtocol, sandboxId: 'test', token: 'token', ...options.boot },
    socketPath: '/nonexistent',
    ...(options.receipts && { receipts: options.receipts }),
  });
  const clock = systemClock({ keepsProcessAlive: false });
  const guest = Promise.withResolvers<Guest>();
  const acceptor = new Acceptor({
    token: 'token',
    clock,
    onChannel: (channel) => guest.resolve(createGuest(channel)),
  });
  const dialer = new Dialer({
    connect: async () => {
      const [a, b] = memoryPair();
      acceptor.accept(b);
      return a;
    },
    token: 'token',
    clock,
    backOff: localBackOff,
    onChannel: (channel) => {
      channel.onStream = (stream) => new Call(stream, (call, request) => agent.handle(call, request));
    },
  });
  return {
    guest: await guest.promise,
    async [Symbol.asyncDispose]() {
      await agent.stop();
      dialer.stop({ code: 'stopped', message: 'the test is over' });
      acceptor.close({ code: 'stopped', message: 'the test is over' });
    },
  };
}

export interface Outcome {
  code: number | null;
  signal: string | null;
  reason: string;
  stdout: string;
  stderr: string;
}

/** Reads a command to its end; bytes as latin1, so that each is a character. */
export async function outcomeOf(process: GuestProcess): Promise<Outcome> {
  const text = { stdout: '', stderr: '' };
  for await (const piece of process.output) {
    if (piece.type === 'output') text[piece.lane] += Buffer.from(piece.bytes).toString('latin1');
  }
  return { ...(await process.exit), ...text };
}

let counter = 0;

/** Runs a line in the guest's shell, or an argument vector, to its end. */
export async function run(guest: Guest, command: string | string[], more: object = {}): Promise<Outcome> {
  const what = typeof command === 'string' ? { shell: command } : { argv: command };
  return outcomeOf(await guest.exec({ execId: nextExecId(), env: {}, stdin: 'none', ...what, ...more }));
}

export function nextExecId(): string {
  return `test-${counter++}`;
}

/** Waits until a condition holds, with a bound. */
export async function until(what: string, holds: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = performance.now() + 60_000;
  while (!(await holds())) {
    if (performance.now() > deadline) throw new Error(`not within a minute: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
