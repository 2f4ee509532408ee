// Writes an image as `docker save` does: Docker takes it, and so does our own import. The parts are files of which the digests are known.
import { createHash } from 'node:crypto';
import type { ImageDefaults } from '../runtime/runtime.ts';

export interface ArchivedImage {
  /** `name` or `name:tag`. */
  name: string;
  arch: string;
  defaults: ImageDefaults;
  labels?: Record<string, string>;
  /** The lowest first; plain tars. */
  layers: ArchivedLayer[];
}

export interface ArchivedLayer {
  sizeBytes: number;
  /** `sha256:…` of its bytes. */
  diffId: string;
  open(): AsyncIterable<Uint8Array>;
}

/** Names of variables in an image's settings that are not meant for commands, as JSON: what the agent was started with in the sandbox it was made of. */
export const hiddenEnvLabel = 'glovebox.template.hidden-env';

export function hiddenVariables(labels: Record<string, string> | null | undefined): unknown[] {
  try {
    const names = JSON.parse(labels?.[hiddenEnvLabel] ?? '[]');
    return Array.isArray(names) ? names : [];
  } catch {
    return [];
  }
}

const blockBytes = 512;
/** What fits into the header's octal digits. Beyond, it is GNU's base 256. */
const octalSizeMax = 8 ** 11;

export async function* dockerArchive(image: ArchivedImage): AsyncGenerator<Uint8Array> {
  const { env, cwd, user, entrypoint } = image.defaults;
  const created = new Date().toISOString();
  const config = JSON.stringify({
    architecture: image.arch,
    os: 'linux',
    created,
    config: {
      Env: Object.entries(env).map(([name, value]) => `${name}=${value}`),
      WorkingDir: cwd ?? '',
      User: user ?? '',
      Entrypoint: entrypoint.length > 0 ? entrypoint : null,
      Cmd: null,
      Labels: image.labels ?? null,
    },
    rootfs: { type: 'layers', diff_ids: image.layers.map((it) => it.diffId) },
    history: image.layers.map(() => ({ created, created_by: 'glovebox' })),
  });
  const configName = `${createHash('sha256').update(config).digest('hex')}.json`;
  const names = image.layers.map((it, index) => `${it.diffId.replace('sha256:', '')}-${index}.tar`);
  const tag = /:[^/]+$/.test(image.name) ? image.name : `${image.name}:latest`;
  yield* entry(configName, Buffer.from(config));
  for (const [index, layer] of image.layers.entries()) {
    yield header(names[index] as string, layer.sizeBytes);
    yield* layer.open();
    yield padding(layer.sizeBytes);
  }
  const manifest = [{ Config: configName, RepoTags: [tag], Layers: names }];
  yield* entry('manifest.json', Buffer.from(JSON.stringify(manifest)));
  yield Buffer.alloc(2 * blockBytes);
}

function* entry(name: string, content: Buffer): Generator<Uint8Array> {
  yield header(name, content.length);
  yield content;
  yield padding(content.length);
}

/** A regular file of root's with a name of at most 100 characters. */
function header(name: string, sizeBytes: number): Buffer {
  const block = Buffer.alloc(blockBytes);
  block.write(name, 0, 'latin1');
  block.write('0000644\0', 100, 'latin1');
  block.write('0000000\0', 108, 'latin1');
  block.write('0000000\0', 116, 'latin1');
  if (sizeBytes < octalSizeMax) block.write(`${sizeBytes.toString(8).padStart(11, '0')}\0`, 124, 'latin1');
  else {
    block[124] = 0x80;
    block.writeBigUInt64BE(BigInt(sizeBytes), 128);
  }
  block.write('00000000000\0', 136, 'latin1');
  block.write('        ', 148, 'latin1');
  block.write('0', 156, 'latin1');
  block.write('ustar\x0000', 257, 'latin1');
  const sum = block.reduce((total, byte) => total + byte, 0);
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  return block;
}

const padding = (sizeBytes: number) => Buffer.alloc((blockBytes - (sizeBytes % blockBytes)) % blockBytes);
