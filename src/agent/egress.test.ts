// The guest's end of the way out with the real bundle, in a network namespace where every address is local. The daemon's end is played here.
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  type BundledAgent,
  nextExecId,
  startBundledAgent,
  startLocalAgent,
  until,
} from '../../test/agents.ts';
import type { GuestProcess } from '../guest/guest.ts';

const present = process.env.GLOVEBOX_TEST_PRESENT?.split(',').includes('bubblewrap') ?? false;
const script = join(import.meta.dirname, '../../test/network-guest.py');
/** As a runtime prepares it; the agent is root of its own user namespace at most. */
const walls = [
  ...['unshare', ...(process.getuid?.() === 0 ? [] : ['--user', '--map-root-user'])],
  ...['--net', '--pid', '--fork', '--kill-child=SIGTERM', '--mount-proc', 'sh', '-c'],
  'ip link set lo up && ip route add local 0.0.0.0/0 dev lo && ip route add local ::/0 dev lo && exec "$@"',
  'sh',
];
const type = { a: 1, ns: 2, mx: 15, aaaa: 28, https: 65, any: 255, ptr: 12 };

interface Came {
  intent: Record<string, unknown>;
  socket: Socket;
}

/** Takes what the agent opens: questions for names are answered, the rest waits to be taken in the order it came. */
class Daemon {
  readonly came: Came[] = [];
  readonly asked: string[] = [];
  readonly names = new Set<Socket>();
  /** Undefined: no answer at all. */
  judge: (name: string) => boolean | undefined = (name) => !name.includes('blocked');

  readonly take = (socket: Socket): void => {
    let head = Buffer.alloc(0);
    const read = (bytes: Buffer) => {
      head = Buffer.concat([head, bytes]);
      const end = head.indexOf('\n');
      if (end < 0) return;
      socket.off('data', read).pause();
      if (end + 1 < head.length) socket.unshift(head.subarray(end + 1));
      const intent = JSON.parse(head.subarray(0, end).toString());
      if (intent.kind === 'names') this.#answer(socket);
      else this.came.push({ intent, socket });
    };
    socket.on('data', read).resume();
  };

  async next(): Promise<Came> {
    await until('a connection of the guest', () => this.came.length > 0);
    return this.came.shift() as Came;
  }

  #answer(socket: Socket): void {
    this.names.add(socket);
    let rest = '';
    socket.on('data', (bytes) => {
      const lines = (rest + bytes).split('\n');
      rest = lines.pop() as string;
      for (const line of lines) {
        const { id, name } = JSON.parse(line);
        this.asked.push(name);
        const resolve = this.judge(name);
        if (resolve !== undefined) socket.write(`${JSON.stringify({ id, resolve })}\n`);
      }
    });
    socket.on('close', () => this.names.delete(socket)).resume();
  }
}

/** A program of the guest that does what it is told. */
class Program {
  readonly #process: GuestProcess;
  readonly #lines: AsyncGenerator<string>;

  constructor(process: GuestProcess) {
    this.#process = process;
    this.#lines = linesOf(process);
  }

  get pid(): number {
    return this.#process.pid;
  }

  // biome-ignore lint/suspicious/noExplicitAny: what it answers differs with what it is asked.
  async do(op: string, options: object = {}): Promise<any> {
    await this.#process.write(Buffer.from(`${JSON.stringify({ op, ...options })}\n`));
    const { value } = await this.#lines.next();
    if (value === undefined)
      expect.fail(`no answer to ${op}: the program ended, ${JSON.stringify(await this.#process.exit)}`);
    return JSON.parse(value);
  }
}

async function* linesOf(process: GuestProcess): AsyncGenerator<string> {
  let text = '';
  for await (const piece of process.output) {
    if (piece.type !== 'output') continue;
    if (piece.lane === 'stderr') console.error(Buffer.from(piece.bytes).toString());
    else text += Buffer.from(piece.bytes).toString();
    for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n')) {
      yield text.slice(0, end);
      text = text.slice(end + 1);
    }
  }
}

async function textOf(socket: Socket): Promise<string> {
  let text = '';
  for await (const piece of socket) text += piece.toString('latin1');
  return text;
}

test('an agent without walls has no way out to serve, and says so', async () => {
  await using local = await startLocalAgent();
  await expect(local.guest.egress({ capture: true, ports: [80] })).rejects.toMatchObject({
    code: 'unsupported',
  });
  await expect(local.guest.whose(80)).rejects.toMatchObject({ code: 'unsupported' });
});

describe.runIf(present)('the guest’s end of the way out', () => {
  let agent: BundledAgent;
  let program: Program;
  const daemon = new Daemon();

  const start = async (user: string[] = []): Promise<Program> => {
    const argv = ['python3', script, ...user];
    const env = { PATH: '/usr/bin:/bin' };
    return new Program(await agent.guest.exec({ execId: nextExecId(), argv, env, stdin: 'pipe' }));
  };
  const serve = (ports: number[], capture = true) => agent.guest.egress({ capture, ports });
  const connected = async (): Promise<Came> => {
    await program.do('connect', { as: 'c', address: '1.2.3.4', port: 443 });
    return daemon.next();
  };
  const descriptors = () => readdirSync(`/proc/${pidOf(agent)}/fd`).length;

  beforeAll(async () => {
    agent = await startBundledAgent({ prefix: walls, onEgress: daemon.take });
    expect(await serve([80, 443, 8443])).toEqual({ unavailable: 0 });
    program = await start();
  });
  afterAll(() => agent?.[Symbol.asyncDispose]());

  test.each([
    '1.2.3.4',
    '169.254.169.254',
    '10.0.0.1',
    '255.255.255.254',
    '2001:db8::7',
  ])('a connection to %s on a caught port comes with the address that was wanted, and carries bytes both ways', async (address) => {
    const { port: client } = await program.do('connect', { as: 'c', address, port: 443 });
    await program.do('send', { as: 'c', text: 'question' });
    await program.do('end', { as: 'c' });
    const { intent, socket } = await daemon.next();
    expect(intent).toEqual({ kind: 'caught', client, address, port: 443 });
    expect(await textOf(socket)).toBe('question');
    socket.end('an answer behind the end of the question');
    expect(await program.do('receive', { as: 'c' })).toEqual({
      text: 'an answer behind the end of the question',
      ended: true,
    });
    await program.do('close', { as: 'c' });
  });

  test('the daemon may speak first, and may end first', async () => {
    await program.do('connect', { as: 'c', address: '1.2.3.4', port: 8443 });
    const { socket } = await daemon.next();
    socket.end('hello from afar');
    expect((await program.do('receive', { as: 'c' })).text).toBe('hello from afar');
    await program.do('send', { as: 'c', text: 'goodbye' });
    await program.do('close', { as: 'c' });
    expect(await textOf(socket)).toBe('goodbye');
  });

  test.each([
    ['127.0.0.1', 3128],
    ['::1', 3128],
    ['127.0.0.1', 1080],
    ['::1', 1080],
  ])('%s:%d is a proxy', async (address, port) => {
    const { port: client } = await program.do('connect', { as: 'p', address, port });
    const { intent, socket } = await daemon.next();
    expect(intent).toEqual({ kind: 'proxy', client });
    socket.destroy();
    await program.do('close', { as: 'p' });
  });

  test.each([
    ['another port', '1.2.3.4', 444, 'ECONNREFUSED'],
    ['another port by IPv6', '2001:db8::1', 444, 'ECONNREFUSED'],
    ['a proxy that is not ours', '1.2.3.4', 3128, 'ECONNREFUSED'],
  ])('%s is refused', async (_what, address, port, error) => {
    expect(await program.do('connect', { as: 'r', address, port })).toEqual({ error });
  });

  test.each([
    '127.0.0.1',
    '127.1.2.3',
    '::1',
  ])('a caught port on the guest’s own %s is broken off and reaches nobody', async (address) => {
    const connected = await program.do('connect', { as: 'l', address, port: 443 });
    const outcome = connected.error ? connected : await program.do('receive', { as: 'l' });
    expect(outcome).toEqual({ error: 'ECONNRESET' });
    expect(daemon.came).toEqual([]);
  });

  test.each([
    '1.2.3.4',
    '2001:db8::1',
  ])('datagrams to %s are refused, so that QUIC falls back', async (address) => {
    expect(await program.do('datagram', { address, port: 443 })).toEqual({ error: 'ECONNREFUSED' });
  });

  test('a connection to the address of a name comes with the name', async () => {
    const addresses: string[] = [];
    for (const kind of [type.a, type.aaaa]) {
      const { code, answers } = await program.do('ask', {
        address: '127.0.0.1',
        name: 'API.Example.com',
        type: kind,
      });
      expect([code, answers.length, answers[0].type]).toEqual([0, 1, kind]);
      expect(answers[0].ttl).toBeGreaterThan(0);
      expect(answers[0].ttl).toBeLessThanOrEqual(5);
      addresses.push(answers[0].data);
    }
    expect(addresses[0]).toMatch(/^198\.1[89]\./);
    expect(addresses[1]).toMatch(/^fd00:676c:6f76::/);
    for (const address of addresses) {
      await program.do('connect', { as: 'n', address, port: 443 });
      const { intent, socket } = await daemon.next();
      expect(intent).toMatchObject({ kind: 'caught', address, port: 443, name: 'api.example.com' });
      socket.destroy();
      await program.do('close', { as: 'n' });
    }
    expect(daemon.asked).toContain('api.example.com');
  });

  test.each([
    ['any server, as by 8.8.8.8', { address: '8.8.8.8' }],
    ['a stream to it', { address: '8.8.8.8', stream: true }],
    ['the loopback of IPv6', { address: '::1' }],
    ['a stream to any server by IPv6', { address: '2001:4860:4860::8888', stream: true }],
  ])('questions to %s are answered', async (_what, how) => {
    const good = await program.do('ask', { ...how, name: 'files.example.org', type: type.a });
    expect([good.id, good.code, good.answers.length]).toEqual([0x1234, 0, 1]);
    expect((await program.do('ask', { ...how, name: 'blocked.example.org', type: type.a })).code).toBe(3);
  });

  test.each([
    ['mail servers of a good name', 'example.org', type.mx, 0, []],
    ['services of a good name', 'example.org', type.https, 0, []],
    ['mail servers of a refused name', 'blocked.org', type.mx, 3, []],
    ['everything', 'example.org', type.any, 5, []],
    ['localhost', 'localhost', type.a, 0, ['127.0.0.1']],
    ['localhost by IPv6', 'a.localhost', type.aaaa, 0, ['::1']],
    ['the gateway', 'gateway.docker.internal', type.a, 0, ['127.0.0.1']],
    ['a number', '1.2.3.4', type.a, 3, []],
    ['the root', '', type.ns, 3, []],
    ['an address of the world', '8.8.8.8.in-addr.arpa', type.ptr, 3, []],
    ['the loopback', '1.0.0.127.in-addr.arpa', type.ptr, 0, ['096c6f63616c686f737400']],
  ])('%s', async (_what, name, kind, code, data) => {
    const told = await program.do('ask', { address: '127.0.0.1', name, type: kind });
    expect([told.code, told.answers.map((it: { data: string }) => it.data)]).toEqual([code, data]);
  });

  test('the host’s name always stands for an address, and the address for the name', async () => {
    const asked = daemon.asked.length;
    const ask = { address: '127.0.0.1', name: 'host.docker.internal', type: type.a };
    const [{ data: address }] = (await program.do('ask', ask)).answers;
    expect(address).toMatch(/^198\.1[89]\./);
    expect(daemon.asked.length).toBe(asked);
    const back = address.split('.').reverse().join('.');
    const { answers } = await program.do('ask', { ...ask, name: `${back}.in-addr.arpa`, type: type.ptr });
    expect(Buffer.from(answers[0].data, 'hex').toString('latin1')).toBe('\x04host\x06docker\x08internal\0');
  });

  test('a daemon that does not say, or has gone, is a failure of the server and no refusal', async () => {
    const ask = { address: '127.0.0.1', name: 'slow.example.com', type: type.a };
    daemon.judge = (name) => (name.startsWith('slow') ? undefined : true);
    const asking = program.do('ask', ask);
    await until('the question', () => daemon.asked.includes('slow.example.com'));
    for (const socket of daemon.names) socket.destroy();
    expect((await asking).code).toBe(2);
    // The next question opens the connection anew.
    expect((await program.do('ask', { ...ask, name: 'quick.example.com' })).code).toBe(0);
    const startedAt = performance.now();
    expect((await program.do('ask', ask)).code).toBe(2);
    expect(performance.now() - startedAt).toBeGreaterThan(4_000);
  });

  test('ports come and go, and one that the guest has is counted, left to it and tried again', async () => {
    const other = await start();
    expect(await other.do('listen', { as: 's', address: '127.0.0.1', port: 9090 })).toEqual({});
    expect(await serve([443, 9090])).toEqual({ unavailable: 1 });
    expect(await program.do('connect', { as: 'own', address: '127.0.0.1', port: 9090 })).toHaveProperty(
      'port',
    );
    expect(await program.do('connect', { as: 'x', address: '1.2.3.4', port: 9090 })).toEqual({
      error: 'ECONNREFUSED',
    });
    expect(await program.do('connect', { as: 'x', address: '1.2.3.4', port: 8443 })).toEqual({
      error: 'ECONNREFUSED',
    });
    await program.do('close', { as: 'own' });
    await other.do('close', { as: 's' });
    expect(await serve([443, 9090, 3128])).toEqual({ unavailable: 0 });
    for (const [address, port, kind] of [
      ['1.2.3.4', 9090, 'caught'],
      ['1.2.3.4', 3128, 'caught'],
      ['127.0.0.1', 3128, 'proxy'],
    ] as const) {
      await program.do('connect', { as: 'x', address, port });
      const { intent, socket } = await daemon.next();
      expect(intent.kind).toBe(kind);
      socket.destroy();
      await program.do('close', { as: 'x' });
    }
    expect(await serve([], false)).toEqual({ unavailable: 0 });
    expect(await program.do('connect', { as: 'x', address: '1.2.3.4', port: 443 })).toEqual({
      error: 'ECONNREFUSED',
    });
    const [same, again] = await Promise.all([serve([80, 443, 8443]), serve([80, 443, 8443])]);
    expect([same, again]).toEqual([{ unavailable: 0 }, { unavailable: 0 }]);
    await expect(serve([0])).rejects.toMatchObject({ code: 'invalid' });
  });

  test('a reader that does not read stops the writer, whichever of the two it is', async () => {
    const bytes = 64 * 2 ** 20;
    await program.do('connect', { as: 'big', address: '1.2.3.4', port: 443 });
    const { socket } = await daemon.next();
    // The guest has not read a byte when all has been offered.
    let taken = 0;
    const piece = Buffer.alloc(2 ** 18);
    while (socket.write(piece)) taken += piece.length;
    const before = memoryOf(agent);
    for (let left = bytes - taken - piece.length; left > 0; left -= piece.length) socket.write(piece);
    socket.end();
    await until('what the sockets between hold', () => socket.writableLength > bytes / 2);
    expect(memoryOf(agent) - before).toBeLessThan(16);
    expect((await program.do('count', { as: 'big' })).bytes).toBe(bytes);
    const poured = program.do('pour', { as: 'big', bytes });
    let got = 0;
    socket
      .on('data', (data) => {
        got += data.length;
      })
      .resume();
    await poured;
    await program.do('close', { as: 'big' });
    await until('the rest', () => got === bytes);
    // What has passed is garbage by now, of which some may still lie about.
    expect(memoryOf(agent) - before).toBeLessThan(32);
  });

  test('what breaks on one side breaks on the other', async () => {
    await program.do('connect', { as: 'b', address: '1.2.3.4', port: 443 });
    const first = await daemon.next();
    first.socket.destroy();
    await until('the break', async () => {
      const sent = await program.do('send', { as: 'b', text: 'into the void' });
      return sent.error !== undefined;
    });
    await program.do('connect', { as: 'b', address: '1.2.3.4', port: 443 });
    const second = await daemon.next();
    await program.do('abort', { as: 'b' });
    await until('the break to be heard', () => second.socket.readableEnded);
    second.socket.destroy();
  });

  test('what was said before a close arrives whole', async () => {
    const { socket } = await connected();
    const whole = 'x'.repeat(3_000_000);
    socket.end(whole, () => socket.destroy());
    expect((await program.do('receive', { as: 'c' })).text).toBe(whole);
    await program.do('close', { as: 'c' });
  });

  test('hundreds in one moment are all taken, beyond 1,024 they are broken off, and nothing of them stays', async () => {
    const before = descriptors();
    await program.do('many', { as: 'm', count: 1_040, address: '1.2.3.4', port: 443 });
    await until('the most that may be', () => daemon.came.length === 1_024);
    await until(
      'the rest to be broken off',
      async () => (await program.do('broken', { as: 'm' })).count === 16,
    );
    const held = daemon.came.splice(0);
    const texts = await Promise.all(
      held.map(async ({ socket }) => {
        const said = once(socket, 'data');
        socket.once('end', () => socket.end()).resume();
        return Number((await said).toString());
      }),
    );
    expect(new Set(texts).size).toBe(1_024);
    await program.do('closeMany', { as: 'm' });
    await until('the daemon’s ends to be closed', () => held.every(({ socket }) => socket.destroyed));
    await until('the agent’s descriptors', () => descriptors() <= before);
  });

  test('who has a connection is found, whoever’s process it is', async () => {
    const others = process.getuid?.() === 0 ? [await start(['65534'])] : [];
    for (const it of [program, ...others]) {
      const { port } = await it.do('connect', { as: 'w', address: '1.2.3.4', port: 443 });
      const { socket } = await daemon.next();
      expect(await agent.guest.whose(port)).toEqual({ pid: it.pid, command: 'python3' });
      socket.destroy();
      await it.do('close', { as: 'w' });
    }
    await expect(agent.guest.whose(1)).rejects.toMatchObject({ code: 'not-found' });
    await expect(agent.guest.whose(70_000)).rejects.toMatchObject({ code: 'invalid' });
  });
});

/** The first process in its namespace, as the host numbers it. */
function pidOf(agent: BundledAgent): number {
  const { pid } = agent.process;
  return Number(readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8'));
}

/** Resident memory of the agent, in MiB. */
function memoryOf(agent: BundledAgent): number {
  const status = readFileSync(`/proc/${pidOf(agent)}/status`, 'utf8');
  return Number(/^VmRSS:\s+(\d+)/m.exec(status)?.[1]) / 1024;
}
