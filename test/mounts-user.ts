// Mounts with owners, overlays and hidden files as an ordinary user gets them. Run by a test as a process of its own, as such a user:
//   node mounts-user.ts <folder>
// Prints what it has seen as JSON, and fails if anything is left.
import {
  cpSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { ensureAgentBundle } from '../src/agent/bundle.ts';
import { removeTree } from '../src/image/trees.ts';
import { BubblewrapHome, soon } from './bubblewrap.ts';

const home = new BubblewrapHome(process.argv[2]);
const bundle = await ensureAgentBundle();
// The first process is the home's shell, and the helper is the product's.
for (const name of readdirSync(bundle).filter((it) => it !== 'bun'))
  cpSync(join(bundle, name), join(home.folder, 'agent', name), { recursive: true });
symlinkSync(join(bundle, 'bun'), join(home.folder, 'agent/bun'));

const project = join(home.folder, 'project');
const upper = join(home.folder, 'layers/upper');
const work = join(home.folder, 'layers/work');
for (const path of [join(project, 'sub'), upper, work]) mkdirSync(path, { recursive: true });
for (const name of ['.env', 'sub/key.pem', 'file', 'deleted']) writeFileSync(join(project, name), name);
symlinkSync('sub/key.pem', join(project, 'link'));

const runtime = home.open();
const owner = { uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0 };
const common = { hostPath: project, readOnly: false, owner, hidden: ['.env', 'link'] };
const seen = await home.run(runtime, {
  image: home.image('busybox'),
  mounts: [
    { ...common, guestPath: '/work/plain' },
    { ...common, guestPath: '/work/overlay', overlay: { upper, work } },
    { hostPath: project, guestPath: '/work/readable', readOnly: true, owner },
  ],
  job: [
    'stat -c %u /work/plain/file',
    'cat /work/plain/.env /work/plain/link /work/plain/sub/key.pem',
    'echo new >/work/plain/new; ls -A /work/overlay',
    'cd /work/overlay && rm deleted && echo own >.env && cat .env',
    'cat /work/readable/file; echo; ( : >/work/readable/file ) 2>/dev/null || echo refused',
  ].join('\n'),
});
const stranger = await runtime
  .create(
    home.spec({
      mounts: [{ ...common, owner: { uid: owner.uid + 1, gid: owner.gid }, guestPath: '/work/plain' }],
    }),
    soon(),
  )
  .catch((it) => it.code);

const whiteout = lstatSync(join(upper, 'deleted'));
const result = {
  capabilities: runtime.capabilities.mounts,
  seen,
  stranger,
  newOwner: statSync(join(project, 'new')).uid - owner.uid,
  host: ['.env', 'deleted'].map((name) => readFileSync(join(project, name), 'utf8')),
  upper: readdirSync(upper).sort(),
  whiteout: [whiteout.isCharacterDevice(), whiteout.rdev],
};
runtime[Symbol.dispose]();
// The kernel leaves a folder in there that is closed to all.
await removeTree(join(home.folder, 'layers'), soon());
await home.close();
console.log(JSON.stringify(result));
