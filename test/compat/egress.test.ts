// OpenSandbox's own npm client, unmodified: network policies and credential vaults of real sandboxes on every runtime of this machine, with programs
// inside that feel them.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ConnectionConfig, type CredentialBinding, Sandbox } from '@alibaba-group/opensandbox';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon } from '../daemon.ts';
import { type Lab, openLab } from '../network/lab.ts';
import { imageFor, runtimes } from '../runtimes.ts';
import { Specification } from './specification.ts';

const value = 'sk-never-in-the-guest-4711';

const specification = new Specification();

describe.each(runtimes)('%s', (runtime) => {
  let lab: Lab;
  let daemon: TestDaemon;
  let connectionConfig: ConnectionConfig;
  let sandbox: Sandbox;

  let unwatch: () => void;
  beforeAll(async () => {
    unwatch = specification.watch();
    lab = await openLab({ hosts: { 'docs.good.test': 10, 'api.good.test': 10 } });
    const home = makeHome();
    writeFileSync(join(home, 'config.toml'), lab.config);
    daemon = await startDaemon({ home, runtime });
    connectionConfig = new ConnectionConfig({ domain: daemon.url, apiKey: daemon.apiKey });
    sandbox = await Sandbox.create({
      connectionConfig,
      image: await imageFor(runtime, daemon, 'debian'),
      networkPolicy: {
        defaultAction: 'deny',
        egress: [
          { action: 'allow', target: '*.good.test' },
          // What names of this lab lead to; on the internet no such rule is needed.
          { action: 'allow', target: lab.network },
        ],
      },
      credentialProxy: { enabled: true },
    });
  });

  afterAll(async () => {
    await sandbox.kill();
    await sandbox.close();
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(daemon.home);
    unwatch();
    expect(await specification.seen()).toEqual([]);
    await lab[Symbol.asyncDispose]();
  });

  const run = async (command: string): Promise<string> => {
    const { logs } = await sandbox.commands.run(command);
    return [...logs.stdout, ...logs.stderr].map((it) => it.text).join('\n');
  };
  const curl = (url: string) => run(`curl -sS ${url}`);
  const python = (url: string) =>
    run(`python3 -c 'import urllib.request; print(urllib.request.urlopen("${url}").read().decode())'`);

  test('a wildcard allows names below it, and nothing else', async () => {
    expect(await curl('https://www.good.test/')).toBe('hello from good.test');
    expect(await python('https://docs.good.test/')).toContain('hello from good.test');
    expect(await curl('https://good.test/')).toMatch(/403/);
    expect(await curl('https://evil.test/')).toMatch(/403/);
    expect(await python('https://evil.test/')).toMatch(/403|Name or service not known/);
    expect(await curl('http://evil.test/')).toMatch(/^Blocked by network policy: domain evil\.test/);
    expect(lab.evil.connections).toBe(0);
  });

  test('the policy is read as it was given', async () => {
    expect(await sandbox.getEgressPolicy()).toMatchObject({
      defaultAction: 'deny',
      egress: [
        { action: 'allow', target: '*.good.test' },
        { action: 'allow', target: lab.network },
      ],
    });
  });

  test('a patch holds at once, in front of what was there, and cuts what is open', async () => {
    const opened = Promise.withResolvers<void>();
    const open = sandbox.commands.run('curl -sSN https://www.good.test/open', undefined, {
      onStdout: () => opened.resolve(),
    });
    await opened.promise;
    await sandbox.patchEgressRules([
      { action: 'deny', target: 'www.good.test' },
      { action: 'allow', target: 'good.test' },
    ]);
    // Its origin never ends it.
    expect((await open).exitCode).not.toBe(0);
    expect(await curl('https://www.good.test/')).toMatch(/403/);
    expect(await curl('https://docs.good.test/')).toBe('hello from good.test');
    expect(await curl('https://good.test/')).toBe('hello from good.test');
    const { egress = [] } = await sandbox.getEgressPolicy();
    expect(egress.slice(0, 2)).toEqual([
      { action: 'deny', target: 'www.good.test' },
      { action: 'allow', target: 'good.test' },
    ]);
  });

  test('rules that are deleted hold no more', async () => {
    await sandbox.deleteEgressRules(['www.good.test', 'good.test']);
    expect(await curl('https://www.good.test/')).toBe('hello from good.test');
    expect(await curl('https://good.test/')).toMatch(/403/);
  });

  test('a rule that cannot be is refused, and the policy stays', async () => {
    const before = await sandbox.getEgressPolicy();
    await expect(sandbox.patchEgressRules([{ action: 'allow', target: 'a b' }])).rejects.toMatchObject({
      statusCode: 400,
    });
    expect(await sandbox.getEgressPolicy()).toEqual(before);
  });

  describe('a credential vault', () => {
    const binding: CredentialBinding = {
      name: 'api',
      match: { hosts: ['api.good.test'], paths: ['/echo/*'] },
      auth: { type: 'bearer', credential: 'token' },
    };
    /** What the origin got as `Authorization` of a request. */
    const authorization = async (path: string, host = 'api.good.test') => {
      await curl(`https://${host}${path}`);
      return lab.good.seen.at(-1)?.headers.authorization;
    };

    test('puts a value into requests that it is bound to, and never into the guest', async () => {
      const state = await sandbox.credentialVault.create({
        credentials: [{ name: 'token', source: { type: 'inline', value } }],
        bindings: [binding],
      });
      expect(state.revision).toBe(1);
      expect(await authorization('/echo/me')).toBe(`Bearer ${value}`);
      expect(await authorization('/other')).toBeUndefined();
      expect(await authorization('/echo/me', 'docs.good.test')).toBeUndefined();
      // The origin says in its answer what it got.
      expect(await curl('https://api.good.test/echo/me')).not.toContain(value);
      const seen = await run(
        `env; cat /proc/[0-9]*/environ | tr '\\0' '\\n'; grep -rIl --exclude-dir=proc --exclude-dir=sys ${value.slice(0, 12)} /.glovebox /tmp /root /etc /run 2>/dev/null`,
      );
      expect(seen).not.toContain(value);
      expect(seen).not.toMatch(/^\/(\.glovebox|tmp|root|etc|run)\//m);
    });

    test('is read without values', async () => {
      const state = await sandbox.credentialVault.get();
      expect(JSON.stringify(state)).not.toContain(value);
      expect(await sandbox.credentialVault.listCredentials()).toMatchObject([
        { name: 'token', sourceType: 'inline' },
      ]);
      expect(await sandbox.credentialVault.getBinding('api')).toMatchObject({ name: 'api' });
      await expect(sandbox.credentialVault.getCredential('other')).rejects.toMatchObject({ statusCode: 404 });
      await expect(sandbox.credentialVault.create({ credentials: [], bindings: [] })).rejects.toMatchObject({
        statusCode: 409,
      });
    });

    test('is patched, at once and by revision', async () => {
      const replaced = {
        credentials: {
          replace: [{ name: 'token', source: { type: 'inline' as const, value: `${value}-2` } }],
        },
      };
      await expect(sandbox.credentialVault.patch({ ...replaced, expectedRevision: 7 })).rejects.toMatchObject(
        { statusCode: 409 },
      );
      expect((await sandbox.credentialVault.patch({ ...replaced, expectedRevision: 1 })).revision).toBe(2);
      expect(await authorization('/echo/me')).toBe(`Bearer ${value}-2`);
    });

    test('is deleted with what it held', async () => {
      await sandbox.credentialVault.delete();
      expect(await authorization('/echo/me')).toBeUndefined();
      await expect(sandbox.credentialVault.get()).rejects.toMatchObject({ statusCode: 404 });
    });
  });
});
