// A process that is killed with kill -9 in the middle of its writing leaves all that it was told is saved.
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { expect, onTestFinished, test } from 'vitest';
import { openSqliteStore } from './sqlite.ts';

/** Says each number once its change is saved; every third adds two rules and drops one, in one step. */
const writer = `
  const { openSqliteStore } = await import(process.argv[1]);
  const { writeSync } = await import('node:fs');
  const store = openSqliteStore(process.argv[2]);
  const items = store.collection('worker');
  const rule = (id) => ({ id, decision: 'allow', resources: [], protocols: ['tcp'], createdVia: 'added', createdAt: '' });
  for (let number = Number(process.argv[3]); ; number++) {
    if (number % 3 === 0)
      store.changeRules({ add: [rule('a' + number), rule('b' + number)], drop: ['a' + (number - 3)] });
    else items.save(String(number), { number, text: 'x'.repeat((number * 997) % 9000) });
    writeSync(1, number + '\\n');
  }`;

const rounds = 20;

test(`after each of ${rounds} kills all is there, in order, and changes of several things are whole`, async () => {
  const folder = mkdtempSync(join(tmpdir(), 'store-kill-'));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  const path = join(folder, 'glovebox.db');
  let acknowledged = 0;
  for (let round = 0; round < rounds; round += 1) {
    const first = acknowledged + 1;
    const enough = acknowledged + 1 + ((round * 7) % 31);
    const child = spawn(process.execPath, [
      ...['--input-type=module', '-e', writer, join(import.meta.dirname, 'sqlite.ts'), path, String(first)],
    ]);
    onTestFinished(() => void child.kill('SIGKILL'));
    let errors = '';
    child.stderr.on('data', (text) => {
      errors += text;
    });
    const over = new Promise((resolve) => child.once('close', resolve));
    createInterface({ input: child.stdout }).on('line', (line) => {
      acknowledged = Number(line);
      if (acknowledged >= enough) child.kill('SIGKILL');
    });
    await over;
    expect(acknowledged, errors).toBeGreaterThanOrEqual(enough);
    const store = openSqliteStore(path);
    const numbers = store
      .collection<{ number: number }>('worker')
      .all()
      .map((it) => it.number);
    const rules = store.rules().map((it) => it.id);
    store.close();
    const all = [...numbers, ...rules.filter((it) => it.startsWith('b')).map((it) => Number(it.slice(1)))];
    const last = all.length;
    expect(
      all.sort((x, y) => x - y),
      `round ${round}`,
    ).toEqual(Array.from({ length: last }, (_, index) => index + 1));
    // One change at most was saved and not yet told.
    expect([acknowledged, acknowledged + 1]).toContain(last);
    const newest = last - (last % 3);
    expect(
      rules.filter((it) => it.startsWith('a')),
      `round ${round}`,
    ).toEqual(newest === 0 ? [] : [`a${newest}`]);
    // Its number is told by nobody any more.
    acknowledged = last;
  }
});
