// glovebox run: finds the sandbox of an agent and a folder, or makes it, and opens a session of the agent in it.
import { type Sandbox, type SandboxClient, SandboxError, type SandboxInfo } from '../../../sdk/src/index.ts';
import { type AgentChoice, agentNamed, unknownWord } from '../agent-choice.ts';
import { connect, serverIsHere } from '../connect.ts';
import { type CreationFlags, creationOf, make, type Wanted } from '../creation.ts';
import { defaultDetachKeys, parseDetachKeys } from '../detach-keys.ts';
import { environmentOf } from '../environment.ts';
import { CliError, usageError } from '../exit-codes.ts';
import { checkName, freeName } from '../names.ts';
import { clean, print, say, withStatus } from '../output.ts';
import { attached, sizeOfTerminal } from '../session.ts';
import { sayWhatWasMade } from '../summary.ts';
import { wakeUp } from '../waking.ts';
import { type Words, withArguments } from '../words.ts';
import { onThisMachine, workspacesOf } from '../workspace-path.ts';
import { isNameTaken, takenNames, usualName } from './create.ts';

export interface RunOptions extends CreationFlags {
  detached?: boolean;
  detachKeys?: string;
  record?: string;
}

interface Found {
  sandbox: Sandbox;
  info: SandboxInfo;
  agent: AgentChoice | undefined;
  made: boolean;
}

/** A shell as a person likes it, in whatever image. */
const shell = ['sh', '-c', 'if command -v bash >/dev/null 2>&1; then exec bash -l; else exec sh -l; fi'];
/** How often a sandbox of the same name may be made or removed by somebody else at the same moment. */
const racesMax = 20;

/** Options of `run` that are not about how the sandbox is made. */
const ofTheSession = new Set(['detached', 'detachKeys', 'record', 'env', 'envFile', 'name']);

export async function run({ own, behind }: Words, options: RunOptions): Promise<number> {
  if (options.name !== undefined) checkName(options.name);
  if (own.length === 0 && options.name === undefined && options.snapshot === undefined) {
    throw usageError('run: name an agent, an image or a sandbox', 'Write e.g. `glovebox run claude`.');
  }
  const detachKeys = parseDetachKeys(options.detachKeys ?? defaultDetachKeys);
  const env = environmentOf(options, process.env);
  const paths = own.slice(1);
  // What is wrong with the line is said before a daemon is started.
  workspacesOf(paths.length > 0 ? paths : ['.'], options, process.cwd());
  await creationOf({ name: 'sandbox', workspaces: [], command: [] }, { ...options, install: false });
  const client = await connect();
  const { sandbox, info, agent, made } = await findOrCreate(client, own[0], paths, options);
  const name = info.name ?? info.id;
  if (made) await sayWhatWasMade(client, info, agent);
  else warnOfIgnored(name, options, paths);
  using _held = await sandbox.hold();
  await wakeUp(client, info);
  if (options.detached) {
    await print(name);
    return 0;
  }
  const tty = process.stdin.isTTY === true && process.stdout.isTTY === true;
  const command = commandOf(agent, behind, tty);
  const { TERM } = process.env;
  return await attached(
    () =>
      sandbox.start(command, {
        // What was given when it was made is there already.
        env: { ...(tty && TERM ? { TERM } : {}), ...(made ? {} : env) },
        stdin: true,
        ...(tty ? { tty: sizeOfTerminal(), background: true } : {}),
      }),
    {
      ...{ input: true, tty, detachKeys, outlives: true },
      comeBack: (it) => `come back with \`glovebox attach ${name} ${it.id}\``,
      ...(options.record === undefined ? {} : { record: options.record, recordTitle: name }),
    },
  );
}

/** Of an agent: with a person at the terminal its interactive form, where it has one. */
function commandOf(agent: AgentChoice | undefined, args: string[] | undefined, tty: boolean): string[] {
  if (agent === undefined) return args === undefined || args.length === 0 ? shell : args;
  const { command, interactive } = agent.info;
  const usual = tty && interactive ? [command[0] ?? '', ...interactive] : command;
  return withArguments(usual, args);
}

async function findOrCreate(
  client: SandboxClient,
  word: string | undefined,
  paths: readonly string[],
  options: RunOptions,
): Promise<Found> {
  const named = options.name;
  for (let race = 1; ; race++) {
    const live = (await client.list()).filter((it) => it.state !== 'Terminated' && it.state !== 'Failed');
    // The name of a sandbox alone is enough, as it is for every other verb.
    const byWord = paths.length === 0 && word !== undefined ? live.find((it) => it.name === word) : undefined;
    if (byWord && (named === undefined || named === word)) return await foundOf(client, byWord);
    const asked = workspacesOf(paths.length > 0 ? paths : ['.'], options, process.cwd());
    const workspaces = serverIsHere() ? onThisMachine(asked) : asked;
    const agent = word === undefined ? undefined : await agentNamed(client, word, workspaces[0]?.path);
    const usual = named ?? usualName(word, workspaces, options);
    const fits = (it: SandboxInfo) =>
      (paths.length === 0 && named !== undefined) || it.workspaces[0]?.path === workspaces[0]?.path;
    // Those of images are numbered, so it is the one of this image and folder that is meant.
    // Whoever names a snapshot alone wants one of it, whatever others are called.
    const found =
      agent || named !== undefined
        ? live.find((it) => it.name === usual)
        : word === undefined
          ? undefined
          : live.find(
              (it) => it.agent === undefined && it.image === word && fits(it) && isOf(it.name, usual),
            );
    if (found) {
      refuseAnother(found, { word, agent, fits: fits(found), path: workspaces[0]?.path ?? '' });
      return await foundOf(client, found, agent);
    }
    if (word === undefined && options.snapshot === undefined) {
      throw new CliError(`no sandbox is called '${named}'`, {
        hint: `Name an agent, and it is made: glovebox run --name ${named} claude`,
      });
    }
    const name = named === undefined && !agent ? freeName(usual, await takenNames(client)) : usual;
    const made = agent ? { agent } : word === undefined ? {} : { image: word };
    const wanted: Wanted = { name, workspaces, command: [], ...made };
    try {
      const sandbox = await make(client, await creationOf(wanted, options));
      return { sandbox, info: await sandbox.info(), agent, made: true };
    } catch (error) {
      if (isNameTaken(error) && race < racesMax) continue;
      if (word === undefined) throw error;
      // A plain word is a mistyped agent more often than an image, also where no registry can be asked.
      const codes: string[] = /[/:]/.test(word) ? ['not-found'] : ['not-found', 'unavailable'];
      if (error instanceof SandboxError && codes.includes(error.code) && !agent)
        throw await unknownWord(client, word, error);
      throw error;
    }
  }
}

function isOf(name: string | undefined, usual: string): boolean {
  return (
    name === usual ||
    (name !== undefined && /^-\d+$/.test(name.slice(usual.length)) && name.startsWith(usual))
  );
}

/** A sandbox of that name that is not what was asked for is not entered by mistake. */
function refuseAnother(
  found: SandboxInfo,
  wanted: { word: string | undefined; agent: AgentChoice | undefined; fits: boolean; path: string },
): void {
  const { name = found.id } = found;
  const hint = 'Give --name for one of its own, or name that sandbox alone to enter it.';
  if (wanted.agent && found.agent !== wanted.agent.name) {
    const made = found.agent === undefined ? `from the image ${found.image}` : `for ${found.agent}`;
    throw new CliError(`the sandbox '${name}' was made ${made}, not for ${wanted.agent.name}`, { hint });
  }
  if (wanted.word === undefined) return;
  if (!wanted.agent && found.agent === undefined && found.image !== wanted.word) {
    throw new CliError(`the sandbox '${name}' was made from the image ${found.image}, not ${wanted.word}`, {
      hint,
    });
  }
  if (wanted.fits) return;
  const has = found.workspaces[0]?.path;
  throw new CliError(`the sandbox '${name}' is for ${has ?? 'no folder at all'}, not for ${wanted.path}`, {
    hint,
  });
}

async function foundOf(client: SandboxClient, info: SandboxInfo, agent?: AgentChoice): Promise<Found> {
  const settled = await whenMade(client, info);
  const known =
    agent ??
    (info.agent === undefined ? undefined : await agentNamed(client, info.agent, info.workspaces[0]?.path));
  if (info.agent !== undefined && known === undefined) {
    throw new CliError(`the agent '${info.agent}' of ${info.name ?? info.id} is not known here any more`, {
      hint: `Define it again, or look inside with \`glovebox exec -it ${info.name ?? info.id} sh\`.`,
    });
  }
  return { sandbox: client.handle(info.id), info: settled, agent: known, made: false };
}

/** Somebody else may be making it at this moment. */
async function whenMade(client: SandboxClient, info: SandboxInfo): Promise<SandboxInfo> {
  if (info.state !== 'Pending') return info;
  const made = (async () => {
    for (;;) {
      const now = await client.handle(info.id).info();
      if (now.state !== 'Pending') return now;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  })();
  return await withStatus(made, async () => (await client.handle(info.id).info()).message);
}

function warnOfIgnored(name: string, options: RunOptions, paths: readonly string[]): void {
  const ignored = Object.entries(options)
    .filter(([key, value]) => !ofTheSession.has(key) && value !== true && value !== undefined)
    .concat(Object.entries(options).filter(([key, value]) => onlyAtCreation.has(key) && value === true))
    .map(
      ([key]) => (negated.has(key) ? '--no-' : '--') + key.replace(/[A-Z]/g, (it) => `-${it.toLowerCase()}`),
    );
  const all = [...ignored, ...(paths.length > 1 ? ['further folders'] : [])];
  if (all.length === 0) return;
  say(
    clean(
      `glovebox: '${name}' exists already; ignored: ${all.join(', ')} (remove it first to make it anew, \`glovebox rm ${name}\`)`,
    ),
  );
}

const onlyAtCreation = new Set(['clone', 'overlay', 'sync', 'install', 'bell', 'worker', 'workerLabel']);
/** Those that are true unless `--no-…` is given. */
const negated = new Set(['transparent', 'autoStop', 'keep']);
