import { describe, expect, test } from 'vitest';
import {
  checkFirstLine,
  endOfHead,
  headBytesMax,
  Malformed,
  parseRequestHead,
  parseResponseHead,
} from './head.ts';

/** As a connection would: find the end, then parse. The status of the refusal, or what was read. */
function read(text: string) {
  const bytes = Buffer.from(text, 'latin1');
  try {
    const end = endOfHead(bytes, 0);
    if (end < 0) {
      checkFirstLine(bytes);
      return 'more';
    }
    return parseRequestHead(bytes.toString('latin1', 0, end));
  } catch (error) {
    if (error instanceof Malformed) return error.status;
    throw error;
  }
}

const lines = (...all: string[]) => `${all.join('\r\n')}\r\n\r\n`;
const post = (...headers: string[]) => lines('POST / HTTP/1.1', 'Host: a.test', ...headers);

const refused: [what: string, text: string, status: number][] = [
  ['Content-Length and Transfer-Encoding', post('Content-Length: 3', 'Transfer-Encoding: chunked'), 400],
  ['Transfer-Encoding and Content-Length', post('Transfer-Encoding: chunked', 'Content-Length: 3'), 400],
  ['Transfer-Encoding twice', post('Transfer-Encoding: chunked', 'Transfer-Encoding: chunked'), 400],
  [
    'Transfer-Encoding: chunked twice, once as identity',
    post('Transfer-Encoding: chunked', 'Transfer-Encoding: identity'),
    400,
  ],
  ['xchunked', post('Transfer-Encoding: xchunked'), 400],
  ['chunked, identity', post('Transfer-Encoding: chunked, identity'), 400],
  ['gzip, chunked', post('Transfer-Encoding: gzip, chunked'), 400],
  ['chunked in quotes', post('Transfer-Encoding: "chunked"'), 400],
  ['a vertical tab before chunked', post('Transfer-Encoding: \x0bchunked'), 400],
  ['an empty Transfer-Encoding', post('Transfer-Encoding:'), 400],
  [
    'Transfer-Encoding in HTTP/1.0',
    lines('POST / HTTP/1.0', 'Host: a.test', 'Transfer-Encoding: chunked'),
    400,
  ],
  ['a space before the colon', post('Content-Length : 3'), 400],
  ['a tab before the colon', post('Transfer-Encoding\t: chunked'), 400],
  ['Content-Length twice', post('Content-Length: 3', 'Content-Length: 3'), 400],
  ['Content-Length twice, different', post('Content-Length: 3', 'Content-Length: 4'), 400],
  ['Content-Length as a list', post('Content-Length: 3, 3'), 400],
  ['+1', post('Content-Length: +1'), 400],
  ['-1', post('Content-Length: -1'), 400],
  ['0x10', post('Content-Length: 0x10'), 400],
  ['an empty Content-Length', post('Content-Length:'), 400],
  ['a Content-Length with a leading zero', post('Content-Length: 03'), 400],
  ['a Content-Length beyond all measure', post('Content-Length: 99999999999999999999'), 400],
  ['a space before Content-Length', post(' Content-Length: 3'), 400],
  ['a folded line', post('X-A: b', ' c'), 400],
  ['a folded line with a tab', post('X-A: b', '\tc'), 400],
  ['Content_Length', post('Content_Length: 3'), 400],
  ['Transfer_Encoding', post('Transfer_Encoding: chunked'), 400],
  ['a bare line feed', 'GET / HTTP/1.1\nHost: a.test\n\n', 400],
  ['a bare line feed in between', 'GET / HTTP/1.1\r\nHost: a.test\nX: y\r\n\r\n', 400],
  ['a bare carriage return', 'GET / HTTP/1.1\r\nHost: a.test\rX: y\r\n\r\n', 400],
  ['carriage returns only', 'GET / HTTP/1.1\rHost: a.test\r\r', 400],
  ['\\r\\n\\rX', 'GET / HTTP/1.1\r\nHost: a.test\r\n\rX', 400],
  ['an empty line in front', `\r\n${lines('GET / HTTP/1.1', 'Host: a.test')}`, 400],
  ['a zero byte in a value', lines('GET / HTTP/1.1', 'Host: a.test', 'X: a\0b'), 400],
  ['a zero byte before the end', 'GET / HTTP/1.1\r\nX: \0', 400],
  ['an escape in a value', lines('GET / HTTP/1.1', 'Host: a.test', 'X: a\x1bb'), 400],
  ['DEL in a value', lines('GET / HTTP/1.1', 'Host: a.test', 'X: a\x7fb'), 400],
  ['a byte beyond ASCII in a value', lines('GET / HTTP/1.1', 'Host: a.test', 'X: a\xe9b'), 400],
  ['a byte beyond ASCII in a name', lines('GET / HTTP/1.1', 'Host: a.test', 'X\xe9: b'), 400],
  ['a header without a name', lines('GET / HTTP/1.1', 'Host: a.test', ': b'), 400],
  ['a header without a colon', lines('GET / HTTP/1.1', 'Host: a.test', 'X'), 400],
  ['no Host', lines('GET / HTTP/1.1', 'X: y'), 400],
  ['no header at all', lines('GET / HTTP/1.1'), 400],
  ['two Hosts', lines('GET / HTTP/1.1', 'Host: a.test', 'Host: b.test'), 400],
  ['two equal Hosts', lines('GET / HTTP/1.1', 'Host: a.test', 'host: a.test'), 400],
  ['two Hosts in HTTP/1.0', lines('GET / HTTP/1.0', 'Host: a.test', 'Host: b.test'), 400],
  ['a space in the target', lines('GET /a b HTTP/1.1', 'Host: a.test'), 400],
  ['a tab in the target', lines('GET /a\tb HTTP/1.1', 'Host: a.test'), 400],
  ['UTF-8 in the target', lines('GET /\xc3\xa9 HTTP/1.1', 'Host: a.test'), 400],
  ['a fragment in the target', lines('GET /a#b HTTP/1.1', 'Host: a.test'), 400],
  ['two spaces', lines('GET  / HTTP/1.1', 'Host: a.test'), 400],
  ['a tab after the method', lines('GET\t/ HTTP/1.1', 'Host: a.test'), 400],
  ['a space at the end of the line', lines('GET / HTTP/1.1 ', 'Host: a.test'), 400],
  ['HTTP/1.2', lines('GET / HTTP/1.2', 'Host: a.test'), 400],
  ['HTTP/2.0', lines('GET / HTTP/2.0', 'Host: a.test'), 400],
  ['HTTP/1.10', lines('GET / HTTP/1.10', 'Host: a.test'), 400],
  ['http/1.1', lines('GET / http/1.1', 'Host: a.test'), 400],
  ['HTTP/0.9', 'GET /\r\n', 400],
  ['ICE', lines('SOURCE / ICE/1.0', 'Host: a.test'), 400],
  ['RTSP', lines('DESCRIBE /a RTSP/1.0', 'Host: a.test'), 400],
  ['the preface of HTTP/2', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', 400],
  ['a method in small letters', lines('get / HTTP/1.1', 'Host: a.test'), 400],
  ['x()', lines('x() / HTTP/1.1', 'Host: a.test'), 400],
  ['TRACE', lines('TRACE / HTTP/1.1', 'Host: a.test'), 405],
  ['TRACK', lines('TRACK / HTTP/1.1', 'Host: a.test'), 405],
  ['an expectation that is unknown', post('Expect: the spanish inquisition', 'Content-Length: 3'), 417],
  ['a head of 17 KiB', lines('GET / HTTP/1.1', 'Host: a.test', `X: ${'y'.repeat(17 * 1024)}`), 431],
  ['17 KiB without an end', `GET / HTTP/1.1\r\nHost: a.test\r\nX: ${'y'.repeat(17 * 1024)}`, 431],
  ['a target of 9 KiB', lines(`GET /${'y'.repeat(9 * 1024)} HTTP/1.1`, 'Host: a.test'), 431],
  [
    '200 headers',
    lines('GET / HTTP/1.1', 'Host: a.test', ...Array.from({ length: 200 }, (_, at) => `X-${at}: y`)),
    431,
  ],
];

describe('requests', () => {
  test.each(refused)('%s is refused', (_, text, status) => {
    expect(read(text)).toBe(status);
  });

  const taken: [what: string, text: string, expected: object | 'more'][] = [
    [
      'GET',
      lines('GET /a?b HTTP/1.1', 'Host: a.test'),
      { method: 'GET', target: '/a?b', host: 'a.test', framing: { kind: 'none' }, keepAlive: true },
    ],
    ['a length', post('Content-Length: 3'), { framing: { kind: 'length', bytes: 3 } }],
    ['no length', post('Content-Length: 0'), { framing: { kind: 'length', bytes: 0 } }],
    ['chunks', post('Transfer-Encoding: Chunked'), { framing: { kind: 'chunked' } }],
    [
      'GET with a body',
      lines('GET / HTTP/1.1', 'Host: a.test', 'Content-Length: 3'),
      { framing: { kind: 'length', bytes: 3 } },
    ],
    ['HTTP/1.0 without Host', lines('GET / HTTP/1.0'), { minor: 0, host: undefined, keepAlive: false }],
    ['HTTP/1.0 that stays', lines('GET / HTTP/1.0', 'Connection: Keep-Alive'), { keepAlive: true }],
    ['Connection: close', lines('GET / HTTP/1.1', 'Host: a.test', 'Connection: close'), { keepAlive: false }],
    ['M-SEARCH', lines('M-SEARCH * HTTP/1.1', 'Host: a.test'), { method: 'M-SEARCH' }],
    [
      'blanks around a value',
      lines('GET / HTTP/1.1', 'Host: \t a.test \t', 'X:y'),
      { host: 'a.test', headers: [['x', 'y']], spelt: ['X'] },
    ],
    ['an empty value', lines('GET / HTTP/1.1', 'Host: a.test', 'X:'), { headers: [['x', '']] }],
    ['100-continue', post('Expect: 100-Continue', 'Content-Length: 3'), { expectsContinue: true }],
    ['half a head', 'GET / HTTP/1.1\r\nHost: a.test\r', 'more'],
    ['half a line', 'GE', 'more'],
  ];
  test.each(taken)('%s is read', (_, text, expected) => {
    if (expected === 'more') expect(read(text)).toBe('more');
    else expect(read(text)).toMatchObject(expected);
  });

  test('what is about one connection, or between proxies, is dropped; what Connection names only where it means no more than that', () => {
    const head = read(
      lines(
        'GET / HTTP/1.1',
        'Host: a.test',
        'Connection: close, X-Mine, Authorization, Host, Content-Length, Cookie',
        'Keep-Alive: 5',
        'Proxy-Connection: keep-alive',
        'Proxy-Authorization: Basic eA==',
        'X-Forwarded-For: 1.2.3.4',
        'Forwarded: for=1.2.3.4',
        'TE: trailers',
        'Upgrade: h2c',
        'HTTP2-Settings: AAA',
        'X-Mine: 1',
        'Authorization: Bearer x',
        'Cookie: a=b',
        'Content-Length: 2',
      ),
    );
    expect(head).toMatchObject({
      headers: [
        ['authorization', 'Bearer x'],
        ['cookie', 'a=b'],
      ],
      host: 'a.test',
      framing: { kind: 'length', bytes: 2 },
      upgrade: 'h2c',
    });
  });

  test('a head of just the most bytes is read', () => {
    const start = 'GET / HTTP/1.1\r\nHost: a.test\r\nX: ';
    expect(read(`${start}${'y'.repeat(headBytesMax - start.length - 4)}\r\n\r\n`)).toMatchObject({
      host: 'a.test',
    });
  });
});

function readAnswer(text: string, method = 'GET') {
  try {
    return parseResponseHead(text, method);
  } catch (error) {
    if (error instanceof Malformed) return 'malformed';
    throw error;
  }
}

describe('answers', () => {
  const wrong: [string, string][] = [
    [
      'Content-Length and Transfer-Encoding',
      lines('HTTP/1.1 200 OK', 'Content-Length: 3', 'Transfer-Encoding: chunked'),
    ],
    ['Content-Length twice', lines('HTTP/1.1 200 OK', 'Content-Length: 3', 'Content-Length: 4')],
    ['Content-Length that is no number', lines('HTTP/1.1 200 OK', 'Content-Length: 3x')],
    ['an encoding that is unknown', lines('HTTP/1.1 200 OK', 'Transfer-Encoding: gzip')],
    ['chunks in HTTP/1.0', lines('HTTP/1.0 200 OK', 'Transfer-Encoding: chunked')],
    ['no status', lines('HTTP/1.1 OK')],
    ['a status of two digits', lines('HTTP/1.1 20 OK')],
    ['a status of 600', lines('HTTP/1.1 600 OK')],
    ['HTTP/2', lines('HTTP/2 200 OK')],
    ['ICY', lines('ICY 200 OK')],
    ['a folded line', lines('HTTP/1.1 200 OK', 'X: y', ' z')],
    ['a line without a colon', lines('HTTP/1.1 200 OK', 'X')],
    ['a zero byte', lines('HTTP/1.1 200 OK', 'X: \0')],
  ];
  test.each(wrong)('%s is malformed', (_, text) => {
    expect(readAnswer(text)).toBe('malformed');
  });

  const right: [string, string, string, object][] = [
    [
      'a length',
      lines('HTTP/1.1 200 OK', 'Content-Length: 3'),
      'GET',
      { status: 200, reason: 'OK', framing: { kind: 'length', bytes: 3 }, keepAlive: true },
    ],
    ['no framing', lines('HTTP/1.1 200 OK'), 'GET', { framing: { kind: 'close' } }],
    ['no reason', lines('HTTP/1.1 200'), 'GET', { status: 200, reason: '' }],
    [
      '204',
      lines('HTTP/1.1 204 No Content', 'Content-Length: 3'),
      'GET',
      { framing: { kind: 'none' }, declared: undefined },
    ],
    [
      '304',
      lines('HTTP/1.1 304 Not Modified', 'Content-Length: 3'),
      'GET',
      { framing: { kind: 'none' }, declared: '3' },
    ],
    [
      'HEAD',
      lines('HTTP/1.1 200 OK', 'Content-Length: 3'),
      'HEAD',
      { framing: { kind: 'none' }, declared: '3' },
    ],
    [
      'HEAD with chunks',
      lines('HTTP/1.1 200 OK', 'Transfer-Encoding: chunked'),
      'HEAD',
      { framing: { kind: 'none' }, declared: undefined },
    ],
    ['a byte beyond ASCII', lines('HTTP/1.1 200 OK', 'X: caf\xe9'), 'GET', { headers: [['x', 'caf\xe9']] }],
    ['HTTP/1.0', lines('HTTP/1.0 200 OK', 'Content-Length: 3'), 'GET', { keepAlive: false }],
  ];
  test.each(right)('%s is read', (_, text, method, expected) => {
    expect(readAnswer(text, method)).toMatchObject(expected);
  });

  test('what shows a way around us, or passes for an answer of ours, is dropped', () => {
    const head = readAnswer(
      lines(
        'HTTP/1.1 403 No',
        'Alt-Svc: h3=":443"',
        'X-Glovebox-Deny: rule',
        'X-Glovebox-Error: dns',
        'X: y',
      ),
    );
    expect(head).toMatchObject({ headers: [['x', 'y']], spelt: ['X'] });
  });
});
