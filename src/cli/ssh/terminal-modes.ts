// A terminal's modes as a client sends them (RFC 4254 §8), as words for stty(1). What is not known here is left as the system has it.
import type { WireReader } from './wire-data.ts';

const characters: Record<number, string> = {
  ...{ 1: 'intr', 2: 'quit', 3: 'erase', 4: 'kill', 5: 'eof', 6: 'eol', 7: 'eol2', 8: 'start', 9: 'stop' },
  ...{ 10: 'susp', 12: 'rprnt', 13: 'werase', 14: 'lnext', 18: 'discard' },
};

const flags: Record<number, string> = {
  ...{
    30: 'ignpar',
    31: 'parmrk',
    32: 'inpck',
    33: 'istrip',
    34: 'inlcr',
    35: 'igncr',
    36: 'icrnl',
    37: 'iuclc',
  },
  ...{ 38: 'ixon', 39: 'ixany', 40: 'ixoff', 41: 'imaxbel', 42: 'iutf8' },
  ...{
    50: 'isig',
    51: 'icanon',
    52: 'xcase',
    53: 'echo',
    54: 'echoe',
    55: 'echok',
    56: 'echonl',
    57: 'noflsh',
  },
  ...{ 58: 'tostop', 59: 'iexten', 60: 'echoctl', 61: 'echoke' },
  ...{ 70: 'opost', 71: 'olcuc', 72: 'onlcr', 73: 'ocrnl', 74: 'onocr', 75: 'onlret' },
};

/** Opcodes from here on have no agreed form, so that nothing behind them can be read. */
const opcodesMax = 159;

/** Groups of words for stty, each of which can be given alone: one that a system does not know spoils no other. */
export function sttyWords(modes: WireReader): string[] {
  const words: string[] = [];
  while (modes.left >= 5) {
    const opcode = modes.byte();
    if (opcode === 0 || opcode > opcodesMax) break;
    const value = modes.uint32();
    const character = characters[opcode];
    const flag = flags[opcode];
    if (character !== undefined && value <= 255) words.push(`${character} ${characterText(value)}`);
    else if (flag !== undefined) words.push(value === 0 ? `-${flag}` : flag);
  }
  return words;
}

/** 255 stands for "none". Stty reads a number as the character's code, but one digit as that digit: `intr 3` would leave Ctrl-C without a meaning. */
function characterText(value: number): string {
  if (value === 255) return 'undef';
  return value < 10 ? `^${String.fromCharCode(64 + value)}` : String(value);
}
