// Hosts and targets have one spelling, and what is not plainly one of them is refused before anything interprets it.
import { expect, test } from 'vitest';
import { Failure } from '../lib/failure.ts';
import { hostText, parseHost, parseTarget, parseWrittenHost, targetText } from './names.ts';
import { Random } from './policy.fixture.ts';

test.each([
  ['example.com', 'example.com'],
  ['EXAMPLE.com', 'example.com'],
  ['example.com.', 'example.com'],
  ['_dmarc.example.com', '_dmarc.example.com'],
  ['a_b.example.com', 'a_b.example.com'],
  ['r3---sn-.example.com', 'r3---sn-.example.com'],
  ['xn--bcher-kva.example', 'xn--bcher-kva.example'],
  ['localhost', 'localhost'],
  ['1.example', '1.example'],
  ['0x7f.example', '0x7f.example'],
  ['1.2.3.4.example.com', '1.2.3.4.example.com'],
  [`${'a'.repeat(63)}.example`, `${'a'.repeat(63)}.example`],
])('%s is the name %s', (text, name) => {
  expect(parseHost(text)).toEqual({ kind: 'name', name });
});

test.each([
  ['127.0.0.1', '127.0.0.1'],
  ['127.0.0.1.', '127.0.0.1'],
  ['2130706433', '127.0.0.1'],
  ['0x7f000001', '127.0.0.1'],
  ['0X7F000001', '127.0.0.1'],
  ['0177.0.0.1', '127.0.0.1'],
  ['017700000001', '127.0.0.1'],
  ['127.1', '127.0.0.1'],
  ['127.0.1', '127.0.0.1'],
  ['0x7f.1', '127.0.0.1'],
  ['0x7f.0.0.0x1', '127.0.0.1'],
  ['127.65535', '127.0.255.255'],
  ['127.16777215', '127.255.255.255'],
  ['0', '0.0.0.0'],
  ['0x', '0.0.0.0'],
  ['00', '0.0.0.0'],
  ['4294967295', '255.255.255.255'],
  ['2852039166', '169.254.169.254'],
  ['0xa9fea9fe', '169.254.169.254'],
  ['169.254.43518', '169.254.169.254'],
  ['[::1]', '::1'],
  ['::1', '::1'],
  ['[::]', '::'],
  ['[FD00:EC2::254]', 'fd00:ec2::254'],
  ['[2001:0db8:0000:0000:0001:0000:0000:0001]', '2001:db8::1:0:0:1'],
  ['[2001:db8:0:1:1:1:1:1]', '2001:db8:0:1:1:1:1:1'],
  ['[1:0:0:2:0:0:0:3]', '1:0:0:2::3'],
  ['[1:2:3:4:5:6:0:0]', '1:2:3:4:5:6::'],
  ['[::ffff:127.0.0.1]', '127.0.0.1'],
  ['[::ffff:7f00:1]', '127.0.0.1'],
  ['::ffff:a9fe:a9fe', '169.254.169.254'],
  ['[::127.0.0.1]', '::7f00:1'],
  ['[64:ff9b::10.0.0.1]', '64:ff9b::a00:1'],
])('%s is the address %s', (text, address) => {
  expect(parseHost(text)).toEqual({ kind: 'address', address, family: address.includes(':') ? 6 : 4 });
});

test.each([
  ['', 'must not be empty'],
  ['.', 'empty label'],
  ['example.com..', 'empty label'],
  ['.example.com', 'empty label'],
  ['a..b', 'empty label'],
  ['evil.test\0.example.com', 'U+0000'],
  ['evil.test%00.example.com', '"%" (an escape or a zone), which no host has, column 10'],
  ['ex%61mple.com', '"%"'],
  ['evil.com\t.allowed.com', 'U+0009'],
  ['evil.com\r\n', 'U+000D'],
  ['evil.com\n', 'U+000A'],
  ['ex ample.com', 'a space, which no host has, column 3'],
  ['user@example.com', 'a user name'],
  ['evil.test\\@allowed.test', '"\\"'],
  ['example.com/path', '"/"'],
  ['*.example.com', '"*"'],
  ['bücher.example', 'U+00FC'],
  ['①②⑦.⓪.⓪.①', 'U+2460'],
  ['127。0。0。1', 'U+3002'],
  ['\u212a.com', 'U+212A'],
  ['exam\u00adple.com', 'U+00AD'],
  ['256.1.1.1', 'no IPv4 address'],
  ['1.2.3.4.5', 'no IPv4 address'],
  ['4294967296', 'no IPv4 address'],
  ['1.2.3.256', 'no IPv4 address'],
  ['256.1', 'no IPv4 address'],
  ['1.16777216', 'no IPv4 address'],
  ['09.0.0.1', 'no IPv4 address'],
  ['foo.123', 'no IPv4 address'],
  ['foo.0x1f', 'no IPv4 address'],
  ['[fe80::1%eth0]', '"%"'],
  ['::ffff:1.2.3.4%x.allowed.com', '"%"'],
  ['[1.2.3.4]', 'no IPv6 address'],
  ['[example.com]', 'no IPv6 address'],
  ['[::1', 'no IPv6 address'],
  ['::1]', 'no IPv6 address'],
  ['a]', 'brackets'],
  ['a[b', 'brackets'],
  ['[::1]x', 'no IPv6 address'],
  [':::', 'no IPv6 address'],
  ['[1::2::3]', 'no IPv6 address'],
  ['[::ffff:1.2.3.400]', 'no IPv6 address'],
  ['example.com:443', 'no IPv6 address'],
  [`${'a'.repeat(64)}.example`, 'label longer than 63'],
  [`${'a.'.repeat(126)}ab`, 'longer than 253'],
  ['a'.repeat(300), 'longer than 253'],
])('%j is no host', (text, reason) => {
  expect(() => parseHost(text)).toThrow(expect.objectContaining({ code: 'invalid' }));
  expect(() => parseHost(text)).toThrow(reason);
});

test.each([
  ['example.com:443', 'example.com:443'],
  ['EXAMPLE.com.:8080', 'example.com:8080'],
  ['[::1]:65535', '[::1]:65535'],
  ['127.1:1', '127.0.0.1:1'],
  ['[::ffff:1.2.3.4]:80', '1.2.3.4:80'],
])('%s is the target %s', (text, canonical) => {
  const { host, port } = parseTarget(text);
  expect(targetText(host, port)).toBe(canonical);
});

test.each([
  ['example.com:', 'has the port ""'],
  ['example.com:0', 'has the port "0"'],
  ['example.com:0443', 'has the port "0443"'],
  ['example.com:+443', '"+", which no host has'],
  ['example.com:443:22', 'has the port "443:22"'],
  ['example.com:65536', 'has the port "65536"'],
  ['example.com:100000', 'has the port "100000"'],
  ['example.com:4a3', 'has the port "4a3"'],
  ['example.com: 443', 'a space'],
  ['example.com', 'names no port'],
  ['::1', 'square brackets'],
  [':443', 'square brackets'],
  ['[::1]443', 'square brackets'],
  ['[::1', 'square brackets'],
  ['', 'must not be empty'],
  ['user@example.com:443', 'a user name'],
  ['http://example.com', '"/"'],
])('%j is no target', (text, reason) => {
  expect(() => parseTarget(text)).toThrow(reason);
});

test('a target without a port has the one that goes without saying', () => {
  expect(parseTarget('example.com', 443)).toEqual({ host: { kind: 'name', name: 'example.com' }, port: 443 });
  expect(() => parseTarget('example.com:', 443)).toThrow('has the port ""');
});

test.each([
  ['bücher.example', 'xn--bcher-kva.example'],
  ['BÜCHER.example', 'xn--bcher-kva.example'],
  ['bu\u0308cher.example', 'xn--bcher-kva.example'],
  ['straße.example', 'xn--strae-oqa.example'],
  ['例え.テスト', 'xn--r8jz45g.xn--zckzah'],
  ['example.com', 'example.com'],
])('an operator may write %s for %s', (text, name) => {
  expect(parseWrittenHost(text)).toEqual({ kind: 'name', name });
});

test.each([
  'ﬁ.com',
  '\u212a.com',
  'exam\u00adple.com',
  '①②⑦.⓪.⓪.①',
  '127。0。0。1',
  'ｅxample.com',
  'ex\u200dample.com',
  '\ud800.com',
])('an operator may not write %j, which turns into something else', (text) => {
  expect(() => parseWrittenHost(text)).toThrow('would turn into others');
});

test('a message shows no character that a terminal would act on, and is bounded', () => {
  const failure = (text: string) => {
    try {
      parseHost(text);
    } catch (thrown) {
      return (thrown as Failure).message;
    }
    throw new Error('it was a host');
  };
  expect(failure('\u001b[31m')).toMatch(/^"\\u001b\[31m"/);
  expect(failure('\u202e\ud83d\ude00').replace(/[\x20-\x7e]/g, '')).toBe('');
  expect(failure('a b'.repeat(5_000)).length).toBeLessThan(200);
});

test('whatever is accepted equals its own canonical form, and anything else is a Failure', () => {
  const random = new Random(1);
  const pieces = [
    'a',
    'example',
    'com',
    '.',
    '..',
    '0x',
    '0',
    '127',
    '1',
    '255',
    '256',
    ':',
    '::',
    'ffff',
    '[',
    ']',
    '-',
    '_',
    '%',
    'É',
    '\0',
  ];
  let accepted = 0;
  for (let round = 0; round < 20_000; round++) {
    const text =
      round % 4 === 0
        ? String.fromCharCode(...random.list(12, () => random.below(256)))
        : random.list(9, () => random.one(pieces)).join('');
    try {
      const host = parseHost(text);
      accepted++;
      expect(parseHost(hostText(host))).toEqual(host);
      expect(parseTarget(targetText(host, 443))).toEqual({ host, port: 443 });
    } catch (thrown) {
      expect(thrown).toBeInstanceOf(Failure);
    }
  }
  expect(accepted).toBeGreaterThan(1_000);
});

test('numbers mean the same address here as in URLs, and never a name', () => {
  const random = new Random(2);
  const digits = ['0', '1', '7', '8', '9', '0x', 'a', 'f', '.', '.', '255', '256', '127', '00'];
  let addresses = 0;
  for (let round = 0; round < 20_000; round++) {
    const text = random.list(8, () => random.one(digits)).join('');
    const url = URL.parse(`http://${text}/`)?.hostname;
    const ours = (() => {
      try {
        return parseHost(text);
      } catch {
        return undefined;
      }
    })();
    if (ours?.kind === 'address') {
      addresses++;
      expect([text, url]).toEqual([text, ours.address]);
    } else if (url !== undefined) expect([text, /^\d+(\.\d+){3}$/.test(url)]).toEqual([text, false]);
  }
  expect(addresses).toBeGreaterThan(500);
});
