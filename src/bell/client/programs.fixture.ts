// For tests of the client: its forms as programs, and an HTTP server in the place of the host's door.
import { execFileSync, spawn } from 'node:child_process';
import { accessSync, globSync } from 'node:fs';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { homedir } from 'node:os';
import { join } from 'node:path';

const root = join(import.meta.dirname, '../../..');
const bunPackage = process.arch === 'arm64' ? 'bun-linux-aarch64' : 'bun-linux-x64-baseline';

export const bun = join(root, 'node_modules/@oven', bunPackage, 'bin/bun');
export const js = join(import.meta.dirname, 'client.cjs');
export const python = join(import.meta.dirname, 'client.py');

// A PATH may have a script in its place that looks for it at each start.
const pythonItself = execFileSync('python3', ['-c', 'import sys; print(sys.executable)'], {
  encoding: 'utf8',
}).trim();

/** The runtimes that every rule is tried with. */
export const programs: Record<string, string[]> = {
  node: [process.execPath, js],
  bun: [bun, js],
  python: [pythonItself, python],
};

const present = (path: string): boolean => {
  try {
    accessSync(path);
    return true;
  } catch {
    return false;
  }
};

/** Other versions that this machine happens to have: the system's Node.js, Pythons side by side. */
export const others = {
  node: ['/usr/bin/node', '/usr/local/bin/node'].filter(present),
  python: [
    ...['/usr/bin/python3'].filter(present),
    ...globSync(join(homedir(), '.pyenv/versions/3.*/bin/python3')),
  ],
};

export interface Ended {
  code: number | null;
  stdout: string;
  stderr: string;
}

/** `stdin`: a text and then its end; `open`: a pipe that nobody writes to or closes; nothing when absent. */
export interface Start {
  env?: Record<string, string>;
  stdin?: string | Buffer | { open: string };
  cwd?: string;
}

/** Starts a program with little in its environment, and a home that not even root can make. */
export function start([file, ...args]: string[], { env = {}, stdin, cwd }: Start = {}) {
  const child = spawn(file as string, args, {
    env: { PATH: process.env.PATH, HOME: '/dev/null/home', ...env },
    stdio: [stdin === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
    timeout: 55_000,
    killSignal: 'SIGKILL',
    ...(cwd === undefined ? {} : { cwd }),
  });
  child.stdin?.on('error', () => {});
  if (typeof stdin === 'object' && 'open' in stdin) child.stdin?.write(stdin.open);
  else child.stdin?.end(stdin);
  const output = { stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr'] as const)
    child[name]?.setEncoding('utf8').on('data', (text: string) => {
      output[name] += text;
    });
  const ended = new Promise<Ended>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code) => resolve({ code, ...output }));
  });
  return { child, output, ended };
}

export const run = (command: string[], options?: Start): Promise<Ended> => start(command, options).ended;

export interface Asked {
  method: string;
  path: string;
  headers: IncomingMessage['headers'];
  body: unknown;
}

export type Answer = (response: ServerResponse, asked: Asked, request: IncomingMessage) => void;

/** A server at a free port of loopback that notes what it is asked. */
export async function openDoor(answer: Answer) {
  const asked: Asked[] = [];
  const server = createServer(async (request, response) => {
    response.on('error', () => {});
    const pieces: Buffer[] = [];
    for await (const piece of request) pieces.push(piece);
    const text = Buffer.concat(pieces).toString();
    const { method = '', url: path = '', headers } = request;
    asked.push({ method, path, headers, body: text === '' ? undefined : JSON.parse(text) });
    answer(response, asked.at(-1) as Asked, request);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  return {
    asked,
    port,
    url: `http://127.0.0.1:${port}/`,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

export const json =
  (value: unknown, status = 200): Answer =>
  (response) => {
    response.writeHead(status, { 'Content-Type': 'application/json' }).end(`${JSON.stringify(value)}\n`);
  };

export const text =
  (value: string, status = 200): Answer =>
  (response) => {
    response.writeHead(status, { 'Content-Type': 'text/plain; charset=utf-8' }).end(value);
  };

export const lines =
  (...events: unknown[]): Answer =>
  (response) => {
    response.writeHead(200, { 'Content-Type': 'application/x-ndjson' });
    for (const event of events) response.write(`${JSON.stringify(event)}\n`);
    response.end();
  };

export const done = json({ ok: true, status: 'ok', action: 'x', result: null });
