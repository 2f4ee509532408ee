// A sandbox service without sandboxes, for tests of the API: files in a map, commands that are functions of the test, ports of this machine.
import { createHash } from 'node:crypto';
import { EventEmitter, once } from 'node:events';
import { type IncomingMessage, request } from 'node:http';
import { connect, type Socket } from 'node:net';
import { Readable } from 'node:stream';
import type { AuditEntry } from '../contract/audit.ts';
import type { BellEntry, BellStatus } from '../contract/bell.ts';
import type { CredentialVaultState } from '../contract/credential-vault.ts';
import type { ExecExit, FileEntry } from '../contract/guest.ts';
import type { LogEntry, Question, Rule, SecretInfo } from '../contract/network.ts';
import type { NetworkPolicy } from '../contract/opensandbox.ts';
import type { NewPool, PoolInfo } from '../contract/pool.ts';
import type { KeyRecord, ProjectRecord, Usage } from '../contract/tenant.ts';
import { Wire } from '../egress/wire.ts';
import type { Guest, Output } from '../guest/guest.ts';
import { Failure } from '../lib/failure.ts';
import type { KeptImage } from '../runtime/runtime.ts';
import { usageOf } from '../sandbox/quotas.ts';
import type {
  CreateRequest,
  Execution,
  ExecutionInfo,
  Executions,
  SandboxFilter,
  SandboxHistory,
  SandboxInfo,
  SandboxService,
} from '../sandbox/sandbox.ts';
import { PreparedTerminals } from '../sandbox/terminals.ts';
import { Volumes } from '../sandbox/volumes.ts';
import { Snapshots } from '../snapshot/snapshots.ts';
import type { AuditService } from './audit.ts';
import type { BellService } from './bell.ts';
import type { ApiOptions } from './handlers.ts';
import type { CredentialVault, NetworkService } from './network.ts';
import { createApi, type Listening } from './server.ts';
import { type Records, Tenants, type TenantsOptions } from './tenants.ts';

export const exited = (code: number): ExecExit => ({ code, signal: null, reason: 'exited' });

/** What a command does. `signals` gives the next signal that is sent to it. */
export type Program = (io: ProgramIo) => Promise<ExecExit>;
export interface ProgramIo {
  spec: Parameters<Executions['start']>[0];
  out(text: string | Uint8Array): void;
  err(text: string | Uint8Array): void;
  /** The next piece of stdin; null at its end. */
  input(): Promise<string | null>;
  signalled(): Promise<string>;
}

class FakeExecution implements Execution {
  readonly exit: Promise<ExecExit>;
  readonly signals: string[] = [];
  readonly sizes: { cols: number; rows: number }[] = [];
  readonly #events = new EventEmitter().setMaxListeners(100);
  readonly #pieces: Extract<Output, { type: 'output' }>[] = [];
  readonly #info: Omit<ExecutionInfo, 'start' | 'end'>;
  readonly #input: (string | null)[] = [];
  #start = 0;

  constructor(id: string, spec: ProgramIo['spec'], program: Program) {
    this.#info = {
      id,
      command: spec.argv ?? [spec.shell ?? ''],
      pid: 42,
      startedAt: new Date(),
      background: spec.background ?? false,
      tty: spec.pty !== undefined,
    };
    const next = async <T>(list: T[], event: string): Promise<T> => {
      while (list.length === 0) await once(this.#events, event);
      return list.shift() as T;
    };
    const io: ProgramIo = {
      spec,
      out: (text) => this.#push('stdout', text),
      err: (text) => this.#push('stderr', text),
      input: () => next(this.#input, 'input'),
      signalled: async () => {
        while (this.signals.length === 0) await once(this.#events, 'signal');
        return this.signals.at(-1) as string;
      },
    };
    this.exit = program(io).then((exit) => {
      this.#info.exit = exit;
      this.#info.finishedAt = new Date();
      this.#events.emit('output');
      return exit;
    });
  }

  get info(): ExecutionInfo {
    return { ...this.#info, start: this.#start, end: this.#end };
  }

  get #end(): number {
    const last = this.#pieces.at(-1);
    return last ? last.offset + last.bytes.length : this.#start;
  }

  #push(lane: 'stdout' | 'stderr', text: string | Uint8Array): void {
    this.#pieces.push({ type: 'output', lane, bytes: Buffer.from(text as string), offset: this.#end });
    this.#events.emit('output');
  }

  /** As if the first bytes were no longer held. */
  forget(bytes: number): void {
    while ((this.#pieces[0]?.offset ?? bytes) < bytes) this.#pieces.shift();
    this.#start = bytes;
  }

  async *read(from: number, { follow }: { follow: boolean }, signal?: AbortSignal): AsyncIterable<Output> {
    let at = from;
    if (at < this.#start) {
      yield { type: 'gap', from: at, to: this.#start };
      at = this.#start;
    }
    for (;;) {
      if (signal?.aborted) return;
      const piece = this.#pieces.find((it) => it.offset + it.bytes.length > at);
      if (piece) {
        const bytes = piece.bytes.subarray(at - piece.offset);
        yield { ...piece, bytes, offset: at };
        at += bytes.length;
      } else if (!follow || this.#info.exit !== undefined) return;
      else await once(this.#events, 'output', signal ? { signal } : {}).catch(() => undefined);
    }
  }

  async write(bytes: Uint8Array): Promise<void> {
    this.#input.push(Buffer.from(bytes).toString());
    this.#events.emit('input');
  }

  end(): void {
    this.#input.push(null);
    this.#events.emit('input');
  }

  resize(size: { cols: number; rows: number }): void {
    this.sizes.push(size);
    this.#push('stdout', `[${size.cols}x${size.rows}]`);
  }

  async signal(name: string): Promise<void> {
    if (this.#info.exit) throw new Failure('conflict', 'it has ended');
    this.signals.push(name);
    this.#events.emit('signal');
  }
}

interface FakeFile {
  kind: FileEntry['kind'];
  bytes: Uint8Array;
  mode: number;
  owner: string;
  group: string;
}

const digestOf = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');

/** Enough of a guest for the file routes; folders are whatever is a prefix of a path. */
export class FakeGuest {
  readonly files = new Map<string, FakeFile>();
  /** What has come, by id and path. */
  readonly uploads = new Map<string, Buffer>();
  /** What everybody is given of it. */
  shown: Guest | undefined;
  /** Where the ports of the guest really are. */
  readonly ports = new Map<number, number>();
  pings = 0;
  /** Dials that never come to an end. */
  deaf = false;

  put(path: string, text: string | Uint8Array, kind: FileEntry['kind'] = 'file'): void {
    this.files.set(path, {
      kind,
      bytes: Buffer.from(text as string),
      mode: 0o644,
      owner: 'root',
      group: 'root',
    });
  }

  #find(path: string): FakeFile {
    const file = this.files.get(path);
    if (file === undefined)
      throw new Failure('not-found', `${path}: no such file`, { details: { guest: 'not-found' } });
    return file;
  }

  #entry(path: string): FileEntry {
    const { kind, bytes, mode, owner, group } = this.#find(path);
    return {
      path,
      kind,
      size: bytes.length,
      mode,
      owner,
      group,
      uid: 0,
      gid: 0,
      modifiedAt: 1e12,
      createdAt: 1e12,
    };
  }

  asGuest(): Guest {
    const guest: Partial<Guest> = {
      ping: async () => {
        this.pings += 1;
      },
      stat: async (path) => this.#entry(path),
      list: async (path) =>
        [...this.files.keys()]
          .filter((it) => it.startsWith(`${path}/`))
          .sort()
          .map((it) => this.#entry(it)),
      search: async (path, pattern) =>
        [...this.files.keys()]
          .filter(
            (it) => it.startsWith(`${path}/`) && (pattern === '**' || it.endsWith(pattern.replace('*', ''))),
          )
          .map((it) => this.#entry(it)),
      read: async (path, range = {}) => {
        const { bytes } = this.#find(path);
        const version = digestOf(bytes).slice(0, 16);
        const sha256 = range.digest ? digestOf(bytes) : undefined;
        const from = range.offset ?? 0;
        const part = bytes.subarray(from, range.length === undefined ? undefined : from + range.length);
        const content = Readable.from(cut(part), { objectMode: false });
        return { entry: this.#entry(path), bytes: content, version, sha256 };
      },
      write: async (path, source, options = {}) => {
        const chunks: Uint8Array[] = [];
        for await (const chunk of source) chunks.push(Buffer.from(chunk));
        const bytes = Buffer.concat(chunks);
        const { mode = 0o644, owner = 'root', group = 'root' } = options;
        this.files.set(path, { kind: 'file', bytes, mode, owner, group });
        return bytes.length;
      },
      upload: async (
        path,
        source,
        { id, offset, complete, mode = 0o644, owner = 'root', group = 'root' },
      ) => {
        const key = `${id} ${path}`;
        const held = this.uploads.get(key) ?? Buffer.alloc(0);
        if (held.length !== offset) throw new Failure('conflict', `${held.length} bytes are held`);
        try {
          for await (const chunk of source)
            this.uploads.set(key, Buffer.concat([this.uploads.get(key) ?? held, chunk]));
        } finally {
          this.uploads.set(key, this.uploads.get(key) ?? held);
        }
        const bytes = this.uploads.get(key) ?? held;
        if (complete) {
          this.uploads.delete(key);
          this.files.set(path, { kind: 'file', bytes, mode, owner, group });
        }
        return { offset: bytes.length, complete };
      },
      uploadState: async (path, id) => {
        const held = this.uploads.get(`${id} ${path}`);
        if (held === undefined) throw new Failure('not-found', 'there is no such upload');
        return { offset: held.length, complete: false };
      },
      dropUpload: async (path, id) => void this.uploads.delete(`${id} ${path}`),
      mkdir: async (path, options = {}) => {
        const { mode = 0o755, owner = 'root', group = 'root' } = options;
        this.files.set(path, { kind: 'directory', bytes: Buffer.alloc(0), mode, owner, group });
      },
      remove: async (path, { recursive }) => {
        if (!recursive && this.files.get(path)?.kind === 'directory')
          throw new Failure('invalid', `${path}: is a directory`, { details: { guest: 'is-a-directory' } });
        this.files.delete(path);
        if (recursive)
          for (const it of [...this.files.keys()]) if (it.startsWith(`${path}/`)) this.files.delete(it);
      },
      rename: async (from, to) => {
        if (this.files.has(to))
          throw new Failure('conflict', `${to}: exists`, { details: { guest: 'exists' } });
        this.files.set(to, this.#find(from));
        this.files.delete(from);
      },
      chmod: async (path, change) => void Object.assign(this.#find(path), change),
      replace: async (path, change) => {
        const file = this.#find(path);
        const parts = Buffer.from(file.bytes).toString().split(change.old);
        file.bytes = Buffer.from(parts.join(change.new));
        return parts.length - 1;
      },
      pack: async (path) => Readable.from([Buffer.from(`tar of ${path}`)], { objectMode: false }),
      unpack: async (path, tar) => {
        const chunks: Uint8Array[] = [];
        for await (const chunk of tar) chunks.push(chunk);
        this.put(path, Buffer.concat(chunks));
      },
      metrics: async () => ({
        cpuCount: 2,
        cpuUsageUsec: performance.now() * 1000,
        memoryTotalBytes: 2 ** 30,
        memoryUsedBytes: 2 ** 20,
        at: Date.now(),
      }),
      dial: (port, signal) => this.#dial(port, signal),
      connect: async (port, signal) =>
        new Wire(await this.#dial(port, signal), (error) => {
          throw error;
        }),
    };
    return guest as Guest;
  }

  async #dial(port: number, signal?: AbortSignal): Promise<Socket> {
    if (this.deaf)
      await new Promise((_, reject) => signal?.addEventListener('abort', () => reject(signal.reason)));
    const real = this.ports.get(port);
    if (real === undefined) throw new Failure('unavailable', `port ${port}: connection refused`);
    const socket = connect({ port: real, host: '127.0.0.1', allowHalfOpen: true });
    await once(socket, 'connect', signal ? { signal } : {});
    return socket;
  }
}

function* cut(bytes: Uint8Array): Iterable<Uint8Array> {
  for (let at = 0; at < bytes.length; at += 1000) yield bytes.subarray(at, at + 1000);
}

export class FakeService implements SandboxService {
  /** How often each sandbox is held at the moment. */
  readonly held = new Map<string, number>();
  readonly saved: { id: string; name: string }[] = [];
  /** What is remembered of those that are gone. */
  readonly gone: SandboxHistory[] = [];
  readonly sandboxes = new Map<string, SandboxInfo>();
  readonly created: CreateRequest[] = [];
  readonly guests = new Map<string, FakeGuest>();
  readonly kept = new Map<string, Map<string, FakeExecution>>();
  programs: Record<string, Program> = {};
  /** Ids of those that were used from outside. */
  readonly touched: string[] = [];
  now = new Date('2026-01-01T00:00:00Z');

  /** A sandbox that runs. */
  add(id: string, changes: Partial<SandboxInfo> = {}): FakeGuest {
    this.now = new Date(this.now.getTime() + 1);
    const at = this.now;
    this.sandboxes.set(id, {
      id,
      runtime: 'memory',
      state: 'Running',
      reason: 'running',
      message: 'it runs',
      lastTransitionAt: at,
      image: 'host',
      entrypoint: [],
      metadata: {},
      extensions: {},
      limits: {},
      createdAt: at,
      keep: false,
      workspaces: [],
      published: [],
      ...changes,
    });
    const guest = new FakeGuest();
    this.guests.set(id, guest);
    this.kept.set(id, new Map());
    return guest;
  }

  projectOf(id: string): string | undefined {
    return this.sandboxes.get(id)?.project?.id;
  }

  usage(projectId: string): Usage {
    return usageOf(this.list({ project: projectId }), new Map());
  }

  get(id: string): SandboxInfo {
    const info = this.sandboxes.get(id);
    if (info === undefined)
      throw new Failure('not-found', `there is no sandbox ${id}`, { hint: 'See glovebox ls.' });
    return info;
  }

  async stop(id: string): Promise<void> {
    if (!this.get(id).keep) throw new Failure('conflict', `sandbox ${id} was not made to be stopped`);
    this.get(id).state = 'Stopped';
  }

  async start(id: string): Promise<void> {
    this.get(id).state = 'Running';
  }

  async save(id: string, name: string): Promise<void> {
    this.get(id);
    this.saved.push({ id, name });
  }

  likeness(id: string): CreateRequest {
    const { project, image, runtime, entrypoint, limits } = this.get(id);
    const own = project === undefined ? {} : { project };
    return { image, runtime, entrypoint, limits, env: {}, metadata: {}, extensions: {}, mounts: [], ...own };
  }

  touch(id: string): void {
    this.touched.push(id);
  }

  hold(id: string): Disposable {
    this.get(id);
    const change = (by: number) => this.held.set(id, (this.held.get(id) ?? 0) + by);
    change(1);
    return { [Symbol.dispose]: () => change(-1) };
  }

  activity(id: string): { holds: number; commands: number } {
    return { holds: this.held.get(id) ?? 0, commands: 0 };
  }

  async create(request: CreateRequest, signal: AbortSignal): Promise<SandboxInfo> {
    signal.throwIfAborted();
    if (request.image === 'missing') throw new Failure('not-found', 'there is no image missing');
    this.created.push(request);
    const id = `made-${this.created.length}`;
    const { image, entrypoint, metadata, extensions, limits, timeoutMs, platform, project } = request;
    const { keep = false, workspaces = [], published = [], autoStopAfterMs } = request;
    this.add(id, {
      ...{ image, entrypoint, metadata, extensions, limits, keep, workspaces, published },
      ...(project === undefined ? {} : { project }),
      ...(request.snapshotId === undefined ? {} : { snapshotId: request.snapshotId }),
      ...(autoStopAfterMs == null ? {} : { autoStopAfterMs }),
      ...(platform ? { platform } : {}),
      ...(timeoutMs === undefined ? {} : { expiresAt: new Date(this.now.getTime() + timeoutMs) }),
    });
    return this.get(id);
  }

  list(filter: SandboxFilter = {}): SandboxInfo[] {
    return [...this.sandboxes.values()]
      .filter((it) => filter.project === undefined || it.project?.id === filter.project)
      .filter((it) => filter.states?.includes(it.state) ?? true)
      .filter((it) =>
        Object.entries(filter.metadata ?? {}).every(([key, value]) => it.metadata[key] === value),
      )
      .reverse();
  }

  async remove(id: string): Promise<void> {
    this.get(id);
    this.sandboxes.delete(id);
  }

  history(reference: string, projectId?: string): SandboxHistory {
    const mine = (it: { project?: { id: string } }) =>
      projectId === undefined || it.project?.id === projectId;
    const info = [...this.sandboxes.values()].find((it) => it.id === reference && mine(it));
    if (info === undefined) {
      const gone = this.gone.find((it) => (it.id === reference || it.name === reference) && mine(it));
      if (gone === undefined) throw new Failure('not-found', `nothing is known of ${reference}`);
      return gone;
    }
    const { id, state, reason, message, lastTransitionAt, runtime, image, limits, createdAt } = info;
    return {
      ...{ id, state, reason, message, since: lastTransitionAt, runtime, image, limits, createdAt },
      commands: [],
    };
  }

  async pause(id: string): Promise<void> {
    const info = this.get(id);
    if (info.state !== 'Running') throw new Failure('conflict', `sandbox ${id} is ${info.state}`);
    info.state = 'Paused';
  }

  async resume(id: string): Promise<void> {
    const info = this.get(id);
    if (info.state !== 'Paused') throw new Failure('conflict', `sandbox ${id} is ${info.state}`);
    info.state = 'Running';
  }

  renew(id: string, expiresAt: Date): SandboxInfo {
    const info = this.get(id);
    if (info.expiresAt === undefined) throw new Failure('conflict', 'it has no expiry');
    if (expiresAt <= this.now) throw new Failure('invalid', 'expiresAt is not in the future');
    info.expiresAt = expiresAt;
    return info;
  }

  patchMetadata(id: string, patch: Record<string, string | null>): SandboxInfo {
    const info = this.get(id);
    const merged = Object.entries({ ...info.metadata, ...patch }).filter(([, value]) => value !== null);
    info.metadata = Object.fromEntries(merged) as Record<string, string>;
    return info;
  }

  guest(id: string): Guest {
    const { state } = this.get(id);
    if (state !== 'Running') throw new Failure('conflict', `sandbox ${id} is ${state}`);
    const guest = this.guests.get(id) as FakeGuest;
    guest.shown ??= guest.asGuest();
    return guest.shown;
  }

  executions(id: string): Executions {
    this.get(id);
    const kept = this.kept.get(id) as Map<string, FakeExecution>;
    return {
      start: async (spec) => {
        const line = spec.shell ?? spec.argv?.join(' ') ?? '';
        const program = this.programs[line];
        if (program === undefined)
          throw new Failure('not-found', `${line}: command not found`, {
            details: { exitCode: 127, guest: 'command-not-found' },
          });
        const execution = new FakeExecution(spec.execId ?? `exec-${kept.size + 1}`, spec, program);
        kept.set(execution.info.id, execution);
        return execution;
      },
      get: (execId) => {
        const execution = kept.get(execId);
        if (execution === undefined) throw new Failure('not-found', `there is no command ${execId}`);
        return execution;
      },
      environment: () => ({ HOME: '/root', PLACE: '/srv' }),
      list: () => [...kept.values()].map((it) => it.info),
    };
  }

  accessToken(id: string): string {
    this.get(id);
    return `token-of-${id}`;
  }

  async runtimes(): Promise<never[]> {
    return [];
  }
}

const at = '2026-01-01T00:00:00.000Z';

/** `first`, then what is emitted and wanted, until the signal. */
function follow<T>(
  events: EventEmitter,
  event: string,
  first: T[],
  wanted: (it: T) => boolean,
  signal: AbortSignal,
): AsyncIterable<T> {
  const waiting = [...first];
  const take = (it: T) => {
    if (wanted(it)) waiting.push(it);
    events.emit('taken');
  };
  events.on(event, take);
  signal.addEventListener('abort', () => events.off(event, take).emit('taken'), { once: true });
  return {
    async *[Symbol.asyncIterator]() {
      while (!signal.aborted) {
        const next = waiting.shift();
        if (next !== undefined) yield next;
        else await once(events, 'taken');
      }
    },
  };
}

/** A network that keeps what it is told and decides nothing. */
export class FakeNetwork implements NetworkService {
  readonly kept: Rule[] = [];
  readonly entries: LogEntry[] = [];
  readonly open = new Map<string, Question>();
  readonly held: SecretInfo[] = [];
  readonly policies = new Map<string, NetworkPolicy>();
  readonly vaults = new Map<string, CredentialVaultState>();
  /** What was called, with what. */
  readonly calls: [string, unknown][] = [];
  readonly #events = new EventEmitter().setMaxListeners(100);

  /** Adds an entry and hands it to who follows. */
  happen(changes: Partial<LogEntry> = {}): LogEntry {
    const entry: LogEntry = {
      ...{ seq: this.entries.length + 1, at, sandbox: 's', kind: 'forward', protocol: 'https' },
      ...{ host: 'example.com', port: 443, decision: 'allow', reason: 'rule' },
      ...changes,
    };
    this.entries.push(entry);
    this.#events.emit('entry', entry);
    return entry;
  }

  ask(id: string, sandbox = 's'): void {
    const question = { id, at, until: at, sandbox, host: 'example.com', port: 443, protocol: 'https' };
    this.open.set(id, question);
    this.#events.emit('question', question);
  }

  /** How many follow the log or the questions. */
  get followers(): number {
    return this.#events.listenerCount('entry') + this.#events.listenerCount('question');
  }

  async rules(sandboxId?: string) {
    const items = this.kept.filter(
      (it) => sandboxId === undefined || it.sandboxId === undefined || it.sandboxId === sandboxId,
    );
    return { initialized: items.length > 0, items };
  }

  async addRule(rule: Parameters<NetworkService['addRule']>[0]): Promise<Rule> {
    if (rule.resources.includes('contradicted')) throw new Failure('conflict', 'it contradicts rule r1');
    if (rule.resources.includes('a..b'))
      throw new Failure('invalid', 'resources[0], column 3: an empty label');
    const { methods, path, name, sandboxId } = rule;
    const made: Rule = {
      id: `r${this.kept.length + 1}`,
      decision: rule.decision,
      resources: rule.resources,
      protocols: rule.protocols ?? ['tcp'],
      createdVia: 'added',
      createdAt: at,
      ...(name === undefined ? {} : { name }),
      ...(sandboxId === undefined ? {} : { sandboxId }),
      ...(methods === undefined ? {} : { methods }),
      ...(path === undefined ? {} : { path }),
    };
    this.kept.push(made);
    return made;
  }

  async removeRule(ruleId: string): Promise<void> {
    const index = this.kept.findIndex((it) => it.id === ruleId);
    if (index < 0) throw new Failure('not-found', `there is no rule ${ruleId}`);
    this.kept.splice(index, 1);
  }

  async init(preset: string): Promise<Rule[]> {
    if (preset !== 'balanced') throw new Failure('invalid', `there is no preset ${preset}`);
    if (this.kept.length > 0) throw new Failure('conflict', 'there are rules already');
    return [await this.addRule({ decision: 'allow', resources: ['example.com'] })];
  }

  async reset(): Promise<void> {
    this.kept.length = 0;
  }

  async presets() {
    return [{ name: 'balanced', description: 'what most need', rules: [] }];
  }

  async check(check: Parameters<NetworkService['check']>[0]) {
    this.calls.push(['check', check]);
    return {
      target: check.target,
      decision: 'deny' as const,
      reason: 'default',
      message: 'no rule allows it',
    };
  }

  async learn(request: Parameters<NetworkService['learn']>[0]) {
    this.calls.push(['learn', request]);
    return { sandbox: request.sandbox, rules: [], replayed: 0, differing: 0 };
  }

  async log({ sandbox, limit }: Parameters<NetworkService['log']>[0]): Promise<LogEntry[]> {
    const all = this.entries.filter((it) => sandbox === undefined || it.sandbox === sandbox);
    return limit === 0 ? [] : all.slice(-limit);
  }

  followLog({ sandbox }: { sandbox?: string }, signal: AbortSignal): AsyncIterable<LogEntry> {
    return follow<LogEntry>(
      this.#events,
      'entry',
      [],
      (it) => sandbox === undefined || it.sandbox === sandbox,
      signal,
    );
  }

  async questions(): Promise<Question[]> {
    return [...this.open.values()];
  }

  followQuestions(signal: AbortSignal): AsyncIterable<Question> {
    return follow<Question>(this.#events, 'question', [...this.open.values()], () => true, signal);
  }

  async answer(questionId: string, answer: unknown): Promise<void> {
    if (!this.open.delete(questionId)) throw new Failure('not-found', `nobody waits for ${questionId}`);
    this.calls.push(['answer', answer]);
  }

  async proxyConfig() {
    return {};
  }

  async changeProxyConfig(sandboxId: string, change: Parameters<NetworkService['changeProxyConfig']>[1]) {
    this.calls.push(['changeProxyConfig', { sandboxId, change }]);
    return change.policy === undefined ? {} : { policy: change.policy };
  }

  async networkPolicy(sandboxId: string): Promise<NetworkPolicy | undefined> {
    return this.policies.get(sandboxId);
  }

  async changeNetworkPolicy(
    sandboxId: string,
    change: Parameters<NetworkService['changeNetworkPolicy']>[1],
  ): Promise<NetworkPolicy> {
    const policy = change(this.policies.get(sandboxId));
    this.policies.set(sandboxId, policy);
    return policy;
  }

  credentialVault(sandboxId: string): CredentialVault {
    const state = () => {
      const vault = this.vaults.get(sandboxId);
      if (vault === undefined) throw new Failure('not-found', 'credential vault not found');
      return vault;
    };
    const one = <T extends { name: string }>(list: T[], name: string): T => {
      const found = list.find((it) => it.name === name);
      if (found === undefined) throw new Failure('not-found', `there is no ${name}`);
      return found;
    };
    return {
      create: async ({ credentials, bindings }) => {
        if (this.vaults.has(sandboxId)) throw new Failure('conflict', 'credential vault already exists');
        this.vaults.set(sandboxId, {
          revision: 1,
          credentials: credentials.map(({ name, source }) => ({
            name,
            sourceType: source.type,
            revision: 1,
          })),
          bindings: bindings.map(({ name, match, auth }) => ({
            name,
            revision: 1,
            match,
            auth: { type: auth.type },
          })),
        });
        return state();
      },
      state: async () => state(),
      patch: async (request) => {
        const now = state();
        if (request.expectedRevision !== undefined && request.expectedRevision !== now.revision)
          throw new Failure('conflict', `the revision is ${now.revision}`);
        now.revision += 1;
        return now;
      },
      remove: async () => {
        state();
        this.vaults.delete(sandboxId);
      },
      credential: async (name) => one(state().credentials, name),
      binding: async (name) => one(state().bindings, name),
    };
  }

  async secrets(sandboxId?: string): Promise<SecretInfo[]> {
    return this.held.filter(
      (it) => sandboxId === undefined || it.sandboxId === undefined || it.sandboxId === sandboxId,
    );
  }

  async setSecret(secret: Parameters<NetworkService['setSecret']>[0]): Promise<SecretInfo> {
    const { name, source, sandboxId, env = [], bindings = [] } = secret;
    const info: SecretInfo = {
      ...{ id: `secret-${this.held.length + 1}`, name, service: false, sourceType: source.type },
      ...{ masked: '****', placeholder: 'gbx-1', env, bindings, createdAt: at },
      ...(sandboxId === undefined ? {} : { sandboxId }),
    };
    this.held.push(info);
    return info;
  }

  async removeSecret(secretId: string): Promise<void> {
    const index = this.held.findIndex((it) => it.id === secretId);
    if (index < 0) throw new Failure('not-found', `there is no secret ${secretId}`);
    this.held.splice(index, 1);
  }
}

/** A bell that keeps what it is told and does nothing. It knows the action `open_url` alone. */
export class FakeBell implements BellService {
  readonly entries: BellEntry[] = [];
  readonly decided: BellStatus['decisions'] = [];
  readonly held = new Set<string>();
  readonly #events = new EventEmitter().setMaxListeners(100);

  /** Adds an entry and hands it to who follows. */
  happen(changes: Partial<BellEntry> = {}): void {
    const entry: BellEntry = {
      ...{ seq: this.entries.length + 1, at, sandbox: 's', action: 'open_url', detail: 'https://a.example/' },
      ...{ decision: 'allow', reason: 'person', ...changes },
    };
    this.entries.push(entry);
    this.#events.emit('entry', entry);
  }

  get followers(): number {
    return this.#events.listenerCount('entry');
  }

  async status(): Promise<BellStatus> {
    return {
      ...{
        enabled: true,
        url: 'http://host.docker.internal:9999/',
        listening: [],
        insecure: false,
        warnings: [],
      },
      actions: [{ name: 'open_url', summary: 'opens', decision: 'ask', source: 'default' }],
      ...{ commands: [], decisions: this.decided },
    };
  }

  async decide(...[action, decision, sandbox = 'all']: Parameters<BellService['decide']>): Promise<void> {
    if (action !== 'open_url') throw new Failure('not-found', `there is no action ${action}`);
    this.decided.push({ sandbox, action, decision });
  }

  async forgetDecision(action: string, sandbox = 'all'): Promise<void> {
    const index = this.decided.findIndex((it) => it.action === action && it.sandbox === sandbox);
    if (index < 0) throw new Failure('not-found', `there is no decision about ${action}`);
    this.decided.splice(index, 1);
  }

  async log({ sandbox, limit }: { sandbox?: string; limit: number }): Promise<BellEntry[]> {
    const all = this.entries.filter((it) => sandbox === undefined || it.sandbox === sandbox);
    return limit === 0 ? [] : all.slice(-limit);
  }

  followLog({ sandbox }: { sandbox?: string }, signal: AbortSignal): AsyncIterable<BellEntry> {
    const wanted = (it: BellEntry) => sandbox === undefined || it.sandbox === sandbox;
    return follow<BellEntry>(this.#events, 'entry', [], wanted, signal);
  }

  tokens() {
    return [...this.held].map((name) => ({ name, createdAt: at }));
  }

  async addToken(name: string) {
    if (this.held.has(name)) throw new Failure('conflict', `there is a token ${name}`);
    this.held.add(name);
    return { name, createdAt: at, token: `token-of-${name}` };
  }

  async removeToken(name: string): Promise<void> {
    if (!this.held.delete(name)) throw new Failure('not-found', `there is no token ${name}`);
  }
}

/** An audit log in memory. */
export class FakeAudit implements AuditService {
  readonly entries: AuditEntry[] = [];
  /** What `begin` fails with. */
  failure: Failure | undefined;
  readonly #events = new EventEmitter().setMaxListeners(100);

  /** Operations that were said to make room. */
  readonly makingRoom: string[] = [];

  async begin(...[request, { makesRoom }]: Parameters<AuditService['begin']>) {
    // As a disk would.
    await new Promise((resolve) => setImmediate(resolve));
    if (makesRoom) this.makingRoom.push(request.operation);
    if (this.failure !== undefined) throw this.failure;
    const entry: AuditEntry = { seq: this.entries.length + 1, at, event: 'call', ...request };
    this.entries.push(entry);
    return {
      end: (outcome: { status: number }) => {
        Object.assign(entry, outcome, { durationMs: 1 });
        this.#events.emit('entry', entry);
      },
    };
  }

  refused(request: Parameters<AuditService['refused']>[0], status: number): void {
    this.entries.push({ seq: this.entries.length + 1, at, event: 'refused', ...request, status });
  }

  async log({ sandbox, limit }: { sandbox?: string; limit: number }): Promise<AuditEntry[]> {
    const all = this.entries.filter((it) => sandbox === undefined || it.sandbox === sandbox);
    return limit === 0 ? [] : all.slice(-limit);
  }

  followLog({ sandbox }: { sandbox?: string }, signal: AbortSignal): AsyncIterable<AuditEntry> {
    const wanted = (it: AuditEntry) => sandbox === undefined || it.sandbox === sandbox;
    return follow<AuditEntry>(this.#events, 'entry', [], wanted, signal);
  }
}

export interface TestApi extends AsyncDisposable {
  service: FakeService;
  network: FakeNetwork;
  bell: FakeBell;
  audit: FakeAudit;
  snapshots: Snapshots;
  url: string;
  server: Listening;
  /** With `options.gateway` only. */
  gateway: Listening | undefined;
  /** What was told to the meters. */
  requests: { operation: string; status: number; ms?: number }[];
  logged: { fields: Record<string, unknown>; message: string }[];
  /** With the API key; `path` as it is. */
  call(method: string, path: string, body?: unknown, headers?: Record<string, string>): Promise<TestAnswer>;
  /** Below the execd API of the sandbox `s`. */
  execd(method: string, path: string, body?: unknown, headers?: Record<string, string>): Promise<TestAnswer>;
}

export interface TestAnswer {
  status: number;
  headers: Headers;
  text: string;
  // biome-ignore lint/suspicious/noExplicitAny: tests look into answers of every shape
  json: any;
}

export const testKey = 'the-key-of-this-test';
export const testOwnerKey = 'the-owner-of-this-test';

/** Records as a store keeps them: what comes back is another object. */
export function records<T>(): Records<T> & { kept: Map<string, string> } {
  const kept = new Map<string, string>();
  return {
    kept,
    all: () => [...kept.values()].map((it) => JSON.parse(it) as T),
    save: (id, record) => void kept.set(id, JSON.stringify(record)),
    drop: (id) => kept.delete(id),
  };
}

/** A registry in memory. Failures are not limited unless a test says so: many a test fails often. */
export function fakeTenants(options: Partial<TenantsOptions> = {}): Tenants {
  const { limits, ...rest } = options;
  const many = { perMinute: 1_000_000, burst: 1_000_000 };
  return new Tenants({
    ...{ projects: records<ProjectRecord>(), keys: records<KeyRecord>(), now: () => new Date() },
    limits: { key: many, failures: many, ...limits },
    ...rest,
  });
}

/** No folder is made before a sandbox mounts one. */
export function fakeVolumes(): Volumes {
  const silent = () => undefined;
  const log = { debug: silent, info: silent, warn: silent, error: silent };
  return new Volumes({ folder: '/nonexistent', records: records(), log, now: () => new Date() });
}

/** An API on a port of its own with one running sandbox, `s`. */
export async function startTestApi(options: Partial<ApiOptions> = {}): Promise<TestApi> {
  const service = new FakeService();
  service.add('s');
  const network = new FakeNetwork();
  const bell = new FakeBell();
  const audit = new FakeAudit();
  const snapshots = fakeSnapshots(service);
  const logged: TestApi['logged'] = [];
  const requests: TestApi['requests'] = [];
  const write = (fields: Record<string, unknown>, message: string) => void logged.push({ fields, message });
  const made = createApi({
    service,
    network,
    bell,
    audit,
    ...fakeDoors(service),
    snapshots,
    tenants: fakeTenants(),
    volumes: fakeVolumes(),
    terminals: new PreparedTerminals(records()),
    images: fakeImages(),
    apiKey: testKey,
    ownerKey: testOwnerKey,
    meters: { request: (it) => void requests.push(it), text: async () => 'of_this_test 1\n' },
    log: { debug: () => undefined, info: write, warn: write, error: write },
    version: '0.0.0-test',
    system: async () => ({
      version: '0.0.0-test',
      pid: 1,
      home: '/home',
      startedAt: '2026-01-01T00:00:00.000Z',
      sandboxes: service.sandboxes.size,
      runtimes: [],
      warnings: [],
    }),
    now: () => service.now,
    ...options,
  });
  const here = { host: '127.0.0.1', port: 0 };
  const server = await made.listen(here);
  const gateway = options.gateway === undefined ? undefined : await made.listenAsGateway(here);
  const call: TestApi['call'] = async (method, path, body, headers = {}) => {
    const raw = body instanceof Uint8Array || typeof body === 'string' || body instanceof FormData;
    const reply = await fetch(`${server.url}${path}`, {
      method,
      headers: { 'OPEN-SANDBOX-API-KEY': testKey, ...headers },
      ...(body === undefined ? {} : { body: raw ? (body as string) : JSON.stringify(body) }),
    });
    const text = await reply.text();
    const isJson = text !== '' && reply.headers.get('content-type')?.startsWith('application/json');
    const json = isJson ? JSON.parse(text) : undefined;
    return { status: reply.status, headers: reply.headers, text, json };
  };
  return {
    service,
    network,
    bell,
    audit,
    snapshots,
    url: server.url,
    server,
    gateway,
    logged,
    requests,
    call,
    execd: (method, path, body, headers) => call(method, `/sandboxes/s/proxy/44772${path}`, body, headers),
    async [Symbol.asyncDispose]() {
      await gateway?.close(AbortSignal.timeout(2_000));
      await server.close(AbortSignal.timeout(2_000));
    },
  };
}

/** The lines of a stream, as they come; empty ones too. */
export async function followLines(api: TestApi, path: string) {
  const call = request(`${api.url}${path}`, { headers: { 'OPEN-SANDBOX-API-KEY': testKey } }).end();
  const [reply] = (await once(call, 'response')) as [IncomingMessage];
  const { 'content-type': type } = reply.headers;
  if (reply.statusCode !== 200 || type !== 'application/x-ndjson')
    throw new Error(`${path} is no stream: ${reply.statusCode} ${type}`);
  const lines: string[] = [];
  let rest = '';
  reply.setEncoding('utf8').on('data', (text: string) => {
    const parts = (rest + text).split('\n');
    rest = parts.pop() ?? '';
    lines.push(...parts);
  });
  reply.on('error', () => undefined);
  const over = new Promise<void>((resolve) => reply.once('close', resolve));
  return { call, reply, lines, over, seqs: () => lines.map((it) => JSON.parse(it).seq) };
}

/** What is around sandboxes, as far as handlers can be told apart by it. */
function fakeDoors(
  service: FakeService,
): Pick<ApiOptions, 'workspaces' | 'agents' | 'templates' | 'ports' | 'pools'> {
  const checkpoint = { id: 'c1', at: '2026-01-01T00:00:00.000Z', label: '', automatic: false, changed: 0 };
  const template = {
    ...{ name: 'kept', runtime: 'memory', id: 'sha256:1', sizeBytes: 1 },
    createdAt: '2026-01-01T00:00:00.000Z',
  };
  const agent = {
    ...{
      name: 'shell',
      description: '',
      command: ['bash', '-l'],
      install: [],
      setup: [],
      env: {},
      files: [],
    },
    ...{ hosts: [], rules: [], credentials: [], source: 'built-in' as const, available: [] },
  };
  return {
    workspaces: {
      list: async (id) => service.get(id).workspaces.map((it) => ({ ...it, hide: it.hide ?? [] })),
      changes: async () => [],
      diff: async function* () {
        yield Buffer.from('diff --git a/a b/a\n');
      },
      apply: async (_, { dryRun }) => ({
        applied: dryRun ? [] : ['a'],
        merged: [],
        conflicts: [],
        refused: [],
      }),
      discard: async (_, { paths = [] }) => paths,
      checkpoints: async () => [checkpoint],
      checkpoint: async (_, label) => ({ ...checkpoint, label }),
      undo: async () => ({ checkpoint, restored: ['a'] }),
      syncStatus: async () => ({ items: [] }),
    },
    agents: {
      list: () => [agent],
      get: (name) => (name === agent.name ? agent : undefined),
      prepare: async (request, name) => ({ ...request, agent: typeof name === 'string' ? name : name.name }),
    },
    templates: {
      list: async () => [template],
      build: async function* () {
        yield { type: 'done', template };
      },
      save: async (id, name) => {
        await service.save(id, name);
        return { ...template, name };
      },
      load: async (name) => ({ ...template, name }),
      export: async function* () {
        yield Buffer.from('tar');
      },
      remove: async () => undefined,
    },
    pools: fakePools(),
    ports: {
      list: () => [],
      publish: async (_, ports) =>
        ports.map(({ sandboxPort, hostPort = 1 }) => ({
          ...{ hostIp: '127.0.0.1', hostPort, sandboxPort, protocol: 'tcp4' as const },
        })),
      unpublish: async (_, ports) => ports.length,
    },
  };
}

/** The real ones, of a service that has no disks: whatever it has saved is an image. */
export function fakeSnapshots(service: FakeService): Snapshots {
  const image = (name: string): KeptImage => ({ name, id: name, sizeBytes: 1, createdAt: service.now });
  const nothing = () => Promise.reject(new Failure('unsupported', 'this runtime is a fake'));
  const runtime = {
    ...{ name: 'memory', check: nothing, create: nothing, list: async () => [] },
    images: {
      list: async () => service.saved.map(({ name }) => image(name)),
      has: async (name: string) => service.saved.some((it) => it.name === name),
      remove: async (name: string) => {
        service.saved.splice(0, service.saved.length, ...service.saved.filter((it) => it.name !== name));
      },
      load: nothing,
      export: async function* () {
        yield Buffer.from('tar');
      },
    },
  };
  return new Snapshots({
    ...{ records: records(), service, homeId: 'test', now: () => service.now },
    runtimes: new Map([[runtime.name, runtime]]),
    log: { debug: () => undefined, info: () => undefined, warn: () => undefined, error: () => undefined },
  });
}

function fakePools(): ApiOptions['pools'] {
  const pools = new Map<string, PoolInfo>();
  const of = (name: string) => {
    const pool = pools.get(name);
    if (pool === undefined)
      throw new Failure('not-found', `there is no pool ${name}`, { details: { pool: name } });
    return pool;
  };
  const info = ({ name, template, capacitySpec }: NewPool): PoolInfo => ({
    ...{ name, template, capacitySpec, createdAt: '2026-01-01T00:00:00.000Z' },
    status: {
      ...{ total: 0, allocated: 0, available: 0, revision: 'r', starting: 1, reason: 'filling', failures: 0 },
    },
    glovebox: { source: 'api', runtime: 'memory', state: 'started', hits: 0, misses: 0 },
  });
  return {
    list: () => [...pools.values()],
    get: of,
    create: (pool) => {
      if (pools.has(pool.name)) throw new Failure('conflict', `there is a pool ${pool.name} already`);
      pools.set(pool.name, info(pool));
      return of(pool.name);
    },
    update: async (name, { capacitySpec, template = of(name).template }) => {
      pools.set(name, info({ ...of(name), template, capacitySpec, glovebox: undefined }));
      return of(name);
    },
    remove: async (name) => {
      of(name);
      pools.delete(name);
    },
    prepare: (request, name) => {
      const { capacitySpec, template } = of(name);
      if (capacitySpec.poolMax === 0)
        throw new Failure('exhausted', `pool ${name} may have no more`, { details: { pool: name } });
      return { ...request, image: template.image.uri, pool: name };
    },
  };
}

function fakeImages(): ApiOptions['images'] {
  const images = new Map<string, number>();
  const info = (name: string) => ({
    name,
    digest: 'sha256:0',
    arch: 'amd64',
    sizeBytes: images.get(name) ?? 0,
    createdAt: '2026-01-01T00:00:00.000Z',
    builtin: false,
  });
  return {
    list: async () => [...images.keys()].map(info),
    import: async (source, { name }) => {
      let bytes = 0;
      for await (const chunk of source) bytes += chunk.length;
      if (bytes === 0) throw new Failure('invalid', `import image ${name}: the archive is empty`);
      images.set(name, bytes);
      return info(name);
    },
    remove: async (name) => {
      if (!images.delete(name)) throw new Failure('not-found', `there is no image ${name}`);
    },
  };
}
