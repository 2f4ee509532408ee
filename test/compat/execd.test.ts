// What execd tells of a sandbox and does with its files, on every runtime of this machine: measured from inside and out, found, replaced, refused.

import { totalmem } from 'node:os';
import { createInterface } from 'node:readline';
import { Readable } from 'node:stream';
import type { ReadableStream } from 'node:stream/web';
import { ConnectionConfig, Sandbox } from '@alibaba-group/opensandbox';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { call, create, remove, run } from '../client.ts';
import { expectNothingLeft, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { imageFor, runtimes } from '../runtimes.ts';

interface Metrics {
  cpu_count: number;
  cpu_used_pct: number;
  mem_total_mib: number;
  mem_used_mib: number;
  timestamp: number;
}

describe.each(runtimes)('%s', (runtime) => {
  let daemon: TestDaemon;
  let id: string;
  let base: string;

  beforeAll(async () => {
    daemon = await startDaemon({ runtime });
    id = await create(daemon, {
      image: { uri: await imageFor(runtime, daemon, 'busybox') },
      resourceLimits: { cpu: '500m', memory: '200Mi' },
    });
    base = `/v1/sandboxes/${id}/proxy/44772`;
  });

  afterAll(async () => {
    await remove(daemon, id);
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(daemon.home);
  });

  const execd = (method: string, path: string, body?: unknown) =>
    call(daemon, method, `${base}${path}`, body);
  const metrics = async () => (await execd('GET', '/metrics')).body as unknown as Metrics;

  test('metrics are those of the sandbox: its limits, and what its own commands use', async () => {
    const idle = await metrics();
    expect(idle).toMatchObject({ cpu_count: 0.5, mem_total_mib: 200 });
    expect(idle.mem_total_mib).toBeLessThan(totalmem() / 1024 ** 2);
    expect(idle.mem_used_mib).toBeGreaterThan(0);
    // A shell that holds 32 MiB and takes all of the processor that it may have.
    const { body } = await execd('POST', '/command', {
      command: "held=$(yes | tr -d '\\n' | head -c 33554432); while :; do :; done",
      background: true,
    });
    const command = JSON.parse(String(body.text).split('\n')[0] ?? '').text as string;
    const watch = await fetch(`${daemon.url}${base}/metrics/watch`, {
      headers: { 'OPEN-SANDBOX-API-KEY': daemon.apiKey },
    });
    expect(watch.status).toBe(200);
    let seen: Metrics | undefined;
    const input = Readable.fromWeb(watch.body as ReadableStream<Uint8Array>);
    for await (const line of createInterface({ input })) {
      seen = JSON.parse(line) as Metrics;
      if (seen.cpu_used_pct > 2 && seen.mem_used_mib > idle.mem_used_mib + 25) break;
    }
    input.destroy();
    expect(seen?.timestamp).toBeGreaterThan(idle.timestamp);
    expect(seen?.mem_used_mib).toBeLessThanOrEqual(200);
    expect((await execd('DELETE', `/command?id=${command}`)).status).toBe(200);
    await until('the memory to be given back', metrics, (it) => it.mem_used_mib < idle.mem_used_mib + 20);
  });

  test('files are searched by the pattern of their names, hidden ones as well, links left alone', async () => {
    await run(
      daemon,
      id,
      'mkdir -p /srv/s/.git/deep /srv/s/b; cd /srv/s; touch a.ts b/b.tsx b/.env .git/deep/config; ln -s / loop; ln -s a.ts link.ts',
    );
    const found = async (pattern?: string) => {
      const query = pattern === undefined ? '' : `&pattern=${encodeURIComponent(pattern)}`;
      const { body } = await execd('GET', `/files/search?path=/srv/s${query}`);
      return (body as unknown as { path: string }[]).map((it) => it.path.slice('/srv/s/'.length)).sort();
    };
    expect(await found()).toEqual(['.git/deep/config', 'a.ts', 'b/.env', 'b/b.tsx']);
    expect(await found('*.{ts,tsx}')).toEqual(['a.ts', 'b/b.tsx']);
    expect(await found('[ab].ts*')).toEqual(['a.ts', 'b/b.tsx']);
    expect(await found('.*')).toEqual(['b/.env']);
    for (const pattern of ['[a', '{a', 'x'.repeat(2_000)])
      expect(await execd('GET', `/files/search?path=/srv/s&pattern=${pattern}`)).toMatchObject({
        status: 400,
        body: { code: 'INVALID_REQUEST_BODY' },
      });
    expect((await execd('GET', '/files/search?path=/srv/none')).status).toBe(404);
  });

  test('a replacement keeps what else a file is, and is all or nothing for each', async () => {
    await run(
      daemon,
      id,
      'mkdir /srv/r; cd /srv/r; printf "a b a" >f; chmod 640 f; chown 7:8 f; printf x >g',
    );
    const replaced = await execd('POST', '/files/replace?verbose=true', {
      '/srv/r/f': { old: 'a', new: 'long ' },
      '/srv/r/g': { old: 'nothing', new: 'y' },
    });
    expect(replaced.body).toEqual({ '/srv/r/f': { replacedCount: 2 }, '/srv/r/g': { replacedCount: 0 } });
    expect((await run(daemon, id, 'cat /srv/r/f; stat -c " %a %u:%g" /srv/r/f')).stdout).toBe(
      'long  b long  640 7:8\n',
    );
    for (const [path, status] of [
      ['/srv/r/none', 404],
      ['/srv/r', 400],
    ] as const)
      expect((await execd('POST', '/files/replace', { [path]: { old: 'a', new: 'b' } })).status).toBe(status);
    expect((await execd('GET', '/files/download?path=/srv/r')).status).toBe(400);
    expect((await execd('POST', '/files/mv', [{ src: '/srv/r/none', dest: '/srv/r/x' }])).status).toBe(404);
    expect((await execd('POST', '/files/mv', [{ src: '/srv/r/f', dest: '/srv/r/g' }])).status).toBe(409);
    const nobody = { '/srv/r/f': { mode: 600, owner: 'never-made' } };
    expect((await execd('POST', '/files/permissions', nobody)).status).toBe(400);
    expect((await run(daemon, id, 'cat /srv/r/g')).stdout).toBe('x\n');
  });

  test('without the wish for them there are no isolated sessions, a client is told so and why, and the reason is true', async () => {
    const connectionConfig = new ConnectionConfig({ domain: daemon.url, apiKey: daemon.apiKey });
    const sandbox = await Sandbox.connect({ sandboxId: id, connectionConfig });
    try {
      expect(await sandbox.isolation.capabilities()).toMatchObject({
        available: false,
        message: expect.stringContaining('namespaces'),
        setpriv_available: false,
        userns_available: false,
      });
      expect(await sandbox.isolation.list()).toEqual([]);
      await expect(sandbox.isolation.runOnce('true', '/tmp')).rejects.toThrow(
        /503.*NOT_SUPPORTED.*namespaces/,
      );
      await expect(sandbox.isolation.attach('none')).rejects.toThrow(/503/);
    } finally {
      await sandbox.close();
    }
    for (const kind of ['-U', '-m', '-p', '-n'])
      expect(await run(daemon, id, `unshare ${kind} true`)).toMatchObject({
        stderr: expect.stringContaining('not permitted'),
        exitCode: 1,
      });
  });
});
