// The gateway beside Debian's nginx as a reverse proxy of the same origin, in turns, each with processor 0 to itself and the clients and the origin on processor 1.
// The sandbox has no walls (runtime `memory`), so that its port is the origin that nginx reaches, too; its agent runs in the daemon and is counted with it.
import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { promisify } from 'node:util';
import { freePort } from '../test/ports.ts';
import { listening, running } from './egress/peers.ts';
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

/** `rounds` of requests through each, `ms` long. Needs nginx. */
export async function gatewayFigures(options: { rounds: number; ms: number }): Promise<Figure[]> {
  const folder = mkdtempSync(join(tmpdir(), 'glovebox-bench-gateway-'));
  await using undo = new AsyncDisposableStack();
  undo.defer(() => rmSync(folder, { recursive: true, force: true }));
  const certificate = join(folder, 'unused.pem');
  const key = join(folder, 'unused.key');
  const request = ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '30', '-subj', '/CN=unused'];
  execFileSync('openssl', [...request, '-keyout', key, '-out', certificate], { stdio: 'ignore' });
  const [command, args] = pinned(1, process.execPath, join(here, 'egress/origin.ts'), certificate, key);
  const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'inherit'] });
  undo.defer(() => running(child).stop());
  const { http: origin } = JSON.parse(await firstLine(child)) as { http: number };

  const beside = await startNginx(folder, origin);
  undo.defer(() => beside.stop());
  const ours = await startGateway(folder, origin);
  undo.defer(() => ours.stop());

  const counted: Record<'ours' | 'nginx', number[]> = { ours: [], nginx: [] };
  for (let round = -1; round < options.rounds; round++)
    for (const [name, { host, port }] of Object.entries({ ours, nginx: beside })) {
      const { count, ms } = await load({
        ...{ scenario: 'plain', host, port, authority: '', clients, ms: options.ms },
      });
      if (round >= 0) counted[name as 'ours' | 'nginx'].push((count / ms) * 1000);
    }
  return [
    figure('gateway: requests of 32 clients, keep-alive, 1 KiB', '/s', counted.ours, {
      floor: { name: 'nginx', values: counted.nginx },
      target: { text: '≥ 0.5 × nginx', holds: ({ ratio }) => ratio >= 0.5 },
    }),
  ];
}

async function load(order: LoadOrder): Promise<LoadResult> {
  const command = [process.execPath, join(here, 'egress/load.ts'), JSON.stringify(order)];
  const { stdout } = await run(...pinned(1, ...command), { timeout: 300_000 });
  return JSON.parse(stdout) as LoadResult;
}

interface Proxy {
  host: string;
  port: number;
  stop: () => Promise<void>;
}

/** One worker, as we are one process; connections to the origin are kept, as ours are. */
async function startNginx(folder: string, origin: number): Promise<Proxy> {
  const port = await freePort();
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
  upstream origin { server 127.0.0.1:${origin}; keepalive 64; keepalive_requests 1000000000; }
  server {
    listen 127.0.0.1:${port};
    location / {
      proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Host $http_host;
      proxy_set_header X-Forwarded-Proto $scheme;
    }
  }
}
`,
  );
  const child = spawn(...pinned(0, nginx, '-c', file, '-p', home), {
    stdio: ['ignore', 'ignore', 'inherit'],
  });
  await listening(port, child);
  return {
    ...{ host: '127.0.0.1', port },
    // Its worker ends with it only when it is asked.
    async stop() {
      const ended = new Promise((resolve) => child.once('exit', resolve));
      child.kill('SIGTERM');
      await ended;
    },
  };
}

async function startGateway(folder: string, origin: number): Promise<Proxy> {
  const port = await freePort();
  const home = join(folder, 'home');
  const [command, args] = pinned(
    0,
    process.execPath,
    join(here, '../src/cli/main.ts'),
    'serve',
    '--port',
    '0',
  );
  const child = spawn(command, args, {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: {
      ...process.env,
      GLOVEBOX_HOME: home,
      GLOVEBOX_RUNTIME_TYPE: 'memory',
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
  const until = Math.floor(Date.now() / 1000) + 3_600;
  const { endpoint } = await call('GET', `/sandboxes/${id}/endpoints/${origin}?expires=${until}`);
  const stop = async () => {
    await fetch(`${url}/v1/sandboxes/${id}`, { method: 'DELETE', headers });
    await running(child).stop();
  };
  return { host: endpoint.replace(/:\d+$/, ''), port, stop };
}

function firstLine(child: ChildProcess): Promise<string> {
  return new Promise((resolve, reject) => {
    createInterface({ input: child.stdout as NodeJS.ReadableStream }).once('line', resolve);
    child.once('exit', (code) => reject(new Error(`${child.spawnargs.join(' ')} ended with ${code}`)));
  });
}
