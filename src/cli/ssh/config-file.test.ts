import {
  chmodSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { blockText, withBlock, writeBlock } from './config-file.ts';
import { isGuestLoopback } from './forward.ts';
import { referenceOf, suffixOf } from './names.ts';
import { bounded } from './session.ts';
import { sttyWords } from './terminal-modes.ts';
import { WireReader, WireWriter } from './wire-data.ts';

const block = blockText({});
const older = blockText({ suffix: '.box', home: '/elsewhere' });
const own = 'Host *\n  User me\n';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'glovebox-ssh-config-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

test.each([
  ['an empty file', '', block],
  ['a file of the user', own, `${block}\n${own}`],
  ['a file without an end of line', 'Host x', `${block}\nHost x`],
  ['an older block', `${older}\n${own}`, `${block}\n${own}`],
  ['a block below other lines', `${own}\n${older}`, `${block}\n${own}\n`],
  ['lines with carriage returns', 'Host x\r\n', `${block}\nHost x\r\n`],
])('the block is put at the top of %s', (_, before, after) => {
  expect(withBlock(before, block)).toBe(after);
  expect(withBlock(after, block)).toBe(after);
});

test.each([
  ['', ''],
  [own, own],
  [`${block}\n${own}`, own],
  [block, ''],
  [`\n\n${own}`, `\n\n${own}`],
])('without the block %j is what it was', (before, after) => {
  expect(withBlock(before, undefined)).toBe(after);
});

test.each([
  ['a beginning without an end', '# >>> glovebox (managed) >>>\nHost x\n'],
  ['an end without a beginning', '# <<< glovebox (managed) <<<\n'],
  ['two blocks', `${block}${block}`],
])('%s is left to its owner', (_, text) => {
  expect(() => withBlock(text, block)).toThrow('not a pair');
});

test('what follows the block is for all hosts, as it was before', () => {
  expect(block).toMatch(/\nMatch all\n# <<< glovebox/);
});

test('every byte of the rest stays, and the mode; nothing is left beside the file', async () => {
  const path = join(folder, 'config');
  const bytes = Buffer.concat([Buffer.from('# caf'), Buffer.of(0xe9, 0xff, 0x0a)]);
  writeFileSync(path, bytes);
  chmodSync(path, 0o644);
  expect(await writeBlock(path, block)).toBe(true);
  expect(await writeBlock(path, block)).toBe(false);
  expect(readFileSync(path).subarray(-bytes.length)).toEqual(bytes);
  expect(lstatSync(path).mode & 0o777).toBe(0o644);
  expect(await writeBlock(path, undefined)).toBe(true);
  expect(readFileSync(path)).toEqual(bytes);
  expect(readdirSync(folder)).toEqual(['config']);
});

test('a new file is for its user alone, and taking a block out makes none', async () => {
  const path = join(folder, 'deep/config');
  expect(await writeBlock(path, undefined)).toBe(false);
  expect(readdirSync(folder)).toEqual([]);
  expect(await writeBlock(path, block)).toBe(true);
  expect(lstatSync(path).mode & 0o777).toBe(0o600);
  expect(lstatSync(join(folder, 'deep')).mode & 0o777).toBe(0o700);
});

test('a link that leads elsewhere is not followed, one beside the file is', async () => {
  mkdirSync(join(folder, 'ssh'));
  writeFileSync(join(folder, 'outside'), own);
  symlinkSync('../outside', join(folder, 'ssh/config'));
  await expect(writeBlock(join(folder, 'ssh/config'), block)).rejects.toThrow('outside of your home folder');
  expect(readFileSync(join(folder, 'outside'), 'utf8')).toBe(own);
  writeFileSync(join(folder, 'ssh/real'), own);
  symlinkSync('real', join(folder, 'ssh/linked'));
  expect(await writeBlock(join(folder, 'ssh/linked'), block)).toBe(true);
  expect(lstatSync(join(folder, 'ssh/linked')).isSymbolicLink()).toBe(true);
  expect(readFileSync(join(folder, 'ssh/real'), 'utf8')).toBe(`${block}\n${own}`);
});

test.each([
  ['localhost', true],
  ['LOCALHOST.', true],
  ['127.0.0.1', true],
  ['127.9.8.7', true],
  ['::1', true],
  ['[::1]', true],
  ['127.0.0.256', false],
  ['127.0.0.01', false],
  ['127.1', false],
  ['0.0.0.0', false],
  ['::ffff:127.0.0.1', false],
  ['localhost.example.com', false],
  ['127.0.0.1.example.com', false],
  ['10.0.0.1', false],
  ['169.254.169.254', false],
  ['host.docker.internal', false],
  ['', false],
])('%s as the loopback of a sandbox: %s', (host, expected) => {
  expect(isGuestLoopback(host)).toBe(expected);
});

test('hosts and the sandboxes that they stand for', () => {
  expect(referenceOf('web.glovebox')).toBe('web');
  expect(referenceOf('web')).toBe('web');
  expect(referenceOf('a.b.glovebox')).toBe('a.b');
  expect(referenceOf('web.box', '.box')).toBe('web');
  for (const host of [
    '',
    '-oProxyCommand=x',
    '.glovebox',
    "a'b.glovebox",
    'a b',
    'a;b.glovebox',
    '$(x).glovebox',
  ])
    expect(() => referenceOf(host), host).toThrow('no name of a sandbox');
  expect(suffixOf('*.box')).toBe('.box');
  for (const pattern of ['box', '*', '*.b*x', '*.a b', '?.box', '*.box\nHost *'])
    expect(() => suffixOf(pattern), pattern).toThrow('no pattern');
});

test('sizes and modes of terminals', () => {
  expect(bounded({ cols: 0, rows: 0 })).toEqual({ cols: 80, rows: 24 });
  expect(bounded({ cols: 4_294_967_295, rows: 1 })).toEqual({ cols: 1000, rows: 1 });
  const modes = new WireWriter().byte(1).uint32(3).byte(53).uint32(0).byte(42).uint32(1).byte(6).uint32(255);
  const bytes = modes.byte(200).uint32(1).byte(53).uint32(1).byte(0).done();
  expect(sttyWords(new WireReader(bytes))).toEqual(['intr ^C', '-echo', 'iutf8', 'eol undef']);
  expect(sttyWords(new WireReader(bytes.subarray(0, 7)))).toEqual(['intr ^C']);
});

test('data of SSH that is shorter than it says is refused', () => {
  const bytes = new WireWriter().text('abc').done();
  expect(new WireReader(bytes).text()).toBe('abc');
  expect(() => new WireReader(bytes.subarray(0, 6)).text()).toThrow(RangeError);
  expect(() => new WireReader(Buffer.from('ffffffff', 'hex')).bytes()).toThrow(RangeError);
});
