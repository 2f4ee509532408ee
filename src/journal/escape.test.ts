// What the journal keeps of text that it was given, as a table.
import { expect, test } from 'vitest';
import { plain, withoutUser, withoutValues } from './escape.ts';

test.each([
  ['plain', 10, 'plain'],
  ['grüße 日本 👍', 20, 'grüße 日本 👍'],
  ['a\nb', 10, 'a\\u000ab'],
  ['\u007f\u009b', 20, '\\u007f\\u009b'],
  ['\u{e0041}', 20, '\\udb40\\udc41'],
  ['\ufeff\u061c\u200f\u2069', 30, '\\ufeff\\u061c\\u200f\\u2069'],
  ['12345', 5, '12345'],
  ['123456', 5, '1234…'],
  ['12\u001b456', 6, '12…'],
  ['123👍5', 5, '123…'],
  ['\u001b'.repeat(1_000_000), 7, '\\u001b…'],
])('%j in %i characters', (text, max, expected) => {
  expect(plain(text, max)).toBe(expected);
  expect(plain(text, max).length).toBeLessThanOrEqual(max);
});

test.each([
  ['/a/b', '/a/b'],
  ['/a?x=1&y=2', '/a?x=*&y=*'],
  ['/a?x=1;y=a=b&z=', '/a?x=*;y=*&z=*'],
  ['/a?wsdl', '/a?wsdl'],
  ['/a?sk-0123456789abcdefghij', '/a?*'],
  ['/a?', '/a?'],
  ['/a?b=c?d=e#f=g', '/a?b=*'],
  ['/@scope/name?u=a@b', '/@scope/name?u=*'],
  ['http://user:secret@host/p?q=1', 'http://host/p?q=*'],
  ['*', '*'],
])('the target %s is kept as %s', (target, expected) => {
  expect(withoutValues(target)).toBe(expected);
});

test.each([
  ['host', 'host'],
  ['user:secret@host:443', 'host:443'],
  ['a@b@host', 'host'],
  ['https://user@host/@x', 'https://host/@x'],
])('the host %s is kept as %s', (host, expected) => {
  expect(withoutUser(host)).toBe(expected);
});
