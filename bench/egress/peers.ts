// Proxies of others for the egress figures: squid and mitmproxy as Debian ships them, set up to do the same work as ours.
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';

/** A proxy that runs: where it inspects, where it does not, and the authority of what it shows. */
export interface RunningProxy {
  name: string;
  inspecting: number;
  /** For plain requests and tunnels. */
  passing: number;
  authority: string;
  host: string;
  pid: number;
  stop(): Promise<void>;
}

export interface Place {
  folder: string;
  /** PEM of the authority that signed the origin's certificate. */
  originAuthority: string;
}

const squidHelper = '/usr/lib/squid/security_file_certgen';
const readyMs = 60_000;

export const peersPresent = () => ({
  squid: existsSync('/usr/sbin/squid') && existsSync(squidHelper),
  mitmproxy: existsSync('/usr/bin/mitmdump'),
});

export async function startSquid({ folder, originAuthority }: Place): Promise<RunningProxy> {
  const home = join(folder, 'squid');
  mkdirSync(home);
  chmodSync(folder, 0o755);
  const [inspecting, passing] = [await freePort(), await freePort()];
  makeAuthority(home);
  writeFileSync(join(home, 'origin-ca.pem'), originAuthority);
  writeFileSync(join(home, 'hosts'), '127.0.0.1 origin.test\n');
  execFileSync(squidHelper, ['-c', '-s', join(home, 'certificates'), '-M', '4MB'], { stdio: 'ignore' });
  const certificates = `cert=${home}/authority.pem key=${home}/authority.key`;
  writeFileSync(
    join(home, 'squid.conf'),
    `http_port 127.0.0.1:${inspecting} ssl-bump generate-host-certificates=on dynamic_cert_mem_cache_size=4MB ${certificates}
http_port 127.0.0.1:${passing}
sslcrtd_program ${squidHelper} -s ${home}/certificates -M 4MB
tls_outgoing_options cafile=${home}/origin-ca.pem
acl step1 at_step SslBump1
ssl_bump peek step1
ssl_bump bump all
http_access allow all
cache deny all
hosts_file ${home}/hosts
access_log stdio:${home}/access.log
cache_log ${home}/cache.log
pid_filename ${home}/squid.pid
coredump_dir ${home}
shutdown_lifetime 0 seconds
`,
  );
  execFileSync('chown', ['-R', 'proxy:proxy', home]);
  const child = spawn('/usr/sbin/squid', ['-N', '-f', join(home, 'squid.conf')], { stdio: 'ignore' });
  await listening(inspecting, child);
  await listening(passing, child);
  const certificate = readFileSync(join(home, 'authority.pem'), 'utf8');
  return {
    name: 'squid',
    inspecting,
    passing,
    authority: certificate,
    host: 'origin.test',
    ...running(child),
  };

  function makeAuthority(at: string): void {
    const files = ['-keyout', join(at, 'authority.key'), '-out', join(at, 'authority.pem')];
    execFileSync(
      'openssl',
      [
        'req',
        '-x509',
        '-newkey',
        'ec',
        '-pkeyopt',
        'ec_paramgen_curve:P-256',
        '-nodes',
        '-days',
        '30',
      ].concat(['-subj', '/CN=squid of the bench', '-addext', 'basicConstraints=critical,CA:TRUE', ...files]),
      { stdio: 'ignore' },
    );
  }
}

export async function startMitmproxy({ folder, originAuthority }: Place): Promise<RunningProxy> {
  const home = join(folder, 'mitmproxy');
  mkdirSync(home);
  writeFileSync(join(home, 'origin-ca.pem'), originAuthority);
  const port = await freePort();
  const options = [`confdir=${home}`, `ssl_verify_upstream_trusted_ca=${home}/origin-ca.pem`];
  const child = spawn(
    '/usr/bin/mitmdump',
    [
      '-q',
      '--listen-host',
      '127.0.0.1',
      '--listen-port',
      String(port),
      ...options.flatMap((it) => ['--set', it]),
    ],
    // It asks the system for names, and the system knows this one.
    { stdio: 'ignore' },
  );
  await listening(port, child);
  const authority = readFileSync(join(home, 'mitmproxy-ca-cert.pem'), 'utf8');
  return {
    name: 'mitmproxy',
    inspecting: port,
    passing: port,
    authority,
    host: 'localhost',
    ...running(child),
  };
}

/** Processor time of a process and all below it, in seconds. */
export function cpuSeconds(pid: number): number {
  const stats = readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .flatMap((name) => {
      try {
        const text = readFileSync(`/proc/${name}/stat`, 'latin1');
        const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
        return [
          { pid: Number(name), parent: Number(fields[1]), ticks: Number(fields[11]) + Number(fields[12]) },
        ];
      } catch {
        return [];
      }
    });
  const family = new Set([pid]);
  for (let grown = true; grown; ) {
    grown = false;
    for (const it of stats)
      if (family.has(it.parent) && !family.has(it.pid)) {
        family.add(it.pid);
        grown = true;
      }
  }
  return stats.filter((it) => family.has(it.pid)).reduce((sum, it) => sum + it.ticks, 0) / 100;
}

export async function listening(port: number, child: ChildProcess): Promise<void> {
  for (const deadline = performance.now() + readyMs; ; await delay(50)) {
    if (await answers(port)) return;
    if (child.exitCode !== null || performance.now() > deadline)
      throw new Error(`nothing listens at port ${port}; the proxy's exit code is ${child.exitCode}`);
  }
}

function answers(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ port, host: '127.0.0.1' });
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}

export function running(child: ChildProcess): { pid: number; stop: () => Promise<void> } {
  return {
    pid: child.pid as number,
    stop: async () => {
      if (child.exitCode !== null) return;
      const ended = new Promise((resolve) => child.once('exit', resolve));
      child.kill('SIGKILL');
      await ended;
    },
  };
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}
