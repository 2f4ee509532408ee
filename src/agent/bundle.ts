// Makes the folder that every sandbox gets at /.glovebox/agent, read-only: the agent as one file, the JavaScript runtime, its loader and libraries, and the
// bell's client.
// Nothing of an image is relied on, so it also runs in an empty one.
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { globSync } from 'node:fs';
import {
  access,
  constants,
  copyFile,
  link,
  mkdir,
  mkdtemp,
  readFile,
  realpath,
  rename,
  rm,
  writeFile,
} from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { clientScripts } from '../bell/client/guest-files.ts';
import { guestFolder } from '../contract/guest-wire.ts';
import { Failure } from '../lib/failure.ts';

const run = promisify(execFile);
const root = join(import.meta.dirname, '../..');
const agentPath = `${guestFolder}/agent`;
const bellClient = 'src/bell/client/client.cjs';
const runtimePackages: Partial<Record<NodeJS.Architecture, string>> = {
  x64: '@oven/bun-linux-x64-baseline',
  arm64: '@oven/bun-linux-aarch64',
};

/** The command line of the agent inside a guest. The loader is named, since the image may have none, or another. */
export function agentCommand(): string[] {
  return [
    `${agentPath}/ld.so`,
    '--library-path',
    `${agentPath}/lib`,
    `${agentPath}/bun`,
    // Else a bunfig.toml or .env in the image's root folder would be obeyed, with code to run first.
    `--config=${agentPath}/bunfig.toml`,
    '--no-env-file',
    `${agentPath}/agent.js`,
    `${guestFolder}/run`,
  ];
}

/** The command line of the program that makes mounts, on the host, with the agent's own runtime. */
export function mountsCommand(folder: string): string[] {
  return [
    ...[`${folder}/ld.so`, '--library-path', `${folder}/lib`, `${folder}/bun`],
    ...[`--config=${folder}/bunfig.toml`, '--no-env-file', `${folder}/mounts.js`],
  ];
}

/**
 * The agent as a process of the host itself, its run folder to be added to the command: on Bun, or where there is none for this platform on Node.js, from
 * the sources. `version` changes with whatever it is made of.
 */
export async function hostAgent(fallback?: string): Promise<HostAgent> {
  if (runtimePackages[process.arch] === undefined || process.platform !== 'linux') return nodeAgent();
  const folder = await ensureAgentBundle(fallback);
  const command = [
    ...[`${folder}/ld.so`, '--library-path', `${folder}/lib`, `${folder}/bun`],
    ...[`--config=${folder}/bunfig.toml`, '--no-env-file', `${folder}/agent.js`],
  ];
  return { command, environment: agentEnvironment(), version: basename(folder), users: 'all' };
}

export interface HostAgent {
  command: readonly string[];
  environment: Readonly<Record<string, string>>;
  version: string;
  /** Whether it can start commands as other users, where its own user may. */
  users: 'all' | 'single';
}

/** The same on Node.js. */
export async function nodeAgent(): Promise<HostAgent> {
  const hash = createHash('sha256').update(process.version);
  for (const path of agentSources()) hash.update(path).update(await readFile(join(root, path)));
  return {
    command: [process.execPath, join(root, 'src/agent/main-node.ts')],
    environment: { NODE_OPTIONS: '' },
    version: `node-${hash.digest('hex').slice(0, 16)}`,
    users: 'single',
  };
}

/** What the agent's own environment must hold, over whatever an image sets. Commands get the image's variables with each request. */
export function agentEnvironment(): Record<string, string> {
  return {
    LD_PRELOAD: '',
    LD_LIBRARY_PATH: '',
    LD_AUDIT: '',
    NODE_OPTIONS: '',
    BUN_OPTIONS: '',
    BUN_INSPECT: '',
    NODE_EXTRA_CA_CERTS: '',
    // The heap of an agent is collected as on a machine of this size, whatever the host has.
    BUN_JSC_forceRAMSize: String(256 * 1024 * 1024),
    // No threads of the engine: they would be started when needed, and a guest at its limit of processes lets none start, which ends the agent.
    BUN_JSC_numberOfGCMarkers: '1',
    BUN_JSC_useConcurrentGC: '0',
    BUN_JSC_useConcurrentJIT: '0',
    // Milliseconds. Given back and asked for again all the time, memory would cost more than the small messages that it is used for.
    MIMALLOC_PURGE_DELAY: '10000',
    MIMALLOC_PURGE_HOLES_MIN_INTERVAL: '10000',
  };
}

/**
 * The folder of the agent that belongs to these sources, made when it is not there yet: in the package, or in `fallback` where the package
 * cannot be written. Running sandboxes keep the folder they started with. Failure('unavailable') when the runtime is missing.
 */
export async function ensureAgentBundle(fallback?: string): Promise<string> {
  const bun = await runtimePath();
  const name = `agent-${await fingerprint(bun)}`;
  const places = [join(root, 'dist'), ...(fallback === undefined ? [] : [fallback])];
  for (const place of places) if (await exists(join(place, name, 'agent.js'))) return join(place, name);
  for (const place of places) {
    const made = await build(join(place, name), bun).catch((error: NodeJS.ErrnoException) => {
      if (place !== places.at(-1) && ['EACCES', 'EROFS', 'EPERM'].includes(error.code ?? ''))
        return undefined;
      throw Failure.from(error, `make the agent's folder in ${place}`);
    });
    if (made !== undefined) return made;
  }
  throw new Failure('unavailable', "there is no place for the agent's folder");
}

async function build(folder: string, bun: string): Promise<string> {
  await mkdir(dirname(folder), { recursive: true });
  const beside = await mkdtemp(`${folder}.making-`);
  try {
    await mkdir(join(beside, 'lib'), { mode: 0o755 });
    // One inode for all versions keeps the page cache and the disk small.
    await link(bun, join(beside, 'bun')).catch(() => copyFile(bun, join(beside, 'bun')));
    // For walls inside of a guest, whatever its image has. Without it there are none.
    const walls = await programPath('bwrap');
    if (walls !== undefined) await copyFile(walls, join(beside, 'bwrap'));
    for (const program of [bun, ...(walls === undefined ? [] : [walls])])
      for (const library of await librariesOf(program)) {
        const loader = basename(library).startsWith('ld-linux') || basename(library).startsWith('ld-musl');
        await copyFile(
          await realpath(library),
          join(beside, loader ? 'ld.so' : join('lib', basename(library))),
        );
      }
    await bundle(bun, { entry: 'agent/main', folder: beside, name: 'agent' });
    await bundle(bun, { entry: 'agent/work', folder: beside, name: 'work' });
    await bundle(bun, { entry: 'agent/key-socket', folder: beside, name: 'key-socket' });
    await bundle(bun, { entry: 'agent/enter-session', folder: beside, name: 'enter-session' });
    // The host's own: it has the same runtime, and must not need another.
    await bundle(bun, { entry: 'runtime/mounts/main', folder: beside, name: 'mounts' });
    await copyFile(join(root, bellClient), join(beside, 'bell.js'));
    await mkdir(join(beside, 'bin'));
    for (const [script, text] of Object.entries(clientScripts(agentPath)))
      await writeFile(join(beside, 'bin', script), text, { mode: 0o755 });
    await writeFile(join(beside, 'bunfig.toml'), '');
    // Bun looks for these from here upwards; what the image has must not be found.
    await writeFile(join(beside, 'package.json'), '{"type":"commonjs"}');
    await writeFile(join(beside, 'tsconfig.json'), '{}');
    await run('chmod', ['-R', 'a+rX', beside]);
    await rename(beside, folder).catch(async (error: NodeJS.ErrnoException) => {
      // Another process was quicker with the same content.
      if (error.code !== 'ENOTEMPTY' && error.code !== 'EEXIST') throw error;
    });
    return folder;
  } finally {
    await rm(beside, { recursive: true, force: true });
  }
}

/**
 * One file of the sources, and beside it the same compiled, which halves the time until it runs and is shared by all agents as part of the page
 * cache. `work.js` stays an import: it is a file of its own.
 */
async function bundle(bun: string, parts: { entry: string; folder: string; name: string }): Promise<void> {
  const { entry, folder, name } = parts;
  const source = join(root, 'src', `${entry}.ts`);
  const form = ['--target=bun', '--minify', '--format=cjs', '--bytecode', '--external=*/work.js'];
  await run(bun, ['build', source, ...form, `--outdir=${folder}`, `--entry-naming=${name}.js`]);
}

async function runtimePath(): Promise<string> {
  const name = runtimePackages[process.arch];
  if (name === undefined)
    throw new Failure('unsupported', `there is no agent for ${process.arch}; x64 and arm64 have one`);
  for (const modules of [join(root, 'node_modules'), join(root, '..'), join(root, '../..')]) {
    const path = join(modules, name, 'bin/bun');
    if (await exists(path)) return path;
  }
  throw new Failure('unavailable', `the package ${name} is not installed`, {
    hint: 'Run npm ci; optional packages must not be left out.',
  });
}

/** Changes with whatever goes into the folder. */
async function fingerprint(bun: string): Promise<string> {
  const hash = createHash('sha256').update(await readFile(join(dirname(bun), '../package.json')));
  const walls = await programPath('bwrap');
  if (walls !== undefined) hash.update(await readFile(walls));
  for (const path of [...agentSources(), bellClient].sort())
    hash.update(path).update(await readFile(join(root, path)));
  return hash.digest('hex').slice(0, 16);
}

function agentSources(): string[] {
  return globSync('src/{agent,channel,contract,lib,runtime/mounts,bell/client}/**/*.ts', { cwd: root })
    .filter((path) => !path.endsWith('.test.ts'))
    .sort();
}

/** Of this host. */
async function programPath(name: string): Promise<string | undefined> {
  for (const folder of ['/usr/local/bin', '/usr/bin', '/bin'])
    if (await exists(join(folder, name))) return await realpath(join(folder, name));
  return undefined;
}

async function librariesOf(binary: string): Promise<string[]> {
  const { stdout } = await run('ldd', [binary]);
  return [...stdout.matchAll(/(?:=>\s*)?(\/\S+)\s+\(0x/g)].map((match) => match[1] as string);
}

async function exists(path: string): Promise<boolean> {
  return access(path, constants.R_OK).then(
    () => true,
    () => false,
  );
}
