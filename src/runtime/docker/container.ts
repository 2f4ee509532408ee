// What we ask the engine for: the container of one machine, hardened, as the body of `POST /containers/create`. Pure, but for the check that
// no mount brings the engine's own socket into the guest.
import { realpathSync } from 'node:fs';
import { dirname, isAbsolute, normalize } from 'node:path';
import { guestFolder } from '../../contract/guest.ts';
import { Failure } from '../../lib/failure.ts';
import { isSpecial, throughHelper } from '../mounts/plan.ts';
import type { ImageDefaults, MachineSpec, Mount, NetworkWalls } from '../runtime.ts';
import type { EngineFacts } from './facts.ts';

export const labels = {
  home: 'glovebox.home',
  sandbox: 'glovebox.sandbox',
  /** Unique for one create call, so that a container is found whose creation was never answered. */
  attempt: 'glovebox.attempt',
  /** The image's defaults: needed at adoption, when the image itself may be gone. */
  defaults: 'glovebox.image-defaults',
  /** The walls of its network, in the words of runtime.ts. */
  network: 'glovebox.network',
};

export interface ContainerOptions {
  /** Marks the machines of this daemon's home. */
  homeId: string;
  agent: { folder: string; command: readonly string[]; environment: Readonly<Record<string, string>> };
  /** `none`, `bridge`, `host` or the name of a network. */
  network: string;
  dropCapabilities: string[];
  noNewPrivileges: boolean;
  /** The profile as JSON, or `unconfined`. */
  seccomp: string;
  apparmorProfile?: string;
  runtimeClass?: string;
}

export interface ContainerRequest {
  spec: MachineSpec;
  imageId: string;
  defaults: ImageDefaults;
  attempt: string;
  /**
   * `engine`: the engine's own network set-up. `bare`: with network `none`, the kernel's fresh network namespace and nothing more, which
   * halves the time of a start; then `files` stand in for those that the engine would put into /etc.
   */
  networking: { kind: 'engine' } | { kind: 'bare'; files: { hostPath: string; guestPath: string }[] };
  network: NetworkWalls;
}

const mebibyte = 2 ** 20;
// Engines whose own limit is lower cannot start containers with a higher one; the usual million makes old programs slow.
const openFilesMax = 16_384;

// The engine's own list (setting any replaces it), and what else tells about the host or its kernel.
const maskedPaths = [
  ...['/proc/asound', '/proc/acpi', '/proc/interrupts', '/proc/kcore', '/proc/keys', '/proc/latency_stats'],
  ...['/proc/timer_list', '/proc/timer_stats', '/proc/sched_debug', '/proc/scsi', '/sys/firmware'],
  '/sys/devices/virtual/powercap',
  ...[
    '/proc/kallsyms',
    '/proc/kmsg',
    '/proc/kpagecgroup',
    '/proc/kpagecount',
    '/proc/kpageflags',
    '/proc/slabinfo',
  ],
  ...[
    '/proc/vmallocinfo',
    '/proc/key-users',
    '/sys/kernel/debug',
    '/sys/kernel/tracing',
    '/sys/kernel/security',
  ],
  ...['/sys/kernel/vmcoreinfo', '/sys/fs/bpf'],
];
const readonlyPaths = ['/proc/bus', '/proc/fs', '/proc/irq', '/proc/sys', '/proc/sysrq-trigger'];

/** Sockets through which a guest could command the host. */
const engineSockets = [
  '/run/docker.sock',
  '/run/containerd/containerd.sock',
  '/run/podman/podman.sock',
  '/run/crio/crio.sock',
];

export function containerName(id: string): string {
  return `glovebox-${id}`;
}

export function containerBody(
  request: ContainerRequest,
  options: ContainerOptions,
  facts: EngineFacts,
): object {
  const { spec, networking } = request;
  const { limits } = spec;
  // The engine cannot make them (see mounts.ts), and would make folders on the host for those below them.
  const later = new Set(throughHelper(spec.mounts));
  const mount = (hostPath: string, guestPath: string, readOnly: boolean) => ({
    Type: 'bind',
    Source: hostPath,
    Target: guestPath,
    ReadOnly: readOnly,
    BindOptions: { Propagation: 'rprivate' },
  });
  return {
    Image: request.imageId,
    Hostname: hostname(spec.id),
    Entrypoint: options.agent.command,
    Cmd: [],
    // The agent is the guest's root, so that it can start commands as any user; those of the image's user get no capabilities.
    User: '0:0',
    WorkingDir: '/',
    Env: agentEnvironment(options.agent.environment, request.defaults.env),
    Labels: {
      ...spec.labels,
      [labels.home]: options.homeId,
      [labels.sandbox]: spec.id,
      [labels.attempt]: request.attempt,
      [labels.defaults]: JSON.stringify(request.defaults),
      [labels.network]: request.network,
    },
    // An image's health check would start a process in the guest every few seconds, past our agent.
    Healthcheck: { Test: ['NONE'] },
    NetworkDisabled: networking.kind === 'bare',
    HostConfig: {
      NetworkMode: options.network,
      ...(request.network === 'open' ? {} : { Dns: [guestNameServer] }),
      Init: facts.initPresent,
      Mounts: [
        mount(options.agent.folder, `${guestFolder}/agent`, true),
        mount(spec.runFolder, `${guestFolder}/run`, true),
        // They lie on the host's disk, past the limit of the container's own layer.
        ...(networking.kind === 'bare'
          ? networking.files.map((it) => mount(it.hostPath, it.guestPath, limits.diskBytes !== undefined))
          : []),
        ...spec.mounts
          .filter((it) => !later.has(it))
          .map((it) => mount(it.hostPath, normalize(it.guestPath), it.readOnly)),
      ],
      CapDrop: options.dropCapabilities,
      SecurityOpt: [
        ...(options.noNewPrivileges ? ['no-new-privileges'] : []),
        `seccomp=${options.seccomp}`,
        ...(options.apparmorProfile === undefined ? [] : [`apparmor=${options.apparmorProfile}`]),
      ],
      MaskedPaths: maskedPaths,
      ReadonlyPaths: readonlyPaths,
      IpcMode: 'private',
      CgroupnsMode: 'private',
      ...(limits.pids === undefined ? {} : { PidsLimit: limits.pids }),
      // The same figure twice: no swap beside it.
      ...(limits.memoryBytes === undefined
        ? {}
        : { Memory: limits.memoryBytes, MemorySwap: limits.memoryBytes }),
      ...(limits.cpu === undefined ? {} : { NanoCpus: Math.round(limits.cpu * 1e9) }),
      ...(limits.diskBytes === undefined ? {} : { StorageOpt: { size: String(limits.diskBytes) } }),
      ...(limits.gpu === undefined
        ? {}
        : {
            DeviceRequests: [{ Count: limits.gpu === 'all' ? -1 : limits.gpu, Capabilities: [['gpu']] }],
          }),
      // Shared memory counts against the memory limit, so it needs no bound of its own below that.
      ShmSize: Math.max(64 * mebibyte, Math.floor((limits.memoryBytes ?? 0) / 2)),
      Ulimits: [
        { Name: 'nofile', Soft: openFilesMax, Hard: openFilesMax },
        { Name: 'core', Soft: 0, Hard: 0 },
      ],
      // Output travels over the agent's channel; what PID 1 prints would fill the host's disk.
      LogConfig: { Type: 'none' },
      ...(options.runtimeClass === undefined ? {} : { Runtime: options.runtimeClass }),
    },
  };
}

/** The engine's form: `NAME=value` sets, and `NAME` alone removes what the image sets, for that is meant for commands and could harm the agent. */
function agentEnvironment(ours: Readonly<Record<string, string>>, image: Record<string, string>): string[] {
  const set = Object.entries(ours).map(([name, value]) => `${name}=${value}`);
  return [...set, ...Object.keys(image).filter((name) => !(name in ours))];
}

function hostname(id: string): string {
  return (
    id
      .toLowerCase()
      .replace(/[^a-z0-9-]/g, '-')
      .slice(0, 63)
      .replace(/^-+|-+$/g, '') || 'sandbox'
  );
}

/** Where the agent answers questions for names. */
const guestNameServer = '127.0.0.1';

export const resolvText = `nameserver ${guestNameServer}\n`;

/** What the engine would write, plus the names by which a guest knows itself. */
export function hostsText(id: string): string {
  return `127.0.0.1\tlocalhost ${hostname(id)}\n::1\tlocalhost ip6-localhost ip6-loopback\n`;
}

/** Refuses a spec that this runtime cannot keep, before anything is made. */
export function validate(spec: MachineSpec, engineSocket: string | undefined): void {
  if (!/^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$/.test(spec.id)) {
    throw new Failure('invalid', `"${spec.id}" is not an id: letters, digits, "-", "_" and ".", at most 128`);
  }
  for (const [name, value] of Object.entries(spec.limits)) {
    if (name === 'gpu' && value === 'all') continue;
    if (typeof value !== 'number' || !(value > 0) || (name !== 'cpu' && !Number.isSafeInteger(value))) {
      throw new Failure('invalid', `limit ${name} is ${value}; it must be a positive number`);
    }
  }
  const sockets = [...engineSockets, ...(engineSocket === undefined ? [] : [engineSocket])].map(resolved);
  const taken = new Set<string>();
  for (const mount of spec.mounts) {
    validateMount(mount, sockets);
    const guestPath = normalize(`${mount.guestPath}/`);
    if (taken.has(guestPath)) throw new Failure('invalid', `two mounts at ${mount.guestPath}`);
    taken.add(guestPath);
  }
}

function validateMount(mount: Mount, sockets: string[]): void {
  const { hostPath, guestPath } = mount;
  for (const path of [hostPath, guestPath]) {
    if (!isAbsolute(path) || path.includes('\0')) {
      throw new Failure('invalid', `mount of "${hostPath}" at "${guestPath}": both paths must be absolute`);
    }
  }
  const reserved = ['/proc', '/sys', guestFolder, ...(isSpecial(mount) ? ['/dev'] : [])];
  const at = normalize(`${guestPath}/`);
  if (at === '/' || reserved.some((it) => at.startsWith(`${it}/`))) {
    throw new Failure('invalid', `mount at "${guestPath}": this path of the guest is taken`, {
      hint: `Choose one that is not /, ${reserved.join(', ')} or below these.`,
    });
  }
  const real = resolved(hostPath);
  const socket = sockets.find((it) => it === real || it.startsWith(real === '/' ? real : `${real}/`));
  if (socket !== undefined) {
    throw new Failure(
      'invalid',
      `mount of "${hostPath}": it holds ${socket}, which commands the whole host`,
      {
        hint: 'Mount a folder that does not hold the socket of a container engine.',
      },
    );
  }
}

/** The path with its symlinks followed as far as it exists. */
function resolved(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    const parent = dirname(path);
    return parent === path ? path : normalize(`${resolved(parent)}/${path.slice(parent.length)}`);
  }
}
