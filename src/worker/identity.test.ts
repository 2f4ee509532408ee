// Who a worker is, in its files: what is kept and how closed, what damaged and foreign files come to, and one process for each home.
import { execFileSync } from 'node:child_process';
import { generateKeyPairSync, randomBytes } from 'node:crypto';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { makeAuthority, makeCertificate } from '../../test/network/pki.ts';
import { startWorker as startProcess } from '../../test/worker.ts';
import { printUnit } from '../cli/commands/worker.ts';
import { type RunningWorker, startWorker, type WorkerOptions } from '../daemon/worker-main.ts';
import type { Failure } from '../lib/failure.ts';
import { Controller, KeptLog, newEnrolment } from './controller.fixture.ts';
import { defaultWorkerHome, IdentityFiles, prepareWorkerHome } from './identity.ts';
import { newPrivateKey, publicHalf } from './keys.ts';

let home: string;
let undo: AsyncDisposableStack;

beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), 'glovebox-identity-'));
  undo = new AsyncDisposableStack();
  undo.defer(() => rmSync(home, { recursive: true, force: true }));
});
afterEach(() => undo.disposeAsync());

const at = (name: string) => join(home, name);
const modeOf = (path: string) => (statSync(path).mode & 0o777).toString(8);
const filesOn = (platform: NodeJS.Platform = process.platform) => new IdentityFiles({ home, platform });
/** All that the home holds: content and mode by name. */
const everything = () =>
  readdirSync(home)
    .filter((name) => statSync(at(name)).isFile())
    .map((name) => [name, modeOf(at(name)), readFileSync(at(name), 'utf8')]);
const failureOf = (work: Promise<unknown>): Promise<Failure> =>
  work.then(
    () => {
      throw new Error('it did not fail');
    },
    (thrown) => thrown,
  );

async function enrolled(files = filesOn(), token = 'gbw_once'): Promise<string> {
  const key = await files.keyToEnrol();
  await files.enrolled({ workerId: 'w', controllerId: 'c' }, key, token);
  return publicHalf(key);
}

describe('what is kept', () => {
  test('a key and a record that this user alone can read, and nothing of the token', async () => {
    const before = process.umask(0);
    try {
      await prepareWorkerHome(at('new/home'), process.platform);
      await enrolled();
    } finally {
      process.umask(before);
    }
    expect([modeOf(at('new')), modeOf(at('new/home'))]).toEqual(['700', '700']);
    expect(everything().map(([name, mode]) => [name, mode])).toEqual([
      ['worker.json', '600'],
      ['worker.key', '600'],
    ]);
    expect(JSON.stringify(everything())).not.toContain('once');
  });

  test('it is read again; the token that it came from is known, and no other', async () => {
    const key = await enrolled();
    const read = await filesOn().read();
    expect(read).toMatchObject({ workerId: 'w', controllerId: 'c' });
    expect(publicHalf((read as NonNullable<typeof read>).key)).toBe(key);
    expect([await filesOn().cameFrom('gbw_once'), await filesOn().cameFrom('gbw_other')]).toEqual([
      true,
      false,
    ]);
  });

  test('an enrolment that was cut off, at any of its steps, goes on with the same key', async () => {
    expect(await filesOn().read()).toBeUndefined();
    const first = await filesOn().keyToEnrol();
    expect(publicHalf(await filesOn().keyToEnrol())).toBe(publicHalf(first));
    await filesOn().enrolled({ workerId: 'w', controllerId: 'c' }, first, 't');
    // As after the record, and before the key had its name.
    renameSync(at('worker.key'), at('worker.key.next'));
    expect(await filesOn().read()).toMatchObject({ workerId: 'w' });
    expect(readdirSync(home).sort()).toEqual(['worker.json', 'worker.key']);
  });

  test('a new enrolment leaves the old identity in place until it is done', async () => {
    const old = await enrolled();
    const next = await filesOn().keyToEnrol();
    const now = await filesOn().read();
    expect(publicHalf((now as NonNullable<typeof now>).key)).toBe(old);
    await filesOn().enrolled({ workerId: 'v', controllerId: 'c' }, next, 'other');
    expect(await filesOn().read()).toMatchObject({ workerId: 'v' });
  });

  test('an open home that is empty or a worker’s own is closed; others’ folders are left as they are', async () => {
    for (const [name, holds] of [
      ['empty', []],
      ['own', ['worker.lock']],
    ] as const) {
      mkdirSync(at(name), { mode: 0o755 });
      for (const file of holds) writeFileSync(join(at(name), file), '');
      await prepareWorkerHome(at(name), process.platform);
      expect(modeOf(at(name))).toBe('700');
    }
    mkdirSync(at('srv'));
    chmodSync(at('srv'), 0o755);
    writeFileSync(join(at('srv'), 'data'), 'of others');
    const failure = await failureOf(prepareWorkerHome(at('srv'), process.platform));
    expect(failure).toMatchObject({ code: 'permission', hint: expect.stringContaining('--home') });
    expect([modeOf(at('srv')), readdirSync(at('srv'))]).toEqual(['755', ['data']]);
  });
});

describe('damaged, foreign and hostile files', () => {
  const other = () => newPrivateKey().export({ type: 'pkcs8', format: 'pem' }) as string;
  const record = () => JSON.parse(readFileSync(at('worker.json'), 'utf8'));
  const writeRecord = (change: object) =>
    writeFileSync(at('worker.json'), JSON.stringify({ ...record(), ...change }));

  const damages: [string, () => void, Partial<Failure>][] = [
    ['a record that is empty', () => truncateSync(at('worker.json'), 0), {}],
    ['a record cut in the middle', () => truncateSync(at('worker.json'), 40), {}],
    ['a record that is no object', () => writeFileSync(at('worker.json'), '[]'), {}],
    ['a record with an id that is none', () => writeRecord({ workerId: '../../etc' }), {}],
    ['a record with a field more', () => writeRecord({ extra: 1 }), {}],
    ['a record with another key', () => writeRecord({ publicKey: publicHalf(newPrivateKey()) }), {}],
    ['a very long record', () => writeFileSync(at('worker.json'), ' '.repeat(70_000)), {}],
    [
      'a folder in place of the record',
      () => {
        rmSync(at('worker.json'));
        mkdirSync(at('worker.json'));
      },
      {},
    ],
    ['no key', () => rmSync(at('worker.key')), {}],
    ['a key that is empty', () => truncateSync(at('worker.key'), 0), {}],
    ['a key cut in the middle', () => truncateSync(at('worker.key'), 60), {}],
    ['a key of bytes', () => writeFileSync(at('worker.key'), randomBytes(120)), {}],
    ['another worker’s key', () => writeFileSync(at('worker.key'), other()), {}],
    [
      'a key of another kind',
      () =>
        writeFileSync(
          at('worker.key'),
          generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({
            type: 'pkcs8',
            format: 'pem',
          }),
        ),
      {},
    ],
    [
      'a key that never ends',
      () => {
        rmSync(at('worker.key'));
        symlinkSync('/dev/zero', at('worker.key'));
      },
      {},
    ],
    ['a key that others can read', () => chmodSync(at('worker.key'), 0o640), { code: 'permission' }],
    ['a key that others can write', () => chmodSync(at('worker.key'), 0o602), { code: 'permission' }],
  ];

  test.each(damages)('%s: named, with the remedy, and left as it is', async (_, damage, expected) => {
    await enrolled();
    damage();
    const before = everything().filter(([, , text]) => text !== '');
    const failure = await failureOf(filesOn().read());
    expect(failure).toMatchObject({ code: 'invalid', ...expected });
    expect(failure.message).toMatch(/worker\.(json|key)/);
    expect(failure.hint).toMatch(/[Rr]emove/);
    expect(`${failure.message}${failure.hint}`).not.toContain('PRIVATE');
    expect(everything().filter(([, , text]) => text !== '')).toEqual(before);
  });

  test('a key of another program’s in the place of the next one is not overwritten', async () => {
    writeFileSync(at('worker.key.next'), 'not ours', { mode: 0o600 });
    expect(await failureOf(filesOn().keyToEnrol())).toMatchObject({ code: 'invalid' });
    expect(readFileSync(at('worker.key.next'), 'utf8')).toBe('not ours');
  });
});

describe('elsewhere than on Linux', () => {
  test.each([
    ['linux', {}, '/home/me', '/home/me/.glovebox/worker'],
    ['darwin', {}, '/Users/me', '/Users/me/.glovebox/worker'],
    ['darwin', { GLOVEBOX_HOME: '/Volumes/x/' }, '/Users/me', '/Volumes/x/worker'],
    ['win32', {}, 'C:\\Users\\me', 'C:\\Users\\me\\AppData\\Local\\glovebox\\worker'],
    [
      'win32',
      { LOCALAPPDATA: 'D:\\Profile\\Local\\' },
      'C:\\Users\\me',
      'D:\\Profile\\Local\\glovebox\\worker',
    ],
    ['win32', { GLOVEBOX_HOME: 'E:\\box' }, 'C:\\Users\\me', 'E:\\box\\worker'],
  ] as const)('the home on %s with %j', (platform, env, userHome, expected) => {
    expect(defaultWorkerHome({ platform, env, userHome })).toBe(expected);
  });

  test('Windows has no modes to go by; macOS has', async () => {
    await enrolled();
    chmodSync(at('worker.key'), 0o644);
    chmodSync(home, 0o755);
    await prepareWorkerHome(home, 'win32');
    expect(modeOf(home)).toBe('755');
    expect(await filesOn('win32').read()).toMatchObject({ workerId: 'w' });
    expect(await failureOf(filesOn('darwin').read())).toMatchObject({ code: 'permission' });
  });
});

test.each([
  ['darwin', /launchd/],
  ['win32', /Task Scheduler/],
  ['freebsd', /what starts services/],
] as const)('%s has no systemd, and is told what it has instead', async (platform, hint) => {
  await expect(printUnit({ output: at('unit') }, platform)).rejects.toMatchObject({
    hint: expect.stringMatching(hint),
  });
  expect(existsSync(at('unit'))).toBe(false);
});

describe('one process for each home', () => {
  let controller: Controller;
  let log: KeptLog;

  const options = (more: Partial<WorkerOptions> = {}): WorkerOptions => ({
    ...{ home, serverUrl: controller.url.href, insecure: false, labels: {}, tls: {} },
    ...{ direct: false, runtimes: ['memory'], env: {}, platform: process.platform, version: '1.2.3', log },
    ...more,
  });
  const start = async (more: Partial<WorkerOptions> = {}): Promise<RunningWorker> => {
    const worker = await startWorker(options(more), AbortSignal.timeout(120_000));
    undo.defer(() => worker.stop());
    return worker;
  };
  const tokenFor = (workerId?: string, replace = false) =>
    controller.hub.enrolment(newEnrolment(workerId === undefined ? {} : { workerId, replace })).token;

  async function controlled(tls?: ConstructorParameters<typeof Controller>[0]): Promise<void> {
    controller = await Controller.open(tls);
    undo.defer(() => controller.close());
    log = new KeptLog();
  }

  test('a second one is refused while the first lives, and changes nothing; the token is never needed again', async () => {
    await controlled();
    const token = tokenFor('w');
    const first = await start({ token, id: 'w' });
    await first.connected;
    const before = everything();
    const failure = await failureOf(start({ token: tokenFor('v'), id: 'v' }));
    expect(failure).toMatchObject({ code: 'conflict', hint: expect.stringContaining('--home') });
    expect(failure.message).toContain(home);
    expect(everything()).toEqual(before);
    await first.stop();
    // Still in a unit, the same token means nothing new; and it is not asked for.
    for (const again of [{ token }, {}]) {
      const next = await start(again);
      await next.connected;
      expect(next.workerId).toBe('w');
      await next.stop();
    }
    expect(log.text + JSON.stringify(everything())).not.toContain(token);
  });

  test('what it is asked to be must be what it is; without a token it is nobody', async () => {
    await controlled();
    expect(await failureOf(start())).toMatchObject({
      ...{ code: 'invalid', hint: expect.stringContaining('--token-file') },
    });
    const worker = await start({ token: tokenFor('w') });
    await worker.stop();
    expect(await failureOf(start({ id: 'v' }))).toMatchObject({
      ...{ code: 'invalid', message: expect.stringMatching(/is called w, not v/) },
    });
  });

  test('a wrong and a used token: the same words, and no identity of it', async () => {
    await controlled();
    const used = tokenFor('w');
    controller.hub.enrol({ token: used, publicKey: publicHalf(newPrivateKey()), labels: {} }, '192.0.2.1');
    for (const token of ['gbw_wrong', used]) {
      const failure = await failureOf(start({ token }));
      expect(failure).toMatchObject({ code: 'unauthenticated' });
      expect(failure.message).toMatch(/of no use: wrong, used already, or expired/);
      expect(failure.message).not.toContain(token);
    }
    expect(existsSync(at('worker.json'))).toBe(false);
  });

  test('what is wrong on this machine is told before a token is spent', async () => {
    await controlled();
    const token = tokenFor('w');
    expect(await failureOf(start({ token, runtimes: ['nope'] }))).toMatchObject({
      ...{ code: 'invalid', message: expect.stringContaining('"nope"') },
    });
    expect(await failureOf(start({ token, tls: { ca: at('none.pem') } }))).toMatchObject({ code: 'invalid' });
    expect(await failureOf(start({ token, serverUrl: 'ws://box.example' }))).toMatchObject({
      code: 'invalid',
    });
    expect(controller.hub.enrolments().length).toBe(1);
    const worker = await start({ token });
    await worker.connected;
  });

  test.each([
    ['win32', [], [], /agents need Unix sockets/],
    ['darwin', ['exec', 'pty', 'files', 'ports', 'snapshots'], ['host'], /sandboxes need Linux/],
  ] as const)('on %s it offers what can be had there, and says so', async (platform, can, has, told) => {
    await controlled();
    const worker = await start({ token: tokenFor('w'), platform, direct: true, runtimes: undefined });
    await worker.connected;
    await expect.poll(() => controller.hub.get('w').state).toBe('online');
    const { capabilities, runtimes, platform: shown } = controller.hub.get('w');
    expect([shown, capabilities, runtimes.map(({ name }) => name)]).toEqual([platform, can, has]);
    expect(log.text).toMatch(told);
  });

  test('certificates are read again when it is told to; unusable ones are not taken', async () => {
    const [ours, theirs] = [makeAuthority('Ours'), makeAuthority('Theirs')];
    const server = makeCertificate({ names: ['127.0.0.1'], issuer: ours });
    await controlled({ tls: { ...server, ca: ours.cert, requestCert: true, rejectUnauthorized: true } });
    const show = (issuer: typeof ours) => {
      const { cert, key } = makeCertificate({ names: ['w'], issuer });
      writeFileSync(at('cert.pem'), cert);
      writeFileSync(at('key.pem'), key);
    };
    writeFileSync(at('ca.pem'), ours.cert);
    show(ours);
    const tls = { ca: at('ca.pem'), cert: at('cert.pem'), certKey: at('key.pem') };
    const first = await start({ token: tokenFor('w'), tls });
    await first.stop();
    show(theirs);
    // A process of its own, for the signal is a process's.
    const child = startProcess(controller.url.href, {
      home,
      args: [
        '--no-direct',
        '--runtime',
        'memory',
        '--ca',
        tls.ca,
        '--cert',
        tls.cert,
        '--cert-key',
        tls.certKey,
      ],
    });
    undo.defer(() => child.kill());
    await expect.poll(() => child.log()).toMatch(/not connected/);
    writeFileSync(at('key.pem'), 'no key');
    process.kill(child.pid, 'SIGHUP');
    await expect.poll(() => child.log()).toMatch(/TLS files were not taken/);
    expect(controller.handshakes.length).toBe(0);
    show(ours);
    process.kill(child.pid, 'SIGHUP');
    await expect.poll(() => controller.hub.stats().online).toBe(1);
    expect(child.log()).toMatch(/TLS files were read again/);
    // And one that stands changes over without a restart.
    const before = controller.handshakes.length;
    show(ours);
    process.kill(child.pid, 'SIGHUP');
    await expect.poll(() => controller.handshakes.length).toBeGreaterThan(before);
    await expect.poll(() => controller.hub.stats().online).toBe(1);
    expect(await child.stop()).toBe(0);
  });
});

test('exit codes and words of the command line, as its help has them', async () => {
  const controller = await Controller.open();
  undo.defer(() => controller.close());
  const enrolment = (workerId: string) => controller.hub.enrolment(newEnrolment({ workerId })).token;
  const run = async (args: string[]) => {
    const child = startProcess(controller.url.href, {
      home,
      args: ['--no-direct', '--runtime', 'memory', ...args],
    });
    undo.defer(() => child.kill());
    return child;
  };
  const ended = async (args: string[]) => {
    const child = await run(args);
    return [await child.exited, child.log()];
  };
  writeFileSync(at('token'), `${enrolment('w')}\n`, { mode: 0o600 });
  expect(await ended(['--token', 'gbw_wrong'])).toEqual([77, expect.stringMatching(/of no use/)]);
  const first = await run(['--token-file', at('token')]);
  await expect.poll(() => controller.hub.stats().online).toBe(1);
  expect(await ended([])).toEqual([75, expect.stringMatching(/another worker process uses/)]);
  expect(await ended(['--token', 'x', '--token-file', at('token')])).toEqual([
    2,
    expect.stringMatching(/one too many/),
  ]);
  controller.hub.remove('w');
  expect([await first.exited, first.log()]).toEqual([
    77,
    expect.stringMatching(/has let this worker go: .*removed(.|\n)*glovebox workers enrol/),
  ]);
  expect(await ended([])).toEqual([77, expect.stringMatching(/does not know worker w/)]);
  const help = execFileSync(join(import.meta.dirname, '../../bin/glovebox'), ['worker', '--help']).toString();
  for (const code of [75, 77, 78]) expect(help).toMatch(new RegExp(`^ +${code} `, 'm'));
});
