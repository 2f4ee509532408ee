// glovebox worker: this machine as a worker, in this process. Like serve it does not go through the SDK.
import { readFile, realpath } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import type { EndReason } from '../../channel/channel.ts';
import { AllowedCommands, Labels, WorkerId } from '../../contract/worker.ts';
import { openLog } from '../../lib/log.ts';
import { CliError, exitCodes, usageError } from '../exit-codes.ts';
import { print } from '../output.ts';
import { listOf, pairsOf } from '../values.ts';
import { save, unitFor } from './bell-files.ts';
import { failedToStart } from './serve.ts';
import { ownVersion } from './version.ts';

export interface WorkerFlags {
  serverUrl?: string;
  id?: string;
  label?: string[];
  tokenFile?: string;
  token?: string;
  ca?: string;
  cert?: string;
  certKey?: string;
  home?: string;
  runtime?: string[];
  direct: boolean;
  allowCommand?: string[];
  folder?: string[];
  insecure?: boolean;
}

/** Resolves when it was told to stop, and has stopped. */
export async function runWorker(words: readonly string[], flags: WorkerFlags): Promise<void> {
  if (words[0] !== undefined)
    throw usageError(`worker: there is no verb '${words[0]}'`, 'See `glovebox worker --help`.');
  const { env } = process;
  const setting = (flag: string | undefined, name: string) =>
    flag ?? (env[`GLOVEBOX_WORKER_${name}`] || undefined);
  const serverUrl = setting(flags.serverUrl, 'SERVER_URL');
  if (serverUrl === undefined)
    throw usageError('worker: which controller?', 'Give --server-url wss://HOST:PORT.');
  const token = await tokenOf(flags, env);
  const { defaultWorkerHome } = await import('../../worker/identity.ts');
  const home = setting(flags.home, 'HOME');
  const runtimes = flags.runtime ?? listIn(env, 'RUNTIMES');
  const options = {
    ...{ serverUrl, token, runtimes, env, platform: process.platform, version: ownVersion() },
    home: resolve(home ?? defaultWorkerHome({ platform: process.platform, env, userHome: homedir() })),
    insecure: flags.insecure ?? false,
    id: checkedId(setting(flags.id, 'ID')),
    labels: labelsOf(flags.label ?? listIn(env, 'LABELS') ?? []),
    tls: {
      ca: setting(flags.ca, 'CA'),
      cert: setting(flags.cert, 'CERT'),
      certKey: setting(flags.certKey, 'CERT_KEY'),
    },
    direct: flags.direct,
    allowedCommands: checkedCommands(flags.allowCommand),
    folders: flags.folder?.map((it) => resolve(it)),
    log: openLog({ level: 'info' }),
  };
  const { platform } = options;
  if (platform === 'linux') (await import('../../daemon/descriptors.ts')).closeInheritedDescriptors();
  // A token that is good for nothing any more need not be seen by what this process starts.
  delete env.GLOVEBOX_WORKER_TOKEN;
  const stopping = new AbortController();
  let asked = false;
  for (const name of ['SIGTERM', 'SIGINT'] as const) {
    process.on(name, () => {
      if (asked && name === 'SIGINT') process.exit(exitCodes.interrupted);
      asked = true;
      stopping.abort();
    });
  }
  // Until there is something to read again, a terminal that goes away is no reason to end.
  let reload = () => {};
  if (platform !== 'win32') process.on('SIGHUP', () => reload());
  const { startWorker } = await import('../../daemon/worker-main.ts');
  const worker = await startWorker(options, stopping.signal).catch((error: unknown) => {
    if (asked) return undefined;
    throw failedToStart(error, {
      ...{ invalid: exitCodes.config, 'not-found': exitCodes.config, conflict: exitCodes.daemonRuns },
      ...{ unauthenticated: exitCodes.permission, permission: exitCodes.permission },
    });
  });
  if (worker === undefined) return;
  reload = () => worker.reload();
  await print(`glovebox worker ${worker.workerId} dials ${serverUrl}`);
  void worker.connected.then(() => print(`glovebox worker ${worker.workerId} is connected`));
  const told = new Promise<undefined>((resolve) => {
    if (asked) resolve(undefined);
    stopping.signal.addEventListener('abort', () => resolve(undefined), { once: true });
  });
  const end = await Promise.race([worker.ended, told]);
  await worker.stop();
  if (end !== undefined) throw refusedFor(end, worker.workerId);
}

/** Why it is of no use to dial on, and what to do about it. */
function refusedFor({ code, message }: EndReason, workerId: string): CliError {
  switch (code) {
    case 'revoked':
    case 'unauthenticated':
      return new CliError(
        code === 'revoked'
          ? `the controller has let this worker go: ${message}`
          : `the controller does not know worker ${workerId}, or not by this key: ${message}`,
        {
          exitCode: exitCodes.permission,
          hint: 'Have a token made there with `glovebox workers enrol`, and start again with --token-file FILE.',
        },
      );
    case 'superseded':
      return new CliError(`another process is worker ${workerId} now: ${message}`, {
        exitCode: exitCodes.daemonRuns,
        hint: 'If this machine was made as a copy of another, remove its worker home and enrol it anew.',
      });
    default:
      return new CliError(`the controller cannot work with this worker: ${message}`, {
        hint: code === 'version' ? 'Upgrade the older of the two.' : 'See the log above.',
      });
  }
}

async function tokenOf(flags: WorkerFlags, env: NodeJS.ProcessEnv): Promise<string | undefined> {
  if (flags.token !== undefined && flags.tokenFile !== undefined)
    throw usageError('worker: --token and --token-file are one too many');
  const file = flags.tokenFile ?? (flags.token === undefined ? env.GLOVEBOX_WORKER_TOKEN_FILE : undefined);
  const token = (file ? await readToken(file) : (flags.token ?? env.GLOVEBOX_WORKER_TOKEN))?.trim();
  if (token === undefined || token === '') return undefined;
  if (/^[\x21-\x7e]{1,512}$/.test(token)) return token;
  throw usageError(
    'worker: this is no enrolment token',
    'It is one word, as `glovebox workers enrol` printed it.',
  );
}

async function readToken(file: string): Promise<string | undefined> {
  try {
    return await readFile(file, 'utf8');
  } catch (cause) {
    // It may have been removed after it was used; whether it is needed is seen later.
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw new CliError(`--token-file: ${(cause as Error).message}`, {
      exitCode: exitCodes.permission,
      cause,
    });
  }
}

function checkedId(id: string | undefined): string | undefined {
  if (id === undefined || WorkerId.safeParse(id).success) return id;
  throw usageError(`--id: '${id}' is no id of a worker`, 'Use at most 63 letters, digits, ., _ and -.');
}

function labelsOf(pairs: readonly string[]): Record<string, string> {
  const labels = Labels.safeParse(pairsOf('--label', pairs));
  if (labels.success) return labels.data;
  throw usageError(
    `--label: ${labels.error.issues[0]?.path.join('.') || 'labels'}: ${labels.error.issues[0]?.message}`,
  );
}

function checkedCommands(commands: string[] | undefined): string[] | undefined {
  if (commands === undefined || AllowedCommands.safeParse(commands).success) return commands;
  throw usageError('--allow-command: at most 256 programs, none of them empty');
}

function listIn(env: NodeJS.ProcessEnv, name: string): string[] | undefined {
  const value = env[`GLOVEBOX_WORKER_${name}`];
  return value ? listOf(`GLOVEBOX_WORKER_${name}`, value) : undefined;
}

const serviceHints: Partial<Record<NodeJS.Platform, string>> = {
  darwin:
    'Have launchd keep `glovebox worker …` running: a property list in ~/Library/LaunchAgents with RunAtLoad and KeepAlive.',
  win32: 'Have the Task Scheduler start `glovebox worker …` at startup, and again when it has failed.',
};

export async function printUnit(
  { output }: { output?: string },
  platform: NodeJS.Platform = process.platform,
): Promise<void> {
  if (platform !== 'linux')
    throw new CliError('worker install: the unit is for systemd, which this system has not', {
      hint: serviceHints[platform] ?? 'Have what starts services here keep `glovebox worker …` running.',
    });
  const top = join(import.meta.dirname, '../../..');
  const program = await realpath(join(top, 'bin/glovebox'));
  const text = await readFile(join(top, 'deploy/systemd/glovebox-worker.service'), 'utf8');
  const unit = unitFor(text, program, undefined);
  await (output === undefined ? print(unit.trimEnd()) : save(output, unit));
}
