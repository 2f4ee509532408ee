// glovebox ls, ps and inspect: what there is.
import type { ProcessInfo, Sandbox, SandboxInfo } from '../../../sdk/src/index.ts';
import { SandboxError } from '../../../sdk/src/index.ts';
import { connect } from '../connect.ts';
import { usageError } from '../exit-codes.ts';
import { clean, paint, print, printJson, sizeText, span, table } from '../output.ts';

/** As much of an id as a person reads; it is enough to name the sandbox by. */
const shortId = (id: string) => id.slice(0, 13);

const gone = (info: SandboxInfo) => info.state === 'Terminated' || info.state === 'Failed';

export interface ListOptions {
  all?: boolean;
  quiet?: boolean;
  filter?: string[];
  json?: boolean;
}

export async function ls(options: ListOptions): Promise<void> {
  const matches = (options.filter ?? []).map(filterOf);
  const all = await (await connect()).list();
  const showsGone = options.all || (options.filter ?? []).some((it) => it.startsWith('state='));
  const shown = all.filter((info) => (showsGone || !gone(info)) && matches.every((match) => match(info)));
  if (options.json) return await printJson(shown);
  if (options.quiet)
    return shown.length > 0 ? await print(shown.map((info) => info.id).join('\n')) : undefined;
  const rows = shown.map((info) => [
    shortId(info.id),
    info.name ?? '-',
    info.image ?? '-',
    info.runtime ?? '-',
    statusOf(info),
    `${span(Date.now() - info.createdAt.getTime())} ago`,
    info.expiresAt ? `in ${span(info.expiresAt.getTime() - Date.now())}` : 'never',
  ]);
  await print(table(['SANDBOX', 'NAME', 'IMAGE', 'RUNTIME', 'STATUS', 'CREATED', 'EXPIRES'], rows));
}

function filterOf(text: string): (info: SandboxInfo) => boolean {
  const [key = '', ...rest] = text.split('=');
  const value = rest.join('=');
  switch (rest.length === 0 ? '' : key) {
    case 'name':
      return (info) => info.name?.includes(value) ?? false;
    case 'state':
      return (info) => info.state.toLowerCase() === value.toLowerCase();
    case 'image':
      return (info) => info.image === value;
    case 'runtime':
      return (info) => info.runtime === value;
    case 'label': {
      const [label = '', ...wanted] = value.split('=');
      return (info) =>
        info.metadata[label] !== undefined &&
        (wanted.length === 0 || info.metadata[label] === wanted.join('='));
    }
    default:
      throw usageError(
        `--filter: '${text}' is not a filter`,
        'Use name=, state=, image=, runtime=, label=KEY or label=KEY=VALUE.',
      );
  }
}

function statusOf(info: SandboxInfo): string {
  if (!gone(info)) return info.state;
  return `${info.state} (${info.exitCode === undefined ? info.reason : `exit code ${info.exitCode}`})`;
}

export async function inspect(references: string[], options: { json?: boolean }): Promise<void> {
  const client = await connect();
  const found = [];
  for (const reference of references) {
    const info = await client.find(reference);
    found.push({ ...info, processes: await processesOf(client.handle(info.id)) });
  }
  if (options.json) return await printJson(found);
  await print(found.map(described).join('\n\n'));
}

/** None of a sandbox that does not run. */
async function processesOf(sandbox: Sandbox): Promise<ProcessInfo[]> {
  try {
    return await sandbox.processes();
  } catch (error) {
    if (error instanceof SandboxError && ['conflict', 'lost', 'not-found'].includes(error.code)) return [];
    throw error;
  }
}

function described(info: SandboxInfo & { processes: ProcessInfo[] }): string {
  const { cpu, memoryBytes, pids, diskBytes } = info.limits;
  const limits = [
    ...(cpu === undefined ? [] : [`${cpu} cpu`]),
    ...(memoryBytes === undefined ? [] : [`${sizeText(memoryBytes)} memory`]),
    ...(pids === undefined ? [] : [`${pids} pids`]),
    ...(diskBytes === undefined ? [] : [`${sizeText(diskBytes)} disk`]),
  ];
  const lines: [string, string | undefined][] = [
    ['id', info.id],
    ['name', info.name],
    ['state', statusOf(info)],
    ['message', info.message],
    ['image', info.image],
    ['runtime', info.runtime],
    ['limits', limits.join(', ') || undefined],
    ['entrypoint', info.entrypoint.join(' ')],
    ['created', info.createdAt.toISOString()],
    ['expires', info.expiresAt?.toISOString() ?? 'never'],
    [
      'labels',
      Object.entries(info.metadata)
        .map((pair) => pair.join('='))
        .join(', ') || undefined,
    ],
    ...info.processes.map((it): [string, string] => [
      'process',
      `${it.id}  ${endOf(it)}  ${it.command.join(' ').slice(0, 100)}`,
    ]),
  ];
  return lines
    .filter(([, value]) => value !== undefined)
    .map(
      ([name, value]) =>
        `${paint('bold', `${name}:`.padEnd(12))} ${clean(value ?? '').replaceAll('\n', ' ')}`,
    )
    .join('\n');
}

function endOf({ running, exit }: ProcessInfo): string {
  return running ? 'running' : `${exit?.reason ?? 'ended'} (${exit?.exitCode ?? '?'})`;
}

export async function ps(reference: string, options: { json?: boolean; quiet?: boolean }): Promise<void> {
  const sandbox = await (await connect()).connect(reference);
  const processes = await sandbox.processes();
  if (options.json) return await printJson(processes);
  if (options.quiet)
    return processes.length > 0 ? await print(processes.map((it) => it.id).join('\n')) : undefined;
  const rows = processes.map((it) => [
    it.id,
    String(it.pid),
    endOf(it),
    `${span(Date.now() - it.startedAt.getTime())} ago`,
    sizeText(it.end),
    it.command.join(' ').replace(/\s+/g, ' ').slice(0, 80),
  ]);
  await print(table(['PROCESS', 'PID', 'STATUS', 'STARTED', 'OUTPUT', 'COMMAND'], rows));
}
