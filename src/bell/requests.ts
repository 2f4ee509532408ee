// What a caller sent, understood: bytes to JSON within bounds, and the forms that clients use to the one form that the bell takes.
import { bellActionName } from '../contract/bell.ts';
import { BellError } from './bell.ts';

/** An object of the caller's, without a prototype and without a key named `__proto__` at any depth. */
type Fields = Readonly<Record<string, unknown>>;

export interface BellRequest {
  action: string;
  args: Fields;
}

const depthMax = 64;
const example = '{"action":"notify","args":{"title":"Build","body":"Tests passed"}}';
const execExample = '{"action":"exec","args":{"command":["make","test"]}}';

const utf8 = new TextDecoder('utf-8', { fatal: true });

/** `example`: what would have been right. Throws BellError('bad_request'). */
export function parseObject(bytes: Uint8Array, example: string): Fields {
  if (bytes.length === 0)
    throw new BellError('bad_request', `the request has no body; send for example ${example}`);
  // Before JSON.parse, which takes its time with what is deep.
  if (deeperThan(depthMax, bytes))
    throw new BellError('bad_request', `the body is nested deeper than ${depthMax} levels`);
  let value: unknown;
  try {
    const text = utf8.decode(bytes);
    value = JSON.parse(text, mayNamePrototype(text) ? withoutPrototypes : undefined);
  } catch (error) {
    const what = error instanceof SyntaxError ? 'JSON' : 'UTF-8';
    throw new BellError('bad_request', `the body is no ${what}; send for example ${example}`);
  }
  if (!isObject(value))
    throw new BellError('bad_request', `the body must be a JSON object, for example ${example}`);
  return Object.assign(Object.create(null), value);
}

/** The body of `POST /`. Throws BellError('bad_request'). */
export function parseRequest(bytes: Uint8Array): BellRequest {
  const { action: given, args, ...rest } = parseObject(bytes, example);
  if (given === undefined)
    throw new BellError('bad_request', `the request names no action; send for example ${example}`);
  const action = typeof given === 'string' ? given.replaceAll('-', '_') : undefined;
  if (action === undefined || !bellActionName.safeParse(action).success)
    throw new BellError(
      'bad_request',
      `action must be a name such as "open_url"; send for example ${example}`,
    );
  const fields: Record<string, unknown> = Object.assign(Object.create(null), rest);
  if (isObject(args)) Object.assign(fields, args);
  else if (action === 'exec' && args !== undefined) fields.args = args;
  else if (args !== undefined && args !== null)
    throw new BellError('bad_request', `args must be an object, for example ${example}`);
  const shape = Object.hasOwn(shapes, action) ? shapes[action] : undefined;
  return { action, args: shape === undefined ? fields : shape(fields) };
}

/** Actions whose arguments have more than one form. Each may change the object. */
const shapes: Record<string, (fields: Record<string, unknown>) => Fields> = {
  exec: execFields,
  notify: ({ message, ...fields }) =>
    Object.assign(Object.create(null), message === undefined ? {} : { body: message }, fields),
};

function execFields({ command, cmd, argv, args, ...fields }: Record<string, unknown>): Fields {
  const head = command ?? cmd ?? argv ?? [];
  const words = (value: unknown, name: string): string[] => {
    if (Array.isArray(value) && value.every((it) => typeof it === 'string')) return value;
    throw new BellError('bad_request', `${name} must be a list of strings, for example ${execExample}`);
  };
  const list = typeof head === 'string' ? [head] : words(head, 'command');
  const all = args === undefined || args === null ? list : [...list, ...words(args, 'args')];
  if (all.length === 0 || all[0] === '')
    throw new BellError('bad_request', `exec names no command; send for example ${execExample}`);
  return Object.assign(Object.create(null), fields, { command: all });
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Written plainly or with escapes. */
const mayNamePrototype = (text: string): boolean => text.includes('__proto__') || text.includes('\\u');

const withoutPrototypes = (key: string, value: unknown): unknown => (key === '__proto__' ? undefined : value);

/** Counts open brackets outside strings; what is no JSON besides is JSON.parse's to say. */
function deeperThan(most: number, bytes: Uint8Array): boolean {
  let depth = 0;
  for (let at = 0; at < bytes.length; at += 1) {
    const byte = bytes[at];
    if (byte === 0x22) at = endOfString(bytes, at);
    else if (byte === 0x7b || byte === 0x5b) depth += 1;
    else if (byte === 0x7d || byte === 0x5d) depth -= 1;
    if (depth > most) return true;
  }
  return false;
}

/** Where the quotation mark is that ends the string begun at `start`. */
function endOfString(bytes: Uint8Array, start: number): number {
  for (let at = start + 1; at < bytes.length; at += 1) {
    if (bytes[at] === 0x5c) at += 1;
    else if (bytes[at] === 0x22) return at;
  }
  return bytes.length;
}
