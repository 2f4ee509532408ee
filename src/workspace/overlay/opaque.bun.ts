// Runs in Bun, for Node.js cannot read extended attributes: tells which of some folders are opaque, by the mark that the kernel's overlay leaves on them.
// Input: an attribute's name, then paths, each ended by NUL. Output: one character for each path, 1 for an opaque one.
import { dlopen } from 'bun:ffi';
import { readFileSync, writeSync } from 'node:fs';

const c = dlopen('libc.so.6', { lgetxattr: { args: ['ptr', 'ptr', 'ptr', 'i64'], returns: 'i32' } }).symbols;
const input = readFileSync(0);
const value = Buffer.alloc(8);
const parts: Buffer[] = [];
for (let at = 0; at < input.length; ) {
  const end = input.indexOf(0, at) + 1;
  parts.push(Buffer.from(input.subarray(at, end)));
  at = end;
}
const [name, ...paths] = parts;
const marks = paths.map((path) => {
  const length = c.lgetxattr(path, name ?? null, value, value.length);
  return length === 1 && value[0] === 0x79 ? '1' : '0';
});
writeSync(1, marks.join(''));
