// Which folders a sandbox may be shown.
import { mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import type { WorkspaceMode } from '../contract/workspace.ts';
import { checkPath, checkTogether, homesOf } from './check.ts';

const top = realpathSync(mkdtempSync(join(tmpdir(), 'check-test-')));
afterAll(() => rmSync(top, { recursive: true, force: true }));
const at = (path: string) => join(top, path);
for (const path of ['project/sub', 'people/me/work', 'people/me/.docker/run', 'glovebox/x', 'allowed/p'])
  mkdirSync(at(path), { recursive: true });
writeFileSync(at('file'), '');
writeFileSync(at('people/me/.docker/run/docker.sock'), '');
symlinkSync('project', at('link'));
symlinkSync('/etc', at('etc'));
mkdirSync(at('new\nline'));

const options = {
  byOwner: true,
  home: at('glovebox'),
  allowedHostPaths: [at('allowed')],
  host: { homes: [at('people/me'), '/root'], sockets: [at('people/me/.docker/run/docker.sock')] },
};

test.each([
  ['a folder', 'project', 'project'],
  ['one below', 'project/sub', 'project/sub'],
  ['with a slash', 'project/', 'project'],
  ['by a link', 'link', 'project'],
  ['in a home', 'people/me/work', 'people/me/work'],
])('%s is fine, and canonical', (_, path, canonical) => {
  expect(checkPath(`${top}/${path}`, options)).toBe(at(canonical));
});

test.each([
  ['/', 'whole host'],
  ['/etc', 'system'],
  ['/etc/ssl', 'system'],
  ['/usr', 'folders of others'],
  ['/usr/bin', 'system'],
  ['/proc', 'system'],
  ['/proc/self', 'system'],
  ['/dev', 'system'],
  ['/sys', 'system'],
  ['/tmp', ''],
  ['/home', ''],
  ['/root', 'home folder'],
  [at('nothing'), 'not there'],
  [at('file'), 'not a folder'],
  [at('etc'), 'system'],
  [at('people/me'), 'home folder'],
  [at('people'), ''],
  [at('people/me/.docker'), 'engine'],
  [at('people/me/.docker/run'), 'engine'],
  [at('glovebox'), 'glovebox itself'],
  [at('glovebox/x'), 'glovebox itself'],
  [top, ''],
  [at('new\nline'), 'control characters'],
])('%s is refused: %s', (path, why) => {
  const refused = () => checkPath(path, options);
  expect(refused).toThrow(expect.objectContaining({ code: 'invalid', hint: expect.stringMatching(/./) }));
  expect(refused).toThrow(why);
  expect(refused).toThrow(JSON.stringify(path));
});

test('who is not the owner is shown what the configuration allows', () => {
  const stranger = { ...options, byOwner: false };
  expect(checkPath(at('allowed/p'), stranger)).toBe(at('allowed/p'));
  expect(() => checkPath(at('project'), stranger)).toThrow(expect.objectContaining({ code: 'permission' }));
  expect(() => checkPath(at('people/me'), { ...stranger, allowedHostPaths: ['/'] })).toThrow('home folder');
});

test.each<[WorkspaceMode, WorkspaceMode, string, boolean]>([
  ['mount', 'mount', '/p/a', true],
  ['mount', 'overlay', '/p/a', false],
  ['overlay', 'mount', '/p/a', false],
  ['overlay', 'overlay', '/p/a', false],
  ['overlay', 'overlay', '/pa', true],
  ['mount', 'mount', '/p', false],
])('%s at /p and %s at %s: %s', (one, other, path, fine) => {
  const requests = [
    { path: '/p', mode: one, readOnly: false },
    { path, mode: other, readOnly: false },
  ];
  for (const order of [requests, requests.toReversed()]) {
    if (fine) checkTogether(order);
    else expect(() => checkTogether(order)).toThrow(expect.objectContaining({ code: 'invalid' }));
  }
});

test('homes are those that exist, without those of nobody', () => {
  expect(homesOf(`a:x:1:1::${top}:/bin/sh\nb:x:2:2::/:/bin/sh\nc:x:3:3::/nonexistent:/bin/false\n`)).toEqual([
    top,
  ]);
});
