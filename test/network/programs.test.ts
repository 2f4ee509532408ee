// Real programs inside real sandboxes, with the proxy's variables and without them, against origins with names and certificates of a lab: what is allowed
// works as if nothing were in between, and what is refused comes back as something that the program understands.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { realpathSync, writeFileSync } from 'node:fs';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import { networkInterfaces } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { LogEntry } from '../../src/contract/network.ts';
import { type CommandResult, call, create, remove, run } from '../client.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon } from '../daemon.ts';
import { imageFor, runtimes } from '../runtimes.ts';
import { answerGrpc } from './grpc.ts';
import { type Lab, openLab } from './lab.ts';
import { greeting, makeRegistries, type Registries } from './registries.ts';

const modules = realpathSync(join(import.meta.dirname, '../../node_modules'));
/** The host's npm, which is JavaScript alone. */
const npmFolder = dirname(dirname(realpathSync(execFileSync('which', ['npm'], { encoding: 'utf8' }).trim())));
const databasePort = 5_432;
/** Of the public internet; it is decided on, and never dialled. */
const elsewhere = '93.184.216.34';
/** Guests mean themselves by addresses of loopback, so what is reached by address listens on another one of this host. */
const ownAddress = Object.values(networkInterfaces())
  .flat()
  .find((it) => it?.family === 'IPv4' && !it.internal)?.address;
/** The host of the lab's network that has a database. */
const databaseHost = 20;

const withoutProxy =
  'unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY NODE_USE_ENV_PROXY JAVA_TOOL_OPTIONS;';
const ways = [
  ['with the proxy variables', ''],
  ['without them', withoutProxy],
] as const;

const node = '/node/bin/node --disable-warning=ExperimentalWarning';
const javaScript = (text: string) => `${node} --input-type=module -e ${quoted(text)} --`;
const python = (text: string) => `python3 -c ${quoted(text)}`;
const quoted = (text: string) => `'${text.replaceAll("'", `'\\''`)}'`;

/** Programs that print what is at a URL, whatever its status. */
const fetchers: Record<string, string> = {
  'curl over HTTP/1.1': 'curl -sS --http1.1',
  'curl over HTTP/2': 'curl -sS --http2',
  'Python urllib': python(`import sys, urllib.error, urllib.request
try: answer = urllib.request.urlopen(sys.argv[1])
except urllib.error.HTTPError as error: answer = error
print(answer.read().decode(), end="")`),
  'Python requests': python('import sys, requests; print(requests.get(sys.argv[1]).text, end="")'),
  'Node fetch': javaScript('process.stdout.write(await (await fetch(process.argv[1])).text())'),
  'Node https': javaScript(
    'import { get } from "node:https"; get(process.argv[1], (answer) => answer.pipe(process.stdout))',
  ),
  'Node HTTP/2': javaScript(`import { connect } from "node:http2";
const url = new URL(process.argv[1]);
const session = connect(url.origin);
session.on("error", (error) => { console.error(error); process.exit(1); });
session.request({ ":path": url.pathname }).on("end", () => session.close()).pipe(process.stdout)`),
};

const webSocket = `socket.onopen = () => socket.send("over a WebSocket");
socket.onmessage = ({ data }) => { console.log(data); socket.close(); };
socket.onerror = ({ message, error }) => { console.error(message, error); process.exit(1); };`;

/** Programs that print what they got on their own protocol; HOST is in place of the host. */
const speakers: [name: string, command: string, prints: string | RegExp, refused: RegExp][] = [
  [
    'a WebSocket of Node',
    javaScript(`const socket = new WebSocket("wss://HOST/ws"); ${webSocket}`),
    'over a WebSocket\n',
    /failWebsocketConnection/,
  ],
  [
    'a WebSocket of ws',
    javaScript(
      `import { WebSocket } from "/modules/ws/wrapper.mjs"; const socket = new WebSocket("wss://HOST/ws"); ${webSocket}`,
    ),
    'over a WebSocket\n',
    /ENOTFOUND/,
  ],
  [
    'server-sent events',
    'curl -sSfN https://HOST/events',
    'data: 1\n\ndata: 2\n\ndata: 3\n\n',
    /403|resolve/,
  ],
  [
    'gRPC, one message and a stream of them',
    python(`import grpc
channel = grpc.secure_channel("HOST:443", grpc.ssl_channel_credentials())
print(channel.unary_unary("/lab.Echo/Unary")(b"one", timeout=60))
print(list(channel.stream_stream("/lab.Echo/Stream")(iter([b"two", b"three"]), timeout=60)))`),
    "b'one'\n[b'two', b'three']\n",
    /StatusCode.UNAVAILABLE/,
  ],
  [
    'git',
    'cd "$(mktemp -d)" && git clone -q https://HOST/git/lab.git && cat lab/README',
    `${greeting}\n`,
    /CONNECT tunnel failed, response 403|Could not resolve host/,
  ],
  [
    'npm',
    `cd "$(mktemp -d)" && ${node} /npm/bin/npm-cli.js install --loglevel error --no-audit --no-fund --fetch-retries 0 --registry https://HOST/npm/ lab-package && ${node} -p 'require("lab-package")'`,
    new RegExp(`${greeting}\n$`),
    /npm error (403 Forbidden|403|code ENOTFOUND)/,
  ],
  [
    'pip',
    '{ [ -e /tmp/pip ] || python3 -m zipfile -e /usr/share/python-wheels/pip-*.whl /tmp/pip; } && folder="$(mktemp -d)" && PYTHONPATH=/tmp/pip python3 -m pip install -q --no-cache-dir --retries 0 --target "$folder" --index-url https://HOST/simple/ lab-wheel && PYTHONPATH="$folder" python3 -c "import lab_wheel; print(lab_wheel.greeting)"',
    new RegExp(`${greeting}\n$`),
    /403|No matching distribution/,
  ],
  [
    'apt',
    'rm -f /usr/bin/lab-deb; echo "deb [trusted=yes] https://HOST/apt ./" >/etc/apt/sources.list && (apt-get -qq update && apt-get -qq install --reinstall lab-deb) >/tmp/apt 2>&1; grep -E "^[EW]:" /tmp/apt >&2; lab-deb',
    `${greeting}\n`,
    /403|resolve/,
  ],
];

const answerQuery = (socket: Socket) =>
  socket.on('error', () => {}).on('data', (bytes) => socket.end(`database: ${String(bytes).trim()}\n`));

describe.each(runtimes)('%s', (runtime) => {
  let lab: Lab;
  let registries: Registries;
  let byAddress: Server;
  let daemon: TestDaemon;
  let id: string;
  const inside = (command: string): Promise<CommandResult> => run(daemon, id, command);
  const log = async () => (await call(daemon, 'GET', '/v1/network/log?limit=1000')).body.items as LogEntry[];
  const placeByAddress = () =>
    ownAddress === undefined ? [] : [`${ownAddress}:${(byAddress.address() as AddressInfo).port}`];
  const lastOf = async (host: string) => (await log()).findLast((it) => it.host === host);

  beforeAll(async () => {
    lab = await openLab({
      hosts: { 'database.test': databaseHost },
      answer: (request, response) => registries.answer(request, response) || answerGrpc(request, response),
    });
    registries = makeRegistries(join(lab.folder, 'registries'), 'https://good.test');
    const database = await lab.listen(databaseHost, databasePort, answerQuery);
    byAddress = createServer(answerQuery);
    await new Promise<void>((listening) => byAddress.listen(0, ownAddress, listening));
    const home = makeHome();
    const folders = [modules, npmFolder];
    writeFileSync(
      join(home, 'config.toml'),
      `${lab.config}\n[storage]\nallowed_host_paths = ${JSON.stringify(folders)}\n`,
    );
    daemon = await startDaemon({ home, runtime });
    const image = await imageFor(runtime, daemon, 'debian');
    const volume = (name: string, path: string) => ({
      name,
      host: { path },
      mountPath: `/${name}`,
      readOnly: true,
    });
    id = await create(daemon, {
      image: { uri: image },
      volumes: [
        volume('node', realpathSync(join(modules, `node-linux-${process.arch}`))),
        volume('modules', modules),
        volume('npm', npmFolder),
      ],
      glovebox: {
        rules: [
          { decision: 'allow', resources: ['good.test', '*.good.test', lab.good.address] },
          { decision: 'deny', resources: ['www.good.test'], methods: ['ANY'], path: '/closed/**' },
          {
            decision: 'allow',
            resources: [`database.test:${databasePort}`, `${database}:${databasePort}`, ...placeByAddress()],
          },
        ],
      },
    });
  });

  afterAll(async () => {
    await remove(daemon, id);
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(daemon.home);
    byAddress.close();
    await lab[Symbol.asyncDispose]();
  });

  describe.each(ways)('%s', (_, prefix) => {
    test.each(Object.entries(fetchers))('%s reads a page', async (_, command) => {
      const url = 'https://good.test/some/page';
      expect(await inside(`${prefix} ${command} ${url}`)).toEqual({
        ...{ exitCode: 0, stdout: 'hello from good.test\n', stderr: '' },
      });
      expect(lab.good.seen.at(-1)).toMatchObject({ scheme: 'https', method: 'GET', url: '/some/page' });
    });

    test.each(Object.entries(fetchers))('%s reads why a page is refused', async (_, command) => {
      const before = lab.good.seen.length;
      const { stdout } = await inside(`${prefix} ${command} https://www.good.test/closed/page`);
      expect(stdout).toMatch(
        /^Blocked by network policy: domain www\.good\.test\n {2}rule: deny www\.good\.test .*\/closed/,
      );
      expect(stdout).toMatch(/\n {2}allow it with: glovebox policy rm network --id /);
      expect(lab.good.seen).toHaveLength(before);
      expect(await lastOf('www.good.test')).toMatchObject({
        decision: 'deny',
        reason: 'rule',
        path: '/closed/page',
      });
    });

    test.each(Object.entries(fetchers))('%s fails at a host that is not allowed', async (_, command) => {
      const { stdout, stderr, exitCode } = await inside(`${prefix} ${command} https://evil.test/`);
      expect([stdout, exitCode === 0]).toEqual(['', false]);
      expect(stderr).toMatch(
        /403|Could not resolve|Name or service not known|No address associated|ENOTFOUND/,
      );
      expect(lab.evil.connections).toBe(0);
      expect(await lastOf('evil.test')).toMatchObject({ decision: 'deny' });
    });

    test.each(speakers)('%s', async (_, command, prints, refused) => {
      const good = await inside(`${prefix} ${command.replaceAll('HOST', 'good.test')}`);
      expect(good).toEqual({
        ...{ exitCode: 0, stderr: expect.any(String) },
        stdout: typeof prints === 'string' ? prints : expect.stringMatching(prints),
      });
      const evil = await inside(`${prefix} ${command.replaceAll('HOST', 'evil.test')}`);
      expect({ ...evil, failed: evil.exitCode !== 0 }).toMatchObject({
        ...{ failed: true, stdout: '', stderr: expect.stringMatching(refused) },
      });
      expect(lab.evil.connections).toBe(0);
    });

    test('a program in Go', async () => {
      // A backup that is not there: that it asks, and whom, is what matters.
      const command = `${prefix} RESTIC_PASSWORD=x restic --no-cache -r rest:https://HOST/status/404/ cat config`;
      const good = await inside(command.replace('HOST', 'good.test'));
      expect(good.stderr).toMatch(/does not exist/);
      expect(lab.good.seen.at(-1)?.headers['user-agent']).toMatch(/^Go-http-client/);
      const evil = await inside(command.replace('HOST', 'evil.test'));
      expect(evil.stderr).toMatch(prefix === '' ? /Forbidden/ : /no such host/);
      expect(lab.evil.connections).toBe(0);
    });

    test('OpenSSL by hand', async () => {
      const through = prefix === '' ? '-proxy 127.0.0.1:3128' : '';
      const speak = (host: string, options = '') =>
        inside(
          `${prefix} printf 'GET /by/hand HTTP/1.0\\r\\nHost: ${host}\\r\\n\\r\\n' | openssl s_client -quiet -verify_return_error -connect ${host}:443 ${through} ${options}`,
        );
      expect((await speak('good.test')).stdout).toMatch(/^HTTP\/1\.\d 200 OK[\s\S]*hello from good\.test\n$/);
      const evil = await speak('evil.test');
      expect([evil.stdout, evil.exitCode === 0]).toEqual(['', false]);
      expect(evil.stderr).toMatch(
        prefix === '' ? /HTTP CONNECT failed, reason= 403/ : /Name or service not known/,
      );
    });
  });

  test('much goes up and down unchanged', async () => {
    const bytes = 24 * 1024 * 1024;
    const digest = createHash('sha256').update(Buffer.alloc(bytes, 'x')).digest('hex');
    for (const [prefix, version] of [
      ['', '--http1.1'],
      [withoutProxy, '--http2'],
    ]) {
      const down = await inside(
        `${prefix} curl -sSf ${version} https://good.test/bytes/${bytes} | sha256sum`,
      );
      expect(down.stdout.split(' ')[0]).toBe(digest);
      const up = await inside(
        `${prefix} head -c ${bytes} /dev/zero | tr '\\0' x | curl -sSf ${version} -T - -X POST https://good.test/digest`,
      );
      expect(up).toMatchObject({ exitCode: 0 });
      const seen = lab.good.seen.at(-1);
      expect(
        createHash('sha256')
          .update(seen?.body ?? '', 'latin1')
          .digest('hex'),
      ).toBe(digest);
    }
  });

  test('a form is posted', async () => {
    const { stdout } = await inside('curl -sS -d name=value -H "X-Own: kept" https://good.test/echo');
    expect(JSON.parse(stdout)).toMatchObject({
      ...{ method: 'POST', url: '/echo', body: 'name=value' },
      headers: { 'x-own': 'kept', 'content-type': 'application/x-www-form-urlencoded' },
    });
  });

  test('--noproxy goes no other way', async () => {
    expect(await inside("curl -sS --noproxy '*' https://good.test/")).toMatchObject({
      stdout: 'hello from good.test\n',
    });
    expect((await lastOf('good.test'))?.kind).toBe('transparent');
    expect(await inside("curl -sS --noproxy '*' https://evil.test/")).toMatchObject({
      exitCode: 6,
      stdout: '',
    });
  });

  test('plain HTTP to a host that is not allowed is told how to allow it', async () => {
    const { stdout } = await inside('curl -sS -w "%{http_code} %header{x-glovebox-deny}" http://evil.test/');
    expect(stdout).toBe(
      [
        'Blocked by network policy: domain evil.test',
        '  detail: No rule allows evil.test:80.',
        `  allow it with: glovebox policy allow network --sandbox ${id} evil.test:80`,
        '403 default\n',
      ].join('\n'),
    );
    const byAddress = await inside(`${withoutProxy} curl -sS http://${elsewhere}/`);
    expect(byAddress.stdout).toMatch(
      /^Blocked by network policy: domain 93\.184\.216\.34\n[\s\S]*allow it with: /,
    );
    expect(lab.evil.connections).toBe(0);
  });

  test('TLS to an address, with a name that is not allowed, ends with an alert', async () => {
    const { stderr } = await inside(
      `openssl s_client -connect ${elsewhere}:443 -servername evil.test </dev/null`,
    );
    expect(stderr).toMatch(/alert access denied/);
    expect(lab.evil.connections).toBe(0);
  });

  test('names that lead nowhere do not resolve; others do, to nothing of the world', async () => {
    const { stdout } = await inside('getent ahosts evil.test; echo $?; getent ahosts good.test');
    expect(stdout).toMatch(/^2\n198\.1[89]\.[\s\S]*fd00:/);
    expect(stdout).not.toContain(lab.good.address);
  });

  describe('a database', () => {
    const answered = { exitCode: 0, stdout: 'database: select 1\n', stderr: '' };
    const query = (place: string) =>
      inside(
        python(`import socket, sys
host, port = sys.argv[1].rsplit(":", 1)
connection = socket.create_connection((host, int(port)), 10)
connection.sendall(b"select 1\\n")
print(connection.makefile().readline(), end="")`).concat(` ${place}`),
      );

    test('is reached where a rule names host and port', async () => {
      expect(await query(`database.test:${databasePort}`)).toEqual(answered);
      expect(await lastOf('database.test')).toMatchObject({
        ...{ kind: 'network', protocol: 'tcp', port: databasePort, decision: 'allow' },
      });
    });

    test.skipIf(ownAddress === undefined)('is reached where a rule names address and port', async () => {
      expect(await query(placeByAddress()[0] ?? '')).toEqual(answered);
      expect(await lastOf(ownAddress ?? '')).toMatchObject({ kind: 'network', decision: 'allow' });
    });

    test('is not reached without a rule', async () => {
      // Another rule has this port caught; the next one is nobody's.
      const other = await query(`${elsewhere}:${databasePort}`);
      expect([other.stdout, (await lastOf(elsewhere))?.decision]).toEqual(['', 'deny']);
      expect((await query(`database.test:${databasePort + 1}`)).stderr).toMatch(/ConnectionRefusedError/);
      expect((await query(`evil.test:${databasePort}`)).stderr).toMatch(/gaierror/);
    });
  });

  test('QUIC is refused at once, so that clients fall back', async () => {
    const { stdout } = await inside(
      python(`import socket, time
began = time.monotonic()
connection = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
connection.settimeout(60)
connection.connect(("good.test", 443))
try:
  for _ in range(3): connection.send(bytes(1200)); connection.recv(1)
except ConnectionRefusedError as error: print("refused", time.monotonic() - began < 5)`),
    );
    expect(stdout).toBe('refused True\n');
  });
});
