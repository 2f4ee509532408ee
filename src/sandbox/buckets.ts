// Buckets in sandboxes: each is mounted on the host by a program of its own while the sandbox runs, and handed to the walls like any folder.
//
// This process never looks into one: where the bucket does not answer, whoever looks waits. And nothing here removes folders with what is in them, which
// would be the bucket's objects.
import { spawn } from 'node:child_process';
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  statSync,
} from 'node:fs';
import { mkdir, rm, rmdir, writeFile } from 'node:fs/promises';
import { dirname, isAbsolute, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { type BucketClaim, bucketPrefix, endpointOf } from '../contract/bucket.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import { identityOf, isAlive, type ProcessIdentity } from '../runtime/processes/identity.ts';
import type { Mount, Runtime } from '../runtime/runtime.ts';
import { type BucketKeys, checkBucketOptions, helperPlan, helpers } from './bucket-helper.ts';

export type { BucketKeys };

/** As a request asks for it. */
export interface WantedBucket extends Omit<BucketClaim, 'prefix' | 'folder'>, BucketKeys {
  subPath?: string;
}

/** Keeps the keys of sandboxes that can be started again, so that nobody else can read them. */
export interface BucketKeyring {
  save(sandboxId: string, keys: readonly BucketKeys[]): Promise<void>;
  get(sandboxId: string): Promise<BucketKeys[] | undefined>;
  forget(sandboxId: string): Promise<void>;
  /** Ids of sandboxes that it has keys of. */
  all(): Promise<string[]>;
}

export interface BucketsOptions {
  /** Below it buckets are mounted; ours alone. */
  root: string;
  keyring: BucketKeyring;
  /** Where programs are looked for, and what they get of it: of this process. */
  env: Readonly<Record<string, string | undefined>>;
  log: Log;
}

const bucketsMax = 16;
const mountMs = 60_000;
const lookEveryMs = 50;
const unmountMs = 5_000;
/** A program whose folder is nobody's any more ends by itself, unless something on the host has a copy of all mounts: then it is told to. */
const endsByItselfMs = 1_000;
const endsWhenToldMs = 5_000;
/** Of the end of a sandbox, by a bucket that does not answer. */
const heldUpMs = 20_000;
const outputBytesMax = 8 * 1024;

export class Buckets {
  readonly #options: BucketsOptions;

  constructor(options: BucketsOptions) {
    this.#options = options;
  }

  /**
   * What a new sandbox is to have. Waits for nothing. Failures: `invalid` (options, prefix), `unsupported` (the program that mounts them is not there, or the
   * runtime's machines are not on this host).
   */
  claim(
    wanted: readonly WantedBucket[],
    { sandboxId, runtime }: { sandboxId: string; runtime: Runtime },
  ): BucketClaim[] {
    if (wanted.length === 0) return [];
    if (wanted.length > bucketsMax)
      throw new Failure('invalid', `volumes: ${wanted.length} buckets; the most is ${bucketsMax}`);
    const checked = wanted.map(({ subPath = '', endpoint: host, ...it }) => {
      const what = `volumes.${it.name}`;
      checkBucketOptions(it.version, it.options, what);
      const endpoint = endpointOf(host);
      if (endpoint === undefined) throw new Failure('invalid', `${what}: ossfs.endpoint is no address`);
      return { ...it, endpoint, prefix: prefixOf(subPath, what) };
    });
    if (runtime.hostRoot === undefined)
      throw new Failure(
        'unsupported',
        `volumes: runtime ${runtime.name} has no buckets: its sandboxes are not on this host`,
        { hint: 'Use bubblewrap or a Docker engine of this host.', details: unsupported },
      );
    for (const { version, name } of checked) this.#program(version, name);
    refuseWithoutFuse(this.#options.env.PATH);
    this.#openToOthers(runtime.hostRoot);
    mkdirSync(this.#options.root, { recursive: true, mode: 0o700 });
    const folder = join(realpathSync(this.#options.root), sandboxId);
    return checked.map(({ accessKeyId, accessKeySecret, ...it }, index) => ({
      ...it,
      folder: join(folder, String(index)),
    }));
  }

  /**
   * Mounts those of a sandbox that is about to start. `keys`: of a new one; those of one that is started again are kept. On failure or abort none is left
   * mounted. Failure('unavailable') holds the last words of the program.
   */
  async mount(
    { id, keep }: { id: string; keep: boolean },
    claims: readonly BucketClaim[],
    { runtime, keys: given }: { runtime: Runtime; keys?: readonly BucketKeys[] },
    signal: AbortSignal,
  ): Promise<Mount[]> {
    if (claims.length === 0) return [];
    const { keyring } = this.#options;
    if (given !== undefined && keep) await keyring.save(id, given);
    const keys = given ?? (await keyring.get(id));
    if (keys?.length !== claims.length)
      throw new Failure('lost', `the keys of the buckets of sandbox ${id} are gone`, {
        hint: 'Remove the sandbox and make it again.',
      });
    const owner = runtime.hostRoot;
    if (owner === undefined) throw new Failure('unsupported', `runtime ${runtime.name} has no buckets`);
    try {
      for (const [index, claim] of claims.entries())
        await this.#mount(claim, keys[index] as BucketKeys, owner, signal);
    } catch (error) {
      await this.unmount(claims).catch((trouble) =>
        this.#options.log.error({ sandbox: id, error: String(trouble) }, 'unmounting a bucket failed'),
      );
      throw error;
    }
    return claims.map(({ folder, guestPath, readOnly }) => ({
      ...{ hostPath: folder, guestPath, readOnly, exact: true },
    }));
  }

  /**
   * Does what ends the processes of a sandbox. None can be ended while it waits for a bucket, so a bucket that holds this up loses its program, and what was
   * not in it yet is lost.
   */
  async whileEnding(claims: readonly BucketClaim[], end: () => Promise<void>): Promise<void> {
    if (claims.length === 0) return end();
    const drop = () =>
      endAll(
        claims.flatMap(({ folder }) => helpersOf(folder)),
        'SIGKILL',
        unmountMs,
      );
    const timer = setTimeout(() => void drop(), heldUpMs);
    try {
      await end().catch(async () => {
        await drop();
        await end();
      });
    } finally {
      clearTimeout(timer);
    }
  }

  /** Of a sandbox that does not run any more. Does nothing to what is not mounted. Failure('unavailable') for what stays. */
  async unmount(claims: readonly BucketClaim[]): Promise<void> {
    const done = await Promise.allSettled(claims.map(({ folder }) => this.#unmount(folder)));
    for (const it of done) if (it.status === 'rejected') throw it.reason;
    for (const folder of new Set(claims.map((it) => dirname(it.folder)))) await rmdir(folder).catch(isGone);
  }

  /** Those whose program has ended although their sandbox runs: what asks them gets an error. */
  lost(claims: readonly BucketClaim[]): BucketClaim[] {
    return claims.filter(({ folder }) => !isMounted(folder) || helpersOf(folder).length === 0);
  }

  /** A sandbox is gone for good. */
  async forget(sandboxId: string, claims: readonly BucketClaim[]): Promise<void> {
    if (claims.length > 0) await this.#options.keyring.forget(sandboxId);
  }

  /** Takes away what belongs to none of these sandboxes; to be called when all were taken up. Never rejects. */
  async sweep(known: ReadonlySet<string>): Promise<void> {
    const { root, keyring, log } = this.#options;
    const attempt = (work: Promise<unknown>) =>
      work.catch((error) => log.warn({ error: String(error) }, 'taking away what is left of buckets failed'));
    const there = realOrNone(root);
    for (const id of there === undefined ? [] : readdirSync(there)) {
      const folder = join(there as string, id);
      for (const name of namesIn(folder)) {
        if (name.endsWith(secretSuffix)) await attempt(rm(join(folder, name), { force: true }));
        else if (!known.has(id)) await attempt(this.#unmount(join(folder, name)));
      }
      if (!known.has(id)) await attempt(rmdir(folder).catch(isGone));
    }
    await attempt(
      keyring.all().then(async (ids) => {
        for (const id of ids.filter((it) => !known.has(it))) await keyring.forget(id);
      }),
    );
  }

  #program(version: BucketClaim['version'], name: string): string {
    const program = helpers[version];
    const path = programOf(program, this.#options.env.PATH);
    if (path !== undefined) return path;
    throw new Failure(
      'unsupported',
      `volumes.${name}: ossfs ${version} is mounted by the program ${program}, which is not on the PATH of the daemon`,
      {
        hint: `Install ${program} on this host; or mount the bucket there, allow its folder in storage.allowed_host_paths, and give it as a host volume.`,
        details: unsupported,
      },
    );
  }

  /** Whether users of the host other than ours are to get at it; the host's own configuration may forbid that to ordinary users. */
  #openToOthers(owner: { uid: number }): boolean {
    const own = process.getuid?.();
    if (own === 0) return true;
    if (owner.uid === own) return false;
    const said = /^\s*user_allow_other\s*$/m.test(contentOf('/etc/fuse.conf'));
    if (said) return true;
    throw new Failure(
      'unsupported',
      'volumes: buckets that an ordinary user mounts are seen by that user alone, not by guests of another',
      {
        hint: 'Put the line user_allow_other into /etc/fuse.conf, or run the daemon as root.',
        details: unsupported,
      },
    );
  }

  async #mount(
    claim: BucketClaim,
    keys: BucketKeys,
    owner: { uid: number; gid: number },
    signal: AbortSignal,
  ): Promise<void> {
    const { name, folder, version } = claim;
    const program = this.#program(version, name);
    await this.#unmount(folder);
    await mkdir(folder, { recursive: true, mode: 0o700 });
    const secretFile = `${folder}${secretSuffix}`;
    const toOthers = this.#openToOthers(owner);
    const plan = helperPlan(claim, keys, { secretFile, owner, toOthers });
    try {
      await rm(secretFile, { force: true });
      await writeFile(secretFile, plan.secretFile, { mode: 0o600, flag: 'wx' });
      await this.#run(program, plan, { claim, keys }, signal);
    } finally {
      await rm(secretFile, { force: true });
    }
  }

  async #run(
    program: string,
    { args, foreground }: { args: string[]; foreground: boolean },
    { claim, keys }: { claim: BucketClaim; keys: BucketKeys },
    signal: AbortSignal,
  ): Promise<void> {
    const { folder, name, bucket, endpoint } = claim;
    signal.throwIfAborted();
    // It outlives this process, as its sandbox does.
    const stdio = ['ignore', 'pipe', 'pipe'] as const;
    const child = spawn(program, args, {
      cwd: '/',
      env: this.#helperEnv(),
      detached: true,
      stdio: [...stdio],
    });
    const output: Buffer[] = [];
    const hear = (chunk: Buffer) => output.splice(0, output.length, lastOf([...output, chunk]));
    for (const stream of [child.stdout, child.stderr]) stream.on('data', hear).on('error', () => {});
    const state: { ended?: string; code?: number | null } = {};
    child.once('error', (error) => Object.assign(state, { ended: error.message }));
    child.once('exit', (code, by) =>
      Object.assign(state, { ended: code === null ? `ended by ${by}` : `exit code ${code}`, code }),
    );
    const closed = new Promise<void>((resolve) => child.once('close', () => resolve()));
    const failed = async (why: string) => {
      // Its words may come behind its end, but something that it has left running may hold on to the pipe.
      if (state.ended !== undefined) await Promise.race([closed, delay(1_000, undefined, { ref: false })]);
      const words = lastWords(Buffer.concat(output).toString('utf8'), keys);
      return new Failure(
        'unavailable',
        `volumes.${name}: mounting bucket ${bucket} of ${endpoint} failed: ${[words, why].filter((it) => it !== '').join('; ')}`,
        {
          hint: `Check keys, bucket, prefix and endpoint.${endpoint.startsWith('https:') ? ' For a certificate of an authority of your own, start the daemon with CURL_CA_BUNDLE=FILE.' : ''}`,
          details: { kind: 'bucket-mount' },
        },
      );
    };
    const deadline = AbortSignal.timeout(mountMs);
    const patient = AbortSignal.any([signal, deadline]);
    try {
      for (;;) {
        const ended = state.ended;
        const mounted = isMounted(folder);
        if (ended !== undefined && (foreground || state.code !== 0)) throw await failed(ended);
        if (ended !== undefined && !mounted) throw await failed('it ended, and nothing is mounted');
        if (mounted && (foreground || ended !== undefined)) {
          const answers = await this.#answers(folder, patient);
          if (answers && isMounted(folder) && (!foreground || state.ended === undefined)) return;
        }
        if (deadline.aborted) throw await failed(`not mounted within ${mountMs / 1000} seconds`);
        signal.throwIfAborted();
        await delay(lookEveryMs);
      }
    } catch (error) {
      child.kill('SIGKILL');
      throw error;
    } finally {
      // What it says from now on is nobody's; programs of this kind take no signal for a broken pipe.
      child.stdout.destroy();
      child.stderr.destroy();
      child.unref();
    }
  }

  /**
   * Whether the bucket answers, whatever it says. A program whose keys are wrong mounts, asks, and then ends: until then its first answer is held up, it gives no
   * second one, and what it has mounted is dead for a moment before it is gone.
   */
  async #answers(folder: string, signal: AbortSignal): Promise<boolean> {
    const paths = ['.glovebox-1', '.glovebox-2'].map((it) => join(folder, it));
    await this.#tool('stat', paths, signal);
    return (await this.#tool('stat', ['-f', folder], signal)) === 0;
  }

  async #unmount(folder: string): Promise<void> {
    const asRoot = process.getuid?.() === 0;
    const tools = asRoot ? ['umount'] : unmounters;
    const plainly = asRoot ? [] : ['-u'];
    const lazily = [asRoot ? '-l' : '-uz'];
    const tryAll = async (how: string[]) => {
      for (const tool of isMounted(folder) ? tools : [])
        await this.#tool(tool, [...how, folder], AbortSignal.timeout(unmountMs));
      return !isMounted(folder);
    };
    if (!(await tryAll(plainly)) && !(await tryAll(lazily))) {
      // A program that does not answer may hold up whoever unmounts; where there is none, nothing does.
      await endAll(helpersOf(folder), 'SIGKILL', unmountMs);
      await tryAll(lazily);
    }
    if (isMounted(folder))
      throw new Failure('unavailable', `the bucket at ${folder} cannot be unmounted`, {
        hint: `It is tried again; see what uses it: fuser -m ${folder}`,
      });
    const left = helpersOf(folder);
    const ended = (await allEnd(left, endsByItselfMs)) || (await endAll(left, 'SIGTERM', endsWhenToldMs));
    if (!ended) await endAll(left, 'SIGKILL', unmountMs);
    await rmdir(folder).catch(isGone);
    // Of a daemon that was killed while it mounted.
    await rm(`${folder}${secretSuffix}`, { force: true });
  }

  /** Its exit code; undefined when it has none, or not before the signal, which ends it. */
  async #tool(program: string, args: string[], signal: AbortSignal): Promise<number | undefined> {
    if (signal.aborted) return undefined;
    const child = spawn(program, args, { cwd: '/', env: this.#helperEnv(), stdio: 'ignore' });
    return await new Promise((resolve) => {
      const give = () => {
        child.kill('SIGKILL');
        // One that the kernel holds ends later.
        child.unref();
        resolve(undefined);
      };
      signal.addEventListener('abort', give, { once: true });
      const over = (code?: number) => {
        signal.removeEventListener('abort', give);
        resolve(code);
      };
      child.once('error', () => over()).once('close', (code) => over(code ?? undefined));
    });
  }

  /** Nothing of ours that could be taken for keys of the bucket's. */
  #helperEnv(): Record<string, string> {
    const kept = [
      ...['PATH', 'TZ', 'SSL_CERT_FILE', 'SSL_CERT_DIR', 'CURL_CA_BUNDLE'],
      ...['http_proxy', 'https_proxy', 'no_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'NO_PROXY'],
    ];
    const found = kept.flatMap((name): [string, string][] => {
      const value = this.#options.env[name];
      return value === undefined ? [] : [[name, value]];
    });
    return { ...Object.fromEntries(found), LC_ALL: 'C' };
  }
}

/** Of a program, by the PATH given; undefined when there is none. */
function programOf(name: string, searchPath = ''): string | undefined {
  return searchPath
    .split(':')
    .filter(isAbsolute)
    .map((folder) => join(folder, name))
    .find((path) => {
      try {
        accessSync(path, constants.X_OK);
        return statSync(path).isFile();
      } catch {
        return false;
      }
    });
}

/** What every program that shows buckets needs of the host; of the programs themselves each says it in words of its own. */
function refuseWithoutFuse(searchPath: string | undefined): void {
  const device = '/dev/fuse';
  try {
    accessSync(device, constants.R_OK | constants.W_OK);
  } catch (cause) {
    const there = existsSync(device);
    throw new Failure(
      'unsupported',
      `volumes: buckets are mounted by FUSE, and ${device} ${there ? 'is not open to the user of the daemon' : 'is not there'}`,
      {
        hint: there
          ? `Open it: chmod 666 ${device}; or run the daemon as root.`
          : 'Load its module: modprobe fuse; a container needs the device passed in.',
        details: unsupported,
        cause,
      },
    );
  }
  if (process.getuid?.() === 0 || unmounters.some((it) => programOf(it, searchPath) !== undefined)) return;
  throw new Failure(
    'unsupported',
    `volumes: buckets of an ordinary user are unmounted by ${unmounters.join(' or ')}, and neither is on the PATH of the daemon`,
    { hint: 'Install the package fuse3, or run the daemon as root.', details: unsupported },
  );
}

/** Of an ordinary user. */
const unmounters = ['fusermount3', 'fusermount'];
const secretSuffix = '.keys';
const unsupported = { kind: 'volume-backend' };

function prefixOf(subPath: string, what: string): string {
  const parts = subPath.split('/').filter((it) => it !== '' && it !== '.');
  const prefix = parts.join('/');
  if (parts.includes('..') || prefix !== prefix.trim() || !bucketPrefix.test(prefix))
    throw new Failure(
      'invalid',
      `${what}: the prefix ${JSON.stringify(subPath.slice(0, 80))} has characters that cannot be told to the program that mounts it`,
      {
        hint: 'Choose one without .., quotes, \\, `, $, #, : and spaces at its ends.',
        details: { kind: 'volume-sub-path' },
      },
    );
  return prefix;
}

const lastOf = (chunks: Buffer[]): Buffer => Buffer.concat(chunks).subarray(-outputBytesMax);

/** What a person needs of it: its last lines without what only informs, its moments and the keys. */
function lastWords(output: string, { accessKeyId, accessKeySecret }: BucketKeys): string {
  const lines = output
    .replaceAll(accessKeySecret, '…')
    .replaceAll(accessKeyId, '…')
    .split('\n')
    .filter((line) => !/\[(INF|DBG)\]/.test(line))
    .map((line) =>
      line
        .replace(/^\d{4}-\S+Z? \[\w+\] (\S+:\w+\(\d+\): )?/, '')
        .replace(/\p{Cc}/gu, ' ')
        .trim()
        .slice(0, 300),
    );
  return lines
    .filter((it) => it !== '')
    .slice(-4)
    .join('; ');
}

/** The places where something is mounted, as the kernel tells them: a space is \040. */
function isMounted(folder: string): boolean {
  const places = readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .map((line) => line.split(' ')[4] ?? '');
  const plain = (place: string) =>
    Buffer.from(
      place.replace(/\\([0-7]{3})/g, (_, octal) => String.fromCharCode(Number.parseInt(octal, 8))),
      'latin1',
    ).toString('utf8');
  return places.some((place) => plain(place) === folder);
}

/** Processes of our user that were told to show a bucket in this folder, whose name nothing else has. */
function helpersOf(folder: string): ProcessIdentity[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)
    .flatMap((name) => {
      if (!contentOf(`/proc/${name}/cmdline`).split('\0').includes(folder)) return [];
      const owner = statSync(`/proc/${name}`, { throwIfNoEntry: false })?.uid;
      const identity = identityOf(Number(name));
      return identity === undefined || owner !== process.getuid?.() ? [] : [identity];
    });
}

async function endAll(processes: ProcessIdentity[], by: NodeJS.Signals, ms: number): Promise<boolean> {
  for (const identity of processes)
    try {
      if (isAlive(identity)) process.kill(identity.pid, by);
    } catch {
      // It has ended by itself.
    }
  return allEnd(processes, ms);
}

async function allEnd(processes: ProcessIdentity[], ms: number): Promise<boolean> {
  const until = performance.now() + ms;
  while (processes.some(isAlive)) {
    if (performance.now() > until) return false;
    await delay(lookEveryMs);
  }
  return true;
}

function isGone(error: NodeJS.ErrnoException): void {
  // One that holds something else is not ours to take.
  if (!['ENOENT', 'ENOTEMPTY', 'ENOTDIR', 'EEXIST'].includes(error.code ?? '')) throw error;
}

function contentOf(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

function realOrNone(path: string): string | undefined {
  try {
    return realpathSync(path);
  } catch {
    return undefined;
  }
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}
