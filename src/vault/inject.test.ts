// What becomes of a request: tables of what a guest sends and what goes on, and the ways in which it may try to get at a secret.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { SetSecret } from '../contract/network.ts';
import { openVault } from './open.ts';
import type { Injection, OutgoingRequest, SandboxSecrets, Vault } from './vault.ts';

const real = 'real-Zq8vT2mXw4Lp9RkY7sNd';
const placeholder = 'PLACEHOLDER-of-mine-0123456789';

let home: string;
let vault: Vault;
let secrets: SandboxSecrets;
const environment: Record<string, string | undefined> = {};
const log = { debug() {}, info() {}, warn() {}, error() {} };

beforeEach(async () => {
  home = mkdtempSync(join(tmpdir(), 'glovebox-inject-'));
  vault = await openVault({
    file: join(home, 'secrets'),
    keyFile: join(home, 'key'),
    now: () => new Date('2026-11-25T12:00:00Z'),
    readEnv: (name) => environment[name],
    log,
  });
  secrets = vault.forSandbox('s1');
});
afterEach(() => rmSync(home, { recursive: true, force: true }));

const request = (over: Partial<OutgoingRequest> = {}): OutgoingRequest => ({
  verifiedTls: true,
  host: 'api.example.com',
  port: 443,
  method: 'GET',
  target: '/v1/things?a=b',
  headers: [['accept', '*/*']],
  ...over,
});
const send = (over: Partial<OutgoingRequest> = {}) =>
  secrets.inject(request(over), AbortSignal.timeout(10_000));
const set = (bindings: SetSecret['bindings'], over: Partial<SetSecret> & { sandboxId?: string } = {}) =>
  vault.set({ name: 'mine', source: { type: 'value', value: real }, bindings, placeholder, ...over });
const at = (host: string, more = {}) => [{ hosts: [host], ports: [443], ...more }];
const changed = (injection: Injection) => {
  if (injection.kind !== 'changed') throw new Error(`it was ${JSON.stringify(injection)}`);
  return injection;
};
/** What every answer that may show a secret is asked for. */
const plain: [string, string] = ['accept-encoding', 'identity'];
const basic = (text: string) => `Basic ${Buffer.from(text).toString('base64')}`;

test('with no secret nothing happens', async () => {
  expect(await send()).toEqual({ kind: 'none' });
  expect(secrets.placeholders).toEqual([]);
  expect(secrets.environment).toEqual({});
  expect(secrets.binds('api.example.com', 443)).toBe(false);
});

describe('a service', () => {
  const services: [string, string, [string, string][], [string, string][]][] = [
    ['anthropic', 'api.anthropic.com', [], [['x-api-key', real]]],
    [
      'anthropic',
      'api.anthropic.com',
      [
        ['X-Api-Key', 'mine'],
        ['x_api_key', 'mine'],
        ['x-api-key', 'mine'],
      ],
      [['x-api-key', real]],
    ],
    ['anthropic', 'api.anthropic.com', [['authorization', 'Bearer my-own-account']], [['x-api-key', real]]],
    [
      'openai',
      'api.openai.com',
      [
        ['authorization', 'Bearer x'],
        ['AUTHORIZATION', 'Bearer y'],
      ],
      [['authorization', `Bearer ${real}`]],
    ],
    ['github', 'api.github.com', [['authorization', 'token x']], [['authorization', `Bearer ${real}`]]],
    ['github', 'github.com', [], [['authorization', basic(`x-access-token:${real}`)]]],
    [
      'google',
      'generativelanguage.googleapis.com',
      [
        ['x-goog-api-key', 'x'],
        ['authorization', 'Bearer x'],
      ],
      [['x-goog-api-key', real]],
    ],
    [
      'pypi',
      'upload.pypi.org',
      [['authorization', basic('__token__:x')]],
      [['authorization', basic(`__token__:${real}`)]],
    ],
    ['npm', 'registry.npmjs.org', [], [['authorization', `Bearer ${real}`]]],
  ];
  test.each(
    services,
  )('%s at %s: what the client sends (%j) is replaced', async (name, host, sent, received) => {
    await vault.set({ name, source: { type: 'value', value: real } });
    const injection = changed(await send({ host, headers: [['accept', '*/*'], ...sent] }));
    expect(injection.headers).toEqual([['accept', '*/*'], plain, ...received]);
    expect(injection.secrets).toEqual([name]);
    expect(secrets.binds(host, 443)).toBe(true);
  });

  test('takes its placeholder wherever the client puts it, also in Basic and the query', async () => {
    for (const name of ['github', 'google'])
      await vault.set({ name, source: { type: 'value', value: real } });
    const { GH_TOKEN: github = '', GEMINI_API_KEY: google = '' } = secrets.environment;
    expect(github).toMatch(/^gho_/);
    const git = changed(
      await send({ host: 'github.com', headers: [['authorization', basic(`x-access-token:${github}`)]] }),
    );
    expect(git.headers).toEqual([plain, ['authorization', basic(`x-access-token:${real}`)]]);
    const gemini = changed(
      await send({ host: 'generativelanguage.googleapis.com', target: `/v1/models?key=${google}&alt=json` }),
    );
    expect(gemini.target).toBe('/v1/models?alt=json');
    expect(gemini.headers).toContainEqual(['x-goog-api-key', real]);
  });

  test('with two alternatives puts in one: a key before a subscription, a sandbox’s own before all', async () => {
    const oauth = { name: 'anthropic-oauth', source: { type: 'value', value: `${real}-oauth` } } as const;
    const host = 'api.anthropic.com';
    const sent = async () => {
      const { CLAUDE_CODE_OAUTH_TOKEN: token = '' } = secrets.environment;
      const headers: [string, string][] = [
        ['authorization', `Bearer ${token}`],
        ['x-api-key', 'my-own-account'],
      ];
      return changed(await send({ host, headers })).headers;
    };
    await vault.set(oauth);
    expect(secrets.environment.CLAUDE_CODE_OAUTH_TOKEN).toMatch(/^sk-ant-oat01-/);
    expect(await sent()).toEqual([plain, ['authorization', `Bearer ${real}-oauth`]]);
    await vault.set({ name: 'anthropic', source: { type: 'value', value: real } });
    expect(await sent()).toEqual([plain, ['x-api-key', real]]);
    await vault.set({ ...oauth, sandboxId: 's1' });
    expect(await sent()).toEqual([plain, ['authorization', `Bearer ${real}-oauth`]]);
  });

  test('is not for hosts that only look like its own', async () => {
    await vault.set({ name: 'github', source: { type: 'value', value: real } });
    for (const host of [
      'npm.pkg.github.com',
      'github.com.evil.example',
      'evilgithub.com',
      'objects.githubusercontent.com',
    ]) {
      expect(await send({ host })).toEqual({ kind: 'none' });
      expect(secrets.binds(host, 443)).toBe(false);
    }
  });
});

describe('a binding', () => {
  const places: [string, object, Partial<OutgoingRequest>, boolean][] = [
    ['its host', at('api.example.com'), {}, true],
    ['its host in other letters', at('API.Example.com.'), {}, true],
    ['a name in another script', at('bücher.example'), { host: 'xn--bcher-kva.example' }, true],
    ['below a wildcard', at('*.example.com'), {}, true],
    ['far below a wildcard', at('*.example.com'), { host: 'a.b.example.com' }, true],
    ['the name itself of a wildcard', at('*.example.com'), { host: 'example.com' }, false],
    ['a name that ends alike', at('*.example.com'), { host: 'evilexample.com' }, false],
    ['another port', at('api.example.com'), { port: 8443 }, false],
    ['a port of its own', at('api.example.com', { ports: [8443] }), { port: 8443 }, true],
    ['plain HTTP', at('api.example.com', { ports: [80, 443] }), { verifiedTls: false, port: 80 }, false],
    ['TLS that was not verified', at('api.example.com'), { verifiedTls: false }, false],
    ['its method', at('api.example.com', { methods: ['get'] }), {}, true],
    ['another method', at('api.example.com', { methods: ['POST'] }), {}, false],
    ['any method', at('api.example.com', { methods: ['ANY'] }), { method: 'PURGE' }, true],
    ['below its path', at('api.example.com', { paths: ['/v1/*'] }), {}, true],
    ['its very path', at('api.example.com', { paths: ['/v1/things'] }), {}, true],
    ['below a path that is exact', at('api.example.com', { paths: ['/v1'] }), {}, false],
    [
      'a path that climbs out of it',
      at('api.example.com', { paths: ['/v1/*'] }),
      { target: '/v1/../admin' },
      false,
    ],
    [
      'a path that climbs out of it in disguise',
      at('api.example.com', { paths: ['/v1/*'] }),
      { target: '/v1/%2e%2e/admin' },
      false,
    ],
    [
      'a path with a slash in disguise',
      at('api.example.com', { paths: ['/v1/*'] }),
      { target: '/v1/..%2fadmin' },
      false,
    ],
    [
      'a path with a backslash',
      at('api.example.com', { paths: ['/v1/*'] }),
      { target: '/v1/..\\admin' },
      false,
    ],
    ['any path, however odd', at('api.example.com', { paths: ['/*'] }), { target: '/v1/../admin' }, true],
  ];
  test.each(places)('to %s', async (_, binding, over, bound) => {
    await set((binding as { hosts: string[] }[]).map((each) => ({ ports: [443], ...each, header: 'x-key' })));
    const injection = await send(over);
    const sent = injection.kind === 'changed' ? injection : { secrets: [], headers: [] };
    expect(sent.secrets).toEqual(bound ? ['mine'] : []);
    expect(sent.headers.filter(([name]) => name === 'x-key')).toEqual(bound ? [['x-key', real]] : []);
  });

  const formats: [string | undefined, string][] = [
    [undefined, real],
    ['Bearer %s', `Bearer ${real}`],
    ['Key id="7", secret="%s"', `Key id="7", secret="${real}"`],
    ['Basic base64(me:%s)', basic(`me:${real}`)],
  ];
  test.each(formats)('with the format %s', async (format, header) => {
    await set(at('api.example.com', { header: 'X-Key', ...(format === undefined ? {} : { format }) }));
    expect(changed(await send()).headers.at(-1)).toEqual(['x-key', header]);
  });

  test('a value with $ and % is put in as it is', async () => {
    const odd = 'a$&b$1c%s%20d\'"\\<e';
    await set(at('api.example.com', { header: 'x-key', substitute: ['header', 'query'] }), {
      source: { type: 'value', value: odd },
    });
    const injection = changed(
      await send({ headers: [['x-other', placeholder]], target: `/?k=${placeholder}` }),
    );
    expect(injection.headers).toEqual([['x-other', odd], plain, ['x-key', odd]]);
    expect(decodeURIComponent(injection.target)).toBe(`/?k=${odd}`);
    expect(injection.target).toMatch(/^\/\?k=[\w%.~-]+$/);
  });
});

describe('substitution', () => {
  const all = ['header', 'query', 'path'] as const;
  const cases: [
    string,
    readonly ('header' | 'query' | 'path')[],
    Partial<OutgoingRequest>,
    Partial<OutgoingRequest> | 'none',
  ][] = [
    [
      'a header',
      all,
      { headers: [['x-a', `k=${placeholder};`]] },
      { headers: [['x-a', `k=${real};`], plain] },
    ],
    [
      'Basic',
      all,
      { headers: [['authorization', basic(`me:${placeholder}`)]] },
      { headers: [['authorization', basic(`me:${real}`)], plain] },
    ],
    [
      'the query',
      all,
      { target: `/a?k=${placeholder}&l=${placeholder}` },
      { target: `/a?k=${real}&l=${real}` },
    ],
    ['the path', all, { target: `/bot${placeholder}/send?x` }, { target: `/bot${real}/send?x` }],
    ['the path, where only the query is meant', ['query'], { target: `/bot${placeholder}/send` }, 'none'],
    ['a header, where only the query is meant', ['query'], { headers: [['x-a', placeholder]] }, 'none'],
    ['nothing', all, {}, 'none'],
  ];
  test.each(cases)('in %s', async (_, substitute, over, outcome) => {
    await set(at('api.example.com', { substitute: [...substitute] }));
    const injection = await send(over);
    const { target, headers } = request(over);
    expect(changed(injection)).toMatchObject(
      outcome === 'none' ? { secrets: [], target, headers: [...headers, plain] } : outcome,
    );
  });

  test('is in headers alone where a binding says no more than a host', async () => {
    const info = await set(at('api.example.com'));
    expect(info.bindings[0]?.substitute).toEqual(['header']);
    const target = `/contents/${placeholder}?k=${placeholder}`;
    expect(changed(await send({ method: 'PUT', target }))).toMatchObject({ target, secrets: [] });
  });

  const odd = 'a"b\\c&d é';
  const bodies: [string, string, string][] = [
    ['application/json; charset=utf-8', `{"k":"${placeholder}"}`, JSON.stringify({ k: odd })],
    ['application/vnd.api+json', `["${placeholder}","${placeholder}"]`, JSON.stringify([odd, odd])],
    ['application/x-www-form-urlencoded', `k=${placeholder}&l=1`, `k=${encodeURIComponent(odd)}&l=1`],
    ['application/xml', `<k>${placeholder}</k>`, '<k>a&#34;b\\c&#38;d é</k>'],
    ['text/plain', `k ${placeholder}`, `k ${odd}`],
    ['text/plain', 'nothing here', 'nothing here'],
    ['', '', ''],
  ];
  test.each(bodies)('in a body of type "%s"', async (type, sent, received) => {
    await set(at('api.example.com', { substitute: ['body'] }), { source: { type: 'value', value: odd } });
    const headers: [string, string][] = type === '' ? [] : [['content-type', type]];
    const injection = changed(await send({ method: 'POST', headers }));
    const outcome = injection.body?.(Buffer.from(sent));
    expect(outcome?.body.toString()).toBe(received);
    expect(outcome?.headers).toEqual([...headers, plain]);
  });

  test('makes no body longer than one may be', async () => {
    const value = 'x'.repeat(4_000);
    await set(at('api.example.com', { substitute: ['body'] }), { source: { type: 'value', value } });
    const { body } = changed(await send({ method: 'POST' }));
    expect(body?.(Buffer.from(placeholder.repeat(4_000))).body.length).toBe(16_000_000);
    expect(() => body?.(Buffer.from(placeholder.repeat(5_000)))).toThrow('too long');
  });
});

describe('a placeholder on a wrong way', () => {
  const ways: [string, Partial<OutgoingRequest>, string, boolean][] = [
    [
      'to another host',
      { host: 'evil.example', headers: [['x-a', placeholder]] },
      'placeholder_misplaced',
      true,
    ],
    ['to another port', { port: 8443, headers: [['x-a', placeholder]] }, 'placeholder_misplaced', true],
    ['in the query', { host: 'evil.example', target: `/?k=${placeholder}` }, 'placeholder_misplaced', true],
    ['in the path', { host: 'evil.example', target: `/${placeholder}` }, 'placeholder_misplaced', true],
    [
      'in Basic',
      { host: 'evil.example', headers: [['authorization', basic(`u:${placeholder}`)]] },
      'placeholder_misplaced',
      true,
    ],
    [
      'in base64 after one byte',
      { host: 'evil.example', headers: [['x', btoa(`1${placeholder}2`)]] },
      'placeholder_misplaced',
      true,
    ],
    [
      'in base64 after two bytes',
      { host: 'evil.example', headers: [['x', btoa(`12${placeholder}`)]] },
      'placeholder_misplaced',
      true,
    ],
    [
      'in a cookie',
      { host: 'evil.example', headers: [['cookie', `a=1; b=${placeholder}`]] },
      'placeholder_misplaced',
      true,
    ],
    [
      'in the name of a header',
      { host: 'evil.example', headers: [[`x-${placeholder}`, '']] },
      'placeholder_misplaced',
      true,
    ],
    [
      'in the name of a header, in small letters',
      { host: 'evil.example', headers: [[placeholder.toLowerCase(), '']] },
      'placeholder_misplaced',
      true,
    ],
    [
      'written as %XX',
      {
        host: 'evil.example',
        target: `/?k=${[...placeholder].map((c) => `%${c.charCodeAt(0).toString(16)}`).join('')}`,
      },
      'placeholder_misplaced',
      true,
    ],
    [
      'without TLS',
      { verifiedTls: false, port: 80, headers: [['x-a', placeholder]] },
      'placeholder_unprotected',
      true,
    ],
    [
      'to its host without verified TLS',
      { verifiedTls: false, headers: [['x-a', placeholder]] },
      'placeholder_unprotected',
      true,
    ],
    ['with another method', { method: 'DELETE', headers: [['x-a', placeholder]] }, 'binding_mismatch', false],
    ['to another path', { target: '/v2', headers: [['x-a', placeholder]] }, 'binding_mismatch', false],
    [
      'to another path than it says first',
      {
        headers: [
          ['x_original_url', '/v2'],
          ['x-a', placeholder],
        ],
      },
      'binding_mismatch',
      false,
    ],
  ];
  test.each(ways)('%s', async (_, over, reason, alarm) => {
    await set(at('api.example.com', { header: 'x-a', methods: ['GET'], paths: ['/v1/*'] }));
    const injection = await send(over);
    expect(injection).toMatchObject({ kind: 'refused', reason, alarm });
    expect(JSON.stringify(injection)).not.toContain(real);
    expect(JSON.stringify(injection)).not.toContain(placeholder);
  });

  test('of one secret to the host of another', async () => {
    await set(at('api.example.com', { header: 'x-a' }));
    await set(at('other.example', { header: 'x-a' }), { name: 'other', placeholder: 'OTHER-{rand}' });
    expect(await send({ host: 'other.example', headers: [['x-a', placeholder]] })).toMatchObject({
      reason: 'placeholder_misplaced',
      message: expect.stringContaining('"mine"'),
    });
  });

  test('in a body is looked for by its bytes, at each place those of secrets that are not bound there', async () => {
    await set(at('*.example.com', { header: 'x-a' }));
    const other = 'OTHER-of-mine-0123456789';
    await set(at('other.example', { header: 'x-a' }), { name: 'other', placeholder: other });
    const foreignAt = (host: string, port = 443) => secrets.foreignPlaceholders(host, port).map(String);
    const cases: [string, number, boolean, boolean][] = [
      ['a.example.com', 443, false, true],
      ['other.example', 443, true, false],
      ['a.example.com', 8443, true, true],
      ['evil.example', 443, true, true],
    ];
    for (const [host, port, mine, others] of cases) {
      const found = foreignAt(host, port);
      expect([host, port, found.includes(placeholder), found.includes(other)]).toEqual([
        host,
        port,
        mine,
        others,
      ]);
      expect(found.includes(btoa(other))).toBe(others);
    }
    expect(secrets.foreignPlaceholders('b.example.com', 443)).toBe(
      secrets.foreignPlaceholders('a.example.com', 443),
    );
    expect(secrets.foreignPlaceholders('evil.example', 443)).toBe(secrets.placeholders);
  });

  test("of another sandbox's secret, of which no name is told", async () => {
    await set(at('api.example.com', { header: 'x-a' }), { sandboxId: 's2' });
    const injection = await send({ headers: [['x-a', placeholder]] });
    expect(injection).toMatchObject({ kind: 'refused', alarm: true });
    expect(JSON.stringify(injection)).not.toContain('mine');
    expect(secrets.environment).toEqual({});
    expect(secrets.placeholders.map(String)).toContain(placeholder);
  });
});

describe('scopes', () => {
  test('a sandbox without shared secrets has its own only; placeholders of shared ones are foreign to it', async () => {
    await set(at('api.example.com', { header: 'x-key' }), { env: ['KEY'] });
    const strange = vault.forSandbox('s3', { shared: false });
    expect(strange.environment).toEqual({});
    expect(strange.binds('api.example.com', 443)).toBe(false);
    const signal = AbortSignal.timeout(9_000);
    expect((await strange.inject(request(), signal)).kind).toBe('none');
    const leaked = await strange.inject(request({ headers: [['x-a', placeholder]] }), signal);
    expect(leaked).toMatchObject({ kind: 'refused', alarm: true });
    // For the owner's it is what it was.
    expect(vault.forSandbox('s3').environment.KEY).toBe(placeholder);
    await set(at('api.example.com', { header: 'x-key' }), {
      ...{ sandboxId: 's3', env: ['KEY'], placeholder: 'OWN-{rand}' },
      source: { type: 'value', value: 'own-value' },
    });
    expect(changed(await strange.inject(request(), signal)).headers).toContainEqual(['x-key', 'own-value']);
  });

  test("a sandbox's own secret comes before the one for all, whose placeholder stands for it too", async () => {
    await set(at('api.example.com', { header: 'x-key' }), { env: ['KEY'] });
    const other = vault.forSandbox('s2');
    await set(at('api.example.com', { header: 'x-key', substitute: ['query'] }), {
      sandboxId: 's1',
      env: ['KEY'],
      placeholder: 'OWN-{rand}',
      source: { type: 'value', value: 'own-value' },
    });
    const own = changed(await send({ target: `/?k=${placeholder}` }));
    expect(own).toMatchObject({
      target: '/?k=own-value',
      headers: [['accept', '*/*'], plain, ['x-key', 'own-value']],
    });
    expect(secrets.environment.KEY).toMatch(/^OWN-/);
    expect(other.environment.KEY).toBe(placeholder);
    expect(changed(await other.inject(request(), AbortSignal.timeout(9_000))).headers.at(-1)).toEqual([
      'x-key',
      real,
    ]);
    await vault.forgetSandbox('s1');
    expect(changed(await send()).headers.at(-1)).toEqual(['x-key', real]);
  });

  test('of two names for one header the nearer has it, and the exact host before a wildcard', async () => {
    await set(at('api.example.com', { header: 'x-key' }));
    await set(at('*.example.com', { header: 'x-key' }), { name: 'wide', placeholder: 'WIDE-{rand}' });
    expect(changed(await send()).secrets).toEqual(['mine']);
    expect(changed(await send({ host: 'b.example.com' })).secrets).toEqual(['wide']);
    await set(at('*.example.com', { header: 'X-KEY' }), {
      name: 'near',
      sandboxId: 's1',
      placeholder: 'NEAR-{rand}',
    });
    expect(changed(await send()).secrets).toEqual(['near']);
  });

  test('placeholders are the same object until something changes', async () => {
    await set(at('api.example.com'));
    const before = secrets.placeholders;
    await send();
    expect(secrets.placeholders).toBe(before);
    expect(before.map(String)).toContain(placeholder);
    await vault.set({ name: 'github', source: { type: 'value', value: real } });
    expect(secrets.placeholders).not.toBe(before);
  });

  test('a removed secret is used no more', async () => {
    const { id } = await set(at('api.example.com', { header: 'x-key' }));
    changed(await send());
    await vault.remove(id);
    expect(await send()).toEqual({ kind: 'none' });
  });
});

describe('what an answer must not show', () => {
  const forms: [string, (secret: string) => string][] = [
    ['as it is', (secret) => secret],
    ['inside JSON', (secret) => JSON.stringify({ k: secret })],
    ['percent-encoded', encodeURIComponent],
    ['as a form', (secret) => new URLSearchParams({ k: secret }).toString()],
    ['in base64', (secret) => Buffer.from(secret).toString('base64')],
    ['in base64 after one byte', (secret) => Buffer.from(`1${secret}`).toString('base64')],
    ['in base64 after two bytes', (secret) => Buffer.from(`12${secret}34`).toString('base64')],
    ['in base64url', (secret) => Buffer.from(`x:${secret}`).toString('base64url')],
    ['in hexadecimal', (secret) => Buffer.from(secret).toString('hex')],
  ];
  test.each(forms)('%s', async (_, encode) => {
    const odd = 'Aa?>~~ÿ"b\\c d/e+f=g'.replace('ÿ', '~');
    await set(at('api.example.com', { header: 'x-key' }), { source: { type: 'value', value: odd } });
    const { scrub } = changed(await send());
    expect(scrub.some((form) => encode(odd).includes(form.toString()))).toBe(true);
  });

  test('is not looked for when it is too short to tell', async () => {
    await set(at('api.example.com', { header: 'x-key' }), { source: { type: 'value', value: 'short12' } });
    expect(changed(await send()).scrub).toEqual([]);
    await set(at('api.example.com'), { source: { type: 'value', value: 'short12' } });
    expect(await send()).toEqual({ kind: 'none' });
  });

  const unarmed: [string, object, Partial<OutgoingRequest>][] = [
    ['without the placeholder', { substitute: ['path'] }, {}],
    ['to another path', { header: 'x-key', paths: ['/v1/keys/*'] }, {}],
    ['with another method', { header: 'x-key', methods: ['PUT'] }, {}],
    ['without TLS', { header: 'x-key' }, { verifiedTls: false }],
  ];
  test.each(
    unarmed,
  )('is looked for in answers to requests %s, too: an earlier one may have left it there', async (_, binding, over) => {
    await set(at('api.example.com', binding));
    const injection = changed(await send(over));
    expect(injection.scrub.map(String)).toContain(real);
    expect(injection).toMatchObject({ target: '/v1/things?a=b', secrets: [] });
    expect(injection.headers).toEqual([['accept', '*/*'], plain]);
    expect(await send({ ...over, host: 'other.example' })).toEqual({ kind: 'none' });
  });

  test('does not come in pieces, nor compressed', async () => {
    await set(at('api.example.com', { substitute: ['header', 'body'] }));
    const headers: [string, string][] = [
      ['range', 'bytes=0-9'],
      ['if-range', '"tag"'],
      ['accept-encoding', 'gzip, br'],
      ['accept', '*/*'],
    ];
    const injection = changed(await send({ headers }));
    expect(injection.headers).toEqual([['accept', '*/*'], plain]);
    expect(injection.body?.(Buffer.from('x')).headers).toEqual(injection.headers);
    expect(await send({ host: 'other.example', headers })).toEqual({ kind: 'none' });
  });
});

describe('a source that is read when needed', () => {
  test('is read anew, and refused without an alarm when it cannot be', async () => {
    environment.TOKEN = 'first-value';
    await set(at('api.example.com', { header: 'x-key' }), { source: { type: 'env', variable: 'TOKEN' } });
    expect(changed(await send()).headers.at(-1)).toEqual(['x-key', 'first-value']);
    environment.TOKEN = 'second-value';
    expect(changed(await send()).headers.at(-1)).toEqual(['x-key', 'second-value']);
    for (const bad of [undefined, '', 'with\r\ninjected: header']) {
      environment.TOKEN = bad;
      const injection = await send();
      expect(injection).toMatchObject({ kind: 'refused', reason: 'secret_unavailable', alarm: false });
      expect(JSON.stringify(injection)).not.toContain('injected');
    }
  });
});

describe('an AWS key pair', () => {
  const keys = 'AKIAIOSFODNN7EXAMPLE:wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY';
  const signed = (accessKeyId: string, more = ''): [string, string][] => [
    ['x-amz-date', '20150830T123600Z'],
    [
      'authorization',
      `AWS4-HMAC-SHA256 Credential=${accessKeyId}/20150830/us-east-1/${more || 'iam'}/aws4_request, SignedHeaders=host;x-amz-date, Signature=00`,
    ],
  ];

  test('signs what was signed with its placeholder, and leaves alone what was not', async () => {
    await vault.set({ name: 'aws', source: { type: 'value', value: keys } });
    const { AWS_ACCESS_KEY_ID: id = '', AWS_SECRET_ACCESS_KEY: fake = '' } = secrets.environment;
    expect(fake).toMatch(/^[A-Za-z0-9+/]{40}$/);
    const injection = changed(await send({ host: 'iam.amazonaws.com', method: 'POST', headers: signed(id) }));
    const { headers } = injection.body?.(Buffer.from('Action=ListUsers')) ?? { headers: [] };
    expect(headers.at(-1)?.[1]).toMatch(
      /^AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE\/20150830.*Signature=[0-9a-f]{64}$/,
    );
    expect(JSON.stringify(headers)).not.toContain(id);
    expect(injection.scrub.map(String)).toContain(keys.split(':')[1]);
    expect(await send({ host: 'bucket.s3.amazonaws.com' })).toEqual({ kind: 'none' });
    expect(await send({ host: 'iam.amazonaws.com', headers: signed('AKIAOTHEROTHEROTHER0') })).toEqual({
      kind: 'none',
    });
    expect(await send({ host: 'evil.example', headers: signed(id) })).toMatchObject({ alarm: true });
  });

  test('is never sent, so answers may still come in pieces', async () => {
    await vault.set({ name: 'aws', source: { type: 'value', value: keys } });
    const id = secrets.environment.AWS_ACCESS_KEY_ID ?? '';
    const whole: [string, string] = ['x-amz-content-sha256', 'UNSIGNED-PAYLOAD'];
    const headers: [string, string][] = [...signed(id, 's3'), whole, ['range', 'bytes=0-9']];
    const injection = changed(await send({ host: 'b.s3.amazonaws.com', headers }));
    expect(injection.headers).toContainEqual(['range', 'bytes=0-9']);
  });

  test('cannot sign a stream of signed chunks, and says what to set', async () => {
    await vault.set({ name: 'aws', source: { type: 'value', value: keys } });
    const id = secrets.environment.AWS_ACCESS_KEY_ID ?? '';
    const headers: [string, string][] = [
      ...signed(id, 's3'),
      ['x-amz-content-sha256', 'STREAMING-AWS4-HMAC-SHA256-PAYLOAD'],
    ];
    expect(await send({ host: 'b.s3.amazonaws.com', method: 'PUT', headers })).toMatchObject({
      kind: 'refused',
      reason: 'aws_signature',
      alarm: false,
      message: expect.stringContaining('payload_signing_enabled'),
    });
  });

  test('from several hosts and names are told apart by their placeholders', async () => {
    for (const name of ['aws', 'second'])
      await vault.set({
        name,
        source: {
          type: 'value',
          value: keys.replace(
            'AKIAIOSFODNN7EXAMPLE',
            name === 'aws' ? 'AKIAFIRSTFIRSTFIRST0' : 'AKIASECONDSECONDSEC0',
          ),
        },
        ...(name === 'aws'
          ? {}
          : {
              bindings: at('*.amazonaws.com', { awsSigV4: true }),
              placeholder: 'AKIA{base32:16}',
              env: ['KEY2', 'SECRET2'],
            }),
      });
    for (const [variable, accessKey] of [
      ['AWS_ACCESS_KEY_ID', 'AKIAFIRST'],
      ['KEY2', 'AKIASECOND'],
    ] as const) {
      const injection = changed(
        await send({
          host: 'iam.amazonaws.com',
          headers: [
            ...signed(secrets.environment[variable] ?? ''),
            ['x-amz-content-sha256', 'UNSIGNED-PAYLOAD'],
          ],
        }),
      );
      expect(injection.headers.at(-1)?.[1]).toContain(accessKey);
    }
    expect(secrets.environment.SECRET2).toMatch(/^[A-Za-z0-9+/]{40}$/);
  });
});
