// Gates in front of the real engine, each for a container that stands in for a sandbox's own, with a network of its own that leads nowhere.
import { execFile, execFileSync } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { mkdirSync, mkdtempSync, realpathSync, rmSync, writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { dockerImage } from '../../test/images.ts';
import { seccompDockerProfile } from '../runtime/seccomp/docker-profile.ts';
import { DockerGate } from './gate.ts';
import { serverFor } from './server.ts';
import { Upstream } from './upstream.ts';

export interface TestVm extends AsyncDisposable {
  id: string;
  socket: string;
  workspace: string;
  gate: DockerGate;
  /** Ends the sandbox's own container and says that it does not run. */
  halt(): void;
  docker(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }>;
  /** Output of a call that has to go well. */
  ok(...args: string[]): Promise<string>;
  call(
    method: string,
    path: string,
    body?: unknown,
    headers?: Record<string, string>,
  ): Promise<{ status: number; body: string }>;
}

export interface VmOptions {
  readOnly?: boolean;
  limits?: { memoryBytes?: number; pids?: number; cpu?: number };
}

export const hostDocker = (...args: string[]) =>
  execFileSync('docker', args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });

export async function openVm(options: VmOptions = {}): Promise<TestVm> {
  await using undo = new AsyncDisposableStack();
  const id = randomUUID();
  const homeId = id.slice(0, 12);
  const folder = realpathSync(mkdtempSync(join(tmpdir(), 'glovebox-gate-')));
  undo.defer(() => rmSync(folder, { recursive: true, force: true }));
  const workspace = join(folder, 'workspace');
  mkdirSync(workspace);
  writeFileSync(join(folder, 'hosts'), '127.0.0.1 localhost host.docker.internal\n');
  writeFileSync(join(folder, 'resolv.conf'), 'nameserver 127.0.0.1\n');
  const containerName = `glovebox-${id}`;
  hostDocker(
    'run',
    '-d',
    '--network',
    'none',
    '--name',
    containerName,
    dockerImage('busybox'),
    'sleep',
    '600',
  );
  undo.defer(() => void hostDocker('rm', '-f', containerName));
  const upstream = new Upstream('unix:///var/run/docker.sock');
  undo.defer(() => upstream.close());
  const state = { running: true };
  const gate = new DockerGate({
    upstream,
    log: { debug() {}, info() {}, warn() {}, error: (fields, message) => console.error(message, fields) },
    vm: {
      sandboxId: id,
      name: 'demo',
      containerName,
      running: () => state.running,
      hold: () => ({ [Symbol.dispose]() {} }),
      walls: () => ({
        homeId,
        shared: [{ path: workspace, readOnly: options.readOnly ?? false }],
        hostsFile: join(folder, 'hosts'),
        resolvFile: join(folder, 'resolv.conf'),
        limits: options.limits ?? {},
        dropCapabilities: [
          'AUDIT_WRITE',
          'MKNOD',
          'NET_ADMIN',
          'NET_RAW',
          'SYS_ADMIN',
          'SYS_MODULE',
          'SYS_PTRACE',
          'SYS_TIME',
          'SYS_TTY_CONFIG',
        ],
        noNewPrivileges: true,
        seccomp: JSON.stringify(seccompDockerProfile()),
      }),
    },
  });
  undo.defer(() => gate.remove());
  const socket = join(folder, 'docker.sock');
  const server = serverFor(gate);
  await new Promise<void>((resolve) => server.listen(socket, resolve));
  undo.defer(() => {
    server.closeAllConnections();
    return new Promise<void>((resolve) => void server.close(() => resolve()));
  });
  const docker: TestVm['docker'] = (...args) =>
    new Promise((resolve) => {
      execFile(
        'docker',
        ['--host', `unix://${socket}`, ...args],
        { encoding: 'utf8', timeout: 60_000 },
        (error, stdout, stderr) =>
          resolve({ code: error === null ? 0 : ((error.code as number | undefined) ?? -1), stdout, stderr }),
      ).stdin?.end();
    });
  const opened = undo.move();
  return {
    ...{ id, socket, workspace, gate, docker },
    halt: () => {
      state.running = false;
      hostDocker('stop', '-t', '0', containerName);
    },
    ok: async (...args) => {
      const { code, stdout, stderr } = await docker(...args);
      if (code !== 0) throw new Error(`docker ${args.join(' ')}: ${code} ${stderr}`);
      return stdout;
    },
    call: (method, path, body, headers = {}) => callSocket(socket, method, path, body, headers),
    [Symbol.asyncDispose]: () => opened.disposeAsync(),
  };
}

/** The path goes out as it is written. */
export function callSocket(
  socketPath: string,
  method: string,
  path: string,
  body?: unknown,
  headers: Record<string, string> = {},
): Promise<{ status: number; body: string }> {
  return new Promise((resolve, reject) => {
    const text = body === undefined ? undefined : JSON.stringify(body);
    const outgoing = request({
      socketPath,
      method,
      path,
      headers: { ...(text === undefined ? {} : { 'content-type': 'application/json' }), ...headers },
    });
    outgoing.on('error', reject);
    outgoing.on('response', async (reply) => {
      const pieces: Buffer[] = [];
      for await (const piece of reply) pieces.push(piece as Buffer);
      resolve({ status: reply.statusCode ?? 0, body: Buffer.concat(pieces).toString('utf8') });
    });
    outgoing.end(text);
  });
}

/** Gives a sandbox an image of the host, as a client does. */
export async function loadInto(vm: TestVm, image: string, name: string): Promise<void> {
  hostDocker('tag', image, name);
  const file = join(vm.workspace, '..', 'image.tar');
  hostDocker('save', '-o', file, name);
  hostDocker('rmi', name);
  await vm.ok('load', '-i', file);
  rmSync(file);
}

/** What the engine holds of a sandbox. */
export function left(id: string): string[] {
  const short = id.replaceAll('-', '').slice(0, 16);
  return [
    ...hostDocker(
      'ps',
      '-a',
      '--format',
      'container {{.Names}}',
      '--filter',
      `label=glovebox.vm=${id}`,
    ).split('\n'),
    ...hostDocker(
      'volume',
      'ls',
      '--format',
      'volume {{.Name}}',
      '--filter',
      `label=glovebox.vm=${id}`,
    ).split('\n'),
    ...hostDocker('images', '--format', 'image {{.Repository}}:{{.Tag}}')
      .split('\n')
      .filter((it) => it.includes(short)),
  ].filter((it) => it !== '');
}
