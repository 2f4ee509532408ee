// Byte strings found in bytes that come in pieces: blotted out of answers (secrets), or only noticed in requests (placeholders on a wrong way).

export interface Scrubber {
  /** What may go on: all but an end that could be the beginning of something to blot out. Of the same length in all, so framing stays true. */
  push(chunk: Buffer): Buffer;
  /** What was held back. */
  end(): Buffer;
}

/** Replaces each byte of whatever matches one of the patterns by `*`. */
export function createScrubber(patterns: readonly Buffer[]): Scrubber {
  const wanted = patterns.filter((pattern) => pattern.length > 0);
  let held: Buffer = empty;
  /** How many bytes at the beginning of `held` belong to a match before it. They stay legible until now, for another match may begin in them. */
  let blotted = 0;
  return {
    push(chunk) {
      const bytes = held.length === 0 ? chunk : Buffer.concat([held, chunk]);
      const keep = beginningsAt(bytes, wanted);
      // A match that begins in what is held is found again with the next chunk.
      const spans = spansOf(bytes, wanted).filter(([start]) => start < keep);
      if (blotted > 0) spans.push([0, blotted]);
      held = Buffer.from(bytes.subarray(keep));
      blotted = spans.reduce((most, [, end]) => Math.max(most, end - keep), 0);
      const out = bytes.subarray(0, keep);
      return spans.length === 0 ? out : blot(out, spans);
    },
    end() {
      const out = blotted === 0 ? held : blot(held, [[0, blotted]]);
      held = empty;
      blotted = 0;
      return out;
    },
  };
}

/** Whether one of the patterns is in what was pushed so far. */
export function createFinder(patterns: readonly Buffer[]): (chunk: Buffer) => boolean {
  const wanted = patterns.filter((pattern) => pattern.length > 0);
  const longest = Math.max(0, ...wanted.map((pattern) => pattern.length));
  let tail: Buffer = empty;
  let found = false;
  return (chunk) => {
    if (found) return true;
    const bytes = tail.length === 0 ? chunk : Buffer.concat([tail, chunk]);
    found = wanted.some((pattern) => bytes.includes(pattern));
    // A copy: the chunk itself may be used again.
    tail = Buffer.from(bytes.subarray(Math.max(0, bytes.length - longest + 1)));
    return found;
  };
}

/** The text with all matches blotted out. */
export function scrubText(text: string, patterns: readonly Buffer[]): string {
  const bytes = Buffer.from(text, 'latin1');
  const spans = spansOf(bytes, patterns);
  return spans.length === 0 ? text : blot(bytes, spans).toString('latin1');
}

const empty = Buffer.alloc(0);
const star = 0x2a;

function spansOf(bytes: Buffer, patterns: readonly Buffer[]): [start: number, end: number][] {
  const spans: [number, number][] = [];
  for (const pattern of patterns) {
    if (pattern.length === 0) continue;
    for (let at = bytes.indexOf(pattern); at >= 0; at = bytes.indexOf(pattern, at + 1))
      spans.push([at, at + pattern.length]);
  }
  return spans;
}

/** Where the longest end of `bytes` starts that some pattern begins with. */
function beginningsAt(bytes: Buffer, patterns: readonly Buffer[]): number {
  let earliest = bytes.length;
  for (const pattern of patterns) {
    const first = pattern[0] as number;
    let at = bytes.indexOf(first, Math.max(0, bytes.length - pattern.length + 1));
    for (; at >= 0 && at < earliest; at = bytes.indexOf(first, at + 1))
      if (bytes.compare(pattern, 0, bytes.length - at, at) === 0) earliest = at;
  }
  return earliest;
}

function blot(bytes: Buffer, spans: readonly [number, number][]): Buffer {
  const copy = Buffer.from(bytes);
  for (const [start, end] of spans)
    if (start < copy.length) copy.fill(star, start, Math.min(end, copy.length));
  return copy;
}
