// How the things of a sandbox are called on the host's engine, and back. Every name that a client says is spelt anew here, so that none can name what
// belongs to others.
import { Failure } from '../lib/failure.ts';

export const vmLabels = {
  /** The sandbox that a container or volume belongs to. */
  vm: 'glovebox.vm',
  /** The daemon's home, so that what a dead daemon left is found by the next. */
  home: 'glovebox.vm-home',
  /** What the client called the image. */
  image: 'glovebox.vm-image',
} as const;

/** Labels that mean something to us: clients neither set nor see them. */
export const isOwnLabel = (key: string) => key.startsWith('glovebox.');

export function withoutOwnLabels<T>(labels: Record<string, T> | null | undefined): Record<string, T> {
  return Object.fromEntries(Object.entries(labels ?? {}).filter(([key]) => !isOwnLabel(key)));
}

/** 64 bits of a sandbox's id. */
export function shortIdOf(sandboxId: string): string {
  const hex = sandboxId.replaceAll('-', '').toLowerCase();
  if (!/^[0-9a-f]{16,}$/.test(hex)) throw new Failure('internal', `sandbox ${sandboxId} has no usual id`);
  return hex.slice(0, 16);
}

const objectName = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$/;

/** Names of one sandbox on the engine that all share. */
export class Names {
  readonly #short: string;

  constructor(sandboxId: string) {
    this.#short = shortIdOf(sandboxId);
  }

  container(name: string): string {
    return `glovebox-vm-${this.#short}-${checkedName('container', name.replace(/^\//, ''))}`;
  }

  /** As the client knows it; names that the engine has chosen stay. */
  shownContainer(hostName: string): string {
    const bare = hostName.replace(/^\//, '');
    const prefix = `glovebox-vm-${this.#short}-`;
    return bare.startsWith(prefix) ? bare.slice(prefix.length) : bare;
  }

  volume(name: string): string {
    return `glovebox-vm-${this.#short}-${checkedName('volume', name)}`;
  }

  shownVolume(hostName: string): string {
    return this.shownContainer(hostName);
  }

  get imagePrefix(): string {
    return `glovebox-vm/${this.#short}/`;
  }

  /** Keeps an image of no name from being taken for nobody's. */
  anchor(imageId: string): string {
    return `${this.imagePrefix}i:${imageId.replace(/^sha256:/, '')}`;
  }

  /** Of an image that is being made. */
  temporary(token: string): { repo: string; tag: string; reference: string } {
    const repo = `${this.imagePrefix}new`;
    return { repo, tag: token, reference: `${repo}:${token}` };
  }

  /** The name on the engine of what a client calls `foo`, `foo/bar:tag` or `registry.example:5000/foo`. Throws for what is no name. */
  image(reference: string): { repo: string; tag: string; reference: string } {
    const { domain, path, tag } = parseImage(reference);
    const place = domain === undefined ? 'd' : `r/${domain.replace(':', '__')}`;
    const repo = `${this.imagePrefix}${place}/${path}`;
    if (repo.length > 240) throw new Failure('invalid', `the image name ${shown(reference)} is too long`);
    return { repo, tag, reference: `${repo}:${tag}` };
  }

  /** What the client calls it; undefined for names that are not of this sandbox, or that no client gave. */
  shownImage(hostReference: string): string | undefined {
    if (!hostReference.startsWith(this.imagePrefix)) return undefined;
    const rest = hostReference.slice(this.imagePrefix.length);
    if (rest.startsWith('d/')) return rest.slice(2);
    if (!rest.startsWith('r/')) return undefined;
    const [domain = '', ...path] = rest.slice(2).split('/');
    return [domain.replace('__', ':'), ...path].join('/');
  }
}

function checkedName(kind: string, name: string): string {
  if (objectName.test(name)) return name;
  throw new Failure('invalid', `${shown(name)} is no name of a ${kind}`, {
    hint: 'Use at most 128 letters, digits, "_", "." and "-", the first a letter or a digit.',
  });
}

const component = '[a-z0-9]+(?:(?:\\.|_|__|-+)[a-z0-9]+)*';
const imagePattern = new RegExp(
  `^(?:(?<domain>(?:localhost|[a-z0-9-]+(?:\\.[a-z0-9-]+)+|[a-z0-9-]+(?=:\\d))(?::\\d{1,5})?)/)?` +
    `(?<path>${component}(?:/${component})*)(?::(?<tag>\\w[\\w.-]{0,127}))?$`,
);

function parseImage(text: string): { domain: string | undefined; path: string; tag: string } {
  const match = text.length > 400 ? null : imagePattern.exec(text);
  const groups = match?.groups;
  if (groups?.path === undefined)
    throw new Failure('invalid', `${shown(text)} is no name of an image`, {
      hint: 'Write it as [registry/]name[:tag], in small letters. Digests are not names here.',
    });
  const hub = groups.domain === 'docker.io' || groups.domain === 'index.docker.io';
  const path = hub ? groups.path.replace(/^library\/(?=[^/]+$)/, '') : groups.path;
  const domain = hub ? undefined : groups.domain;
  if (domain !== undefined && !/^[a-z0-9]+(?:(?:\.|-+)[a-z0-9]+)*(?::\d+)?$/.test(domain))
    throw new Failure('invalid', `${shown(text)}: its registry has an unusual name`);
  // Docker's own long form of the same name.
  const short = domain === undefined ? path.replace(/^library\/(?=[^/]+$)/, '') : path;
  return { domain, path: short, tag: groups.tag ?? 'latest' };
}

const shown = (text: string) => JSON.stringify(text.slice(0, 200));
