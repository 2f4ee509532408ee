// What an operator can get wrong about the way out: each mistake is refused with what and where, and what held before still holds.
import { spawn } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { call, create, list, remove, run } from '../client.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon } from '../daemon.ts';
import { runtimes } from '../runtimes.ts';
import { type Lab, openLab } from './lab.ts';

const binary = join(import.meta.dirname, '../../bin/glovebox');

describe.skipIf(!runtimes.includes('bubblewrap'))('on bubblewrap', () => {
  let lab: Lab;
  let daemon: TestDaemon;
  let id: string;

  function glovebox(...args: string[]): Promise<{ code: number | null; stdout: string; stderr: string }> {
    const { GLOVEBOX_URL: _, OPEN_SANDBOX_DOMAIN: __, ...env } = process.env;
    const child = spawn(binary, args, {
      env: { ...env, GLOVEBOX_HOME: daemon.home },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let [stdout, stderr] = ['', ''];
    child.stdout.on('data', (text) => {
      stdout += text;
    });
    child.stderr.on('data', (text) => {
      stderr += text;
    });
    return new Promise((resolve) => child.on('close', (code) => resolve({ code, stdout, stderr })));
  }
  const fetched = async (url: string) => (await run(daemon, id, `curl -sS ${url}`)).stdout;

  beforeAll(async () => {
    lab = await openLab();
    const home = makeHome();
    writeFileSync(join(home, 'config.toml'), lab.config);
    daemon = await startDaemon({ home, runtime: 'bubblewrap' });
    id = await create(daemon, { metadata: { 'glovebox.name': 'web' } });
    expect(await glovebox('policy', 'allow', 'network', `good.test,${lab.network}`)).toMatchObject({
      code: 0,
    });
    expect(await glovebox('policy', 'deny', 'network', 'evil.test')).toMatchObject({ code: 0 });
  });

  afterAll(async () => {
    for (const { id } of await list(daemon)) await remove(daemon, id);
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(daemon.home);
    await lab[Symbol.asyncDispose]();
  });

  /** After each mistake the policy is the one of before. */
  async function expectUnchanged(): Promise<void> {
    const { body } = await call(daemon, 'GET', '/v1/policy/rules');
    expect(
      (body.items as { decision: string; resources: string[] }[]).map((it) => [it.decision, it.resources]),
    ).toEqual([
      ['allow', ['good.test', lab.network]],
      ['deny', ['evil.test']],
    ]);
    expect(await fetched('https://good.test/')).toBe('hello from good.test\n');
  }

  test.each([
    [
      'a rule that says the contrary of another',
      ['deny', 'network', 'good.test'],
      /conflicts with existing allow rule/,
    ],
    ['and the other way round', ['allow', 'network', 'evil.test'], /conflicts with existing deny rule/],
    ['a URL', ['allow', 'network', 'https://x.test/'], /x\.test.*is a URL.*column 6/],
    ['a port that is none', ['allow', 'network', 'x.test:99999'], /not 1 to 65535.*column 8/],
    ['a range that is none', ['allow', 'network', '10.0.0.0/99'], /no range of addresses/],
    ['a name that no host can have', ['allow', 'network', 'under score.test'], /character that no host has/],
    ['a wildcard over everybody’s names', ['allow', 'network', '*.com'], /covers all of "com"/],
    ['a name that is the host', ['allow', 'network', 'host.docker.internal'], /can never match.*localhost/],
    ['names below an address', ['allow', 'network', '*.10.0.0.1'], /can never match/],
    ['no pattern', ['allow', 'network', ','], /RESOURCES/],
    ['a path without methods', ['allow', 'network', 'x.test', '--path', '/x'], /methods/],
    ['a preset that is none', ['init', 'generous'], /generous|allow-all/],
    ['a rule that is not there', ['rm', 'network', '--id', 'nope'], /no rule 'nope'/],
    ['another kind of rule', ['allow', 'mount', '/tmp'], /no kind of rule/],
  ])('%s is refused', async (_, words, said) => {
    const { code, stdout, stderr } = await glovebox('policy', ...words);
    expect([code === 0, stdout]).toEqual([false, '']);
    expect(stderr).toMatch(said);
    await expectUnchanged();
  });

  test.each([
    ['{"defaultAction": "deny",\n "egress": [{"action": "allow", "target": "a b"}]}', ':2:'],
    ['{"defaultAction": "deny",\n "egress": [\n  {"action": "permit", "target": "x.test"}]}', ':3:14'],
    ['{"defaultAction": "deny",\n "egres": []}', ':2:'],
    ['{"defaultAction": "deny",\n "egress": [,]}', ':2:13'],
  ])('a policy file %j is refused with line and column', async (text, place) => {
    const file = join(lab.folder, 'policy.json');
    writeFileSync(file, text);
    const { code, stdout, stderr } = await glovebox('create', '--network-policy-file', file);
    expect([code === 0, stdout]).toEqual([false, '']);
    expect(stderr).toContain(`${file}${place}`);
    expect((await call(daemon, 'GET', '/v1/sandboxes')).body.items).toHaveLength(1);
  });

  test.each([
    ['without a binding', ['set', 'shop', '-t', 'value'], /shop/],
    ['for no host', ['set-custom', 'shop', '--value', 'value'], /host/],
    [
      'for a host that cannot be',
      ['set-custom', 'shop', '--host', 'a b', '--header', 'X', '--value', 'v'],
      /host/,
    ],
    ['from a file that is not there', ['set', 'github', '--file', '/no/such/file'], /no such file/i],
    ['from a variable that is not set', ['set', 'github', '--env', 'NO_SUCH_VARIABLE'], /NO_SUCH_VARIABLE/],
  ])('a secret %s is refused', async (_, words, said) => {
    const { code, stdout, stderr } = await glovebox('secret', ...words);
    expect([code === 0, stdout]).toEqual([false, '']);
    expect(stderr).toMatch(said);
    expect((await call(daemon, 'GET', '/v1/secrets')).body.items).toEqual([]);
  });

  test('a proxy configuration edited into what is none stops changes, and holds again once it is mended', async () => {
    const other = await create(daemon, { metadata: { 'glovebox.name': 'edited' } });
    expect(
      await glovebox('network', 'proxy', 'edited', '--policy', 'deny', '--allow-host', 'good.test'),
    ).toMatchObject({
      code: 0,
    });
    await glovebox('policy', 'allow', 'network', '--sandbox', 'edited', lab.network);
    const file = join(daemon.home, 'network/sandboxes', other, 'proxy-config.json');
    const good = readFileSync(file);
    writeFileSync(file, '{"policy": "deny",\n "network": {"allowedDomains": [3]}}');
    const { code, stderr } = await glovebox('network', 'proxy', 'edited', '--allow-host', 'www.good.test');
    expect(code).not.toBe(0);
    expect(stderr).toContain(file);
    expect((await run(daemon, other, 'curl -sS https://good.test/')).stdout).toBe('hello from good.test\n');
    writeFileSync(file, good);
    expect(await glovebox('network', 'proxy', 'edited', '--allow-host', 'www.good.test')).toMatchObject({
      code: 0,
      stdout: expect.stringContaining('good.test, www.good.test'),
    });
    await remove(daemon, other);
  });

  test('a broken proxy-config.json for new sandboxes: none is made by it', async () => {
    const file = join(daemon.home, 'proxy-config.json');
    writeFileSync(file, '{"policy": "perhaps"}');
    const { status, body } = await call(daemon, 'POST', '/v1/sandboxes', {
      ...{ image: { uri: 'host' }, entrypoint: ['tail', '-f', '/dev/null'], resourceLimits: {} },
    });
    expect(status).toBe(400);
    expect(body.message).toContain(file);
    writeFileSync(file, '{"policy": "allow"}');
    await remove(daemon, await create(daemon));
  });
});

test.each([
  ['extra_ca = ["FILE"]', 'no certificate at all', /FILE/],
  ['extra_ca = ["FILE"]', '-----BEGIN CERTIFICATE-----\nbm9uZQ==\n-----END CERTIFICATE-----\n', /FILE/],
  ['extra_ca = ["/no/such/file.pem"]', '', /\/no\/such\/file\.pem/],
  ['upstream_proxy = "socks5://x:1"', '', /config\.toml:2.*upstream_proxy/],
  ['hosts = ["x.test"]', '', /config\.toml:2.*name=address/],
])('the daemon does not start with %s: %j', async (setting, content, said) => {
  const home = makeHome();
  const file = join(home, 'authority.pem');
  mkdirSync(home, { recursive: true });
  writeFileSync(file, content);
  writeFileSync(join(home, 'config.toml'), `[egress]\n${setting.replace('FILE', file)}\n`);
  const wanted = new RegExp(said.source.replace('FILE', file));
  await expect(startDaemon({ home, runtime: 'memory' })).rejects.toThrow(wanted);
  await expectNothingLeft(home);
});
