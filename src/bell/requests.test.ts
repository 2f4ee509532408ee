import { expect, test } from 'vitest';
import { parseRequest } from './requests.ts';

const bytes = (value: unknown) => Buffer.from(typeof value === 'string' ? value : JSON.stringify(value));

const understood: [sent: unknown, action: string, args: Record<string, unknown>][] = [
  [{ action: 'ping' }, 'ping', {}],
  [{ action: 'ping', args: null }, 'ping', {}],
  [{ action: 'play', args: {} }, 'play', {}],
  [{ action: 'notify', args: { title: 'T', body: 'B' } }, 'notify', { title: 'T', body: 'B' }],
  [{ action: 'notify', title: 'T', body: 'B' }, 'notify', { title: 'T', body: 'B' }],
  [{ action: 'notify', title: 'T', message: 'B' }, 'notify', { title: 'T', body: 'B' }],
  [{ action: 'notify', args: { message: 'M', body: 'B' } }, 'notify', { body: 'B' }],
  [{ action: 'notify', title: 'outer', args: { title: 'inner' } }, 'notify', { title: 'inner' }],
  [{ action: 'exec', args: { command: ['make', 'test'] } }, 'exec', { command: ['make', 'test'] }],
  [{ action: 'exec', command: ['make', 'test'] }, 'exec', { command: ['make', 'test'] }],
  [{ action: 'exec', command: 'make', args: ['test'] }, 'exec', { command: ['make', 'test'] }],
  [{ action: 'exec', args: { command: 'make', args: ['test'] } }, 'exec', { command: ['make', 'test'] }],
  [{ action: 'exec', args: { cmd: 'make', args: ['a b'] } }, 'exec', { command: ['make', 'a b'] }],
  [{ action: 'exec', args: { cmd: ['make'] } }, 'exec', { command: ['make'] }],
  [{ action: 'exec', argv: ['make', '-k'] }, 'exec', { command: ['make', '-k'] }],
  [{ action: 'exec', args: ['make', '-k'] }, 'exec', { command: ['make', '-k'] }],
  [{ action: 'exec', command: 'make test' }, 'exec', { command: ['make test'] }],
  [
    { action: 'exec', args: { command: ['make'], env: { A: '1' }, stdin: 'x', cwd: 'sub', timeout_ms: 5 } },
    'exec',
    { command: ['make'], env: { A: '1' }, stdin: 'x', cwd: 'sub', timeout_ms: 5 },
  ],
  [{ action: 'open-url', url: 'https://example.com' }, 'open_url', { url: 'https://example.com' }],
  [{ action: 'deploy', args: { cmd: 'kept as it is' } }, 'deploy', { cmd: 'kept as it is' }],
  ['\n {"action":"ping"}\r\n', 'ping', {}],
  ['\ufeff{"action":"ping"}', 'ping', {}],
];

test.each(understood)('%j is %s %j', (sent, action, args) => {
  const request = parseRequest(bytes(sent));
  expect(request.action).toBe(action);
  expect({ ...request.args }).toEqual(args);
});

const refused: [sent: unknown, says: RegExp][] = [
  ['', /has no body; send for example \{"action"/],
  ['{', /no JSON; send for example/],
  ["{'action':'ping'}", /no JSON/],
  ['action=ping', /no JSON/],
  ['{"action":"ping"}{"action":"ping"}', /no JSON/],
  ['null', /must be a JSON object/],
  ['"ping"', /must be a JSON object/],
  ['[{"action":"ping"}]', /must be a JSON object/],
  [{}, /names no action; send for example/],
  [{ action: 7 }, /action must be a name/],
  [{ action: '' }, /action must be a name/],
  [{ action: 'Ping' }, /action must be a name/],
  [{ action: '../ping' }, /action must be a name/],
  [{ action: 'a'.repeat(65) }, /action must be a name/],
  [{ action: 'notify', args: 'x' }, /args must be an object/],
  [{ action: 'notify', args: ['x'] }, /args must be an object/],
  [{ action: 'exec' }, /names no command; send for example/],
  [{ action: 'exec', command: '' }, /names no command/],
  [{ action: 'exec', command: [] }, /names no command/],
  [{ action: 'exec', command: ['make', 7] }, /command must be a list of strings/],
  [{ action: 'exec', command: { 0: 'make' } }, /command must be a list of strings/],
  [{ action: 'exec', command: 'make', args: 'test' }, /args must be a list of strings/],
  [`{"action":"ping","args":${'{"a":'.repeat(64)}1${'}'.repeat(65)}`, /deeper than 64 levels/],
  ['['.repeat(500_000), /deeper than 64 levels/],
];

const badRequest = (says: RegExp) =>
  expect.objectContaining({ code: 'bad_request', message: expect.stringMatching(says) });

test.each(
  refused.map(([sent, says]) => [String(bytes(sent)).slice(0, 70), says, sent] as const),
)('%s is refused: %s', (_, says, sent) => {
  expect(() => parseRequest(bytes(sent))).toThrow(badRequest(says));
});

test('what is no UTF-8 is a bad request', () => {
  const sent = Buffer.concat([bytes('{"action":"notify","title":"'), Buffer.from([0xc3, 0x28]), bytes('"}')]);
  expect(() => parseRequest(sent)).toThrow(badRequest(/no UTF-8/));
});

test('brackets in strings are no levels, and 64 levels are not too many', () => {
  const text = `\\"${'['.repeat(100)}\\\\`;
  expect({ ...parseRequest(bytes(`{"action":"notify","title":"${text}"}`)).args }).toEqual({
    title: `"${'['.repeat(100)}\\`,
  });
  const deep = `${'['.repeat(62)}${']'.repeat(62)}`;
  expect(parseRequest(bytes(`{"action":"x","args":{"a":${deep}}}`)).action).toBe('x');
});

const polluting = [
  '{"action":"x","__proto__":{"polluted":1}}',
  '{"action":"x","args":{"__proto__":{"polluted":1}}}',
  '{"action":"x","args":{"a":{"\\u005f_proto__":{"polluted":1}}}}',
  '{"action":"x","args":{"constructor":{"prototype":{"polluted":1}}}}',
];

test.each(polluting)('%s gives nobody a prototype', (sent) => {
  const { args } = parseRequest(bytes(sent));
  expect(Object.getPrototypeOf(args)).toBeNull();
  expect(({} as Record<string, unknown>).polluted).toBeUndefined();
  expect(args.polluted).toBeUndefined();
  const copied = Object.assign({}, args, args.a) as Record<string, unknown>;
  expect(copied.polluted).toBeUndefined();
  expect(Object.getPrototypeOf(copied)).toBe(Object.prototype);
});
