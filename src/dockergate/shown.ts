// What clients see of their containers and volumes: under the names that they gave, without what is the host's business.

import { Transform, type TransformCallback } from 'node:stream';
import { StringDecoder } from 'node:string_decoder';
import { type Names, vmLabels, withoutOwnLabels } from './names.ts';

export interface Summary {
  Id: string;
  Names: string[];
  Image: string;
  ImageID: string;
  State: string;
  Labels: Record<string, string> | null;
  Mounts?: MountPoint[] | null;
  [other: string]: unknown;
}

interface MountPoint {
  Type?: string;
  Name?: string;
  Source?: string;
  Destination?: string;
  [other: string]: unknown;
}

export interface VolumeInfo {
  Name: string;
  Labels: Record<string, string> | null;
  [other: string]: unknown;
}

const lineBytesMax = 1024 * 1024;
/** Files of ours in every container. */
const ownTargets = ['/etc/hosts', '/etc/resolv.conf'];

export function shownSummary(container: Summary, names: Names): Summary {
  return {
    ...container,
    Names: container.Names.map((it) => `/${names.shownContainer(it)}`),
    Image: container.Labels?.[vmLabels.image] ?? container.Image,
    Labels: withoutOwnLabels(container.Labels),
    HostConfig: { NetworkMode: 'sandbox' },
    NetworkSettings: { Networks: {} },
    Ports: [],
    Mounts: shownMounts(container.Mounts, names),
  };
}

function shownMounts(mounts: MountPoint[] | null | undefined, names: Names): MountPoint[] {
  return (mounts ?? [])
    .filter((it) => !ownTargets.includes(it.Destination ?? ''))
    .map((it) => (it.Type === 'volume' ? { ...it, Name: names.shownVolume(it.Name ?? ''), Source: '' } : it));
}

type Fields = Record<string, unknown>;

export function shownContainer(said: Fields, names: Names): object {
  const {
    GraphDriver: _where,
    ResolvConfPath: _resolv,
    HostnamePath: _hostname,
    HostsPath: _hosts,
    ...rest
  } = said;
  const config = (said.Config ?? {}) as Fields & { Labels?: Record<string, string> };
  const host = (said.HostConfig ?? {}) as Fields & {
    SecurityOpt?: string[] | null;
    Mounts?: { Type: string; Source?: string; Target: string }[] | null;
  };
  const state = (said.State ?? {}) as Fields & { Pid?: number };
  return {
    ...rest,
    Name: `/${names.shownContainer(String(said.Name ?? ''))}`,
    LogPath: '',
    State: { ...state, Pid: (state.Pid ?? 0) > 0 ? 1 : 0 },
    Config: {
      ...config,
      Image: config.Labels?.[vmLabels.image] ?? config.Image,
      Labels: withoutOwnLabels(config.Labels),
    },
    HostConfig: {
      ...host,
      NetworkMode: 'sandbox',
      SecurityOpt: host.SecurityOpt?.filter((it) => !it.startsWith('seccomp=')) ?? null,
      Mounts: host.Mounts?.filter((it) => !ownTargets.includes(it.Target)).map((it) =>
        it.Type === 'volume' && it.Source !== undefined
          ? { ...it, Source: names.shownVolume(it.Source), VolumeOptions: undefined }
          : it,
      ),
    },
    Mounts: shownMounts(said.Mounts as MountPoint[] | null, names),
  };
}

export function shownVolume(volume: VolumeInfo, names: Names): VolumeInfo {
  return {
    ...volume,
    Name: names.shownVolume(volume.Name),
    Mountpoint: '',
    Labels: withoutOwnLabels(volume.Labels),
  };
}

export function shownInfo(
  info: Fields,
  own: { vm: { sandboxId: string; name: string }; containers: Summary[]; images: number },
): object {
  const { ServerVersion, NCPU, MemTotal, Architecture, OSType, CgroupVersion, CgroupDriver } = info;
  const inState = (state: string) => own.containers.filter((it) => it.State === state).length;
  return {
    ...{ ServerVersion, NCPU, MemTotal, Architecture, OSType, CgroupVersion, CgroupDriver },
    ID: own.vm.sandboxId,
    Name: own.vm.name,
    Containers: own.containers.length,
    ContainersRunning: inState('running'),
    ContainersPaused: inState('paused'),
    ContainersStopped: own.containers.length - inState('running') - inState('paused'),
    Images: own.images,
    Driver: 'sandbox',
    DriverStatus: [],
    OperatingSystem: 'Glovebox sandbox',
    KernelVersion: '',
    DockerRootDir: '',
    SystemTime: new Date().toISOString(),
    IndexServerAddress: '',
    RegistryConfig: null,
    Labels: [],
    Plugins: { Volume: ['local'], Network: ['sandbox'], Authorization: null, Log: ['json-file', 'local'] },
    SecurityOptions: ['name=seccomp,profile=builtin'],
    Swarm: {
      NodeID: '',
      NodeAddr: '',
      LocalNodeState: 'inactive',
      ControlAvailable: false,
      Error: '',
      RemoteManagers: null,
    },
    Runtimes: {},
    DefaultRuntime: '',
    Warnings: null,
  };
}

/** One JSON value a line, each with the client's names. */
export function shownEvent(names: Names): Transform {
  return eachLine((said) => {
    const event = said as Fields & { Actor?: { ID?: string; Attributes?: Record<string, string> } };
    const attributes = event.Actor?.Attributes ?? {};
    const image = attributes[vmLabels.image] ?? attributes.image;
    return {
      ...event,
      from: image,
      Actor: {
        ID: event.Actor?.ID,
        Attributes: {
          ...withoutOwnLabels(attributes),
          ...(attributes.name === undefined ? {} : { name: names.shownContainer(attributes.name) }),
          ...(image === undefined ? {} : { image }),
        },
      },
    };
  });
}

export function shownStats(names: Names): Transform {
  return eachLine((said) => ({ ...said, name: `/${names.shownContainer(String(said.name ?? ''))}` }));
}

function eachLine(change: (value: Fields) => Fields): Transform {
  const decoder = new StringDecoder('utf8');
  let rest = '';
  const line = (text: string) => `${JSON.stringify(change(JSON.parse(text) as Fields))}\n`;
  return new Transform({
    transform(chunk: Buffer, _encoding: BufferEncoding, done: TransformCallback) {
      try {
        const lines = (rest + decoder.write(chunk)).split('\n');
        rest = lines.pop() ?? '';
        if (rest.length > lineBytesMax) throw new Error('a line without an end');
        done(
          null,
          lines
            .filter((it) => it.trim() !== '')
            .map(line)
            .join(''),
        );
      } catch (error) {
        done(error as Error);
      }
    },
    flush(done: TransformCallback) {
      try {
        done(null, rest.trim() === '' ? '' : line(rest));
      } catch {
        done();
      }
    },
  });
}
