// What tests of certificates share: a server on loopback that answers with a sandbox's certificates, and programs of this machine that judge them.
import { execFile, execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { type AddressInfo, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type ConnectionOptions, connect, TLSSocket } from 'node:tls';
import type { SandboxAuthority } from '../src/egress/certificates/certificates.ts';
import { readClientHello } from '../src/egress/certificates/client-hello.ts';

/** A folder of the test's own, gone with it. */
export function temporaryFolder(): { path: string; [Symbol.dispose](): void } {
  const path = mkdtempSync(join(tmpdir(), 'glovebox-certificates-'));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

/** Whether a program is here. Says so when not, and fails where everything has to be there. */
export function present(program: string, ...versionArguments: string[]): boolean {
  try {
    execFileSync(program, versionArguments, { stdio: 'ignore' });
    return true;
  } catch (error) {
    if ((process.env.GLOVEBOX_TEST_REQUIRE ?? '').split(',').includes('docker'))
      throw new Error(`a complete run of the tests needs ${program}, which is not usable here`, {
        cause: error,
      });
    console.warn(`tests with ${program} are skipped: it is not usable here`);
    return false;
  }
}

/** Exit code and all output of a program. */
export async function outcomeOf(
  program: string,
  args: string[],
  environment: Record<string, string> = {},
): Promise<{ code: number; output: string }> {
  return new Promise((resolve) => {
    const child = execFile(
      program,
      args,
      { env: { PATH: process.env.PATH, HOME: '/nonexistent', ...environment }, timeout: 200_000 },
      (error, stdout, stderr) => {
        resolve({ code: error === null ? 0 : Number(error.code ?? 1), output: stdout + stderr });
      },
    );
    child.stdin?.end();
  });
}

export interface TestServer {
  port: number;
  [Symbol.asyncDispose](): Promise<void>;
}

/** Answers each client with one HTTP response under the name it asked for, else under `fallback`. */
export async function serveWith(authority: SandboxAuthority, fallback = '127.0.0.1'): Promise<TestServer> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket)).on('error', () => socket.destroy());
    let head = Buffer.alloc(0);
    const onData = (chunk: Buffer): void => {
      head = Buffer.concat([head, chunk]);
      const hello = readClientHello(head);
      if (hello.state === 'more') return;
      socket.off('data', onData).pause();
      if (hello.state !== 'hello') return void socket.destroy();
      socket.unshift(head);
      const secure = new TLSSocket(socket, {
        isServer: true,
        secureContext: authority.contextFor(hello.serverName ?? fallback),
      });
      secure.on('error', () => socket.destroy());
      secure.once('data', () => {
        secure.end('HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n');
      });
    };
    socket.on('data', onData);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    port: (server.address() as AddressInfo).port,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** What a client of Node.js got: the server's certificate, the group of the keys, whether it resumed, and its last ticket. Rejects when it does not trust. */
export async function visit(
  server: TestServer,
  options: ConnectionOptions,
): Promise<{ leaf: Buffer; group: string | undefined; reused: boolean; session: Buffer | undefined }> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host: '127.0.0.1', port: server.port, ...options });
    let session: Buffer | undefined;
    let leaf = Buffer.alloc(0);
    let group: string | undefined;
    socket.on('session', (ticket: Buffer) => {
      session = ticket;
    });
    socket.on('secureConnect', () => {
      leaf = socket.getPeerCertificate().raw ?? leaf;
      group = (socket.getEphemeralKeyInfo() as { name?: string } | null)?.name;
      socket.write('GET / HTTP/1.1\r\n\r\n');
    });
    socket.on('error', reject);
    socket.on('end', () => {
      const reused = socket.isSessionReused();
      socket.destroy();
      resolve({ leaf, group, reused, session });
    });
    socket.resume();
  });
}
