// What package managers fetch, for an origin of the lab to serve: one package each for npm, pip and apt, and one repository for git. Made with the
// usual tools of the host, so that what clients check (digests, sizes, formats) is real.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import type { LabRequest, LabResponse } from './lab.ts';

export interface Registries {
  /** Answers the request if it is for something of these. */
  answer(request: LabRequest, response: LabResponse): boolean;
}

/** Everything that the packages say when they are used. */
export const greeting = 'fetched through the way out';

/** `base`: where it will be served, such as `https://good.test`. */
export function makeRegistries(folder: string, base: string): Registries {
  const files = new Map<string, Buffer>([
    ...npmRegistry(join(folder, 'npm'), base),
    ...pipIndex(join(folder, 'pip')),
    ...aptRepository(join(folder, 'apt')),
    ...gitRepository(join(folder, 'git')),
  ]);
  return {
    answer({ url = '' }, response) {
      const path = new URL(url, base).pathname;
      const body = files.get(path);
      if (body === undefined && !/^\/(npm|simple|files|apt|git)\//.test(path)) return false;
      if (body === undefined) {
        response.statusCode = 404;
        response.end();
        return true;
      }
      response.setHeader('content-type', typeOf(path));
      response.setHeader('content-length', body.length);
      response.end(body);
      return true;
    },
  };
}

type Files = [path: string, body: Buffer][];

function typeOf(path: string): string {
  if (path.startsWith('/simple/')) return 'text/html';
  return path === '/npm/lab-package' ? 'application/json' : 'application/octet-stream';
}

function npmRegistry(folder: string, base: string): Files {
  const manifest = { name: 'lab-package', version: '1.0.0', main: 'index.js' };
  write(join(folder, 'package/package.json'), JSON.stringify(manifest));
  write(join(folder, 'package/index.js'), `module.exports = ${JSON.stringify(greeting)};\n`);
  execFileSync('tar', ['-C', folder, '-czf', join(folder, 'package.tgz'), 'package']);
  const tarball = readFileSync(join(folder, 'package.tgz'));
  const dist = {
    tarball: `${base}/npm/lab-package-1.0.0.tgz`,
    integrity: `sha512-${createHash('sha512').update(tarball).digest('base64')}`,
  };
  const about = {
    name: manifest.name,
    'dist-tags': { latest: manifest.version },
    versions: { [manifest.version]: { ...manifest, dist } },
  };
  return [
    ['/npm/lab-package', Buffer.from(JSON.stringify(about))],
    ['/npm/lab-package-1.0.0.tgz', tarball],
  ];
}

function pipIndex(folder: string): Files {
  const wheel = 'lab_wheel-1.0-py3-none-any.whl';
  const info = 'lab_wheel-1.0.dist-info';
  write(join(folder, 'lab_wheel.py'), `greeting = ${JSON.stringify(greeting)}\n`);
  write(join(folder, info, 'METADATA'), 'Metadata-Version: 2.1\nName: lab-wheel\nVersion: 1.0\n');
  write(
    join(folder, info, 'WHEEL'),
    'Wheel-Version: 1.0\nGenerator: lab\nRoot-Is-Purelib: true\nTag: py3-none-any\n',
  );
  const members = ['lab_wheel.py', `${info}/METADATA`, `${info}/WHEEL`];
  write(join(folder, info, 'RECORD'), [...members, `${info}/RECORD`].map((it) => `${it},,\n`).join(''));
  execFileSync('python3', ['-m', 'zipfile', '-c', wheel, 'lab_wheel.py', info], { cwd: folder });
  const body = readFileSync(join(folder, wheel));
  const digest = createHash('sha256').update(body).digest('hex');
  const page = `<!DOCTYPE html><html><body><a href="/files/${wheel}#sha256=${digest}">${wheel}</a></body></html>`;
  return [
    ['/simple/lab-wheel/', Buffer.from(page)],
    [`/files/${wheel}`, body],
  ];
}

function aptRepository(folder: string): Files {
  const about = [
    'Package: lab-deb',
    'Version: 1.0',
    'Architecture: all',
    'Maintainer: Lab <lab@good.test>',
    'Description: says one line',
    '',
  ].join('\n');
  write(join(folder, 'lab-deb/DEBIAN/control'), about);
  write(join(folder, 'lab-deb/usr/bin/lab-deb'), `#!/bin/sh\necho ${greeting}\n`, 0o755);
  execFileSync('dpkg-deb', ['--root-owner-group', '--build', 'lab-deb', 'lab.deb'], {
    cwd: folder,
    stdio: 'ignore',
  });
  const body = readFileSync(join(folder, 'lab.deb'));
  const digest = createHash('sha256').update(body).digest('hex');
  const packages = Buffer.from(`${about}Filename: ./lab.deb\nSize: ${body.length}\nSHA256: ${digest}\n\n`);
  const release = [
    'Origin: lab',
    'Codename: lab',
    `Date: ${new Date().toUTCString()}`,
    'SHA256:',
    ` ${createHash('sha256').update(packages).digest('hex')} ${packages.length} Packages`,
    '',
  ].join('\n');
  return [
    ['/apt/Release', Buffer.from(release)],
    ['/apt/Packages', packages],
    ['/apt/lab.deb', body],
  ];
}

/** In the form that any web server can serve. */
function gitRepository(folder: string): Files {
  mkdirSync(folder, { recursive: true });
  const git = (...args: string[]) => execFileSync('git', ['-C', folder, ...args], { stdio: 'ignore' });
  git('init', '-q', '-b', 'main', 'work');
  write(join(folder, 'work/README'), `${greeting}\n`);
  const who = ['-c', 'user.name=Lab', '-c', 'user.email=lab@good.test', '-c', 'commit.gpgsign=false'];
  git('-C', 'work', 'add', 'README');
  git('-C', 'work', ...who, 'commit', '-q', '-m', 'a readme');
  git('clone', '-q', '--bare', 'work', 'lab.git');
  git('-C', 'lab.git', 'update-server-info');
  const root = join(folder, 'lab.git');
  return readdirSync(root, { recursive: true, withFileTypes: true })
    .filter((it) => it.isFile())
    .map((it) => join(it.parentPath, it.name))
    .map((path) => [`/git/lab.git/${relative(root, path)}`, readFileSync(path)]);
}

function write(path: string, content: string, mode = 0o644): void {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, content, { mode });
}
