// Every 4xx that OpenSandbox's execd specification names, each provoked over HTTP.
import { expect, test } from 'vitest';
import { startTestApi, type TestApi, testKey } from '../fake.fixture.ts';

const path = (value: string) => `path=${encodeURIComponent(value)}`;
const none = '0'.repeat(32);

const cases: [string, string, unknown, number, string][] = [
  ['GET', `/code/contexts/python-${none}`, undefined, 404, 'CONTEXT_NOT_FOUND'],
  ['DELETE', `/code/contexts/python-${none}`, undefined, 404, 'CONTEXT_NOT_FOUND'],
  ['DELETE', '/code/contexts/%zz', undefined, 400, 'REQUEST::INVALID_PARAMETER'],
  ['DELETE', '/session/%zz', undefined, 400, 'REQUEST::INVALID_PARAMETER'],
  ['GET', '/command/status/%zz', undefined, 400, 'REQUEST::INVALID_PARAMETER'],
  ['DELETE', '/code/contexts', undefined, 400, 'MISSING_QUERY'],
  ['GET', `/code/contexts?language=${'x'.repeat(1_000)}`, undefined, 400, 'INVALID_REQUEST_BODY'],
  ['POST', '/code/context', {}, 400, 'INVALID_REQUEST_BODY'],
  ['POST', '/code/context', { language: '../python' }, 400, 'INVALID_REQUEST_BODY'],
  ['POST', '/code', { code: '' }, 400, 'INVALID_REQUEST_BODY'],
  ['POST', '/code', { context: { language: 'python' } }, 400, 'INVALID_REQUEST_BODY'],
  ['DELETE', '/code', undefined, 400, 'MISSING_QUERY'],
  ['POST', '/session', { shell: 'zsh' }, 400, 'INVALID_REQUEST_BODY'],
  ['POST', `/session/bash-${none}/run`, {}, 400, 'INVALID_REQUEST_BODY'],
  ['POST', `/session/bash-${none}/run`, { command: 'true', timeout: 0 }, 400, 'INVALID_REQUEST_BODY'],
  ['DELETE', `/session/bash-${none}`, undefined, 404, 'FILE_NOT_FOUND'],
  ['POST', '/command', { command: '' }, 400, 'INVALID_REQUEST_BODY'],
  ['POST', '/command', { command: 'true', gid: 5 }, 400, 'INVALID_REQUEST_BODY'],
  ['POST', '/command', { command: 'true', timeout: 0 }, 400, 'INVALID_REQUEST_BODY'],
  ['POST', '/command', { command: 'true', uid: -1 }, 400, 'INVALID_REQUEST_BODY'],
  ['DELETE', '/command', undefined, 400, 'MISSING_QUERY'],
  ['GET', `/command/status/${none}`, undefined, 404, 'FILE_NOT_FOUND'],
  ['GET', `/command/${none}/logs`, undefined, 404, 'FILE_NOT_FOUND'],
  ['GET', `/files/info?${path('/no')}`, undefined, 404, 'FILE_NOT_FOUND'],
  ['POST', '/files/permissions', { '/file': { mode: 888 } }, 400, 'INVALID_REQUEST_BODY'],
  ['POST', '/files/permissions', [], 400, 'INVALID_REQUEST_BODY'],
  ['POST', '/files/mv', {}, 400, 'INVALID_REQUEST_BODY'],
  ['POST', '/files/mv', [{ src: '/no', dest: '/file2' }], 404, 'FILE_NOT_FOUND'],
  ['GET', '/files/search', undefined, 400, 'MISSING_QUERY'],
  ['GET', `/files/search?${path('$NOT_SET/x')}`, undefined, 400, 'INVALID_REQUEST_BODY'],
  ['POST', '/files/replace', { '/file': { old: '', new: 'x' } }, 400, 'INVALID_REQUEST_BODY'],
  ['POST', '/files/replace', { '/file': { new: 'x' } }, 400, 'INVALID_REQUEST_BODY'],
  ['POST', '/files/upload', { '/file': 'x' }, 400, 'INVALID_REQUEST_BODY'],
  ['GET', '/files/download', undefined, 400, 'MISSING_QUERY'],
  ['GET', `/files/download?${path('/file')}&offset=0`, undefined, 400, 'INVALID_REQUEST_BODY'],
  ['GET', `/files/download?${path('/no')}`, undefined, 404, 'FILE_NOT_FOUND'],
  ['GET', '/directories/list', undefined, 400, 'MISSING_QUERY'],
  ['GET', `/directories/list?${path('/file')}`, undefined, 400, 'INVALID_REQUEST_BODY'],
  ['GET', `/directories/list?${path('/d')}&depth=-1`, undefined, 400, 'INVALID_REQUEST_BODY'],
  ['GET', `/directories/list?${path('/no')}`, undefined, 404, 'FILE_NOT_FOUND'],
  ['POST', '/directories', { '/d': { mode: 'x' } }, 400, 'INVALID_REQUEST_BODY'],
];

async function withFiles(): Promise<TestApi> {
  const api = await startTestApi();
  const guest = api.service.guests.get('s');
  guest?.put('/file', 'content');
  guest?.put('/d', '', 'directory');
  return api;
}

test.each(cases)('%s %s %j: %i %s', async (method, where, body, status, code) => {
  await using api = await withFiles();
  const answer = await api.execd(method, where, body);
  expect([answer.status, answer.json]).toEqual([status, { code, message: expect.any(String) }]);
});

test('a body that is no JSON is refused as such, wherever one is read', async () => {
  await using api = await withFiles();
  for (const where of [
    '/code',
    '/code/context',
    '/command',
    '/session',
    '/files/mv',
    '/directories',
    '/pty',
  ]) {
    const reply = await fetch(`${api.url}/sandboxes/s/proxy/44772${where}`, {
      method: 'POST',
      headers: { 'OPEN-SANDBOX-API-KEY': testKey, 'Content-Type': 'application/json' },
      body: '{"command": ',
    });
    const said = (await reply.json()) as { code: string };
    expect([where, reply.status, said.code]).toEqual([where, 400, 'INVALID_REQUEST_BODY']);
  }
});

test('a range beyond the end is 416, and says how long the file is', async () => {
  await using api = await withFiles();
  const answer = await api.execd('GET', `/files/download?${path('/file')}`, undefined, {
    Range: 'bytes=7-',
  });
  expect([answer.status, answer.headers.get('content-range')]).toEqual([416, 'bytes */7']);
  expect(answer.json).toEqual({ code: expect.any(String), message: expect.stringContaining('7 bytes') });
});
