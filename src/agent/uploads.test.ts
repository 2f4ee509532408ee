// Uploads that go on where they broke off, digests, and reading that notices a change: the old file or the new one, never a mixture.
import { execFileSync } from 'node:child_process';
import { createHash, randomBytes, randomUUID } from 'node:crypto';
import {
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { startBundledAgent, startLocalAgent } from '../../test/agents.ts';
import type { Guest } from '../guest/guest.ts';
import { Failure } from '../lib/failure.ts';

const sha256 = (bytes: Uint8Array | string) => createHash('sha256').update(bytes).digest('hex');

describe.each([
  ['on Bun', startBundledAgent],
  ['on Node.js', startLocalAgent],
] as const)('uploads, %s', (_platform, start) => {
  let agent: AsyncDisposable & { guest: Guest };
  let guest: Guest;
  let folder: string;

  beforeAll(async () => {
    agent = await start();
    guest = agent.guest;
  });
  afterAll(() => agent?.[Symbol.asyncDispose]());
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'glovebox-uploads-'));
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  const at = (name: string) => join(folder, name);
  const hidden = () => readdirSync(folder).filter((it) => it.startsWith('.glovebox'));

  async function* once(...pieces: (string | Uint8Array)[]): AsyncGenerator<Uint8Array> {
    for (const piece of pieces) yield Buffer.from(piece);
  }
  async function* cut(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
    yield bytes;
    throw new Error('the connection broke');
  }
  const all = async (bytes: AsyncIterable<Uint8Array>): Promise<Buffer> => {
    const parts: Uint8Array[] = [];
    for await (const part of bytes) parts.push(part);
    return Buffer.concat(parts);
  };
  const refusal = (promise: Promise<unknown>): Promise<Failure> =>
    promise.then(
      () => Promise.reject(new Error('it succeeded')),
      (thrown) => (thrown instanceof Failure ? thrown : Promise.reject(thrown)),
    );
  const guestWord = (failure: Failure) => failure.details?.guest;

  test('what has another digest is refused, and the old file stays', async () => {
    writeFileSync(at('f'), 'old');
    const wrong = await refusal(guest.write(at('f'), once('new'), { sha256: sha256('other') }));
    expect([wrong.code, guestWord(wrong), readFileSync(at('f'), 'utf8'), hidden()]).toEqual([
      'invalid',
      'digest-mismatch',
      'old',
      [],
    ]);
    expect(await guest.write(at('f'), once('n', 'ew'), { sha256: sha256('new') })).toBe(3);
    expect(readFileSync(at('f'), 'utf8')).toBe('new');
    expect((await refusal(guest.write(at('f'), once('x'), { sha256: 'no digest' }))).code).toBe('invalid');
    expect((await refusal(guest.write('/dev/null', once('x'), { sha256: sha256('x') }))).code).toBe(
      'unsupported',
    );
  });

  test('an upload goes on at what is held, and is put in place at its end', async () => {
    writeFileSync(at('f'), 'old', { mode: 0o640 });
    const id = randomUUID();
    const begin = { id, offset: 0, complete: false };
    expect(await guest.upload(at('f'), once('one '), begin)).toEqual({ offset: 4, complete: false });
    expect(await guest.uploadState(at('f'), id)).toEqual({ offset: 4, complete: false });
    expect(readFileSync(at('f'), 'utf8')).toBe('old');
    const wrong = await refusal(guest.upload(at('f'), once('x'), { ...begin, offset: 3 }));
    expect([wrong.code, wrong.message]).toEqual(['conflict', expect.stringContaining('4 bytes are held')]);
    const end = { id, offset: 4, complete: true, sha256: sha256('one two') };
    expect(await guest.upload(at('f'), once('two'), end)).toEqual({ offset: 7, complete: true });
    expect([readFileSync(at('f'), 'utf8'), statSync(at('f')).mode & 0o777, hidden()]).toEqual([
      'one two',
      0o640,
      [],
    ]);
    // For whoever did not hear of the end.
    expect(await guest.uploadState(at('f'), id)).toEqual({ offset: 7, complete: true });
  });

  test('cut at random offsets fifty times: whole in the end, nothing of it seen before', {
    timeout: 180_000,
  }, async () => {
    const bytes = randomBytes(2_000_000);
    const id = randomUUID();
    writeFileSync(at('f'), 'old');
    let offset = 0;
    for (let cuts = 0; cuts < 50; cuts++) {
      const to = Math.min(bytes.length, offset + Math.floor(Math.random() * 80_000));
      await guest.upload(at('f'), cut(bytes.subarray(offset, to)), { id, offset, complete: true }).then(
        () => expect.unreachable(),
        () => undefined,
      );
      const state = await vi.waitFor(async () => {
        // The agent may not have heard of the cut yet, and still be writing.
        const found = await guest.uploadState(at('f'), id);
        await guest.upload(at('f'), once(), { id, offset: found.offset, complete: false });
        return guest.uploadState(at('f'), id);
      });
      expect(state.complete).toBe(false);
      expect(state.offset).toBeGreaterThanOrEqual(offset);
      expect(state.offset).toBeLessThanOrEqual(to);
      offset = state.offset;
      expect(readFileSync(at('f'), 'utf8')).toBe('old');
    }
    const rest = { id, offset, complete: true, sha256: sha256(bytes) };
    await guest.upload(at('f'), once(bytes.subarray(offset)), rest);
    expect(readFileSync(at('f')).equals(bytes)).toBe(true);
    expect(hidden()).toEqual([]);
  });

  test('a wrong digest at the end: the old file stays, and what came is thrown away', async () => {
    writeFileSync(at('f'), 'old');
    const id = randomUUID();
    const wrong = { id, offset: 0, complete: true, sha256: sha256('other') };
    expect(guestWord(await refusal(guest.upload(at('f'), once('new'), wrong)))).toBe('digest-mismatch');
    expect([readFileSync(at('f'), 'utf8'), hidden()]).toEqual(['old', []]);
    expect((await refusal(guest.uploadState(at('f'), id))).code).toBe('not-found');
  });

  test('an upload that is given up, one that never was, and one of another path', async () => {
    const id = randomUUID();
    await guest.upload(at('f'), once('x'), { id, offset: 0, complete: false });
    expect(hidden()).toEqual([`.glovebox-upload-${id}`]);
    mkdirSync(at('other'));
    expect((await refusal(guest.uploadState(at('other/f'), id))).code).toBe('not-found');
    await guest.dropUpload(at('f'), id);
    await guest.dropUpload(at('f'), id);
    expect(hidden()).toEqual([]);
    expect((await refusal(guest.uploadState(at('f'), id))).code).toBe('not-found');
    expect((await refusal(guest.upload(at('f'), once('x'), { id, offset: 1, complete: true }))).code).toBe(
      'not-found',
    );
    for (const wrong of ['', '../../x', 'A'.repeat(36), `${id}/../x`])
      expect((await refusal(guest.uploadState(at('f'), wrong))).code).toBe('invalid');
  });

  test('two at once: the same upload has one writer, two uploads leave one of both files', async () => {
    const id = randomUUID();
    let go = () => {};
    const held = new Promise<void>((resolve) => (go = resolve));
    async function* slow(): AsyncGenerator<Uint8Array> {
      yield Buffer.from('first');
      await held;
    }
    const first = guest.upload(at('f'), slow(), { id, offset: 0, complete: true });
    await vi.waitFor(() => expect(statSync(at(`.glovebox-upload-${id}`)).size).toBe(5));
    const second = await refusal(guest.upload(at('f'), once('x'), { id, offset: 5, complete: true }));
    expect([second.code, guestWord(second)]).toEqual(['conflict', 'exists']);
    expect(guestWord(await refusal(guest.dropUpload(at('f'), id)))).toBe('exists');
    const contents = ['a', 'b'].map((it) => it.repeat(300_000));
    await Promise.all(
      contents.map((it) => guest.upload(at('g'), once(it), { id: randomUUID(), offset: 0, complete: true })),
    );
    expect(contents).toContain(readFileSync(at('g'), 'utf8'));
    go();
    expect(await first).toEqual({ offset: 5, complete: true });
    expect([readFileSync(at('f'), 'utf8'), hidden()]).toEqual(['first', []]);
  });

  test('a link at the target is followed, one at the upload’s place is not', async () => {
    writeFileSync(at('real'), 'old');
    mkdirSync(at('sub'));
    symlinkSync('../real', at('sub/link'));
    const id = randomUUID();
    await guest.upload(at('sub/link'), once('new'), { id, offset: 0, complete: true });
    expect([readFileSync(at('real'), 'utf8'), readlinkSync(at('sub/link'))]).toEqual(['new', '../real']);
    writeFileSync(at('victim'), 'precious');
    for (const plant of [symlinkSync, linkSync]) {
      const other = randomUUID();
      plant(at('victim'), at(`.glovebox-upload-${other}`));
      await refusal(guest.upload(at('f'), once('evil'), { id: other, offset: 8, complete: false }));
      await refusal(guest.upload(at('f'), once('evil'), { id: other, offset: 0, complete: true }));
      expect([readFileSync(at('victim'), 'utf8'), existsSync(at('f'))]).toEqual(['precious', false]);
    }
    expect((await refusal(guest.upload(folder, once('x'), { id, offset: 0, complete: true }))).code).toBe(
      'invalid',
    );
  });

  test('the folder of the target is removed meanwhile: refused, and nothing is left', async () => {
    mkdirSync(at('d'));
    const id = randomUUID();
    await guest.upload(at('d/f'), once('one'), { id, offset: 0, complete: false });
    rmSync(at('d'), { recursive: true });
    expect((await refusal(guest.uploadState(at('d/f'), id))).code).toBe('not-found');
    expect(
      (await refusal(guest.upload(at('d/f'), once('two'), { id, offset: 3, complete: true }))).code,
    ).toBe('not-found');
    async function* removing(): AsyncGenerator<Uint8Array> {
      yield Buffer.from('one');
      await vi.waitFor(() => expect(readdirSync(at('e'))).toHaveLength(1));
      rmSync(at('e'), { recursive: true });
    }
    mkdirSync(at('e'));
    const end = { id: randomUUID(), offset: 0, complete: true };
    expect((await refusal(guest.upload(at('e/f'), removing(), end))).code).toBe('not-found');
    mkdirSync(at('e'));
    expect((await refusal(guest.write(at('e/f'), removing()))).code).toBe('not-found');
    expect(readdirSync(folder).filter((it) => it === 'e')).toEqual([]);
  });

  test('a full disk: the old file stays, and the upload goes on when there is room', async ({ skip }) => {
    skip(process.getuid?.() !== 0, 'mounting needs root');
    const disk = at('disk');
    mkdirSync(disk);
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'none', disk]);
    try {
      writeFileSync(join(disk, 'f'), 'old');
      writeFileSync(join(disk, 'fill'), Buffer.alloc(500_000));
      const bytes = randomBytes(800_000);
      const id = randomUUID();
      const full = await refusal(
        guest.upload(join(disk, 'f'), once(bytes), { id, offset: 0, complete: true }),
      );
      expect([full.code, readFileSync(join(disk, 'f'), 'utf8')]).toEqual(['full', 'old']);
      expect((await refusal(guest.write(join(disk, 'f'), once(bytes)))).code).toBe('full');
      expect(readFileSync(join(disk, 'f'), 'utf8')).toBe('old');
      rmSync(join(disk, 'fill'));
      const { offset } = await guest.uploadState(join(disk, 'f'), id);
      expect(offset).toBeGreaterThan(0);
      const rest = { id, offset, complete: true, sha256: sha256(bytes) };
      await guest.upload(join(disk, 'f'), once(bytes.subarray(offset)), rest);
      expect(readFileSync(join(disk, 'f')).equals(bytes)).toBe(true);
    } finally {
      execFileSync('umount', [disk]);
    }
  });

  test('what was abandoned is swept when something is uploaded beside it, and no other file', async () => {
    const long = [`.glovebox-upload-${randomUUID()}`, `.glovebox-${randomUUID()}`];
    const stay = ['.glovebox-settings', `.glovebox-upload-${randomUUID()}x`, 'mine'];
    const dayAgo = Date.now() / 1000 - 90_000;
    for (const name of [...long, ...stay]) {
      writeFileSync(at(name), 'x');
      utimesSync(at(name), dayAgo, dayAgo);
    }
    const young = randomUUID();
    await guest.upload(at('g'), once('x'), { id: young, offset: 0, complete: false });
    await guest.upload(at('f'), once('x'), { id: randomUUID(), offset: 0, complete: true });
    expect(readdirSync(folder).sort()).toEqual([...stay, 'f', `.glovebox-upload-${young}`].sort());
  });

  test('an agent that starts goes on with what the one before had, and sweeps what it had abandoned', async () => {
    const [going, gone] = [randomUUID(), randomUUID()];
    mkdirSync(at('d'));
    {
      await using before = await start();
      await before.guest.upload(at('d/f'), once('one '), { id: going, offset: 0, complete: false });
      await before.guest.upload(at('d/g'), once('x'), { id: gone, offset: 0, complete: false });
    }
    const dayAgo = Date.now() / 1000 - 90_000;
    utimesSync(at(`d/.glovebox-upload-${gone}`), dayAgo, dayAgo);
    await using after = await start();
    const { offset } = await after.guest.uploadState(at('d/f'), going);
    expect([offset, existsSync(at(`d/.glovebox-upload-${gone}`))]).toEqual([4, false]);
    await after.guest.upload(at('d/f'), once('two'), {
      id: going,
      offset,
      complete: true,
      sha256: sha256('one two'),
    });
    expect(readFileSync(at('d/f'), 'utf8')).toBe('one two');
    const notes = join(tmpdir(), `.glovebox-uploads-${process.geteuid?.() ?? 0}`);
    for (const id of [going, gone])
      expect(lstatSync(join(notes, id), { throwIfNoEntry: false })).toBeUndefined();
  });

  test('a version is the same as long as the file is, and another one after any change', async () => {
    writeFileSync(at('f'), 'aaaa');
    const versionNow = async () => {
      const { version, bytes } = await guest.read(at('f'));
      await all(bytes);
      return version;
    };
    const first = await versionNow();
    expect([typeof first, await versionNow()]).toEqual(['string', first]);
    const { atime, mtime } = statSync(at('f'));
    const seen = new Set([first]);
    await vi.waitFor(async () => {
      // The clock of a file system may need a moment to go on.
      writeFileSync(at('f'), 'bbbb');
      utimesSync(at('f'), atime, mtime);
      expect(seen.has(await versionNow())).toBe(false);
    });
    const other = await refusal(guest.read(at('f'), { ifVersion: first as string }));
    expect(other.code).toBe('conflict');
    expect((await guest.read('/proc/self/stat')).version).toBeDefined();
  });

  test('the digest of all of a file comes with any part of it', async () => {
    const bytes = randomBytes(3_000_000);
    writeFileSync(at('f'), bytes);
    const part = await guest.read(at('f'), { digest: true, offset: 10, length: 5 });
    expect([part.sha256, await all(part.bytes)]).toEqual([sha256(bytes), bytes.subarray(10, 15)]);
    const direct = await guest.read(at('f'), { digest: true });
    expect([direct.sha256, sha256(await all(direct.bytes))]).toEqual([sha256(bytes), sha256(bytes)]);
    expect((await guest.read(at('f'))).sha256).toBeUndefined();
  });

  test('a file that is changed while it is read: noticed by who asked for one and the same', async () => {
    writeFileSync(at('f'), Buffer.alloc(8_000_000, 'a'));
    for (const steady of [true, false]) {
      const { bytes } = await guest.read(at('f'), steady ? { steady } : {});
      const reader = bytes[Symbol.asyncIterator]();
      await reader.next();
      utimesSync(at('f'), 1, 1);
      const rest = (async () => {
        while (!(await reader.next()).done);
      })();
      if (steady) expect((await refusal(rest)).code).toBe('conflict');
      else await rest;
    }
  });
});
