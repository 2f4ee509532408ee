// Figures and their floors: taken in turns, so that a machine whose speed drifts does not favour one of them.

export interface Figure {
  name: string;
  unit: 's' | 'ms' | '/s' | 'MiB/s' | 'KiB' | 'MiB' | '/cpu-s' | 'MiB/cpu-s' | '%' | 'count';
  median: number;
  min: number;
  max: number;
  runs: number;
  /** What it is compared with, measured in the same run, and the ratio to it. */
  floor?: { name: string; median: number; ratio: number };
  /** What the project aims at, in words, and whether this run reached it. */
  target?: { text: string; met: boolean };
}

export function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length / 2;
  return sorted.length % 2 === 1
    ? (sorted[Math.floor(middle)] as number)
    : ((sorted[middle - 1] as number) + (sorted[middle] as number)) / 2;
}

export async function timed(work: () => Promise<unknown>): Promise<number> {
  const started = performance.now();
  await work();
  return performance.now() - started;
}

/** Runs each of the works in turn, `runs` times after one turn that does not count; gives the values of each. */
export async function inTurns<Name extends string>(
  runs: number,
  works: Record<Name, () => Promise<number>>,
): Promise<Record<Name, number[]>> {
  const names = Object.keys(works) as Name[];
  const values = Object.fromEntries(names.map((name) => [name, [] as number[]])) as Record<Name, number[]>;
  for (let run = -1; run < runs; run++)
    for (const name of names) {
      const value = await works[name]();
      if (run >= 0) values[name].push(value);
    }
  return values;
}

export function figure(
  name: string,
  unit: Figure['unit'],
  values: number[],
  options: {
    floor?: { name: string; values: number[] };
    target?: { text: string; holds: (it: { median: number; ratio: number }) => boolean };
  } = {},
): Figure {
  const middle = median(values);
  const floor = options.floor && { name: options.floor.name, median: median(options.floor.values) };
  const ratio = floor === undefined ? Number.NaN : middle / floor.median;
  return {
    name,
    unit,
    median: middle,
    min: Math.min(...values),
    max: Math.max(...values),
    runs: values.length,
    ...(floor ? { floor: { ...floor, ratio } } : {}),
    ...(options.target
      ? { target: { text: options.target.text, met: options.target.holds({ median: middle, ratio }) } }
      : {}),
  };
}

const shown = (value: number): string => (value >= 100 ? value.toFixed(0) : value.toFixed(2));

export function table(figures: Figure[]): string {
  const rows = figures.map((it) => [
    it.name,
    `${shown(it.median)} ${it.unit}`,
    `${shown(it.min)}–${shown(it.max)}`,
    it.floor ? `${it.floor.name}: ${shown(it.floor.median)}` : '',
    it.floor ? `${it.floor.ratio.toFixed(2)}×` : '',
    it.target ? `${it.target.text}: ${it.target.met ? 'met' : 'MISSED'}` : '',
  ]);
  const head = ['figure', 'median', 'range', 'floor', 'ratio', 'target'];
  const widths = head.map((title, column) =>
    Math.max(title.length, ...rows.map((row) => (row[column] as string).length)),
  );
  const line = (cells: string[]) =>
    cells
      .map((cell, column) => cell.padEnd(widths[column] as number))
      .join('  ')
      .trimEnd();
  return [line(head), line(widths.map((width) => '-'.repeat(width))), ...rows.map(line)].join('\n');
}
