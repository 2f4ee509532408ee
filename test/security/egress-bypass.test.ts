// Attacks past the proxy (group E of the catalogue): every other way out that a hostile root can think of, and the way out itself without its rules.
//
//   E10  a folder that is shared with the host and published there by somebody is the operator's doing: nothing is shared unless asked for
//   E13  a relay of the guest's own makes connections like any other program: all attacks of these files come through one
//   The kernel's answers to every kind of socket are in src/runtime/conformance.ts, too; here they are asked with the way out in place.
import { constants, networkInterfaces } from 'node:os';
import { expect, test } from 'vitest';
import { bulkHello } from '../../src/agent/bulk-hello.ts';
import { egressBulkId } from '../../src/contract/guest-wire.ts';
import {
  attempt,
  call,
  callsPerAttempt,
  listeners,
  tcp,
  udp,
  unixAddress,
} from '../../src/runtime/conformance-probe.ts';
import { until } from '../daemon.ts';
import { fromHostileGuests, get, residentBytes, told } from './egress.fixture.ts';

const door = { unix: '/.glovebox/run/agent.sock' };
/** What the daemon may grow by while it is attacked. */
const growthBytesMax = 192 * 1024 * 1024;

fromHostileGuests({}, (scene) => {
  /** What comes back from the daemon on a connection of its own with these words. */
  const onDoor = async (bytes: (string | Uint8Array)[], options: { end?: boolean } = {}): Promise<string> => {
    const socket = await scene.guest.dial(door);
    for (const piece of bytes) socket.write(typeof piece === 'string' ? Buffer.from(piece, 'latin1') : piece);
    if (options.end) socket.end();
    const { text } = await told(socket, Number.POSITIVE_INFINITY);
    socket.destroy();
    return text;
  };
  const hello = () => bulkHello(scene.guest.stolenToken(), egressBulkId);

  test('E1 E4 no address of the host answers, whatever its port, by TCP or UDP', async () => {
    const { guest } = scene;
    using host = await listeners();
    const own = Object.values(networkInterfaces()).flatMap((it) => it ?? []);
    const addresses = [
      ...new Set(['127.0.0.1', '::1', '172.17.0.1', '192.0.2.1', ...own.map((it) => it.address)]),
    ];
    const targets = addresses
      .filter((address) => !address.startsWith('fe80'))
      .flatMap((address) => [tcp, udp].map((kind) => ({ address, kind })));
    const calls = targets.flatMap(({ address, kind }, at) =>
      attempt(kind, address, host.port, at * callsPerAttempt),
    );
    const answers = await guest.syscalls(calls);
    const connected = targets.filter(
      ({ kind }, at) => kind === tcp && answers[at * callsPerAttempt + 2]?.value !== -1,
    );
    expect(connected).toEqual([]);
    expect(host.heard).toEqual([]);
  });

  test('E1 without the proxy the same rules hold, on every port that is caught', async () => {
    const { guest, world, lab } = scene;
    await world.untouched(async () => {
      for (const address of [lab.evil.address, '203.0.113.1', '2001:db8::1'])
        for (const port of [22, 25, 53_000, 8080])
          await expect(guest.dial({ address, port }), `${address}:${port}`).rejects.toThrow();
      const { replies } = await guest.caught({ address: '203.0.113.1', port: 80 }, get('/', 'evil.test'));
      expect(replies[0]?.status).toBe(403);
    });
    const address = (await guest.resolve('good.test')) ?? '';
    expect((await guest.caught({ address, port: 80 }, get('/', 'good.test'))).replies[0]?.status).toBe(200);
  });

  test('E2 E6 E9 there are no sockets but those of the web: no raw, packet, SCTP, vsock or ring', async () => {
    const [inet, inet6, netlink, packet, alg, vsock] = [2, 10, 16, 17, 38, 40];
    const [stream, raw, seqpacket] = [1, 3, 5];
    const calls = {
      'raw ICMP': call('socket', inet, raw, 1),
      'raw IP': call('socket', inet, raw, 255),
      'raw ICMPv6': call('socket', inet6, raw, 58),
      packets: call('socket', packet, raw, 0x300),
      SCTP: call('socket', inet, stream, 132),
      DCCP: call('socket', inet, 6, 33),
      nfnetlink: call('socket', netlink, raw, 12),
      AF_ALG: call('socket', alg, seqpacket, 0),
      vsock: call('socket', vsock, stream, 0),
      io_uring: call('io_uring_setup', 1, 0),
      'a new network namespace': call('unshare', 0x4000_0000),
      'a new user namespace': call('unshare', 0x1000_0000),
    };
    const answers = await scene.guest.syscalls(Object.values(calls));
    const made = Object.keys(calls).filter((_, at) => answers[at]?.value !== -1);
    expect(made).toEqual([]);
  });

  test('E2 what is sent by UDP goes nowhere, so that QUIC falls back', async () => {
    const { guest, lab } = scene;
    using host = await listeners();
    const places = [
      lab.good.address,
      lab.evil.address,
      '203.0.113.1',
      (await guest.resolve('good.test')) ?? '',
    ];
    const calls = places.flatMap((address, at) => attempt(udp, address, 443, at * callsPerAttempt));
    await guest.syscalls(calls);
    expect(host.heard).toEqual([]);
    // A client that has connected its socket is told at once.
    const [, , connect] = attempt(tcp, places[3] as string, 443, 0);
    const send = call('sendto', { result: 0 }, { hex: '68' }, 1, 0, 0, 0);
    const answers = await guest.syscalls([call('socket', 2, 2, 0), connect ?? [], send, send]);
    expect(answers.at(-1)).toEqual({ value: -1, errno: constants.errno.ECONNREFUSED });
  });

  test('E5 E12 E8 the only door in a sandbox is its own, and no other sandbox is near', async () => {
    const { guest, world } = scene;
    const other = await world.guest(guest.runtime);
    const { stdout } = await guest.shell(
      'find / /.glovebox/run /run /tmp /dev -xdev -type s 2>/dev/null | sort -u',
    );
    expect(stdout.trim().split('\n')).toEqual([door.unix]);
    expect((await guest.shell('ls -A /.glovebox/run')).stdout).not.toContain(other.id);
    expect((await guest.shell('cat /proc/mounts')).stdout).not.toContain('docker.sock');
    // The other one's server is at the same address of another world.
    const listen = `Bun.serve({ port: 7777, hostname: '0.0.0.0', fetch: () => new Response('mine') });`;
    await world.call('POST', `/v1/sandboxes/${other.id}/proxy/44772/command`, {
      command: `/.glovebox/agent/ld.so --library-path /.glovebox/agent/lib /.glovebox/agent/bun -e "${listen}"`,
      background: true,
    });
    await until(
      'the other server',
      async () => (await world.call('GET', `/v1/sandboxes/${other.id}/proxy/7777/`)).status,
      (status) => status === 200,
    );
    for (const address of ['127.0.0.1', '::1', '172.17.0.2', '172.17.0.3'])
      await expect(guest.dial({ address, port: 7777 })).rejects.toThrow();
    await world.call('DELETE', `/v1/sandboxes/${other.id}`);
  });

  test('E7 abstract sockets of the host are not in a guest’s world', async () => {
    const { guest } = scene;
    using host = await listeners();
    const address = { hex: unixAddress(`\0${host.abstractName}`) };
    const length = address.hex.length / 2;
    const path = { hex: unixAddress(host.unixPath) };
    const answers = await guest.syscalls([
      call('socket', 1, 1, 0),
      call('connect', { result: 0 }, address, length),
      call('socket', 1, 1, 0),
      call('connect', { result: 2 }, path, path.hex.length / 2),
    ]);
    expect([answers[1]?.value, answers[3]?.value]).toEqual([-1, -1]);
    expect(host.heard).toEqual([]);
  });

  test('E11 a command inherits nothing but its three streams', async () => {
    const { stdout } = await scene.guest.shell('for f in /proc/self/fd/*; do echo "$f $(readlink $f)"; done');
    const open = stdout.split('\n').filter((line) => /socket:|sock|\/proc\/\d+\/ns|eventpoll/.test(line));
    const beyond = open.filter((line) => Number(/fd\/(\d+)/.exec(line)?.[1]) > 2);
    expect(beyond).toEqual([]);
  });

  test('E14 who knocks at the door without the token gets no word and no way', async () => {
    const { world, lab } = scene;
    const intent = '{"kind":"proxy","client":1}\n';
    const request = get('http://good.test/', 'good.test');
    const knocks = {
      'no hello': [intent, request],
      HTTP: [get('/v1/sandboxes', 'localhost')],
      'a token of one’s own': [bulkHello('x'.repeat(43), egressBulkId), intent, request],
      'an empty token': [bulkHello('', egressBulkId), intent, request],
      'a token that is too long': [bulkHello('x'.repeat(50_000), egressBulkId), intent, request],
      noise: [Buffer.alloc(70_000, 0xee)],
    };
    await world.untouched(async () => {
      for (const [name, bytes] of Object.entries(knocks))
        expect([name, (await onDoor(bytes, { end: true })).includes('HTTP/')]).toEqual([name, false]);
    }, lab.good);
  });

  test('E14 with the token stolen, the same rules hold for whatever is said at the door', async () => {
    const { world, guest, lab } = scene;
    const { port } = new URL(world.daemon.url);
    const at = (address: string, to: number, more = {}) =>
      `${JSON.stringify({ kind: 'caught', client: 1, address, port: to, ...more })}\n`;
    // The way in is sound.
    const good = await onDoor([
      hello(),
      '{"kind":"proxy","client":1}\n',
      get('http://good.test/', 'good.test', 'Connection: close'),
    ]);
    expect(good).toContain('hello from good.test');
    await world.untouched(async () => {
      const asked = get('/', 'evil.test', 'Connection: close');
      expect(await onDoor([hello(), at(lab.evil.address, 80, { name: 'evil.test' }), asked])).toMatch(
        /^HTTP\/1.1 403/,
      );
      // An address is a claim; what is dialled for a name is what the name is resolved to here.
      const lie = at(lab.evil.address, 80, { name: 'good.test' });
      expect(await onDoor([hello(), lie, get('/', 'good.test', 'Connection: close')])).toContain(
        'hello from good',
      );
      for (const address of ['127.0.0.1', '::1', '::ffff:127.0.0.1', '169.254.169.254', '0.0.0.0'])
        for (const to of [Number(port), 80])
          expect(
            await onDoor([hello(), at(address, to), get('/', address, 'Connection: close')]),
          ).not.toMatch(/^HTTP\/1.1 (200|401)/);
      expect(await onDoor([hello(), at('127.0.0.1', Number(port)), 'SSH-2.0-x\r\n'])).toBe('');
    });
    const names = await onDoor(
      [hello(), '{"kind":"names"}\n', '{"id":1,"name":"evil.test"}\n{"id":2,"name":"good.test"}\n'],
      { end: true },
    );
    expect(names).toBe('{"id":1,"resolve":false}\n{"id":2,"resolve":true}\n');
    expect((await guest.logged((it) => it.protocol === 'dns')).decision).toBe('deny');
  });

  test('E14 with the token stolen, words that mean nothing are closed, and floods stay bounded', async () => {
    const { world, guest } = scene;
    const before = residentBytes(world.daemon.pid);
    const lines = [
      ...[
        '',
        'x',
        '{',
        '[]',
        'null',
        '1',
        '"proxy"',
        '{}',
        '{"kind":1}',
        '{"kind":"proxy"}',
        '{"kind":"other","client":1}',
      ],
      ...['{"kind":"proxy","client":-1}', '{"kind":"proxy","client":65536}', '{"kind":"proxy","client":"1"}'],
      ...['{"kind":"caught","client":1}', '{"kind":"caught","client":1,"address":"good.test","port":80}'],
      ...[
        '{"kind":"caught","client":1,"address":"1.2.3.4","port":0}',
        '{"kind":"caught","client":1,"address":"","port":80}',
      ],
      ...['{"kind":"caught","client":1,"address":"1.2.3.4","port":80,"name":"a\\u0000b"}'],
      ...['{"kind":"caught","client":1,"address":"1.2.3.4","port":80,"name":7}'],
      ...['{"__proto__":{"kind":"proxy","client":1}}', '{"constructor":{"kind":"names"}}'],
      `{"kind":"names","x":"${'x'.repeat(4_000)}"}`,
      '['.repeat(1_900),
    ];
    for (const line of lines)
      expect([
        line.slice(0, 60),
        await onDoor([hello(), `${line}\n`, get('http://good.test/', 'good.test')]),
      ]).toEqual([line.slice(0, 60), '']);
    // Without an end of line, and names without end that nobody reads the answers of.
    await onDoor([hello(), Buffer.alloc(4_000_000, 'x')]);
    await onDoor([hello(), '{"kind":"names"}\n', `{"id":1,"name":"${'x'.repeat(100_000)}"}\n`]);
    const flooding = await guest.dial(door);
    flooding.pause();
    flooding.write(hello());
    flooding.write('{"kind":"names"}\n');
    const questions = Array.from(
      { length: 2_000 },
      (_, id) => `{"id":${id},"name":"n${id}.evil.test"}\n`,
    ).join('');
    for (let times = 0; times < 100; times++) flooding.write(questions);
    expect(await guest.status(get('http://good.test/', 'good.test'))).toBe(200);
    expect((await world.call('GET', '/v1/sandboxes')).status).toBe(200);
    flooding.destroy();
    expect(residentBytes(world.daemon.pid) - before).toBeLessThan(growthBytesMax);
  });

  test('E15 with the daemon killed nothing is open, and with the next one the same rules hold', async () => {
    const { guest, world, lab } = scene;
    await guest.shell(`cat >/tmp/while.js <<'END'
      import { connect } from 'node:net';
      import { appendFileSync } from 'node:fs';
      const note = (text) => appendFileSync('/tmp/noted', text + '\\n');
      const open = connect(3128, '127.0.0.1', () => open.write('CONNECT good.test:443 HTTP/1.1\\r\\nHost: good.test:443\\r\\n\\r\\n'));
      open.once('data', () => note('open'));
      open.on('error', () => {});
      open.on('close', () => {
        note('closed');
        const again = connect(3128, '127.0.0.1', () => again.write('GET http://good.test/ HTTP/1.1\\r\\nHost: good.test\\r\\n\\r\\n'));
        again.on('data', (bytes) => note('answer ' + bytes));
        again.on('error', () => {});
        again.on('close', () => note('refused'));
      });
END
      rm -f /tmp/noted`);
    const background = `${['/.glovebox/agent/ld.so', '--library-path', '/.glovebox/agent/lib', '/.glovebox/agent/bun'].join(' ')} /tmp/while.js`;
    await world.call('POST', `/v1/sandboxes/${guest.id}/proxy/44772/command`, {
      command: background,
      background: true,
    });
    const noted = async () => (await guest.shell('cat /tmp/noted 2>/dev/null')).stdout;
    await until('the tunnel', noted, (it) => it.includes('open'));
    const connections = lab.good.connections;
    await world.daemon.kill();
    await world.restart();
    const after = await until(
      'the end of it',
      noted,
      (it) => it.includes('refused') || it.includes('answer'),
      40_000,
    );
    expect(after).toContain('closed');
    // Either nobody was there, or the next daemon, with the same rules, was.
    if (!after.includes('answer')) expect(lab.good.connections).toBe(connections);
    await until(
      'the way out',
      () => guest.status(get('http://good.test/', 'good.test')).catch(() => 0),
      (status) => status === 200,
    );
    await world.untouched(async () =>
      expect(await guest.status(get('http://evil.test/', 'evil.test'))).toBe(403),
    );
  });
});
