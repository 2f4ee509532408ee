// A shell that lives from run to run, on a real bash.
import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { startExecutions } from './executions.fixture.ts';
import { Interpreter, type Run } from './interpreter.ts';
import { bashLanes, bashSession, isolatedShell } from './language.ts';

let inside: Awaited<ReturnType<typeof startExecutions>>;
beforeAll(async () => {
  inside = await startExecutions();
});
afterAll(() => inside?.[Symbol.asyncDispose]());

const never = new AbortController().signal;

const made = (executions = inside.executions, id = `session-${randomBytes(16).toString('hex')}`) =>
  new Interpreter({ executions, language: bashSession, id, secret: 'secret' });

/** What a run writes, and its status. */
async function said(it: Interpreter, run: string | Run, signal = never): Promise<[string, number | null]> {
  let text = '';
  for await (const event of it.run(typeof run === 'string' ? { code: run } : run, signal)) {
    if (event.type === 'output') text += Buffer.from(event.bytes);
    else if (event.type === 'gap') text += `<${event.bytes} lost>`;
    else if (event.type === 'end') return [event.timedOut ? `${text}<timed out>` : text, event.code];
  }
  return expect.fail('a run without an end');
}

const lasting = [
  'x=1; export E="more than\none line"',
  'declare -A map=([key]="a value"); list=(one "two words")',
  'double() { echo $(($1 * 2)); }',
  'alias greet="echo hello"; set -o pipefail -u; shopt -s nullglob',
  'cd /usr; umask 027',
].join('\n');
const shown = `echo $x "$E" "\${map[key]}" "\${list[1]}"; double 4; greet; echo $SHELLOPTS; shopt nullglob; pwd; umask`;
const expected =
  /^1 more than\none line a value two words\n8\nhello\n.*nounset.*pipefail.*\nnullglob +\ton\n\/usr\n0027\n$/;

describe('a shell', () => {
  test('keeps variables, functions, aliases, options and its folder', async () => {
    const it = made();
    expect(await said(it, lasting)).toEqual(['', 0]);
    const [text, code] = await said(it, shown);
    expect(text).toMatch(expected);
    expect(code).toBe(0);
    await it.close(never);
  });

  test('keeps its jobs, and what they write while nothing runs is nobody’s', async () => {
    const it = made();
    const gate = join(inside.home, 'gate');
    expect(await said(it, `(until [ -e ${gate} ]; do sleep 0.02; done; echo lost; exit 5) & job=$!`)).toEqual(
      ['', 0],
    );
    expect((await said(it, 'jobs'))[0]).toMatch(/Running/);
    expect(await said(it, `touch ${gate}; wait $job`)).toEqual(['lost\n', 5]);
    await it.close(never);
  });

  test('that ends goes on in another one, which knows what it knew', async () => {
    const it = made();
    await said(it, lasting);
    const [before] = await said(it, 'echo $$');
    expect(await said(it, 'echo last words; exit 7')).toEqual(['last words\n', 7]);
    const [text] = await said(it, shown);
    expect(text).toMatch(expected);
    expect((await said(it, 'echo $$'))[0]).not.toBe(before);
    await said(it, 'set -e');
    expect(await said(it, 'false; echo not reached')).toEqual(['', 1]);
    expect(await said(it, 'set +e; double 2')).toEqual(['4\n', 0]);
    expect(await said(it, 'exec echo replaced')).toEqual(['replaced\n', 0]);
    expect(await said(it, 'echo again')).toEqual(['again\n', 0]);
    await it.close(never);
  });

  test.each([
    ['a status', '(exit 3)', '', 3],
    ['return', 'echo a; return 4; echo b', 'a\n', 4],
    ['a mistake', 'if then', /syntax error/, 2],
    ['an unknown command', 'no-such-command', /not found/, 127],
    ['traced lines', 'set -x; echo traced; set +x', '+ echo traced\ntraced\n+ set +x\n', 0],
    ['stdin', 'cat; read line; echo "[$line]"', '[]\n', 0],
    ['both lanes in order', 'for i in 1 2 3; do echo o$i; echo e$i >&2; done', 'o1\ne1\no2\ne2\no3\ne3\n', 0],
    ['no end of line', 'printf "no end"', 'no end', 0],
    ['NUL and what looks like a frame', 'printf "\\0secret{\\"end\\":1}\\0"', '\0secret{"end":1}\0', 0],
    ['a folder that is not there', { code: 'echo not reached', cwd: '/no/such' }, /No such file/, 1],
    ['a comment', '# nothing', '', 0],
  ])('runs %s', async (_, run, text, code) => {
    const it = made();
    await said(it, 'set -o pipefail');
    const [told, status] = await said(it, run);
    if (typeof text === 'string') expect(told.replaceAll('++', '+')).toBe(text);
    else expect(told).toMatch(text);
    expect(status).toBe(code);
    expect(await said(it, 'echo alive')).toEqual(['alive\n', 0]);
    await it.close(never);
  });

  test('stays in the folder of a run', async () => {
    const it = made();
    const folder = join(inside.home, 'it’s a "folder"');
    mkdirSync(folder);
    expect(await said(it, { code: 'pwd', cwd: folder })).toEqual([`${folder}\n`, 0]);
    expect(await said(it, 'pwd')).toEqual([`${folder}\n`, 0]);
    await it.close(never);
  });

  test('gives many MiB whole, and takes a program of a MiB', async () => {
    const it = made();
    let bytes = 0;
    for await (const event of it.run({ code: 'head -c 20000000 /dev/zero' }, never)) {
      if (event.type === 'output') bytes += event.bytes.length;
      else if (event.type === 'gap') expect.fail('something is lost');
    }
    expect(bytes).toBe(20_000_000);
    expect(await said(it, `x='${'a'.repeat(1024 * 1024)}'; echo \${#x}`)).toEqual(['1048576\n', 0]);
    await it.close(never);
  });
});

describe('runs', () => {
  test('of one session wait for each other, those of two do not', async () => {
    const [one, two] = [made(), made()];
    const gate = join(inside.home, 'turn');
    const first = said(one, `until [ -e ${gate} ]; do sleep 0.02; done; echo first; value=1`);
    const second = said(one, 'echo second $value');
    expect(await said(two, `touch ${gate}; echo other`)).toEqual(['other\n', 0]);
    expect(await Promise.all([first, second])).toEqual([
      ['first\n', 0],
      ['second 1\n', 0],
    ]);
    await Promise.all([one.close(never), two.close(never)]);
  });

  test('beyond 64 that wait are refused', async () => {
    const it = made();
    const gate = join(inside.home, 'crowd');
    const first = said(it, `touch ${gate}-begun; until [ -e ${gate} ]; do sleep 0.02; done`);
    await expect.poll(() => existsSync(`${gate}-begun`)).toBe(true);
    const outcomes = Promise.allSettled(Array.from({ length: 70 }, (_, index) => said(it, `echo ${index}`)));
    expect(await said(made(), `touch ${gate}`)).toEqual(['', 0]);
    expect(await first).toEqual(['', 0]);
    const ran = (await outcomes).map((outcome, index) =>
      outcome.status === 'fulfilled' ? outcome.value[0] === `${index}\n` : outcome.reason.code,
    );
    expect(ran).toEqual([...Array(64).fill(true), ...Array(6).fill('exhausted')]);
    await it.close(never);
  });

  test.each([
    ['a loop', 'while :; do :; done'],
    ['a command', 'sleep 600'],
    ['a command in a function', 'f() { sleep 600; echo not reached; }; f'],
    ['a subshell', 'x=$(sleep 600)'],
  ])('%s that is interrupted ends, and the session goes on', async (_, code) => {
    const it = made();
    await said(it, 'kept=yes');
    const mark = join(inside.home, `begun-${randomBytes(4).toString('hex')}`);
    const running = said(it, `touch ${mark}; ${code}; echo not reached`);
    await expect.poll(() => existsSync(mark)).toBe(true);
    await it.interrupt();
    expect(await running).toEqual(['', 130]);
    expect(await said(it, 'echo $kept')).toEqual(['yes\n', 0]);
    await expect(it.interrupt()).rejects.toMatchObject({ code: 'conflict' });
    await it.close(never);
  });

  test('that take too long are interrupted', async () => {
    const it = made();
    const [text, code] = await said(it, { code: 'sleep 600', timeoutMs: 300 });
    expect(text).toBe('<timed out>');
    // A machine that stands still for seconds lets it come to force.
    expect([130, 137]).toContain(code);
    expect(await said(it, 'echo alive')).toEqual(['alive\n', 0]);
    await it.close(never);
  });

  test('that do not heed it are killed, and what they knew is lost', async () => {
    const it = made();
    const mark = join(inside.home, 'deaf');
    const running = said(it, `kept=yes; trap '' INT; touch ${mark}; sleep 600`);
    await expect.poll(() => existsSync(mark)).toBe(true);
    await it.interrupt();
    expect(await running).toEqual(['', 137]);
    expect(await said(it, 'echo "[$kept]"')).toEqual(['[]\n', 0]);
    await it.close(never);
  });

  test('go on when their reader leaves, and the next one waits for them', async () => {
    const it = made();
    const [gate, proof] = [join(inside.home, 'left'), join(inside.home, 'proof')];
    const gone = new AbortController();
    const left = said(
      it,
      `touch ${gate}-begun; until [ -e ${gate} ]; do sleep 0.02; done; touch ${proof}`,
      gone.signal,
    );
    await expect.poll(() => existsSync(`${gate}-begun`)).toBe(true);
    gone.abort(new Error('gone'));
    await expect(left).rejects.toThrow('gone');
    const next = said(it, `ls ${proof}`);
    await said(made(), `touch ${gate}`);
    expect(await next).toEqual([`${proof}\n`, 0]);
    await it.close(never);
  });

  test('are refused with NUL, and when the session is closed', async () => {
    const it = made();
    await expect(said(it, 'echo \0')).rejects.toMatchObject({ code: 'invalid' });
    await it.close(never);
    await expect(said(it, 'echo')).rejects.toMatchObject({ code: 'conflict' });
  });
});

test('closing ends all that a session has started', async () => {
  const it = made();
  const [pids] = await said(
    it,
    'trap "" HUP TERM; sleep 600 & echo $!; (sleep 601; echo) & echo $!; echo $$',
  );
  const alive = () =>
    pids
      .trim()
      .split('\n')
      .map((pid) => existsSync(`/proc/${pid}`));
  expect(alive()).toEqual([true, true, true]);
  await it.close(never);
  await expect.poll(alive).toEqual([false, false, false]);
});

test('a session is found again by another daemon, with all that it knows', async () => {
  const it = made();
  await said(it, 'kept=yes; exit 3');
  await said(it, 'echo again');
  const executions = await inside.adopted();
  const options = { executions, language: bashSession, secret: 'secret' };
  const found = Interpreter.find({ ...options, id: it.id }) ?? expect.fail('it is not found');
  expect(await said(found, 'echo $kept; exit 2')).toEqual(['yes\n', 2]);
  expect(await said(found, 'echo $kept')).toEqual(['yes\n', 0]);
  await found.close(never);
  expect(Interpreter.find({ ...options, id: `session-${'0'.repeat(32)}` })).toBeUndefined();
});

test('a run that an earlier daemon has begun is interrupted, and goes on to its end if it is not', async () => {
  const it = made();
  const begun = join(inside.home, 'begun');
  const cut = said(it, `kept=yes; touch ${begun}; sleep 600`);
  await expect.poll(() => existsSync(begun)).toBe(true);
  const options = { language: bashSession, secret: 'secret', id: it.id };
  const found =
    Interpreter.find({ ...options, executions: await inside.adopted() }) ?? expect.fail('it is not found');
  await found.interrupt();
  // Whose daemon has lost it.
  expect(await cut).toEqual(['', null]);
  expect(await said(found, 'echo $kept')).toEqual(['yes\n', 0]);
  await expect(found.interrupt()).rejects.toMatchObject({ code: 'conflict' });

  const go = join(inside.home, 'go');
  const slow = said(found, `rm ${begun}; until test -e ${go}; do sleep 0.05; done; kept=longer`);
  await expect.poll(() => existsSync(begun)).toBe(false);
  const last =
    Interpreter.find({ ...options, executions: await inside.adopted() }) ?? expect.fail('it is not found');
  const next = said(last, 'echo $kept');
  writeFileSync(go, '');
  expect(await next).toEqual(['longer\n', 0]);
  await slow;
  await last.close(never);
});

describe('a shell that is the only thing that lives', () => {
  const alone = (idleSeconds = 0) =>
    new Interpreter({
      ...{ executions: inside.executions, secret: 'secret' },
      id: `isolated-${randomBytes(16).toString('hex')}`,
      language: {
        ...{ prefix: 'isolated', lanes: bashLanes, once: true, note: 'kept' },
        argv: isolatedShell(idleSeconds),
      },
    });
  const shownBy = (it: Interpreter) => inside.executions.get(it.execId ?? '').info;

  test('goes on in the same process where code ends it, with all that it kept', async () => {
    const it = alone();
    await it.start(never);
    const [pid] = await said(it, 'echo $$');
    expect(await said(it, `${lasting}\nexit 7`)).toEqual(['', 7]);
    expect((await said(it, shown))[0]).toMatch(expected);
    expect(await said(it, 'set -eu; false; echo never')).toEqual(['', 1]);
    expect(await said(it, 'exec 3>&1 >/dev/null; exit 0')).toEqual(['', 0]);
    expect(await said(it, 'echo $$; ls /proc/$$/fd | wc -l')).toEqual([
      expect.stringMatching(`^${pid}\\d{1,2}\n$`),
      0,
    ]);
    expect(shownBy(it)).toMatchObject({ note: 'kept' });
    await it.close(never);
    expect([it.over, it.closed]).toEqual([true, true]);
  });

  test('is over when it has ended, and nothing runs in it any more', async () => {
    const it = alone();
    await it.start(never);
    expect((await said(it, 'kill -9 $$'))[1]).not.toBe(0);
    expect(it.over).toBe(true);
    await expect(said(it, 'true')).rejects.toMatchObject({ code: 'conflict' });
  });

  test('ends when it hears nothing for so long', async () => {
    const it = alone(1);
    await it.start(never);
    await expect.poll(() => it.over).toBe(true);
  });
});
