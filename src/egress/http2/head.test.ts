import { expect, test } from 'vitest';
import { Malformed } from '../http1/head.ts';
import { readHead } from './head.ts';

const good = { ':method': 'GET', ':scheme': 'https', ':authority': 'good.test', ':path': '/' };
const raw = (headers: Record<string, string>) => Object.entries({ ...good, ...headers }).flat();

test('a head means one thing', () => {
  const head = readHead([...raw({ host: 'GOOD.test', te: 'trailers', 'x-a': '1' }), 'x-a', '2']);
  expect(head).toMatchObject({ method: 'GET', target: '/', authority: 'good.test', wantsTrailers: true });
  expect(head.headers).toEqual([
    ['x-a', '1'],
    ['x-a', '2'],
  ]);
  expect(readHead(raw({ ':authority': '', host: 'good.test' })).authority).toBe('good.test');
  expect(readHead(raw({ ':method': 'OPTIONS', ':path': '*' })).target).toBe('*');
});

const rows: [Record<string, string>, number][] = [
  [{ ':path': 'https://evil.test/' }, 400],
  [{ ':path': '*' }, 400],
  [{ ':path': '/a b' }, 400],
  [{ ':path': '/\u00e9' }, 400],
  [{ ':method': 'CONNECT' }, 405],
  [{ ':method': 'TRACK' }, 405],
  [{ ':method': 'G T' }, 400],
  [{ ':scheme': 'http' }, 400],
  [{ host: 'evil.test' }, 400],
  [{ 'content-length': '+5' }, 400],
  [{ 'content-length': '5, 5' }, 400],
  [{ transfer_encoding: 'chunked' }, 400],
  [{ 'x-a': 'a\u0000b' }, 400],
  [{ 'x-a': 'a'.repeat(17_000) }, 431],
];

test.for(rows)('a head that is not as it should be: %j', ([headers, status]) => {
  const error = (() => {
    try {
      readHead(raw(headers));
    } catch (thrown) {
      return thrown;
    }
  })();
  expect(error).toBeInstanceOf(Malformed);
  expect(error).toMatchObject({ status });
});

test('Host and Content-Length twice', () => {
  for (const name of ['host', 'content-length'])
    expect(() => readHead([...raw({}), name, '5', name, '5'])).toThrow(Malformed);
});
