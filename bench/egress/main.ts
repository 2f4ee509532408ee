// The figures of the way out: our proxy beside squid and mitmproxy and the straight way, in turns, each with processor 0 to itself and the clients and
// the origin on processor 1. What counts is work for each second of a proxy's own processor time: it does not depend on what else the machine does.
import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { promisify } from 'node:util';
import { type Figure, figure, median } from '../measure.ts';
import {
  cpuSeconds,
  listening,
  peersPresent,
  type RunningProxy,
  running,
  startMitmproxy,
  startSquid,
} from './peers.ts';
import type { LoadOrder, LoadResult, OurSetup, Scenario } from './shapes.ts';

const run = promisify(execFile);
const here = import.meta.dirname;
const pinned = (processor: number, ...command: string[]): [string, string[]] =>
  cpus().length > 1
    ? ['taskset', ['-c', String(processor), ...command]]
    : [command[0] as string, command.slice(1)];

interface Origin {
  http: number;
  https: number;
  bulk: number;
}

const clients: Record<Scenario, number> = { plain: 32, intercepted: 32, 'intercepted-new': 16, tunnel: 4 };
const names: Record<Scenario, string> = {
  plain: 'plain HTTP, keep-alive',
  intercepted: 'inspected HTTPS, keep-alive',
  'intercepted-new': 'inspected HTTPS, new connections',
  tunnel: 'tunnel',
};
/** What the issue asks of us, as multiples of a peer's work per processor second. */
const targets: Record<Scenario, { squid: number; mitmproxy?: number }> = {
  plain: { squid: 0.9 },
  intercepted: { squid: 0.9, mitmproxy: 5 },
  'intercepted-new': { squid: 0.9, mitmproxy: 5 },
  tunnel: { squid: 0.6 },
};

/** `rounds` of each scenario through each proxy, `ms` long. */
export async function egressFigures(options: { rounds: number; ms: number }): Promise<Figure[]> {
  const folder = mkdtempSync(join(tmpdir(), 'glovebox-bench-egress-'));
  await using undo = new AsyncDisposableStack();
  undo.defer(() => rmSync(folder, { recursive: true, force: true }));
  const authority = makeCertificates(folder);
  const [command, args] = pinned(
    1,
    process.execPath,
    join(here, 'origin.ts'),
    join(folder, 'origin.pem'),
    join(folder, 'origin.key'),
  );
  const child = undo.adopt(
    spawn(command, args, { stdio: ['pipe', 'pipe', 'inherit'] }),
    (it) => void it.kill('SIGKILL'),
  );
  const origin = JSON.parse(await firstLine(child)) as Origin;

  const present = peersPresent();
  const place = { folder, originAuthority: authority };
  const proxies: RunningProxy[] = [await startOurs(folder, origin)];
  if (present.squid) proxies.push(await startSquid(place));
  if (present.mitmproxy) proxies.push(await startMitmproxy(place));
  for (const proxy of proxies) {
    undo.defer(() => proxy.stop());
    if (cpus().length > 1)
      execFileSync('taskset', ['-a', '-p', '-c', '0', String(proxy.pid)], { stdio: 'ignore' });
  }

  const figures: Figure[] = [];
  for (const scenario of Object.keys(names) as Scenario[]) {
    // mitmproxy looks into every tunnel, so it has none to compare with.
    const able = proxies.filter((it) => scenario !== 'tunnel' || it.name !== 'mitmproxy');
    const worked = new Map(able.map((it) => [it.name, [] as number[]]));
    for (let round = -1; round < options.rounds; round++)
      for (const proxy of able) {
        const before = cpuSeconds(proxy.pid);
        const { count } = await load(orderFor(scenario, proxy, origin, authority, options.ms));
        const spent = cpuSeconds(proxy.pid) - before;
        const work = scenario === 'tunnel' ? count / 2 ** 20 : count;
        if (round >= 0) worked.get(proxy.name)?.push(work / spent);
      }
    figures.push(...compared(scenario, worked));
  }
  figures.push(...(await latencies(proxies[0] as RunningProxy, origin, authority, options)));
  figures.push(await manyConnections(proxies[0] as RunningProxy, origin));
  return figures;
}

function compared(scenario: Scenario, worked: Map<string, number[]>): Figure[] {
  const ours = worked.get('glovebox') ?? [];
  const unit = scenario === 'tunnel' ? 'MiB/cpu-s' : '/cpu-s';
  return [...worked]
    .filter(([name]) => name !== 'glovebox')
    .map(([name, values]) => {
      const least = targets[scenario][name as 'squid' | 'mitmproxy'];
      return figure(`egress: ${names[scenario]}`, unit, ours, {
        floor: { name, values },
        ...(least === undefined
          ? {}
          : { target: { text: `≥ ${least} × ${name}`, holds: ({ ratio }) => ratio >= least } }),
      });
    });
}

/** One client after the other, keep-alive: what the proxy adds for somebody who waits. */
async function latencies(
  ours: RunningProxy,
  origin: Origin,
  authority: string,
  options: { rounds: number; ms: number },
): Promise<Figure[]> {
  const results: Record<'through' | 'straight', LoadResult[]> = { through: [], straight: [] };
  for (let round = -1; round < options.rounds; round++)
    for (const way of ['through', 'straight'] as const) {
      const order = orderFor('intercepted', ours, origin, authority, options.ms);
      const { proxyPort: _, ...straight } = { ...order, clients: 1 };
      const result = await load(way === 'through' ? { ...order, clients: 1 } : { ...straight, authority });
      if (round >= 0) results[way].push(result);
    }
  return (['p50Ms', 'p99Ms'] as const).map((key) => {
    const straight = median(results.straight.map((it) => it[key]));
    const added = results.through.map((it) => it[key] - straight);
    const name = `egress: added ${key.slice(0, 3)} of inspected HTTPS, keep-alive`;
    return figure(name, 'ms', added, {
      floor: { name: 'straight', values: results.straight.map((it) => it[key]) },
      ...(key === 'p50Ms'
        ? { target: { text: '≤ 1.5 ms', holds: ({ median: added }) => added <= 1.5 } }
        : {}),
    });
  });
}

/** A thousand connections that are open, and one reader that has stopped in the middle of a tunnel. */
async function manyConnections(ours: RunningProxy, origin: Origin): Promise<Figure> {
  const before = rssMiB(ours.pid);
  const { stdout } = await run(
    process.execPath,
    [
      join(here, 'crowd.ts'),
      String(ours.passing),
      String(origin.http),
      String(origin.bulk),
      String(ours.pid),
    ],
    { timeout: 120_000 },
  );
  const { rssMiB: during } = JSON.parse(stdout) as { rssMiB: number };
  return figure(
    'egress: growth of the proxy with 1,000 open connections and a stalled reader of 256 MiB',
    'MiB',
    [during - before],
    {
      target: { text: '≤ 100 MiB', holds: ({ median }) => median <= 100 },
    },
  );
}

export function rssMiB(pid: number): number {
  return Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1024;
}

function orderFor(
  scenario: Scenario,
  proxy: RunningProxy,
  origin: Origin,
  originAuthority: string,
  ms: number,
): LoadOrder {
  const port = {
    plain: origin.http,
    intercepted: origin.https,
    'intercepted-new': origin.https,
    tunnel: origin.bulk,
  }[scenario];
  const inspected = scenario === 'intercepted' || scenario === 'intercepted-new';
  return {
    scenario,
    proxyPort: inspected ? proxy.inspecting : proxy.passing,
    host: proxy.host,
    port,
    authority: inspected ? proxy.authority : originAuthority,
    clients: clients[scenario],
    ms,
  };
}

async function load(order: LoadOrder): Promise<LoadResult> {
  const { stdout } = await run(...pinned(1, process.execPath, join(here, 'load.ts'), JSON.stringify(order)), {
    timeout: 300_000,
  });
  return JSON.parse(stdout) as LoadResult;
}

async function startOurs(folder: string, origin: Origin): Promise<RunningProxy> {
  const setup: OurSetup = {
    folder: join(folder, 'glovebox'),
    originAuthority: join(folder, 'authority.pem'),
    inspected: [origin.http, origin.https],
    tunnelled: origin.bulk,
  };
  const child = spawn(process.execPath, [join(here, 'ours.ts'), JSON.stringify(setup)], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  const { port, authority } = JSON.parse(await firstLine(child)) as { port: number; authority: string };
  await listening(port, child);
  return {
    name: 'glovebox',
    inspecting: port,
    passing: port,
    authority,
    host: 'origin.test',
    ...running(child),
  };
}

function firstLine(child: ChildProcess): Promise<string> {
  return new Promise((resolve, reject) => {
    createInterface({ input: child.stdout as NodeJS.ReadableStream }).once('line', resolve);
    child.once('exit', (code) => reject(new Error(`${child.spawnargs.join(' ')} ended with ${code}`)));
  });
}

/** An authority, and the origin's certificate by it, for every name that the origin goes by. */
function makeCertificates(folder: string): string {
  const openssl = (...args: string[]) => execFileSync('openssl', args, { cwd: folder, stdio: 'ignore' });
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];
  openssl(
    'req',
    '-x509',
    ...key,
    '-days',
    '30',
    '-subj',
    '/CN=authority of the bench',
    '-keyout',
    'authority.key',
    '-out',
    'authority.pem',
  );
  openssl(
    'req',
    '-x509',
    ...key,
    '-days',
    '30',
    '-subj',
    '/CN=origin.test',
    '-addext',
    'subjectAltName=DNS:origin.test,DNS:localhost',
    '-addext',
    'basicConstraints=critical,CA:FALSE',
    '-CA',
    'authority.pem',
    '-CAkey',
    'authority.key',
    '-keyout',
    'origin.key',
    '-out',
    'origin.pem',
  );
  return readFileSync(join(folder, 'authority.pem'), 'utf8');
}
