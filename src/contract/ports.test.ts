// What stands behind --publish, in the words of `docker run -p`.
import { expect, test } from 'vitest';
import { parsePublish, parseUnpublish, publishText } from './ports.ts';

test.each([
  ['3000', { sandboxPort: 3000, protocol: 'tcp4' }],
  [':3000', { sandboxPort: 3000, protocol: 'tcp4' }],
  ['0:3000', { sandboxPort: 3000, protocol: 'tcp4' }],
  ['8080:3000', { hostPort: 8080, sandboxPort: 3000, protocol: 'tcp4' }],
  ['8080:3000/TCP', { hostPort: 8080, sandboxPort: 3000, protocol: 'tcp' }],
  ['3000/tcp6', { sandboxPort: 3000, protocol: 'tcp6' }],
  ['127.0.0.1:8080:3000', { hostIp: '127.0.0.1', hostPort: 8080, sandboxPort: 3000, protocol: 'tcp4' }],
  ['0.0.0.0::3000', { hostIp: '0.0.0.0', sandboxPort: 3000, protocol: 'tcp4' }],
  ['[::1]:8080:3000', { hostIp: '::1', hostPort: 8080, sandboxPort: 3000, protocol: 'tcp6' }],
  ['[::1]::3000', { hostIp: '::1', sandboxPort: 3000, protocol: 'tcp6' }],
] as const)('%s', (text, expected) => {
  expect(parsePublish(text)).toEqual(expected);
  expect(parsePublish(publishText(expected))).toEqual(expected);
});

test.each([
  ['', 'is no port of the sandbox'],
  ['0', 'is no port of the sandbox'],
  ['65536', 'is no port of the sandbox'],
  ['-1', 'is no port of the sandbox'],
  ['1e3', 'is no port of the sandbox'],
  ['http', 'is no port of the sandbox'],
  ['3000-3005', 'is no port of the sandbox'],
  ['70000:3000', 'is no port of the host'],
  ['localhost:8080:3000', 'is no IPv4 address'],
  [':8080:3000', 'is no IPv4 address'],
  ['::1:8080:3000', 'too many parts'],
  ['[::1]:3000', 'needs a host port'],
  ['[127.0.0.1]:8080:3000', 'is no IPv6 address'],
  ['127.0.0.1:8080:3000/tcp6', 'is no address of tcp6'],
  ['[::1]:8080:3000/tcp4', 'is no address of tcp4'],
  ['53/udp', 'UDP cannot be published'],
  ['53/udp6', 'UDP cannot be published'],
  ['53/sctp', 'is no protocol'],
  ['53/', 'is no protocol'],
  ['53/tcp/4', 'is no protocol'],
])('%j is refused: it %s', (text, why) => {
  expect(() => parsePublish(text)).toThrow(why);
});

test('what --unpublish leaves out matches anything', () => {
  expect(parseUnpublish('3000')).toEqual({ sandboxPort: 3000 });
  expect(parseUnpublish('8080:3000/tcp')).toEqual({ sandboxPort: 3000, hostPort: 8080, protocol: 'tcp' });
});
