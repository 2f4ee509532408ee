import { execFileSync } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { rootCertificates } from 'node:tls';
import { expect, test } from 'vitest';
import { present, serveWith, temporaryFolder, visit } from '../../../test/verifiers.ts';
import { Failure } from '../../lib/failure.ts';
import { openCertificateAuthority } from './authority.ts';
import { pem } from './certificate.ts';
import { blocksOf, readExtraAuthorities, systemRoots } from './roots.ts';

const now = () => new Date();

function authorityIn(folder: string, id: string) {
  return openCertificateAuthority({ keyFile: join(folder, 'authority.key'), now }).forSandbox(id);
}

async function failureOf(paths: string[]): Promise<Failure> {
  const outcome = await readExtraAuthorities(paths, { now, warn: () => {} }).catch((error) => error);
  if (outcome instanceof Failure) return outcome;
  throw new Error('nothing was thrown');
}

test("the system's roots are those of the first place that has some, each once", () => {
  using folder = temporaryFolder();
  const [one, two] = ['one', 'two'].map((id) => authorityIn(folder.path, id).certificate) as [string, string];
  const broken = pem(Buffer.from('no certificate'));
  const empty = join(folder.path, 'empty');
  const store = join(folder.path, 'store');
  writeFileSync(empty, '');
  writeFileSync(store, `# roots\r\n${one}${broken}words\n${two.replaceAll('\n', '\r\n')}${one}`);
  expect(systemRoots([join(folder.path, 'missing'), folder.path, empty, store])).toEqual([one, two]);
});

test('without any place, roots are those of Node.js', () => {
  expect(systemRoots(['/nonexistent'])).toEqual([...rootCertificates]);
});

test("this system's roots are read", () => {
  const roots = systemRoots();
  expect(roots.length).toBeGreaterThan(50);
  for (const root of roots) expect(new X509Certificate(root).subject).not.toBe('');
});

// A search that starts anew at each of them takes longer than a test may.
test.each([
  ['starts without ends', '-----BEGIN CERTIFICATE-----\n'.repeat(150_000), 0],
  ['blank space', `-----BEGIN CERTIFICATE-----${' '.repeat(4_000_000)}-----END CERTIFICATE-----`, 1],
  ['empty lines', `-----BEGIN CERTIFICATE-----${'\n'.repeat(4_000_000)}-----END CERTIFICATE-----`, 1],
])('four megabytes of %s take no long time', (_, content, blocks) => {
  expect(blocksOf(content)).toHaveLength(blocks);
});

test('extra authorities come from all files, each once', async () => {
  using folder = temporaryFolder();
  const [one, two] = ['one', 'two'].map((id) => authorityIn(folder.path, id).certificate) as [string, string];
  const files = ['a.pem', 'b.pem'].map((name) => join(folder.path, name)) as [string, string];
  writeFileSync(files[0], `Corporate root\n${one}`);
  writeFileSync(files[1], `${two}${one}`);
  const warnings: unknown[] = [];
  const found = await readExtraAuthorities(files, { now, warn: (fields) => warnings.push(fields) });
  expect(found).toEqual([one, two]);
  expect(warnings).toEqual([]);
});

test('an expired one is kept, with a warning', async () => {
  using folder = temporaryFolder();
  const one = authorityIn(folder.path, 'one').certificate;
  const file = join(folder.path, 'old.pem');
  writeFileSync(file, one);
  const warnings: unknown[] = [];
  const found = await readExtraAuthorities([file], {
    now: () => new Date('2050-01-01T00:00:00Z'),
    warn: (fields) => warnings.push(fields),
  });
  expect(found).toEqual([one]);
  expect(warnings).toEqual([{ file, subject: 'O=Glovebox, CN=Glovebox sandbox one' }]);
});

test.each([
  ['that is empty', ' \n', /is empty/, /Put the certificates/],
  ['of other text', 'hello', /no certificate in PEM form/, /openssl x509 -inform der/],
  ['of a broken certificate', pem(Buffer.from('hello')), /its certificate cannot be read/, /anew/],
  ['that is too long', 'x'.repeat(4 * 1024 * 1024 + 1), /longer than/, /certificates only/],
  [
    'with a private key',
    '-----BEGIN EC PRIVATE KEY-----\nMHc=\n-----END EC PRIVATE KEY-----\n',
    /private key/,
    /certificates alone/,
  ],
])('a file %s is refused by name, with what to do', async (_, content, why, hint) => {
  using folder = temporaryFolder();
  const file = join(folder.path, 'extra.pem');
  writeFileSync(file, content);
  const failure = await failureOf([file]);
  expect(failure.code).toBe('invalid');
  expect(failure.message).toContain(file);
  expect(failure.message).toMatch(why);
  expect(failure.hint).toMatch(hint);
});

test('what is missing, or no file, is refused by name', async () => {
  using folder = temporaryFolder();
  const path = join(folder.path, 'folder');
  expect(await failureOf([path])).toMatchObject({
    code: 'invalid',
    message: expect.stringContaining(`${path}: there is no such file`),
  });
  mkdirSync(path);
  expect(await failureOf([path])).toMatchObject({
    code: 'invalid',
    message: expect.stringContaining(`${path}: it is not a file`),
  });
});

test("a server's certificate is refused, for it vouches for nobody", async () => {
  using folder = temporaryFolder();
  const authority = authorityIn(folder.path, 'one');
  await using server = await serveWith(authority);
  const { leaf } = await visit(server, { ca: authority.certificate, servername: 'api.example' });
  const file = join(folder.path, 'server.pem');
  writeFileSync(file, authority.certificate + pem(leaf));
  const failure = await failureOf([file]);
  expect(failure.message).toContain("its certificate number 2 is a server's (O=Glovebox, CN=api.example)");
  expect(failure.hint).toContain('has issued it');
});

test.skipIf(!present('openssl', 'version'))('a DER file is told apart, and the advice mends it', async () => {
  using folder = temporaryFolder();
  const one = authorityIn(folder.path, 'one').certificate;
  const file = join(folder.path, 'extra.der');
  writeFileSync(file, new X509Certificate(one).raw);
  const failure = await failureOf([file]);
  const command = /'(openssl [^']*)'/.exec(failure.hint ?? '')?.[1] ?? '';
  execFileSync('sh', ['-c', command]);
  expect(await readExtraAuthorities([`${file}.pem`], { now, warn: () => {} })).toEqual([one]);
});
