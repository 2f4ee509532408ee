// Workers on machines that are far away: in network namespaces behind a router that translates addresses, over a wire that loses, delays and swallows packets. Both
// ends are real processes, with TLS between them. Finding a connection dead takes 40 seconds, so what has to wait for that waits at the same time.
import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { type Process, SandboxClient } from '../../sdk/src/index.ts';
import { Pattern } from '../../src/channel/faults.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { startWorker, type TestWorker } from '../worker.ts';
import { type FarHost, farHostsUsable, makeFarHost } from './far.ts';
import { makeAuthority, makeCertificate } from './pki.ts';

interface Far {
  id: string;
  host: FarHost;
  worker: TestWorker;
}

/** Longer than it takes to find a connection dead, which is 40 seconds, and to dial again. */
const deadWithinMs = 240_000;
const usable = await farHostsUsable();

describe.skipIf(!usable)('a worker that is far away', () => {
  const home = makeHome();
  const far: Far[] = [];
  let daemon: TestDaemon;
  let client: SandboxClient;

  const put = (id: string) => far.find((it) => it.id === id) as Far;
  const info = (id: string) => client.workers.get(id);
  const stateOf = async (id: string) => (await info(id)).state;
  const reached = async (id: string) => {
    await client.workers.waitFor(id, { timeout: deadWithinMs });
    await vi.waitFor(() => client.workers.handle(id).run(['true']), { timeout: deadWithinMs });
  };
  /** How often a worker has said that it lost the controller, or found it. */
  const said = ({ worker }: Far, what: 'lost' | 'found') =>
    worker.log().split(what === 'lost' ? 'is lost' : 'connected to the controller').length - 1;

  beforeAll(async () => {
    const hosts = await Promise.all(
      ['lossy', 'cut', 'mute', 'deaf', 'moved'].map(async (id) => ({ id, host: await makeFarHost() })),
    );
    const authority = makeAuthority();
    const names = ['127.0.0.1', ...hosts.map(({ host }) => host.controller)];
    const { cert, key } = makeCertificate({ names, issuer: authority });
    const at = (name: string) => join(home, name);
    writeFileSync(at('ca.pem'), authority.cert);
    writeFileSync(at('server.pem'), cert);
    writeFileSync(at('server-key.pem'), key, { mode: 0o600 });
    writeFileSync(
      at('config.toml'),
      `[server.tls]\ncert_file = "${at('server.pem')}"\nkey_file = "${at('server-key.pem')}"\n`,
    );
    daemon = await startDaemon({ home, runtime: 'memory', args: ['--host', '0.0.0.0'] });
    const { port } = new URL(daemon.url);
    client = new SandboxClient({ url: `https://127.0.0.1:${port}`, apiKey: daemon.apiKey, ca: at('ca.pem') });
    for (const { id, host } of hosts) {
      const { token } = await client.workers.enrol({ workerId: id });
      const worker = startWorker(`wss://${host.controller}:${port}`, {
        args: ['--id', id, '--ca', at('ca.pem')],
        env: { GLOVEBOX_WORKER_TOKEN: token },
        behind: host.enter,
      });
      far.push({ id, host, worker });
    }
    await Promise.all(far.map(({ id }) => reached(id)));
  });

  afterAll(async () => {
    // The agent of a worker's own system outlives it, but not its removal.
    await Promise.all(far.map(({ id }) => client.workers.remove(id)));
    await Promise.all(far.map(({ worker }) => worker.exited));
    await daemon.stop();
    for (const { worker, host } of far) {
      await host[Symbol.asyncDispose]();
      await expectNothingLeft(worker.home);
    }
    await expectNothingLeft(home);
    expect(readFileSync('/proc/net/dev', 'utf8')).not.toMatch(/gb[no]-/);
  });

  test('listens nowhere, and is known by the address of its router', async () => {
    for (const { id, host } of far) {
      expect((await info(id)).address).toBe(host.address);
      expect(host.run('ss -Hltn'), 'TCP').toBe('');
      expect(host.run('ss -Hlun'), 'UDP').toBe('');
    }
  });

  test.concurrent('over a wire that loses one packet in twenty: output, files and terminals are whole', async () => {
    const { id, host, worker } = put('lossy');
    host.set({ delayMs: 50, jitterMs: 10, lossPercent: 5 });
    const system = client.workers.handle(id);
    const [source, there] = [join(worker.home, 'source'), join(worker.home, 'there')];
    const bytes = Buffer.from(new Pattern(3).bytes(0, 10 * 1024 * 1024));
    writeFileSync(source, bytes);

    const up = system.files.read(source, { as: 'bytes', sha256: true });
    const down = system.files.upload(source, there, { sha256: true });
    const shown = system.run(`head -c 1000000 ${source}; head -c 1000 ${source} >&2; exit 3`);
    await using shell = await system.start(['sh'], { tty: { cols: 100, rows: 30 }, stdin: true });
    await shell.write('stty size; read line; stty size; echo "got $line"; exit 4\n');
    await shell.resize({ cols: 71, rows: 20 });
    await shell.write('text\n');
    const screen = await textOf(shell);

    const { bytes: output, exitCode } = await shown;
    expect([exitCode, sha(output.stdout), sha(output.stderr)]).toEqual([
      3,
      sha(bytes.subarray(0, 1_000_000)),
      sha(bytes.subarray(0, 1_000)),
    ]);
    expect(screen).toMatch(/\b20 71\b/);
    expect(screen).toContain('got text');
    expect((await shell.wait()).exitCode).toBe(4);
    expect(sha(await up)).toBe(sha(bytes));
    await down;
    expect(sha(readFileSync(there))).toBe(sha(bytes));
    const { carried, lost } = await host.counts();
    expect(lost, `of ${carried} packets`).toBeGreaterThan(20);
  });

  test.concurrent.each([
    ['cut', 'nothing passes', { up: false, down: false }],
    ['mute', 'nothing comes from the worker', { up: false }],
    ['deaf', 'nothing gets to the worker', { down: false }],
  ] as const)('%s: both ends find out that %s, and a command goes on, once, with all of its output', async (id, _what, faults) => {
    const it = put(id);
    const system = client.workers.handle(id);
    const [runs, gate] = [join(it.worker.home, 'runs'), join(it.worker.home, 'gate')];
    const { epoch } = await info(id);
    const found = said(it, 'found');
    const process = await system.start(
      `echo run >>${runs}; i=0; while [ ! -e ${gate} ]; do i=$((i+1)); echo line $i; sleep 0.2; done; echo end $i`,
    );
    const output = textOf(process);
    it.host.set(faults);
    // A connection that is closed by one end is a word that the other may not get: it has to find out by itself.
    await Promise.all([
      until(
        `the controller's loss`,
        () => stateOf(id),
        (state) => state === 'offline',
        deadWithinMs,
      ),
      until(
        `the worker's loss`,
        () => said(it, 'lost'),
        (lost) => lost > 0,
        deadWithinMs,
      ),
    ]);
    await vi.waitFor(async () => {
      // What is asked in the first seconds waits for a short drop to be over.
      const asked = system.files.stat('/', { signal: AbortSignal.timeout(30_000) });
      await expect(asked).rejects.toMatchObject({ code: 'unavailable', retryable: true });
    });
    it.host.set({ up: true, down: true });
    await until(
      'the return',
      () => said(it, 'found'),
      (times) => times > found,
      deadWithinMs,
    );
    await reached(id);
    writeFileSync(gate, '');
    const lines = (await output).split('\n');
    const last = Number(/^end (\d+)$/.exec(lines.at(-2) ?? '')?.[1]);
    const came = `${JSON.stringify(lines.slice(-4))}, then ${JSON.stringify(await process.wait())}`;
    expect(last, came).toBeGreaterThan(1);
    expect(lines).toEqual([...Array.from({ length: last }, (_, n) => `line ${n + 1}`), `end ${last}`, '']);
    expect((await process.wait()).exitCode).toBe(0);
    expect(readFileSync(runs, 'utf8')).toBe('run\n');
    // The same process of the worker, which never ended.
    expect((await info(id)).epoch).toBe(epoch);
  });

  test.concurrent('whose router gets another address and forgets all connections is there again', async () => {
    const it = put('moved');
    const system = client.workers.handle(it.id);
    const gate = join(it.worker.home, 'gate');
    const before = await info(it.id);
    const process = await system.start(
      `i=0; while [ ! -e ${gate} ]; do i=$((i+1)); echo line $i; sleep 0.05; done; echo end $i`,
    );
    const output = textOf(process);
    it.host.moveRouter();
    await until(
      'another address',
      async () => (await info(it.id)).address,
      (address) => address === it.host.address,
      deadWithinMs,
    );
    expect(it.host.address).not.toBe(before.address);
    await reached(it.id);
    writeFileSync(gate, '');
    const lines = (await output).split('\n');
    const last = Number(/^end (\d+)$/.exec(lines.at(-2) ?? '')?.[1]);
    expect(lines).toEqual([...Array.from({ length: last }, (_, n) => `line ${n + 1}`), `end ${last}`, '']);
    expect((await info(it.id)).epoch).toBe(before.epoch);
  });
});

const sha = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');

async function textOf(process: Process): Promise<string> {
  let text = '';
  for await (const piece of process) {
    if (piece.type === 'gap') throw new Error(`output from ${piece.from} to ${piece.to} is missing`);
    if ('text' in piece) text += piece.text;
  }
  return text;
}
