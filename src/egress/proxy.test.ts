import { expect, test, vi } from 'vitest';
import { type Lab, ok, openLab, serveHttp, serveRaw } from './lab.fixture.ts';

const get = (host: string, path = '/') => `GET http://${host}${path} HTTP/1.1\r\nHost: ${host}\r\n\r\n`;

async function labWith(...rules: string[]): Promise<Lab> {
  const lab = await openLab({ rules });
  const origin = await serveHttp((head) => ok(`you asked: ${head.split('\r\n')[0]}`));
  lab.world.set('allowed.test:80', { port: origin.port });
  return lab;
}

test('a plain request that is allowed is answered by the world, on record once', async () => {
  const lab = await labWith('allow allowed.test');
  const guest = await lab.guest();
  const text = await guest.write(get('allowed.test', '/a?b=c')).until('you asked');
  expect(text).toMatch(/^HTTP\/1.1 200 OK\r\n/);
  expect(text).toContain('you asked: GET /a?b=c HTTP/1.1');
  expect(lab.entries).toMatchObject([
    {
      kind: 'forward',
      protocol: 'http',
      host: 'allowed.test',
      port: 80,
      method: 'GET',
      decision: 'allow',
      status: 200,
      address: '93.184.216.34',
      ended: true,
    },
  ]);
});

test('a plain request that is denied gets a reason, nothing is looked up, and the connection goes on', async () => {
  const lab = await labWith('allow allowed.test');
  const guest = await lab.guest();
  const text = await guest.write(get('denied.test')).until('detail');
  expect(text).toMatch(/^HTTP\/1.1 403 Forbidden\r\n/);
  expect(text).toContain('\r\n\r\nBlocked by network policy: domain denied.test\n');
  expect(text).toContain('X-Glovebox-Deny: default');
  await guest.clear().write(get('allowed.test')).until('you asked');
  expect(lab.reached).toEqual(['allowed.test:80']);
  expect(lab.entries.map(({ host, decision }) => [host, decision])).toEqual([
    ['denied.test', 'deny'],
    ['allowed.test', 'allow'],
  ]);
});

test.each([
  ['without a URL', 'GET / HTTP/1.1\r\nHost: a.test\r\n\r\n', 400],
  ['for no host', 'GET http://../ HTTP/1.1\r\nHost: ..\r\n\r\n', 400],
  ['without a Host', 'GET http://a.test/ HTTP/1.1\r\n\r\n', 400],
  ['of a method that is none', 'TRACE http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n', 405],
  ['to connect to nothing', 'CONNECT a.test HTTP/1.1\r\nHost: a.test\r\n\r\n', 400],
])('a malformed request, %s, is on record once, as one to the proxy', async (_, request, status) => {
  const lab = await labWith('allow a.test');
  expect(await (await lab.guest()).write(request).end()).toMatch(new RegExp(`^HTTP/1.1 ${status} `));
  const place = { host: '127.0.0.1', port: 3128, protocol: 'http' };
  expect(lab.entries).toMatchObject([
    { ...place, decision: 'deny', reason: 'malformed', status, ended: true },
  ]);
});

test('CONNECT to what is not allowed is refused and dials nothing', async () => {
  const lab = await labWith('allow allowed.test');
  const guest = await lab.guest();
  guest.write('CONNECT denied.test:443 HTTP/1.1\r\nHost: denied.test:443\r\n\r\n');
  expect(await guest.until('detail')).toMatch(/^HTTP\/1.1 403 /);
  expect(lab.reached).toEqual([]);
  expect(lab.entries).toMatchObject([{ host: 'denied.test', port: 443, decision: 'deny', ended: true }]);
});

test('bytes that are neither HTTP nor TLS pass where a rule names host and port, both ways and each way by itself', async () => {
  const lab = await openLab({ rules: ['allow raw.test:9000'] });
  const origin = await serveRaw((socket) => {
    socket.on('data', (bytes) => socket.write(`<${bytes}>`));
    socket.on('end', () => socket.end('bye'));
  });
  lab.world.set('raw.test:9000', { port: origin.port });
  const guest = await (await lab.guest()).connect('raw.test:9000');
  await guest.write('\0hello').until('<\0hello>');
  guest.socket.end();
  expect(await guest.end()).toBe('<\0hello>bye');
  await vi.waitFor(() => expect(lab.open()).toBe(0));
  expect(lab.entries).toMatchObject([
    {
      kind: 'network',
      protocol: 'tcp',
      host: 'raw.test',
      port: 9000,
      decision: 'allow',
      bytesOut: 6,
      bytesIn: 11,
      ended: true,
    },
  ]);
});
