import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import type { Guest } from '../guest/guest.ts';
import type { Log } from '../lib/log.ts';
import type { SandboxInfo } from '../sandbox/sandbox.ts';
import { openSqliteStore } from '../store/sqlite/sqlite.ts';
import type { Store } from '../store/store.ts';
import type { SandboxSecrets, Vault } from '../vault/vault.ts';
import type { EgressSandbox, EgressSession } from './egress.ts';
import { Networks } from './networks.ts';
import { Policies } from './policies.ts';

let home: string;
let store: Store;
let networks: Networks;
let policies: Policies;
/** What sessions were told, by sandbox. */
let told: string[];
let sandboxes: Map<string, EgressSandbox>;
let secrets: SandboxSecrets;
let forgotten: string[];
let warned: string[];

beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), 'glovebox-networks-'));
  store = openSqliteStore(join(home, 'db'));
  told = [];
  forgotten = [];
  warned = [];
  sandboxes = new Map();
  secrets = {
    binds: () => false,
    inject: async () => ({ kind: 'none' }),
    placeholders: [],
    foreignPlaceholders: () => [],
    environment: { GITHUB_TOKEN: 'a placeholder' },
  };
  const write = (_: object, message: string) => void warned.push(message);
  const log: Log = { debug: () => {}, info: () => {}, warn: write, error: write };
  policies = new Policies({
    store,
    folder: join(home, 'network'),
    templateFile: join(home, 'proxy-config.json'),
    dangerouslyAllowMetadata: false,
    nameOf: (id) => networks.nameOf(id),
    mayOpenGuarded: (id) => networks.isOwners(id),
    log,
    now: () => new Date(),
    onChange: (id) => networks.changed(id),
    hostAddresses: () => [],
  });
  const vault = {
    forSandbox: (_id, { shared } = { shared: true }) => (shared ? secrets : { ...secrets, environment: {} }),
    forgetSandbox: async (id: string) => void forgotten.push(id),
    onChange: () => {},
  } as Partial<Vault> as Vault;
  const open = (sandbox: EgressSandbox): EgressSession => {
    sandboxes.set(sandbox.id, sandbox);
    return {
      accept: () => void told.push(`accept ${sandbox.id}`),
      changed: () => void told.push(`changed ${sandbox.id}`),
      close: () => void told.push(`close ${sandbox.id}`),
    };
  };
  const authority = {
    forSandbox: (id: string) => ({ certificate: `authority of ${id}`, contextFor: vi.fn() }),
  };
  networks = new Networks({
    ...{ policies, vault, authority, open, log },
    trustFiles: (pem) => ({ 'ca.crt': pem }),
    inspect: 'all',
    transparent: true,
    bell: undefined,
  });
});
afterEach(() => {
  store.close();
  rmSync(home, { recursive: true, force: true });
});

const infoOf = (id: string, name?: string) =>
  ({
    id,
    metadata: name === undefined ? {} : { 'glovebox.name': name },
    extensions: {},
  }) as Partial<SandboxInfo> as SandboxInfo;

/** A guest that notes what it is asked to catch; nothing in it can be read or written. */
function guestOf(): Guest & { asked: string[] } {
  const asked: string[] = [];
  const refuse = () => Promise.reject(new Error('nothing here'));
  return {
    asked,
    egress: async ({ capture, ports }: { capture: boolean; ports: number[] }) => {
      asked.push(`${capture} ${ports.join()}`);
      return { unavailable: 0 };
    },
    whose: async (port: number) => ({ pid: port, command: 'curl' }),
    ...{ stat: refuse, read: refuse, write: refuse },
  } as Partial<Guest> as Guest & { asked: string[] };
}

const never = new AbortController().signal;

describe('the agent', () => {
  test('is told the ports of the web and those that rules name, again only when they change', async () => {
    networks.open(infoOf('one'), { rules: [{ decision: 'allow', resources: ['git.test:22', 'a.test'] }] });
    const guest = guestOf();
    await networks.attach('one', { guest, walls: 'captured', fresh: false }, never);
    expect(guest.asked).toEqual(['true 80,443,22']);
    policies.addRule({ decision: 'allow', resources: ['b.test'] }, 'one');
    policies.addRule({ decision: 'allow', resources: ['db.test:5432'] }, undefined);
    await vi.waitFor(() => expect(guest.asked).toEqual(['true 80,443,22', 'true 80,443,22,5432']));
    expect(told).toEqual(['changed one', 'changed one']);
  });

  test('behind walls that catch nothing serves the proxy alone', async () => {
    networks.open(infoOf('one'), { rules: [{ decision: 'allow', resources: ['git.test:22'] }] });
    const guest = guestOf();
    await networks.attach('one', { guest, walls: 'loopback', fresh: false }, never);
    expect(guest.asked).toEqual(['false ']);
  });

  test('catches nothing where nothing is allowed, or where the ports of the web are for servers of the guest', async () => {
    networks.open(infoOf('one'), {});
    const guest = guestOf();
    await networks.attach('one', { guest, walls: 'captured', fresh: false }, never);
    expect(guest.asked).toEqual(['false ']);
    policies.addRule({ decision: 'allow', resources: ['a.test'] }, 'one');
    await vi.waitFor(() => expect(guest.asked).toEqual(['false ', 'true 80,443']));
    const info = { ...infoOf('two'), extensions: { 'glovebox.transparent': 'false' } };
    networks.open(info, { rules: [{ decision: 'allow', resources: ['a.test'] }] });
    const other = guestOf();
    await networks.attach('two', { guest: other, walls: 'captured', fresh: false }, never);
    expect(other.asked).toEqual(['false ']);
  });

  test('that has dialled in again, perhaps as another, is told anew', async () => {
    networks.open(infoOf('one'), { rules: [{ decision: 'allow', resources: ['a.test'] }] });
    for (const guest of [guestOf(), guestOf()]) {
      await networks.attach('one', { guest, walls: 'captured', fresh: false }, never);
      expect(guest.asked).toEqual(['true 80,443']);
    }
  });

  test('whose image has no place for the authority is no reason to fail', async () => {
    networks.open(infoOf('one'), {});
    expect(networks.files('one')).toEqual({ 'ca.crt': 'authority of one' });
    await networks.attach('one', { guest: guestOf(), walls: 'captured', fresh: true }, never);
    expect(warned).toEqual(['the authority could not be put into the trust store of the image']);
    // The built-in image is not even looked at.
    networks.open({ ...infoOf('two'), image: 'host' }, {});
    await networks.attach('two', { guest: guestOf(), walls: 'captured', fresh: true }, never);
    expect(warned).toHaveLength(1);
  });
});

describe('walls with a network of their own', () => {
  test('get no variables, and rules for such a sandbox are refused rather than ignored', async () => {
    networks.open(infoOf('one'), {});
    const guest = guestOf();
    await networks.attach('one', { guest, walls: 'open', fresh: true }, never);
    expect(guest.asked).toEqual([]);
    expect(networks.environment('one', {})).toEqual({});
    networks.open(infoOf('two'), { networkPolicy: { defaultAction: 'deny', egress: [] } });
    await expect(networks.attach('two', { guest, walls: 'open', fresh: true }, never)).rejects.toMatchObject({
      code: 'unsupported',
      message: expect.stringContaining('no rules can hold'),
    });
  });
});

describe('a sandbox', () => {
  test('has its name, its policy and its secrets around it, as they are at the moment', async () => {
    const info = infoOf('one');
    networks.open(info, {});
    const around = sandboxes.get('one') as EgressSandbox;
    expect(around.name).toBeUndefined();
    info.metadata = { 'glovebox.name': 'demo' };
    expect(around.name).toBe('demo');
    const before = around.policy();
    policies.addRule({ decision: 'allow', resources: ['a.test'] }, 'one');
    expect(around.policy()).not.toBe(before);
    expect(await around.processOf?.(7)).toBeUndefined();
    await networks.attach('one', { guest: guestOf(), walls: 'captured', fresh: false }, never);
    expect(await around.processOf?.(7)).toEqual({ pid: 7, command: 'curl' });
    expect(networks.environment('one', {})).toMatchObject({
      GITHUB_TOKEN: 'a placeholder',
      HTTPS_PROXY: 'http://127.0.0.1:3128',
    });
  });

  test('that could not be opened leaves no session, and its connections are closed', () => {
    const broken = { defaultAction: 'deny' as const, egress: [{ action: 'allow' as const, target: 'a b' }] };
    expect(() => networks.open(infoOf('one'), { networkPolicy: broken })).toThrow(/egress\[0\]/);
    expect(told).toEqual(['close one']);
    const socket = new Socket();
    networks.accept('one', socket);
    expect(socket.destroyed).toBe(true);
  });

  test('that is gone is cut, and nothing of it is kept', async () => {
    networks.open(infoOf('one'), {});
    networks.accept('one', new Socket());
    networks.detach('one');
    networks.detach('one');
    await networks.forget('one');
    networks.changed(undefined);
    expect(told).toEqual(['accept one', 'close one']);
    expect(forgotten).toEqual(['one']);
  });
});

test("a sandbox of a project has neither the owner's secrets nor a way to open this host by itself", async () => {
  const rules = [{ decision: 'allow' as const, resources: ['localhost:9999', 'a.test'] }];
  const project = { id: 'p', name: 'beta' };
  networks.open(infoOf('mine'), { rules });
  networks.open({ ...infoOf('theirs'), project }, { rules });
  for (const id of ['mine', 'theirs'])
    await networks.attach(id, { guest: guestOf(), walls: 'captured', fresh: false }, never);
  const token = (id: string) => networks.environment(id, {}).GITHUB_TOKEN;
  expect([token('mine'), token('theirs')]).toEqual(['a placeholder', undefined]);
  const effect = (id: string, name: string) =>
    policies.of(id).decide({ host: { kind: 'name', name }, port: 9999, protocol: 'tcp' }).effect;
  expect([effect('mine', 'localhost'), effect('theirs', 'localhost')]).toEqual(['allow', 'deny']);
  // Nor after a restart of the daemon, or with rules that come later.
  networks.detach('theirs');
  networks.adopt({ ...infoOf('theirs'), project });
  policies.addRule({ decision: 'allow', resources: ['127.0.0.1'] }, 'theirs');
  expect([effect('theirs', 'localhost'), effect('theirs', 'a.test')]).toEqual(['deny', 'allow']);
  expect(sandboxes.get('theirs')?.secrets.environment).toEqual({});
});

describe('one that was opened for nobody, handed over', () => {
  const project = { id: 'p', name: 'beta' };
  const theirs = { ...infoOf('one', 'demo'), project };
  const effect = (name: string) =>
    policies.of('one').decide({ host: { kind: 'name', name }, port: 443, protocol: 'tcp' }).effect;
  const policyFor = (target: string) => ({
    networkPolicy: { defaultAction: 'deny' as const, egress: [{ action: 'allow' as const, target }] },
  });

  test('has name, policy, secrets and session of whoever has it now, and nothing of what it had before', async () => {
    const config = join(home, 'network/one/proxy-config.json');
    writeFileSync(
      join(home, 'proxy-config.json'),
      JSON.stringify({ policy: 'deny', network: { allowedDomains: ['pool.test'] } }),
    );
    networks.open(infoOf('one'), {});
    const guest = guestOf();
    await networks.attach('one', { guest, walls: 'captured', fresh: false }, never);
    const before = sandboxes.get('one') as EgressSandbox;
    expect([effect('pool.test'), effect('new.test'), existsSync(config)]).toEqual(['allow', 'deny', true]);
    expect(networks.environment('one', {})).toMatchObject({ GITHUB_TOKEN: 'a placeholder' });
    const certificate = networks.files('one');

    await networks.handOver(theirs, policyFor('new.test'), never);
    expect([effect('pool.test'), effect('new.test'), existsSync(config)]).toEqual(['deny', 'allow', false]);
    expect(store.networkPolicy('one')).toEqual(policyFor('new.test').networkPolicy);
    const around = sandboxes.get('one') as EgressSandbox;
    expect(around).not.toBe(before);
    expect([around.name, networks.nameOf('one'), networks.isOwners('one')]).toEqual(['demo', 'demo', false]);
    expect([around.secrets.environment, networks.environment('one', {}).GITHUB_TOKEN]).toEqual([
      {},
      undefined,
    ]);
    expect(await around.processOf?.(7)).toEqual({ pid: 7, command: 'curl' });
    // What was open is cut, and what comes goes to the new one. Programs go on trusting the same authority.
    networks.accept('one', new Socket());
    expect(told).toEqual(['close one', 'accept one']);
    expect(networks.files('one')).toEqual(certificate);
    policies.addRule({ decision: 'allow', resources: ['git.test:22'] }, 'one');
    await vi.waitFor(() => expect(guest.asked.at(-1)).toBe('true 80,443,22'));
    // Nor does a daemon that comes later find anything else.
    networks.detach('one');
    networks.adopt(theirs);
    expect([effect('pool.test'), effect('new.test')]).toEqual(['deny', 'allow']);
  });

  test('is told of other ports only, and before anybody uses it', async () => {
    networks.open(infoOf('one'), {});
    const guest = guestOf();
    await networks.attach('one', { guest, walls: 'captured', fresh: false }, never);
    await networks.handOver({ ...infoOf('one'), project }, {}, never);
    expect(guest.asked).toEqual(['false ']);
    await networks.handOver({ ...infoOf('one'), project }, policyFor('new.test'), never);
    expect(guest.asked).toEqual(['false ', 'true 80,443']);
  });

  test('on a network of its own cannot be given rules', async () => {
    networks.open(infoOf('one'), {});
    await networks.attach('one', { guest: guestOf(), walls: 'open', fresh: false }, never);
    await expect(networks.handOver(theirs, policyFor('new.test'), never)).rejects.toMatchObject({
      code: 'unsupported',
    });
  });
});
