// What the guide of the bell shows to copy works: the configuration is accepted as it stands, the action is loaded and does what it says, the hooks are JSON.
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { loadActions } from '../src/bell/custom.ts';
import { readBellSettings } from '../src/bell/settings.ts';

const guide = readFileSync(join(import.meta.dirname, '../docs/guide/bell.md'), 'utf8');
const blocks = (language: string) =>
  [...guide.matchAll(new RegExp(`\`\`\`${language}\n([\\s\\S]*?)\`\`\``, 'g'))].map((it) => it[1] as string);

let home: string;
beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), 'glovebox-guide-'));
});
afterEach(() => rmSync(home, { recursive: true, force: true }));

test('bell.toml says what the guide says about it', () => {
  const [text] = blocks('toml');
  writeFileSync(join(home, 'bell.toml'), text as string, { mode: 0o600 });
  const settings = readBellSettings({ home, alone: false, env: { HOME: home }, cwd: home });
  expect([...settings.commands.keys()]).toEqual(['ticket', 'deploy', 'check']);
  expect(settings.shims.toSorted()).toEqual(['notify-send', 'ticket', 'xdg-open']);
  expect(settings.decisions).toEqual({ clipboard: 'deny' });
  expect(settings.hooks).toEqual({ Stop: ['notify'] });
  expect(settings.commands.get('deploy')?.decision).toBe('ask');
});

test('a build tool without runs_guest_code is refused, as the guide says', () => {
  const [text = ''] = blocks('toml');
  writeFileSync(join(home, 'bell.toml'), text.replace(/^runs_guest_code.*$/m, ''), { mode: 0o600 });
  expect(() => readBellSettings({ home, alone: false, env: { HOME: home }, cwd: home })).toThrow(
    /commands\.check: .*runs_guest_code = true/,
  );
});

test('the action of the guide is loaded, checks what it takes, and runs', async () => {
  const asked: string[] = [];
  const lamp = createServer((request, response) => {
    request.on('data', (data) => asked.push(`${request.method} ${request.url} ${data}`));
    request.on('end', () => response.end());
  }).listen(0, '127.0.0.1');
  try {
    await new Promise((resolve) => lamp.once('listening', resolve));
    const { port } = lamp.address() as AddressInfo;
    const text = (blocks('ts')[0] as string).replace('lamp.example.com', `127.0.0.1:${port}`);
    const folder = join(home, 'actions');
    mkdirSync(folder, { mode: 0o700 });
    writeFileSync(join(folder, 'lamp.ts'), text, { mode: 0o600 });
    const warned: unknown[] = [];
    const note = (...all: unknown[]) => void warned.push(all);
    const log = { debug: note, info: note, warn: note, error: note };
    const actions = await loadActions(folder, { log, taken: [] });
    expect(warned).toEqual([]);
    const [action] = actions;
    expect(action).toMatchObject({ name: 'lamp', decision: 'allow' });
    expect(() => action?.parse({ colour: 'blue' })).toThrow(/lamp: colour/);
    const call = {
      caller: { kind: 'sandbox' as const, id: 'id-1', name: 'web' },
      signal: new AbortController().signal,
    };
    expect(await action?.run(action.parse({ colour: 'green' }), call)).toEqual({ lit: true });
    expect(asked).toEqual(['PUT /state green for web']);
  } finally {
    lamp.closeAllConnections();
    lamp.close();
  }
});

test.each(blocks('json'))('the hooks are JSON, and the host is where guests find it: %s', (text) => {
  const { hooks } = JSON.parse(text) as {
    hooks: Record<string, { hooks: { url?: string; command?: string }[] }[]>;
  };
  const all = Object.values(hooks).flatMap((groups) => groups.flatMap((it) => it.hooks));
  expect(all).not.toHaveLength(0);
  for (const { url, command } of all)
    expect(url ?? command).toMatch(
      /^(http:\/\/host\.docker\.internal:9999\/hooks\/claude|sandbox-comm --best-effort .*)$/,
    );
});
