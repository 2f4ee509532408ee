// What is saved of a sandbox as a template, and may be handed on: the guest's files, and nothing that is the daemon's, the vault's or another sandbox's.
import {
  chmodSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { SandboxClient } from '../../sdk/src/index.ts';
import { expectNothingLeft, startDaemon, type TestDaemon } from '../daemon.ts';
import { imageFor, runtimes } from '../runtimes.ts';

const value = 'ghp_theValueThatNoGuestEverSees0123456789';
const name = 'keep-saved-test/one';

describe.each(runtimes)('%s', (runtime) => {
  let daemon: TestDaemon;
  let client: SandboxClient;
  let project: string;

  beforeAll(async () => {
    daemon = await startDaemon({ runtime });
    client = new SandboxClient({ home: daemon.home });
    project = realpathSync(mkdtempSync(join(tmpdir(), 'keep-saved-')));
    chmodSync(project, 0o755);
    writeFileSync(join(project, 'source'), 'the text of the workspace');
  });
  afterAll(async () => {
    for (const { id } of await client.list()) await client.handle(id).kill();
    for (const it of await client.templates.list())
      if (it.name.startsWith(name)) await client.templates.remove(it.name, { runtime: it.runtime });
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(daemon.home);
    rmSync(project, { recursive: true, force: true });
  });

  test('a saved template holds no secret, key, token or workspace, running or stopped', async () => {
    await client.secrets.set({ name: 'github', source: { type: 'value', value } });
    const sandbox = await client.create({
      ...{ runtime, image: await imageFor(runtime, daemon, 'busybox'), keep: true },
      workspaces: [{ path: project }],
      rules: [{ decision: 'allow', resources: ['api.github.com:443'] }],
    });
    await sandbox.run('echo guest-was-here >/root/mark', { check: true, user: '0' });
    const keys = ['api-key', 'owner-key'].map((it) => readFileSync(join(daemon.home, it), 'utf8').trim());
    const run = join(daemon.home, 'run', sandbox.id);
    const tokens = readdirSync(run).flatMap((it) => {
      try {
        const text = readFileSync(join(run, it), 'utf8').trim();
        return /token|key/.test(it) && text.length >= 16 ? [text] : [];
      } catch {
        return [];
      }
    });
    for (const state of ['running', 'stopped']) {
      if (state === 'stopped') await sandbox.stop();
      const tag = `${name}-${state}`;
      await sandbox.save(tag);
      const pieces: Uint8Array[] = [];
      for await (const piece of await client.templates.export(tag, { runtime })) pieces.push(piece);
      const tar = Buffer.concat(pieces);
      expect(tar.includes('guest-was-here'), state).toBe(true);
      for (const secret of [value, ...keys, ...tokens, 'the text of the workspace', 'PRIVATE KEY'])
        expect(tar.includes(secret), `${state}: ${secret}`).toBe(false);
    }
  });
});
