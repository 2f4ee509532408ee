import { expect, test } from 'vitest';
import { bodyBytesMax } from '../vault/vault.ts';
import { Gathered } from './gathered.ts';

test('a body is what its pieces were, and takes about as much memory, however small they are', () => {
  const gathered = new Gathered();
  const text = 'one byte at a time '.repeat(5_000);
  for (const byte of Buffer.from(text)) gathered.add(Buffer.of(byte));
  expect(gathered.whole.toString()).toBe(text);
  expect(gathered.heldBytes).toBeLessThanOrEqual(text.length * 2);
});

test('what would be longer than may be is left out, and is never more memory than that', () => {
  const gathered = new Gathered();
  const megabyte = Buffer.alloc(1024 * 1024, 'a');
  for (let at = 0; at < 16; at++) expect(gathered.add(megabyte)).toBe(true);
  expect(gathered.add(Buffer.of(0))).toBe(false);
  expect([gathered.whole.length, gathered.heldBytes]).toEqual([bodyBytesMax, bodyBytesMax]);
});

test('no body is an empty one', () => {
  expect(new Gathered().whole).toHaveLength(0);
});
