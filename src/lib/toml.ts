// Where the keys of a TOML document stand, for messages and for changes that leave the rest as it is: the parser tells only where a document stops being
// TOML.

/** A document's keys as dotted paths, each with the number of its first line. Keys inside inline tables are not among them. */
export function keyLines(document: string): Map<string, number> {
  const lines = new Map<string, number>();
  for (const { path, first } of statementsOf(document)) {
    for (let length = 1; length <= path.length; length++) {
      const key = path.slice(0, length).join('.');
      if (!lines.has(key)) lines.set(key, first + 1);
    }
  }
  return lines;
}

/**
 * The document with `section.key` set to `value` (as TOML writes it), or without it; all else stays, byte for byte. A section may be one inside another,
 * `server.tls`. Undefined where it stands in a form
 * that takes a person, such as an inline table. Whoever calls parses the result, because this reads lines and no grammar.
 */
export function withKey(
  document: string,
  { section, key, value }: { section: string; key: string; value: string | undefined },
): string | undefined {
  const statements = [...statementsOf(document)];
  const lines = document.split('\n');
  const isKey = (it: Statement) => it.value !== undefined;
  const isAt = (it: Statement, dotted: string) => it.path.join('\0') === dotted.replaceAll('.', '\0');
  const outer = section.split('.').map((_, at, all) => all.slice(0, at + 1).join('.'));
  if (statements.some((it) => isKey(it) && outer.some((name) => isAt(it, name)))) return undefined;
  const there = statements.find((it) => isKey(it) && isAt(it, `${section}.${key}`));
  if (there !== undefined && value === undefined) {
    lines.splice(there.first, there.last - there.first + 1);
    return lines.join('\n');
  }
  if (there?.value !== undefined) {
    const text = lines.slice(there.first, there.last + 1).join('\n');
    const from = there.value + (/^[ \t]*/.exec(text.slice(there.value))?.[0].length ?? 0);
    const changed = `${text.slice(0, from)}${value}${text.slice(endOfValue(text, from))}`;
    lines.splice(there.first, there.last - there.first + 1, changed);
    return lines.join('\n');
  }
  if (value === undefined) return document;
  const header = statements.findIndex((it) => !isKey(it) && isAt(it, section));
  const next = statements.findIndex((it, index) => index > header && !isKey(it));
  const inSection = header < 0 ? [] : statements.slice(header, next < 0 ? undefined : next);
  const dotted = statements.filter(
    (it) =>
      it.table.length === 0 &&
      isKey(it) &&
      it.path.join('\0').startsWith(`${section.replaceAll('.', '\0')}\0`),
  );
  const before = inSection.at(-1) ?? dotted.at(-1);
  const ending = document.includes('\r\n') ? '\r\n' : '\n';
  if (before === undefined) {
    const gap = document === '' ? '' : document.endsWith('\n') ? ending : ending.repeat(2);
    return `${document}${gap}[${section}]${ending}${key} = ${value}${ending}`;
  }
  const indent = /^[ \t]*/.exec(lines[before.first] ?? '')?.[0] ?? '';
  const added = `${indent}${header < 0 ? `${section}.` : ''}${key} = ${value}`;
  const at = before.last + 1;
  const carriage = ending.slice(0, -1);
  if (at < lines.length) lines.splice(at, 0, `${added}${carriage}`);
  else lines.push(`${lines.pop() ?? ''}${carriage}`, added);
  return lines.join('\n');
}

/** A header, or a key with its value: where it stands, counted from 0. */
interface Statement {
  /** From the root of the document. */
  path: string[];
  /** Whose header stands above it. */
  table: string[];
  first: number;
  last: number;
  /** Of a key: the column in its first line behind the `=`. */
  value?: number;
}

function* statementsOf(document: string): Generator<Statement> {
  let table: string[] = [];
  let open: Statement | undefined;
  let inside: Inside = { depth: 0 };
  for (const [index, text] of document.split('\n').entries()) {
    if (open !== undefined) {
      inside = after(text, inside);
      open.last = index;
    } else {
      const header = /^\s*\[\[?([^\]]+)\]/.exec(text)?.[1];
      if (header !== undefined) {
        table = partsOf(header);
        yield { path: table, table, first: index, last: index };
        continue;
      }
      const match = /^\s*((?:[\w-]+|"[^"]*"|'[^']*'|\s*\.\s*)+?)\s*=/.exec(text);
      if (match === null) continue;
      const value = match[0].length;
      open = { path: [...table, ...partsOf(match[1] as string)], table, first: index, last: index, value };
      inside = after(text.slice(value), { depth: 0 });
    }
    if (inside.quote === undefined && inside.depth <= 0) {
      yield open;
      open = undefined;
    }
  }
  if (open !== undefined) yield open;
}

/** Behind the value that begins at `from`: what follows is space and perhaps a comment. */
function endOfValue(text: string, from: number): number {
  let end = from;
  let depth = 0;
  for (let at = from; at < text.length; ) {
    const [token = ''] =
      /^("""[\s\S]*?"""+|'''[\s\S]*?'''+|"(?:[^"\\]|\\.)*"|'[^']*'|#[^\n]*|[\s\S])/.exec(text.slice(at)) ??
      [];
    if (token === '') break;
    if (token.startsWith('#') && depth === 0) break;
    if (token === '[' || token === '{') depth++;
    else if (token === ']' || token === '}') depth--;
    at += token.length;
    if (!/^\s$/.test(token) && !token.startsWith('#')) end = at;
  }
  return end;
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
