// Finds an image in the engine or pulls it, and refuses what cannot run here.
import { hiddenVariables } from '../../image/docker-archive.ts';
import { Failure } from '../../lib/failure.ts';
import type { ImageCredentials, ImageDefaults } from '../runtime.ts';
import { type Engine, plain } from './engine.ts';

export interface ImageWanted {
  image: string;
  pull?: 'always' | 'missing' | 'never';
  imageCredentials?: ImageCredentials;
  platform?: { os: string; arch: string };
  onProgress?: (line: string) => void;
}

export interface FoundImage {
  /** `sha256:…`: stays the same image when a tag moves on. */
  id: string;
  defaults: ImageDefaults;
}

export interface Reference {
  /** Everything before the tag or digest. */
  name: string;
  /** `latest` when the text names none. */
  tag: string;
  /** Host name and port of the registry. */
  registry: string;
}

/** What of `GET /images/{name}/json` we use. */
export interface ImageInspect {
  Id: string;
  Os: string;
  Architecture: string;
  Size: number;
  /** RFC 3339. */
  Created: string;
  RepoTags?: string[] | null;
  RootFS: { Layers?: string[] | null };
  Config?: {
    Env?: string[] | null;
    WorkingDir?: string;
    User?: string;
    Entrypoint?: string[] | null;
    Cmd?: string[] | null;
    Labels?: Record<string, string> | null;
  } | null;
}

const progressEveryMs = 500;

/** The image, pulled when `pull` says so: by default only when it is absent or made for another platform than the one asked for. */
export async function ensureImage(
  engine: Engine,
  wanted: ImageWanted,
  engineArch: string,
  signal: AbortSignal,
): Promise<FoundImage> {
  const reference = parseReference(wanted.image);
  const platform = {
    os: wanted.platform?.os ?? 'linux',
    arch: canonicalArch(wanted.platform?.arch ?? engineArch),
  };
  if (platform.os !== 'linux' || platform.arch !== engineArch) {
    throw new Failure(
      'unsupported',
      `image ${wanted.image}: asked for ${platform.os}/${platform.arch}, but this Docker engine runs linux/${engineArch}`,
      { hint: 'Leave the platform out, or use an engine of that platform.' },
    );
  }
  const fits = (it: ImageInspect) =>
    it.Os === platform.os && canonicalArch(it.Architecture) === platform.arch;
  let found = await inspectImage(engine, wanted.image, signal);
  // An image of another architecture under the same name may be there on purpose: it is replaced only when a platform is asked for.
  const misfit = found !== undefined && wanted.platform !== undefined && !fits(found);
  if (found === undefined && wanted.pull === 'never') {
    throw new Failure(
      'not-found',
      `image ${wanted.image}: this Docker engine has none of this name, and it is not to be pulled`,
      { hint: 'Load it first, with `glovebox template load` or `docker load`, or let it be pulled.' },
    );
  }
  if (found === undefined || wanted.pull === 'always' || (misfit && wanted.pull !== 'never')) {
    await pull(engine, reference, platform, wanted, signal);
    found = await inspectImage(engine, wanted.image, signal);
    if (found === undefined) throw new Failure('not-found', `image ${wanted.image}: pulled, and gone again`);
  }
  if (!fits(found)) {
    throw new Failure(
      'unsupported',
      `image ${wanted.image} is made for ${plain(`${found.Os}/${found.Architecture}`)}; this Docker engine runs linux/${engineArch}`,
      { hint: 'Use an image for this architecture, or name the platform so that the right one is pulled.' },
    );
  }
  return { id: found.Id, defaults: defaultsOf(found) };
}

export function inspectImage(
  engine: Engine,
  image: string,
  signal: AbortSignal,
): Promise<ImageInspect | undefined> {
  const path = `/images/${encodeURIComponent(image)}/json`;
  return engine.call('GET', path, { doing: `look for image ${image}`, accept: [404] }, signal);
}

function defaultsOf({ Config: config }: ImageInspect): ImageDefaults {
  const pairs = (config?.Env ?? []).map((it): [string, string] => {
    const at = it.indexOf('=');
    return at < 0 ? [it, ''] : [it.slice(0, at), it.slice(at + 1)];
  });
  const hidden = hiddenVariables(config?.Labels);
  return {
    env: Object.fromEntries(pairs.filter(([name]) => !hidden.includes(name))),
    ...(config?.WorkingDir ? { cwd: config.WorkingDir } : {}),
    ...(config?.User ? { user: config.User } : {}),
    entrypoint: [...(config?.Entrypoint ?? []), ...(config?.Cmd ?? [])],
  };
}

/** Docker's and Go's word for an architecture that others call by other names. */
export function canonicalArch(arch: string): string {
  const names: Record<string, string> = { x86_64: 'amd64', x64: 'amd64', aarch64: 'arm64', armv8: 'arm64' };
  return names[arch.toLowerCase()] ?? arch.toLowerCase();
}

// host[:port]/path:tag@digest, as the distribution project spells it, with bounds.
const referencePattern =
  /^(?<name>(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252})(?::\d{1,5})?\/)?[a-z0-9]+(?:(?:[./]|__?|-+)[a-z0-9]+)*)(?::(?<tag>\w[\w.-]{0,127}))?(?:@(?<digest>[a-z0-9+._-]{1,32}:[0-9a-f]{32,128}))?$/;

export function parseReference(image: string): Reference {
  const match = image.length <= 512 ? referencePattern.exec(image)?.groups : undefined;
  if (match?.name === undefined) {
    throw new Failure('invalid', `"${plain(image).slice(0, 200)}" is not the name of an image`, {
      hint: 'Write it as name, name:tag or registry.example/name:tag, in lower case.',
    });
  }
  const first = match.name.split('/')[0] as string;
  const hasRegistry = match.name.includes('/') && (/[.:A-Z]/.test(first) || first === 'localhost');
  return {
    name: match.name,
    tag: match.digest ?? match.tag ?? 'latest',
    registry: hasRegistry ? first : 'docker.io',
  };
}

async function pull(
  engine: Engine,
  reference: Reference,
  platform: { os: string; arch: string },
  wanted: ImageWanted,
  signal: AbortSignal,
): Promise<void> {
  const call = {
    doing: `pull image ${wanted.image}`,
    // Without a tag the engine would pull every tag there is.
    query: { fromImage: reference.name, tag: reference.tag, platform: `${platform.os}/${platform.arch}` },
    headers: authHeader(reference, wanted.imageCredentials),
  };
  const tell = progressLines(wanted.onProgress);
  try {
    for await (const line of engine.lines('POST', '/images/create', call, {}, signal)) {
      const { error, errorDetail, ...progress } = line as PullLine;
      const message = errorDetail?.message ?? error;
      if (message !== undefined) throw new Failure('internal', `${call.doing}: ${plain(message)}`);
      tell(progress);
    }
  } catch (thrown) {
    throw pullFailure(Failure.from(thrown, call.doing), wanted);
  }
}

function authHeader(reference: Reference, credentials: ImageCredentials | undefined): Record<string, string> {
  if (credentials === undefined) return {};
  const auth = { ...credentials, serveraddress: reference.registry };
  return { 'x-registry-auth': Buffer.from(JSON.stringify(auth)).toString('base64url') };
}

// What the engine says when a pull fails is prose of its own or the registry's. The first match tells the code.
const pullTroubles: [
  pattern: RegExp,
  code: 'full' | 'unsupported' | 'permission' | 'not-found' | 'unavailable',
][] = [
  [/no space left|quota exceeded/i, 'full'],
  [/no matching manifest|does not match the specified platform/i, 'unsupported'],
  // Registries say "denied" for a repository that is not there, too: without credentials it counts as not found.
  [
    /repository does not exist|pull access denied|(manifest|name|blob) unknown|unknown blob|not found/i,
    'not-found',
  ],
  [/unauthorized|authentication required|no basic auth|incorrect username|denied|forbidden/i, 'permission'],
  [
    /connection refused|no such host|timeout|timed out|unreachable|EOF|reset by peer|lookup |dial tcp|TLS/i,
    'unavailable',
  ],
];

function pullFailure(failure: Failure, wanted: ImageWanted): Failure {
  if (failure.code === 'aborted' || failure.code === 'unavailable' || failure.code === 'protocol')
    return failure;
  const code = pullTroubles.find(([pattern]) => pattern.test(failure.message))?.[1] ?? failure.code;
  const hints: Record<string, string> = {
    'not-found': wanted.imageCredentials
      ? 'Check the name and tag, and that the account may read it.'
      : 'Check the name and tag; a private image needs credentials.',
    permission: 'Check the user name and password for this registry.',
    unavailable: 'Check that the Docker engine reaches the registry.',
    full: 'Make room where Docker keeps its data: docker system df.',
    unsupported: 'Use an image that is made for this architecture.',
  };
  const hint = hints[code];
  return new Failure(code, failure.message, {
    ...{ cause: failure, details: { kind: 'image-pull' } },
    ...(hint === undefined ? {} : { hint }),
  });
}

interface PullLine {
  status?: string;
  id?: string;
  error?: string;
  errorDetail?: { message?: string };
  progressDetail?: { current?: number; total?: number };
}

/** Turns the engine's chatter, many lines a second and layer, into a few lines for a person. */
function progressLines(onProgress: ((line: string) => void) | undefined): (line: PullLine) => void {
  const layers = new Map<string, { current: number; total: number }>();
  let toldAt = Number.NEGATIVE_INFINITY;
  return ({ status = '', id, progressDetail }) => {
    if (onProgress === undefined) return;
    if (progressDetail?.total === undefined || id === undefined) {
      if (/^(Pulling from|Digest|Status|Pull complete)/.test(status)) {
        onProgress(plain(id === undefined ? status : `${id}: ${status}`));
      }
      return;
    }
    layers.set(`${status} ${id}`, { current: progressDetail.current ?? 0, total: progressDetail.total });
    if (performance.now() - toldAt < progressEveryMs) return;
    toldAt = performance.now();
    const of = [...layers].filter(([key]) => key.startsWith(`${status} `)).map((it) => it[1]);
    const mebibytes = (part: 'current' | 'total') =>
      (of.reduce((sum, it) => sum + it[part], 0) / 2 ** 20).toFixed(1);
    onProgress(plain(`${status} ${mebibytes('current')} of ${mebibytes('total')} MiB`));
  };
}
