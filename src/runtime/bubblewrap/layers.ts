// The read-only folders of our own that lie under every machine's writable layer: `base`, on top of any image, and `host`, which stands for one.
import { createHash, randomUUID } from 'node:crypto';
import { existsSync, lstatSync, readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs';
import * as fs from 'node:fs/promises';
import { join } from 'node:path';
import type { ImageDefaults } from '../runtime.ts';

export const guestHostName = 'glovebox';

/** An entry of a layer. Ids are the guest's. */
interface Entry {
  path: string;
  mode: number;
  uid?: number;
  /** One character for each byte. */
  text?: string;
  link?: string;
}

const folder = (path: string, mode = 0o755, uid = 0): Entry => ({ path, mode, uid });
const file = (path: string, text = ''): Entry => ({ path, mode: 0o644, text });

/**
 * Real folders at the places where we mount things, so that links of a hostile image cannot lead our mounts elsewhere; and the files that every
 * container engine puts over those of the image.
 */
const baseEntries: Entry[] = [
  folder('proc'),
  folder('dev'),
  folder('sys'),
  folder('sys/fs'),
  folder('sys/fs/cgroup'),
  folder('.glovebox'),
  folder('.glovebox/agent'),
  folder('.glovebox/run'),
  folder('etc'),
  file('etc/hostname', `${guestHostName}\n`),
  file('etc/hosts', `127.0.0.1\tlocalhost ${guestHostName}\n::1\tlocalhost ip6-localhost ip6-loopback\n`),
  // The agent answers there.
  file('etc/resolv.conf', 'nameserver 127.0.0.1\n'),
];

/**
 * What of the host's /etc programs below /usr need to run: where their parts lie, and which certificates are good. All of it is public on every host.
 */
const sharedEtc =
  /^(alternatives|fonts|java[^/]*|ld\.so\.cache|perl|pki\/tls\/certs|python3[^/]*|ssl\/certs)$/;
/** Small files that hardly ever change are copied, which starts faster than one mount for each. */
const copiedEtc = ['localtime', 'mime.types', 'os-release', 'protocols', 'services', 'ssl/openssl.cnf'];

const systemFolders = ['/bin', '/sbin', '/lib', '/lib32', '/lib64', '/libx32'];

export interface HostLayer {
  path: string;
  /** Paths of the host that are mounted read-only at the same place. */
  shared: string[];
  image: ImageDefaults;
}

export class Layers {
  readonly #folder: string;
  readonly #idBase: number | undefined;
  #base: Promise<string> | undefined;
  #host: Promise<HostLayer> | undefined;

  /** `idBase`: the host id of the guest's root; absent when the daemon's own user is the guest's root. */
  constructor(options: { folder: string; idBase: number | undefined }) {
    this.#folder = options.folder;
    this.#idBase = options.idBase;
  }

  base(): Promise<string> {
    this.#base ??= this.#made('base', baseEntries).catch((thrown) => {
      this.#base = undefined;
      throw thrown;
    });
    return this.#base;
  }

  host(): Promise<HostLayer> {
    this.#host ??= this.#hostLayer().catch((thrown) => {
      this.#host = undefined;
      throw thrown;
    });
    return this.#host;
  }

  async #hostLayer(): Promise<HostLayer> {
    const links = systemFolders.filter((path) =>
      lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink(),
    );
    const bound = systemFolders.filter((path) => !links.includes(path) && existsSync(path));
    const etc = [...readdirSync('/etc'), 'pki/tls/certs', 'ssl/certs']
      .filter((name) => sharedEtc.test(name))
      .map((name) => `/etc/${name}`)
      .filter((path) => existsSync(path));
    const copies = copiedEtc.filter((name) => existsSync(`/etc/${name}`));
    const entries = [
      ...['usr', ...bound.map((it) => it.slice(1))].map((path) => folder(path)),
      ...links.map((path): Entry => ({ path: path.slice(1), mode: 0, link: readlinkSync(path) })),
      ...['etc', 'etc/pki', 'etc/pki/tls', 'etc/ssl', 'home', 'mnt', 'opt', 'run', 'srv', 'var'].map((path) =>
        folder(path),
      ),
      ...['cache', 'lib', 'log', 'spool'].map((name) => folder(`var/${name}`)),
      ...['tmp', 'var/tmp', 'run/lock'].map((path) => folder(path, 0o1777)),
      folder('root', 0o700),
      folder('home/user', 0o750, 1000),
      ...etc.map((path) => (statSync(path).isDirectory() ? folder(path.slice(1)) : file(path.slice(1)))),
      ...copies.map((name) => file(`etc/${name}`, readFileSync(`/etc/${name}`, 'latin1'))),
      file(
        'etc/passwd',
        'root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1000:user:/home/user:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n',
      ),
      file('etc/group', 'root:x:0:\ntty:x:5:\nuser:x:1000:\nnogroup:x:65534:\n'),
      file(
        'etc/nsswitch.conf',
        'passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n',
      ),
      file('etc/profile', 'PS1="\\\\u@\\\\h:\\\\w\\\\$ "\n'),
      file('etc/shells', '/bin/sh\n/bin/bash\n'),
    ];
    return {
      path: await this.#made('host', entries),
      shared: ['/usr', ...bound, ...etc],
      image: {
        env: {
          // What is installed for all users goes there, because /usr is the host's.
          PATH: '/opt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
          npm_config_prefix: '/opt',
          LANG: 'C.UTF-8',
        },
        entrypoint: [],
      },
    };
  }

  /** A layer never changes once it is there, because machines use it: other entries make another folder. */
  async #made(name: string, entries: Entry[]): Promise<string> {
    const key = JSON.stringify([this.#idBase, entries]);
    const path = join(this.#folder, `${name}-${createHash('sha256').update(key).digest('hex').slice(0, 12)}`);
    if (existsSync(path)) return path;
    await fs.mkdir(this.#folder, { recursive: true, mode: 0o700 });
    const work = join(this.#folder, `new-${randomUUID()}`);
    try {
      await fs.mkdir(work);
      for (const entry of [folder('', 0o755), ...entries]) await this.#write(work, entry);
      await fs.rename(work, path).catch((thrown) => {
        // Another daemon of the same home may have been faster.
        if (!existsSync(path)) throw thrown;
      });
    } finally {
      await fs.rm(work, { recursive: true, force: true });
    }
    return path;
  }

  async #write(root: string, entry: Entry): Promise<void> {
    const path = join(root, entry.path);
    if (entry.link !== undefined) await fs.symlink(entry.link, path);
    else if (entry.text !== undefined) await fs.writeFile(path, entry.text, 'latin1');
    else await fs.mkdir(path, { recursive: true });
    const id = (entry.uid ?? 0) + (this.#idBase ?? 0);
    if (this.#idBase !== undefined) await fs.lchown(path, id, id);
    if (entry.link === undefined) await fs.chmod(path, entry.mode);
  }
}
