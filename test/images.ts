// Root file systems for tests, made from Debian packages and kept between runs: no registry is needed.
import { execFileSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';

/**
 * `scratch`: nothing but one static binary. `busybox`: a shell and its tools, no libc. `debian`: a Debian with glibc, bash, apt and Python, and the programs
 * with which the way out is tried. `jupyter`: a Debian with Jupyter's kernel of Python, and Node.js.
 */
export type TestImage = 'scratch' | 'busybox' | 'debian' | 'jupyter';

const cache = process.env.GLOVEBOX_TEST_CACHE ?? '/var/tmp/glovebox-test-images';
const busybox = '/bin/busybox';
const suite = 'bookworm';
/** Of what is made differently than before; what was kept of it is made anew. */
const versions: Record<TestImage, number> = { scratch: 1, busybox: 1, debian: 2, jupyter: 1 };
/** pip comes as a wheel, since its package brings much and compiles all of it. */
const debianPackages =
  'procps,ca-certificates,curl,git,libstdc++6,openssl,python3,python3-grpcio,python3-pip-whl,python3-requests,restic';

/** The image's root file system as a tar file. The first caller makes it; others of the same machine use what is there. */
export function rootfsTar(image: TestImage): string {
  const tar = join(cache, `${image}-${versions[image]}.tar`);
  if (existsSync(tar)) return tar;
  mkdirSync(cache, { recursive: true });
  const work = mkdtempSync(join(cache, `making-${image}-`));
  try {
    const root = join(work, 'root');
    mkdirSync(root);
    makers[image](root);
    execFileSync('tar', ['--numeric-owner', '-C', root, '-cf', join(work, 'image.tar'), '.']);
    renameSync(join(work, 'image.tar'), tar);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  return tar;
}

const makers: Record<TestImage, (root: string) => void> = {
  scratch(root) {
    cpSync(busybox, join(root, 'busybox'));
  },
  busybox(root) {
    for (const folder of ['bin', 'etc', 'tmp', 'root', 'proc', 'dev', 'sys']) mkdirSync(join(root, folder));
    cpSync(busybox, join(root, 'bin/busybox'));
    const applets = execFileSync(busybox, ['--list'], { encoding: 'utf8' }).trim().split('\n');
    for (const applet of applets) if (applet !== 'busybox') symlinkSync('busybox', join(root, 'bin', applet));
    execFileSync('sh', [
      '-c',
      `printf 'root:x:0:0:root:/root:/bin/sh\\nnobody:x:65534:65534:nobody:/:/bin/sh\\n' >"$1/etc/passwd"
       printf 'root:x:0:\\nnogroup:x:65534:\\n' >"$1/etc/group"; chmod 1777 "$1/tmp"`,
      'sh',
      root,
    ]);
  },
  debian: (root) => makeDebian(root, debianPackages),
  jupyter(root) {
    makeDebian(root, 'ca-certificates');
    // What it needs goes in circles, which debootstrap cannot untangle.
    const inside = (...command: string[]) =>
      execFileSync('chroot', [root, ...command], {
        stdio: ['ignore', 'ignore', 'inherit'],
        env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', DEBIAN_FRONTEND: 'noninteractive' },
      });
    inside('apt-get', 'update');
    inside('apt-get', 'install', '-y', '--no-install-recommends', 'python3-ipykernel', 'nodejs');
    inside('sh', '-c', 'rm -rf /var/cache/apt /var/lib/apt/lists');
  },
};

function makeDebian(root: string, packages: string): void {
  // None of it has to survive a crash while it is made, and nobody reads its documentation.
  mkdirSync(join(root, 'etc/dpkg/dpkg.cfg.d'), { recursive: true });
  const quick = [
    'force-unsafe-io',
    ...['doc', 'locale', 'man'].map((it) => `path-exclude=/usr/share/${it}/*`),
  ];
  writeFileSync(join(root, 'etc/dpkg/dpkg.cfg.d/quick'), `${quick.join('\n')}\n`);
  const args = ['--variant=minbase', `--include=${packages}`, suite, root];
  execFileSync('debootstrap', args, {
    stdio: ['ignore', 'ignore', 'inherit'],
    env: { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin`, DEBIAN_FRONTEND: 'noninteractive' },
  });
  rmSync(join(root, 'var/cache/apt'), { recursive: true, force: true });
  rmSync(join(root, 'var/lib/apt/lists'), { recursive: true, force: true });
}

/** The same as an image of the Docker engine; its reference. */
export function dockerImage(image: TestImage): string {
  const reference = `glovebox-test/${image}:${versions[image]}`;
  try {
    execFileSync('docker', ['image', 'inspect', reference], { stdio: 'ignore' });
  } catch {
    execFileSync('docker', ['import', '--change', 'ENV IMAGE_SAYS=hello', rootfsTar(image), reference], {
      stdio: 'ignore',
    });
  }
  return reference;
}
