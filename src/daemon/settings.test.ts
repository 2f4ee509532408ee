// Settings as people change them: the file keeps all that is not meant, and nothing is written that could not be.
import { mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { loadSettings } from './config.ts';
import { changeSetting } from './settings.ts';

let home: string;
let file: string;

beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'glovebox-settings-'));
  file = join(home, 'config.toml');
});
afterEach(() => rm(home, { recursive: true, force: true }));

const sources = (env: Record<string, string> = {}) => ({ env: { GLOVEBOX_HOME: home, ...env } });
const change = (key: string, text: string | undefined, env: Record<string, string> = {}) =>
  changeSetting(sources(env), { key, text });

const edits: [before: string, key: string, text: string | undefined, after: string][] = [
  ['', 'server.port', '9000', '[server]\nport = 9000\n'],
  ['# mine', 'server.port', '9000', '# mine\n\n[server]\nport = 9000\n'],
  [
    '[server]\n  port = 1 # why\n\n# about logs\n[log]\nlevel = "INFO"\n',
    ...(['server.port', '9000'] as const),
    '[server]\n  port = 9000 # why\n\n# about logs\n[log]\nlevel = "INFO"\n',
  ],
  [
    '[server]\n  port = 1\n\n# about logs\n[log]\n',
    ...(['server.host', '::1'] as const),
    '[server]\n  port = 1\n  host = "::1"\n\n# about logs\n[log]\n',
  ],
  ['[server]\nport = 1', 'server.host', '::1', '[server]\nport = 1\nhost = "::1"'],
  ['[server]\r\nport = 1\r\n', 'server.host', '::1', '[server]\r\nport = 1\r\nhost = "::1"\r\n'],
  ['[server]\r\nport = 1 # x\r\n', 'server.port', '2', '[server]\r\nport = 2 # x\r\n'],
  ['server.port = 1\n[log]\n', 'server.host', '::1', 'server.port = 1\nserver.host = "::1"\n[log]\n'],
  [
    '[egress]\nhosts = [ # names\n  "a=::1", # one\n  "b=::1",\n] # end\nlog_files = 3\n',
    ...(['egress.hosts', 'c=::2,d=::3'] as const),
    '[egress]\nhosts = ["c=::2", "d=::3"] # end\nlog_files = 3\n',
  ],
  [
    '[egress]\nhosts = [\n  "a=::1",\n]\nlog_files = 3 # three\n',
    ...(['egress.hosts', undefined] as const),
    '[egress]\nlog_files = 3 # three\n',
  ],
  ['[egress]\nhosts = ["a=::1"]\n', 'egress.hosts', '', '[egress]\nhosts = []\n'],
  ['[log]\n"level" = \'INFO\'\n', 'log.level', 'DEBUG', '[log]\n"level" = "DEBUG"\n'],
  ['[log]\nfile_path = "/a#b" # c\n', 'log.file_path', '/d "e"', '[log]\nfile_path = "/d \\"e\\"" # c\n'],
  ['[log]\nlevel = "INFO"\n', 'log.file_enabled', 'yes', '[log]\nlevel = "INFO"\nfile_enabled = true\n'],
  [
    '[server]\nport = 1\n[server.tls]\ncert_file = "/a"\nkey_file = "/b" # key\n',
    ...(['server.tls.cert_file', '/c'] as const),
    '[server]\nport = 1\n[server.tls]\ncert_file = "/c"\nkey_file = "/b" # key\n',
  ],
  [
    '[server.tls]\ncert_file = "/a"\nkey_file = "/b"\n[log]\nlevel = "INFO"\n',
    ...(['server.tls.min_version', '1.3'] as const),
    '[server.tls]\ncert_file = "/a"\nkey_file = "/b"\nmin_version = "1.3"\n[log]\nlevel = "INFO"\n',
  ],
  [
    '[server.tls]\ncert_file = "/a"\nkey_file = "/b"\n',
    ...(['server.port', '9000'] as const),
    '[server.tls]\ncert_file = "/a"\nkey_file = "/b"\n\n[server]\nport = 9000\n',
  ],
  [
    'server.tls.cert_file = "/a"\nserver.tls.key_file = "/b"\n',
    ...(['server.tls.min_version', '1.3'] as const),
    'server.tls.cert_file = "/a"\nserver.tls.key_file = "/b"\nserver.tls.min_version = "1.3"\n',
  ],
  ['[server.tls]\n', 'server.tls.cert_file', undefined, '[server.tls]\n'],
  ['[log]\nlevel = "INFO"\n', 'server.port', undefined, '[log]\nlevel = "INFO"\n'],
];
test.each(edits)('in %j, %s as %j makes %j', async (before, key, text, after) => {
  await writeFile(file, before);
  const { changed } = await change(key, text);
  expect(await readFile(file, 'utf8')).toBe(after);
  expect(changed).toBe(after !== before);
  expect(await readdir(home)).toEqual(['config.toml']);
});

const refused: [before: string, key: string, text: string | undefined, RegExp, RegExp][] = [
  ['', 'server.prot', '1', /no setting "server\.prot"/, /Did you mean server\.port/],
  ['', 'port', '1', /no setting/, /server\.port/],
  ['', '__proto__.port', '1', /no setting/, /settings list/],
  ['', 'server.port', 'many', /server\.port: expected number/, /a whole number/],
  ['', 'server.port', '99999', /<=65535/, /TCP port/],
  ['', 'runtime.type', 'vm', /"bubblewrap"\|"docker"\|"memory"/, /walls/],
  ['', 'log.file_enabled', 'perhaps', /boolean/, /true or false/],
  ['', 'log.file_path', '/a\nb', /control characters/, /log file/],
  ['', 'docker.host_ip', '::1', /cannot be set.*through the server/, /OpenSandbox/],
  ['', 'secure_runtime.type', 'gvisor', /runtime\.type is "bubblewrap"/, /Nothing was written/],
  ['server = { port = 1 }\n', 'server.port', '2', /only a person/, /\[server\]/],
  ['server = { port = 1 }\n', 'server.port', undefined, /only a person/, /\[server\]/],
  ['', 'server.tls.cert_file', '/c', /needs server\.tls\.key_file/, /Nothing was written/],
  [
    'server = { tls = { cert_file = "/a", key_file = "/b" } }\n',
    'server.tls.key_file',
    '/c',
    /only a person/,
    /./,
  ],
  ['[server\nport = 1\n', 'server.port', '2', /is not TOML/, /editor/],
  ['[log]\nlevel = "loud"\n', 'server.port', '2', /config\.toml:2: log\.level/, /editor/],
];
test.each(
  refused,
)('in %j, %s as %j is refused, and the file stays', async (before, key, text, what, hint) => {
  await writeFile(file, before);
  await expect(change(key, text)).rejects.toMatchObject({
    message: expect.stringMatching(what),
    hint: expect.stringMatching(hint),
  });
  expect(await readFile(file, 'utf8')).toBe(before);
  expect(await readdir(home)).toEqual(['config.toml']);
});

test('a bad value of the file is mended by setting it, and not hidden by the environment', async () => {
  await writeFile(file, '[server]\nport = "many"\n');
  await expect(loadSettings(sources())).rejects.toMatchObject({ code: 'invalid' });
  const { setting } = await change('server.port', '9000', { GLOVEBOX_SERVER_PORT: '7000' });
  expect(setting).toMatchObject({ value: 7000, source: 'environment' });
  expect(await readFile(file, 'utf8')).toBe('[server]\nport = 9000\n');
});

test('a link to the file stays one, the mode stays, and a key of the server closes it to others', async () => {
  const real = join(home, 'real.toml');
  await writeFile(real, '[server]\nport = 1\n', { mode: 0o644 });
  await symlink(real, file);
  await change('server.port', '2');
  expect((await stat(real)).mode & 0o777).toBe(0o644);
  await change('server.api_key', 'open-sesame');
  expect((await stat(real)).mode & 0o777).toBe(0o600);
  expect(await readFile(file, 'utf8')).toBe('[server]\nport = 2\napi_key = "open-sesame"\n');
});

test('bytes that are no text are left alone', async () => {
  const bytes = Buffer.from([0x23, 0xff, 0x0a]);
  await writeFile(file, bytes);
  await expect(change('server.port', '2')).rejects.toMatchObject({
    message: expect.stringContaining('UTF-8'),
  });
  expect(await readFile(file)).toEqual(bytes);
});

test('each setting tells where it comes from', async () => {
  await writeFile(file, '# x\n[server]\nport = 1\n');
  const { settings } = await loadSettings(sources({ GLOVEBOX_LOG_LEVEL: 'DEBUG' }));
  const of = (key: string) => settings.find((it) => it.key === key);
  expect(of('server.port')).toMatchObject({ value: 1, source: 'file', place: `${file}:3`, default: 8080 });
  expect(of('log.level')).toMatchObject({ value: 'DEBUG', source: 'environment' });
  expect(of('runtime.type')).toMatchObject({
    source: 'default',
    choices: ['bubblewrap', 'docker', 'memory'],
  });
  expect(settings.every((it) => it.description !== '')).toBe(true);
});

test('what gets riskier is said', async () => {
  const { warnings } = await change('server.host', '0.0.0.0');
  expect(warnings).toEqual([expect.stringContaining('other machines can reach the API')]);
  expect((await change('server.port', '2')).warnings).toEqual([]);
});
