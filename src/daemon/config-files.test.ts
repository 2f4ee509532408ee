// Files of configuration to begin with, and the schema that editors hold them against: both agree with what a daemon takes.
import * as fs from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parse } from 'smol-toml';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { z } from 'zod';
import { configSections, inertKeys, refusedKeys } from '../contract/config.ts';
import { type ConfigExample, configExamples, configExampleText } from '../contract/config-examples.ts';
import { configJsonSchema } from '../contract/config-schema.ts';
import { keysOfOpenSandbox } from '../contract/from-opensandbox.ts';
import { loadConfig } from './config.ts';

let home: string;
beforeEach(async () => {
  home = await fs.mkdtemp(join(tmpdir(), 'glovebox-config-'));
});
afterEach(() => fs.rm(home, { recursive: true, force: true }));

const load = (document: string) => loadConfig({ env: { GLOVEBOX_HOME: home }, document });
const schema = configJsonSchema() as { properties: Record<string, { properties: Record<string, unknown> }> };
const check = z.fromJSONSchema(schema as z.core.JSONSchema.JSONSchema);
const fitsSchema = (document: string) => check.safeParse(structuredClone(parse(document))).success;

const names = Object.keys(configExamples) as ConfigExample[];
/** With what is offered as comments. */
const opened = (text: string) => text.replaceAll(/^# (?=[a-z_]+ = )/gm, '');

describe.each(names)('the example %s', (name) => {
  const text = configExampleText(name);

  test('is one that a daemon starts with, without a warning, and that editors find nothing in', async () => {
    const { warnings, runtime } = await load(text);
    expect(warnings).toEqual([]);
    expect(runtime.type).toBe({ docker: 'docker', gvisor: 'docker' }[name as string] ?? 'bubblewrap');
    expect(fitsSchema(text)).toBe(true);
    for (const line of text.split('\n').filter((it) => it.startsWith('# ') && !/^# [a-z_]+ = /.test(it)))
      expect(line.length).toBeLessThanOrEqual(100);
  });

  test('offers only what can be taken as it stands', async () => {
    const loads: string[] = [];
    let section = '';
    for (const line of opened(text).split('\n'))
      if (line.startsWith('[')) section = line;
      else if (line !== '' && !line.startsWith('#')) loads.push(`${section}\n${line}\n`);
    expect(loads.length).toBeGreaterThan(5);
    for (const document of loads) {
      expect(fitsSchema(document), document).toBe(true);
      const problem = await load(document).then(
        () => '',
        (error: Error) => error.message,
      );
      // One alone may want another beside it, which its message names.
      expect(problem, document).toMatch(/^$|needs? |secure_runtime\.type is for Docker/);
    }
  });
});

test('the example without a key of its own changes nothing, and names every key', async () => {
  const text = configExampleText('full');
  expect((await load(text)).settings).toEqual((await load('')).settings);
  const offered = parse(opened(text)) as Record<string, Record<string, unknown>>;
  for (const [section, { shape }] of Object.entries(configSections)) {
    const table = section
      .split('.')
      .reduce((at, it) => at[it] as Record<string, unknown>, offered as Record<string, unknown>);
    for (const key of Object.keys(shape)) expect(table, section).toHaveProperty(key);
  }
});

const documents: [document: string, fits: boolean][] = [
  ['', true],
  ['[server]\nport = 8080\n[server.rate_limit]\nkey_burst = 3', true],
  ['[server]\nport = "8080"', false],
  ['[server]\nport = 70000', false],
  ['[server]\nprot = 1', false],
  ['[sever]\nport = 1', false],
  ['[server]\nlog_level = "DEBUG"\nloop = "uvloop"\nthread_pool_size = 40', true],
  ['[log]\nlevel = "loud"', false],
  ['[runtime]\ntype = "docker"\nexecd_image = "x"', true],
  ['[runtime]\ntype = "kubernetes"', false],
  ['[docker]\napparmor_profile = ""\nseccomp_profile = ""\nsandbox_binds = []', true],
  ['[docker]\nsandbox_binds = ["/a:/a"]', false],
  ['[docker]\nsandbox_env = { A = "b" }', false],
  ['[docker]\ndrop_capabilities = ["ALL"]', true],
  ['[docker]\ndrop_capabilities = "ALL"', false],
  ['[egress]\nimage = "x"\nmode = "dns"\nlimits = { cpu = "1" }', true],
  ['[kubernetes]\nnamespace = "x"', false],
  ['[otel]\nenabled = false\nendpoint = "x"', true],
  ['[otel]\nenabled = true', false],
  ['[tenants]\nprovider = "file"', false],
  ['[store]\ntype = "postgresql"', false],
];
test.each(documents)('schema and daemon agree on %j', async (document, fits) => {
  expect(fitsSchema(document)).toBe(fits);
  const loaded = load(document).then(
    () => true,
    () => false,
  );
  expect(await loaded).toBe(fits);
});

test('the schema knows every key, ours and OpenSandbox’s', () => {
  const at = (dotted: string) =>
    dotted
      .replace(/\.\*$/, '')
      .split('.')
      .reduce<unknown>(
        (node, name) => (node as { properties?: Record<string, unknown> } | undefined)?.properties?.[name],
        schema,
      );
  for (const [section, { shape }] of Object.entries(configSections))
    for (const key of Object.keys(shape))
      expect(at(`${section}.${key}`), `${section}.${key}`).toHaveProperty('description');
  for (const { key } of [...inertKeys, ...refusedKeys]) expect(at(key), key).toBeDefined();
});

describe('what the guide says of a key of OpenSandbox is what a daemon does with it', () => {
  test.each(keysOfOpenSandbox())('$what: $verdict', async ({ what, verdict }) => {
    const { warnings, message } = await load(`${what.replace('*', 'x')} = "something"\n`).then(
      (config) => ({ warnings: config.warnings, message: '' }),
      (error: Error) => ({ warnings: [], message: error.message }),
    );
    expect(message).not.toContain('unknown');
    expect(message.includes(' is refused')).toBe(verdict === 'refused');
    expect(warnings.some((it) => it.includes(' has no effect'))).toBe(verdict === 'no effect');
  });

  test('none that is refused or has no effect is left out', () => {
    const told = keysOfOpenSandbox().map((it) => it.what);
    const isTold = (key: string) =>
      told.includes(key) || (key.endsWith('.*') && told.some((it) => it.startsWith(key.slice(0, -1))));
    expect([...inertKeys, ...refusedKeys].map((it) => it.key).filter((it) => !isTold(it))).toEqual([]);
  });
});
