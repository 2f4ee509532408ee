// Every 4xx that OpenSandbox's specifications of the lifecycle, the diagnostics and the way out name, each provoked over HTTP, or told why there is none here.
import { describe, expect, test } from 'vitest';
import { fakeTenants, startTestApi, type TestApi } from '../fake.fixture.ts';

const create = { image: { uri: 'x' }, entrypoint: ['x'], resourceLimits: {} };
const nobody = '00000000-0000-4000-8000-000000000000';
const egress = '/sandboxes/s/proxy/18080';
const vault = { credentials: [{ name: 'c', source: { type: 'inline', value: 'x' } }], bindings: [] };

type Provoke = [path: string, body?: unknown, before?: (api: TestApi) => void];
/** By status: how it comes about, or why it never does. 401 comes to whoever shows no key, 403 to a page of another origin. */
interface Operation {
  method: string;
  path: string;
  refusals: Record<number, Provoke | string | true>;
}

const sandbox = (path: string) => `/v1/sandboxes/s${path}`;
const unknown = (path: string): Provoke => [`/v1/sandboxes/${nobody}${path}`];
const inState =
  (state: 'Running' | 'Paused' | 'Failed') =>
  (api: TestApi): void => {
    api.service.add('s', { state });
  };
const noVault: Provoke = [`${egress}/credential-vault`];

const operations: Operation[] = [
  { method: 'GET', path: '/v1/sandboxes', refusals: { 400: ['/v1/sandboxes?page=0'], 401: true } },
  {
    method: 'POST',
    path: '/v1/sandboxes',
    refusals: {
      400: ['/v1/sandboxes', { ...create, resourceLimits: { memory: 'lots' } }],
      401: true,
      409: 'see src/sandbox/projects.test.ts: a name that is taken',
    },
  },
  { method: 'GET', path: '/v1/snapshots', refusals: { 400: ['/v1/snapshots?state=Odd'], 401: true } },
  {
    method: 'GET',
    path: `/v1/snapshots/${nobody}`,
    refusals: {
      401: true,
      403: true,
      404: [`/v1/snapshots/${nobody}`],
      409: 'one that is looked at is in nobody’s way',
    },
  },
  {
    method: 'DELETE',
    path: `/v1/snapshots/${nobody}`,
    refusals: {
      401: true,
      403: true,
      404: [`/v1/snapshots/${nobody}`],
      409: 'see snapshots.test.ts: it is being made, or in use',
    },
  },
  { method: 'GET', path: sandbox(''), refusals: { 401: true, 403: true, 404: unknown('') } },
  {
    method: 'DELETE',
    path: sandbox(''),
    refusals: {
      401: true,
      403: true,
      404: unknown(''),
      409: 'in any state one can be removed, and a removal is waited for',
    },
  },
  {
    method: 'PATCH',
    path: sandbox('/metadata'),
    refusals: {
      400: [sandbox('/metadata'), { 'a key with spaces': 'x' }],
      401: true,
      403: true,
      404: [`/v1/sandboxes/${nobody}/metadata`, { a: 'x' }],
      409: 'see src/sandbox/projects.test.ts: a name that is taken',
    },
  },
  {
    method: 'POST',
    path: sandbox('/snapshots'),
    refusals: {
      400: [sandbox('/snapshots'), { name: 7 }],
      401: true,
      403: true,
      404: unknown('/snapshots'),
      409: [sandbox('/snapshots'), undefined, inState('Failed')],
    },
  },
  {
    method: 'POST',
    path: sandbox('/pause'),
    refusals: {
      401: true,
      403: true,
      404: unknown('/pause'),
      409: [sandbox('/pause'), undefined, inState('Failed')],
    },
  },
  {
    method: 'POST',
    path: sandbox('/resume'),
    refusals: {
      401: true,
      403: true,
      404: unknown('/resume'),
      409: [sandbox('/resume'), undefined, inState('Failed')],
    },
  },
  {
    method: 'POST',
    path: sandbox('/renew-expiration'),
    refusals: {
      400: [sandbox('/renew-expiration'), { expiresAt: 'soon' }],
      401: true,
      403: true,
      404: [`/v1/sandboxes/${nobody}/renew-expiration`, { expiresAt: '2099-01-01T00:00:00Z' }],
      409: [sandbox('/renew-expiration'), { expiresAt: '2099-01-01T00:00:00Z' }],
    },
  },
  {
    method: 'GET',
    path: sandbox('/endpoints/80'),
    refusals: { 400: [sandbox('/endpoints/65536')], 401: true, 403: true, 404: unknown('/endpoints/80') },
  },
  ...['logs', 'events'].map(
    (kind): Operation => ({
      method: 'GET',
      path: sandbox(`/diagnostics/${kind}`),
      refusals: {
        400: [sandbox(`/diagnostics/${kind}?scope=`)],
        401: true,
        403: true,
        404: unknown(`/diagnostics/${kind}?scope=lifecycle`),
      },
    }),
  ),
  { method: 'GET', path: `${egress}/policy`, refusals: { 401: true } },
  { method: 'PATCH', path: `${egress}/policy`, refusals: { 400: [`${egress}/policy`, []], 401: true } },
  { method: 'DELETE', path: `${egress}/policy`, refusals: { 400: [`${egress}/policy`, []], 401: true } },
  {
    method: 'POST',
    path: `${egress}/credential-vault`,
    refusals: {
      400: [`${egress}/credential-vault`, { ...vault, more: 1 }],
      401: true,
      409: [
        `${egress}/credential-vault`,
        vault,
        (api) => void api.network.credentialVault('s').create(vault as never),
      ],
      412: 'what it needs is always there',
    },
  },
  { method: 'GET', path: `${egress}/credential-vault`, refusals: { 401: true, 404: noVault } },
  {
    method: 'PATCH',
    path: `${egress}/credential-vault`,
    refusals: {
      400: [`${egress}/credential-vault`, { credentials: 7 }],
      401: true,
      404: [`${egress}/credential-vault`, {}],
      409: [
        `${egress}/credential-vault`,
        { expectedRevision: 77 },
        (api) => void api.network.credentialVault('s').create(vault as never),
      ],
      412: 'what it needs is always there',
    },
  },
  { method: 'DELETE', path: `${egress}/credential-vault`, refusals: { 401: true, 404: noVault } },
  ...['credentials', 'credentials/c', 'bindings', 'bindings/b'].map(
    (part): Operation => ({
      method: 'GET',
      path: `${egress}/credential-vault/${part}`,
      refusals: { 401: true, 404: [`${egress}/credential-vault/${part}`] },
    }),
  ),
];

describe.each(operations)('$method $path', ({ method, path, refusals }) => {
  const provoked = Object.entries(refusals).flatMap(([status, how]): [number, Provoke | true][] =>
    typeof how === 'string' ? [] : [[Number(status), how]],
  );
  test.each(provoked)('%i', async (status, how) => {
    await using api = await startTestApi({ tenants: fakeTenants() });
    const [where, body, before] = how === true ? [path] : how;
    before?.(api);
    const headers = {
      401: { 'OPEN-SANDBOX-API-KEY': 'wrong' },
      403: { Origin: 'https://elsewhere.example' },
    };
    const answer = await api.call(method, where, body, headers[status as 401]);
    const said = path.startsWith(egress) ? expect.stringMatching(/^[^{]+/) : JSON.stringify(answer.json);
    expect([answer.status, answer.text]).toEqual([status, said]);
    if (!path.startsWith(egress))
      expect(answer.json).toEqual({ code: expect.stringMatching(/^[A-Z_:]+$/), message: expect.any(String) });
  });
});
