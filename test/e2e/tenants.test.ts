// Two projects on one real daemon: each has its sandboxes, uses them through the command line and the SDK with its key, and neither finds the other.
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { WebSocket } from 'ws';
import { SandboxClient } from '../../sdk/src/index.ts';
import { call } from '../client.ts';
import { commandLine, environmentOf } from '../command-line.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon } from '../daemon.ts';
import { runtimes } from '../runtimes.ts';

describe.skipIf(!runtimes.includes('bubblewrap'))('tenants of a real daemon', () => {
  const home = makeHome();
  const glovebox = commandLine(environmentOf(home), () => home);
  let daemon: TestDaemon;

  beforeAll(async () => {
    daemon = await startDaemon({ home, runtime: 'bubblewrap' });
  });
  afterAll(async () => {
    await glovebox('project', 'rm', '-f', '--sandboxes', 'alpha', 'beta');
    await daemon.stop();
    await expectNothingLeft(home);
  });

  const keyOf = async (project: string, ...options: string[]): Promise<{ id: string; key: string }> => {
    const made = await glovebox('project', 'key', 'create', project, '--json', ...options);
    expect([made.code, made.stderr]).toEqual([0, '']);
    return JSON.parse(made.stdout);
  };
  const clientOf = (apiKey: string) => new SandboxClient({ url: daemon.url, apiKey });
  /** The command line of somebody who has nothing but an address and a key. */
  const as = (key: string) =>
    commandLine({ ...environmentOf(home), GLOVEBOX_URL: daemon.url, GLOVEBOX_API_KEY: key }, () => home);

  test('what one has the other neither sees nor guesses, and both use the same names', async () => {
    for (const [name, ...quotas] of [
      ['alpha', '--sandboxes', '2'],
      ['beta', '--sandboxes', '2'],
    ] as const)
      expect(await glovebox('project', 'create', name, ...quotas)).toMatchObject({
        code: 0,
        stdout: `${name}\n`,
      });
    const changed = await glovebox('project', 'set', 'beta', '--ports', '1', '--memory', '8Gi', '--json');
    expect(JSON.parse(changed.stdout).quotas).toEqual({ sandboxes: 2, ports: 1, memoryBytes: 2 ** 33 });
    const unset = await glovebox('project', 'set', 'beta', '--unset', 'memory', '--json');
    expect(JSON.parse(unset.stdout).quotas).toEqual({ sandboxes: 2, ports: 1 });
    expect((await glovebox('project', 'set', 'beta', '--unset', 'disk')).stderr).toMatch(/is no quota/);
    const alpha = await keyOf('alpha', '--label', 'ci');
    const beta = await keyOf('beta', '--role', 'admin');
    const [first, second] = [clientOf(alpha.key), clientOf(beta.key)];
    const mine = await first.create({ name: 'web' });
    const theirs = await second.create({ name: 'web' });
    expect((await mine.run('echo alpha > /tmp/who; cat /tmp/who')).stdout).toBe('alpha\n');
    expect((await theirs.run('cat /tmp/who')).exitCode).not.toBe(0);

    const shown = await as(beta.key)('ls', '--json');
    expect(JSON.parse(shown.stdout).sandboxes.map((it: { id: string }) => it.id)).toEqual([theirs.id]);
    // The command line of the other finds its own by the shared name.
    expect(await as(beta.key)('exec', 'web', '--', 'echo', 'hello')).toMatchObject({
      code: 0,
      stdout: 'hello\n',
    });
    const headers = { 'OPEN-SANDBOX-API-KEY': beta.key };
    const unknown = '11111111-2222-4333-8444-555555555555';
    for (const path of [
      '',
      '/why',
      '/ports',
      '/network',
      '/proxy/44772/files/download?path=/tmp/who',
      '/endpoints/80',
    ]) {
      const [foreign, absent] = [
        await call(daemon, 'GET', `/v1/sandboxes/${mine.id}${path}`, undefined, headers),
        await call(daemon, 'GET', `/v1/sandboxes/${unknown}${path}`, undefined, headers),
      ];
      const plain = (it: unknown) => JSON.stringify(it).replaceAll(mine.id, unknown);
      expect([path, foreign.status, plain(foreign.body)]).toEqual([path, 404, plain(absent.body)]);
    }
    for (const verb of ['stop', 'rm', 'inspect'])
      expect((await as(beta.key)(verb, mine.id)).stderr).toContain(`no sandbox is called '${mine.id}'`);
    expect((await mine.info()).state).toBe('Running');
    // The administrator sees both, and is not taken to one of them by a name that both have.
    const all: { project?: string }[] = JSON.parse((await glovebox('ls', '--json')).stdout).sandboxes;
    expect(all.map((it) => it.project).sort()).toEqual(['alpha', 'beta']);
    expect((await glovebox('exec', 'web', 'true')).stderr).toMatch(/2 sandboxes of projects are called that/);

    const listed = JSON.parse((await glovebox('project', 'ls', '--json')).stdout);
    expect(listed).toMatchObject([
      { name: 'alpha', quotas: { sandboxes: 2 }, usage: { sandboxes: 1 }, keys: 1 },
      { name: 'beta', usage: { sandboxes: 1 } },
    ]);
    await first.create({});
    await expect(first.create({})).rejects.toMatchObject({ code: 'exhausted' });
    await expect(first.create({ workspaces: [{ path: home }] })).rejects.toMatchObject({
      code: 'permission',
    });
    await expect(first.system()).rejects.toMatchObject({ code: 'permission' });
    for (const it of await first.list()) await first.handle(it.id).kill();
    // One that is gone is remembered for its own project.
    expect((await first.why(mine.id)).state).toBe('Gone');
    await expect(second.why(mine.id)).rejects.toMatchObject({ code: 'not-found' });
  });

  test('a restart forgets neither keys nor whose a sandbox is', async () => {
    const { key } = await keyOf('beta');
    const [before] = await clientOf(key).list();
    await daemon.stop();
    daemon = await startDaemon({ home, runtime: 'bubblewrap' });
    expect(await clientOf(key).list()).toMatchObject([{ id: before?.id, name: 'web', project: 'beta' }]);
    expect(
      (
        await clientOf(key)
          .handle(before?.id ?? '')
          .run('echo still')
      ).stdout,
    ).toBe('still\n');
  });

  test("a project's sandbox opens neither the host nor the owner's secrets, whatever its own rules say", async () => {
    const { key } = await keyOf('beta');
    const client = clientOf(key);
    const port = Number(new URL(daemon.url).port);
    expect((await glovebox('secret', 'set', 'github', '-t', 'ghp_of_the_owner')).code).toBe(0);
    const sandbox = await client.create({
      rules: [{ decision: 'allow', resources: [`localhost:${port}`, `127.0.0.1:${port}`] }],
    });
    const owners = await new SandboxClient({ home }).create({
      rules: [{ decision: 'allow', resources: [`localhost:${port}`] }],
    });
    await using undo = new AsyncDisposableStack();
    undo.use(owners);
    undo.use(sandbox);
    const reach = `curl -s -o /dev/null -w '%{http_code}' --noproxy '' -x http://127.0.0.1:3128 http://localhost:${port}/health`;
    expect((await sandbox.run(reach)).stdout).toBe('403');
    expect((await sandbox.run('env')).stdout).not.toMatch(/GH_TOKEN|GITHUB_TOKEN/);
    // The same for the owner's own is let through, so it was the rule about projects that refused it.
    expect((await owners.run(reach)).stdout).toBe('200');
    expect((await owners.run('env')).stdout).toMatch(/GH_TOKEN|GITHUB_TOKEN/);
  });

  test('a key that is revoked is cut in the middle of a session, and its project goes with all that it has', async () => {
    const { key, id } = await keyOf('beta');
    const [sandbox] = await clientOf(key).list();
    const socket = new WebSocket(`${daemon.url}/v1/sandboxes/${sandbox?.id}/hold`, {
      headers: { 'OPEN-SANDBOX-API-KEY': key },
    });
    await new Promise((resolve, reject) => socket.once('open', resolve).once('error', reject));
    const closed = new Promise<number>((resolve) => socket.once('close', resolve));
    expect((await glovebox('project', 'key', 'revoke', 'beta', id)).code).toBe(0);
    expect(await closed).toBe(1008);
    await expect(clientOf(key).list()).rejects.toMatchObject({ code: 'unauthenticated' });
    const refused = await glovebox('project', 'rm', '-f', 'beta');
    expect(refused).not.toMatchObject({ code: 0 });
    expect(refused.stderr).toMatch(/project beta has 1 sandbox/);
    expect(await glovebox('project', 'rm', '-f', '--sandboxes', 'beta')).toMatchObject({ code: 0 });
    expect((await glovebox('ls', '--json')).stdout).not.toContain(sandbox?.id);
    const lines = (await glovebox('audit', 'log', '--limit', '200')).stdout;
    expect(lines).toMatch(/by=project .*createSandbox .*project=alpha key=[0-9a-f]{12}/);
    expect((await glovebox('audit', 'verify')).code).toBe(0);
  });
});
