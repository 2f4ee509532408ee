import { describe, expect, test } from 'vitest';
import { bodyReader } from './body.ts';
import { type Framing, Malformed } from './head.ts';

/** The payload, what is left behind the body, and whether it was whole; in pieces of `size` bytes. */
function read(framing: Framing, text: string, size = text.length) {
  const reader = bodyReader(framing);
  let payload = '';
  let left = '';
  const sink = {
    body(bytes: Buffer) {
      payload += bytes.toString('latin1');
    },
  };
  try {
    for (let from = 0; from < text.length; from += size) {
      const piece = Buffer.from(text.slice(from, from + size), 'latin1');
      left += piece.toString('latin1', reader.read(piece, 0, sink));
    }
  } catch (error) {
    if (error instanceof Malformed) return error.status;
    throw error;
  }
  return { payload, left, done: reader.done };
}

const chunked = { kind: 'chunked' } as const;

describe('chunks', () => {
  const good: [what: string, text: string, payload: string, left: string][] = [
    ['two chunks', '3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n', 'abcde', ''],
    ['capital digits', 'A\r\n0123456789\r\n0\r\n\r\n', '0123456789', ''],
    ['an extension, which is dropped', '3;a="b"\r\nabc\r\n0;x\r\n\r\n', 'abc', ''],
    ['trailers, which are dropped', '3\r\nabc\r\n0\r\nX: y\r\nZ: \r\n\r\n', 'abc', ''],
    ['another request behind it', '1\r\na\r\n0\r\n\r\nGET /', 'a', 'GET /'],
    ['nothing', '0\r\n\r\n', '', ''],
  ];
  test.each(good)('%s', (_, text, payload, left) => {
    for (const size of [text.length, 1, 2, 3, 5])
      expect(read(chunked, text, size)).toEqual({ payload, left, done: true });
  });

  const wrong: [what: string, text: string, status: number][] = [
    ['0x1', '0x1\r\na\r\n0\r\n\r\n', 400],
    ['a space behind the size', '1 \r\na\r\n0\r\n\r\n', 400],
    ['a space in front of the size', ' 1\r\na\r\n0\r\n\r\n', 400],
    ['+1', '+1\r\na\r\n0\r\n\r\n', 400],
    ['no size', '\r\na\r\n0\r\n\r\n', 400],
    ['a bare line feed', '1\na\r\n0\r\n\r\n', 400],
    ['a bare line feed behind the data', '1\r\na\n0\r\n\r\n', 400],
    ['a bare line feed in an extension', '1;a\nb\r\na\r\n0\r\n\r\n', 400],
    ['a carriage return in an extension', '1;a\rb\r\na\r\n0\r\n\r\n', 400],
    ['more data than it says', '1\r\nab\r\n0\r\n\r\n', 400],
    ['a size of 20 digits', '00000000000000000001\r\na\r\n0\r\n\r\n', 400],
    ['an extension without end', `1;${'a'.repeat(1_000)}`, 400],
    ['Content-Length as a trailer', '0\r\nContent-Length: 3\r\n\r\n', 400],
    ['Host as a trailer', '0\r\nHost: evil.test\r\n\r\n', 400],
    ['a trailer without a colon', '0\r\nX\r\n\r\n', 400],
    ['trailers without end', `0\r\n${'X: y\r\n'.repeat(5_000)}`, 431],
  ];
  test.each(wrong)('%s is refused, however it is cut', (_, text, status) => {
    for (const size of [text.length, 1, 7]) expect(read(chunked, text, size)).toBe(status);
  });

  test('half of them are not whole', () => {
    expect(read(chunked, '3\r\nabc\r\n0\r\n')).toMatchObject({ payload: 'abc', done: false });
  });
});

test('a length ends where it says', () => {
  for (const size of [6, 1, 4])
    expect(read({ kind: 'length', bytes: 4 }, 'abcdef', size)).toEqual({
      payload: 'abcd',
      left: 'ef',
      done: true,
    });
});

test('no body takes nothing', () => {
  expect(read({ kind: 'none' }, 'GET /')).toEqual({ payload: '', left: 'GET /', done: true });
});

test('a body until the end of the connection takes all', () => {
  expect(read({ kind: 'close' }, 'abc', 2)).toEqual({ payload: 'abc', left: '', done: false });
});
