// A create request of OpenSandbox as one of ours. What this build cannot do is refused here by name; nothing is read past.
import {
  idlePauseExtension,
  isolationExtension,
  renewExtension,
  runtimeExtension,
  transparentExtension,
} from '../../contract/admin.ts';
import type { CreateSandboxRequest } from '../../contract/opensandbox.ts';
import { parseLimits } from '../../contract/quantity.ts';
import { Failure } from '../../lib/failure.ts';
import type { CreateRequest } from '../../sandbox/sandbox.ts';
import type { ApiLimits } from '../handlers.ts';
import { refuseLabel } from './metadata.ts';

/** `byOwner`: the request has shown that it comes from the user whose daemon this is. */
export function createRequestOf(
  body: CreateSandboxRequest,
  limits: ApiLimits,
  byOwner = false,
): CreateRequest {
  const { image, timeout, platform, extensions = {}, metadata = {} } = body;
  const { poolRef } = extensions;
  const ofSnapshot = body.snapshotId != null;
  if (image !== undefined && ofSnapshot)
    throw new Failure('invalid', 'image, snapshotId: give one of them, not both');
  if (poolRef !== undefined && ofSnapshot)
    throw new Failure('invalid', 'extensions.poolRef, snapshotId: give one of them, not both');
  if (image === undefined && !ofSnapshot && body.glovebox?.agent === undefined && poolRef === undefined)
    throw new Failure('invalid', 'image: is missing; give it, a snapshotId, or a pool');
  for (const [key, value] of Object.entries(metadata)) refuseLabel(key, value);
  refuseExtensions(extensions);
  const most = limits.sandboxTimeoutSecondsMax;
  if (most !== undefined && (timeout ?? 0) > most)
    throw new Failure('invalid', `timeout: ${timeout} s is more than the ${most} s that this server allows`);
  // Without it there is nothing that would allow the hosts that credentials are bound to. With it a vault can always be made.
  if (body.credentialProxy?.enabled === true && body.networkPolicy == null)
    throw new Failure('invalid', 'credentialProxy.enabled: needs a networkPolicy, too');
  const runtime = extensions[runtimeExtension];
  const env = Object.entries(body.env ?? {}).filter((it): it is [string, string] => it[1] !== null);
  for (const [name, value] of env)
    if (value.includes('\0')) throw new Failure('invalid', `env.${name}: must not contain NUL`);
  return {
    image: image?.uri ?? '',
    ...(image?.auth ? { imageCredentials: image.auth } : {}),
    ...(platform ? { platform } : {}),
    ...(runtime === undefined ? {} : { runtime }),
    entrypoint: body.entrypoint ?? (ofSnapshot ? ['tail', '-f', '/dev/null'] : []),
    env: Object.fromEntries(env),
    metadata,
    extensions,
    ...(body.secureAccess === true ? { secureAccess: true } : {}),
    limits: limitsOf(body),
    ...volumesOf(body.volumes ?? []),
    ...timesOf(extensions),
    ...(timeout == null ? {} : { timeoutMs: timeout * 1000 }),
    ...(body.networkPolicy == null ? {} : { networkPolicy: body.networkPolicy }),
    ...(byOwner ? { byOwner } : {}),
    ...ownParts(body.glovebox ?? {}),
  };
}

/** What OpenSandbox has no field for. */
function ownParts(own: Partial<NonNullable<CreateSandboxRequest['glovebox']>>): Partial<CreateRequest> {
  const {
    rules,
    keep,
    autoStopAfterSeconds,
    pull,
    workspaces = [],
    ports,
    files,
    setup,
    user,
    cwd,
    bell,
    worker,
  } = own;
  const autoStopAfterMs = autoStopAfterSeconds == null ? autoStopAfterSeconds : autoStopAfterSeconds * 1000;
  if (autoStopAfterSeconds != null && keep !== true)
    throw new Failure(
      'invalid',
      'glovebox.autoStopAfterSeconds: only what is kept can stop and start; set keep, too',
    );
  return {
    ...(rules === undefined ? {} : { rules }),
    ...(bell === undefined ? {} : { bell }),
    ...(worker === undefined ? {} : { worker }),
    ...(keep === undefined ? {} : { keep }),
    ...(autoStopAfterMs === undefined ? {} : { autoStopAfterMs }),
    ...(pull === undefined ? {} : { pull }),
    ...(workspaces.length === 0 ? {} : { workspaces }),
    ...(ports === undefined ? {} : { published: ports }),
    ...(files === undefined ? {} : { files }),
    ...(setup === undefined ? {} : { setup }),
    ...(user === undefined ? {} : { user }),
    ...(cwd === undefined ? {} : { cwd }),
  };
}

function refuseExtensions(extensions: Record<string, string>): void {
  const transparent = extensions[transparentExtension];
  if (transparent !== undefined && transparent !== 'true' && transparent !== 'false')
    throw new Failure(
      'invalid',
      `extensions[${JSON.stringify(transparentExtension)}]: must be true or false`,
    );
  const isolation = extensions[isolationExtension];
  if (isolation !== undefined && isolation !== 'enable' && isolation !== 'disable')
    throw new Failure(
      'invalid',
      `extensions[${JSON.stringify(isolationExtension)}]: must be enable or disable`,
    );
  for (const key of Object.keys(extensions)) {
    if (key.startsWith('bootstrap.') && key !== isolationExtension)
      throw new Failure(
        'unsupported',
        `extensions[${JSON.stringify(key)}]: is not supported by this version`,
      );
    if (key.startsWith('glovebox.') && !ownExtensions.includes(key))
      throw new Failure(
        'invalid',
        `extensions[${JSON.stringify(key)}]: unknown; there are ${ownExtensions.join(', ')}`,
      );
  }
}

const ownExtensions: string[] = [runtimeExtension, transparentExtension, idlePauseExtension];

/** Milliseconds of an extension in seconds; null for `0`, where that may be said. */
function secondsOf(
  extensions: Record<string, string>,
  key: string,
  { least, most, never = false }: { least: number; most: number; never?: boolean },
): number | null | undefined {
  const text = extensions[key];
  if (text === undefined) return undefined;
  const seconds = /^\d{1,9}$/.test(text) ? Number(text) : Number.NaN;
  if (never && seconds === 0) return null;
  if (seconds >= least && seconds <= most) return seconds * 1000;
  throw new Failure(
    'invalid',
    `extensions[${JSON.stringify(key)}]: ${JSON.stringify(text.slice(0, 40))} is not a whole number of seconds from ${least} to ${most}${never ? ', or 0 for never' : ''}`,
  );
}

function timesOf(
  extensions: Record<string, string>,
): Pick<CreateRequest, 'autoPauseAfterMs' | 'renewOnAccessMs'> {
  const autoPauseAfterMs = secondsOf(extensions, idlePauseExtension, {
    ...{ least: 1, most: 31_536_000, never: true },
  });
  const renewOnAccessMs = secondsOf(extensions, renewExtension, { least: 300, most: 86_400 });
  return {
    ...(autoPauseAfterMs === undefined ? {} : { autoPauseAfterMs }),
    ...(renewOnAccessMs == null ? {} : { renewOnAccessMs }),
  };
}

/** What is asked for at least is had by what it may use at most, as nothing is shared out here: it only has to be no more than that. */
function limitsOf({ resourceLimits, resourceRequests }: CreateSandboxRequest): CreateRequest['limits'] {
  const limits = parseLimits(resourceLimits ?? {});
  const least = parseLimits(resourceRequests ?? {}, 'resourceRequests');
  for (const name of Object.keys(least) as (keyof typeof least)[]) {
    const [asked, most] = [least[name], limits[name]];
    if (most === undefined || most === 'all' || asked === undefined) continue;
    if (asked === 'all' || asked > most)
      throw new Failure(
        'invalid',
        `resourceRequests: asks for more ${resourceNames[name]} than resourceLimits allows`,
      );
  }
  return limits;
}

const resourceNames = {
  ...{ cpu: 'cpu', memoryBytes: 'memory', pids: 'pids', diskBytes: 'disk', gpu: 'gpu' },
} as const;

/** Host folders, named volumes and buckets, by the names that the request gives them. */
function volumesOf(
  volumes: NonNullable<CreateSandboxRequest['volumes']>,
): Pick<CreateRequest, 'mounts' | 'volumes' | 'buckets'> {
  const names = new Set<string>();
  const mounts: CreateRequest['mounts'] = [];
  const named: NonNullable<CreateRequest['volumes']> = [];
  const buckets: NonNullable<CreateRequest['buckets']> = [];
  for (const { name, host, pvc, ossfs, mountPath: guestPath, readOnly, subPath } of volumes) {
    if (names.has(name)) throw new Failure('invalid', `volumes: the name ${name} is there twice`);
    names.add(name);
    if ([host, pvc, ossfs].filter((it) => it !== undefined).length !== 1)
      throw new Failure('invalid', `volumes.${name}: give exactly one of host, pvc and ossfs`);
    const place = { guestPath, readOnly, ...(subPath === undefined ? {} : { subPath }) };
    if (ossfs !== undefined) buckets.push({ name, ...ossfs, ...place });
    if (host !== undefined) mounts.push({ hostPath: host.path, ...place });
    if (pvc !== undefined)
      named.push({
        ...{ name: pvc.claimName, ...place, create: pvc.createIfNotExists },
        removeWhenUnused: pvc.deleteOnSandboxTermination,
      });
  }
  return {
    mounts,
    ...(named.length === 0 ? {} : { volumes: named }),
    ...(buckets.length === 0 ? {} : { buckets }),
  };
}
