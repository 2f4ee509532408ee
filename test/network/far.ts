// Hosts that are far away: a network namespace behind a router that translates addresses and lets nobody in, and a wire to this host that can lose, delay and
// swallow packets. Everything hangs on processes of ours, so nothing of it outlives the test.
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

const wireProgram = join(import.meta.dirname, 'wire.py');
/** Of the far host in its own network, which is the same behind every router. */
const farAddress = '192.168.77.2';
const routerAddress = '192.168.77.1';
/** Jumbo frames: a share of packets that is lost then costs less of a test's time. */
const packetBytesMax = 9_000;

/** Each way. */
export interface WireFaults {
  delayMs: number;
  /** Uniform, to both sides of `delayMs`. */
  jitterMs: number;
  lossPercent: number;
  /** Whether anything passes from the far host to this one. */
  up: boolean;
  down: boolean;
}

export interface FarHost extends AsyncDisposable {
  /** This host, as the far one dials it. */
  readonly controller: string;
  /** What this host sees the far one as. */
  readonly address: string;
  /** Runs a command line there, when it is put in front of it. */
  readonly enter: readonly string[];
  /** A line of the shell there, and its output. */
  run(line: string): string;
  set(faults: Partial<WireFaults>): void;
  counts(): Promise<{ carried: number; lost: number }>;
  /** The router gets another address, and forgets the connections that it translated. */
  moveRouter(): void;
}

/**
 * Whether this machine can have far hosts, asked by making one. Where all is required (GLOVEBOX_TEST_REQUIRE, as in CI) a machine that cannot fails the tests; else they are
 * skipped, which is said.
 */
export async function farHostsUsable(): Promise<boolean> {
  try {
    await using _ = await makeFarHost();
    return true;
  } catch (error) {
    if (process.env.GLOVEBOX_TEST_REQUIRE) throw error;
    console.warn(`tests with far hosts are skipped: ${(error as Error).message}`);
    return false;
  }
}

export async function makeFarHost(): Promise<FarHost> {
  await using undo = new AsyncDisposableStack();
  const [a = 0, b = 0] = randomBytes(2);
  const subnet = `10.${64 + (a % 128)}.${b}`;
  const [near, outer] = [`gbn-${a % 128}-${b}`, `gbo-${a % 128}-${b}`];
  const address = (host: number) => `${subnet}.${host}`;
  const router = await makeNamespace(undo);
  const far = await makeNamespace(undo);
  const wire = spawn('python3', [wireProgram, near, outer], { stdio: ['pipe', 'pipe', 'pipe'] });
  undo.defer(() => ended(wire));
  const lines = createInterface({ input: wire.stdout });
  await ready(wire, once(lines, 'line', { signal: patience() }), 'a wire');
  told(
    ['sh', '-ec'],
    [
      `ip address add ${address(1)}/24 dev ${near}`,
      `ip link set ${near} mtu ${packetBytesMax} up`,
      `ip link set ${outer} netns ${router.pid}`,
    ],
  );
  let host = 2;
  told(
    [...router.enter, 'sh', '-ec'],
    [
      `ip address add ${address(host)}/24 dev ${outer}`,
      `ip link set ${outer} mtu ${packetBytesMax} up`,
      `ip link add lan mtu ${packetBytesMax} type veth peer name eth0 mtu ${packetBytesMax} netns ${far.pid}`,
      `ip address add ${routerAddress}/24 dev lan`,
      'ip link set lan up',
      'echo 1 >/proc/sys/net/ipv4/ip_forward',
      `iptables -t nat -A POSTROUTING -o ${outer} -j MASQUERADE`,
      'iptables -P FORWARD DROP',
      'iptables -A FORWARD -i lan -j ACCEPT',
      'iptables -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT',
    ],
  );
  told(
    [...far.enter, 'sh', '-ec'],
    [
      `ip address add ${farAddress}/24 dev eth0`,
      'ip link set eth0 up',
      `ip route add default via ${routerAddress}`,
    ],
  );
  const made = undo.move();
  return {
    controller: address(1),
    get address() {
      return address(host);
    },
    enter: far.enter,
    run: (line) => told([...far.enter, 'sh', '-ec'], [line]),
    set: (faults) => void wire.stdin.write(`${JSON.stringify(faults)}\n`),
    async counts() {
      const line = once(lines, 'line', { signal: patience() });
      wire.kill('SIGUSR1');
      return JSON.parse(String((await line)[0]));
    },
    moveRouter() {
      const before = address(host);
      host += 1;
      told(
        [...router.enter, 'sh', '-ec'],
        [`ip address delete ${before}/24 dev ${outer}`, `ip address add ${address(host)}/24 dev ${outer}`],
      );
    },
    [Symbol.asyncDispose]: () => made.disposeAsync(),
  };
}

interface Namespace {
  pid: number;
  enter: string[];
}

/** Lives as long as a process in it: first of all one that ends with this one. */
async function makeNamespace(undo: AsyncDisposableStack): Promise<Namespace> {
  const holder = spawn('unshare', ['--net', 'sh', '-ec', 'ip link set lo up; echo ready; exec cat'], {
    stdio: ['pipe', 'pipe', 'pipe'],
  });
  undo.defer(() => ended(holder));
  await ready(holder, once(holder.stdout, 'data', { signal: patience() }), 'a namespace');
  const pid = holder.pid as number;
  return { pid, enter: ['nsenter', '--target', String(pid), '--net', '--'] };
}

/** Ends what hangs. */
const patience = () => AbortSignal.timeout(120_000);

async function ready(child: ChildProcess, said: Promise<unknown>, what: string): Promise<void> {
  const failed = new Promise<never>((_, reject) => {
    child.once('error', reject);
    child.once('exit', () => reject(new Error(`${what}: ${String(child.stderr?.read() ?? '').trim()}`)));
  });
  await Promise.race([said, failed]);
}

function told(shell: readonly string[], lines: readonly string[]): string {
  const [program = '', ...args] = [...shell, lines.join('\n')];
  return execFileSync(program, args, {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: 120_000,
  });
}

async function ended(child: ChildProcess): Promise<void> {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return;
  const exited = once(child, 'exit');
  child.kill('SIGTERM');
  await exited;
}
