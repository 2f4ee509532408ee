import { expect, test } from 'vitest';
import { PoolTemplate } from '../contract/pool.ts';
import type { CreateRequest } from '../sandbox/sandbox.ts';
import { fits } from './match.ts';

const template = PoolTemplate.parse({
  image: { uri: 'debian' },
  resourceLimits: { cpu: '500m', memory: '512Mi' },
});
const request: CreateRequest = {
  image: 'debian',
  entrypoint: [],
  env: {},
  metadata: {},
  extensions: {},
  limits: { memoryBytes: 512 * 2 ** 20, cpu: 0.5 },
  mounts: [],
};
const asked = (change: object, runtime = 'docker') =>
  fits({ ...request, ...change }, runtime, { template, runtime: 'docker' });

test.each<[string, object]>([
  ['the same', {}],
  ['a main process, environment and names', { entrypoint: ['a'], env: { A: 'b' }, metadata: { a: 'b' } }],
  ['an expiry, and renewal by use', { timeoutMs: 60_000, renewOnAccessMs: 300_000 }],
  [
    'a policy, which is bound when it is handed out',
    { networkPolicy: { defaultAction: 'deny', egress: [] } },
  ],
  ['a project', { project: { id: '1', name: 'one' } }],
  ['empty wishes', { rules: [], files: [], setup: [], workspaces: [], published: [], keep: false }],
  ['pulling only what is missing', { pull: 'missing' }],
])('it fits: %s', (_, change) => expect(asked(change)).toBe(true));

test.each<[string, object]>([
  ['another image', { image: 'alpine' }],
  ['fewer limits', { limits: { cpu: 0.5 } }],
  ['other limits', { limits: { ...request.limits, cpu: 1 } }],
  ['more limits', { limits: { ...request.limits, pids: 64 } }],
  ['a platform', { platform: { os: 'linux', arch: 'arm64' } }],
  ['a pull', { pull: 'always' }],
  ['credentials', { imageCredentials: { username: 'a', password: 'b' } }],
  ['mounts', { mounts: [{ hostPath: '/a', guestPath: '/a', readOnly: true }] }],
  ['workspaces', { workspaces: [{ path: '/a' }] }],
  ['rules', { rules: [{ decision: 'allow', resources: ['a'] }] }],
  ['the bell', { bell: {} }],
  ['ports', { published: [{ sandboxPort: 1 }] }],
  ['files', { files: [{ path: '/a', content: '', mode: '644' }] }],
  ['setup', { setup: [{ run: 'a', when: 'create', timeoutSeconds: 1 }] }],
  ['keeping', { keep: true }],
  ['a pause when idle', { autoPauseAfterMs: 1_000 }],
  ['a user', { user: '1000' }],
  ['a folder', { cwd: '/tmp' }],
  ['an agent', { agent: 'claude' }],
  ['a worker', { worker: 'gpu-1' }],
  ['what nobody knows of yet', { later: 'a wish' }],
])('it does not fit: %s', (_, change) => expect(asked(change)).toBe(false));

test('on another runtime nothing fits', () => expect(asked({}, 'bubblewrap')).toBe(false));
