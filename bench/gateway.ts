// The gateway beside Debian's nginx as a reverse proxy of the same origin, in turns, each with processor 0 to itself and everything else on processor 1: the
// clients, the origin, and the agent of the sandbox. The origin lies in the sandbox's network, and so do nginx and its clients, who reach it in no other way.
// It is an application of Node's HTTP, as sandboxes have them; and, for the worst case, one that costs next to nothing, so that only the way to it is measured.
import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import { insideProcess } from '../src/runtime/bubblewrap/record.ts';
import { freePort } from '../test/ports.ts';
import { running } from './egress/peers.ts';
import type { LoadOrder, LoadResult } from './egress/shapes.ts';
import { type Figure, figure } from './measure.ts';

const run = promisify(execFile);
const here = import.meta.dirname;
const nginx = '/usr/sbin/nginx';
const clients = 32;

export const nginxPresent = () => existsSync(nginx);

const pinned = (processor: number, ...command: string[]): [string, string[]] =>
  cpus().length > 1
    ? ['taskset', ['-c', String(processor), ...command]]
    : [command[0] as string, command.slice(1)];

/** `rounds` of requests through each, `ms` long. Needs nginx and root. */
export async function gatewayFigures(options: { rounds: number; ms: number }): Promise<Figure[]> {
  const folder = mkdtempSync(join(tmpdir(), 'glovebox-bench-gateway-'));
  await using undo = new AsyncDisposableStack();
  undo.defer(() => rmSync(folder, { recursive: true, force: true }));
  const port = await freePort();
  const daemon = await startDaemon(folder, port);
  undo.defer(daemon.stop);
  const inside = ['nsenter', `--net=/proc/${daemon.agentPid}/ns/net`];

  const certificate = join(folder, 'unused.pem');
  const key = join(folder, 'unused.key');
  const request = ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '30', '-subj', '/CN=unused'];
  execFileSync('openssl', [...request, '-keyout', key, '-out', certificate], { stdio: 'ignore' });
  const serve = [process.execPath, join(here, 'egress/origin.ts'), certificate, key];
  const child = spawn(...pinned(1, ...inside, ...serve), { stdio: ['pipe', 'pipe', 'inherit'] });
  undo.defer(() => running(child).stop());
  const ports = JSON.parse(await firstLine(child)) as { http: number; application: number };
  const origins = [
    { name: "an application of Node's HTTP", port: ports.application, nginxPort: 8_080 },
    { name: 'the barest origin', port: ports.http, nginxPort: 8_081 },
  ].map((it) => ({ ...it, counted: { ours: [] as number[], nginx: [] as number[] } }));
  const beside = await startNginx(folder, { inside, origins });
  undo.defer(beside.stop);

  const load = async (counted: number[], way: string[], place: { host: string; port: number }) => {
    const order: LoadOrder = { ...{ scenario: 'plain', authority: '', clients, ms: options.ms }, ...place };
    const command = [process.execPath, join(here, 'egress/load.ts'), JSON.stringify(order)];
    const { stdout } = await run(...pinned(1, ...way, ...command), { timeout: 300_000 });
    const { count, ms } = JSON.parse(stdout) as LoadResult;
    counted.push((count / ms) * 1000);
  };
  for (let round = -1; round < options.rounds; round++)
    for (const { counted, port: origin, nginxPort } of origins) {
      await load(counted.ours, [], { host: await daemon.hostOf(origin), port });
      await load(counted.nginx, inside, { host: '127.0.0.1', port: nginxPort });
      // The first round is to get warm.
      if (round < 0) for (const values of Object.values(counted)) values.length = 0;
    }
  return origins.map(({ name, counted }) =>
    figure(`gateway: requests of 32 clients, keep-alive, 1 KiB, ${name}`, '/s', counted.ours, {
      floor: { name: 'nginx', values: counted.nginx },
      target: { text: '≥ 0.5 × nginx', holds: ({ ratio }) => ratio >= 0.5 },
    }),
  );
}

/** One worker, as we are one process; connections to the origin are kept, as ours are. */
async function startNginx(
  folder: string,
  { inside, origins }: { inside: string[]; origins: readonly { port: number; nginxPort: number }[] },
): Promise<{ stop: () => Promise<void> }> {
  const home = join(folder, 'nginx');
  mkdirSync(home);
  const file = join(home, 'nginx.conf');
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map(
    (it) => `${it}_temp_path ${home}/${it};`,
  );
  writeFileSync(
    file,
    `daemon off; worker_processes 1; pid ${home}/pid; error_log ${home}/error.log;
events { worker_connections 1024; }
http {
  access_log off; ${temporary.join(' ')}
  keepalive_requests 1000000000;
${origins.map(serverOf).join('\n')}
}
`,
  );
  const child = spawn(...pinned(0, ...inside, nginx, '-c', file, '-p', home), {
    stdio: ['ignore', 'ignore', 'inherit'],
  });
  // It writes this when it listens.
  while (!existsSync(join(home, 'pid'))) {
    if (child.exitCode !== null) throw new Error(`nginx ended with ${child.exitCode}`);
    await delay(20);
  }
  return {
    // Its worker ends with it only when it is asked.
    async stop() {
      const ended = new Promise((resolve) => child.once('exit', resolve));
      child.kill('SIGTERM');
      await ended;
    },
  };
}

const serverOf = ({ port, nginxPort }: { port: number; nginxPort: number }) => `
  upstream origin-${port} { server 127.0.0.1:${port}; keepalive 64; keepalive_requests 1000000000; }
  server {
    listen 127.0.0.1:${nginxPort};
    location / {
      proxy_pass http://origin-${port}; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Host $http_host;
      proxy_set_header X-Forwarded-Proto $scheme;
    }
  }`;

interface GatewayDaemon {
  /** Of the first process in its sandbox. */
  agentPid: number;
  /** The name that a port of the sandbox goes by, signed. */
  hostOf(origin: number): Promise<string>;
  stop: () => Promise<void>;
}

async function startDaemon(folder: string, port: number): Promise<GatewayDaemon> {
  const home = join(folder, 'home');
  const main = join(here, '../src/cli/main.ts');
  const child = spawn(...pinned(0, process.execPath, main, 'serve', '--port', '0'), {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: {
      ...process.env,
      GLOVEBOX_HOME: home,
      GLOVEBOX_RUNTIME_TYPE: 'bubblewrap',
      GLOVEBOX_LOG_LEVEL: 'ERROR',
      GLOVEBOX_INGRESS_MODE: 'gateway',
      GLOVEBOX_INGRESS_GATEWAY_PORT: String(port),
      GLOVEBOX_INGRESS_GATEWAY_ROUTE_MODE: 'wildcard',
    },
  });
  const url = /https?:\/\/\S+/.exec(await firstLine(child))?.[0];
  const headers = { 'OPEN-SANDBOX-API-KEY': readFileSync(join(home, 'api-key'), 'utf8').trim() };
  const call = async (method: string, path: string, body?: unknown) => {
    const reply = await fetch(`${url}/v1${path}`, {
      ...{ method, headers },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    if (!reply.ok) throw new Error(`${method} ${path}: ${reply.status} ${await reply.text()}`);
    return (await reply.json()) as { id: string; endpoint: string };
  };
  const request = { image: { uri: 'host' }, entrypoint: ['tail', '-f', '/dev/null'], resourceLimits: {} };
  const { id } = await call('POST', '/sandboxes', request);
  const agent = await insideProcess(join(home, 'state', id));
  if (agent === undefined) throw new Error('the sandbox has ended');
  if (cpus().length > 1) execFileSync('taskset', ['-acp', '1', String(agent.pid)], { stdio: 'ignore' });
  return {
    agentPid: agent.pid,
    async hostOf(origin) {
      const until = Math.floor(Date.now() / 1000) + 3_600;
      const { endpoint } = await call('GET', `/sandboxes/${id}/endpoints/${origin}?expires=${until}`);
      return endpoint.replace(/:\d+$/, '');
    },
    async stop() {
      await fetch(`${url}/v1/sandboxes/${id}`, { method: 'DELETE', headers });
      await running(child).stop();
    },
  };
}

function firstLine(child: ChildProcess): Promise<string> {
  return new Promise((resolve, reject) => {
    createInterface({ input: child.stdout as NodeJS.ReadableStream }).once('line', resolve);
    child.once('exit', (code) => reject(new Error(`${child.spawnargs.join(' ')} ended with ${code}`)));
  });
}
