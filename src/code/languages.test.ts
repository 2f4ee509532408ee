// The languages that need no Jupyter, each by its own program.
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { startExecutions } from './executions.fixture.ts';
import { type CodeError, Interpreter } from './interpreter.ts';
import { interpretersOf, languageOf } from './language.ts';

let inside: Awaited<ReturnType<typeof startExecutions>>;
beforeAll(async () => {
  inside = await startExecutions();
});
afterAll(() => inside?.[Symbol.asyncDispose]());

const never = new AbortController().signal;

function made(name: string): Interpreter {
  const language = interpretersOf(name).at(-1) ?? expect.fail('no such language');
  const id = `${language.prefix}-${randomBytes(16).toString('hex')}`;
  expect(languageOf(id)).toEqual({ name, language });
  return new Interpreter({ executions: inside.executions, language, id, secret: 'secret' });
}

interface Told {
  stdout: string;
  stderr: string;
  results: Record<string, string>[];
  code: number | null;
  count?: number;
  error?: CodeError;
}

async function told(it: Interpreter, code: string): Promise<Told> {
  const told: Told = { stdout: '', stderr: '', results: [], code: null };
  for await (const event of it.run({ code }, never)) {
    if (event.type === 'output') told[event.lane] += Buffer.from(event.bytes);
    else if (event.type === 'result') told.results.push(event.forms);
    else if (event.type === 'end') {
      const { type: _, timedOut: __, ...end } = event;
      Object.assign(told, end);
    }
  }
  return told;
}

const quiet = { stdout: '', stderr: '', results: [], code: 0 };

describe('python', () => {
  test('keeps what code leaves, shows the last value, counts', async () => {
    const it = made('python');
    expect(await told(it, 'import math\ndef area(r):\n    return math.pi * r ** 2\nx = 2')).toEqual({
      ...quiet,
      count: 1,
    });
    expect(
      await told(it, 'print("out")\nimport sys\nprint("err", file=sys.stderr)\nround(area(x), 2)'),
    ).toEqual({
      ...quiet,
      ...{ stdout: 'out\n', stderr: 'err\n', results: [{ 'text/plain': '12.57' }], count: 2 },
    });
    expect((await told(it, '_ + 1')).results).toEqual([{ 'text/plain': '13.57' }]);
    expect(await told(it, 'None')).toEqual({ ...quiet, count: 4 });
    expect((await told(it, 'x;')).results).toEqual([]);
    await it.close(never);
  });

  test('shows things in the forms that they have, large ones too', async () => {
    const it = made('python');
    const { results } = await told(
      it,
      [
        'class Table:',
        '    def __repr__(self): return "table"',
        '    def _repr_html_(self): return "<td>" * 20000',
        '    def _repr_png_(self): return b"\\x89PNG"',
        '    def _repr_json_(self): return {"a": [1]}',
        'display(1, "two")',
        'Table()',
      ].join('\n'),
    );
    expect(results).toEqual([
      { 'text/plain': '1' },
      { 'text/plain': "'two'" },
      {
        'text/plain': 'table',
        'text/html': '<td>'.repeat(20_000),
        'image/png': Buffer.from('\x89PNG', 'latin1').toString('base64'),
        'application/json': '{"a": [1]}',
      },
    ]);
    await it.close(never);
  });

  test('tells an error with its lines, and goes on', async () => {
    const it = made('python');
    await told(it, 'def broken():\n    return 1 / 0');
    const { error, code } = await told(it, 'x = 1\nbroken()');
    expect([code, error?.ename, error?.evalue]).toEqual([1, 'ZeroDivisionError', 'division by zero']);
    const trace = error?.traceback.join('\n') ?? '';
    expect(trace).toMatch(/^Traceback .*\n {2}File "<cell 2>", line 2, in <module>\n {4}broken\(\)/);
    expect(trace).toContain('    return 1 / 0');
    expect((await told(it, 'x = ;')).error?.ename).toBe('SyntaxError');
    expect((await told(it, 'exit(3)')).error?.ename).toBe('SystemExit');
    expect((await told(it, 'input()')).error?.ename).toBe('EOFError');
    expect((await told(it, 'x')).results).toEqual([{ 'text/plain': '1' }]);
    await it.close(never);
  });

  test('awaits, starts programs and children, and is not confused by them', async () => {
    const it = made('python');
    expect(await told(it, 'import asyncio\nawait asyncio.sleep(0, "slept")')).toMatchObject({
      results: [{ 'text/plain': "'slept'" }],
    });
    expect((await told(it, 'import os\nos.system("echo from a program; cat")')).stdout).toBe(
      'from a program\n',
    );
    const forked = await told(
      it,
      'if os.fork() == 0:\n    print("child")\nelse:\n    os.wait()\n    print("parent")',
    );
    expect([forked.stdout, forked.code]).toEqual(['child\nparent\n', 0]);
    expect((await told(it, '40 + 2')).results).toEqual([{ 'text/plain': '42' }]);
    await it.close(never);
  });

  test.each([
    ['a loop', 'while True: pass'],
    ['a call that waits', 'import time; time.sleep(600)'],
    ['a program', 'import subprocess; subprocess.run(["sleep", "600"])'],
  ])('%s that is interrupted is an error, and the rest stays', async (_, code) => {
    const it = made('python');
    await told(it, 'kept = "yes"');
    const mark = join(inside.home, randomBytes(4).toString('hex'));
    const running = told(it, `open(${JSON.stringify(mark)}, "w").close()\n${code}`);
    await expect.poll(() => existsSync(mark)).toBe(true);
    await it.interrupt();
    expect((await running).error?.ename).toBe('KeyboardInterrupt');
    expect((await told(it, 'kept')).results).toEqual([{ 'text/plain': "'yes'" }]);
    await it.close(never);
  });

  test('whose process dies in the middle of a run begins anew with the next one', async () => {
    const it = made('python');
    expect((await told(it, 'x = 1\nimport os; os.kill(os.getpid(), 9)')).code).toBe(137);
    expect((await told(it, 'x')).error?.ename).toBe('NameError');
    await it.close(never);
  });
});

describe('javascript', () => {
  test('keeps what code leaves, shows the last value, awaits', async () => {
    const it = made('javascript');
    expect(await told(it, 'const x = 1; function twice(n) { return 2 * n; } class A {}')).toEqual({
      ...quiet,
      count: 1,
    });
    expect(await told(it, 'console.log("out"); console.error("err"); twice(x)')).toEqual({
      ...quiet,
      ...{ stdout: 'out\n', stderr: 'err\n', results: [{ 'text/plain': '2' }], count: 2 },
    });
    expect((await told(it, '({ a: new A() })')).results).toEqual([{ 'text/plain': '{ a: A {} }' }]);
    expect((await told(it, '{ b: [1] }')).results).toEqual([{ 'text/plain': '{ b: [ 1 ] }' }]);
    expect((await told(it, 'const y = await Promise.resolve(5); y + 1')).results).toEqual([
      { 'text/plain': '6' },
    ]);
    expect((await told(it, 'y')).results).toEqual([{ 'text/plain': '5' }]);
    expect((await told(it, 'require("node:path").basename("/a/b")')).results).toEqual([
      { 'text/plain': "'b'" },
    ]);
    const shown = await told(
      it,
      '({ [Symbol.for("Jupyter.display")]: () => ({ "text/html": "<b>".repeat(5000) }) })',
    );
    expect(shown.results[0]?.['text/html']).toBe('<b>'.repeat(5_000));
    await it.close(never);
  });

  test('tells an error with its lines, and goes on', async () => {
    const it = made('javascript');
    const thrown = await told(it, 'function broken() {\n  throw new TypeError("bad");\n}\nbroken()');
    expect([thrown.code, thrown.error?.ename, thrown.error?.evalue]).toEqual([1, 'TypeError', 'bad']);
    expect(thrown.error?.traceback.slice(0, 2)).toEqual([
      'TypeError: bad',
      expect.stringMatching(/broken.*cell 1:2/),
    ]);
    expect((await told(it, 'x + ')).error?.ename).toBe('SyntaxError');
    expect((await told(it, 'await Promise.reject(new RangeError("far"))')).error?.ename).toBe('RangeError');
    expect((await told(it, 'throw "a string"')).error?.evalue).toBe("'a string'");
    const late = await told(
      it,
      'setTimeout(() => { throw new Error("late") }); await new Promise((r) => setTimeout(r, 50)); 1',
    );
    expect([
      late.stderr.includes('late') || late.error?.evalue === 'late',
      (await told(it, '2')).code,
    ]).toEqual([true, 0]);
    await it.close(never);
  });

  test.each([
    ['a loop', 'while (true);'],
    ['what never comes', 'await new Promise(() => {})'],
  ])('%s that is interrupted is an error, and the rest stays', async (_, code) => {
    const it = made('javascript');
    await told(it, 'var kept = "yes"');
    const mark = join(inside.home, randomBytes(4).toString('hex'));
    const running = told(it, `require("node:fs").writeFileSync(${JSON.stringify(mark)}, ""); ${code}`);
    await expect.poll(() => existsSync(mark)).toBe(true);
    await it.interrupt();
    expect((await running).code).toBe(130);
    expect((await told(it, 'kept')).results).toEqual([{ 'text/plain': "'yes'" }]);
    await it.close(never);
  });
});

test('typescript is javascript once its types are gone', async () => {
  const it = made('typescript');
  expect(
    (await told(it, 'interface P { x: number }\nenum Side { Left, Right }\nconst p: P = { x: 1 };')).code,
  ).toBe(0);
  expect((await told(it, 'p.x as number + Side.Right')).results).toEqual([{ 'text/plain': '2' }]);
  await it.close(never);
});

test('bash is a shell that lives', async () => {
  const it = made('bash');
  expect(await told(it, 'x=1; echo $x; (exit 3)')).toEqual({ ...quiet, stdout: '1\n', code: 3 });
  expect((await told(it, 'echo $x')).stdout).toBe('1\n');
  await it.close(never);
});

test('a language that nothing here can run is refused before it takes code', async () => {
  const [jupyter = expect.fail()] = interpretersOf('fortran');
  const it = new Interpreter({
    ...{ executions: inside.executions, language: jupyter, secret: 'secret' },
    id: `${jupyter.prefix}-${'0'.repeat(32)}`,
  });
  await expect(it.start(never)).rejects.toMatchObject({ details: { exitCode: 64 } });
});
