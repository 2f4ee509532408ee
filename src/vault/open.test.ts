// Secrets at rest: what is in the file, what is refused, what survives, and that a value never shows.
import { randomBytes } from 'node:crypto';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { SecretInfo } from '../contract/network.ts';
import { serviceVariables } from '../contract/services.ts';
import type { Failure } from '../lib/failure.ts';
import { openVault, type VaultOptions } from './open.ts';
import { importable, services } from './services.ts';

const canary = 'canary-Zq8vT2mXw4Lp9RkY7sNd';
const quiet = { debug() {}, info() {}, warn() {}, error() {} };

let home: string;
beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), 'glovebox-vault-'));
});
afterEach(() => rmSync(home, { recursive: true, force: true }));

const environment: Record<string, string> = { FROM_ENV: 'value-from-the-environment' };
const opened = (more: Partial<VaultOptions> = {}) =>
  openVault({
    file: join(home, 'secrets'),
    keyFile: join(home, 'secrets.key'),
    now: () => new Date('2026-11-25T12:00:00Z'),
    readEnv: (name) => environment[name],
    log: quiet,
    ...more,
  });
const value = (text: string) => ({ type: 'value' as const, value: text });
const bound = (host: string, more = {}) => [{ hosts: [host], ports: [443], ...more }];
const failureOf = (doing: Promise<unknown>): Promise<Failure> =>
  doing.then(
    () => {
      throw new Error('it was expected to fail');
    },
    (failure: Failure) => failure,
  );

describe('the file', () => {
  test('holds a secret over a restart, for its owner alone, and shows nothing of the value', async () => {
    const vault = await opened();
    const set = await vault.set({ name: 'github', source: value(canary) });
    await vault.set({
      name: 'mine',
      sandboxId: 's1',
      source: value(`${canary}2`),
      bindings: bound('api.example.com'),
    });
    for (const name of ['secrets', 'secrets.key'])
      expect(statSync(join(home, name)).mode & 0o777).toBe(0o600);
    expect(readdirSync(home).toSorted()).toEqual(['secrets', 'secrets.key']);
    expect(readFileSync(join(home, 'secrets'), 'latin1')).not.toContain(canary);
    expect(readFileSync(join(home, 'secrets.key')).length).toBe(32);
    const again = await opened();
    expect(again.list()).toEqual(vault.list());
    expect(again.list()[0]).toEqual(set);
    expect(again.list({ sandboxId: 's1' }).map((info) => info.name)).toEqual(['mine']);
  });

  test('is not made before there is a secret', async () => {
    const vault = await opened();
    expect(vault.list()).toEqual([]);
    expect(readdirSync(home)).toEqual([]);
  });

  test('has a fresh nonce for every record at every write', async () => {
    const vault = await opened();
    const nonces = new Set<string>();
    for (let round = 0; round < 5; round++) {
      await vault.set({ name: 'github', source: value(canary) });
      const file = JSON.parse(readFileSync(join(home, 'secrets'), 'utf8'));
      for (const box of [file.manifest, ...file.records]) {
        expect(Buffer.from(box.nonce, 'base64').length).toBe(12);
        nonces.add(box.nonce);
      }
    }
    expect(nonces.size).toBe(10);
  });

  type FileShape = {
    version: number;
    manifest: Record<string, string>;
    records: Record<string, string>[];
  };
  const damages: [string, (file: FileShape) => unknown, RegExp][] = [
    ['a byte of a record', (file) => flip(file.records[0], 'sealed'), /"github" is damaged/],
    ['a nonce', (file) => flip(file.records[0], 'nonce'), /"github" is damaged/],
    [
      'the name of a record',
      (file) => Object.assign(file.records[0] as object, { name: 'openai' }),
      /"openai" is damaged/,
    ],
    [
      'the scope of a record',
      (file) => Object.assign(file.records[0] as object, { sandboxId: 's1' }),
      /is damaged/,
    ],
    ['two records exchanged', (file) => file.records.reverse(), /missing, or in another order/],
    [
      'the content of two records exchanged',
      ({ records: [a, b] }) => {
        const { nonce, sealed } = a as Record<string, string>;
        Object.assign(a as object, { nonce: b?.nonce, sealed: b?.sealed });
        Object.assign(b as object, { nonce, sealed });
      },
      /is damaged/,
    ],
    ['a record taken away', (file) => file.records.pop(), /missing/],
    ['the list of records', (file) => flip(file.manifest, 'sealed'), /key is another one/],
    ['a newer version', (file) => Object.assign(file, { version: 2 }), /newer glovebox/],
    ['a field taken away', (file) => Object.assign(file, { manifest: undefined }), /the file is damaged/],
  ];
  test.each(damages)('with %s is refused and left as it is', async (_, damage, message) => {
    const vault = await opened();
    await vault.set({ name: 'github', source: value(canary) });
    await vault.set({ name: 'openai', source: value(`${canary}2`) });
    const file = JSON.parse(readFileSync(join(home, 'secrets'), 'utf8'));
    damage(file);
    const damaged = JSON.stringify(file);
    writeFileSync(join(home, 'secrets'), damaged);
    const failure = await failureOf(opened());
    expect(failure).toMatchObject({ code: 'unavailable', message: expect.stringMatching(message) });
    expect(failure.hint).toBeTruthy();
    expect(readFileSync(join(home, 'secrets'), 'utf8')).toBe(damaged);
  });

  test('cut off anywhere is refused', async () => {
    await (await opened()).set({ name: 'github', source: value(canary) });
    const whole = readFileSync(join(home, 'secrets'));
    for (const length of [0, 1, 40, whole.length >> 1, whole.length - 1]) {
      writeFileSync(join(home, 'secrets'), whole.subarray(0, length));
      expect(await failureOf(opened())).toMatchObject({ code: 'unavailable' });
    }
  });

  test('that cannot be written changes nothing in memory either', async () => {
    const vault = await opened();
    await vault.set({ name: 'github', source: value(canary) });
    rmSync(join(home, 'secrets'));
    // A folder in its place: the rename fails.
    mkdirSync(join(home, 'secrets', 'x'), { recursive: true });
    expect((await failureOf(vault.set({ name: 'openai', source: value(canary) }))).message).not.toContain(
      canary,
    );
    expect(vault.list().map((info) => info.name)).toEqual(['github']);
    expect(readdirSync(home).toSorted()).toEqual(['secrets', 'secrets.key']);
  });
});

function flip(box: Record<string, string> | undefined, field: string): void {
  const bytes = Buffer.from(box?.[field] as string, 'base64');
  bytes[3] = (bytes[3] as number) ^ 1;
  Object.assign(box as object, { [field]: bytes.toString('base64') });
}

describe('the key', () => {
  test('that others can read is refused', async () => {
    await (await opened()).set({ name: 'github', source: value(canary) });
    chmodSync(join(home, 'secrets.key'), 0o640);
    expect(await failureOf(opened())).toMatchObject({
      code: 'permission',
      hint: expect.stringContaining('chmod 600'),
    });
  });

  test.each([0, 31, 33])('of %d bytes is refused and never overwritten', async (length) => {
    const key = randomBytes(length);
    writeFileSync(join(home, 'secrets.key'), key, { mode: 0o600 });
    const vault = await opened();
    expect(await failureOf(vault.set({ name: 'github', source: value(canary) }))).toMatchObject({
      code: 'unavailable',
    });
    expect(readFileSync(join(home, 'secrets.key'))).toEqual(key);
    expect(existsSync(join(home, 'secrets'))).toBe(false);
  });

  test('of another home opens nothing', async () => {
    await (await opened()).set({ name: 'github', source: value(canary) });
    writeFileSync(join(home, 'secrets.key'), randomBytes(32), { mode: 0o600 });
    expect(await failureOf(opened())).toMatchObject({
      message: expect.stringContaining('key is another one'),
    });
  });

  test('that is missing is not made anew where there are secrets', async () => {
    await (await opened()).set({ name: 'github', source: value(canary) });
    rmSync(join(home, 'secrets.key'));
    expect(await failureOf(opened())).toMatchObject({ message: expect.stringContaining('is missing') });
    expect(existsSync(join(home, 'secrets.key'))).toBe(false);
  });

  /** Keeps what it is given in a file, and writes down how it was called. */
  const keyring = () => {
    const program = join(home, 'secret-tool');
    writeFileSync(
      program,
      `#!/bin/sh\necho "$@" >> '${home}/calls'\ncase "$1" in\nstore) cat > '${home}/ring' ;;\nlookup) cat '${home}/ring' 2>/dev/null ;;\nesac\n`,
      { mode: 0o755 },
    );
    return program;
  };

  test('can lie in the system keyring, and is found there again without being asked for', async () => {
    const secretTool = keyring();
    const vault = await opened({ keyring: 'system', secretTool });
    await vault.set({ name: 'github', source: value(canary) });
    const key = readFileSync(join(home, 'ring'), 'utf8');
    expect(Buffer.from(key, 'base64').length).toBe(32);
    expect(readFileSync(join(home, 'calls'), 'utf8')).not.toContain(key);
    expect(existsSync(join(home, 'secrets.key'))).toBe(false);
    expect((await opened({ secretTool })).list()).toHaveLength(1);
    expect(await failureOf(opened({ secretTool, keyring: 'file' }))).toMatchObject({ code: 'conflict' });
    rmSync(join(home, 'ring'));
    expect(await failureOf(opened({ secretTool }))).toMatchObject({ code: 'unavailable' });
  });

  test('in a keyring that is not installed says what to install', async () => {
    const vault = await opened({ keyring: 'system', secretTool: join(home, 'none') });
    expect(await failureOf(vault.set({ name: 'github', source: value(canary) }))).toMatchObject({
      code: 'unavailable',
      hint: expect.stringContaining('libsecret'),
    });
  });
});

describe('setting', () => {
  const wrong: [string, Parameters<Awaited<ReturnType<typeof opened>>['set']>[0], RegExp][] = [
    ['without a binding', { name: 'mine', source: value(canary) }, /bound to nothing/],
    [
      'bound to everything',
      { name: 'mine', source: value(canary), bindings: bound('*') },
      /can never be met/,
    ],
    [
      'bound to a top-level domain',
      { name: 'mine', source: value(canary), bindings: bound('*.com') },
      /too wide/,
    ],
    ['bound to a URL', { name: 'mine', source: value(canary), bindings: bound('https://x.example') }, /host/],
    ['bound to a number', { name: 'mine', source: value(canary), bindings: bound('2130706433') }, /host/],
    [
      'bound to a path of a host',
      { name: 'mine', source: value(canary), bindings: bound('x.example/a') },
      /host/,
    ],
    [
      'bound to no port',
      { name: 'mine', source: value(canary), bindings: [{ hosts: ['x.example'], ports: [] }] },
      /no port/,
    ],
    [
      'with a line break in the value',
      { name: 'github', source: value(`${canary}\r\nx: y`) },
      /control characters/,
    ],
    ['with a NUL in the value', { name: 'github', source: value(`${canary}\0`) }, /control characters/],
    [
      'in a header with letters that no header carries',
      { name: 'openai', source: value(`${canary}€`) },
      /cannot stand in a header/,
    ],
    [
      'in the Host header',
      { name: 'mine', source: value(canary), bindings: bound('x.example', { header: 'Host' }) },
      /"Host"/,
    ],
    [
      'in a header that is none',
      { name: 'mine', source: value(canary), bindings: bound('x.example', { header: 'a b' }) },
      /"a b"/,
    ],
    [
      'in a format without a place',
      {
        name: 'mine',
        source: value(canary),
        bindings: bound('x.example', { header: 'a', format: 'Bearer' }),
      },
      /format/,
    ],
    [
      'in a format with two places',
      { name: 'mine', source: value(canary), bindings: bound('x.example', { header: 'a', format: '%s%s' }) },
      /format/,
    ],
    [
      'in a format with a line break',
      {
        name: 'mine',
        source: value(canary),
        bindings: bound('x.example', { header: 'a', format: '%s\r\nb: c' }),
      },
      /format/,
    ],
    [
      'in a format without a header',
      { name: 'mine', source: value(canary), bindings: bound('x.example', { format: '%s' }) },
      /needs a header/,
    ],
    [
      'signing and substituting',
      {
        name: 'mine',
        source: value(canary),
        bindings: bound('x.example', { awsSigV4: true, substitute: ['body'] }),
      },
      /signed anew/,
    ],
    [
      'with a method that is none',
      { name: 'mine', source: value(canary), bindings: bound('x.example', { methods: ['G T'] }) },
      /method/,
    ],
    [
      'with a path that climbs',
      { name: 'mine', source: value(canary), bindings: bound('x.example', { paths: ['/a/../b'] }) },
      /path/,
    ],
    [
      'with a * inside a path',
      { name: 'mine', source: value(canary), bindings: bound('x.example', { paths: ['/a/*/b'] }) },
      /path/,
    ],
    [
      'with a placeholder like a word',
      { name: 'mine', source: value(canary), bindings: bound('x.example'), placeholder: 'TOKEN' },
      /placeholder/,
    ],
    [
      'with a placeholder with spaces',
      { name: 'mine', source: value(canary), bindings: bound('x.example'), placeholder: 'a b {rand}' },
      /placeholder/,
    ],
    ['that is no key pair', { name: 'aws', source: value(canary) }, /no AWS key pair/],
    [
      'from a variable that is not set',
      { name: 'github', source: { type: 'env', variable: 'NOT_SET' } },
      /NOT_SET/,
    ],
    [
      'from a file that is missing',
      { name: 'github', source: { type: 'file', path: '/nowhere/at/all' } },
      /nowhere/,
    ],
    [
      'from a command that fails',
      { name: 'github', source: { type: 'command', command: ['false'] } },
      /exit code 1/,
    ],
  ];
  test.each(wrong)('%s is refused', async (_, request, message) => {
    const vault = await opened();
    const failure = await failureOf(vault.set(request));
    expect(failure).toMatchObject({ code: 'invalid', message: expect.stringMatching(message) });
    expect(`${failure.message} ${failure.hint} ${failure.stack}`).not.toContain(canary);
    expect(readdirSync(home)).toEqual([]);
  });

  const header = (host: string, more = {}) => bound(host, { header: 'authorization', ...more });
  const pairs: [string, object, object, boolean][] = [
    ['one header at one host', header('x.example.com'), header('x.example.com'), true],
    [
      'one header in other letters',
      header('x.example.com'),
      bound('X.Example.com.', { header: 'AUTHORIZATION' }),
      true,
    ],
    [
      'one header with _ for -',
      bound('x.example.com', { header: 'x-a' }),
      bound('x.example.com', { header: 'x_a' }),
      true,
    ],
    ['two headers', header('x.example.com'), bound('x.example.com', { header: 'x-key' }), false],
    ['two hosts', header('x.example.com'), header('y.example.com'), false],
    ['two wildcards of which one is wider', header('*.example.com'), header('*.x.example.com'), true],
    [
      'a name and a wildcard, where the name comes first',
      header('x.example.com'),
      header('*.example.com'),
      false,
    ],
    ['two ports', header('x.example.com'), header('x.example.com', { ports: [8443] }), false],
    [
      'two methods',
      header('x.example.com', { methods: ['GET'] }),
      header('x.example.com', { methods: ['POST'] }),
      false,
    ],
    [
      'a path within another',
      header('x.example.com', { paths: ['/a/*'] }),
      header('x.example.com', { paths: ['/a/b'] }),
      true,
    ],
    [
      'two paths',
      header('x.example.com', { paths: ['/a/*'] }),
      header('x.example.com', { paths: ['/b/*'] }),
      false,
    ],
  ];
  test.each(pairs)('two secrets for %s', async (_, first, second, ambiguous) => {
    const vault = await opened();
    await vault.set({ name: 'first', source: value(canary), bindings: first as never });
    const setting = vault.set({ name: 'second', source: value(canary), bindings: second as never });
    if (ambiguous)
      expect(await failureOf(setting)).toMatchObject({
        code: 'invalid',
        message: expect.stringMatching(/both set the header/),
      });
    else await setting;
    // Of another scope it is not ambiguous: the nearer one is meant.
    await vault.set({ name: 'third', sandboxId: 's1', source: value(canary), bindings: second as never });
  });

  test('two secrets for one variable is refused', async () => {
    const vault = await opened();
    await vault.set({ name: 'github', source: value(canary) });
    const setting = vault.set({
      name: 'mine',
      source: value(canary),
      bindings: bound('x.example'),
      env: ['GH_TOKEN'],
    });
    expect(await failureOf(setting)).toMatchObject({
      code: 'invalid',
      message: expect.stringMatching(/GH_TOKEN/),
    });
  });

  test('again replaces the value and keeps id and placeholder, which guests hold', async () => {
    const vault = await opened();
    const first = await vault.set({
      name: 'github',
      source: value('gho_0123456789012345678901234567890123aa'),
    });
    const second = await vault.set({
      name: 'github',
      source: value('gho_0123456789012345678901234567890123bb'),
    });
    expect(second).toEqual({ ...first, masked: 'gho_****…****23bb' });
    expect(vault.list()).toHaveLength(1);
  });

  test('at the same time is one after the other', async () => {
    const vault = await opened();
    await Promise.all(
      services.map(({ name }) =>
        vault.set({ name, source: value(name === 'aws' ? 'AKIAIOSFODNN7EXAMPLE:0123456789012345' : canary) }),
      ),
    );
    expect(
      (await opened())
        .list()
        .map((info) => info.name)
        .toSorted(),
    ).toEqual(Object.keys(serviceVariables).toSorted());
  });

  test('tells what has changed, never a value', async () => {
    const vault = await opened();
    const heard: unknown[][] = [];
    vault.onChange = (...all) => heard.push(all);
    const { id } = await vault.set({ name: 'github', source: value(canary) });
    await vault.set({ name: 'github', sandboxId: 's1', source: value(canary) });
    await failureOf(vault.set({ name: 'mine', source: value(canary) }));
    await vault.forgetSandbox('s2');
    await vault.forgetSandbox('s1');
    await vault.remove(id);
    expect(heard).toEqual([[undefined], ['s1'], ['s1'], [undefined]]);
    expect(vault.list()).toEqual([]);
    expect((await opened()).list()).toEqual([]);
    expect(await failureOf(vault.remove(id))).toMatchObject({ code: 'not-found' });
  });
});

describe('listing', () => {
  const sources: [
    SecretInfo['sourceType'],
    Parameters<Awaited<ReturnType<typeof opened>>['set']>[0]['source'],
    string,
  ][] = [
    ['value', value(canary), 'cana****…****Nd'],
    ['value', value('short'), '********'],
    ['env', { type: 'env', variable: 'FROM_ENV' }, '$FROM_ENV'],
    ['command', { type: 'command', command: ['echo', canary] }, '$(echo …)'],
  ];
  test.each(sources)('a secret from %s shows no value', async (sourceType, source, masked) => {
    const vault = await opened();
    await vault.set({ name: 'mine', source, bindings: bound('x.example'), env: ['MINE'] });
    const [info] = vault.list();
    expect(info).toMatchObject({ sourceType, masked, service: false, env: ['MINE'] });
    expect(SecretInfo.strict().parse(info)).toEqual(info);
    expect(JSON.stringify(info)).not.toContain(canary);
  });

  test('a service shows where it goes, in the shape of the API', async () => {
    const vault = await opened();
    await vault.set({ name: 'anthropic', source: value(canary) });
    const [info] = vault.list();
    expect(info).toMatchObject({ service: true, env: ['ANTHROPIC_API_KEY'] });
    expect(SecretInfo.strict().parse(info)).toEqual(info);
    expect(info?.bindings[0]).toMatchObject({ header: 'x-api-key', format: '%s', ports: [443] });
  });
});

describe('a value', () => {
  test('shows nowhere: list, guest, refusals, log, errors, what is heard of a change, files', async () => {
    const shown: unknown[] = [];
    const listen = (...all: unknown[]) => shown.push(all);
    const vault = await opened({ log: { debug: listen, info: listen, warn: listen, error: listen } });
    vault.onChange = listen;
    writeFileSync(join(home, 'token'), canary);
    const sources = [
      value(canary),
      { type: 'file' as const, path: join(home, 'token') },
      { type: 'command' as const, command: ['cat', join(home, 'token')], refreshSeconds: 0 },
    ];
    for (const [at, source] of sources.entries())
      shown.push(
        await vault.set({
          name: `secret-${at}`,
          source,
          bindings: bound(`s${at}.example.com`, { header: 'x-key' }),
          env: [`KEY_${at}`],
        }),
      );
    const secrets = vault.forSandbox('s1');
    const send = (host: string, text: string) =>
      secrets.inject(
        { verifiedTls: true, host, port: 443, method: 'GET', target: '/', headers: [['x', text]] },
        AbortSignal.timeout(10_000),
      );
    for (const [at] of sources.entries()) {
      const injection = await send(`s${at}.example.com`, '');
      expect(injection).toMatchObject({
        kind: 'changed',
        headers: expect.arrayContaining([['x-key', canary]]),
      });
    }
    // The sources go bad: one is taken away, one gets a line break into it.
    writeFileSync(join(home, 'token'), `${canary}\n${canary}`);
    for (const host of ['s1.example.com', 's2.example.com']) shown.push(await send(host, ''));
    shown.push(await send('evil.example', secrets.environment.KEY_0 ?? ''));
    shown.push(await failureOf(vault.set({ name: 'github', source: value(`${canary}\0`) })).then(String));
    shown.push(vault.list(), secrets.environment, secrets.placeholders.map(String));
    expect(JSON.stringify(shown)).toContain('secret_unavailable');
    expect(JSON.stringify(shown)).toContain('secret unavailable');
    rmSync(join(home, 'token'));
    const files = readdirSync(home).map((name) => readFileSync(join(home, name), 'latin1'));
    const forms = [
      canary,
      Buffer.from(canary).toString('base64').slice(0, -4),
      Buffer.from(canary).toString('hex'),
    ];
    for (const form of forms) expect(JSON.stringify(shown) + files.join('')).not.toContain(form);
  });

  test('may have one placeholder in two sandboxes, but not in two secrets of one', async () => {
    const vault = await opened();
    const mine = {
      source: value(canary),
      bindings: bound('x.example.com'),
      placeholder: 'MY-OWN-PLACEHOLDER',
    };
    for (const sandboxId of ['s1', 's2']) await vault.set({ ...mine, name: 'mine', sandboxId });
    const clash = vault.set({ ...mine, name: 'other', bindings: bound('y.example.com'), sandboxId: 's1' });
    expect(await failureOf(clash)).toMatchObject({
      code: 'invalid',
      message: expect.stringMatching(/placeholder/),
    });
    const send = (sandbox: string) =>
      vault.forSandbox(sandbox).inject(
        {
          verifiedTls: true,
          host: 'x.example.com',
          port: 443,
          method: 'GET',
          target: '/',
          headers: [['x', mine.placeholder]],
        },
        AbortSignal.timeout(10_000),
      );
    for (const sandbox of ['s1', 's2'])
      expect(await send(sandbox)).toMatchObject({ headers: expect.arrayContaining([['x', canary]]) });
    expect(await send('s3')).toMatchObject({ kind: 'refused', alarm: true });
  });
});

describe('services', () => {
  /** What the services' own clients and scanners take for a key. */
  const forms: Record<string, RegExp> = {
    anthropic: /^sk-ant-api03-[\w-]{93}AA$/,
    'anthropic-oauth': /^sk-ant-oat01-[\w-]{93}AA$/,
    openai: /^sk-proj-[\w-]{74}T3BlbkFJ[\w-]{74}$/,
    github: /^gho_[A-Za-z0-9]{36}$/,
    google: /^AIza[\w-]{35}$/,
    groq: /^gsk_[A-Za-z0-9]{52}$/,
    mistral: /^[A-Za-z0-9]{32}$/,
    openrouter: /^sk-or-v1-[0-9a-f]{64}$/,
    xai: /^xai-[A-Za-z0-9_]{80}$/,
    npm: /^npm_[A-Za-z0-9]{36}$/,
    pypi: /^pypi-AgEIcHlwaS5vcmc[\w-]{50,1000}$/,
    aws: /^AKIA[A-Z2-7]{16}$/,
    cursor: /^key_[0-9a-f]{64}$/,
    droid: /^fk-/,
    nebius: /^v1\./,
  };
  test('each have a placeholder of their form, another one for every secret', async () => {
    const vault = await opened();
    const pair = 'AKIAIOSFODNN7EXAMPLE:wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY';
    for (const { name } of services)
      for (const sandboxId of ['s1', 's2'])
        await vault.set({ name, sandboxId, source: value(name === 'aws' ? pair : canary) });
    for (const { name, placeholder } of vault.list()) expect(placeholder).toMatch(forms[name] as RegExp);
    expect(new Set(vault.list().map((info) => info.placeholder)).size).toBe(2 * services.length);
  });

  test('are found in an environment', () => {
    const host: Record<string, string> = {
      GITHUB_TOKEN: 'b',
      ANTHROPIC_API_KEY: '',
      AWS_ACCESS_KEY_ID: 'AKIA',
      AWS_SECRET_ACCESS_KEY: 'secret',
      AWS_SESSION_TOKEN: 'token',
    };
    expect(importable((name) => host[name])).toEqual([
      { service: 'github', variable: 'GITHUB_TOKEN', value: 'b' },
      { service: 'aws', variable: 'AWS_ACCESS_KEY_ID', value: 'AKIA:secret:token' },
    ]);
    expect(
      importable((name) => ({ ...host, AWS_SECRET_ACCESS_KEY: undefined })[name]).map(
        (found) => found.service,
      ),
    ).toEqual(['github']);
  });
});
