// Attacks by quantity, and on the log (group H of the catalogue), and on what stands around the way out (group K as far as it touches it).
//
//   H7   tables are keyed by what was parsed, and bounded: src/egress/http1/head.ts has the bounds
//   H8   patterns are globs, matched in linear time: src/policy/patterns.test.ts
//   H13  a terminal's stream to an operator is not the way out
import { readdirSync, readFileSync, statSync } from 'node:fs';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { until } from '../daemon.ts';
import {
  fromHostileGuests,
  type GuestSocket,
  get,
  type Hostile,
  residentBytes,
  told,
} from './egress.fixture.ts';

const mebibyte = 1024 * 1024;
/** Fewer than the agent lets be dialled from outside at once. */
const connectionsMax = 24;
let poured = 0;
/** Answers without end, as fast as it is read. */
function pour(socket: Socket): void {
  const piece = Buffer.alloc(65_536, 'x');
  const more = () => {
    while (!socket.destroyed) {
      poured += piece.length;
      if (!socket.write(piece)) return;
    }
  };
  socket.once('data', () => {
    socket.write('HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n');
    more();
  });
  socket.on('drain', more);
}

fromHostileGuests(
  {
    lab: { hosts: { 'endless.test': 20 } },
    egress: () => `connections_max = ${connectionsMax}\nlog_file_bytes = 1048576\nlog_files = 2`,
    prepare: async ({ lab }) => void (await lab.listen(20, 80, pour)),
    rules: (lab) => [{ decision: 'allow', resources: ['good.test', 'endless.test', lab.network] }],
  },
  (scene) => {
    const many = async (guest: Hostile, count: number, bytes: string) => {
      const sockets = await Promise.all(Array.from({ length: count }, () => guest.proxy()));
      for (const socket of sockets) socket.write(bytes);
      return sockets;
    };
    /** One of the slow connections, and what it is told in the end. */
    let lingering: GuestSocket | undefined;
    let farewell = '';
    const good = () => scene.guest.status(get('http://good.test/', 'good.test'));

    test('H1 H2 more connections than there may be, all slow, are refused and harm no neighbour', async () => {
      const { guest, world } = scene;
      const neighbour = await world.guest(guest.runtime);
      const head = 'GET http://good.test/ HTTP/1.1\r\nHost: good';
      [lingering] = await many(guest, 1, head);
      lingering?.on('data', (bytes: Buffer) => {
        farewell += bytes;
      });
      const slow = await many(guest, connectionsMax + 19, head);
      expect(await neighbour.status(get('http://good.test/', 'good.test'))).toBe(200);
      // The slow ones are there yet.
      expect(farewell).toBe('');
      const { replies } = await guest.raw(get('http://good.test/', 'good.test'));
      expect(replies[0]).toMatchObject({ status: 503, headers: { 'x-glovebox-deny': 'connections' } });
      for (const socket of slow) socket.destroy();
      await until('the way out', good, (status) => status === 200);
      await world.call('DELETE', `/v1/sandboxes/${neighbour.id}`);
    });

    test('H3 heads and targets beyond measure are refused', async () => {
      const { guest } = scene;
      const long = 'x'.repeat(17_000);
      expect(await guest.status(get('http://good.test/', 'good.test', `X-Long: ${long}`))).toBe(431);
      expect(await guest.status(get(`http://good.test/${'y'.repeat(65_000)}`, 'good.test'))).toBe(431);
      const lines = Array.from({ length: 400 }, (_, index) => `X-${index}: y`);
      expect(await guest.status(get('http://good.test/', 'good.test', ...lines))).toBe(431);
      expect(
        (await guest.https('good.test:443', get('/', 'good.test', `X-Long: ${long}`))).replies[0]?.status,
      ).toBe(431);
    });

    test('H4 an endless answer that nobody reads waits at its origin', async () => {
      const { guest, world } = scene;
      const before = residentBytes(world.daemon.pid);
      poured = 0;
      await guest.shell(`cat >/tmp/unread.js <<'END'
        import { connect } from 'node:net';
        for (let n = 0; n < 8; n++) {
          const it = connect(3128, '127.0.0.1', () => it.write('GET http://endless.test/ HTTP/1.1\\r\\nHost: endless.test\\r\\n\\r\\n'));
          it.pause();
        }
        setTimeout(() => process.exit(), 20_000);
END`);
      const line =
        '/.glovebox/agent/ld.so --library-path /.glovebox/agent/lib /.glovebox/agent/bun /tmp/unread.js';
      await world.call('POST', `/v1/sandboxes/${guest.id}/proxy/44772/command`, {
        command: line,
        background: true,
      });
      let last = -1;
      let still = 0;
      await until(
        'the origin to wait',
        () => poured,
        (bytes) => {
          still = bytes > 0 && bytes === last ? still + 1 : 0;
          last = bytes;
          return still > 20;
        },
      );
      expect(poured).toBeLessThan(8 * 32 * mebibyte);
      expect(residentBytes(world.daemon.pid) - before).toBeLessThan(128 * mebibyte);
      expect(await good()).toBe(200);
    });

    test('H5 nothing is unpacked on the way', async () => {
      const { guest, lab } = scene;
      const packed = 'not gzip at all';
      await guest.raw(
        `${get('http://good.test/echo', 'good.test', 'Content-Encoding: gzip', `Content-Length: ${packed.length}`)}${packed}`,
      );
      expect(lab.good.seen.at(-1)).toMatchObject({ body: packed, headers: { 'content-encoding': 'gzip' } });
    });

    test('H9 what a guest writes cannot act on who reads the log', async () => {
      const { guest, world } = scene;
      const evil = '\x1b]0;owned\x07\r\n{"seq":0,"decision":"allow"}\u202e\x9b31m';
      await guest.raw(get('http://evil.test/', 'evil.test', `User-Agent: ${evil.replace(/[\r\n]/g, '')}`));
      await guest.status(get(`http://evil.test/${encodeURIComponent(evil)}`, 'evil.test'));
      await guest.socks(Buffer.from(`${evil}.test`), 443);
      await guest.shell(`nslookup "$(printf 'a\\033]0;x\\007b').evil.test" 127.0.0.1`);
      await guest.logged((it) => it.path?.includes('owned') === true);
      const folder = join(world.home, 'network', 'log');
      for (const name of readdirSync(folder)) {
        const text = readFileSync(join(folder, name), 'utf8');
        // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
        expect(text).not.toMatch(/[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/);
        for (const line of text.trim().split('\n')) expect(JSON.parse(line)).toBeTypeOf('object');
        expect(statSync(join(folder, name)).mode & 0o777).toBe(0o600);
      }
    });

    test('H10 a flood of refusals fills no disk, and is told of', async () => {
      const { guest, world } = scene;
      const socket = await guest.proxy();
      const refused = get('http://evil.test/a-path-that-takes-some-room', 'evil.test');
      socket.resume();
      for (let sent = 0; sent < 6_000; sent += 500)
        await new Promise((done) => socket.write(refused.repeat(500), done));
      await guest.raw(get('http://good.test/last', 'good.test'));
      await until(
        'an entry that tells of dropped ones',
        async () => (await world.log(guest.id)).some((it) => (it.dropped ?? 0) > 0),
        (it) => it,
      );
      socket.destroy();
      const folder = join(world.home, 'network', 'log');
      const bytes = readdirSync(folder).map((name) => statSync(join(folder, name)).size);
      expect(bytes.reduce((a, b) => a + b, 0)).toBeLessThan(3 * mebibyte);
      expect(await good()).toBe(200);
    });

    test('H11 every decision is on record, once', async () => {
      const { guest, world } = scene;
      const asked = Array.from({ length: 12 }, (_, index) => `/once-${index}-${crypto.randomUUID()}`);
      const hosts = ['good.test', 'evil.test'];
      for (const [index, path] of asked.entries()) {
        const host = hosts[index % 2] as string;
        await guest.status(get(`http://${host}${path}`, host));
      }
      const counts = await until(
        'the entries',
        async () => {
          const entries = await world.log(guest.id);
          return asked.map((path) => entries.filter((it) => it.path === path).map((it) => it.decision));
        },
        (all) => all.every((decisions) => decisions.length > 0),
      );
      expect(counts).toEqual(asked.map((_, index) => [index % 2 === 0 ? 'allow' : 'deny']));
    });

    test('H12 values in a query are not written down', async () => {
      const { guest, world } = scene;
      const canary = `CANARY-${crypto.randomUUID()}`;
      await guest.raw(get(`http://good.test/q?token=${canary}&b=${canary}`, 'good.test'));
      const entry = await until(
        'the entry',
        async () => (await world.log(guest.id)).find((it) => it.path?.startsWith('/q?') === true),
        (it) => it !== undefined,
      );
      expect(entry?.path).toBe('/q?token=*&b=*');
      expect(world.placesOnHost(canary)).toEqual([]);
    });

    test('K5 K6 K24 the daemon’s own API is closed to guests, and asks for its key where a rule opens it', async () => {
      const { guest, world } = scene;
      const { port } = new URL(world.daemon.url);
      const at = `host.docker.internal:${port}`;
      const paths = [
        ...['/v1/network/log', '/v1/network/questions', '/v1/policy/rules', '/v1/secrets', '/v1/sandboxes'],
        ...[`/v1/sandboxes/${guest.id}/proxy/18080/policy`, `/v1/sandboxes/${guest.id}/network`],
      ];
      const ask = (path: string, method = 'GET', ...lines: string[]) =>
        guest.status(get(`http://${at}${path}`, at, ...lines).replace('GET', method));
      for (const path of paths) expect([path, await ask(path)]).toEqual([path, 403]);
      const id = await world.rule({ decision: 'allow', resources: [`localhost:${port}`], sandbox: guest.id });
      // 429: whoever guesses is slowed down, and all guests come from the daemon's own address.
      const refusals = [401, 403, 421, 429];
      for (const path of paths) {
        expect([path, refusals.includes(await ask(path))]).toEqual([path, true]);
        for (const line of ['OPEN-SANDBOX-API-KEY: wrong', `Authorization: Bearer ${guest.stolenToken()}`])
          expect([path, refusals.includes(await ask(path, 'GET', line))]).toEqual([path, true]);
      }
      // It does reach the daemon, which knows who may come in: guesses of a guest keep nobody out.
      const key = `OPEN-SANDBOX-API-KEY: ${world.daemon.apiKey}`;
      expect(await ask('/v1/sandboxes', 'GET', key)).toBe(200);
      expect(await ask('/v1/sandboxes', 'GET', key, 'Origin: http://evil.test')).not.toBe(200);
      const log = await guest.logged((it) => it.host === 'localhost' && it.decision === 'allow');
      expect(log.port).toBe(Number(port));
      expect((await world.call('DELETE', `/v1/policy/rules/${id}`)).status).toBe(204);
      expect(await ask('/v1/sandboxes', 'GET', key)).toBe(403);
      expect(world.placesOnHost(world.daemon.apiKey).filter((it) => !it.endsWith('/api-key'))).toEqual([]);
    });

    test('K13 no port inside a guest leads to the API of its own policy', async () => {
      const { guest } = scene;
      for (const port of [18_080, 44_772, 8_080])
        await expect(guest.dial({ address: '127.0.0.1', port })).rejects.toThrow();
      for (const port of [18_080, 44_772])
        expect(await guest.status(get(`http://127.0.0.1:${port}/policy`, `127.0.0.1:${port}`))).toBe(403);
    });

    test('K a question is answered by a person, never by the guest that waits for it', async () => {
      const { guest, world } = scene;
      const id = await world.rule({ decision: 'ask', resources: ['evil.test'], sandbox: guest.id });
      await world.untouched(async () => {
        const socket = await guest.proxy();
        socket.write(get('http://evil.test/', 'evil.test'));
        const questions = await until(
          'the question',
          async () => (await world.call('GET', '/v1/network/questions')).body.items as { id: string }[],
          (all) => all.length > 0,
        );
        const answer = await world.call('POST', `/v1/network/questions/${questions[0]?.id}`, {
          allow: false,
        });
        expect(answer.status).toBe(204);
        expect((await told(socket)).replies[0]?.status).toBe(403);
        socket.destroy();
      });
      expect((await world.call('DELETE', `/v1/policy/rules/${id}`)).status).toBe(204);
    });

    test('H1 a connection that never gets its head together is cut', async () => {
      await until(
        'the end of the slow one',
        () => farewell,
        (text) => text.startsWith('HTTP/1.1 408 '),
      );
      lingering?.destroy();
    });
  },
);
