// The arrows of ARCHITECTURE.md: which folder may import which. A new arrow needs a decision record.
import { globSync, readFileSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';
import { expect, test } from 'vitest';

const root = join(import.meta.dirname, '..');

/** For each folder of src/, what it may import besides itself. */
const arrows: Record<string, string[]> = {
  lib: [],
  contract: ['lib'],
  channel: ['contract', 'lib'],
  store: ['contract', 'lib'],
  policy: ['contract', 'lib'],
  journal: ['contract', 'lib'],
  vault: ['contract', 'lib'],
  // What every guest gets holds the bell's client.
  agent: ['channel', 'bell', 'contract', 'lib'],
  guest: ['channel', 'contract', 'lib'],
  // A driver names the agent's command line; the memory runtime runs the agent in this process.
  runtime: ['agent', 'channel', 'contract', 'lib', 'image'],
  image: ['contract', 'lib', 'runtime'],
  // Archives come from anywhere, so the reader of hostile ones reads them.
  backup: ['image', 'journal', 'contract', 'lib'],
  bell: ['policy', 'journal', 'contract', 'lib'],
  sandbox: ['guest', 'runtime', 'channel', 'store', 'contract', 'lib'],
  worker: ['sandbox', 'guest', 'runtime', 'store', 'channel', 'contract', 'lib'],
  workspace: ['sandbox', 'guest', 'runtime', 'contract', 'lib'],
  agents: ['sandbox', 'runtime', 'contract', 'lib'],
  ingress: ['sandbox', 'guest', 'contract', 'lib'],
  // A build's context is read by the reader of hostile archives.
  template: ['sandbox', 'guest', 'runtime', 'image', 'contract', 'lib'],
  snapshot: ['sandbox', 'runtime', 'store', 'contract', 'lib'],
  code: ['sandbox', 'contract', 'lib'],
  pool: ['sandbox', 'store', 'contract', 'lib'],
  dockergate: ['sandbox', 'runtime', 'contract', 'lib'],
  egress: ['sandbox', 'guest', 'store', 'policy', 'journal', 'vault', 'contract', 'lib'],
  // The types of what it serves; the objects are handed in.
  api: [
    ...['egress', 'policy', 'journal', 'vault', 'workspace', 'agents', 'ingress', 'template', 'dockergate'],
    ...['code', 'snapshot'],
    ...['sandbox', 'guest', 'runtime', 'contract', 'lib'],
  ],
  // A controller inside a program, without the daemon's doors; what a duration is, is the SDK's.
  embed: ['worker', 'sandbox', 'store', 'channel', 'contract', 'lib', 'sdk'],
  // A project's agents are read and approved where the person is; the bell's client is given away.
  // A worker's own home, and why its link has ended, are what its command line tells.
  cli: ['agents', 'bell', 'worker', 'channel', 'contract', 'lib', 'sdk', 'daemon'],
  daemon: [
    ...['workspace', 'agents', 'ingress', 'template', 'snapshot', 'dockergate', 'bell', 'worker', 'backup'],
    'pool',
    ...['api', 'egress', 'policy', 'journal', 'vault', 'sandbox', 'image', 'runtime', 'agent', 'store'],
    ...['guest', 'channel', 'contract', 'lib'],
  ],
};

const sources = globSync('src/**/*.ts', { cwd: root }).filter(
  (file) => !/\.(test|fixture)\.ts$/.test(file) && !file.includes('conformance'),
);

function importsOf(file: string): string[] {
  const text = readFileSync(join(root, file), 'utf8');
  return [...text.matchAll(/(?:from|import)\s*\(?\s*'(\.[^']+)'/g)].map((match) =>
    normalize(join(dirname(file), match[1] as string)),
  );
}

/** The folder of src/ that a path lies in, or the top folder outside src/. */
const folderOf = (path: string): string => path.split('/')[path.startsWith('src/') ? 1 : 0] as string;

test('imports go down only', () => {
  const wrong = sources.flatMap((file) => {
    const folder = folderOf(file);
    return importsOf(file)
      .filter((target) => folderOf(target) !== folder && !(arrows[folder] ?? []).includes(folderOf(target)))
      .map((target) => `${file} imports ${target}`);
  });
  expect(wrong).toEqual([]);
});

test('drivers do not know each other, and only daemon/ names them', () => {
  const drivers = /^src\/(runtime\/(bubblewrap|docker|memory|host)|store\/sqlite)\//;
  const wrong = sources.flatMap((file) =>
    importsOf(file)
      .filter(
        (target) =>
          drivers.test(target) && !file.startsWith(`${dirname(target)}/`) && folderOf(file) !== 'daemon',
      )
      .filter((target) => file.match(drivers)?.[1] !== target.match(drivers)?.[1])
      .map((target) => `${file} imports ${target}`),
  );
  expect(wrong).toEqual([]);
});

test('the environment of the process is read in daemon/config.ts and by the CLI only', () => {
  const allowed = /^src\/(daemon\/|cli\/|agent\/)/;
  const wrong = sources.filter(
    (file) => !allowed.test(file) && /process\.env\b/.test(readFileSync(join(root, file), 'utf8')),
  );
  expect(wrong).toEqual([]);
});

test('no module keeps state of its own', () => {
  const wrong = sources.filter((file) => /^(export )?let /m.test(readFileSync(join(root, file), 'utf8')));
  expect(wrong).toEqual([]);
});
