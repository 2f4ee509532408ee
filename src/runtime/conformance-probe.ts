// What the conformance suite asks the kernel from inside a guest, and what it watches on the host meanwhile.
import { randomBytes } from 'node:crypto';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { type AddressInfo, createServer, isIPv4, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import { expect } from 'vitest';
import { hostArch, type SeccompArch, syscallNumber } from './seccomp/profile.ts';

/** Capabilities that reach beyond a guest's own files and processes. */
export const hostCapabilities = {
  NET_ADMIN: 12,
  NET_RAW: 13,
  SYS_MODULE: 16,
  SYS_RAWIO: 17,
  SYS_PTRACE: 19,
  SYS_ADMIN: 21,
  SYS_BOOT: 22,
  SYS_TIME: 25,
  MKNOD: 27,
  SYSLOG: 34,
  PERFMON: 38,
  BPF: 39,
};

/** The share of the processors that a process may use by the quota of its control group, in cores. */
export function quotaOf(pid: number): number | undefined {
  for (const line of readFileSync(`/proc/${pid}/cgroup`, 'utf8').trim().split('\n')) {
    const [, controllers = '', path = ''] = line.split(':');
    if (controllers.split(',').includes('cpu')) {
      const folder = ['/sys/fs/cgroup/cpu', '/sys/fs/cgroup/cpu,cpuacct'].find((it) => existsSync(it + path));
      if (folder === undefined) continue;
      const read = (name: string) => Number(readFileSync(`${folder}${path}/${name}`, 'utf8'));
      return read('cpu.cfs_quota_us') / read('cpu.cfs_period_us');
    }
    if (controllers === '' && existsSync(`/sys/fs/cgroup${path}/cpu.max`)) {
      const [quota, period] = readFileSync(`/sys/fs/cgroup${path}/cpu.max`, 'utf8').split(' ').map(Number);
      return (quota ?? Number.NaN) / (period ?? Number.NaN);
    }
  }
  return undefined;
}

export interface HostListeners extends Disposable {
  /** The same port on TCP and UDP, on every address of the host. */
  port: number;
  unixPath: string;
  abstractName: string;
  /** Who came. */
  heard: string[];
}

/** Everything of the host that a guest might reach, if its walls had holes. */
export async function listeners(): Promise<HostListeners> {
  const heard: string[] = [];
  const name = `/tmp/glovebox-conformance-${randomBytes(6).toString('hex')}`;
  const servers: Server[] = [];
  const listen = async (what: string, options: { port?: number; host?: string; path?: string }) => {
    const server = createServer((socket) => {
      heard.push(what);
      socket.destroy();
    });
    server.listen(options);
    await once(server, 'listening');
    servers.push(server);
    return (server.address() as AddressInfo).port;
  };
  const port = await listen('TCP on every address', { port: 0, host: '0.0.0.0' });
  await listen('TCP on ::', { port, host: '::1' });
  await listen('Unix socket', { path: name });
  await listen('abstract Unix socket', { path: `\0${name}` });
  const datagrams = createSocket('udp4', () => heard.push('UDP'));
  datagrams.bind(port, '0.0.0.0');
  await once(datagrams, 'listening');
  return {
    port,
    unixPath: name,
    abstractName: name,
    heard,
    [Symbol.dispose]() {
      for (const server of servers) server.close();
      datagrams.close();
    },
  };
}

export type Argument = number | { hex: string } | { result: number };

export function call(name: string, ...args: Argument[]): Argument[] {
  return [syscallNumber(name, hostArch() as SeccompArch) ?? expect.fail(name), ...args];
}

export const tcp = 1;
export const udp = 2;
export const callsPerAttempt = 4;

/** A socket, a bound on how long connecting may take, and a connection or a datagram. */
export function attempt(kind: number, address: string, port: number, base: number): Argument[][] {
  const to = { hex: inetAddress(address, port) };
  const length = to.hex.length / 2;
  const oneSecond = { hex: `0100000000000000${'00'.repeat(8)}` };
  const [solSocket, soSndtimeo, message] = [1, 21, { hex: '6869' }];
  const socket = { result: base };
  return [
    call('socket', isIPv4(address) ? 2 : 10, kind, 0),
    call('setsockopt', socket, solSocket, soSndtimeo, oneSecond, 16),
    kind === tcp ? call('connect', socket, to, length) : call('sendto', socket, message, 2, 0, to, length),
    call('close', socket),
  ];
}

/** A struct sockaddr_in or sockaddr_in6 in hexadecimal. */
function inetAddress(address: string, port: number): string {
  const portHex = port.toString(16).padStart(4, '0');
  if (isIPv4(address)) {
    const bytes = Buffer.from(address.split('.').map(Number)).toString('hex');
    return `0200${portHex}${bytes}${'00'.repeat(8)}`;
  }
  const [head = '', tail = ''] = address.replace(/%.*$/, '').split('::');
  const groups = (text: string) =>
    text
      .split(':')
      .filter((it) => it !== '')
      .map((it) => it.padStart(4, '0'));
  const [first, last] = [groups(head), groups(tail)];
  const middle = Array(8 - first.length - last.length).fill('0000');
  return `0a00${portHex}00000000${[...first, ...middle, ...last].join('')}00000000`;
}

/** A struct sockaddr_un in hexadecimal. */
export function unixAddress(path: string): string {
  return `0100${Buffer.from(path).toString('hex')}${path.startsWith('\0') ? '' : '00'}`;
}

/** Runs inside a guest, under the agent's own Bun. */
export const networkFile = join(import.meta.dirname, 'conformance-network.js');

export type NetworkStep =
  | { kind: 'stream'; address: string; port: number; send: string }
  | { kind: 'datagram'; address: string; port: number; hex: string };

export interface NetworkOutcome {
  error?: string;
  client?: number;
  received?: string;
  hex?: string;
}

/** The host's end of what a guest sends to the world: notes who wanted what, and repeats what was said. */
export class WayOut {
  readonly intents: object[] = [];

  readonly take = (socket: Socket): void => {
    let text = '';
    let names = false;
    socket
      .on('data', (bytes) => {
        const lines = (text + bytes).split('\n');
        text = lines.pop() as string;
        for (const line of lines) {
          const said = JSON.parse(line);
          if (names)
            socket.write(`${JSON.stringify({ id: said.id, resolve: !said.name.startsWith('refused') })}\n`);
          else if (said.kind === 'names') names = true;
          else this.intents.push(said);
        }
        if (!names && text !== '') socket.end(`heard: ${text}`);
      })
      .resume();
  };
}

/** A question for the IPv4 addresses of a name, as a message of DNS in hexadecimal. */
export function nameQuestion(name: string): string {
  const labels = name
    .split('.')
    .map((it) => `${it.length.toString(16).padStart(2, '0')}${Buffer.from(it).toString('hex')}`);
  return `000101000001000000000000${labels.join('')}0000010001`;
}
