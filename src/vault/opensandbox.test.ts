// OpenSandbox's credential vault: its revisions and refusals, and what its own npm client makes of our answers.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ConnectionConfig, DefaultAdapterFactory } from '@alibaba-group/opensandbox';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { CredentialVaultState } from '../contract/credential-vault.ts';
import { httpStatusOf } from '../contract/errors.ts';
import type { Failure } from '../lib/failure.ts';
import { openVault } from './open.ts';
import type { SandboxVault } from './opensandbox.ts';
import type { OutgoingRequest, Vault } from './vault.ts';

const canary = 'canary-Zq8vT2mXw4Lp9RkY7sNd';
let home: string;
let vault: Vault;
let mine: SandboxVault;

const opened = () =>
  openVault({
    file: join(home, 'secrets'),
    keyFile: join(home, 'key'),
    now: () => new Date('2026-11-25T12:00:00Z'),
    readEnv: () => undefined,
    log: { debug() {}, info() {}, warn() {}, error() {} },
  });
const covered = (host: string) => host.endsWith('example.com');
beforeEach(async () => {
  home = mkdtempSync(join(tmpdir(), 'glovebox-opensandbox-'));
  vault = await opened();
  mine = vault.openSandbox('s1', covered);
});
afterEach(() => rmSync(home, { recursive: true, force: true }));

/** What every answer that may show a credential is asked for. */
const plain = ['accept-encoding', 'identity'];
const credential = (name = 'token', value = canary) => ({ name, source: { value } });
const binding = (name = 'b', over: object = {}, match: object = {}) => ({
  name,
  match: { hosts: ['api.example.com'], ...match },
  auth: { type: 'bearer', credential: 'token' },
  ...over,
});
const body = (bindings: unknown[] = [binding()], credentials: unknown[] = [credential()]) => ({
  credentials,
  bindings,
});
const request = (over: Partial<OutgoingRequest> = {}): OutgoingRequest => ({
  verifiedTls: true,
  host: 'api.example.com',
  port: 443,
  method: 'GET',
  target: '/v1/x',
  headers: [],
  ...over,
});
const send = (over: Partial<OutgoingRequest> = {}, sandbox = 's1') =>
  vault.forSandbox(sandbox).inject(request(over), AbortSignal.timeout(9_000));
const failureOf = async (doing: () => unknown): Promise<Failure> => {
  try {
    await doing();
  } catch (failure) {
    return failure as Failure;
  }
  throw new Error('it was expected to fail');
};

describe('a vault', () => {
  test('counts revisions from 1, over restarts and to its end', async () => {
    expect(await mine.create(body())).toEqual({
      revision: 1,
      credentials: [{ name: 'token', sourceType: 'inline', revision: 1 }],
      bindings: [
        {
          name: 'b',
          revision: 1,
          match: {
            schemes: ['https'],
            hosts: ['api.example.com'],
            methods: ['GET', 'POST', 'PUT', 'PATCH', 'DELETE'],
            paths: ['/*'],
          },
          auth: { type: 'bearer' },
        },
      ],
    });
    await mine.patch({ expectedRevision: 1, credentials: { add: [credential('second')] } });
    mine = (await opened()).openSandbox('s1', covered);
    const state = await mine.patch({
      bindings: { delete: ['b'] },
      credentials: { replace: [credential('second', 'other')] },
    });
    expect(state).toEqual({
      revision: 3,
      credentials: [
        { name: 'second', sourceType: 'inline', revision: 3 },
        { name: 'token', sourceType: 'inline', revision: 1 },
      ],
      bindings: [],
    });
    expect(mine.credential('second')).toEqual({ name: 'second', sourceType: 'inline', revision: 3 });
    await mine.remove();
    expect((await mine.create(body())).revision).toBe(1);
  });

  test('is its sandbox’s own, and goes with it', async () => {
    await mine.create(body());
    expect(await send()).toMatchObject({
      kind: 'changed',
      headers: [plain, ['authorization', `Bearer ${canary}`]],
      secrets: ['token'],
    });
    expect(await send({}, 's2')).toEqual({ kind: 'none' });
    await vault.forgetSandbox('s1');
    expect(await send()).toEqual({ kind: 'none' });
    expect(await failureOf(() => mine.state())).toMatchObject({ code: 'not-found' });
  });

  test('never shows a value: not in its state, not in the list, not in the file, not in what is heard of a change', async () => {
    const heard: unknown[] = [];
    vault.onChange = (...all) => heard.push(all);
    const state = await mine.create(body());
    const shown = JSON.stringify([state, mine.credentials(), mine.bindings(), vault.list(), heard]);
    expect(shown).not.toContain(canary);
    expect(readFileSync(join(home, 'secrets'), 'latin1')).not.toContain(canary);
    expect(heard).toEqual([['s1']]);
    expect(CredentialVaultState.parse(state)).toEqual(state);
  });

  test('is listed, and changed nowhere else', async () => {
    await mine.create(body());
    const [info] = vault.list({ sandboxId: 's1' });
    expect(info).toMatchObject({
      name: 'credential-vault/token',
      sandboxId: 's1',
      bindings: [{ header: 'authorization' }],
    });
    expect(await failureOf(() => vault.remove(info?.id ?? ''))).toMatchObject({ code: 'conflict' });
  });

  test('comes before secrets of the sandbox and for all', async () => {
    for (const sandboxId of [undefined, 's1'])
      await vault.set({
        name: 'mine',
        source: { type: 'value', value: 'another' },
        bindings: [
          { hosts: ['api.example.com'], ports: [443], header: 'Authorization', format: 'Bearer %s' },
        ],
        ...(sandboxId === undefined ? {} : { sandboxId }),
      });
    await mine.create(body());
    expect(await send()).toMatchObject({
      headers: [plain, ['authorization', `Bearer ${canary}`]],
      secrets: ['token'],
    });
  });
});

describe('what a binding makes of a request', () => {
  const auths: [object, [string, string][]][] = [
    [{ type: 'bearer', credential: 'token' }, [['authorization', `Bearer ${canary}`]]],
    [{ type: 'basic', credential: 'token' }, [['authorization', `Basic ${canary}`]]],
    [{ type: 'apiKey', name: 'X-API-Key', credential: 'token' }, [['x-api-key', canary]]],
    [
      {
        type: 'customHeaders',
        headers: [
          { name: 'x-a', credential: 'token' },
          { name: 'x-b', credential: 'second' },
        ],
      },
      [
        ['x-a', canary],
        ['x-b', 'value-2'],
      ],
    ],
  ];
  test.each(auths)('%j', async (auth, headers) => {
    await mine.create(body([binding('b', { auth })], [credential(), credential('second', 'value-2')]));
    expect(await send()).toMatchObject({ kind: 'changed', headers: expect.arrayContaining(headers) });
    expect(await send({ method: 'OPTIONS' })).toMatchObject({ secrets: [], headers: [plain] });
    expect(await send({ verifiedTls: false, port: 80 })).toEqual({ kind: 'none' });
  });

  test('a substitution replaces a placeholder of the client’s own, and only where it says', async () => {
    const substitutions = [
      { credential: 'token', placeholder: 'TOKEN', in: ['path', 'query', 'header', 'body'] },
    ];
    await mine.create(body([binding('b', { auth: { type: 'passthrough', substitutions } })]));
    const injection = await send({ target: '/TOKEN?k=TOKEN', headers: [['x', 'TOKEN']] });
    if (injection.kind !== 'changed') throw new Error(injection.kind);
    expect(injection).toMatchObject({ target: `/${canary}?k=${canary}`, headers: [['x', canary], plain] });
    expect(injection.body?.(Buffer.from('a TOKEN')).body.toString()).toBe(`a ${canary}`);
    // An ordinary word is no alarm anywhere else; a long one is.
    expect(await send({ host: 'evil.example', target: '/TOKEN' })).toEqual({ kind: 'none' });
    const long = [{ credential: 'token', placeholder: '__PLACEHOLDER_TOKEN__', in: ['header'] }];
    await mine.patch({
      bindings: { replace: [binding('b', { auth: { type: 'passthrough', substitutions: long } })] },
    });
    expect(await send({ host: 'evil.example', target: '/__PLACEHOLDER_TOKEN__' })).toMatchObject({
      alarm: true,
    });
    expect(await send({ target: '/__PLACEHOLDER_TOKEN__' }, 's2')).toEqual({ kind: 'none' });
  });

  test('an answer that echoes the pair of a basic credential is scrubbed of it', async () => {
    const pair = Buffer.from('me:a-long-password').toString('base64');
    await mine.create(
      body([binding('b', { auth: { type: 'basic', credential: 'token' } })], [credential('token', pair)]),
    );
    const injection = await send();
    if (injection.kind !== 'changed') throw new Error(injection.kind);
    expect(injection.scrub.map(String)).toEqual(
      expect.arrayContaining([pair, 'me:a-long-password', 'a-long-password']),
    );
  });
});

describe('refusals', () => {
  const other = (name: string, over: object = {}, match: object = {}) => binding(name, over, match);
  const bodies: [string, unknown, RegExp][] = [
    ['no body', undefined, /body/],
    ['no bindings', { credentials: [] }, /bindings/],
    ['an unknown field', { ...body(), extra: 1 }, /unknown fields: extra/],
    [
      'an unknown field further down',
      body([binding('b', { more: 1 })]),
      /bindings\.0: has unknown fields: more/,
    ],
    [
      'an unknown field of a source',
      body([], [{ name: 'a', source: { value: canary, url: 'x' } }]),
      /unknown fields: url/,
    ],
    [
      'a source that is not inline',
      body([], [{ name: 'a', source: { type: 'file', value: canary } }]),
      /source\.type/,
    ],
    ['an empty value', body([], [credential('a', '')]), /source\.value/],
    ['a line break in a value', body([], [credential('a', `${canary}\n`)]), /control characters/],
    ['a blank name', body([], [credential('  ')]), /name/],
    ['a name twice', body([], [credential('a'), credential('a')]), /duplicate credential/],
    [
      'a binding twice',
      body([binding('b'), other('b', {}, { hosts: ['b.example.com'] })]),
      /duplicate binding/,
    ],
    [
      'an unknown credential',
      body([binding('b', { auth: { type: 'bearer', credential: 'none' } })]),
      /unknown credential "none"/,
    ],
    ['an unknown auth', body([binding('b', { auth: { type: 'oauth', credential: 'token' } })]), /auth/],
    [
      'a reserved header',
      body([binding('b', { auth: { type: 'apiKey', name: 'Host', credential: 'token' } })]),
      /"Host"/,
    ],
    [
      'a header that is none',
      body([binding('b', { auth: { type: 'apiKey', name: 'a b', credential: 'token' } })]),
      /name of a header/,
    ],
    ['no hosts', body([binding('b', {}, { hosts: [] })]), /hosts/],
    ['a URL', body([binding('b', {}, { hosts: ['https://api.example.com'] })]), /full host name/],
    ['an address', body([binding('b', {}, { hosts: ['192.0.2.1'] })]), /full host name/],
    ['a bare label', body([binding('b', {}, { hosts: ['localhost'] })]), /full host name/],
    ['a wildcard inside', body([binding('b', {}, { hosts: ['a.*.example.com'] })]), /full host name/],
    [
      'a host that no rule allows',
      body([binding('b', {}, { hosts: ['api.other.org'] })]),
      /no rule of the egress policy/,
    ],
    ['a port of its own', body([binding('b', {}, { ports: [8443] })]), /ports/],
    ['plain HTTP', body([binding('b', {}, { schemes: ['https', 'http'] })]), /verified TLS/],
    ['a path that is none', body([binding('b', {}, { paths: ['v1/*'] })]), /path/],
    [
      'two bindings for one request',
      body([binding('a'), other('b', { auth: { type: 'apiKey', name: 'x', credential: 'token' } })]),
      /same request/,
    ],
    [
      'two wildcards for one request',
      body([binding('a', {}, { hosts: ['*.example.com'] }), other('b', {}, { hosts: ['*.b.example.com'] })]),
      /same request/,
    ],
    [
      'a substitution without a place',
      body([
        binding('b', {
          auth: { type: 'passthrough', substitutions: [{ credential: 'token', placeholder: 'X', in: [] }] },
        }),
      ]),
      /in/,
    ],
  ];
  test.each(bodies)('%s', async (_, sent, message) => {
    const failure = await failureOf(() => mine.create(sent));
    expect(failure).toMatchObject({ code: 'invalid', message: expect.stringMatching(message) });
    expect(`${failure.stack} ${failure.hint}`).not.toContain(canary);
    expect(await failureOf(() => mine.state())).toMatchObject({ code: 'not-found' });
  });

  test.each([
    ['other methods', { methods: ['POST'] }, { methods: ['GET'] }],
    ['other paths', { paths: ['/a/*'] }, { paths: ['/b/*'] }],
    ['a name and a wildcard', {}, { hosts: ['*.example.com'] }],
  ])('but not two bindings for %s', async (_, a, b) => {
    expect((await mine.create(body([binding('a', {}, a), other('b', {}, b)]))).bindings).toHaveLength(2);
  });

  const patches: [string, object, string, RegExp][] = [
    ['another revision', { expectedRevision: 7 }, 'conflict', /7 does not match the current revision 1/],
    ['adding what is there', { credentials: { add: [credential()] } }, 'invalid', /exists already/],
    [
      'replacing what is not there',
      { credentials: { replace: [credential('x')] } },
      'invalid',
      /does not exist/,
    ],
    ['deleting what is not there', { bindings: { delete: ['x'] } }, 'invalid', /does not exist/],
    [
      'deleting and adding one name',
      { bindings: { delete: ['b'], add: [binding('b')] } },
      'invalid',
      /several operations/,
    ],
    ['deleting a credential in use', { credentials: { delete: ['token'] } }, 'invalid', /unknown credential/],
    ['an unknown field', { credentials: { remove: ['token'] } }, 'invalid', /unknown fields: remove/],
  ];
  test.each(patches)('of a patch: %s', async (_, patch, code, message) => {
    const before = await mine.create(body());
    expect(await failureOf(() => mine.patch(patch))).toMatchObject({
      code,
      message: expect.stringMatching(message),
    });
    expect(mine.state()).toEqual(before);
  });

  test('of everything where there is no vault, and of a second one', async () => {
    const asked = [
      () => mine.state(),
      () => mine.patch({}),
      () => mine.remove(),
      () => mine.credentials(),
      () => mine.binding('b'),
    ];
    for (const ask of asked) expect(await failureOf(ask)).toMatchObject({ code: 'not-found' });
    await mine.create(body());
    expect(await failureOf(() => mine.create(body()))).toMatchObject({ code: 'conflict' });
    expect(await failureOf(() => mine.credential('x'))).toMatchObject({ code: 'not-found' });
    expect(await failureOf(() => mine.binding('x'))).toMatchObject({ code: 'not-found' });
  });
});

test("the npm client's own calls, over HTTP", async () => {
  const server = createServer(async (incoming, outgoing) => {
    const chunks: Buffer[] = [];
    for await (const chunk of incoming) chunks.push(chunk);
    const sent = chunks.length === 0 ? undefined : JSON.parse(Buffer.concat(chunks).toString());
    const [, , kind, name] = (incoming.url ?? '').split('/').map(decodeURIComponent);
    try {
      const answers: Record<string, () => unknown> = {
        POST: () => mine.create(sent),
        PATCH: () => mine.patch(sent),
        DELETE: () => mine.remove(),
        GET: () => mine.state(),
        'GET credentials': () =>
          name === undefined
            ? { revision: mine.state().revision, credentials: mine.credentials() }
            : mine.credential(name),
        'GET bindings': () =>
          name === undefined
            ? { revision: mine.state().revision, bindings: mine.bindings() }
            : mine.binding(name),
      };
      const answer = await answers[[incoming.method, kind].filter(Boolean).join(' ')]?.();
      outgoing.writeHead(incoming.method === 'POST' ? 201 : answer === undefined ? 204 : 200);
      outgoing.end(answer === undefined ? '' : JSON.stringify(answer));
    } catch (failure) {
      outgoing.writeHead(httpStatusOf((failure as Failure).code)).end((failure as Failure).message);
    }
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  try {
    const egressBaseUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const { credentialVault: client } = new DefaultAdapterFactory().createEgressStack({
      egressBaseUrl,
      connectionConfig: new ConnectionConfig(),
    });
    if (client === undefined) throw new Error('this client has no credential vault');
    const created = await client.create({
      credentials: [{ name: 'api token', source: { value: canary } }],
      bindings: [
        {
          name: 'api/token',
          match: { schemes: ['https'], hosts: ['API.example.com'], paths: ['/v1/*'] },
          auth: { type: 'apiKey', name: 'x-api-key', credential: 'api token' },
        },
      ],
    });
    expect(created).toMatchObject({
      revision: 1,
      bindings: [{ auth: { type: 'apiKey', name: 'x-api-key' } }],
    });
    expect(await client.get()).toEqual(created);
    const patched = await client.patch({
      expectedRevision: 1,
      credentials: { add: [{ name: 'second', source: { type: 'inline', value: canary } }] },
    });
    expect(patched.revision).toBe(2);
    expect(await client.listCredentials()).toHaveLength(2);
    expect(await client.getCredential('api token')).toEqual({
      name: 'api token',
      sourceType: 'inline',
      revision: 1,
    });
    expect(await client.listBindings()).toHaveLength(1);
    expect((await client.getBinding('api/token')).revision).toBe(2);
    await expect(client.patch({ expectedRevision: 1 })).rejects.toMatchObject({ statusCode: 409 });
    await expect(client.create({ credentials: [], bindings: [] })).rejects.toMatchObject({ statusCode: 409 });
    await expect(client.getCredential('none')).rejects.toMatchObject({ statusCode: 404 });
    await client.delete();
    await expect(client.get()).rejects.toMatchObject({ statusCode: 404 });
  } finally {
    server.close();
    server.closeAllConnections();
  }
});
