// The part of a verb's --help that most people read.

/** Lines to type, and what each is good for. */
export function examples(...lines: [string, string][]): string {
  const width = Math.max(...lines.map(([line]) => line.length));
  return `\nExamples:\n${lines.map(([line, why]) => `  $ ${line.padEnd(width)}   ${why}`).join('\n')}`;
}
