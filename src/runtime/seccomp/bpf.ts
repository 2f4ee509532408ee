// The seccomp profile as a classic BPF program, in the bytes that `bwrap --seccomp FD` reads: an array of struct sock_filter.
// The number is found by binary search, so any call costs about ten instructions.
import {
  type ArgumentTest,
  errnoMissing,
  errnoRefused,
  type SeccompArch,
  syscallsOf,
  type Verdict,
} from './profile.ts';

/** One instruction: operation, jump if true, jump if false, operand. Jumps count from the next instruction. */
type Instruction = readonly [code: number, jt: number, jf: number, k: number];

const auditArch = { x86_64: 0xc000_003e, aarch64: 0xc000_00b7 } as const;
const x32Bit = 0x4000_0000;

// Offsets in struct seccomp_data. Both architectures are little-endian, so the low half of an argument comes first.
const numberOffset = 0;
const archOffset = 4;
const argumentOffset = (index: number) => 16 + 8 * index;

const load = (offset: number): Instruction => [0x20, 0, 0, offset];
const and = (mask: number): Instruction => [0x54, 0, 0, mask];
const jump = (distance: number): Instruction => [0x05, 0, 0, distance];
const ifEqual = (value: number, jt: number, jf: number): Instruction => [0x15, jt, jf, value];
const ifAtLeast = (value: number, jt: number, jf: number): Instruction => [0x35, jt, jf, value];
const answer = (value: number): Instruction => [0x06, 0, 0, value];

const allow = answer(0x7fff_0000);
const fail = (errno: number) => answer(0x0005_0000 | errno);
const refuse = fail(errnoRefused);
const missing = fail(errnoMissing);
const killProcess = answer(0x8000_0000);

/** The filter for one architecture. Calls of any other kill the process: their numbers mean other calls. */
export function seccompBpf(arch: SeccompArch, options: { nested?: boolean } = {}): Buffer {
  const program = [
    load(archOffset),
    ifEqual(auditArch[arch], 1, 0),
    killProcess,
    load(numberOffset),
    ...(arch === 'x86_64' ? [ifAtLeast(x32Bit, 0, 1), missing] : []),
    ...search(spans(arch, options)),
  ];
  const bytes = Buffer.alloc(program.length * 8);
  for (const [index, [code, jt, jf, k]] of program.entries()) {
    bytes.writeUInt16LE(code, index * 8);
    bytes.writeUInt8(jt, index * 8 + 2);
    bytes.writeUInt8(jf, index * 8 + 3);
    bytes.writeUInt32LE(k, index * 8 + 4);
  }
  return bytes;
}

/** A run of numbers, from `start` to the next span's, that share a verdict. */
interface Span {
  start: number;
  verdict: Verdict;
}

function spans(arch: SeccompArch, options: { nested?: boolean }): Span[] {
  const result: Span[] = [];
  const add = (start: number, verdict: Verdict) => {
    if (result.at(-1)?.verdict !== verdict) result.push({ start, verdict });
  };
  let next = 0;
  for (const { number, verdict } of syscallsOf(arch, options)) {
    if (number > next) add(next, 'missing');
    add(number, verdict);
    next = number + 1;
  }
  add(next, 'missing');
  return result;
}

function search(spans: Span[]): Instruction[] {
  const middle = spans.length >> 1;
  const { start, verdict } = spans[middle] as Span;
  if (spans.length === 1) return leaf(verdict);
  const low = search(spans.slice(0, middle));
  const high = search(spans.slice(middle));
  // A conditional jump reaches 255 instructions; beyond that it takes an unconditional one for help.
  if (low.length <= 255) return [ifAtLeast(start, low.length, 0), ...low, ...high];
  return [ifAtLeast(start, 0, 1), jump(low.length), ...low, ...high];
}

function leaf(verdict: Verdict): Instruction[] {
  if (verdict === 'allow') return [allow];
  if (verdict === 'refuse') return [refuse];
  if (verdict === 'missing') return [missing];
  if ('allowIf' in verdict) {
    return [...verdict.allowIf.flatMap((it) => whenAll(it.filter(isTest), allow)), fail(verdict.errno)];
  }
  return [...verdict.refuseIf.flatMap((it) => whenAll([it], refuse)), allow];
}

const isTest = (it: ArgumentTest | undefined): it is ArgumentTest => it !== undefined;

/** Gives the answer when every test holds, else falls through to what follows. */
function whenAll(tests: readonly ArgumentTest[], then: Instruction): Instruction[] {
  let code: Instruction[] = [then];
  for (const { arg, mask, value } of tests.toReversed()) {
    code = [load(argumentOffset(arg)), and(mask), ifEqual(value, 0, code.length), ...code];
  }
  return code;
}
