// `npm run quickstart`: the main job in a minute, with the commands that a user would type. Uses a home of its own and takes everything away at the end.
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';

const root = join(import.meta.dirname, '..');
const home = mkdtempSync(join(tmpdir(), 'glovebox-quickstart-'));
const env = { ...process.env, GLOVEBOX_HOME: home };

class TourBroken extends Error {}

function say(line: string): void {
  console.log(`\n\u001b[1m${line}\u001b[0m`);
}

/** Runs one command as a user would and shows it. Ends the tour when the exit code is not the expected one. */
function show(args: string[], options: { expect?: number; quiet?: boolean } = {}): string {
  console.log(`$ glovebox ${args.map((arg) => (/^[\w@%+=:,./-]+$/.test(arg) ? arg : `'${arg}'`)).join(' ')}`);
  const { status, stdout } = spawnSync(join(root, 'bin/glovebox'), args, {
    env,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  if (options.quiet !== true) process.stdout.write(stdout);
  if (status !== (options.expect ?? 0))
    throw new TourBroken(`glovebox ${args[0]} ended with ${status}, not ${options.expect ?? 0}`);
  return stdout;
}

/** Whether bubblewrap can limit memory here: an ordinary user without control groups cannot. */
function limitsMemory(): boolean {
  const { stdout } = spawnSync(join(root, 'bin/glovebox'), ['doctor', '--json'], { env, encoding: 'utf8' });
  const { runtimes } = JSON.parse(stdout) as {
    runtimes: { name: string; capabilities: { limits: Record<string, string> } }[];
  };
  return runtimes.some((it) => it.name === 'bubblewrap' && 'memoryBytes' in it.capabilities.limits);
}

/** What asks for a page inside: curl where this machine, and so the sandbox, has it. */
function get(url: string): string[] {
  if (existsSync('/usr/bin/curl')) return ['curl', '-sS', url];
  const { host } = new URL(url);
  const request = `GET ${url} HTTP/1.1\\r\\nHost: ${host}\\r\\nConnection: close\\r\\n\\r\\n`;
  return ['bash', '-c', `exec 3<>/dev/tcp/127.0.0.1/3128; printf '${request}' >&3; cat <&3`];
}

/** A web server of this machine, for as long as the tour runs. */
async function serve(): Promise<{ port: string; stop: () => void }> {
  const script = `require('node:http').createServer((_, answer) => answer.end('hello from this machine\\n'))
    .listen(0, '127.0.0.1', function () { console.log(this.address().port) })`;
  const child = spawn(process.execPath, ['-e', script], { stdio: ['ignore', 'pipe', 'inherit'] });
  const [line] = (await once(child.stdout, 'data')) as [Buffer];
  return { port: line.toString().trim(), stop: () => void child.kill() };
}

function tour(port: string): void {
  say('1. What this machine can do');
  show(['doctor']);

  say('2. A sandbox, from the system folders of this machine, read-only, with a private writable layer');
  const memory = limitsMemory();
  if (!memory) console.log('(without a limit on its memory, which this user may not set: see above)');
  show(['create', '--name', 'demo', ...(memory ? ['--memory', '512Mi'] : []), '--timeout', '10m', 'host']);

  say('3. Code runs in it');
  show([
    'exec',
    'demo',
    'sh',
    '-c',
    'echo "I am $(id -un) on a machine of my own:"; ps ax 2>/dev/null || ls /proc | grep -c "^[0-9]"',
  ]);

  say('4. Nothing gets out that no rule allows');
  show(['exec', 'demo', ...get('http://example.com/')]);
  say('   A rule opens one door: here, a web server of this machine');
  show(['policy', 'allow', 'network', '--sandbox', 'demo', `localhost:${port}`]);
  show(['exec', 'demo', ...get(`http://host.docker.internal:${port}/`)]);
  show(['network', 'log', 'demo']);

  say('5. Files go in and out by hand');
  show(['exec', 'demo', 'sh', '-c', 'mkdir -p /tmp/work && echo "made inside" > /tmp/work/result.txt']);
  const result = join(home, 'result.txt');
  show(['cp', 'demo:/tmp/work/result.txt', result]);
  console.log(`${result}: ${readFileSync(result, 'utf8').trim()}`);

  say('6. Cleaning up');
  show(['rm', 'demo']);
  show(['ls']);

  say('That was it. Where to go next:');
  console.log(`  bin/glovebox --help                 every command, with examples
  bin/glovebox create --name mine     a sandbox that stays (the daemon starts by itself)
  bin/glovebox image import FILE      your own root file system, docker save archive or OCI layout
  docs/guide/network.md               rules, secrets that never enter, the log, being asked
  sdk/README.md                       the same from a program
  README.md                           which wall protects against what`);
}

/** Resolves when it has gone, so that it writes nothing more into the home. */
async function stopDaemon(): Promise<void> {
  try {
    const { pid } = JSON.parse(readFileSync(join(home, 'daemon.json'), 'utf8')) as { pid: number };
    process.kill(pid, 'SIGTERM');
    for (const until = Date.now() + 10_000; Date.now() < until; await delay(20)) process.kill(pid, 0);
  } catch {
    // It never came up, or is gone.
  }
}

const server = await serve();
try {
  tour(server.port);
} catch (error) {
  if (!(error instanceof TourBroken)) throw error;
  console.error(`\nquickstart: ${error.message}; the message above says why`);
  process.exitCode = 1;
} finally {
  server.stop();
  await stopDaemon();
  rmSync(home, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 });
}
