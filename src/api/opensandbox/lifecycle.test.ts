// OpenSandbox's lifecycle API as tables of requests and answers.
import { expect, test } from 'vitest';
import { startTestApi } from '../fake.fixture.ts';

/** What the npm client sends for the least it can be asked for. */
const least = {
  image: { uri: 'busybox' },
  entrypoint: ['tail', '-f', '/dev/null'],
  resourceLimits: { cpu: '1', memory: '2Gi' },
  secureAccess: false,
  env: {},
  metadata: {},
  extensions: {},
  timeout: 600,
};

test('a sandbox is created, shown, changed, paused, resumed, renewed and removed', async () => {
  await using api = await startTestApi();
  const created = await api.call('POST', '/v1/sandboxes', {
    ...least,
    image: { uri: 'busybox', auth: { username: 'u', password: 'p' } },
    env: { A: '1', B: null },
    metadata: { team: 'x' },
    extensions: { 'glovebox.runtime': 'docker', 'acme.io/anything': 'kept' },
    platform: { os: 'linux', arch: 'amd64' },
    volumes: [
      { name: 'v', host: { path: '/data' }, subPath: 'a/b', mountPath: '/mnt', readOnly: true },
      { name: 'w', pvc: { claimName: 'c', deleteOnSandboxTermination: true }, mountPath: '/c' },
    ],
  });
  expect(created.status).toBe(202);
  expect(created.headers.get('location')).toBe('/v1/sandboxes/made-1');
  expect(api.service.created).toEqual([
    {
      image: 'busybox',
      imageCredentials: { username: 'u', password: 'p' },
      platform: { os: 'linux', arch: 'amd64' },
      runtime: 'docker',
      entrypoint: ['tail', '-f', '/dev/null'],
      env: { A: '1' },
      metadata: { team: 'x' },
      extensions: { 'glovebox.runtime': 'docker', 'acme.io/anything': 'kept' },
      limits: { cpu: 1, memoryBytes: 2 ** 31 },
      mounts: [{ hostPath: '/data', subPath: 'a/b', guestPath: '/mnt', readOnly: true }],
      volumes: [{ name: 'c', guestPath: '/c', readOnly: false, create: true, removeWhenUnused: true }],
      timeoutMs: 600_000,
    },
  ]);
  const path = '/v1/sandboxes/made-1';
  expect(created.json).toEqual({
    id: 'made-1',
    status: { state: 'Running', reason: 'running', message: 'it runs', lastTransitionAt: expect.any(String) },
    metadata: { team: 'x' },
    platform: { os: 'linux', arch: 'amd64' },
    extensions: { 'glovebox.runtime': 'docker', 'acme.io/anything': 'kept' },
    createdAt: expect.stringMatching(/Z$/),
    expiresAt: expect.stringMatching(/Z$/),
    entrypoint: ['tail', '-f', '/dev/null'],
    glovebox: {
      keep: false,
      workspaces: [],
      ports: [],
      holds: 0,
      commands: 0,
      runtime: 'memory',
      limits: { cpu: 1, memoryBytes: 2 ** 31 },
    },
  });
  expect((await api.call('GET', path)).json).toEqual({ ...created.json, image: { uri: 'busybox' } });
  const patched = await api.call('PATCH', `${path}/metadata`, { team: null, role: 'a', missing: null });
  expect([patched.status, patched.json.metadata]).toEqual([200, { role: 'a' }]);

  for (const [action, state, again] of [
    ['pause', 'Paused', 409],
    ['resume', 'Running', 409],
  ] as const) {
    const done = await api.call('POST', `${path}/${action}`);
    expect([done.status, done.text, done.headers.get('content-length')]).toEqual([202, '', '0']);
    expect((await api.call('GET', path)).json.status.state).toBe(state);
    expect((await api.call('POST', `${path}/${action}`)).status).toBe(again);
  }
  const renewed = await api.call('POST', `${path}/renew-expiration`, {
    expiresAt: '2030-01-01T02:00:00+02:00',
  });
  expect([renewed.status, renewed.json]).toEqual([200, { expiresAt: '2030-01-01T00:00:00.000Z' }]);
  const naive = await api.call('POST', `${path}/renew-expiration`, { expiresAt: '2031-01-01T00:00:00' });
  expect(naive.json).toEqual({ expiresAt: '2031-01-01T00:00:00.000Z' });

  expect((await api.call('DELETE', path)).status).toBe(204);
  expect((await api.call('DELETE', path)).status).toBe(404);
});

test('what a sandbox may reach goes on to the service with the rest, before anything of it runs', async () => {
  await using api = await startTestApi();
  const rules = [{ decision: 'allow', resources: ['example.com:443', 'localhost:9999'], name: 'mine' }];
  const created = await api.call('POST', '/v1/sandboxes', {
    ...least,
    networkPolicy: { egress: [{ action: 'allow', target: '*.python.org' }, { target: 'x.python.org' }] },
    credentialProxy: { enabled: true },
    glovebox: { rules },
  });
  expect(created.status).toBe(202);
  expect(api.service.created[0]).toMatchObject({
    networkPolicy: {
      defaultAction: 'deny',
      egress: [
        { action: 'allow', target: '*.python.org' },
        { action: 'deny', target: 'x.python.org' },
      ],
    },
    rules,
  });
  await api.call('POST', '/v1/sandboxes', {
    ...least,
    networkPolicy: null,
    credentialProxy: { enabled: false },
  });
  expect(api.service.created[1]).not.toHaveProperty('networkPolicy');
  expect(api.service.created[1]).not.toHaveProperty('rules');
});

test('without a timeout, or with null, there is no expiry; an entrypoint is not needed', async () => {
  await using api = await startTestApi();
  for (const timeout of [undefined, null]) {
    const { json } = await api.call('POST', '/v1/sandboxes', { image: { uri: 'x' }, timeout });
    expect(json).not.toHaveProperty('expiresAt');
    expect(json).not.toHaveProperty('extensions');
    expect(json.entrypoint).toEqual([]);
  }
});

test.each([
  [
    'a field of ours that there is not',
    { glovebox: { keeps: true } },
    /keeps/,
    /^Leave it out, or correct its name; there are .*\bkeep, .*workspaces\.$/,
  ],
  [
    'a field of a volume that there is not',
    { volumes: [{ name: 'v', mountpath: '/m', mountPath: '/m', pvc: { claimName: 'c' } }] },
    /mountpath/,
    /there are host, mountPath, name, ossfs, pvc, readOnly, subPath\.$/,
  ],
  [
    'a bad name of a volume',
    { volumes: [{ name: 'My_Data', mountPath: '/m', pvc: { claimName: 'c' } }] },
    /volumes\.0\.name: .*small letters, digits and -, such as my-data/,
    /openapi\.json tells what every field takes/,
  ],
])('%s is refused with the way that there is', async (_, change, message, hint) => {
  await using api = await startTestApi();
  const answer = await api.call('POST', '/v1/sandboxes', { ...least, ...change });
  expect([answer.status, answer.json.message]).toEqual([400, expect.stringMatching(message)]);
  expect(answer.headers.get('glovebox-hint')).toMatch(hint);
});

test.each([
  ['no image', { image: undefined }, 400, 'image'],
  ['an empty uri', { image: { uri: '' } }, 400, 'image.uri'],
  ['half a credential', { image: { uri: 'x', auth: { username: 'u' } } }, 400, 'image.auth.password'],
  ['a field with a typing error', { timeOut: 60 }, 400, 'timeOut'],
  ['too short a timeout', { timeout: 59 }, 400, 'timeout'],
  ['a fraction of a second', { timeout: 60.5 }, 400, 'timeout'],
  ['too long a timeout', { timeout: 7201 }, 400, 'timeout'],
  ['a timeout beyond every calendar', { timeout: 8_640_000_000_000 }, 400, 'timeout'],
  ['a timeout in words', { timeout: '600' }, 400, 'timeout'],
  ['an empty entrypoint', { entrypoint: [] }, 400, 'entrypoint'],
  ['a bad quantity', { resourceLimits: { memory: 'much' } }, 400, 'memory'],
  ['an unknown resource', { resourceLimits: { cpus: '1' } }, 400, 'cpus'],
  ['a number as a quantity', { resourceLimits: { cpu: 1 } }, 400, 'cpu'],
  ['a bad variable name', { env: { 'A=B': 'x' } }, 400, 'A=B'],
  ['NUL in a variable', { env: { A: 'x\0y' } }, 400, 'env.A'],
  ['a reserved label', { metadata: { 'opensandbox.io/x': 'y' } }, 400, 'opensandbox.io'],
  ['a bad label', { metadata: { '-x': 'y' } }, 400, '-x'],
  ['a bad label value', { metadata: { x: 'no spaces' } }, 400, 'x'],
  ['a long label value', { metadata: { x: 'y'.repeat(64) } }, 400, 'x'],
  ['a label that is a number', { metadata: { x: 1 } }, 400, 'metadata.x'],
  ['an unknown platform', { platform: { os: 'plan9', arch: 'amd64' } }, 400, 'platform.os'],
  ['an image and a snapshot', { snapshotId: 's' }, 400, 'snapshotId'],
  ['the image of a snapshot', { image: { uri: 'docker.io/glovebox/snapshot/a:b' } }, 400, 'snapshots'],
  ['a credential proxy for no policy', { credentialProxy: { enabled: true } }, 400, 'credentialProxy'],
  ['an unknown action', { networkPolicy: { egress: [{ action: 'ask', target: 'a' }] } }, 400, 'action'],
  ['a rule without a target', { networkPolicy: { egress: [{ action: 'allow' }] } }, 400, 'target'],
  ['an unknown field of a policy', { networkPolicy: { defaultAktion: 'allow' } }, 400, 'defaultAktion'],
  ['an unknown field of ours', { glovebox: { rule: [] } }, 400, 'glovebox'],
  ['a rule of ours without resources', { glovebox: { rules: [{ decision: 'allow' }] } }, 400, 'resources'],
  [
    'a rule of ours for another sandbox',
    { glovebox: { rules: [{ decision: 'allow', resources: ['a'], sandbox: 'b' }] } },
    400,
    'sandbox',
  ],
  ['requests beyond its limits', { resourceRequests: { cpu: '1.5' } }, 400, 'resourceRequests'],
  ['a request that is no quantity', { resourceRequests: { memory: 'much' } }, 400, 'resourceRequests.memory'],
  [
    'a request for all of less',
    { resourceLimits: { gpu: '1' }, resourceRequests: { gpu: 'all' } },
    400,
    'gpu',
  ],
  ...['299', '86401', '', '6e2', '600.5', '-600', ' 600', 'soon'].map(
    (text): [string, object, number, string] => [
      `renewal by use for ${JSON.stringify(text)}`,
      { extensions: { 'access.renew.extend.seconds': text } },
      400,
      'access.renew',
    ],
  ),
  ['a pause in the past', { extensions: { 'glovebox.idle.pause.seconds': '-1' } }, 400, 'or 0 for never'],
  ['a start of the inside', { extensions: { 'bootstrap.execd.other': 'enable' } }, 501, 'bootstrap'],
  ['half an isolation', { extensions: { 'bootstrap.execd.isolation': 'half' } }, 400, 'isolation'],
  ['an unknown extension of ours', { extensions: { 'glovebox.rntime': 'x' } }, 400, 'glovebox.rntime'],
  ['an extension that is a number', { extensions: { a: 1 } }, 400, 'extensions.a'],
  [
    'a named volume',
    { volumes: [{ name: 'v', mountPath: '/m', pvc: { claimName: 'C' } }] },
    400,
    'claimName',
  ],
  [
    'a named volume of a size that is none',
    { volumes: [{ name: 'v', mountPath: '/m', pvc: { claimName: 'c', storage: 'much' } }] },
    400,
    'storage',
  ],
  ['a bucket without keys', { volumes: [{ name: 'v', mountPath: '/m', ossfs: {} }] }, 400, 'ossfs.bucket'],
  ['a volume from nowhere', { volumes: [{ name: 'v', mountPath: '/m' }] }, 400, 'volumes.v'],
  [
    'a volume from two places',
    { volumes: [{ name: 'v', mountPath: '/m', host: { path: '/a' }, pvc: { claimName: 'c' } }] },
    400,
    'volumes.v',
  ],
  ['a relative mount', { volumes: [{ name: 'v', mountPath: 'm', host: { path: '/a' } }] }, 400, 'mountPath'],
  [
    'a way out of a volume',
    { volumes: [{ name: 'v', mountPath: '/m', subPath: '../b', host: { path: '/a' } }] },
    400,
    'subPath',
  ],
  [
    'the same volume twice',
    { volumes: [1, 2].map(() => ({ name: 'v', mountPath: '/m', host: { path: '/a' } })) },
    400,
    'twice',
  ],
  ['an unknown image', { image: { uri: 'missing' } }, 404, 'missing'],
])('a create request with %s is refused', async (_, change, status, named) => {
  await using api = await startTestApi({ limits: { sandboxTimeoutSecondsMax: 7200 } });
  const answer = await api.call('POST', '/v1/sandboxes', { ...least, ...change });
  expect([answer.status, Object.keys(answer.json)]).toEqual([status, ['code', 'message']]);
  expect(answer.json.code).toMatch(/^(SANDBOX|VOLUME)::/);
  expect(answer.json.message).toContain(named);
  expect(api.service.created).toEqual([]);
});

test.each([
  ['/metadata', 'PATCH', { a: 1 }, 400],
  ['/metadata', 'PATCH', { 'opensandbox.io/a': 'x' }, 400],
  ['/metadata', 'PATCH', { 'opensandbox.io/a': null }, 400],
  ['/metadata', 'PATCH', ['a'], 400],
  ['/metadata', 'PATCH', {}, 200],
  ['/renew-expiration', 'POST', {}, 400],
  ['/renew-expiration', 'POST', { expiresAt: 'tomorrow' }, 400],
  ['/renew-expiration', 'POST', { expiresAt: '2020-01-01T00:00:00Z' }, 400],
  ['/renew-expiration', 'POST', { expiresAt: '2030-13-01T00:00:00Z' }, 400],
  ['/renew-expiration', 'POST', { expiresAt: '2030-01-01T00:00:00Z', more: 1 }, 400],
  ['/resume', 'POST', undefined, 409],
])('%s %s %j is answered %i', async (path, method, body, status) => {
  await using api = await startTestApi();
  api.service.add('e', { expiresAt: new Date('2027-01-01') });
  expect((await api.call(method, `/v1/sandboxes/e${path}`, body)).status).toBe(status);
});

test('a sandbox that is removed by hand cannot be renewed', async () => {
  await using api = await startTestApi();
  const answer = await api.call('POST', '/v1/sandboxes/s/renew-expiration', {
    expiresAt: '2030-01-01T00:00:00Z',
  });
  expect(answer.status).toBe(409);
});

test('lists are cut into pages, newest first', async () => {
  await using api = await startTestApi();
  for (let n = 1; n <= 24; n += 1) api.service.add(`n${n}`);
  const { json } = await api.call('GET', '/v1/sandboxes');
  expect(json.items.map((it: { id: string }) => it.id).slice(0, 2)).toEqual(['n24', 'n23']);
  expect(json.pagination).toEqual({
    page: 1,
    pageSize: 20,
    totalItems: 25,
    totalPages: 2,
    hasNextPage: true,
  });
  const second = (await api.call('GET', '/v1/sandboxes?page=2')).json;
  expect([second.items.length, second.pagination.hasNextPage]).toEqual([5, false]);
  const beyond = (await api.call('GET', '/v1/sandboxes?page=9&pageSize=200')).json;
  expect([beyond.items, beyond.pagination.totalPages]).toEqual([[], 1]);
  const none = (await api.call('GET', '/v1/sandboxes?state=Failed')).json;
  expect(none.pagination).toEqual({
    page: 1,
    pageSize: 20,
    totalItems: 0,
    totalPages: 0,
    hasNextPage: false,
  });
});

test.each([
  ['state=Running', ['b', 'a', 's']],
  ['state=paused&state=RUNNING', ['p', 'b', 'a', 's']],
  [`metadata=${encodeURIComponent('team=x')}`, ['b', 'a']],
  [`metadata=${encodeURIComponent('team=x&role=r.1')}`, ['b']],
  [`metadata=${encodeURIComponent('team%3Dx')}`, 400],
  [`metadata=${encodeURIComponent('role=r%2E1')}`, ['b']],
  [`metadata=${encodeURIComponent('team=')}`, []],
  ['metadata=team', 400],
  ['metadata=', 400],
  ['state=Sleeping', 400],
  ['page=0', 400],
  ['page=1&page=2', 400],
  ['page=1.5', 400],
  ['page=', 400],
  ['page=0x1', 400],
  ['pageSize=201', 400],
  ['unknown=1', ['p', 'b', 'a', 's']],
] as const)('a list with %s', async (query, expected) => {
  await using api = await startTestApi();
  api.service.add('a', { metadata: { team: 'x' } });
  api.service.add('b', { metadata: { team: 'x', role: 'r.1' } });
  api.service.add('p', { state: 'Paused' });
  const { status, json } = await api.call('GET', `/v1/sandboxes?${query}`);
  if (typeof expected === 'number') expect(status).toBe(expected);
  else expect(json.items.map((it: { id: string }) => it.id)).toEqual(expected);
});

test.each([
  ['/v1/sandboxes/s/endpoints/44772', {}, 'HOST/sandboxes/s/proxy/44772'],
  ['/v1/sandboxes/s/endpoints/18080?use_server_proxy=false', {}, 'HOST/sandboxes/s/proxy/18080'],
  ['/sandboxes/s/endpoints/8080?use_server_proxy=true', {}, 'HOST/sandboxes/s/proxy/8080'],
  ['/v1/sandboxes/s/endpoints/80', { eip: 'box.example' }, 'box.example:PORT/sandboxes/s/proxy/80'],
  ['/v1/sandboxes/s/endpoints/80', { eip: 'box.example:443' }, 'box.example:443/sandboxes/s/proxy/80'],
])('the endpoint of %s', async (path, options, endpoint) => {
  await using api = await startTestApi(options);
  const { port } = api.server;
  const wanted = endpoint.replace('HOST', `127.0.0.1:${port}`).replace('PORT', String(port));
  const first = await api.call('GET', path);
  expect([first.status, first.json]).toEqual([
    200,
    {
      endpoint: wanted,
      headers: {
        'OpenSandbox-Secure-Access': 'token-of-s',
        ...(path.includes('/18080') ? { 'OPENSANDBOX-EGRESS-AUTH': 'token-of-s' } : {}),
      },
    },
  ]);
  await api.call('POST', '/v1/sandboxes/s/pause');
  expect((await api.call('GET', path)).json).toEqual(first.json);
});

test.each([
  ['/v1/sandboxes/nope/endpoints/44772', 404],
  ['/v1/sandboxes/s/endpoints/0', 400],
  ['/v1/sandboxes/s/endpoints/65536', 400],
  ['/v1/sandboxes/s/endpoints/080', 400],
  ['/v1/sandboxes/s/endpoints/http', 400],
  ['/v1/sandboxes/s/endpoints/80?expires=1900000000', 400],
  ['/v1/sandboxes/s/endpoints/80?use_server_proxy=maybe', 400],
])('GET %s is answered %i', async (path, status) => {
  await using api = await startTestApi();
  expect((await api.call('GET', path)).status).toBe(status);
});

test('images are imported from a stream, listed and removed; reports of clients are taken', async () => {
  await using api = await startTestApi();
  const made = await api.call('POST', '/v1/images?name=my%2Fimage', Buffer.alloc(100_000));
  expect([made.status, made.json.name, made.json.sizeBytes]).toEqual([201, 'my/image', 100_000]);
  expect((await api.call('GET', '/v1/images')).json.items).toHaveLength(1);
  expect((await api.call('DELETE', '/v1/images/my%2Fimage')).status).toBe(204);
  expect((await api.call('DELETE', '/v1/images/my%2Fimage')).json.code).toBe('IMAGE::NOT_FOUND');
  expect((await api.call('POST', '/v1/images', 'x')).status).toBe(400);
  expect((await api.call('POST', '/v1/images?name=x', '')).status).toBe(400);
  expect((await api.call('POST', '/v1/metrics/events', { eventType: 'sandbox.create' })).status).toBe(204);
  expect((await api.call('GET', '/v1/system')).json.sandboxes).toBe(1);
});

test('what a client asks for that holds here anyway is taken', async () => {
  await using api = await startTestApi();
  const extensions = { 'access.renew.extend.seconds': '300', 'glovebox.idle.pause.seconds': '90' };
  const { status, json } = await api.call('POST', '/v1/sandboxes', {
    ...{ ...least, secureAccess: true, extensions },
    resourceLimits: { cpu: '1', memory: '2Gi' },
    resourceRequests: { cpu: '500m', memory: '2Gi' },
  });
  expect([status, json.extensions]).toEqual([202, extensions]);
  const never = { ...least, extensions: { 'glovebox.idle.pause.seconds': '0' } };
  expect((await api.call('POST', '/v1/sandboxes', never)).status).toBe(202);
  expect(api.service.created).toMatchObject([
    { limits: { cpu: 1, memoryBytes: 2 ** 31 }, renewOnAccessMs: 300_000, autoPauseAfterMs: 90_000 },
    { autoPauseAfterMs: null },
  ]);
});

test('whoever reaches a port or the inside of a sandbox uses it, and whoever looks at it does not', async () => {
  await using api = await startTestApi();
  await api.call('GET', '/v1/sandboxes/s');
  await api.call('GET', '/v1/sandboxes/s/endpoints/8080');
  await api.call('GET', '/v1/sandboxes/s/diagnostics/events');
  expect(api.service.touched).toEqual([]);
  await api.call('GET', '/sandboxes/s/proxy/44772/ping');
  await api.call('GET', '/v1/sandboxes/s/proxy/8080/');
  expect(api.service.touched).toEqual(['s', 's']);
});
