// The container that a client asks for, as the container that its sandbox may have. What is known and harmless is taken over, what would lead out is refused
// by name, and what is not known is refused unless it says nothing. Pure; images, volumes and folders have been looked up before.
import { posix } from 'node:path';
import { z } from 'zod';
import { Failure } from '../lib/failure.ts';
import { isOwnLabel, vmLabels } from './names.ts';

/** A folder of the host that containers may be shown: `path` exactly, or what is below it where nobody in a sandbox can change what lies there. */
export interface SharedFolder {
  path: string;
  readOnly: boolean;
}

export interface ContainerWalls {
  sandboxId: string;
  homeId: string;
  /** The sandbox's own container, whose network is everybody's. */
  containerId: string;
  shared: readonly SharedFolder[];
  /** Files of the host that stand in for those that the engine would make. */
  hostsFile: string;
  resolvFile: string;
  limits: { cpu?: number; memoryBytes?: number; pids?: number; diskBytes?: number };
  dropCapabilities: readonly string[];
  noNewPrivileges: boolean;
  /** A profile as JSON, or `unconfined`. */
  seccomp: string;
  apparmorProfile?: string;
  runtimeClass?: string;
}

export interface Lookups {
  image: { id: string; shown: string; labels: readonly string[]; volumes: readonly string[] };
  /** The engine's name of a volume of this sandbox; made if it is not there. */
  volume(name: string): Promise<string>;
  /** The same folder with all links followed. */
  realPath(path: string): Promise<string>;
  /** The whole id of a container of this sandbox. */
  container(name: string): Promise<string>;
}

type Body = Record<string, unknown>;

/** Docker's own list of what containers may do; those that we drop are taken off it. */
const usualCapabilities = [
  ...[
    'AUDIT_WRITE',
    'CHOWN',
    'DAC_OVERRIDE',
    'FOWNER',
    'FSETID',
    'KILL',
    'MKNOD',
    'NET_BIND_SERVICE',
    'NET_RAW',
  ],
  ...['SETFCAP', 'SETGID', 'SETPCAP', 'SETUID', 'SYS_CHROOT'],
];

const text = z.string().max(131_072);
const texts = z.array(text).max(4096);
const labels = z.record(z.string().max(1024), z.string().max(65_536));
const flag = z.boolean();
const count = z.number().min(-1).max(Number.MAX_SAFE_INTEGER);
const command = z.union([text.transform((it) => [it]), texts]);
const Health = z
  .strictObject({
    Test: texts,
    Interval: count,
    Timeout: count,
    Retries: count,
    StartPeriod: count,
    StartInterval: count,
  })
  .partial();

/** Taken over as they are. */
const ownFields = {
  User: text,
  AttachStdin: flag,
  AttachStdout: flag,
  AttachStderr: flag,
  Tty: flag,
  OpenStdin: flag,
  StdinOnce: flag,
  Env: texts,
  Cmd: command,
  Entrypoint: command,
  WorkingDir: text,
  StopSignal: z.string().max(32),
  StopTimeout: count,
  Healthcheck: Health,
  ArgsEscaped: flag,
} as const;

const hostFields = {
  AutoRemove: flag,
  ReadonlyRootfs: flag,
  Init: flag,
  ConsoleSize: z.array(z.int().min(0).max(65_535)).length(2),
  GroupAdd: texts,
  ShmSize: count,
  CpuShares: count,
  CpuPeriod: count,
  CpuQuota: count,
  BlkioWeight: count,
  MemoryReservation: count,
  MemorySwappiness: count,
  RestartPolicy: z.strictObject({
    Name: z.enum(['', 'no', 'always', 'unless-stopped', 'on-failure']),
    MaximumRetryCount: count.optional(),
  }),
} as const;

/** Fields that are read below, one by one. */
const ownHandled = ['Image', 'Labels', 'Volumes', 'HostConfig', 'NetworkingConfig', 'ExposedPorts'];
const hostHandled = [
  ...['Binds', 'Mounts', 'Tmpfs', 'NetworkMode', 'CapAdd', 'CapDrop', 'SecurityOpt', 'Memory', 'MemorySwap'],
  ...[
    'NanoCpus',
    'PidsLimit',
    'Ulimits',
    'VolumesFrom',
    'ExtraHosts',
    'IpcMode',
    'CgroupnsMode',
    'OomScoreAdj',
  ],
  ...[
    'MaskedPaths',
    'ReadonlyPaths',
    'PidMode',
    'PortBindings',
    'VolumeDriver',
    'Isolation',
    'ContainerIDFile',
  ],
  ...['LogConfig', 'StorageOpt'],
];

/** What people ask for most, with the reason why not and what to do. */
const refusals: Record<string, [why: string, hint?: string]> = {
  Privileged: ['a privileged container is no sandbox'],
  Devices: ['devices of the host are not shown to sandboxes'],
  DeviceRequests: [
    'devices of the host are not shown to sandboxes',
    'Give a GPU to the sandbox when you create it.',
  ],
  DeviceCgroupRules: ['devices of the host are not shown to sandboxes'],
  UTSMode: ['the host’s name space is not shared'],
  UsernsMode: ['the host’s name space is not shared'],
  CgroupParent: ['limits are the sandbox’s'],
  Cgroup: ['limits are the sandbox’s'],
  Sysctls: ['they would change the network of the whole sandbox'],
  Runtime: ['the runtime is the sandbox’s'],
  Links: ['containers of a sandbox reach each other at 127.0.0.1'],
  PublishAllPorts: ['ports are published for the sandbox', 'Use `glovebox ports NAME --publish`.'],
  Hostname: ['the network is the sandbox’s, and its name with it', 'Leave --hostname out.'],
  Domainname: ['the network is the sandbox’s, and its name with it'],
  MacAddress: ['the network is the sandbox’s'],
  Dns: ['names are looked up through the sandbox’s policy'],
  DnsOptions: ['names are looked up through the sandbox’s policy'],
  DnsSearch: ['names are looked up through the sandbox’s policy'],
  OomKillDisable: ['limits are the sandbox’s'],
};

/** Throws Failure('permission') for what leads out of the sandbox, Failure('invalid') for what makes no sense. */
export async function containerBodyFor(
  request: unknown,
  walls: ContainerWalls,
  lookups: Lookups,
): Promise<Body> {
  const asked = objectOf('the container', request);
  const host = objectOf('HostConfig', asked.HostConfig ?? {});
  refuseUnknown('', asked, [...Object.keys(ownFields), ...ownHandled]);
  refuseUnknown('HostConfig.', host, [...Object.keys(hostFields), ...hostHandled]);
  refuseNetworks(asked, host, walls);
  refuseNamespaces(host);
  const mounts = await mountsFor(asked, host, walls, lookups);
  const { image } = lookups;
  return {
    ...taken('', asked, ownFields),
    Image: image.id,
    Labels: {
      // The engine adds the image's labels, which are the client's own; ours must not come in that way.
      ...Object.fromEntries(image.labels.filter(isOwnLabel).map((key) => [key, ''])),
      ...labelsOf(asked.Labels),
      [vmLabels.vm]: walls.sandboxId,
      [vmLabels.home]: walls.homeId,
      [vmLabels.image]: image.shown,
    },
    HostConfig: {
      ...taken('HostConfig.', host, hostFields),
      ...limitsFor(host, walls),
      LogConfig: logOf(host.LogConfig),
      ...(await namespacesFor(host, lookups)),
      NetworkMode: `container:${walls.containerId}`,
      Mounts: mounts,
      Tmpfs: tmpfsOf(host.Tmpfs),
      VolumesFrom: await volumesFromOf(host.VolumesFrom, lookups),
      CapAdd: capabilitiesAdded(host.CapAdd, walls.dropCapabilities),
      CapDrop: [
        ...new Set([...capabilitiesIn('CapDrop', host.CapDrop), ...walls.dropCapabilities.map(bare)]),
      ],
      SecurityOpt: securityFor(host.SecurityOpt, walls),
      Ulimits: ulimitsOf(host.Ulimits),
      CgroupnsMode: 'private',
      Privileged: false,
      ...(walls.runtimeClass === undefined ? {} : { Runtime: walls.runtimeClass }),
    },
  };
}

function objectOf(what: string, value: unknown): Body {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Body;
  throw new Failure('invalid', `${what} is no JSON object`);
}

/** Says nothing: what the engine would take for not there. */
function isEmpty(value: unknown): boolean {
  if (value === null || value === undefined || value === '' || value === 0 || value === false) return true;
  if (Array.isArray(value)) return value.every(isEmpty);
  return typeof value === 'object' && Object.values(value).every(isEmpty);
}

function refuse(field: string, why: string, hint?: string): never {
  throw new Failure('permission', `${field}: ${why}`, hint === undefined ? {} : { hint });
}

/** The engine reads names of fields in capitals and small letters alike, so a second spelling is no way in: only what is named here goes on. */
function refuseUnknown(place: string, asked: Body, known: string[]): void {
  for (const [field, value] of Object.entries(asked)) {
    if (known.includes(field) || isEmpty(value)) continue;
    const [why, hint] = refusals[field] ?? ['is not known here, and nothing unknown is passed on'];
    refuse(`${place}${field}`.slice(0, 200), why, hint);
  }
}

function taken(place: string, asked: Body, fields: Readonly<Record<string, z.ZodType>>): Body {
  const result: Body = {};
  for (const [field, schema] of Object.entries(fields)) {
    const value = asked[field];
    if (value === undefined || value === null) continue;
    result[field] = parsed(`${place}${field}`, schema, value);
  }
  return result;
}

function parsed<T extends z.ZodType>(field: string, schema: T, value: unknown): z.infer<T> {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const [issue] = result.error.issues;
  const where = [field, ...(issue?.path ?? [])].join('.').slice(0, 200);
  throw new Failure('invalid', `${where}: ${issue?.message ?? 'is malformed'}`);
}

export function labelsOf(value: unknown): Record<string, string> {
  const given = parsed('Labels', labels.nullish(), value) ?? {};
  const ours = Object.keys(given).find(isOwnLabel);
  if (ours !== undefined)
    refuse('Labels', `labels that begin with "glovebox." are Glovebox’s own: ${ours.slice(0, 100)}`);
  return given;
}

function refuseNetworks(asked: Body, host: Body, walls: ContainerWalls): void {
  const mode = host.NetworkMode ?? '';
  const usual = ['', 'default', 'bridge', 'none', 'sandbox', `container:${walls.containerId}`];
  if (typeof mode !== 'string' || !usual.includes(mode))
    refuse(
      'HostConfig.NetworkMode',
      'every container has the network of its sandbox',
      'Leave --network out.',
    );
  const { EndpointsConfig, ...others } = objectOf('NetworkingConfig', asked.NetworkingConfig ?? {});
  const endpoints = Object.entries(objectOf('EndpointsConfig', EndpointsConfig ?? {}));
  if (!isEmpty(others) || endpoints.some(([name, it]) => !usual.includes(name) || !isEmpty(it)))
    refuse('NetworkingConfig', 'every container has the network of its sandbox', 'Leave --network out.');
  const bindings = objectOf('PortBindings', host.PortBindings ?? {});
  if (Object.keys(bindings).length > 0)
    refuse(
      'HostConfig.PortBindings',
      'ports are published for the sandbox, not for one container',
      'Leave -p out: what listens in a container can be published with `glovebox ports NAME --publish`.',
    );
  // Every sandbox knows these names of the host already.
  const extra = parsed('HostConfig.ExtraHosts', texts.nullish(), host.ExtraHosts) ?? [];
  const needless = ['host.docker.internal:host-gateway', 'gateway.docker.internal:host-gateway'];
  if (extra.some((it) => !needless.includes(it.replace('=', ':'))))
    refuse(
      'HostConfig.ExtraHosts',
      'names are looked up through the sandbox’s policy',
      'Leave --add-host out.',
    );
  if (!isEmpty(host.VolumeDriver) && host.VolumeDriver !== 'local')
    refuse('HostConfig.VolumeDriver', 'there are local volumes only');
  if (!['', 'default', undefined, null].includes(host.Isolation as string))
    refuse('HostConfig.Isolation', 'is not known here');
  for (const field of ['MaskedPaths', 'ReadonlyPaths'] as const)
    if (host[field] !== null && host[field] !== undefined)
      refuse(`HostConfig.${field}`, 'what containers see of the kernel is not theirs to choose');
}

function refuseNamespaces(host: Body): void {
  for (const field of ['PidMode', 'IpcMode'] as const) {
    const mode = host[field] ?? '';
    const usual = field === 'PidMode' ? [''] : ['', 'private', 'none', 'shareable'];
    if (typeof mode !== 'string' || (!usual.includes(mode) && !mode.startsWith('container:')))
      refuse(
        `HostConfig.${field}`,
        'the host’s name space is not shared',
        'Use container:NAME of this sandbox.',
      );
  }
  if (!['', 'private', undefined, null].includes(host.CgroupnsMode as string))
    refuse('HostConfig.CgroupnsMode', 'the host’s name space is not shared');
  const score = host.OomScoreAdj ?? 0;
  if (typeof score !== 'number' || score < 0 || score > 1000)
    refuse('HostConfig.OomScoreAdj', 'must be from 0 to 1000: others of the host come first');
}

async function namespacesFor(host: Body, lookups: Lookups): Promise<Body> {
  const shared = async (mode: unknown) => {
    const name = typeof mode === 'string' ? /^container:(.+)$/.exec(mode)?.[1] : undefined;
    return name === undefined ? undefined : `container:${await lookups.container(name)}`;
  };
  const pid = await shared(host.PidMode);
  const ipc = await shared(host.IpcMode);
  return {
    ...(pid === undefined ? {} : { PidMode: pid }),
    IpcMode: ipc ?? (isEmpty(host.IpcMode) ? 'private' : host.IpcMode),
    OomScoreAdj: host.OomScoreAdj ?? 0,
  };
}

const bare = (capability: string) => capability.toUpperCase().replace(/^CAP_/, '');

function capabilitiesIn(field: string, value: unknown): string[] {
  return (parsed(`HostConfig.${field}`, z.array(z.string().max(64)).max(64).nullish(), value) ?? []).map(
    bare,
  );
}

function capabilitiesAdded(value: unknown, dropped: readonly string[]): string[] {
  const kept = dropped.map(bare).includes('ALL')
    ? []
    : usualCapabilities.filter((it) => !dropped.map(bare).includes(it));
  const asked = capabilitiesIn('CapAdd', value);
  const more = asked.find((it) => !kept.includes(it));
  if (more !== undefined)
    refuse(
      'HostConfig.CapAdd',
      `${more.slice(0, 40)} is not for sandboxes; there are ${kept.join(', ') || 'none'}`,
    );
  return asked;
}

function securityFor(value: unknown, walls: ContainerWalls): string[] {
  for (const option of parsed('HostConfig.SecurityOpt', texts.nullish(), value) ?? [])
    if (!/^no-new-privileges(?:[:=]true)?$/.test(option))
      refuse('HostConfig.SecurityOpt', `${option.slice(0, 40)}: the walls are the sandbox’s`);
  return [
    ...(walls.noNewPrivileges || !isEmpty(value) ? ['no-new-privileges'] : []),
    `seccomp=${walls.seccomp}`,
    ...(walls.apparmorProfile === undefined ? [] : [`apparmor=${walls.apparmorProfile}`]),
  ];
}

/** No container gets more than its sandbox. */
function limitsFor(host: Body, { limits }: ContainerWalls): Body {
  const asked = (field: string) => {
    const value = parsed(`HostConfig.${field}`, count.nullish(), host[field]) ?? 0;
    return value > 0 ? value : Number.POSITIVE_INFINITY;
  };
  const least = (field: string, limit: number | undefined) =>
    Math.min(asked(field), limit ?? Number.POSITIVE_INFINITY);
  const memory = least('Memory', limits.memoryBytes);
  const cpus = least('NanoCpus', limits.cpu === undefined ? undefined : Math.round(limits.cpu * 1e9));
  const pids = least('PidsLimit', limits.pids);
  // Both at once are refused by the engine.
  const byQuota = !isEmpty(host.CpuQuota) || !isEmpty(host.CpuPeriod);
  if (byQuota && limits.cpu !== undefined)
    refuse('HostConfig.CpuQuota', 'this sandbox has a limit of processors', 'Use --cpus.');
  return {
    ...(Number.isFinite(memory) ? { Memory: memory, MemorySwap: memory } : {}),
    ...(Number.isFinite(cpus) && !byQuota ? { NanoCpus: cpus } : {}),
    ...(Number.isFinite(pids) ? { PidsLimit: pids } : {}),
    ...storageFor(host.StorageOpt, limits.diskBytes),
  };
}

function storageFor(value: unknown, limit: number | undefined): Body {
  const size = parsed('HostConfig.StorageOpt', StorageOpt.nullish(), value)?.size;
  if (limit === undefined) return size === undefined ? {} : { StorageOpt: { size } };
  if (size !== undefined) refuse('HostConfig.StorageOpt', 'this sandbox has a limit of what may be written');
  return { StorageOpt: { size: String(limit) } };
}

/** What containers print lies on the host's disk, so there is a bound to it. */
function logOf(value: unknown): Body {
  const asked = parsed('HostConfig.LogConfig', LogConfig.nullish(), value);
  if (!isEmpty(asked?.Config)) refuse('HostConfig.LogConfig', 'the size of a log is bounded already');
  if (asked?.Type === 'none') return { Type: 'none' };
  return { Type: asked?.Type || 'json-file', Config: { 'max-size': '32m', 'max-file': '2' } };
}

const StorageOpt = z.strictObject({ size: z.string().max(64) });
const LogConfig = z.strictObject({
  Type: z.enum(['', 'json-file', 'local', 'none']),
  Config: z.record(z.string(), text).nullish(),
});
const Ulimit = z.strictObject({ Name: z.string().max(32), Soft: count, Hard: count });
/** Engines whose own limit is lower cannot start containers with a higher one. */
const openFilesMax = 16_384;

function ulimitsOf(value: unknown): z.infer<typeof Ulimit>[] {
  const asked = parsed('HostConfig.Ulimits', z.array(Ulimit).max(32).nullish(), value) ?? [];
  for (const { Name: name, Hard: hard } of asked)
    if (!['nofile', 'core', 'nproc', 'cpu', 'fsize', 'stack', 'data', 'as'].includes(name))
      refuse('HostConfig.Ulimits', `${name} is not for sandboxes`);
    else if (name === 'nofile' && (hard < 0 || hard > openFilesMax))
      refuse('HostConfig.Ulimits', `nofile: the most is ${openFilesMax}`);
  return asked;
}

const reserved = ['/proc', '/sys', '/dev', '/etc/hosts', '/etc/resolv.conf', '/.glovebox'];

function targetOf(field: string, path: string): string {
  const at = posix.normalize(`/${path}`).replace(/(.)\/$/, '$1');
  if (!path.startsWith('/') || path.includes('\0'))
    throw new Failure('invalid', `${field}: the path in the container must be absolute`);
  if (at === '/' || reserved.some((it) => at === it || at.startsWith(`${it}/`)))
    throw new Failure('invalid', `${field}: ${at.slice(0, 200)} in the container is taken`);
  return at;
}

function tmpfsOf(value: unknown): Record<string, string> {
  const given = parsed(
    'HostConfig.Tmpfs',
    z.record(z.string().max(4096), z.string().max(1024)).nullish(),
    value,
  );
  return Object.fromEntries(
    Object.entries(given ?? {}).map(([path, options]) => [targetOf('HostConfig.Tmpfs', path), options]),
  );
}

async function volumesFromOf(value: unknown, lookups: Lookups): Promise<string[]> {
  const given = parsed('HostConfig.VolumesFrom', texts.nullish(), value) ?? [];
  return Promise.all(
    given.map(async (it) => {
      const [name = '', mode] = it.split(':');
      if (mode !== undefined && mode !== 'ro' && mode !== 'rw')
        throw new Failure('invalid', 'HostConfig.VolumesFrom: write it as NAME, NAME:ro or NAME:rw');
      return `${await lookups.container(name)}${mode === undefined ? '' : `:${mode}`}`;
    }),
  );
}

interface AskedMount {
  field: string;
  type: 'bind' | 'volume' | 'tmpfs';
  source: string;
  target: string;
  readOnly: boolean;
  tmpfs?: object;
  /** Of volumes: leave out what the image has there. */
  noCopy?: boolean;
  labels?: Record<string, string>;
}

const Mount = z.strictObject({
  Type: z.enum(['bind', 'volume', 'tmpfs']),
  Source: z.string().max(4096).nullish(),
  Target: z.string().max(4096),
  ReadOnly: flag.nullish(),
  Consistency: z.enum(['', 'default', 'consistent', 'cached', 'delegated']).nullish(),
  BindOptions: z
    .strictObject({
      Propagation: z.enum(['', 'rprivate', 'private']).nullish(),
      NonRecursive: z.literal(false).nullish(),
    })
    .nullish(),
  VolumeOptions: z
    .strictObject({
      NoCopy: flag.nullish(),
      Labels: labels.nullish(),
      DriverConfig: z
        .strictObject({
          Name: z.enum(['', 'local']).nullish(),
          Options: z.record(z.string(), z.never()).nullish(),
        })
        .nullish(),
    })
    .nullish(),
  TmpfsOptions: z.strictObject({ SizeBytes: count.nullish(), Mode: count.nullish() }).nullish(),
});

async function mountsFor(
  asked: Body,
  host: Body,
  walls: ContainerWalls,
  lookups: Lookups,
): Promise<object[]> {
  const binds = (parsed('HostConfig.Binds', texts.nullish(), host.Binds) ?? []).map(bindOf);
  const mounts = (parsed('HostConfig.Mounts', z.array(Mount).max(256).nullish(), host.Mounts) ?? []).map(
    (it): AskedMount => ({
      field: 'HostConfig.Mounts',
      type: it.Type,
      source: it.Source ?? '',
      target: it.Target,
      readOnly: it.ReadOnly ?? false,
      ...(it.TmpfsOptions ? { tmpfs: it.TmpfsOptions } : {}),
      noCopy: it.VolumeOptions?.NoCopy ?? false,
      labels: labelsOf(it.VolumeOptions?.Labels),
    }),
  );
  const declared = Object.keys(objectOf('Volumes', asked.Volumes ?? {}));
  const all = [...binds, ...mounts];
  const takenTargets = new Set(all.map((it) => targetOf(it.field, it.target)));
  const tmpfs = Object.keys(tmpfsOf(host.Tmpfs));
  // Volumes that an image or a client only declares would be made by the engine without our mark.
  for (const path of new Set([...declared, ...lookups.image.volumes])) {
    const target = targetOf('Volumes', path);
    if (takenTargets.has(target) || tmpfs.includes(target)) continue;
    all.push({ field: 'Volumes', type: 'volume', source: '', target, readOnly: false });
  }
  if (all.length > 256) throw new Failure('invalid', 'there are more than 256 mounts');
  const result: object[] = [
    { Type: 'bind', Source: walls.hostsFile, Target: '/etc/hosts', ReadOnly: true },
    { Type: 'bind', Source: walls.resolvFile, Target: '/etc/resolv.conf', ReadOnly: true },
  ];
  for (const mount of all) result.push(await mountFor(mount, walls, lookups));
  return result;
}

async function mountFor(mount: AskedMount, walls: ContainerWalls, lookups: Lookups): Promise<object> {
  const { field, type, source, readOnly } = mount;
  const Target = targetOf(field, mount.target);
  switch (type) {
    case 'tmpfs':
      return { Type: 'tmpfs', Target, ReadOnly: readOnly, TmpfsOptions: mount.tmpfs };
    case 'volume':
      return {
        Type: 'volume',
        ...(source === '' ? {} : { Source: await lookups.volume(source) }),
        Target,
        ReadOnly: readOnly,
        VolumeOptions: {
          NoCopy: mount.noCopy ?? false,
          Labels: { ...mount.labels, [vmLabels.vm]: walls.sandboxId, [vmLabels.home]: walls.homeId },
        },
      };
    case 'bind': {
      const folder = await sharedFolder(source, walls.shared, lookups.realPath);
      return {
        Type: 'bind',
        Source: folder.path,
        Target,
        ReadOnly: readOnly || folder.readOnly,
        BindOptions: { Propagation: 'rprivate' },
      };
    }
    default:
      return type satisfies never;
  }
}

/** `SOURCE:TARGET[:OPTIONS]`; a source that is no path is a volume. */
function bindOf(text: string): AskedMount {
  const field = 'HostConfig.Binds';
  const [source = '', target, options = '', ...rest] = text.split(':');
  if (target === undefined || rest.length > 0)
    throw new Failure(
      'invalid',
      `${field}: ${JSON.stringify(text.slice(0, 200))} is not SOURCE:TARGET[:OPTIONS]`,
    );
  const words = options === '' ? [] : options.split(',');
  const harmless = [
    'ro',
    'rw',
    'z',
    'Z',
    'rprivate',
    'private',
    'nocopy',
    'consistent',
    'cached',
    'delegated',
  ];
  const strange = words.find((it) => !harmless.includes(it));
  if (strange !== undefined) refuse(field, `the option ${strange.slice(0, 40)} is not for sandboxes`);
  const type = source.startsWith('/') || source.startsWith('.') ? 'bind' : 'volume';
  return { field, type, source, target, readOnly: words.includes('ro'), noCopy: words.includes('nocopy') };
}

/**
 * The shared folder that a path stands for. A folder below a writable one is refused: the engine follows links when the container starts, and a guest can put
 * one there between our look and the engine's. The folders themselves lie out of its reach.
 */
export async function sharedFolder(
  source: string,
  shared: readonly SharedFolder[],
  realPath: (path: string) => Promise<string>,
): Promise<SharedFolder> {
  const where = JSON.stringify(source.slice(0, 200));
  if (!source.startsWith('/') || source.includes('\0'))
    throw new Failure('invalid', `the path ${where} must be absolute`);
  const real = await realPath(source).catch(() =>
    refuse(`mount ${where}`, 'there is no such folder to be shown'),
  );
  const exact = shared.find((it) => it.path === real);
  const inside = shared.filter((it) => real.startsWith(`${it.path}/`));
  const writable = inside.find((it) => !it.readOnly);
  if (writable !== undefined)
    refuse(
      `mount ${where}`,
      'a folder below a workspace could be changed for a link while it is mounted',
      `Mount the workspace itself, ${writable.path}, and use -w for the folder in it.`,
    );
  if (exact !== undefined) return exact;
  if (inside.length > 0) return { path: real, readOnly: true };
  const paths = shared.map((it) => it.path).join(', ');
  refuse(`mount ${where}`, 'only workspaces of the sandbox can be mounted', `There are ${paths || 'none'}.`);
}
