// Puts the bell together: settings, actions, decisions, record, door; for the sandboxes of a daemon, and alone for users of other sandboxes.
import { randomBytes } from 'node:crypto';
import { mkdir } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import type { BellService } from '../api/bell.ts';
import { createClipboard } from '../bell/actions/clipboard.ts';
import { createExec } from '../bell/actions/exec.ts';
import { createNotify } from '../bell/actions/notify.ts';
import { createOpenUrl } from '../bell/actions/open-url.ts';
import { createPing } from '../bell/actions/ping.ts';
import { createPlay } from '../bell/actions/play.ts';
import type { Action, Bell, BellAsker } from '../bell/bell.ts';
import { shimScripts } from '../bell/client/guest-files.ts';
import { usageOf } from '../bell/commands.ts';
import { loadActions } from '../bell/custom.ts';
import { Decisions } from '../bell/decisions.ts';
import { type BellDoor, openBellDoor } from '../bell/door.ts';
import { Limits } from '../bell/limits.ts';
import { Programs } from '../bell/programs.ts';
import { type BellRecord, openBellRecord } from '../bell/record.ts';
import { createBell, recordedCaller } from '../bell/ringer.ts';
import { type BellSettings, readBellSettings } from '../bell/settings.ts';
import { endStragglers } from '../bell/stragglers.ts';
import { BellTokens } from '../bell/tokens.ts';
import type { BellDecision, BellEntry, BellStatus } from '../contract/bell.ts';
import type { BellPlace } from '../egress/bell-place.ts';
import type { NetworkBell } from '../egress/networks.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import { prepareHome } from './home.ts';
import { lockHome } from './lock.ts';
import type { Meters } from './meters.ts';

/** The bell as the network around the sandboxes sees it. */
export interface SandboxBell extends BellPlace, NetworkBell {
  /** What a person has answered for longer than once. Failure('invalid') where that would say more than was asked. */
  remember(action: string, decision: BellDecision, sandboxId: string | undefined): void;
}

export interface HomeBell extends AsyncDisposable {
  service: BellService;
  /** Absent when the settings say that sandboxes are not served. */
  sandboxes: SandboxBell | undefined;
}

/** What it asks of the sandboxes. */
export interface BellSurroundings {
  asker: BellAsker;
  nameOf: (sandboxId: string) => string | undefined;
  /** Whether a guest may write there. */
  isInWorkspace: (path: string) => boolean;
  /** See open_url. */
  forward: (sandboxId: string, port: number, signal: AbortSignal) => Promise<AsyncDisposable>;
}

interface Source {
  home: string;
  /** Instead of where the settings are looked for. */
  file?: string | undefined;
  env: Readonly<Record<string, string | undefined>>;
  cwd: string;
  log: Log;
  /** None for the bell alone. */
  meters?: Meters;
}

/** Failures as of `readBellSettings`; Failure('unavailable') when `glovebox bell` serves the bell of this home. */
export async function openBell(
  { home, env, cwd, homeId, log, meters }: Source & { homeId: string; meters: Meters },
  around: BellSurroundings,
): Promise<HomeBell> {
  await using undo = new AsyncDisposableStack();
  const settings = readBellSettings({ home, alone: false, env, cwd });
  for (const warning of settings.warnings) log.warn({}, warning);
  const parts = await openParts({ home, env, cwd, log, meters, homeId, settings }, around, undo);
  const socketPath = settings.enabled ? placesIn(home).socket : undefined;
  const door = await openDoor(settings, parts, { socketPath, log }, undo);
  const opened = undo.move();
  return {
    service: serviceOf(settings, parts, door, around),
    sandboxes: settings.enabled ? sandboxBell(settings, parts, door) : undefined,
    [Symbol.asyncDispose]: () => opened.disposeAsync(),
  };
}

export interface AloneOptions extends Source {
  port?: number;
  /** Addresses. */
  listen?: readonly string[];
  soundFile?: string;
  insecure?: boolean;
}

/** The bell without sandboxes of ours around it, for callers with a token. Failures as of `readBellSettings`; Failure('conflict') when the home has a bell. */
export async function runBellAlone(
  options: AloneOptions,
): Promise<{ urls: string[]; warnings: string[]; stop(): Promise<void> }> {
  await using undo = new AsyncDisposableStack();
  const { home, env, cwd, file, log, port, listen, soundFile, insecure } = options;
  await prepareHome(home);
  const read = readBellSettings({ home, alone: true, env, cwd, file });
  const settings: BellSettings = {
    ...read,
    ...(port === undefined ? {} : { port }),
    ...(listen === undefined ? {} : { listen }),
    ...(soundFile === undefined ? {} : { soundFile }),
    ...(insecure === undefined ? {} : { insecure }),
  };
  if (settings.listen.length === 0)
    throw new Failure('invalid', `${settings.file}: listen is empty, so nobody could ring`, {
      hint: 'Leave it out to listen at 127.0.0.1, or say --host ADDRESS.',
    });
  const source = { home, env, cwd, log, homeId: randomBytes(6).toString('hex'), settings };
  const parts = await openParts(source, undefined, undo);
  const door = await openDoor(settings, parts, { socketPath: undefined, log }, undo);
  const running = undo.move();
  return {
    urls: [...door.listening],
    warnings: [...settings.warnings],
    stop: () => running.disposeAsync(),
  };
}

/** The files of a home in which no daemon runs. */
export function bellFiles(home: string): {
  log(filter: { sandbox?: string; limit: number }): Promise<BellEntry[]>;
  tokens: () => BellTokens;
} {
  const { logFolder, tokensFile } = placesIn(home);
  return {
    log: async (filter) => {
      const record = await openBellRecord({ folder: logFolder, now });
      try {
        return await record.read(filter);
      } finally {
        await record.close();
      }
    },
    tokens: () => new BellTokens({ file: tokensFile, now }),
  };
}

interface Parts {
  actions: ReadonlyMap<string, Action>;
  decisions: Decisions;
  warnings: readonly string[];
  record: BellRecord;
  tokens: BellTokens;
  bell: Bell;
}

async function openParts(
  source: Source & { homeId: string; settings: BellSettings },
  around: BellSurroundings | undefined,
  undo: AsyncDisposableStack,
): Promise<Parts> {
  const { home, env, homeId, settings, log, meters } = source;
  const places = placesIn(home);
  await mkdir(places.actionsFolder, { recursive: true, mode: 0o700 });
  undo.use(lockBell(places.lockFile, { alone: around === undefined }));
  const kept = undo.adopt(await openBellRecord({ folder: places.logFolder, now, log }), (it) => it.close());
  const mark = `${homeId}-`;
  // What will not end by itself when the daemon stops.
  undo.defer(() => endStragglers(mark).then(() => {}));
  const stopped = new AbortController();
  undo.defer(() => stopped.abort());
  // What an earlier daemon was running when it was killed.
  await endStragglers(mark);
  const programs = new Programs({ env, platform: process.platform });
  const own: Action[] = [
    createPing(),
    createNotify({ programs, webhook: settings.webhook, log, stopped: stopped.signal }),
    createPlay({ programs, soundFile: settings.soundFile, stopped: stopped.signal }),
    createExec({ settings, isInWorkspace: around?.isInWorkspace ?? (() => false), env, mark }),
    createOpenUrl({
      programs,
      stopped: stopped.signal,
      forward:
        around?.forward ??
        (async () => {
          throw new Failure('unsupported', 'only sandboxes of this daemon have ports to forward to');
        }),
    }),
    createClipboard({ programs }),
  ];
  const warnings = [...settings.warnings];
  const written = await loadActions(places.actionsFolder, {
    log,
    taken: own.map(({ name }) => name),
    onLeftOut: (path, why) => warnings.push(`${path}: this action was not loaded: ${why}`),
  });
  const actions = new Map([...own, ...written].map((it) => [it.name, it]));
  for (const name of Object.keys(settings.decisions))
    if (!actions.has(name)) {
      warnings.push(`${settings.file}: actions.${name}: there is no such action, so this decides nothing`);
      log.warn({ action: name }, 'the settings of the bell name an action there is not');
    }
  const record = meters?.bell(kept, (name) => actions.has(name)) ?? kept;
  const decisions = new Decisions({ file: places.decisionsFile, configured: settings.decisions });
  const bell = createBell({
    ...{ actions, decisions, record, asker: around?.asker, limits: new Limits(() => performance.now()) },
    nameOf: (sandboxId) => around?.nameOf(sandboxId),
    onTrouble: (action, error) =>
      log.error({ action, error: String((error as Error)?.stack ?? error) }, 'an action of the bell failed'),
  });
  return {
    actions,
    decisions,
    warnings,
    record,
    bell,
    tokens: new BellTokens({ file: places.tokensFile, now }),
  };
}

/** What stands in a daemon's way is no daemon: whoever waits for one to answer waits in vain. */
function lockBell(file: string, { alone }: { alone: boolean }): Disposable {
  try {
    return lockHome(file);
  } catch (error) {
    if (alone || !(error instanceof Failure) || error.code !== 'conflict') throw error;
    throw new Failure(
      'unavailable',
      '`glovebox bell` serves the bell of this home; stop it, or run it with a GLOVEBOX_HOME of its own',
      { cause: error },
    );
  }
}

async function openDoor(
  settings: BellSettings,
  { bell, tokens, record }: Parts,
  { socketPath, log }: { socketPath: string | undefined; log: Log },
  undo: AsyncDisposableStack,
): Promise<BellDoor> {
  return undo.adopt(
    await openBellDoor({
      ...{ socketPath, bell, tokens, log, insecure: settings.insecure, names: [hostname()] },
      listen: settings.listen.map((host) => ({ host, port: settings.port })),
      hooks: settings.hooks,
      onRefused: (caller, { message }) =>
        record
          .record({ ...recordedCaller(caller), action: '', detail: '', decision: 'deny', reason: 'door' })
          .end({ outcome: 'refused', error: message }),
    }),
    (it) => it.close(),
  );
}

function sandboxBell(
  { port, shims, commands }: BellSettings,
  { actions, decisions }: Parts,
  door: BellDoor,
): SandboxBell {
  return {
    port,
    shims: shimScripts(shims, undefined, (name) => commands.get(name)?.stdin === true),
    connect: (sandboxId, signal) => door.connect(sandboxId, signal),
    opened(sandboxId, brought) {
      for (const action of Object.keys(brought)) requireAction(actions, action);
      decisions.set(sandboxId, brought);
    },
    forget(sandboxId) {
      door.forget(sandboxId);
      decisions.forget(sandboxId);
    },
    remember(action, decision, sandboxId) {
      if (decision === 'allow' && !alike.has(action))
        throw new Failure('invalid', `${action}: a decision about it stands for more than this one call`, {
          hint: `Decide so if you mean it: glovebox bell allow ${action}`,
        });
      decisions.set(sandboxId, { [action]: decision });
    },
  };
}

/** One call of these is like another. */
const alike: ReadonlySet<string> = new Set(['ping', 'notify', 'play']);

function serviceOf(
  settings: BellSettings,
  { actions, decisions, warnings, record, tokens }: Parts,
  door: BellDoor,
  { nameOf }: BellSurroundings,
): BellService {
  return {
    status: async (): Promise<BellStatus> => ({
      enabled: settings.enabled,
      url: `http://host.docker.internal:${settings.port}/`,
      listening: [...door.listening],
      insecure: settings.insecure,
      warnings: [...warnings],
      actions: await Promise.all(
        [...actions.values()].map(async (action) => {
          const unavailable = await action.unavailable();
          return {
            ...{ name: action.name, summary: action.summary },
            ...decisions.of(action, undefined),
            ...(unavailable === undefined ? {} : { unavailable }),
          };
        }),
      ),
      commands: [...settings.commands.values()].map((it) => ({
        name: it.name,
        usage: usageOf(it),
        decision: it.decision ?? 'allow',
        shim: settings.shims.includes(it.name),
      })),
      decisions: decisions.ofSandboxes.map((it) => {
        const sandboxName = nameOf(it.sandbox);
        return { ...it, ...(sandboxName === undefined ? {} : { sandboxName }) };
      }),
    }),
    async decide(action, decision, sandboxId) {
      requireAction(actions, action);
      decisions.set(sandboxId, { [action]: decision });
    },
    async forgetDecision(action, sandboxId) {
      if (decisions.remove(sandboxId, action)) return;
      throw new Failure('not-found', `nothing was decided about ${JSON.stringify(action)} here`);
    },
    log: (filter) => record.read(filter),
    followLog: (filter, signal) => record.follow(filter, signal),
    tokens: () => tokens.list(),
    addToken: async (name) => tokens.add(name),
    removeToken: async (name) => tokens.remove(name),
  };
}

/** So that a decision with a slip of the pen is not lost. Failure('not-found'). */
function requireAction(actions: Parts['actions'], name: string): void {
  if (actions.has(name)) return;
  throw new Failure('not-found', `the bell has no action ${JSON.stringify(name)}`, {
    hint: `There are ${[...actions.keys()].join(', ')}.`,
  });
}

const now = () => new Date();

function placesIn(home: string) {
  const folder = join(home, 'bell');
  return {
    lockFile: join(folder, 'lock'),
    socket: join(folder, 'bell.sock'),
    logFolder: join(folder, 'log'),
    tokensFile: join(folder, 'tokens.json'),
    decisionsFile: join(folder, 'decisions.json'),
    actionsFolder: join(folder, 'actions'),
  };
}
