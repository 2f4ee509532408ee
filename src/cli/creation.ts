// What the options of `create` and `run` ask for, as a request; and making the sandbox, with its progress shown.

import { spawnSync } from 'node:child_process';
import {
  type CreateOptions,
  type PortMapping,
  type Sandbox,
  type SandboxClient,
  SandboxError,
  type Volume,
  type Workspace,
} from '../../sdk/src/index.ts';
import { gitIdentity, gitVariables } from '../agents/git-settings.ts';
import { parsePublish } from '../contract/ports.ts';
import type { AgentChoice } from './agent-choice.ts';
import { bellDecisionsOf } from './bell-actions.ts';
import { type EnvironmentFlags, environmentOf } from './environment.ts';
import { CliError, usageError } from './exit-codes.ts';
import { withStatus } from './output.ts';
import { type PolicyFile, readPolicyFile } from './policy-file.ts';
import { durationOf, listOf, numberOf, pairsOf, wholeNumberOf } from './values.ts';
import type { ModeFlags } from './workspace-path.ts';

export interface CreationFlags extends ModeFlags, EnvironmentFlags {
  name?: string;
  template?: string;
  /** Id, its beginning, or name. */
  snapshot?: string;
  pull?: string;
  pullTemplate?: string;
  runtime?: string;
  cpus?: string;
  memory?: string;
  pids?: string;
  disk?: string;
  label?: string[];
  volume?: string[];
  publish?: string[];
  user?: string;
  workdir?: string;
  timeout?: string;
  autoPause?: string;
  renewOnUse?: string;
  entrypoint?: string;
  platform?: string;
  /** False with --no-transparent, --no-auto-stop, --no-keep. */
  transparent?: boolean;
  autoStop?: boolean;
  keep?: boolean;
  allow?: string[];
  deny?: string[];
  denyNetwork?: string[];
  networkPolicyFile?: string;
  install?: boolean;
  worker?: string;
  workerLabel?: string[];
  bell?: boolean;
  bellAction?: string[];
}

export interface Creation {
  options: CreateOptions & { name: string };
  policyFile: PolicyFile | undefined;
}

export interface Wanted {
  name: string;
  /** Name or definition of an agent, */
  agent?: AgentChoice;
  /** or an image; neither for the default. */
  image?: string;
  workspaces: Workspace[];
  /** The main process. */
  command: string[];
}

export async function creationOf(wanted: Wanted, flags: CreationFlags): Promise<Creation> {
  const { cpus, pids, memory, disk, timeout, allow = [], deny = [], denyNetwork = [] } = flags;
  const { agent } = wanted;
  const pull = (flags.pull ?? flags.pullTemplate) as CreateOptions['pull'];
  if (agent === undefined && flags.install) {
    throw usageError(
      '--install: an image has nothing to install',
      'Name an agent: see `glovebox create --help`.',
    );
  }
  if (wanted.image !== undefined && flags.template !== undefined) {
    throw usageError('--template: the image is named already', 'Leave out one of them.');
  }
  const image = flags.template ?? wanted.image;
  if (image !== undefined && flags.snapshot !== undefined) {
    throw usageError(
      '--snapshot: an image is named already',
      'A sandbox is made of one of them: leave out the other.',
    );
  }
  const entrypoint = [...(flags.entrypoint === undefined ? [] : [flags.entrypoint]), ...wanted.command];
  if (agent !== undefined && entrypoint.length > 0) {
    throw usageError(
      'an agent is its own command',
      'Pass arguments to it with `glovebox run AGENT -- ARGS`, or create from an image.',
    );
  }
  const file = flags.networkPolicyFile;
  const policyFile = file === undefined ? undefined : await readPolicyFile(file);
  const options: CreateOptions & { name: string } = {
    ...(image === undefined ? {} : { image }),
    ...(flags.snapshot === undefined ? {} : { snapshot: flags.snapshot }),
    ...(pull === undefined ? {} : { pull }),
    name: wanted.name,
    ...(flags.runtime === undefined ? {} : { runtime: flags.runtime }),
    ...(flags.transparent === false ? { transparent: false } : {}),
    ...(flags.platform === undefined ? {} : { platform: platformOf(flags.platform) }),
    // A sandbox that a person makes lives until that person removes it; programs say otherwise.
    timeout: timeout === undefined ? null : durationOf('--timeout', timeout),
    resources: {
      ...(cpus === undefined ? {} : { cpu: numberOf('--cpus', cpus, 0.01) }),
      ...(pids === undefined ? {} : { pids: wholeNumberOf('--pids', pids, 1) }),
      ...(memory === undefined ? {} : { memory: sizeOf('--memory', memory) }),
      ...(disk === undefined ? {} : { disk: sizeOf('--disk', disk) }),
    },
    env: {
      ...(agent === undefined ? {} : identityOf(wanted.workspaces[0]?.path)),
      ...environmentOf(flags, process.env),
    },
    metadata: pairsOf('--label', flags.label ?? []),
    volumes: (flags.volume ?? []).map(volumeOf),
    entrypoint,
    rules: [
      ...allow.map((list) => ({ decision: 'allow' as const, resources: listOf('--allow', list) })),
      ...deny.map((list) => ({ decision: 'deny' as const, resources: listOf('--deny', list) })),
      ...denyNetwork.map((list) => ({
        decision: 'deny' as const,
        resources: listOf('--deny-network', list),
      })),
    ],
    ...(policyFile === undefined ? {} : { networkPolicy: policyFile.policy }),
    keep: flags.keep !== false,
    ...(flags.autoStop === false ? { autoStop: null } : {}),
    ...(flags.autoPause === undefined
      ? {}
      : { autoPause: flags.autoPause === '0' ? null : durationOf('--auto-pause', flags.autoPause) }),
    ...(flags.renewOnUse === undefined ? {} : { renewOnUse: durationOf('--renew-on-use', flags.renewOnUse) }),
    ...(agent === undefined ? {} : { agent: agent.asked }),
    workspaces: wanted.workspaces,
    ports: (flags.publish ?? []).map(mappingOf),
    ...(flags.user === undefined ? {} : { user: flags.user }),
    ...(flags.workdir === undefined ? {} : { cwd: flags.workdir }),
    ...(flags.install && agent !== undefined ? { setup: agent.install } : {}),
    ...workerWish(flags),
    ...(flags.bell || flags.bellAction ? { bell: bellDecisionsOf(flags.bellAction ?? []) } : {}),
  };
  return { options, policyFile };
}

function workerWish({ worker, workerLabel }: CreationFlags): Pick<CreateOptions, 'worker'> {
  if (worker !== undefined && workerLabel !== undefined)
    throw usageError('give --worker or --worker-label, not both');
  if (worker !== undefined) return { worker };
  return workerLabel === undefined ? {} : { worker: { labels: pairsOf('--worker-label', workerLabel) } };
}

/** Who commits are from: nothing of our configuration of git is seen inside. */
function identityOf(folder: string | undefined): Record<string, string> {
  const setting = (key: string) => {
    const { status, stdout } = spawnSync('git', ['config', '--get', key], {
      ...{ cwd: folder, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'], timeout: 5_000 },
    });
    return status === 0 ? stdout.trim().slice(0, 200) : '';
  };
  return gitVariables(gitIdentity({ name: setting('user.name'), email: setting('user.email') }));
}

/** What is left out is not there, so the types agree. */
export function mappingOf(text: string): PortMapping {
  return parsePublish(text) as PortMapping;
}

/** Resolves when it runs. */
export async function make(client: SandboxClient, { options, policyFile }: Creation): Promise<Sandbox> {
  const progress = async () => {
    const pending = await client.list({ states: ['Pending'] });
    return pending.find((it) => it.name === options.name)?.message;
  };
  const { snapshot } = options;
  const found = snapshot === undefined ? {} : { snapshot: (await client.snapshots.find(snapshot)).id };
  const creating = client.create({ ...options, ...found }).catch((error: unknown) => {
    if (error instanceof SandboxError && error.code === 'unsupported' && /\bkeep\b/.test(error.message)) {
      throw new CliError(error.message, {
        cause: error,
        hint: 'Add --no-keep: it is over when it ends. Or leave out --disk, if it was that.',
      });
    }
    throw policyFile?.located(error) ?? error;
  });
  return await withStatus(creating, progress);
}

/** As Docker reads them: `512m` and `2g` are powers of 1024. */
function sizeOf(option: string, value: string): string {
  const match = /^(\d+(?:\.\d+)?)([kmgt])?i?b?$/i.exec(value.trim());
  if (!match) throw usageError(`${option}: '${value}' is not a size`, "Write e.g. '512m', '2g' or '4Gi'.");
  return match[2] === undefined ? value : `${match[1]}${match[2]}i`;
}

function volumeOf(text: string): Volume {
  const [source = '', path, mode = 'rw', ...more] = text.split(':');
  const named = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/.test(source);
  if (
    !(named || source.startsWith('/')) ||
    !path?.startsWith('/') ||
    !['ro', 'rw'].includes(mode) ||
    more.length > 0
  ) {
    throw usageError(
      `--volume: '${text}' is not of the form HOST_PATH:PATH[:ro] or VOLUME:PATH[:ro]`,
      'Both paths have to be absolute; names of volumes have small letters, digits and -.',
    );
  }
  const place = { path, readOnly: mode === 'ro' };
  return named ? { volume: source, ...place } : { hostPath: source, ...place };
}

function platformOf(text: string): { os: 'linux'; arch: 'amd64' | 'arm64' } {
  const match = /^linux\/(amd64|arm64)$/.exec(text);
  if (!match) throw usageError(`--platform: '${text}' is not one of linux/amd64, linux/arm64`);
  return { os: 'linux', arch: match[1] as 'amd64' | 'arm64' };
}
