// The isolated sessions of all sandboxes: shells behind walls of their own. A session is one command of its sandbox, goes with it, and is found again by its id, with what
// it was made with, after a restart of the daemon.
import { randomUUID } from 'node:crypto';
import { Interpreter } from '../../code/interpreter.ts';
import { bashLanes, isolatedShell, type Language } from '../../code/language.ts';
import { isIsolating, isolationExtension } from '../../contract/admin.ts';
import { CreateIsolatedSessionRequest } from '../../contract/execd.ts';
import { wallsCommand } from '../../contract/guest-wire.ts';
import type { GuestFiles } from '../../guest/guest.ts';
import { Failure } from '../../lib/failure.ts';
import type { Executions } from '../../sandbox/sandbox.ts';
import type { ApiOptions } from '../handlers.ts';
import { Refusal } from '../refusal.ts';
import { shownIn, wallsFor } from './isolated-walls.ts';

/** Of one sandbox. */
const sessionsMax = 64;
const prefix = 'isolated';
const idPattern = /^isolated-([0-9a-f]{8})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{12})$/;
const probeMs = 60_000;
const wordsBytesMax = 2_000;

export interface IsolatedSession {
  readonly id: string;
  readonly interpreter: Interpreter;
  readonly request: CreateIsolatedSessionRequest;
  /** As its request has it, made plain. */
  readonly workspace: string;
  readonly createdAt: Date;
  lastRunAt: Date;
  running: number;
}

export interface IsolationAbilities {
  version: string;
  /** Why there can be none; undefined when there can. */
  trouble: string | undefined;
  /** Whether sessions can be other users of the sandbox. */
  users: boolean;
}

export class IsolatedSessions {
  readonly #options: ApiOptions;
  readonly #of = new WeakMap<Executions, Map<string, IsolatedSession>>();
  readonly #abilities = new WeakMap<Executions, Promise<IsolationAbilities>>();

  constructor(options: ApiOptions) {
    this.#options = options;
  }

  /** Looked at once, by making walls. */
  async abilities(sandboxId: string, signal: AbortSignal): Promise<IsolationAbilities> {
    const { service } = this.#options;
    if (!isIsolating(service.get(sandboxId).extensions))
      return { version: '', users: false, trouble: notAsked };
    const executions = service.executions(sandboxId);
    const known = this.#abilities.get(executions);
    if (known !== undefined) return await known;
    const looking = look(executions, signal);
    this.#abilities.set(executions, looking);
    looking.catch(() => this.#abilities.delete(executions));
    return await looking;
  }

  async create(
    sandboxId: string,
    request: CreateIsolatedSessionRequest,
    signal: AbortSignal,
  ): Promise<IsolatedSession> {
    const { service } = this.#options;
    const { trouble, users } = await this.abilities(sandboxId, signal);
    if (trouble !== undefined) throw notHere(trouble);
    const owner = ownerOf(request);
    if (owner !== undefined && !users)
      throw notHere(
        'nobody in this sandbox can become another user; leave out uid, or set uid_mode to userns',
      );
    if (this.list(sandboxId).length >= sessionsMax)
      throw new Failure('exhausted', `there are ${sessionsMax} isolated sessions in this sandbox`, {
        hint: 'Delete some.',
      });
    const guest = service.guest(sandboxId);
    const executions = service.executions(sandboxId);
    const { workspace, shown } = await shownIn(request, { guest, owner: owner ?? {} }, signal);
    const environment = Object.keys(executions.environment());
    const uuid = randomUUID();
    const createdAt = this.#options.now();
    const interpreter = new Interpreter({
      ...{ executions, secret: service.accessToken(sandboxId), id: `${prefix}-${uuid.replaceAll('-', '')}` },
      cwd: '/',
      language: {
        ...languageOf(wallsFor(request, { workspace, shown, environment }), request),
        ...(owner === undefined ? {} : { user: `${owner.owner}:${owner.group}` }),
        note: JSON.stringify({ request, workspace, createdAt }),
      },
    });
    try {
      await interpreter.start(signal);
    } catch (error) {
      signal.throwIfAborted();
      const failure = Failure.from(error, 'start an isolated session');
      if (['unavailable', 'unsupported', 'permission'].includes(failure.code)) throw notHere(failure.message);
      throw failure;
    }
    const session = {
      id: uuid,
      interpreter,
      request,
      workspace,
      createdAt,
      lastRunAt: createdAt,
      running: 0,
    };
    this.#in(executions).set(interpreter.id, session);
    return session;
  }

  /** Failure('not-found') when there is none, or it has ended; Failure('unsupported') where there can be none. */
  get(sandboxId: string, id: string): IsolatedSession {
    if (!isIsolating(this.#options.service.get(sandboxId).extensions)) throw notHere(notAsked);
    const found = this.list(sandboxId).find((it) => it.id === id);
    if (found !== undefined) return found;
    throw new Refusal('not-found', `there is no isolated session ${JSON.stringify(id.slice(0, 200))}`, {
      wireCode: 'SESSION_NOT_FOUND',
      hint: 'It may have ended by itself, or have been idle for too long. Create another one.',
    });
  }

  list(sandboxId: string): IsolatedSession[] {
    const executions = this.#options.service.executions(sandboxId);
    const mine = this.#in(executions);
    for (const [id, { interpreter }] of mine) if (interpreter.over || interpreter.closed) mine.delete(id);
    for (const { id, exit, note } of executions.list()) {
      const parts = idPattern.exec(id);
      if (parts === null || exit !== undefined || note === undefined || mine.has(id)) continue;
      const session = this.#found(sandboxId, id, parts.slice(1).join('-'), note);
      if (session !== undefined) mine.set(id, session);
    }
    return [...mine.values()];
  }

  async close(sandboxId: string, session: IsolatedSession, signal: AbortSignal): Promise<void> {
    await session.interpreter.close(signal);
    this.#in(this.#options.service.executions(sandboxId)).delete(session.interpreter.id);
  }

  files(sandboxId: string, { interpreter, request }: IsolatedSession): GuestFiles {
    const execId = interpreter.execId ?? interpreter.id;
    return this.#options.service.guest(sandboxId).within(execId, ownerOf(request));
  }

  #found(sandboxId: string, id: string, uuid: string, note: string): IsolatedSession | undefined {
    const { service, now } = this.#options;
    const { request, workspace, createdAt } = JSON.parse(note);
    const parsed = CreateIsolatedSessionRequest.safeParse(request);
    if (!parsed.success) return undefined;
    const interpreter = Interpreter.find({
      ...{ executions: service.executions(sandboxId), secret: service.accessToken(sandboxId), id },
      // It is never started again.
      language: languageOf([], parsed.data),
    });
    if (interpreter === undefined) return undefined;
    const made = { createdAt: new Date(createdAt), lastRunAt: now(), running: 0 };
    return { id: uuid, interpreter, request: parsed.data, workspace, ...made };
  }

  #in(executions: Executions): Map<string, IsolatedSession> {
    const mine = this.#of.get(executions) ?? new Map<string, IsolatedSession>();
    this.#of.set(executions, mine);
    return mine;
  }
}

const notAsked = `this sandbox was not made for isolated sessions, which need namespaces of their own: create it with extensions ${JSON.stringify({ [isolationExtension]: 'enable' })} on the runtime bubblewrap`;

function notHere(why: string): Refusal {
  return new Refusal('unsupported', `isolated sessions: ${why}`, { status: 503, wireCode: 'NOT_SUPPORTED' });
}

/** Whom of the sandbox the session is, when it was told. */
function ownerOf({ uid, gid, uid_mode: mode }: CreateIsolatedSessionRequest) {
  if (uid == null || mode === 'userns') return undefined;
  return { owner: String(uid), group: String(gid ?? uid) };
}

function languageOf(walls: string[], { idle_timeout_seconds: idle }: CreateIsolatedSessionRequest): Language {
  return { prefix, argv: [...walls, ...isolatedShell(idle ?? 0)], lanes: bashLanes, once: true };
}

async function look(executions: Executions, signal: AbortSignal): Promise<IsolationAbilities> {
  const patient = AbortSignal.any([signal, AbortSignal.timeout(probeMs)]);
  const inWalls = [
    ...[...wallsCommand, '--unshare-user', '--unshare-pid', '--ro-bind', '/', '/', '--proc', '/proc'],
    ...['--', ...wallsCommand, '--version'],
  ];
  const [walls, other] = [
    await outcomeOf(executions, inWalls, undefined, patient),
    await outcomeOf(executions, inWalls, '1:1', patient),
  ];
  return {
    version: /\d[\w.]*/.exec(walls.words)?.[0] ?? '',
    users: other.ok,
    trouble: walls.ok ? undefined : `this host lets nobody in a sandbox make walls (${walls.words.trim()})`,
  };
}

async function outcomeOf(
  executions: Executions,
  argv: string[],
  user: string | undefined,
  signal: AbortSignal,
): Promise<{ ok: boolean; words: string }> {
  try {
    const asked = { argv, stdin: 'none', cwd: '/', ...(user === undefined ? {} : { user }) } as const;
    const execution = await executions.start(asked, signal);
    let words = '';
    for await (const piece of execution.read(0, { follow: true }, signal))
      if (piece.type === 'output') words = (words + Buffer.from(piece.bytes)).slice(-wordsBytesMax);
    return { ok: (await execution.exit).code === 0, words };
  } catch (error) {
    signal.throwIfAborted();
    return { ok: false, words: Failure.from(error, 'make walls').message };
  }
}
