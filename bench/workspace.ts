// A repository of 50,000 files in a sandbox: `git status` and a build, over a plain mount and over an overlay, beside the same on the host; and what a
// large workspace adds to the making of a sandbox.
import { execFile } from 'node:child_process';
import { mkdir, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { WorkspaceMode } from '../src/contract/workspace.ts';
import type { SandboxService } from '../src/sandbox/sandbox.ts';
import { type Figure, figure, inTurns, timed } from './measure.ts';
import { createRequest } from './start.ts';

const run = promisify(execFile);
const filesPerFolder = 100;
const signal = () => AbortSignal.timeout(300_000);

/** Reads every source and writes one object for each hundredth of them, as a compiler would. */
const buildScript = `
mkdir -p build && find src -name '*.c' | sort | split -l 500 - build/list. &&
for list in build/list.*; do xargs cat <"$list" | cksum >"$list.o"; done && cat build/*.o | cksum >build/program`;

async function makeRepository(folder: string, files: number): Promise<void> {
  for (let index = 0; index < files / filesPerFolder; index++) {
    const inside = join(folder, 'src', String(index % 25), String(index));
    await mkdir(inside, { recursive: true });
    const names = Array.from({ length: filesPerFolder }, (_, number) => join(inside, `file-${number}.c`));
    await Promise.all(names.map((path) => writeFile(path, `int f(void) { return ${index}; } // ${path}\n`)));
  }
  const git = (...args: string[]) => run('git', ['-C', folder, ...args], { maxBuffer: 64 * 1024 * 1024 });
  await git('init', '--quiet');
  await git('add', '--all');
  await git('-c', 'user.name=bench', '-c', 'user.email=bench@example.com', 'commit', '--quiet', '-m', 'all');
  await git('status', '--porcelain');
}

/** Makes a sandbox with the folder, and hands over how commands run in it. */
async function withWorkspace<T>(
  service: SandboxService,
  path: string | undefined,
  mode: WorkspaceMode,
  use: (inside: (script: string) => Promise<void>) => Promise<T>,
): Promise<T> {
  const workspaces = path === undefined ? [] : [{ path, mode, readOnly: false }];
  const request = { ...createRequest, runtime: 'bubblewrap', image: 'host', workspaces, byOwner: true };
  const { id } = await service.create(request, signal());
  try {
    return await use(async (script) => {
      const execution = await service
        .executions(id)
        .start({ shell: script, cwd: path ?? '/', stdin: 'none' });
      const { code } = await execution.exit;
      if (code !== 0) throw new Error(`${script.slice(0, 40)}… ended with ${code} over ${mode}`);
    });
  } finally {
    await service.remove(id, signal());
  }
}

export async function workspaceFigures(
  service: SandboxService,
  options: { folder: string; files: number; runs: number },
): Promise<Figure[]> {
  const { folder, files, runs } = options;
  const repository = join(folder, 'repository');
  await makeRepository(repository, files);
  const figures: Figure[] = [];
  await withWorkspace(service, repository, 'mount', (mounted) =>
    withWorkspace(service, repository, 'overlay', async (overlaid) => {
      const works = {
        'git status': 'git status --porcelain',
        'a build': `${buildScript} && rm -rf build`,
      };
      for (const [name, script] of Object.entries(works)) {
        const values = await inTurns(runs, {
          host: () => timed(() => run('sh', ['-c', script], { cwd: repository })),
          mount: () => timed(() => mounted(script)),
          overlay: () => timed(() => overlaid(script)),
        });
        const floor = { name: 'on the host', values: values.host };
        figures.push(figure(`${name}, ${files} files, mount`, 'ms', values.mount, { floor }));
        figures.push(figure(`${name}, ${files} files, overlay`, 'ms', values.overlay, { floor }));
      }
    }),
  );
  const empty = join(folder, 'empty');
  const large = join(folder, 'large');
  for (const path of [empty, large]) await mkdir(path);
  await writeFile(join(large, 'data'), '');
  await truncate(join(large, 'data'), 2 * 1024 ** 3);
  const made = (path: string, mode: WorkspaceMode) =>
    timed(() => withWorkspace(service, path, mode, async () => undefined));
  for (const mode of ['mount', 'overlay'] as const) {
    const values = await inTurns(runs * 3, {
      empty: () => made(empty, mode),
      large: () => made(large, mode),
    });
    figures.push(
      figure(`create and remove with 2 GiB, ${mode}`, 'ms', values.large, {
        floor: { name: 'with an empty folder', values: values.empty },
        target: { text: '<= 1.1x', holds: ({ ratio }) => ratio <= 1.1 },
      }),
    );
  }
  return figures;
}
