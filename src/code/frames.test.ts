import { expect, test } from 'vitest';
import { FrameReader } from './frames.ts';

const mark = 'mark-of-this-one';
const stream = Buffer.from(
  `before\0\0${mark}{"begin":"1"}\0out\0put \0${mark.slice(0, 5)} no frame\0${mark}\0\0${mark}{"end":"1"}\0after\0${mark.slice(0, 3)}`,
);
const whole = [
  'before\0',
  '#{"begin":"1"}',
  `out\0put \0${mark.slice(0, 5)} no frame`,
  ...['#', '#{"end":"1"}'],
  `after\0${mark.slice(0, 3)}`,
].join('|');

/** Bytes in one, and frames behind `#`. */
function read(pieces: Buffer[]): string {
  const reader = new FrameReader(mark);
  const read: string[] = [];
  const bytes = (text: string) => {
    if (text === '') return;
    if (read.length === 0 || read.at(-1)?.startsWith('#')) read.push(text);
    else read.push(read.pop() + text);
  };
  for (const piece of pieces)
    for (const part of reader.push(piece)) {
      if (part.type === 'frame') read.push(`#${part.text}`);
      else bytes(Buffer.from(part.bytes).toString());
    }
  bytes(Buffer.from(reader.end()).toString());
  return read.join('|');
}

test('frames are found wherever the stream is cut', () => {
  expect(read([stream])).toBe(whole);
  for (let at = 1; at < stream.length; at++)
    expect(read([stream.subarray(0, at), stream.subarray(at)])).toBe(whole);
  expect(read([...stream].map((it) => Buffer.from([it])))).toBe(whole);
});

test('what is no frame is passed on at once', () => {
  const reader = new FrameReader(mark);
  expect(reader.push(Buffer.from('prompt> '))).toEqual([{ type: 'bytes', bytes: Buffer.from('prompt> ') }]);
  expect(reader.push(Buffer.alloc(1))).toEqual([]);
  expect(reader.push(Buffer.from('x'))).toEqual([{ type: 'bytes', bytes: Buffer.from('\0x') }]);
});

test('a frame without end is held no longer than 16 MiB', () => {
  const reader = new FrameReader(mark);
  reader.push(Buffer.from(`\0${mark}`));
  const mebibyte = Buffer.alloc(1024 * 1024, 'x');
  expect(() => {
    for (let count = 0; count < 18; count++) reader.push(mebibyte);
  }).toThrow(RangeError);
});
