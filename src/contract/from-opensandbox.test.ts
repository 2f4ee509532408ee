// The guide for who comes from OpenSandbox leaves nothing out: neither a call of its own client, nor one of ours.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import {
  callsOfOpenSandbox,
  guideTables,
  keysOfOpenSandbox,
  ownRoutes,
  withTables,
} from './from-opensandbox.ts';
import { routes } from './routes.ts';

const root = join(import.meta.dirname, '../..');
const nameless = (call: string) => call.replaceAll(/\{\w+\}/g, '{}');

/** `GET /sandboxes/{}` of the types that OpenSandbox's client is made of. */
function callsOfClient(name: string): string[] {
  const types = readFileSync(
    join(root, `node_modules/@alibaba-group/opensandbox/src/api/${name}.ts`),
    'utf8',
  );
  const paths = types
    .slice(0, types.indexOf('\n}\n'))
    .split(/^ {4}"(?=\/)/m)
    .slice(1);
  return paths.flatMap((text) => {
    const path = text.slice(0, text.indexOf('"'));
    return [...text.matchAll(/^ {8}(get|put|post|delete|patch|head|options): /gm)].map((it) =>
      nameless(`${it[1]?.toUpperCase()} ${path}`),
    );
  });
}

test.each([
  ['lifecycle', 14],
  ['execd', 40],
  ['egress', 10],
])('every call of the client’s %s', (name, atLeast) => {
  const known = callsOfOpenSandbox().map((it) => nameless(it.what));
  const wanted = callsOfClient(name);
  expect(wanted.length).toBeGreaterThanOrEqual(atLeast);
  expect(wanted.filter((it) => !known.includes(it))).toEqual([]);
});

test('every route of ours is OpenSandbox’s or named as our own', () => {
  const own = ownRoutes();
  const theirs = callsOfOpenSandbox().filter((it) => it.verdict !== 'refused');
  expect(own.length).toBeGreaterThan(20);
  expect(own.length).toBeLessThan(Object.keys(routes).length);
  const page = guideTables();
  for (const { method, path } of own) expect(page['own calls']).toContain(`\`${method} ${path}\``);
  for (const { what } of theirs) expect(page.calls).toContain(`\`${what}\``);
});

test('nothing is better or refused without a word about it', () => {
  for (const { what, verdict, why } of [...callsOfOpenSandbox(), ...keysOfOpenSandbox()])
    if (verdict !== 'same') expect(why, what).toMatch(/\S{2}/);
});

test('the page is as it is generated', () => {
  const page = readFileSync(join(root, 'docs/guide/from-opensandbox.md'), 'utf8');
  expect(withTables(page, guideTables())).toBe(page);
  expect(() => withTables('nothing', guideTables())).toThrow('no place for');
});
