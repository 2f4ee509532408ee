// glovebox fetch: git fetches from the sandbox's clone, whose end of the conversation runs inside the sandbox. Git here never sees the clone itself.
import { execFile, spawn } from 'node:child_process';
import { statSync } from 'node:fs';
import type { Duplex, Readable, Writable } from 'node:stream';
import { promisify } from 'node:util';
import { CommandNotFoundError, type Sandbox } from '../../../sdk/src/index.ts';
import { connect } from '../connect.ts';
import { CliError } from '../exit-codes.ts';
import { clean, cleanLine, print, printJson } from '../output.ts';

interface Branch {
  branch: string;
  commit: string;
  subject: string;
}

/** Git starts this as the other end: it hands the conversation on to us. */
const relay = `sh -c 'cat <&3 4>&- & exec cat >&4 3<&-' glovebox`;

export async function fetch(reference: string, options: { json?: boolean }): Promise<void> {
  const sandbox = await (await connect()).connect(reference);
  const { workspaces } = sandbox;
  const clones = (await workspaces.list()).filter((it) => it.mode === 'clone');
  if (clones.length === 0)
    throw new CliError(`'${reference}' has no clone to fetch from`, {
      hint: 'Clones are made by `glovebox run --clone`; of other workspaces see `glovebox diff`.',
    });
  await sandbox.wake();
  const all: (Branch & { repository: string })[] = [];
  for (const { path, remote } of clones) {
    if (remote === undefined) continue;
    const git = new Repository(path);
    const root = (await git.ask('config', '--get', `remote.${remote}.url`)).trim();
    await git.fetch(sandbox, remote, root);
    const format = '--format=%(refname:short)%00%(objectname:short)%00%(contents:subject)';
    const listed = await git.ask('for-each-ref', format, `refs/remotes/${remote}/`);
    for (const line of listed.split('\n').filter((it) => it !== '')) {
      const [branch = '', commit = '', subject = ''] = line.split('\0');
      all.push({ branch, commit, subject, repository: root });
    }
  }
  if (options.json) return await printJson({ items: all });
  const width = Math.max(0, ...all.map((it) => it.branch.length));
  for (const { branch, commit, subject } of all)
    await print(cleanLine(`${branch.padEnd(width)}  ${commit}  ${subject}`));
}

/** The host's. Git runs as whom it belongs to, so that root leaves no files of its own in it. */
class Repository {
  readonly #path: string;
  readonly #as: { uid?: number; gid?: number };

  constructor(path: string) {
    this.#path = path;
    const owner = statSync(path, { throwIfNoEntry: false });
    if (owner === undefined)
      throw new CliError(`the repository ${path} is not on this machine`, {
        hint: 'Fetch where the daemon of the sandbox runs.',
      });
    const foreign = process.getuid?.() === 0 && owner.uid !== 0;
    this.#as = foreign ? { uid: owner.uid, gid: owner.gid } : {};
  }

  get #options() {
    const env = Object.entries(process.env).filter(([name]) => !name.startsWith('GIT_'));
    return { env: Object.fromEntries(env), cwd: '/', ...this.#as };
  }

  async ask(...args: string[]): Promise<string> {
    try {
      const { stdout } = await promisify(execFile)('git', ['-C', this.#path, ...args], {
        ...this.#options,
        maxBuffer: 64 * 1024 * 1024,
      });
      return stdout;
    } catch (cause) {
      throw failed(cause, `git ${args[0]} in ${this.#path} failed`);
    }
  }

  async fetch(sandbox: Sandbox, remote: string, root: string): Promise<void> {
    let inside: Awaited<ReturnType<Sandbox['start']>>;
    try {
      inside = await sandbox.start(['git-upload-pack', root], { stdin: true });
    } catch (error) {
      if (!(error instanceof CommandNotFoundError)) throw error;
      throw new CliError('there is no git in the sandbox', {
        cause: error,
        hint: `Install it there, e.g. \`glovebox exec -u root ${sandbox.id.slice(0, 12)} apt-get install -y git\`.`,
      });
    }
    await using undo = new AsyncDisposableStack();
    undo.use(inside);
    const fetching = ['-c', 'fetch.fsckObjects=true', 'fetch', '--no-recurse-submodules'];
    const args = ['-C', this.#path, ...fetching, '--upload-pack', relay, remote];
    const git = spawn('git', args, {
      ...this.#options,
      stdio: ['ignore', 'ignore', 'pipe', 'pipe', 'pipe'],
    });
    const said = tellCleaned(git.stderr as Readable);
    undo.defer(() => void git.kill());
    const [toGit, fromGit] = [git.stdio[3] as Duplex as Writable, git.stdio[4] as Readable];
    // Git ends when it has what it wants, whatever is still on the way.
    toGit.on('error', () => {});
    fromGit.on('error', () => {});
    const ended = new Promise<number | null>((resolve, reject) => {
      git.once('error', (cause) => reject(failed(cause, 'git did not start')));
      git.once('exit', resolve);
    });
    ended.catch(() => {});
    const output = async () => {
      for await (const event of inside) {
        if (event.type === 'stderr')
          process.stderr.write(`sandbox: ${cleanLine(Buffer.from(event.bytes).toString().trimEnd())}\n`);
        if (event.type !== 'stdout' || toGit.destroyed) continue;
        if (!toGit.write(event.bytes))
          await Promise.race([new Promise((it) => toGit.once('drain', it)), ended]);
      }
      toGit.end();
    };
    const input = async () => {
      for await (const bytes of fromGit as AsyncIterable<Buffer>) await inside.write(bytes);
      await inside.end();
    };
    const relayed = Promise.allSettled([output(), input()]);
    const code = await ended;
    await said;
    await inside.end().catch(() => {});
    if (code === 0) return void (await relayed);
    throw new CliError(`git could not fetch from ${remote}`, {
      hint: 'What git says is above. `glovebox exec` in the sandbox tells whether the clone is whole: git fsck.',
    });
  }
}

/** Git passes on what the other end says as it is, for the terminal to obey. */
async function tellCleaned(stderr: Readable): Promise<void> {
  for await (const text of stderr.setEncoding('utf8') as AsyncIterable<string>)
    process.stderr.write(clean(text.replaceAll('\r', '\n')));
}

function failed(cause: unknown, what: string): CliError {
  const { code, stderr, message } = cause as NodeJS.ErrnoException & { stderr?: string };
  if (code === 'ENOENT') return new CliError('git is not installed here', { cause, hint: 'Install git.' });
  return new CliError(`${what}: ${cleanLine(stderr?.trim() || message)}`, { cause });
}
