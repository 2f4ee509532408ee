// The shapes of this package and those of the server's contract are written in two places, because the package stands alone. They agree.
import { expect, expectTypeOf, test } from 'vitest';
import type { z } from 'zod';
import type { ImageInfo as WireImage, SystemInfo as WireSystem } from '../../src/contract/admin.ts';
import type * as bell from '../../src/contract/bell.ts';
import type { FileInfo as WireFile } from '../../src/contract/execd.ts';
import type * as network from '../../src/contract/network.ts';
import type { CreateSandboxRequest, Sandbox as WireSandbox } from '../../src/contract/opensandbox.ts';
import { StartProcess, type ProcessInfo as WireProcess } from '../../src/contract/process.ts';
import type {
  Answer,
  BellDecision,
  BellEntry,
  BellStatus,
  BellToken,
  CreateOptions,
  ExitStatus,
  FileInfo,
  ImageInfo,
  LearnedPolicy,
  LogEntry,
  NetworkPolicy,
  NewRule,
  PolicyAnswer,
  Preset,
  ProcessInfo,
  ProxyConfig,
  ProxyConfigChange,
  Question,
  Rule,
  SandboxInfo,
  SecretBinding,
  SecretInfo,
  SecretSource,
  SetSecret,
  SystemInfo,
} from './index.ts';
import { quote } from './index.ts';
import { line } from './shell.ts';
import { modeFromWire, modeToWire } from './wire.ts';

test('what the server sends has the fields and types that this package expects', () => {
  expectTypeOf<WireProcess['id']>().toEqualTypeOf<ProcessInfo['id']>();
  expectTypeOf<Omit<WireProcess, 'startedAt' | 'finishedAt' | 'exit'>>().toEqualTypeOf<
    Omit<ProcessInfo, 'startedAt' | 'finishedAt' | 'exit'>
  >();
  expectTypeOf<NonNullable<WireProcess['exit']>['code']>().toEqualTypeOf<ExitStatus['exitCode']>();
  expectTypeOf<NonNullable<WireProcess['exit']>['reason']>().toEqualTypeOf<ExitStatus['reason']>();
  expectTypeOf<Omit<WireImage, 'createdAt'>>().toEqualTypeOf<Omit<ImageInfo, 'createdAt'>>();
  expectTypeOf<Pick<WireFile, 'path' | 'type' | 'size' | 'owner' | 'group' | 'mode'>>().toEqualTypeOf<
    Pick<FileInfo, 'path' | 'type' | 'size' | 'owner' | 'group' | 'mode'>
  >();
  expectTypeOf<WireSandbox['status']['state']>().toEqualTypeOf<SandboxInfo['state']>();
  expectTypeOf<keyof WireSandbox['glovebox']['limits']>().toEqualTypeOf<keyof SandboxInfo['limits']>();
  expectTypeOf<keyof WireSystem['runtimes'][number]>().toEqualTypeOf<keyof SystemInfo['runtimes'][number]>();
  expectTypeOf<WireSystem['runtimes'][number]['capabilities']>().toEqualTypeOf<
    SystemInfo['runtimes'][number]['capabilities']
  >();
});

/** Without the difference between what may be absent and what may be undefined; JSON has none. */
type Shape<T> = T extends readonly (infer Item)[]
  ? Shape<Item>[]
  : T extends object
    ? { [Key in keyof T]-?: Shape<Exclude<T[Key], undefined>> }
    : T;

/** Dates cross the wire as text. */
type OnWire<T, Dates extends keyof T> = Shape<Omit<T, Dates> & Record<Dates, string>>;

test('rules, log, questions and secrets have the fields and types that this package expects', () => {
  expectTypeOf<Shape<network.Rule>>().branded.toEqualTypeOf<OnWire<Rule, 'createdAt'>>();
  expectTypeOf<Shape<network.LogEntry>>().branded.toEqualTypeOf<OnWire<LogEntry, 'at'>>();
  expectTypeOf<Shape<network.Question>>().branded.toEqualTypeOf<OnWire<Question, 'at' | 'until'>>();
  expectTypeOf<Shape<network.SecretInfo>>().branded.toEqualTypeOf<OnWire<SecretInfo, 'createdAt'>>();
  expectTypeOf<Shape<network.PolicyAnswer>>().toEqualTypeOf<Shape<PolicyAnswer>>();
  expectTypeOf<Shape<network.LearnedPolicy>>().toEqualTypeOf<Shape<LearnedPolicy>>();
  expectTypeOf<Shape<network.Preset>>().toEqualTypeOf<Shape<Preset>>();
  expectTypeOf<Shape<network.ProxyConfig>>().toEqualTypeOf<Shape<ProxyConfig>>();
});

test('what the bell shows and takes has the fields and types that this package expects', () => {
  expectTypeOf<Shape<bell.BellEntry>>().branded.toEqualTypeOf<OnWire<BellEntry, 'at'>>();
  expectTypeOf<Shape<bell.BellStatus>>().branded.toEqualTypeOf<Shape<BellStatus>>();
  expectTypeOf<Shape<bell.BellToken>>().branded.toEqualTypeOf<OnWire<BellToken, 'createdAt'>>();
  expectTypeOf<bell.BellDecision>().toEqualTypeOf<BellDecision>();
  type Create = NonNullable<z.input<typeof CreateSandboxRequest>['glovebox']>;
  expectTypeOf<Shape<NonNullable<Create['bell']>>>().branded.toEqualTypeOf<
    Shape<NonNullable<CreateOptions['bell']>>
  >();
});

test('rules, answers and secrets are sent in the form that the server takes', () => {
  expectTypeOf<Shape<z.input<typeof network.NewRule>>>().toEqualTypeOf<Shape<NewRule>>();
  expectTypeOf<Shape<z.input<typeof network.Answer>>>().toEqualTypeOf<Shape<Answer>>();
  expectTypeOf<Shape<z.input<typeof network.ProxyConfigChange>>>().toEqualTypeOf<Shape<ProxyConfigChange>>();
  expectTypeOf<Shape<z.input<typeof network.SecretBinding>>>().toEqualTypeOf<Shape<SecretBinding>>();
  expectTypeOf<Shape<z.input<typeof network.SecretSource>>>().toEqualTypeOf<Shape<SecretSource>>();
  expectTypeOf<Shape<z.input<typeof network.SetSecret>>>().toEqualTypeOf<Shape<SetSecret>>();
  type Create = z.input<typeof CreateSandboxRequest>;
  expectTypeOf<Shape<NonNullable<Create['networkPolicy']>>>().toEqualTypeOf<Shape<NetworkPolicy>>();
  expectTypeOf<Shape<NonNullable<NonNullable<Create['glovebox']>['rules']>>>().toEqualTypeOf<
    Shape<Omit<NewRule, 'sandbox'>[]>
  >();
});

test('what this package sends is what the server takes', () => {
  const request: z.input<typeof StartProcess> = {
    ...{
      argv: ['x'],
      env: {},
      cwd: '/',
      user: 'root',
      stdin: true,
      tty: { cols: 80, rows: 24 },
      timeoutMs: 5,
      background: false,
    },
  };
  expect(StartProcess.parse(request)).toEqual(request);
});

test.each([
  [0o755, 755],
  [0o644, 644],
  [0o4755, 4755],
  [0, 0],
  [0o7, 7],
])('mode %i is %i on the wire', (mode, wire) => {
  expect(modeToWire(mode)).toBe(wire);
  expect(modeFromWire(wire)).toBe(mode);
});

test.each([
  ['plain-1.txt', 'plain-1.txt'],
  ['', "''"],
  ["it's", "'it'\\''s'"],
  ['a b', "'a b'"],
  ['$(rm -rf /)', "'$(rm -rf /)'"],
  ['A=1', "'A=1'"],
  ['~', "'~'"],
  ['a\nb', "'a\nb'"],
])('%j is quoted as %s', (word, quoted) => {
  expect(quote(word)).toBe(quoted);
});

test('a template quotes each value, and each item of a list', () => {
  const tag = (strings: TemplateStringsArray, ...values: unknown[]) => line(strings, values);
  expect(tag`cat ${['a b', 'c']} > ${'it’s'} ${7}`).toBe("cat 'a b' c > 'it’s' 7");
});
