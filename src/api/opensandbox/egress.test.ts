// OpenSandbox's egress API: its table of requests, and its own client against it.

import type { IncomingMessage } from 'node:http';
import { ConnectionConfig, Sandbox } from '@alibaba-group/opensandbox';
import { expect, test } from 'vitest';
import { startTestApi, type TestApi, testKey } from '../fake.fixture.ts';
import { egressHandlers, patched } from './egress.ts';

const policy = {
  defaultAction: 'deny' as const,
  egress: [
    { action: 'allow' as const, target: 'pypi.org' },
    { action: 'deny' as const, target: '*.example.com' },
  ],
};
const base = '/sandboxes/s/proxy/18080';

async function start(): Promise<TestApi> {
  const api = await startTestApi();
  api.network.policies.set('s', policy);
  return api;
}

test('the policy is shown, patched in front, thinned out, and replaced', async () => {
  await using api = await start();
  const status = { status: 'ok', mode: 'enforcing', enforcementMode: 'dns+nft' };
  const shown = async () => (await api.call('GET', `${base}/policy`)).json;
  expect(await shown()).toEqual({ ...status, policy });

  const patch = await api.call('PATCH', `${base}/policy`, [
    { action: 'deny', target: 'PyPI.org.' },
    { action: 'allow', target: 'pypi.org' },
    { target: 'other.example' },
  ]);
  expect([patch.status, patch.json]).toEqual([200, status]);
  expect((await shown()).policy.egress).toEqual([
    { action: 'deny', target: 'PyPI.org.' },
    { action: 'deny', target: 'other.example' },
    { action: 'deny', target: '*.example.com' },
  ]);

  const thinned = await api.call('DELETE', `${base}/policy`, ['pypi.ORG', 'unknown.example']);
  expect([thinned.status, thinned.json]).toEqual([200, status]);
  const none = await api.call('DELETE', `${base}/policy`, ['unknown.example']);
  expect(none.json).toEqual({ ...status, reason: 'no matching targets found' });
  expect((await shown()).policy.egress).toHaveLength(2);

  for (const method of ['POST', 'PUT']) {
    const opened = await api.call(method, `${base}/policy`, { defaultAction: 'allow' });
    expect(opened.json).toEqual({ ...status, mode: 'allow_all' });
    expect((await shown()).policy).toEqual({ defaultAction: 'allow', egress: [] });
  }
});

test.each([
  ['nothing', undefined],
  ['null', 'null'],
  ['an empty object', '{}'],
  ['a null list', '{"egress":null}'],
])('a policy replaced by %s denies everything', async (_, body) => {
  await using api = await start();
  const answer = await api.call('POST', `${base}/policy`, body);
  expect([answer.status, answer.json.mode, answer.json.reason]).toEqual([
    200,
    'deny_all',
    expect.any(String),
  ]);
  expect(api.network.policies.get('s')).toEqual({ defaultAction: 'deny', egress: [] });
});

const rules = (count: number) => Array.from({ length: count }, (_, n) => ({ target: `h${n}.example` }));

test.each([
  ['PATCH', '/policy', { action: 'allow', target: 'a' }, 400],
  ['PATCH', '/policy', [], 400],
  ['PATCH', '/policy', undefined, 400],
  ['PATCH', '/policy', [{ action: 'ask', target: 'a' }], 400],
  ['PATCH', '/policy', [{ action: 'allow', target: 'a', port: 1 }], 400],
  ['PATCH', '/policy', rules(4_095), 413],
  ['POST', '/policy', { egress: rules(4_097) }, 413],
  ['POST', '/policy', `{"egress":[],"x":"${'x'.repeat(1024 * 1024)}"}`, 413],
  ['POST', '/policy', { default: 'allow' }, 400],
  ['POST', '/policy', '{"egress"', 400],
  ['DELETE', '/policy', { target: 'a' }, 400],
  ['DELETE', '/policy', [], 400],
  ['GET', '/credential-vault', undefined, 404],
  ['PATCH', '/credential-vault', {}, 404],
  ['DELETE', '/credential-vault', undefined, 404],
  ['GET', '/credential-vault/credentials/x', undefined, 404],
  ['POST', '/credential-vault', { credentials: [], bindings: [], more: 1 }, 400],
  ['POST', '/credential-vault', { credentials: [{ name: 'a', source: { type: 'vault', value: 'x' } }] }, 400],
  [
    'POST',
    '/credential-vault',
    { bindings: [{ name: 'a', match: { hosts: [] }, auth: { type: 'bearer', credential: 'x' } }] },
    400,
  ],
  [
    'POST',
    '/credential-vault',
    { bindings: [{ name: 'a', match: { hosts: ['h'] }, auth: { type: 'magic' } }] },
    400,
  ],
  ['GET', '/nowhere', undefined, 404],
  ['GET', '', undefined, 404],
  ['POST', '/healthz', undefined, 405],
] as const)('%s %s with %.60j is refused with %i and plain text', async (method, path, body, status) => {
  await using api = await start();
  const answer = await api.call(method, base + path, body);
  expect([answer.status, answer.headers.get('content-type')]).toEqual([status, 'text/plain; charset=utf-8']);
  expect(answer.text).toMatch(/^[^{]/);
  expect(api.network.policies.get('s')).toEqual(policy);
});

test('a sandbox without a policy of its own has none to patch; it is given one whole', async () => {
  await using api = await startTestApi();
  for (const [method, body] of [
    ['GET', undefined],
    ['PATCH', [{ target: 'a' }]],
    ['DELETE', ['a']],
  ] as const)
    expect((await api.call(method, `${base}/policy`, body)).status).toBe(404);
  expect((await api.call('POST', `${base}/policy`, policy)).status).toBe(200);
  expect((await api.call('GET', `${base}/policy`)).json.policy).toEqual(policy);
});

test('it is opened by each of the token headers, and by no token of another sandbox', async () => {
  await using api = await start();
  api.service.add('other');
  for (const header of ['OPENSANDBOX-EGRESS-AUTH', 'OpenSandbox-Secure-Access', 'X-EXECD-ACCESS-TOKEN']) {
    const ask = async (path: string, token: string) =>
      (await fetch(`${api.url}${path}`, { headers: { [header]: token } })).status;
    expect(await ask(`${base}/policy`, 'token-of-s')).toBe(200);
    expect(await ask(`${base}/healthz`, 'token-of-s')).toBe(200);
    expect(await ask(`/v1${base}/policy`, 'token-of-s')).toBe(200);
    // Through execd, as upstream's own server goes.
    expect(await ask('/sandboxes/s/proxy/44772/proxy/18080/policy', 'token-of-s')).toBe(200);
    expect(await ask(`${base}/policy`, 'token-of-other')).toBe(401);
    expect(await ask('/sandboxes/other/proxy/18080/policy', 'token-of-s')).toBe(401);
    expect(await ask('/v1/policy/rules', 'token-of-s')).toBe(401);
  }
  expect((await fetch(`${api.url}${base}/healthz`)).status).toBe(401);
  expect((await api.call('GET', '/sandboxes/nope/proxy/18080/policy')).status).toBe(404);
});

test('a server of the guest at that port is never asked', async () => {
  await using api = await start();
  const guest = api.service.add('t');
  guest.ports.set(18_080, api.server.port);
  expect((await api.call('GET', '/sandboxes/t/proxy/18080/health')).status).toBe(404);
  expect((await api.call('GET', '/sandboxes/t/proxy/44772/proxy/18080/health')).status).toBe(404);
});

test('credentials are made and changed over loopback only', async () => {
  await using api = await start();
  const handlers = egressHandlers({ service: api.service, network: api.network } as never);
  const request = { socket: { remoteAddress: '192.0.2.1' } } as unknown as IncomingMessage;
  const call = { sandboxId: 's', body: { credentials: [], bindings: [] }, exchange: { request } } as never;
  for (const id of ['createCredentialVault', 'patchCredentialVault', 'deleteCredentialVault'] as const)
    await expect(async () => await handlers[id](call)).rejects.toMatchObject({ status: 426 });
  expect(api.network.vaults.size).toBe(0);
});

test('patched rules stand in front, the first of several for one target', () => {
  const allow = (target: string) => ({ action: 'allow' as const, target });
  const deny = (target: string) => ({ action: 'deny' as const, target });
  const now = { defaultAction: 'deny' as const, egress: [allow('a.example'), deny('b.example.')] };
  expect(
    patched(now, [deny('A.example'), allow('a.example'), allow('b.EXAMPLE'), allow('*.a.example')]),
  ).toEqual({
    defaultAction: 'deny',
    egress: [deny('A.example'), allow('b.EXAMPLE'), allow('*.a.example')],
  });
});

test("OpenSandbox's own client reads and changes policy and vault, and sees why something is refused", async () => {
  await using api = await start();
  const connectionConfig = new ConnectionConfig({
    domain: new URL(api.url).host,
    protocol: 'http',
    apiKey: testKey,
  });
  const sandbox = await Sandbox.connect({ sandboxId: 's', connectionConfig, skipHealthCheck: true });
  expect(await sandbox.getEgressPolicy()).toEqual(policy);
  await sandbox.patchEgressRules([{ action: 'allow', target: 'www.github.com' }]);
  await sandbox.deleteEgressRules(['pypi.org', 'unknown.example']);
  expect((await sandbox.getEgressPolicy()).egress).toEqual([
    { action: 'allow', target: 'www.github.com' },
    { action: 'deny', target: '*.example.com' },
  ]);
  await expect(sandbox.patchEgressRules([])).rejects.toThrow();

  const { credentialVault } = sandbox;
  const match = { hosts: ['www.github.com'] };
  const created = await credentialVault.create({
    credentials: [{ name: 'token', source: { type: 'inline', value: 'hunter2' } }],
    bindings: [{ name: 'github', match, auth: { type: 'bearer', credential: 'token' } }],
  });
  expect(created).toEqual({
    revision: 1,
    credentials: [{ name: 'token', sourceType: 'inline', revision: 1 }],
    bindings: [{ name: 'github', revision: 1, match, auth: { type: 'bearer' } }],
  });
  await expect(credentialVault.create({ credentials: [], bindings: [] })).rejects.toMatchObject({
    statusCode: 409,
    message: 'credential vault already exists',
  });
  expect(await credentialVault.get()).toEqual(created);
  expect((await credentialVault.patch({ expectedRevision: 1 })).revision).toBe(2);
  await expect(credentialVault.patch({ expectedRevision: 1 })).rejects.toMatchObject({ statusCode: 409 });
  expect(await credentialVault.listCredentials()).toEqual(created.credentials);
  expect(await credentialVault.getCredential('token')).toEqual(created.credentials[0]);
  expect(await credentialVault.listBindings()).toEqual(created.bindings);
  expect(await credentialVault.getBinding('github')).toEqual(created.bindings[0]);
  await credentialVault.delete();
  await expect(credentialVault.get()).rejects.toMatchObject({ statusCode: 404 });
  await sandbox.close();
});
