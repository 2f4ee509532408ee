// Writes tar archives for tests, header by header, so that hostile and broken ones can be made too.
import { createHash } from 'node:crypto';

export interface RawEntry {
  name: string | Buffer;
  /** The type flag; '0' (a file) when absent. */
  flag?: string;
  mode?: number;
  uid?: number;
  gid?: number;
  mtime?: number;
  /** Content; `size` overrides its length in the header. */
  body?: string | Buffer;
  size?: number;
  target?: string | Buffer;
  /** Changes the finished header before its checksum is set. */
  edit?: (header: Buffer) => void;
  /** Leaves the checksum wrong. */
  badChecksum?: boolean;
}

export const file = (name: string, body: string | Buffer = '', more: Partial<RawEntry> = {}): RawEntry => ({
  name,
  body,
  ...more,
});
export const folder = (name: string, more: Partial<RawEntry> = {}): RawEntry => ({
  name: `${name}/`,
  flag: '5',
  mode: 0o755,
  ...more,
});
export const symlink = (name: string, target: string, more: Partial<RawEntry> = {}): RawEntry => ({
  name,
  flag: '2',
  target,
  mode: 0o777,
  ...more,
});
export const hardLink = (name: string, target: string): RawEntry => ({ name, flag: '1', target });
export const device = (name: string, flag: '3' | '4' = '3'): RawEntry => ({ name, flag });

/** A pax header with these records. */
export function pax(records: Record<string, string>, flag: 'x' | 'g' = 'x'): RawEntry {
  const lines = Object.entries(records).map(([key, value]) => {
    const rest = ` ${key}=${value}\n`;
    let length = Buffer.byteLength(rest) + 1;
    while (String(length).length + Buffer.byteLength(rest) !== length) length++;
    return `${length}${rest}`;
  });
  return { name: 'PaxHeader', flag, body: lines.join('') };
}

export const longName = (name: string, flag: 'L' | 'K' = 'L'): RawEntry => ({
  name: '././@LongLink',
  flag,
  body: `${name}\0`,
});

export function rawEntry(entry: RawEntry): Buffer {
  const body = Buffer.from(entry.body ?? '');
  const header = Buffer.alloc(512);
  const name = Buffer.from(entry.name);
  name.copy(header, 0, 0, 100);
  const octal = (value: number, at: number, width: number) =>
    header.write(`${value.toString(8).padStart(width - 1, '0')}\0`, at, 'latin1');
  octal(entry.mode ?? 0o644, 100, 8);
  octal(entry.uid ?? 0, 108, 8);
  octal(entry.gid ?? 0, 116, 8);
  octal(entry.size ?? body.length, 124, 12);
  octal(entry.mtime ?? 1_700_000_000, 136, 12);
  header.write(entry.flag ?? '0', 156, 'latin1');
  Buffer.from(entry.target ?? '').copy(header, 157, 0, 100);
  header.write('ustar\x0000', 257, 'latin1');
  entry.edit?.(header);
  header.fill(0x20, 148, 156);
  const sum = header.reduce((total, it) => total + it, 0);
  header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  if (entry.badChecksum) header[0] = (header[0] ?? 0) ^ 1;
  return Buffer.concat([header, body, Buffer.alloc((512 - (body.length % 512)) % 512)]);
}

export function tar(entries: RawEntry[], { end = true }: { end?: boolean } = {}): Buffer {
  return Buffer.concat([...entries.map(rawEntry), Buffer.alloc(end ? 1024 : 0)]);
}

export const sha256 = (bytes: Buffer | string) => createHash('sha256').update(bytes).digest('hex');

export interface FixtureImage {
  layers: Buffer[];
  /** As the layers are stored, when that differs from the plain tar. */
  stored?: Buffer[];
  config?: object;
  arch?: string;
  os?: string;
  tag?: string | null;
  /** Instead of the true digests. */
  diffIds?: string[];
}

const configOf = (image: FixtureImage) =>
  JSON.stringify({
    architecture: image.arch ?? (process.arch === 'x64' ? 'amd64' : process.arch),
    os: image.os ?? 'linux',
    config: image.config ?? {},
    rootfs: {
      type: 'layers',
      diff_ids: image.diffIds ?? image.layers.map((it) => `sha256:${sha256(it)}`),
    },
  });

/** What `docker save` writes, in the form of old engines: manifest.json comes last. */
export function dockerArchive(image: FixtureImage, more: RawEntry[] = []): Buffer {
  const config = configOf(image);
  const stored = image.stored ?? image.layers;
  const names = stored.map((it, index) => `${sha256(`${index}${sha256(it)}`)}/layer.tar`);
  return tar([
    ...stored.flatMap((it, index) => {
      const name = names[index] ?? '';
      return [folder(name.replace('/layer.tar', '')), file(name, it)];
    }),
    file(`${sha256(config)}.json`, config),
    ...more,
    file(
      'manifest.json',
      JSON.stringify([
        {
          Config: `${sha256(config)}.json`,
          RepoTags: image.tag === null ? null : [image.tag ?? 'fixture:latest'],
          Layers: names,
        },
      ]),
    ),
  ]);
}

const blob = (bytes: Buffer | string) => file(`blobs/sha256/${sha256(bytes)}`, Buffer.from(bytes));

/** An OCI layout; with several images the index names each one's platform. */
export function ociArchive(images: FixtureImage[], edit?: (entries: RawEntry[]) => RawEntry[]): Buffer {
  const parts: RawEntry[] = [];
  const manifests = images.map((image) => {
    const config = configOf(image);
    const stored = image.stored ?? image.layers;
    const manifest = JSON.stringify({
      schemaVersion: 2,
      config: { mediaType: 'application/vnd.oci.image.config.v1+json', digest: `sha256:${sha256(config)}` },
      layers: stored.map((it) => ({
        mediaType: 'application/vnd.oci.image.layer.v1.tar+gzip',
        digest: `sha256:${sha256(it)}`,
        size: it.length,
      })),
    });
    parts.push(blob(config), blob(manifest), ...stored.map(blob));
    return {
      mediaType: 'application/vnd.oci.image.manifest.v1+json',
      digest: `sha256:${sha256(manifest)}`,
      size: manifest.length,
      ...(image.arch === undefined ? {} : { platform: { os: 'linux', architecture: image.arch } }),
      ...(image.tag ? { annotations: { 'org.opencontainers.image.ref.name': image.tag } } : {}),
    };
  });
  const index = JSON.stringify({ schemaVersion: 2, manifests });
  const all = [
    folder('blobs'),
    folder('blobs/sha256'),
    ...parts,
    file('oci-layout', '{"imageLayoutVersion":"1.0.0"}'),
    file('index.json', index),
  ];
  return tar(edit ? edit(all) : all);
}

/** In pieces of a size that fits nothing. */
export async function* pieces(bytes: Buffer, size = 1_013): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

/** A program's head for this machine number, enough for its architecture to be told. */
export function elf(machine: number): Buffer {
  const head = Buffer.alloc(64);
  head.write('\x7fELF\x02\x01\x01', 'latin1');
  head.writeUInt16LE(machine, 18);
  return head;
}
