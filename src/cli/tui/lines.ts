// What is on the screen before it is bytes: lines of pieces of text with a style each. Here all text is cleaned and cut to the width of the
// screen, so that nothing that a sandbox or a server says gets to the terminal in any other way.
import { cleanLine } from '../output.ts';
import { cut, padded, widthOf } from './width.ts';

export type Style = 'bold' | 'dim' | 'red' | 'green' | 'yellow' | 'chosen';
export interface Piece {
  text: string;
  style?: Style;
}
export type Line = readonly Piece[];

export interface Size {
  cols: number;
  rows: number;
}

const codes: Record<Style, string> = {
  ...{ bold: '1', dim: '2', red: '31', green: '32', yellow: '33', chosen: '7' },
};

export const piece = (text: string, style?: Style): Piece =>
  style === undefined ? { text } : { text, style };
export const plain = (text: string, style?: Style): Line => [piece(text, style)];

/** The bytes of a line; without colour there is nothing in it but text. */
export function lineText(line: Line, { cols, color }: { cols: number; color: boolean }): string {
  let left = cols;
  let text = '';
  for (const { text: raw, style } of line) {
    if (left <= 0) break;
    const shown = cut(cleanLine(raw), left);
    left -= widthOf(shown);
    text += color && style && shown !== '' ? `\u001b[${codes[style]}m${shown}\u001b[0m` : shown;
  }
  return text;
}

export interface Column {
  title: string;
  width: number;
  /** Which end of a cell is left out when it is too long. */
  missing?: 'end' | 'beginning';
}

export interface Row {
  cells: readonly Piece[];
  chosen: boolean;
}

/** A heading and as many rows as there is room for, around the chosen one. */
export function tableLines(
  columns: readonly Column[],
  rows: readonly Row[],
  { height }: { height: number },
): Line[] {
  const heading = plain(`  ${columns.map((it) => padded(it.title, it.width)).join('  ')}`, 'bold');
  const room = Math.max(0, height - 1);
  const at = Math.max(
    0,
    rows.findIndex((it) => it.chosen),
  );
  const first = Math.max(0, Math.min(at - Math.floor(room / 2), rows.length - room));
  return [heading, ...rows.slice(first, first + room).map((row) => rowLine(columns, row))];
}

function rowLine(columns: readonly Column[], { cells, chosen }: Row): Line {
  const pieces = columns.flatMap(({ width, missing = 'end' }, index): Piece[] => {
    const { text, style } = cells[index] ?? piece('');
    // Cleaned here already, because cleaning may change the width.
    return [
      piece(padded(cleanLine(text), width, missing), chosen ? 'chosen' : style),
      piece('  ', chosen ? 'chosen' : undefined),
    ];
  });
  return [piece(chosen ? '> ' : '  ', chosen ? 'chosen' : undefined), ...pieces.slice(0, -1)];
}
