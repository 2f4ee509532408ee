// The controller's end of all its workers: who may become one, who is at the other end of a connection, which process of a worker counts, and what is known of each.
//
//   enrolled ──connection, hello──▶ online ──connection lost──▶ offline ──comes back──▶ online
//                                     └── removed, or its key replaced: the link is closed at once, and its key is worth nothing from then on
//
// Each worker has one channel at a time. The newest process that has proven itself holds it; a process that was replaced once is not let back while that one lives.
import { randomBytes } from 'node:crypto';
import type { WebSocket } from 'ws';
import { Acceptor, type Refusal } from '../channel/acceptor.ts';
import type { Channel, EndReason } from '../channel/channel.ts';
import type { Clock } from '../channel/clock.ts';
import { WsCarrier } from '../channel/websocket.ts';
import {
  Enrolled,
  type EnrolmentInfo,
  type EnrolmentToken,
  type EnrolRequest,
  Labels,
  type NewEnrolment,
  type PatchWorker,
  WorkerHello,
  type WorkerInfo,
  type WorkerStats,
} from '../contract/worker.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import type { Collection } from '../store/store.ts';
import { ChannelLink } from './channel-link.ts';
import { type EnrolmentRecord, Enrolments } from './enrolment.ts';
import { claimedSubject, isPublicKey, newPrivateKey, publicHalf, verifyToken } from './keys.ts';
import type { IncomingCall, Link } from './link.ts';
import { controllerLimits } from './rpc.ts';
import { callerOf, Throttle } from './throttle.ts';

const workersMax = 50_000;
/** How long a worker's channel, with all its streams, waits for it to come back. */
const graceMs = 120_000;
export const introducedWithinMs = 10_000;
/** Connections of one worker at a time, those that have not said hello among them. */
const socketsMax = 8;
/** Tokens that are being verified; who comes beyond them comes back a little later. */
const verifyingMax = 256;
/** A process that replaces another is an upgrade; so many in a minute are two machines with one identity. */
const takeOversMax = 3;
const takeOversWithinMs = 60_000;
const quarantineMs = 300_000;
const supersededMax = 16;
/** What changes with every connection is saved a little later, many workers at a time, since each save waits for the disk. */
const saveEveryMs = 5_000;
const savesAtOnce = 500;

export interface WorkerRecord {
  id: string;
  publicKey: string;
  enrolledAt: string;
  /** What the operator has set; null hides what the worker says of itself. */
  labels: Record<string, string | null>;
  /** What the worker said when it enrolled or last introduced itself. */
  claimed: Record<string, string>;
  schedulable: boolean;
  allowedCommands?: string[];
  epoch: number;
  /** The process that holds the id, or last did. */
  instance?: string;
  address?: string;
  lastSeenAt?: string;
  hello?: Omit<WorkerHello, 'op' | 'labels'>;
}

export interface WorkerHubOptions {
  workers: Collection<WorkerRecord>;
  enrolments: Collection<EnrolmentRecord>;
  /** What workers' tokens must be for. */
  controllerId: string;
  clock: Clock;
  now: () => Date;
  log: Log;
  random?: () => number;
  /** How many sandboxes are on a worker. */
  sandboxesOn?: (workerId: string) => number;
}

/** Who has proven to be whom, from `authorize` to `accept`. */
export interface Admission {
  workerId: string;
  publicKey: string;
  address: string;
}

/** `hello`: it has introduced itself, on a new channel or anew. `removed` comes after `offline`. */
export interface WorkerEvent {
  kind: 'hello' | 'online' | 'offline' | 'removed';
  workerId: string;
}

interface Entry {
  record: WorkerRecord;
  link: ChannelLink;
  acceptor: Acceptor;
  /** The channel whose worker has introduced itself. */
  introduced: Channel | undefined;
  online: { since: Date; sinceMs: number } | undefined;
  sockets: number;
  address: string;
  takeOversAt: number[];
  quarantinedUntilMs: number;
  /** Processes that were replaced by the present one or those before it. */
  superseded: string[];
}

export class WorkerHub {
  readonly #options: WorkerHubOptions;
  readonly #random: () => number;
  readonly #enrolments: Enrolments;
  readonly #entries = new Map<string, Entry>();
  readonly #listeners = new Set<(event: WorkerEvent) => void>();
  readonly #unsaved = new Set<string>();
  readonly #failedEnrolments: Throttle;
  /** By address, and more strictly by address and the worker that was claimed: a stranger locks nobody out elsewhere. */
  readonly #failedAt: Throttle;
  readonly #failedAs: Throttle;
  readonly #connects: Throttle;
  /** A key whose other half nobody has. */
  readonly #nobody = publicHalf(newPrivateKey());
  #verifying = 0;
  #closed = false;
  #cancelSaving: () => void = () => {};

  constructor(options: WorkerHubOptions) {
    this.#options = options;
    this.#random = options.random ?? Math.random;
    this.#enrolments = new Enrolments(options.enrolments, options.now);
    const throttle = (burst: number, perSecond: number) =>
      new Throttle({ burst, perSecond, monotonicMs: () => options.clock.now() });
    this.#failedEnrolments = throttle(10, 0.2);
    this.#failedAt = throttle(60, 2);
    this.#failedAs = throttle(10, 0.5);
    this.#connects = throttle(30, 1);
    for (const record of options.workers.all()) this.#enter(record);
  }

  // ---- enrolling

  /** Failure('conflict') when there is a worker of that id and it is not to be replaced, Failure('exhausted'). */
  enrolment(request: NewEnrolment): EnrolmentToken {
    const { workerId, replace } = request;
    if (workerId !== undefined && !replace && this.#entries.has(workerId)) throw taken(workerId);
    return this.#enrolments.add(request);
  }

  /** Those that can still be used, without their tokens. */
  enrolments(): EnrolmentInfo[] {
    return this.#enrolments.list();
  }

  /** Failure('not-found'). */
  dropEnrolment(id: string): void {
    this.#enrolments.drop(id);
  }

  /**
   * A token makes one worker, of the key that comes with it; the same key may ask again until the token expires, in case the answer was lost. Failures:
   * `unauthenticated` for tokens wrong, used or expired, which look the same; `exhausted` with `details.retryAfterMs`; `conflict` (id taken, token still good);
   * `invalid`.
   */
  enrol(request: EnrolRequest, address: string): Enrolled {
    const { log, controllerId } = this.#options;
    const caller = callerOf(address);
    refuseFor(this.#failedEnrolments.waitMs(caller), 'too many enrolments from this address have failed');
    const enrolment = this.#enrolments.find(request.token);
    const { used } = enrolment ?? {};
    if (enrolment === undefined || (used !== undefined && !this.#mayAskAgain(used, request))) {
      this.#failedEnrolments.take(caller);
      log.warn({ address }, 'an enrolment was refused');
      throw new Failure(
        'unauthenticated',
        'this enrolment token is of no use: wrong, used already, or expired',
        { hint: 'Have a new one made on the controller.' },
      );
    }
    if (!isPublicKey(request.publicKey))
      throw new Failure('invalid', 'publicKey: this is no Ed25519 key in base64url');
    if (enrolment.workerId !== undefined && (request.workerId ?? enrolment.workerId) !== enrolment.workerId)
      throw new Failure('invalid', `this enrolment is for worker ${enrolment.workerId}`, {
        hint: `Enrol as ${enrolment.workerId}, or have an enrolment made for ${request.workerId}.`,
      });
    const workerId =
      used?.workerId ?? enrolment.workerId ?? request.workerId ?? `worker-${randomBytes(4).toString('hex')}`;
    const known = this.#entries.get(workerId);
    if (known?.record.publicKey !== request.publicKey) {
      if (known !== undefined && !enrolment.replace) throw taken(workerId);
      if (known === undefined && this.#entries.size >= workersMax)
        throw new Failure('exhausted', `there are ${workersMax} workers, which is the most`);
      if (known !== undefined) this.#enrolments.forgetUsedBy(workerId);
      this.#enrolments.markUsed(enrolment, { workerId, publicKey: request.publicKey });
      this.#admit(workerId, request, enrolment.labels, known);
      log.info({ worker: workerId, address, replaced: known !== undefined }, 'a worker was enrolled');
    }
    return Enrolled.parse({ workerId, controllerId });
  }

  #mayAskAgain(used: { workerId: string; publicKey: string }, { publicKey }: EnrolRequest): boolean {
    if (used.publicKey !== publicKey) return false;
    // Not there: we died between the two records.
    const known = this.#entries.get(used.workerId);
    return known === undefined || known.record.publicKey === publicKey;
  }

  #admit(
    id: string,
    { publicKey, labels: claimed }: EnrolRequest,
    labels: Record<string, string>,
    known: Entry | undefined,
  ): void {
    const { allowedCommands, schedulable = true, epoch = 0 } = known?.record ?? {};
    const record: WorkerRecord = {
      ...{ id, publicKey, labels, claimed, schedulable, epoch },
      enrolledAt: this.#options.now().toISOString(),
      ...(allowedCommands === undefined ? {} : { allowedCommands }),
    };
    this.#options.workers.save(id, record);
    this.#unsaved.delete(id);
    if (known === undefined) {
      this.#enter(record);
      return;
    }
    known.record = record;
    known.acceptor.close({ code: 'revoked', message: `the key of worker ${id} was replaced by another` });
    known.acceptor = this.#acceptorFor(known);
    Object.assign(known, { superseded: [], takeOversAt: [], quarantinedUntilMs: 0 });
  }

  // ---- connections

  /**
   * Verifies the token of a handshake before it is answered. Failure('unauthenticated') says nothing of what is wrong; Failure('exhausted') has
   * `details.retryAfterMs`.
   */
  async authorize(authorization: string | undefined, address: string): Promise<Admission> {
    const { log, controllerId, now } = this.#options;
    const caller = callerOf(address);
    const tooMany = 'too many tokens from this address were refused';
    refuseFor(this.#failedAt.waitMs(caller), tooMany);
    const token = /^Bearer +([\w-]+\.[\w-]+\.[\w-]*)$/i.exec(authorization ?? '')?.[1] ?? '';
    const workerId = claimedSubject(token) ?? '';
    const claim = `${caller} ${workerId.slice(0, 64)}`;
    refuseFor(this.#failedAs.waitMs(claim), tooMany);
    if (this.#verifying >= verifyingMax)
      refuseFor(1_000 + Math.floor(this.#random() * 4_000), 'too many workers connect at the same moment');
    const publicKey = this.#entries.get(workerId)?.record.publicKey;
    let problem: string | undefined;
    this.#verifying += 1;
    try {
      // For nobody it takes as long as for somebody.
      const at = now();
      await verifyToken(token, publicKey ?? this.#nobody, { workerId, controllerId, at });
      if (publicKey === undefined) problem = 'there is no such worker';
      else if (this.#entries.get(workerId)?.record.publicKey !== publicKey) problem = 'its key was revoked';
    } catch (thrown) {
      problem = publicKey === undefined ? 'there is no such worker' : (thrown as Error).message;
    } finally {
      this.#verifying -= 1;
    }
    if (problem !== undefined || publicKey === undefined) {
      this.#failedAt.take(caller);
      this.#failedAs.take(claim);
      log.warn({ address, claimed: workerId.slice(0, 64), problem }, 'a worker was not let in');
      throw new Failure('unauthenticated', 'this is no token of a worker of this controller');
    }
    refuseFor(this.#connects.waitMs(workerId), 'this worker connects too often');
    this.#connects.take(workerId);
    return { workerId, publicKey, address };
  }

  /** Takes over an open WebSocket, in the very call that brings it. */
  accept(socket: WebSocket, { workerId, publicKey, address }: Admission): void {
    const { log } = this.#options;
    const entry = this.#entries.get(workerId);
    socket.on('error', (error: NodeJS.ErrnoException) =>
      log.warn({ worker: workerId, address, code: error.code, error: error.message }, 'a connection broke'),
    );
    if (this.#closed) return socket.close(1012, 'the controller stops');
    if (entry === undefined || entry.record.publicKey !== publicKey) return socket.close(1008, 'revoked');
    if (entry.sockets >= socketsMax) {
      log.warn({ worker: workerId, address }, `more than ${socketsMax} connections of one worker`);
      return socket.close(1013, 'too many connections of this worker');
    }
    entry.sockets += 1;
    socket.on('message', (_data, isBinary) => {
      if (!isBinary) log.warn({ worker: workerId, address }, 'a text message on a channel');
    });
    socket.once('close', () => {
      entry.sockets -= 1;
    });
    entry.address = address;
    entry.acceptor.accept(new WsCarrier(socket));
  }

  #enter(record: WorkerRecord): void {
    const link = new ChannelLink({
      workerId: record.id,
      clock: this.#options.clock,
      onListenerError: (error) => this.#trouble(record.id, error),
    });
    const entry: Entry = {
      ...{ record, link, acceptor: undefined as unknown as Acceptor },
      ...{ introduced: undefined, online: undefined, sockets: 0, address: record.address ?? '' },
      ...{ takeOversAt: [], quarantinedUntilMs: 0, superseded: [] },
    };
    entry.acceptor = this.#acceptorFor(entry);
    link.onCall('hello', (call) => this.#hello(entry, call));
    link.onReach(() => this.#reached(entry));
    this.#entries.set(record.id, entry);
  }

  #acceptorFor(entry: Entry): Acceptor {
    const { clock, log, now } = this.#options;
    const { id } = entry.record;
    return new Acceptor({
      // The handshake of the WebSocket has proven who it is.
      token: id,
      ...{ clock, graceMs, random: this.#random, limits: controllerLimits },
      takeOver: (challenger) => this.#takeOver(entry, challenger),
      onChannel: (channel, { instance }) => {
        const { record, address } = entry;
        if (record.instance !== instance) record.epoch += 1;
        Object.assign(record, { instance, address, lastSeenAt: now().toISOString() });
        this.#saveSoon(id);
        this.#awaitHello(entry, channel);
        entry.link.begin(channel);
      },
      onRefused: ({ code, message }) =>
        log.warn({ worker: id, address: entry.address, code, message }, 'a connection was refused'),
      onHandlerError: (error) => this.#trouble(id, error),
    });
  }

  #awaitHello(entry: Entry, channel: Channel): void {
    const { clock, log } = this.#options;
    const { id } = entry.record;
    const cancel = clock.setTimer(introducedWithinMs, () => {
      if (entry.introduced === channel) return;
      const message = `the worker has not introduced itself within ${introducedWithinMs / 1000} seconds`;
      channel.close({ code: 'protocol', message, retryAfterMs: 10_000 });
    });
    void channel.ended.then(({ code, message }) => {
      cancel();
      if (entry.introduced === channel) entry.introduced = undefined;
      const write = code === 'protocol' ? log.warn : log.info;
      write.call(log, { worker: id, code, message }, 'the channel with a worker has ended');
    });
  }

  #takeOver(entry: Entry, { instance, holder }: { instance: string; holder: string }): Refusal | undefined {
    const { clock, log } = this.#options;
    const { id } = entry.record;
    if (entry.superseded.includes(instance)) {
      const message = `a newer process has taken over as worker ${id}`;
      return { reason: { code: 'superseded', message }, final: true };
    }
    const nowMs = clock.now();
    entry.takeOversAt = entry.takeOversAt.filter((it) => it > nowMs - takeOversWithinMs);
    if (entry.quarantinedUntilMs <= nowMs && entry.takeOversAt.length >= takeOversMax) {
      entry.quarantinedUntilMs = nowMs + quarantineMs;
      log.warn(
        { worker: id, address: entry.address, takeOvers: entry.takeOversAt.length },
        'processes replace each other as one worker: is its home a copy of another machine’s? The one that is connected keeps the id for now',
      );
    }
    if (entry.quarantinedUntilMs > nowMs) {
      const message = `processes replace each other as worker ${id}; another one is connected. If this machine was made as a copy of another, give it an identity of its own: remove its worker home and enrol it anew`;
      return { reason: { code: 'conflict', message, retryAfterMs: 60_000 }, final: false };
    }
    entry.takeOversAt.push(nowMs);
    entry.superseded = [...entry.superseded, holder].slice(-supersededMax);
    log.info({ worker: id, address: entry.address }, 'a newer process has taken over');
    return undefined;
  }

  #hello(entry: Entry, call: IncomingCall): void {
    const channel = entry.link.channel();
    const parsed = WorkerHello.safeParse(call.request);
    if (!parsed.success) {
      const { path, message: problem } = parsed.error.issues[0] ?? { path: [], message: 'not understood' };
      const message = `hello: ${path.join('.')}: ${problem}`;
      call.reset({ code: 'protocol', message });
      channel.close({ code: 'protocol', message, retryAfterMs: 60_000 });
      return;
    }
    const { op: _, labels, ...hello } = parsed.data;
    Object.assign(entry.record, { claimed: labels, hello });
    this.#saveSoon(entry.record.id);
    entry.introduced = channel;
    call.reply({ ok: true });
    call.end();
    this.#tell({ kind: 'hello', workerId: entry.record.id });
    this.#reached(entry);
  }

  #reached(entry: Entry): void {
    const { now, clock } = this.#options;
    const { id } = entry.record;
    const online = entry.link.connected && entry.introduced === entry.link.channel();
    if (online === (entry.online !== undefined)) return;
    entry.online = online ? { since: now(), sinceMs: clock.now() } : undefined;
    if (online) entry.record.address = entry.address;
    entry.record.lastSeenAt = now().toISOString();
    this.#saveSoon(id);
    this.#tell({ kind: online ? 'online' : 'offline', workerId: id });
  }

  // ---- what is known

  /** By id; all of `labels` must match. */
  list(labels: Record<string, string> = {}): WorkerInfo[] {
    const wanted = Object.entries(labels);
    return [...this.#entries.values()]
      .map((entry) => this.#info(entry))
      .filter((info) => wanted.every(([key, value]) => own(info.labels, key) === value))
      .sort((a, b) => (a.id < b.id ? -1 : 1));
  }

  has(id: string): boolean {
    return this.#entries.has(id);
  }

  /** Failure('not-found'). */
  get(id: string): WorkerInfo {
    return this.#info(this.#entry(id));
  }

  /** Failure('not-found'), Failure('invalid'). */
  patch(id: string, { labels, schedulable, allowedCommands }: PatchWorker): WorkerInfo {
    const entry = this.#entry(id);
    const record = { ...entry.record, labels: { ...entry.record.labels } };
    for (const [key, value] of Object.entries(labels ?? {})) {
      // A null has to stay only where the worker says otherwise.
      if (value === null && own(record.claimed, key) === undefined) delete record.labels[key];
      else record.labels[key] = value;
    }
    const checked = Labels.safeParse(shownLabels(record));
    if (!checked.success) {
      const { path, message } = checked.error.issues[0] ?? { path: [], message: 'not understood' };
      throw new Failure('invalid', `labels${path.map((it) => `.${String(it)}`).join('')}: ${message}`);
    }
    if (schedulable !== undefined) record.schedulable = schedulable;
    if (allowedCommands === null) delete record.allowedCommands;
    else if (allowedCommands !== undefined) record.allowedCommands = allowedCommands;
    this.#options.workers.save(id, record);
    this.#unsaved.delete(id);
    entry.record = record;
    return this.#info(entry);
  }

  /** Its key is worth nothing from now on, and its link is closed for good. Failure('not-found'). */
  remove(id: string): void {
    const entry = this.#entry(id);
    this.#options.workers.drop(id);
    this.#unsaved.delete(id);
    this.#enrolments.forgetUsedBy(id);
    const reason = { code: 'revoked', message: `worker ${id} was removed from this controller` };
    entry.acceptor.close(reason);
    this.#entries.delete(id);
    entry.link.finish(reason);
    this.#options.log.info({ worker: id }, 'a worker was removed');
    this.#tell({ kind: 'removed', workerId: id });
  }

  /** How many there are of each kind; cheap also when they are many. */
  counts(): { state: 'online' | 'offline'; schedulable: boolean; count: number }[] {
    const kinds = (['online', 'offline'] as const).flatMap((state) =>
      [true, false].map((schedulable) => ({ state, schedulable, count: 0 })),
    );
    for (const { record, online } of this.#entries.values()) {
      const state = online === undefined ? 'offline' : 'online';
      const kind = kinds.find((it) => it.state === state && it.schedulable === record.schedulable);
      if (kind !== undefined) kind.count += 1;
    }
    return kinds;
  }

  stats(): WorkerStats {
    const byPlatform: Record<string, number> = {};
    let online = 0;
    let oldestMs = Number.POSITIVE_INFINITY;
    for (const entry of this.#entries.values()) {
      if (entry.online === undefined) continue;
      online += 1;
      oldestMs = Math.min(oldestMs, entry.online.sinceMs);
      const platform = platformWord(entry.record.hello?.platform);
      byPlatform[platform] = (byPlatform[platform] ?? 0) + 1;
    }
    return {
      workers: this.#entries.size,
      online,
      byPlatform,
      ...(online === 0 ? {} : { oldestConnectionSeconds: (this.#options.clock.now() - oldestMs) / 1000 }),
    };
  }

  /** There for as long as the worker is enrolled, connected or not. Failure('not-found'). */
  link(id: string): Link {
    return this.#entry(id).link;
  }

  /** Returns what ends the listening. */
  onWorker(listener: (event: WorkerEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** This process goes; the workers look for the next one, spread over a time that grows with their number. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    const retryAfterMs = Math.min(20 * this.stats().online, 20_000);
    const reason: EndReason = { code: 'restart', message: 'the controller stops', retryAfterMs };
    for (const entry of this.#entries.values()) {
      entry.acceptor.suspend(reason);
      entry.link.finish(reason);
    }
    this.#cancelSaving();
    this.#save(this.#unsaved.size);
  }

  #entry(id: string): Entry {
    const entry = this.#entries.get(id);
    if (entry !== undefined) return entry;
    throw new Failure('not-found', `there is no worker ${JSON.stringify(id.slice(0, 100))}`, {
      hint: 'List those there are with `glovebox workers ls`.',
    });
  }

  #info({ record, online, introduced }: Entry): WorkerInfo {
    const { id, schedulable, epoch, enrolledAt, address, allowedCommands, hello } = record;
    const { capabilities = [], runtimes = [], hostname, platform, arch, version } = hello ?? {};
    const lastSeenAt = online === undefined ? record.lastSeenAt : this.#options.now().toISOString();
    return {
      ...{ id, labels: shownLabels(record), state: online && introduced ? 'online' : 'offline' },
      ...{ protocol: 'glovebox', capabilities, runtimes, enrolledAt, epoch, schedulable },
      ...(hello === undefined ? {} : { hostname, platform, arch, version }),
      ...(address === undefined ? {} : { address }),
      ...(online === undefined ? {} : { connectedAt: online.since.toISOString() }),
      ...(lastSeenAt === undefined ? {} : { lastSeenAt }),
      ...(allowedCommands === undefined ? {} : { allowedCommands }),
      sandboxes: this.#options.sandboxesOn?.(id) ?? 0,
    };
  }

  #tell(event: WorkerEvent): void {
    for (const listener of [...this.#listeners]) {
      try {
        listener(event);
      } catch (thrown) {
        this.#trouble(event.workerId, thrown);
      }
    }
  }

  #saveSoon(id: string): void {
    if (this.#unsaved.size === 0)
      this.#cancelSaving = this.#options.clock.setTimer(saveEveryMs, () => this.#save(savesAtOnce));
    this.#unsaved.add(id);
  }

  #save(most: number): void {
    const records = new Map<string, WorkerRecord>();
    for (const id of [...this.#unsaved].slice(0, most)) {
      this.#unsaved.delete(id);
      const record = this.#entries.get(id)?.record;
      if (record !== undefined) records.set(id, record);
    }
    try {
      if (records.size > 0) this.#options.workers.saveAll(records);
    } catch (thrown) {
      // Nothing that was decided is lost with it, and the next connection tries again.
      this.#options.log.error(
        { workers: records.size, error: String(thrown) },
        'what was heard of workers could not be saved',
      );
    }
    if (this.#unsaved.size > 0 && !this.#closed)
      this.#cancelSaving = this.#options.clock.setTimer(saveEveryMs / 10, () => this.#save(savesAtOnce));
  }

  #trouble(worker: string, thrown: unknown): void {
    this.#options.log.error({ worker, error: String(thrown) }, 'trouble with a worker');
  }
}

function taken(workerId: string): Failure {
  return new Failure('conflict', `there is a worker ${workerId} already`, {
    hint: 'Choose another id, remove that worker, or have an enrolment made that may replace it.',
  });
}

function refuseFor(retryAfterMs: number, why: string): void {
  if (retryAfterMs > 0) throw new Failure('exhausted', why, { details: { retryAfterMs } });
}

const own = <T>(object: Record<string, T>, key: string): T | undefined =>
  Object.hasOwn(object, key) ? object[key] : undefined;

function shownLabels({ labels, claimed }: WorkerRecord): Record<string, string> {
  const shown = Object.entries({ ...claimed, ...labels });
  return Object.fromEntries(shown.filter((it): it is [string, string] => it[1] !== null));
}

/** Workers say what they like; what is counted by must be few words. */
function platformWord(platform = 'unknown'): string {
  return /^[a-z0-9]{1,16}$/.test(platform) ? platform : 'other';
}
