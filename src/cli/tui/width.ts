// How many columns of a terminal text takes, and text cut to a number of them. A simple table: what it does not know of (joined emoji, say) is
// taken for wider than it is, so that nothing runs into what stands beside it.

const nothing = /^[\p{Mn}\p{Me}\p{Cf}]$/u;
const picture = /^\p{Emoji_Presentation}$/u;
/** East Asian wide and full-width characters, from and to. */
const wide: readonly (readonly [number, number])[] = [
  [0x1100, 0x115f],
  [0x2e80, 0x303e],
  [0x3041, 0x33ff],
  [0x3400, 0x4dbf],
  [0x4e00, 0x9fff],
  [0xa000, 0xa4cf],
  [0xa960, 0xa97f],
  [0xac00, 0xd7a3],
  [0xf900, 0xfaff],
  [0xfe30, 0xfe6f],
  [0xff00, 0xff60],
  [0xffe0, 0xffe6],
  [0x17000, 0x18cff],
  [0x1b000, 0x1b2ff],
  [0x20000, 0x3fffd],
];
/** Marks that take no column would otherwise make a line of one column as long as anybody likes. */
const charactersOfColumnMax = 4;

export function widthOf(text: string): number {
  let width = 0;
  for (const character of text) width += columnsOf(character);
  return width;
}

function columnsOf(character: string): 0 | 1 | 2 {
  const code = character.codePointAt(0) ?? 0;
  if (code < 0x300) return 1;
  if (nothing.test(character)) return 0;
  return picture.test(character) || wide.some(([from, to]) => code >= from && code <= to) ? 2 : 1;
}

/** At most `columns` wide; `…` stands for what is missing at the end, or at the beginning. */
export function cut(text: string, columns: number, missing: 'end' | 'beginning' = 'end'): string {
  if (columns <= 0) return '';
  if (fits(text, columns)) return text;
  const characters = [...text.slice(...(missing === 'end' ? [0, 4096] : [-4096]))];
  if (missing === 'beginning') characters.reverse();
  const kept = taken(characters, columns - 1);
  return missing === 'end' ? `${kept.join('')}…` : `…${kept.reverse().join('')}`;
}

const fits = (text: string, columns: number) =>
  text.length <= columns * charactersOfColumnMax && widthOf(text) <= columns;

function taken(characters: readonly string[], columns: number): string[] {
  const kept: string[] = [];
  let width = 0;
  for (const character of characters.slice(0, columns * charactersOfColumnMax)) {
    width += columnsOf(character);
    if (width > columns) break;
    kept.push(character);
  }
  return kept;
}

/** Exactly `columns` wide. */
export function padded(text: string, columns: number, missing: 'end' | 'beginning' = 'end'): string {
  const short = cut(text, columns, missing);
  return short + ' '.repeat(Math.max(0, columns - widthOf(short)));
}
