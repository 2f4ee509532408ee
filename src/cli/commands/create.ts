// glovebox create: makes a sandbox and prints its id.
import type { CreateOptions as SandboxOptions } from '../../../sdk/src/index.ts';
import { connect } from '../connect.ts';
import { usageError } from '../exit-codes.ts';
import { print, printJson, withStatus } from '../output.ts';
import { readPolicyFile } from '../policy-file.ts';
import { durationOf, listOf, numberOf, pairsOf, wholeNumberOf } from '../values.ts';

export interface CreateOptions {
  name?: string;
  runtime?: string;
  cpus?: string;
  memory?: string;
  pids?: string;
  disk?: string;
  env?: string[];
  label?: string[];
  volume?: string[];
  timeout?: string;
  entrypoint?: string;
  platform?: string;
  /** False with --no-transparent. */
  transparent?: boolean;
  allow?: string[];
  deny?: string[];
  networkPolicyFile?: string;
  json?: boolean;
}

export async function create(
  image: string | undefined,
  command: string[],
  options: CreateOptions,
): Promise<void> {
  const { cpus, pids, memory, disk, timeout, allow = [], deny = [], networkPolicyFile: file } = options;
  if (options.name === '') throw usageError('--name: is empty', 'Leave it out for a sandbox without a name.');
  const entrypoint = [...(options.entrypoint === undefined ? [] : [options.entrypoint]), ...command];
  const policyFile = file === undefined ? undefined : await readPolicyFile(file);
  const request: SandboxOptions = {
    ...(image === undefined ? {} : { image }),
    ...(options.name === undefined ? {} : { name: options.name }),
    ...(options.runtime === undefined ? {} : { runtime: options.runtime }),
    ...(options.transparent === false ? { transparent: false } : {}),
    ...(options.platform === undefined ? {} : { platform: platformOf(options.platform) }),
    // A sandbox that a person makes lives until that person removes it; programs say otherwise.
    timeout: timeout === undefined ? null : durationOf('--timeout', timeout),
    resources: {
      ...(cpus === undefined ? {} : { cpu: numberOf('--cpus', cpus, 0.01) }),
      ...(pids === undefined ? {} : { pids: wholeNumberOf('--pids', pids, 1) }),
      ...(memory === undefined ? {} : { memory: sizeOf('--memory', memory) }),
      ...(disk === undefined ? {} : { disk: sizeOf('--disk', disk) }),
    },
    env: pairsOf('--env', options.env ?? [], process.env),
    metadata: pairsOf('--label', options.label ?? []),
    volumes: (options.volume ?? []).map(volumeOf),
    entrypoint,
    rules: [
      ...allow.map((list) => ({ decision: 'allow' as const, resources: listOf('--allow', list) })),
      ...deny.map((list) => ({ decision: 'deny' as const, resources: listOf('--deny', list) })),
    ],
    ...(policyFile === undefined ? {} : { networkPolicy: policyFile.policy }),
  };
  const client = await connect();
  // The server tells an id only with the finished sandbox; until then the newest one of this image that is being made is taken for it.
  const progress = async () => {
    const pending = await client.list({ states: ['Pending'] });
    return pending.find((it) => it.image === (image ?? 'host'))?.message;
  };
  const creating = client.create(request).catch((error: unknown) => {
    throw policyFile?.located(error) ?? error;
  });
  const sandbox = await withStatus(creating, progress);
  await (options.json ? printJson(await sandbox.info()) : print(sandbox.id));
}

/** As Docker reads them: `512m` and `2g` are powers of 1024. */
function sizeOf(option: string, value: string): string {
  const match = /^(\d+(?:\.\d+)?)([kmgt])?i?b?$/i.exec(value.trim());
  if (!match) throw usageError(`${option}: '${value}' is not a size`, "Write e.g. '512m', '2g' or '4Gi'.");
  return match[2] === undefined ? value : `${match[1]}${match[2]}i`;
}

function volumeOf(text: string): { hostPath: string; path: string; readOnly: boolean } {
  const [hostPath, path, mode = 'rw', ...more] = text.split(':');
  if (
    !hostPath?.startsWith('/') ||
    !path?.startsWith('/') ||
    !['ro', 'rw'].includes(mode) ||
    more.length > 0
  ) {
    throw usageError(
      `--volume: '${text}' is not of the form HOST_PATH:PATH[:ro]`,
      'Both paths have to be absolute.',
    );
  }
  return { hostPath, path, readOnly: mode === 'ro' };
}

function platformOf(text: string): { os: 'linux'; arch: 'amd64' | 'arm64' } {
  const match = /^linux\/(amd64|arm64)$/.exec(text);
  if (!match) throw usageError(`--platform: '${text}' is not one of linux/amd64, linux/arm64`);
  return { os: 'linux', arch: match[1] as 'amd64' | 'arm64' };
}
