// A patch in git's form, taken apart into files and hunks, and put together again from those that were chosen.

export interface PatchFile {
  /** Below the workspace, as the server writes paths; undefined when it cannot be told. */
  path: string | undefined;
  /** Its lines before the first hunk. */
  head: string;
  hunks: string[];
}

/** `text` has one character for each byte. */
export function filesOf(text: string): PatchFile[] {
  return text
    .split(/^(?=diff --git )/m)
    .filter((it) => it.startsWith('diff --git '))
    .map((part) => {
      const [head = '', ...hunks] = part.split(/^(?=@@ )/m);
      return { path: pathOf(head), head, hunks };
    });
}

/** Back to text, if it is some. */
export function chosenPatch(parts: readonly { file: PatchFile; hunks: readonly string[] }[]): string {
  const bytes = Buffer.from(
    parts.map(({ file, hunks }) => `${file.head}${renumbered(hunks).join('')}`).join(''),
    'latin1',
  );
  return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
}

/** Whether hunks of it can be sent: patches travel as text. */
export function isText({ head, hunks }: PatchFile): boolean {
  try {
    chosenPatch([{ file: { path: undefined, head, hunks }, hunks }]);
    return true;
  } catch {
    return false;
  }
}

/** Where a hunk goes is said as if all before it were applied, too, and lines that are there twice are told apart by that alone. */
function renumbered(hunks: readonly string[]): string[] {
  let shift = 0;
  return hunks.map((hunk) =>
    hunk.replace(
      /^@@ -(\d+)(?:,(\d+))? \+\d+((?:,\d+)?) @@/,
      (_, from: string, removed = '1', added: string) => {
        const [before, after] = [Number(removed), Number(added.slice(1) || '1')];
        // A side without lines is told by the line before it.
        const first = Number(from) + shift + (before === 0 ? 1 : 0) - (after === 0 ? 1 : 0);
        shift += after - before;
        return `@@ -${from}${removed === '1' ? '' : `,${removed}`} +${first}${added} @@`;
      },
    ),
  );
}

function pathOf(head: string): string | undefined {
  const named = /^\+\+\+ ("?b\/.*)$/m.exec(head)?.[1] ?? /^--- ("?a\/.*)$/m.exec(head)?.[1];
  const whole = /^diff --git (.*)$/m.exec(head)?.[1] ?? '';
  // Both names are the same, so half of it is one of them.
  const half = whole.slice((whole.length + 1) / 2);
  const quoted = (named ?? half).replace(/\t$/, '');
  const bytes = Buffer.from(quoted.startsWith('"') ? unquoted(quoted) : quoted, 'latin1');
  const text = bytes.toString('utf8');
  return Buffer.from(text).equals(bytes) ? text.slice(2) : undefined;
}

function unquoted(text: string): string {
  const letters: Record<string, string> = { a: '\x07', b: '\b', t: '\t', n: '\n', v: '\v', f: '\f', r: '\r' };
  return text
    .slice(1, -1)
    .replace(/\\([0-7]{3}|.)/g, (_, it: string) =>
      it.length === 3 ? String.fromCharCode(Number.parseInt(it, 8)) : (letters[it] ?? it),
    );
}
