// The profile, checked twice: the program and the Docker JSON against the table by an interpreter, and for real inside bubblewrap.
import { spawnSync } from 'node:child_process';
import { chmodSync, closeSync, copyFileSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { seccompBpf } from './bpf.ts';
import { seccompDockerProfile } from './docker-profile.ts';
import { probeFile, refusalAnswers, refusalCalls, refusals } from './probe.ts';
import {
  type ArgumentTest,
  hostArch,
  type SeccompArch,
  seccompArchs,
  syscallsOf,
  type Verdict,
} from './profile.ts';

type Answer = 'allow' | 'EPERM' | 'ENOSYS' | 'EAFNOSUPPORT' | 'kill';
const errors: Record<number, Answer> = { 1: 'EPERM', 38: 'ENOSYS', 97: 'EAFNOSUPPORT' };
interface Call {
  arch: number;
  number: number;
  args: bigint[];
}

/** What the kernel would do with this program and this call, and in how many instructions. */
function interpret(program: Buffer, { arch, number, args }: Call): { answer: Answer; steps: number } {
  const data = Buffer.alloc(64);
  data.writeUInt32LE(number, 0);
  data.writeUInt32LE(arch, 4);
  for (const [index, value] of args.entries())
    data.writeBigUInt64LE(BigInt.asUintN(64, value), 16 + 8 * index);
  let accumulator = 0;
  for (let at = 0, steps = 1; ; at++, steps++) {
    const code = program.readUInt16LE(at * 8);
    const [jt, jf] = [program.readUInt8(at * 8 + 2), program.readUInt8(at * 8 + 3)];
    const k = program.readUInt32LE(at * 8 + 4);
    if (code === 0x20) accumulator = data.readUInt32LE(k);
    else if (code === 0x54) accumulator = (accumulator & k) >>> 0;
    else if (code === 0x05) at += k;
    else if (code === 0x15) at += accumulator === k ? jt : jf;
    else if (code === 0x35) at += accumulator >= k ? jt : jf;
    else if (code === 0x06) return { answer: answers.get(k) ?? expect.fail(`answer ${k}`), steps };
    else expect.fail(`instruction ${code} at ${at}`);
  }
}

const answers = new Map<number, Answer>([
  [0x7fff_0000, 'allow'],
  [0x0005_0001, 'EPERM'],
  [0x0005_0026, 'ENOSYS'],
  [0x0005_0061, 'EAFNOSUPPORT'],
  [0x8000_0000, 'kill'],
]);
const archNumber = { x86_64: 0xc000_003e, aarch64: 0xc000_00b7 };

const low = (value: bigint) => Number(BigInt.asUintN(32, value));
const holds = (it: ArgumentTest, args: bigint[]) => (low(args[it.arg] ?? 0n) & it.mask) >>> 0 === it.value;

function wanted(verdict: Verdict, args: bigint[]): Answer {
  if (verdict === 'allow') return 'allow';
  if (verdict === 'refuse') return 'EPERM';
  if (verdict === 'missing') return 'ENOSYS';
  if ('refuseIf' in verdict) return verdict.refuseIf.some((it) => holds(it, args)) ? 'EPERM' : 'allow';
  const allowed = verdict.allowIf.some((tests) => tests.every((it) => it === undefined || holds(it, args)));
  return allowed ? 'allow' : (errors[verdict.errno] ?? expect.fail(`error ${verdict.errno}`));
}

/** Every value near what some rule looks at, with and without high bits that the kernel ignores. */
const interesting = [
  0, 1, 2, 3, 9, 10, 11, 16, 17, 38, 40, 0x11, 0x80, 0x5401, 0x5411, 0x5412, 0x5413, 0x541c,
]
  .concat([0x541d, 0x0004_0000, 0x0008_0000, 0xffff_ffff, 0x7fff_ffff, 0x1200011, 0x003d_0f00])
  .concat(Array.from({ length: 32 }, (_, bit) => 2 ** bit))
  .flatMap((it) => [BigInt(it), BigInt(it) + (1n << 32n), BigInt(it) + (1n << 63n)]);

describe.each(seccompArchs)('the program for %s', (name) => {
  const program = seccompBpf(name);
  const arch = archNumber[name];

  test('gives every call and argument its verdict, in few instructions', () => {
    let most = 0;
    for (const { number, verdict } of syscallsOf(name)) {
      const cases = typeof verdict === 'string' ? [0n] : interesting;
      for (const first of cases) {
        for (const third of cases.length > 1 ? [0n, 1n, 12n, 1n << 32n] : [0n]) {
          const args = [first, first, third, 0n, 0n, 0n];
          const { answer, steps } = interpret(program, { arch, number, args });
          expect(answer, `call ${number} with ${args}`).toBe(wanted(verdict, args));
          most = Math.max(most, steps);
        }
      }
    }
    expect(most).toBeLessThan(32);
  });

  test('lets guests that may make namespaces do that, and is the same otherwise', () => {
    const nested = seccompBpf(name, { nested: true });
    const opened: string[] = [];
    for (const { name: call, number } of syscallsOf(name))
      for (const first of interesting) {
        const args = [first, first, 0n, 0n, 0n, 0n];
        const [answer, before] = [nested, program].map((it) => interpret(it, { arch, number, args }).answer);
        if (answer !== before) opened.push(`${call} ${before} ${answer}`);
      }
    expect([...new Set(opened)].sort()).toEqual(
      ['clone', 'mount', 'pivot_root', 'umount2', 'unshare'].map((it) => `${it} EPERM allow`),
    );
  });

  test('answers ENOSYS to every number that is not in the table', () => {
    const known = new Set(syscallsOf(name).map((it) => it.number));
    for (const number of [...Array(2048).keys(), 0x3fff_ffff, 0x4000_0000, 0x4000_0001, 0xffff_ffff]) {
      if (known.has(number)) continue;
      expect(interpret(program, { arch, number, args: [] }).answer, `call ${number}`).toBe('ENOSYS');
    }
  });

  test('kills calls of any other architecture', () => {
    const others = [...Object.values(archNumber), 0x4000_0003, 0x4000_0028, 0].filter((it) => it !== arch);
    for (const other of others)
      for (const number of [0, 1, 39, 172, 435])
        expect(interpret(program, { arch: other, number, args: [] }).answer).toBe('kill');
  });
});

interface DockerProfile {
  defaultAction: string;
  defaultErrnoRet: number;
  syscalls: {
    names: string[];
    action: string;
    errnoRet?: number;
    args?: { index: number; op: string; value: number; valueTwo: number }[];
  }[];
}

test('the Docker profile says of every call and argument what the table says', () => {
  const profile = seccompDockerProfile() as DockerProfile;
  const answerOf = (name: string, args: bigint[]): Answer => {
    const rule = profile.syscalls.find(
      (it) =>
        it.names.includes(name) &&
        (it.args ?? []).every(
          (test) =>
            test.op === 'SCMP_CMP_MASKED_EQ' &&
            BigInt.asUintN(64, (args[test.index] ?? 0n) & BigInt(test.value)) === BigInt(test.valueTwo),
        ),
    );
    if (rule?.action === 'SCMP_ACT_ALLOW') return 'allow';
    return errors[rule?.errnoRet ?? profile.defaultErrnoRet] ?? expect.fail(`rule ${JSON.stringify(rule)}`);
  };
  for (const arch of seccompArchs) {
    for (const { name, verdict } of syscallsOf(arch)) {
      for (const value of typeof verdict === 'string' ? [0n] : interesting) {
        for (const third of [0n, 12n]) {
          const args = [value, value, third, 0n, 0n, 0n];
          expect(answerOf(name, args), `${name} with ${args}`).toBe(wanted(verdict, args));
        }
      }
    }
  }
});

const arch = hostArch() as SeccompArch;

describe('inside bubblewrap, without privileges', () => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'glovebox-seccomp-'));
    chmodSync(folder, 0o755);
    writeFileSync(join(folder, 'filter'), seccompBpf(arch));
    copyFileSync(probeFile, join(folder, 'probe.js'));
    const packages = { x86_64: 'bun-linux-x64-baseline', aarch64: 'bun-linux-aarch64' };
    const modules = new URL('../../../node_modules/', import.meta.url);
    copyFileSync(new URL(`@oven/${packages[arch]}/bin/bun`, modules), join(folder, 'bun'));
    copyFileSync(process.execPath, join(folder, 'node'));
    for (const program of ['bun', 'node']) chmodSync(join(folder, program), 0o755);
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  const inside = (...command: string[]): string => {
    const filter = openSync(join(folder, 'filter'), 'r');
    try {
      const links = ['bin', 'sbin', 'lib', 'lib64'].flatMap((it) => ['--symlink', `usr/${it}`, `/${it}`]);
      const result = spawnSync(
        'bwrap',
        [
          '--unshare-all',
          '--cap-drop',
          'ALL',
          '--new-session',
          '--die-with-parent',
          '--clearenv',
          '--seccomp',
        ]
          .concat([
            '3',
            '--ro-bind',
            '/usr',
            '/usr',
            ...links,
            '--ro-bind',
            '/etc',
            '/etc',
            '--proc',
            '/proc',
          ])
          .concat(['--dev', '/dev', '--tmpfs', '/tmp', '--tmpfs', '/var', '--ro-bind', folder, '/probe'])
          .concat([
            '--setenv',
            'PATH',
            '/usr/bin:/bin',
            '--setenv',
            'HOME',
            '/tmp',
            '--chdir',
            '/tmp',
            ...command,
          ]),
        {
          stdio: ['ignore', 'pipe', 'pipe', filter],
          encoding: 'utf8',
          ...(process.getuid?.() === 0 ? { uid: 65534, gid: 65534 } : {}),
        },
      );
      expect(result.status, `${command[0]}: ${result.error ?? ''}${result.stderr}`).toBe(0);
      return result.stdout;
    } finally {
      closeSync(filter);
    }
  };

  test('the kernel refuses what the profile refuses', () => {
    const stdout = inside('/probe/bun', '/probe/probe.js', 'libc.so.6', JSON.stringify(refusalCalls(arch)));
    expect(refusalAnswers(stdout)).toEqual(refusals);
  });

  test.each([
    ['Bun', ['/probe/bun', '-e', 'console.log(Bun.spawnSync(["echo", "ok"]).stdout.toString())']],
    ['Node.js', ['/probe/node', '-e', 'fetch("data:,ok").then((it) => it.text()).then(console.log)']],
    [
      'Node.js workers',
      ['/probe/node', '-e', 'new (require("worker_threads").Worker)("console.log(`ok`)", { eval: true })'],
    ],
    ['a shell with pipes', ['sh', '-c', 'seq 1 1000 | sort -rn | tail -1 >/dev/null; echo ok']],
    [
      'perl',
      ['perl', '-e', 'use Socket; socket(S, AF_INET, SOCK_STREAM, 0) or die; fork or exit; wait; print "ok"'],
    ],
    ['dpkg', ['sh', '-c', 'dpkg --version >/dev/null && dpkg --print-architecture >/dev/null && echo ok']],
    [
      'tar and gzip',
      ['sh', '-c', 'tar czf /tmp/t.gz -C /usr/share/base-files . && tar tzf /tmp/t.gz >/dev/null && echo ok'],
    ],
    [
      'git',
      [
        'sh',
        '-c',
        'git init -q /tmp/r && cd /tmp/r && echo a >a && git add a && git -c user.name=a -c user.email=a@b commit -qm a && git gc -q && echo ok',
      ],
    ],
  ])('%s runs', (_name, command) => {
    expect(inside(...(command as string[]))).toContain('ok');
  });
});
