// What comes back from the server, and just enough checking that an answer of another shape fails here, with its name, and not
// somewhere in the caller's code. The shapes themselves: OpenSandbox's lifecycle and execd specifications, src/contract/ for our own routes.
import { ProtocolError } from './errors.ts';

type Kind = 'string' | 'number' | 'boolean' | 'object' | 'array' | 'date';

/** The fields that `value` must have; a name that ends in `?` may be absent or null. Throws ProtocolError. */
export function expectFields<T>(value: unknown, fields: Record<string, Kind>, what: string): T {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new ProtocolError('protocol', `${what}: expected an object in the answer, got ${describe(value)}`);
  }
  for (const [field, kind] of Object.entries(fields)) {
    const optional = field.endsWith('?');
    const name = optional ? field.slice(0, -1) : field;
    const found = (value as Record<string, unknown>)[name];
    if (optional && (found === undefined || found === null)) continue;
    if (!isOf(found, kind)) {
      throw new ProtocolError(
        'protocol',
        `${what}: expected ${name} to be a ${kind}, got ${describe(found)}`,
      );
    }
  }
  return value as T;
}

export function expectItems<T>(value: unknown, fields: Record<string, Kind>, what: string): T[] {
  if (!Array.isArray(value))
    throw new ProtocolError('protocol', `${what}: expected a list, got ${describe(value)}`);
  return value.map((item) => expectFields<T>(item, fields, what));
}

function isOf(value: unknown, kind: Kind): boolean {
  if (kind === 'array') return Array.isArray(value);
  if (kind === 'date') return typeof value === 'string' && !Number.isNaN(Date.parse(value));
  return value !== null && !Array.isArray(value) && typeof value === kind;
}

function describe(value: unknown): string {
  const text = JSON.stringify(value) ?? 'nothing';
  return text.length > 80 ? `${text.slice(0, 80)}…` : text;
}

/** How a command ended. `exitCode` is what a shell would show: the status, or 128 and the signal's number. Null with reason `unknown` only. */
export interface ExitStatus {
  exitCode: number | null;
  /** E.g. `SIGKILL`. */
  signal: string | null;
  /** `oom` and `output-limit`: it was ended for want of the memory, or for more output, than it was given. */
  reason: 'exited' | 'signaled' | 'timeout' | 'killed' | 'oom' | 'output-limit' | 'unknown';
}

const reasons: readonly string[] = [
  'exited',
  'signaled',
  'timeout',
  'killed',
  'oom',
  'output-limit',
  'unknown',
];

export function exitStatusOf(value: unknown, what: string): ExitStatus {
  const wire = expectFields<{ code?: number; signal?: string; reason: ExitStatus['reason'] }>(
    value,
    { 'code?': 'number', 'signal?': 'string', reason: 'string' },
    what,
  );
  if (!reasons.includes(wire.reason))
    throw new ProtocolError('protocol', `${what}: unknown reason '${wire.reason}'`);
  return { exitCode: wire.code ?? null, signal: wire.signal ?? null, reason: wire.reason };
}

export interface ProcessInfo {
  id: string;
  pid: number;
  /** The argument vector, or the shell line alone. */
  command: string[];
  running: boolean;
  background: boolean;
  tty: boolean;
  startedAt: Date;
  finishedAt?: Date;
  exit?: ExitStatus;
  /** Offset of the oldest byte of output that is still held. */
  start: number;
  /** Offset behind the newest byte. */
  end: number;
}

export function processInfoOf(value: unknown, what: string): ProcessInfo {
  const wire = expectFields<
    Omit<ProcessInfo, 'startedAt' | 'finishedAt' | 'exit'> & {
      startedAt: string;
      finishedAt?: string;
      exit?: unknown;
    }
  >(
    value,
    {
      id: 'string',
      pid: 'number',
      command: 'array',
      running: 'boolean',
      background: 'boolean',
      tty: 'boolean',
      startedAt: 'date',
      'finishedAt?': 'date',
      'exit?': 'object',
      start: 'number',
      end: 'number',
    },
    what,
  );
  const { id, pid, command, running, background, tty, start, end } = wire;
  return {
    ...{ id, pid, command, running, background, tty, start, end, startedAt: new Date(wire.startedAt) },
    ...(wire.finishedAt ? { finishedAt: new Date(wire.finishedAt) } : {}),
    ...(wire.exit ? { exit: exitStatusOf(wire.exit, what) } : {}),
  };
}

/** OpenSandbox's states of a sandbox. */
export type SandboxState =
  | 'Pending'
  | 'Running'
  | 'Pausing'
  | 'Paused'
  | 'Resuming'
  | 'Stopped'
  | 'Stopping'
  | 'Terminated'
  | 'Failed';

export interface SandboxLimits {
  /** Cores, e.g. 0.5. */
  cpu?: number;
  memoryBytes?: number;
  /** Processes and threads together. */
  pids?: number;
  /** Size of the writable layer. */
  diskBytes?: number;
  gpu?: number | 'all';
}

export interface SandboxInfo {
  id: string;
  /** Whose it is, on a server that several share; absent: its owner's. */
  project?: string;
  /** Metadata `glovebox.name`: unique among live sandboxes of one project. */
  name?: string;
  state: SandboxState;
  /** A word for programs, e.g. `running`, `exited`, `out-of-memory`. */
  reason?: string;
  message?: string;
  lastTransitionAt?: Date;
  /** What it was made from; a server may leave it out right after create. */
  image?: string;
  /** Of the snapshot that it was made of, instead of an image. */
  snapshotId?: string;
  runtime?: string;
  /** What the server granted; a limit that is absent is the runtime's default. */
  limits: SandboxLimits;
  /** Of the main process, once it has ended. */
  exitCode?: number;
  entrypoint: string[];
  metadata: Record<string, string>;
  createdAt: Date;
  /** Absent for a sandbox that lives until it is removed. */
  expiresAt?: Date;
  /** It can be stopped and started again with what it wrote. */
  keep: boolean;
  /** Of kept ones: it stops when nothing ran in it and nobody was attached for so long. */
  autoStopAfterSeconds?: number;
  /** The agent that it was made for. */
  agent?: string;
  /** Folders of the host, the main one first. */
  workspaces: Workspace[];
  /** Ports on the host, as they were asked for. */
  ports: PortMapping[];
  /** When something last ran in it or was attached. */
  lastUsedAt?: Date;
  /** How many are attached, and commands that run beside its main process. */
  holds: number;
  commands: number;
}

export interface SandboxMetrics {
  /** That it may use. */
  cpuCount: number;
  /** Of all of these together, 0 to 100. */
  cpuPercent: number;
  memoryUsedBytes: number;
  memoryTotalBytes: number;
}

export function sandboxMetricsOf(value: unknown, what: string): SandboxMetrics {
  const wire = expectFields<Record<string, number>>(
    value,
    { cpu_count: 'number', cpu_used_pct: 'number', mem_used_mib: 'number', mem_total_mib: 'number' },
    what,
  );
  const mebibyte = 1024 * 1024;
  return {
    cpuCount: wire.cpu_count as number,
    cpuPercent: wire.cpu_used_pct as number,
    memoryUsedBytes: (wire.mem_used_mib as number) * mebibyte,
    memoryTotalBytes: (wire.mem_total_mib as number) * mebibyte,
  };
}

/** A folder of the host, at the same path inside. */
export interface Workspace {
  path: string;
  /** See `CreateOptions.workspaces`. */
  mode: 'mount' | 'clone' | 'overlay' | 'sync';
  readOnly: boolean;
  hide?: string[];
}

/** A port of the host that leads to one of the sandbox, in the words of `docker run -p`. */
export interface PortMapping {
  /** Default: 127.0.0.1. */
  hostIp?: string;
  /** Default or 0: any free one. */
  hostPort?: number;
  sandboxPort: number;
  /** Default: `tcp4`. */
  protocol?: 'tcp' | 'tcp4' | 'tcp6';
}

/** An image of a runtime's own store that sandboxes can be made from. */
export interface TemplateInfo {
  name: string;
  runtime: string;
  id: string;
  sizeBytes: number;
  createdAt: Date;
  base?: string;
}

export function templateInfoOf(value: unknown, what: string): TemplateInfo {
  const wire = expectFields<Omit<TemplateInfo, 'createdAt'> & { createdAt: string }>(
    value,
    {
      ...{ name: 'string', runtime: 'string', id: 'string', sizeBytes: 'number', createdAt: 'date' },
      'base?': 'string',
    },
    what,
  );
  const { name, runtime, id, sizeBytes, base } = wire;
  return {
    ...{ name, runtime, id, sizeBytes, createdAt: new Date(wire.createdAt) },
    ...(base ? { base } : {}),
  };
}

export const nameLabel = 'glovebox.name';
export const runtimeExtension = 'glovebox.runtime';
export const transparentExtension = 'glovebox.transparent';
export const idlePauseExtension = 'glovebox.idle.pause.seconds';
export const renewExtension = 'access.renew.extend.seconds';

interface WireSandbox {
  id: string;
  status: { state: SandboxState; reason?: string; message?: string; lastTransitionAt?: string };
  image?: { uri?: string };
  entrypoint?: string[];
  metadata?: Record<string, string>;
  snapshotId?: string;
  createdAt: string;
  expiresAt?: string;
  glovebox?: Partial<
    Pick<
      SandboxInfo,
      | ('project' | 'runtime' | 'limits' | 'exitCode' | 'keep' | 'autoStopAfterSeconds')
      | ('agent' | 'workspaces' | 'ports')
    > & { lastUsedAt: string; holds: number; commands: number }
  >;
}

export function sandboxInfoOf(value: unknown, what: string): SandboxInfo {
  const wire = expectFields<WireSandbox>(
    value,
    {
      ...{ id: 'string', status: 'object', createdAt: 'date', 'expiresAt?': 'date', 'entrypoint?': 'array' },
      ...{ 'metadata?': 'object', 'image?': 'object', 'snapshotId?': 'string', 'glovebox?': 'object' },
    },
    what,
  );
  const { state, reason, message, lastTransitionAt } = expectFields<WireSandbox['status']>(
    wire.status,
    { state: 'string', 'reason?': 'string', 'message?': 'string', 'lastTransitionAt?': 'date' },
    what,
  );
  const name = wire.metadata?.[nameLabel];
  // A server of OpenSandbox's own has none of this.
  const { project, runtime, limits, exitCode, lastUsedAt, autoStopAfterSeconds, agent, ...own } =
    wire.glovebox ?? {};
  const image = wire.image?.uri;
  return {
    id: wire.id,
    ...(project === undefined ? {} : { project }),
    ...(name ? { name } : {}),
    state,
    ...(reason ? { reason } : {}),
    ...(message ? { message } : {}),
    ...(lastTransitionAt ? { lastTransitionAt: new Date(lastTransitionAt) } : {}),
    ...(image ? { image } : {}),
    ...(wire.snapshotId ? { snapshotId: wire.snapshotId } : {}),
    ...(runtime ? { runtime } : {}),
    limits: limits ?? {},
    ...(exitCode === undefined ? {} : { exitCode }),
    entrypoint: wire.entrypoint ?? [],
    metadata: wire.metadata ?? {},
    createdAt: new Date(wire.createdAt),
    ...(wire.expiresAt ? { expiresAt: new Date(wire.expiresAt) } : {}),
    keep: own.keep ?? false,
    ...(autoStopAfterSeconds === undefined ? {} : { autoStopAfterSeconds }),
    ...(agent === undefined ? {} : { agent }),
    workspaces: own.workspaces ?? [],
    ports: own.ports ?? [],
    ...(lastUsedAt ? { lastUsedAt: new Date(lastUsedAt) } : {}),
    holds: own.holds ?? 0,
    commands: own.commands ?? 0,
  };
}

export interface FileInfo {
  path: string;
  type: 'file' | 'directory' | 'symlink' | 'other';
  /** Bytes. */
  size: number;
  /** Permission bits, e.g. 0o755. */
  mode: number;
  owner: string;
  group: string;
  modifiedAt: Date;
  createdAt: Date;
}

export function fileInfoOf(value: unknown, what: string): FileInfo {
  const wire = expectFields<{
    path: string;
    type: FileInfo['type'];
    size: number;
    mode: number;
    owner: string;
    group: string;
    modified_at: string;
    created_at: string;
  }>(
    value,
    {
      ...{ path: 'string', type: 'string', size: 'number', mode: 'number', owner: 'string', group: 'string' },
      ...{ modified_at: 'date', created_at: 'date' },
    },
    what,
  );
  const { path, type, size, owner, group } = wire;
  return {
    ...{ path, type, size, owner, group, mode: modeFromWire(wire.mode) },
    ...{ modifiedAt: new Date(wire.modified_at), createdAt: new Date(wire.created_at) },
  };
}

/** execd writes permission bits as the octal digits read as a decimal number: 0o755 is 755. */
export function modeFromWire(mode: number): number {
  return Number.parseInt(String(mode), 8);
}

export function modeToWire(mode: number): number {
  return Number(mode.toString(8));
}

export interface ImageInfo {
  name: string;
  /** `sha256:…` of the content; empty for a built-in image. */
  digest: string;
  arch: string;
  sizeBytes: number;
  createdAt: Date;
  builtin: boolean;
}

export function imageInfoOf(value: unknown, what: string): ImageInfo {
  const wire = expectFields<Omit<ImageInfo, 'createdAt'> & { createdAt: string }>(
    value,
    {
      ...{ name: 'string', digest: 'string', arch: 'string', sizeBytes: 'number', createdAt: 'date' },
      builtin: 'boolean',
    },
    what,
  );
  const { name, digest, arch, sizeBytes, builtin } = wire;
  return { name, digest, arch, sizeBytes, builtin, createdAt: new Date(wire.createdAt) };
}

export interface RuntimeInfo {
  name: string;
  default: boolean;
  usable: boolean;
  version?: string;
  capabilities: {
    pause: boolean;
    /** By what means each limit holds; a limit that is absent cannot be set. */
    limits: Record<string, string>;
    users: 'all' | 'single';
    isolation: 'none' | 'namespaces' | 'container' | 'virtual-machine';
    /** Of connections: caught whatever their address; only through the proxy; past every rule. */
    network: 'captured' | 'loopback' | 'open';
    imagePull: boolean;
    /** Whether sandboxes can be stopped and started again, with what they wrote. */
    keep: boolean;
    mounts: { owner: boolean; overlay: boolean; hidden: boolean };
  };
  problems: { message: string; hint: string; fatal: boolean }[];
}

export interface SystemInfo {
  version: string;
  pid: number;
  home: string;
  startedAt: Date;
  sandboxes: number;
  runtimes: RuntimeInfo[];
  /** What its configuration lets be that an operator should know of. */
  warnings: string[];
}

export function systemInfoOf(value: unknown, what: string): SystemInfo {
  const wire = expectFields<Omit<SystemInfo, 'startedAt'> & { startedAt: string }>(
    value,
    {
      ...{ version: 'string', pid: 'number', home: 'string', startedAt: 'date', sandboxes: 'number' },
      ...{ runtimes: 'array', 'warnings?': 'array' },
    },
    what,
  );
  const runtimes = expectItems<RuntimeInfo>(
    wire.runtimes,
    { name: 'string', default: 'boolean', usable: 'boolean', capabilities: 'object', problems: 'array' },
    what,
  );
  const { version, pid, home, sandboxes } = wire;
  const warnings = (wire.warnings ?? []).map(String);
  return { version, pid, home, sandboxes, runtimes, warnings, startedAt: new Date(wire.startedAt) };
}
