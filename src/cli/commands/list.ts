// glovebox ls, ps and inspect: what there is.
import type { ProcessInfo, Sandbox, SandboxClient, SandboxInfo, SystemInfo } from '../../../sdk/src/index.ts';
import { SandboxError } from '../../../sdk/src/index.ts';
import { connect } from '../connect.ts';
import { asked, entryOf, type OpenPort, shownPort, statusOf, workspaceMissing } from '../entry.ts';
import { usageError } from '../exit-codes.ts';
import { print, printJson, sizeText, span, table } from '../output.ts';

const gone = (info: SandboxInfo) => info.state === 'Terminated' || info.state === 'Failed';

export interface ListOptions {
  all?: boolean;
  quiet?: boolean;
  filter?: string[];
  json?: boolean;
}

export async function ls(options: ListOptions): Promise<void> {
  const matches = (options.filter ?? []).map(filterOf);
  const client = await connect();
  const all = await client.list();
  const showsGone = options.all || (options.filter ?? []).some((it) => it.startsWith('state='));
  const shown = all.filter((info) => (showsGone || !gone(info)) && matches.every((match) => match(info)));
  const ofSeveral = new Set(shown.map((it) => it.project)).size > 1;
  if (options.quiet) {
    // Several projects may use one name, and what is printed here is often what is removed next.
    const nameOf = ({ id, name, project }: SandboxInfo) =>
      ofSeveral && project !== undefined ? id : (name ?? id);
    return shown.length > 0 ? await print(shown.map(nameOf).join('\n')) : undefined;
  }
  const open = await Promise.all(shown.map((info) => portsOf(client, info)));
  if (options.json) {
    const entries = shown.map((info, index) => entryOf(info, open[index]));
    // Both words that clients of Docker's sandboxes look for.
    return await printJson({ sandboxes: entries, vms: entries });
  }
  const rows = shown.map((info, index) => [
    info.name ?? info.id,
    info.agent ?? '-',
    shownStatusOf(info),
    (open[index] ?? []).map(shownPort).join(', ') || '-',
    shownWorkspaceOf(info),
  ]);
  const head = ['SANDBOX', 'AGENT', 'STATUS', 'PORTS', 'WORKSPACE'];
  // Who has no projects need not hear of them; who sees one only knows it.
  if (!ofSeveral) return await print(table(head, rows));
  const owners = shown.map((it) => it.project ?? '-');
  await print(
    table(
      ['PROJECT', ...head],
      rows.map((row, index) => [owners[index] ?? '-', ...row]),
    ),
  );
}

/** As they are at this moment; what was asked for where nobody can tell. */
async function portsOf(client: SandboxClient, info: SandboxInfo): Promise<OpenPort[]> {
  if (info.ports.length === 0 || info.state !== 'Running') return info.ports.map(asked);
  return await client
    .handle(info.id)
    .published.list()
    .catch(() => info.ports.map(asked));
}

function shownWorkspaceOf(info: SandboxInfo): string {
  const [main, ...others] = info.workspaces;
  if (main === undefined) return '-';
  const notes = [
    ...(main.mode === 'mount' ? [] : [main.mode]),
    ...(main.readOnly ? ['read-only'] : []),
    ...(others.length === 0 ? [] : [`and ${others.length} more`]),
    ...(workspaceMissing(info) ? ['missing'] : []),
  ];
  return main.path + (notes.length === 0 ? '' : ` (${notes.join(', ')})`);
}

function filterOf(text: string): (info: SandboxInfo) => boolean {
  const [key = '', ...rest] = text.split('=');
  const value = rest.join('=');
  switch (rest.length === 0 ? '' : key) {
    case 'name':
      return (info) => info.name?.includes(value) ?? false;
    case 'state':
    case 'status':
      return (info) => [info.state.toLowerCase(), statusOf(info)].includes(value.toLowerCase());
    case 'agent':
      return (info) => info.agent === value;
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
        'Use name=, state=, agent=, image=, runtime=, label=KEY or label=KEY=VALUE.',
      );
  }
}

function shownStatusOf(info: SandboxInfo): string {
  const status = statusOf(info);
  if (gone(info))
    return `${status} (${info.exitCode === undefined ? info.reason : `exit code ${info.exitCode}`})`;
  return info.state === 'Stopped' && info.exitCode !== undefined
    ? `${status} (exit code ${info.exitCode})`
    : status;
}

export async function inspect(references: string[]): Promise<void> {
  const client = await connect();
  const found = await Promise.all(references.map((it) => client.find(it)));
  const system = await client.system().catch(() => undefined);
  await printJson(await Promise.all(found.map((info) => inspected(client, info, system))));
}

/** Everything that either generation of Docker's sandboxes shows, and what there is besides. */
async function inspected(client: SandboxClient, info: SandboxInfo, system: SystemInfo | undefined) {
  const sandbox = client.handle(info.id);
  const [processes, ports, secrets, rules] = await Promise.all([
    processesOf(sandbox),
    portsOf(client, info),
    client.secrets.list({ sandbox: info.id }).catch(() => []),
    client.policy.rules({ sandbox: info.id }).catch(() => ({ rules: [] })),
  ]);
  const runtime = system?.runtimes.find((it) => it.name === info.runtime);
  const own = rules.rules.some((it) => it.sandboxId !== undefined);
  const main = info.workspaces[0]?.path;
  return {
    ...entryOf(info, ports),
    ports: ports.map(shownPort),
    ...(info.image === undefined ? {} : { template: info.image }),
    labels: {
      ...info.metadata,
      ...(info.agent === undefined ? {} : { 'com.docker.sandbox.agent': info.agent }),
      ...(main === undefined ? {} : { 'com.docker.sandbox.workingDirectory': main }),
    },
    metadata: info.metadata,
    kits: [],
    ...(info.state === 'Running' && info.lastTransitionAt
      ? { uptime: span(Date.now() - info.lastTransitionAt.getTime()) }
      : {}),
    ...(main === undefined ? {} : { workspace: main }),
    mounts: info.workspaces,
    limits: info.limits,
    entrypoint: info.entrypoint,
    keep: info.keep,
    ...(info.autoStopAfterSeconds === undefined
      ? {}
      : { auto_stop_after_seconds: info.autoStopAfterSeconds }),
    ...(runtime ? { network: runtime.capabilities.network } : {}),
    network_policy: { scope: own ? 'sandbox' : 'global', rules: rules.rules.length },
    proxy: '127.0.0.1:3128',
    secrets: secrets.map((it) => ({ name: it.name, source: it.sourceType, env: it.env })),
    mcp_gateway: null,
    sessions: processes.filter((it) => it.tty && it.running).length,
    attached: info.holds,
    ...(system
      ? { daemon_version: system.version, daemon_uptime: span(Date.now() - system.startedAt.getTime()) }
      : {}),
    processes,
  };
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

/** How a command is, for a table. */
export function endOf({ running, exit }: ProcessInfo): string {
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
