// Where the keys of a TOML document stand, for messages: the parser tells only where a document stops being TOML.

/** A document's keys as dotted paths, each with the number of its first line. Keys inside inline tables are not among them. */
export function keyLines(document: string): Map<string, number> {
  const lines = new Map<string, number>();
  const note = (path: string[], line: number) => {
    for (let length = 1; length <= path.length; length++) {
      const key = path.slice(0, length).join('.');
      if (!lines.has(key)) lines.set(key, line);
    }
  };
  let table: string[] = [];
  let inside: Inside = { depth: 0 };
  for (const [index, text] of document.split('\n').entries()) {
    if (inside.quote === undefined && inside.depth === 0) {
      const header = /^\s*\[\[?([^\]]+)\]/.exec(text)?.[1];
      const key =
        header === undefined ? /^\s*((?:[\w-]+|"[^"]*"|'[^']*'|\s*\.\s*)+?)\s*=/.exec(text)?.[1] : undefined;
      if (header !== undefined) {
        table = partsOf(header);
        note(table, index + 1);
        continue;
      }
      if (key !== undefined) {
        note([...table, ...partsOf(key)], index + 1);
        inside = after(text.slice(text.indexOf('=') + 1), inside);
        continue;
      }
    }
    inside = after(text, inside);
  }
  return lines;
}

/** What the end of a line is in the middle of: a string of several lines, or brackets that are still open. */
interface Inside {
  quote?: '"""' | "'''";
  depth: number;
}

function after(text: string, { quote, depth }: Inside): Inside {
  let rest = text;
  while (rest !== '') {
    if (quote !== undefined) {
      const end = rest.indexOf(quote);
      if (end === -1) return { quote, depth };
      rest = rest.slice(end + 3);
      quote = undefined;
      continue;
    }
    const token = /^("""|'''|"(?:[^"\\]|\\.)*"|'[^']*'|#.*|[\s\S])/.exec(rest)?.[0] ?? rest;
    rest = rest.slice(token.length);
    if (token === '"""' || token === "'''") quote = token;
    else if (token === '[' || token === '{') depth++;
    else if (token === ']' || token === '}') depth--;
  }
  return quote === undefined ? { depth } : { quote, depth };
}

function partsOf(key: string): string[] {
  return [...key.matchAll(/"([^"]*)"|'([^']*)'|([\w-]+)/g)].map((it) => it[1] ?? it[2] ?? it[3] ?? '');
}
