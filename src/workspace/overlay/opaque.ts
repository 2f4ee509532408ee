// Which folders of an upper layer are opaque: nothing of the host's folder of the same name shows through them.
import { spawn } from 'node:child_process';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { Failure } from '../../lib/failure.ts';

const program = join(import.meta.dirname, 'opaque.bun.ts');
const packages: Partial<Record<NodeJS.Architecture, string>> = {
  x64: '@oven/bun-linux-x64-baseline',
  arm64: '@oven/bun-linux-aarch64',
};
const pathsAtOnce = 20_000;

/** A root's overlays are marked where only root can; those of ordinary users where the guest's root can. */
const attribute = () => (process.getuid?.() === 0 ? 'trusted.overlay.opaque' : 'user.overlay.opaque');

/** One answer for each path, which are those of the host. A path that is swapped for another meanwhile gets the answer of that one. */
export async function areOpaque(paths: readonly Buffer[], signal: AbortSignal): Promise<boolean[]> {
  const answers: boolean[] = [];
  for (let from = 0; from < paths.length; from += pathsAtOnce)
    answers.push(...(await ask(paths.slice(from, from + pathsAtOnce), signal)));
  return answers;
}

async function ask(paths: readonly Buffer[], signal: AbortSignal): Promise<boolean[]> {
  const child = spawn(bunPath(), ['--no-env-file', `--config=/dev/null`, program], {
    ...{ cwd: '/', env: {}, stdio: ['pipe', 'pipe', 'pipe'], signal },
  });
  const nul = Buffer.of(0);
  const input = Buffer.concat([Buffer.from(attribute()), nul, ...paths.flatMap((it) => [it, nul])]);
  const failed = (what: string, cause?: unknown) =>
    new Failure('internal', `look at the marks of an upper layer: ${what}`, { cause });
  return await new Promise((resolve, reject) => {
    let output = '';
    let errors = '';
    child.stdout.on('data', (bytes: Buffer) => {
      output += bytes.toString('latin1');
    });
    child.stderr.on('data', (bytes: Buffer) => {
      errors = (errors + bytes.toString()).slice(0, 1000);
    });
    child.on('error', (error) => reject(signal.aborted ? signal.reason : failed(error.message, error)));
    child.on('close', (code) => {
      if (code === 0 && output.length === paths.length) resolve([...output].map((it) => it === '1'));
      else reject(failed(errors.trim() || `it ended with ${code}`));
    });
    child.stdin.on('error', () => {});
    child.stdin.end(input);
  });
}

function bunPath(): string {
  const name = packages[process.arch];
  if (name === undefined)
    throw new Failure('unsupported', `there are no overlays on ${process.arch}; x64 and arm64 have them`);
  try {
    return join(dirname(createRequire(import.meta.url).resolve(`${name}/package.json`)), 'bin/bun');
  } catch (cause) {
    throw new Failure('unavailable', `the package ${name} is not installed`, {
      ...{ cause, hint: 'Run npm ci; optional packages must not be left out.' },
    });
  }
}
