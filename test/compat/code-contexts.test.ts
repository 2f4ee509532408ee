// Code contexts as OpenSandbox's clients use them, on every runtime of this machine: with a kernel of Jupyter, and with the language's own program.
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { call, create } from '../client.ts';
import { expectNothingLeft, startDaemon, type TestDaemon, until } from '../daemon.ts';
import type { TestImage } from '../images.ts';
import { imageFor, runtimes } from '../runtimes.ts';
import { Specification } from './specification.ts';

interface Event {
  type: string;
  text?: string;
  results?: Record<string, string>;
  execution_count?: number;
  error?: { ename: string; evalue: string; traceback: string[] };
}

const images: [TestImage, string][] = [
  ['debian', 'python'],
  ['jupyter', 'jupyter-python'],
];

const specification = new Specification();

describe.each(
  runtimes.flatMap((runtime) => images.map((it) => [runtime, ...it] as const)),
)('%s, %s', (runtime, image, prefix) => {
  let daemon: TestDaemon;
  let sandbox: string;

  let unwatch: () => void;
  beforeAll(async () => {
    unwatch = specification.watch();
    daemon = await startDaemon({ runtime });
    sandbox = await create(daemon, { image: { uri: await imageFor(runtime, daemon, image) } });
  });
  afterAll(async () => {
    await call(daemon, 'DELETE', `/v1/sandboxes/${sandbox}`);
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(daemon.home);
    unwatch();
    expect(await specification.seen()).toEqual([]);
  });

  const execd = (method: string, path: string, body?: unknown) =>
    call(daemon, method, `/sandboxes/${sandbox}/proxy/44772${path}`, body);
  const run = async (code: string, context?: object): Promise<Event[]> => {
    const { status, body } = await execd('POST', '/code', { code, context });
    expect([status, body]).toEqual([200, { text: expect.any(String) }]);
    return String(body.text)
      .trim()
      .split('\n\n')
      .map((it) => JSON.parse(it) as Event)
      .filter((it) => it.type !== 'ping');
  };
  const made = async (language: string): Promise<string> => {
    const { status, body } = await execd('POST', '/code/context', { language });
    expect([status, body.language]).toEqual([200, language]);
    return body.id as string;
  };
  const shown = (events: Event[]) =>
    events.filter((it) => it.type !== 'init').map(({ type, text, results }) => text ?? results?.text ?? type);

  test('a context keeps what code leaves, several do not see each other', async () => {
    const [one, two] = await Promise.all([made('python'), made('python')]);
    expect(one.startsWith(`${prefix}-`)).toBe(true);
    const first = await run('x = 41\nprint("out")\nx + 1', { id: one });
    expect(first[0]).toMatchObject({ type: 'init', text: one });
    expect(shown(first)).toEqual(['out', '42', 'execution_count', 'execution_complete']);
    expect(first.find((it) => it.type === 'execution_count')?.execution_count).toBe(1);
    expect(shown(await run('x', { id: one }))[0]).toBe('41');
    expect((await run('x', { id: two })).at(-1)?.error?.ename).toBe('NameError');
    const rich = await run('class H:\n    def _repr_html_(self): return "<b>bold</b>"\nH()', { id: one });
    expect(rich.find((it) => it.type === 'result')?.results).toMatchObject({ 'text/html': '<b>bold</b>' });
    const { body } = await execd('GET', '/code/contexts?language=python');
    expect((body as unknown as { id: string }[]).map((it) => it.id).sort()).toEqual([one, two].sort());
    for (const id of [one, two]) expect((await execd('DELETE', `/code/contexts/${id}`)).status).toBe(200);
    expect(await execd('GET', `/code/contexts/${one}`)).toMatchObject({
      status: 404,
      body: { code: 'CONTEXT_NOT_FOUND' },
    });
  });

  test('a run that is interrupted is an error, and the rest stays', async () => {
    const id = await made('python');
    await run('kept = "yes"', { id });
    const running = run('open("/tmp/begun", "w").close()\nimport time\ntime.sleep(600)', { id });
    await until(
      'the run',
      async () => (await execd('GET', '/files/info?path=/tmp/begun')).status,
      (it) => it === 200,
    );
    expect((await execd('DELETE', `/code?id=${id}`)).status).toBe(200);
    expect((await running).at(-1)?.error?.ename).toBe('KeyboardInterrupt');
    expect(shown(await run('kept', { id }))[0]).toBe("'yes'");
    expect((await execd('DELETE', '/code?id=nope')).status).toBe(404);
  });

  test('a kernel that dies in the middle of a run is an error, and the next run has a new one', async () => {
    const id = await made('python');
    await run('x = 1', { id });
    expect((await run('import os; os.kill(os.getpid(), 9)', { id })).at(-1)?.type).toBe('error');
    expect((await run('x', { id })).at(-1)?.error?.ename).toBe('NameError');
  });

  test('a language alone means the one that all share; without one a shell runs it', async () => {
    await Promise.all([run('shared = 1', { language: 'python' }), run('1', { language: 'python' })]);
    expect(shown(await run('shared', { language: 'python' }))[0]).toBe('1');
    expect(shown(await run('echo $0; exit 3'))).toEqual([expect.stringMatching(/sh/), 'error']);
    expect(shown(await run('x=1; echo $x', { language: 'bash' }))).toEqual(['1', 'execution_complete']);
    expect((await execd('DELETE', '/code/contexts?language=bash')).status).toBe(200);
    expect(await execd('POST', '/code/context', { language: 'fortran' })).toMatchObject({ status: 501 });
    expect((await execd('POST', '/code/context', { language: '../x' })).status).toBe(400);
  });

  test('another daemon finds the contexts, with all that they know and what was running in them', async () => {
    const [id, slow, stuck] = await Promise.all([made('python'), made('python'), made('python')]);
    await run('x = "known"', { id });
    const cut = [
      run(
        'open("/tmp/slow", "w").close()\nimport os, time\nwhile not os.path.exists("/tmp/go"): time.sleep(0.05)\nx = "late"',
        { id: slow },
      ),
      run('x = "before"\nopen("/tmp/stuck", "w").close()\nimport time\ntime.sleep(600)', { id: stuck }),
    ].map((it) => it.catch(() => 'cut'));
    await until(
      'both runs',
      async () => (await execd('GET', '/files/info?path=/tmp/slow&path=/tmp/stuck')).status,
      (it) => it === 200,
    );
    await daemon.kill();
    expect(await Promise.all(cut)).toEqual(['cut', 'cut']);
    daemon = await startDaemon({ runtime, home: daemon.home });
    await until(
      'the way into the sandbox',
      async () => (await execd('GET', '/ping')).status,
      (it) => it === 200,
    );
    expect(shown(await run('x', { id }))[0]).toBe("'known'");
    expect((await execd('DELETE', `/code?id=${stuck}`)).status).toBe(200);
    expect(shown(await run('x', { id: stuck }))[0]).toBe("'before'");
    const next = run('x', { id: slow });
    await execd('POST', '/command', { command: 'touch /tmp/go' });
    expect(shown(await next)[0]).toBe("'late'");
  });
});
