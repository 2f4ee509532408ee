// Multipart bodies, whole, cut at every byte and wrong.
import { expect, test } from 'vitest';
import { boundaryOf, readParts } from './multipart.ts';

const body = Buffer.from(
  [
    'preamble to be skipped',
    '--b0undary',
    'Content-Disposition: form-data; name="metadata"; filename="metadata"',
    'Content-Type: application/json',
    '',
    '{"path":"/x"}',
    '--b0undary  ',
    'content-disposition: form-data; filename="a;name=b"; name=file',
    '',
    'line\r\n--b0undar\r\n-- \r\n\0\r',
    '--b0undary--',
    'epilogue',
  ].join('\r\n'),
);
const expected = [
  ['metadata', '{"path":"/x"}'],
  ['file', 'line\r\n--b0undar\r\n-- \r\n\0\r'],
];

async function* chunks(...parts: Uint8Array[]) {
  yield* parts;
}

async function collect(source: AsyncIterable<Uint8Array>): Promise<string[][]> {
  const parts: string[][] = [];
  for await (const part of readParts(source, 'b0undary')) {
    const bytes: Uint8Array[] = [];
    for await (const chunk of part.bytes) bytes.push(chunk);
    parts.push([part.name, Buffer.concat(bytes).toString()]);
  }
  return parts;
}

test('parts come whole, wherever the network cuts', async () => {
  for (let at = 0; at <= body.length; at += 1)
    expect(await collect(chunks(body.subarray(0, at), body.subarray(at)))).toEqual(expected);
  expect(await collect(chunks(...[...body].map((byte) => Buffer.of(byte))))).toEqual(expected);
});

test('a body that breaks off fails, at whatever byte', async () => {
  const end = body.indexOf('--b0undary--') + '--b0undary--'.length;
  for (let at = 0; at < end; at += 1)
    await expect(collect(chunks(body.subarray(0, at)))).rejects.toMatchObject({ code: 'invalid' });
  expect(await collect(chunks(body.subarray(0, end)))).toEqual(expected);
});

test('what is not read of a part is skipped', async () => {
  const names: string[] = [];
  for await (const part of readParts(chunks(body), 'b0undary')) names.push(part.name);
  expect(names).toEqual(['metadata', 'file']);
});

test.each([
  ['no name', '--b0undary\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b0undary--'],
  ['no head', '--b0undary\r\n\r\nx\r\n--b0undary--'],
  [
    'something behind the boundary',
    '--b0undaryx\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n--b0undary--',
  ],
  ['an endless head', `--b0undary\r\n${'x'.repeat(20_000)}`],
])('a part with %s is refused', async (_, text) => {
  await expect(collect(chunks(Buffer.from(text)))).rejects.toMatchObject({ code: 'invalid' });
});

test.each([
  ['multipart/form-data; boundary=abc', 'abc'],
  ['Multipart/Form-Data; charset=utf-8; Boundary="a b"', 'a b'],
  ['multipart/form-data', undefined],
  ['multipart/mixed; boundary=abc', undefined],
  ['text/plain', undefined],
  [undefined, undefined],
])('the boundary in %s is %s', (header, boundary) => {
  if (boundary === undefined) expect(() => boundaryOf(header)).toThrow('multipart/form-data');
  else expect(boundaryOf(header)).toBe(boundary);
});
