// Files of a sandbox as one of its users sees them: over the SDK's files, and by small programs of the sandbox for what those cannot do.
import { posix } from 'node:path';
import { type FileInfo, SandboxError } from '../../../../sdk/src/index.ts';
import { factsOf, type GuestUser, type UserFacts } from '../guest-user.ts';
import { type Attributes, type Entry, Refused, status } from './protocol.ts';

const accountsBytesMax = 1024 * 1024;

/** New files and folders are for their user to change and for all to read, whatever a client asks. */
const umask = 0o022;

interface Accounts {
  users: Map<string, number>;
  groups: Map<string, number>;
}

export class GuestFiles {
  readonly #guest: GuestUser;
  readonly #facts: UserFacts;
  #accounts: Promise<Accounts> | undefined;

  private constructor(guest: GuestUser, facts: UserFacts) {
    this.#guest = guest;
    this.#facts = facts;
  }

  static async of(guest: GuestUser): Promise<GuestFiles> {
    return new GuestFiles(guest, await factsOf(guest));
  }

  get #files() {
    return this.#guest.sandbox.files;
  }

  get #owner() {
    return { owner: String(this.#facts.uid), group: String(this.#facts.gid) };
  }

  /** A path as the client means it: relative ones begin where commands begin. */
  absolute(path: string): string {
    if (path.includes('\0')) throw new Refused(status.noSuchFile, 'a path cannot hold NUL');
    return posix.resolve(this.#facts.folder, path);
  }

  /** Where a path leads when all links are followed; the last part need not exist. */
  async realPath(path: string): Promise<string> {
    const found = await this.#run(['readlink', '-f', '--', path]);
    const real = found.exitCode === 0 ? found.stdout.replace(/\n$/, '') : '';
    return real.startsWith('/') ? real : path;
  }

  async lstat(path: string): Promise<Entry> {
    return await this.#entry(await this.#files.stat(path));
  }

  async stat(path: string): Promise<Entry> {
    const found = await this.#files.stat(path);
    if (found.type !== 'symlink') return await this.#entry(found);
    return await this.#entry(await this.#files.stat(await this.realPath(path)));
  }

  async statIfThere(path: string): Promise<Entry | undefined> {
    return await this.lstat(path).catch((error: unknown) => {
      if (error instanceof SandboxError && error.code === 'not-found') return undefined;
      throw error;
    });
  }

  async list(path: string): Promise<Entry[]> {
    const found = await this.#files.stat(path);
    const folder = found.type === 'symlink' ? await this.realPath(path) : path;
    const entries = await this.#files.list(folder);
    return await Promise.all(entries.map((it) => this.#entry(it)));
  }

  read(path: string, start: number): Promise<ReadableStream<Uint8Array>> {
    return this.#files.read(path, { as: 'stream', ...(start === 0 ? {} : { range: { start } }) });
  }

  /** An empty file. The folder has to be there, unlike where the SDK writes. */
  async create(path: string, mode = 0o666): Promise<void> {
    await this.#parentOf(path);
    await this.#files.write(path, '', { mode: mode & ~umask, ...this.#owner });
  }

  /** Of a file that is there: its mode and owner stay. */
  async replace(path: string, content: AsyncIterable<Uint8Array>): Promise<void> {
    await this.#files.write(path, content);
  }

  async change(path: string, attributes: Attributes): Promise<void> {
    const { size, uid, gid, mode, accessedAt, modifiedAt } = attributes;
    const target = (await this.lstat(path)).type === 'symlink' ? await this.realPath(path) : path;
    if (size !== undefined) await this.#must(['truncate', '-s', String(size), '--', target]);
    // Clients send both numbers although they change one; and only root may change them at all.
    const { uid: oldUid, gid: oldGid } = uid === undefined ? { uid, gid } : await this.lstat(target);
    const change = {
      ...(mode === undefined ? {} : { mode }),
      ...(uid === oldUid ? {} : { owner: String(uid) }),
      ...(gid === oldGid ? {} : { group: String(gid) }),
    };
    if (Object.keys(change).length > 0) await this.#files.chmod(target, change);
    if (modifiedAt !== undefined)
      await this.#must(['touch', '-c', '-m', '-d', `@${modifiedAt}`, '--', target]);
    if (accessedAt !== undefined)
      await this.#must(['touch', '-c', '-a', '-d', `@${accessedAt}`, '--', target]);
  }

  async mkdir(path: string, mode = 0o777): Promise<void> {
    if (await this.statIfThere(path)) throw new Refused(status.failure, `${path} exists`);
    await this.#parentOf(path);
    await this.#files.mkdir(path, { mode: mode & ~umask, ...this.#owner });
  }

  async rmdir(path: string): Promise<void> {
    if ((await this.lstat(path)).type !== 'directory')
      throw new Refused(status.failure, `${path} is not a folder`);
    await this.#must(['rmdir', '--', path]);
  }

  async remove(path: string): Promise<void> {
    if ((await this.lstat(path)).type === 'directory')
      throw new Refused(status.failure, `${path} is a folder`);
    await this.#files.remove(path);
  }

  /** Refuses where something is at `to`. */
  async rename(from: string, to: string): Promise<void> {
    await this.#parentOf(to);
    await this.#files.move(from, to);
  }

  /** In place of what is at `to`, at once. */
  async replaceByRename(from: string, to: string): Promise<void> {
    await this.lstat(from);
    await this.#parentOf(to);
    await this.#must(['mv', '-fT', '--', from, to]);
  }

  async readlink(path: string): Promise<string> {
    if ((await this.lstat(path)).type !== 'symlink')
      throw new Refused(status.failure, `${path} is not a link`);
    return (await this.#must(['readlink', '--', path])).replace(/\n$/, '');
  }

  async symlink(target: string, path: string): Promise<void> {
    if (await this.statIfThere(path)) throw new Refused(status.failure, `${path} exists`);
    await this.#parentOf(path);
    await this.#must(['ln', '-s', '--', target, path]);
  }

  async #parentOf(path: string): Promise<void> {
    const parent = posix.dirname(path);
    if ((await this.stat(parent)).type !== 'directory')
      throw new Refused(status.noSuchFile, `${parent} is not a folder`);
  }

  async #entry(info: FileInfo): Promise<Entry> {
    const [uid, gid] = [Number(info.owner), Number(info.group)];
    if (Number.isInteger(uid) && Number.isInteger(gid)) return { ...info, uid, gid };
    this.#accounts ??= this.#readAccounts();
    const { users, groups } = await this.#accounts;
    return {
      ...info,
      uid: Number.isInteger(uid) ? uid : (users.get(info.owner) ?? 0),
      gid: Number.isInteger(gid) ? gid : (groups.get(info.group) ?? 0),
    };
  }

  async #readAccounts(): Promise<Accounts> {
    const numbersIn = async (path: string): Promise<Map<string, number>> => {
      const range = { start: 0, end: accountsBytesMax };
      const text = await this.#files.read(path, { range }).catch(() => '');
      const lines = text.split('\n').map((line) => line.split(':'));
      return new Map(lines.map(([name = '', , number = '']) => [name, Number.parseInt(number, 10) || 0]));
    };
    const [users, groups] = await Promise.all([numbersIn('/etc/passwd'), numbersIn('/etc/group')]);
    return { users, groups };
  }

  async #run(command: string[]) {
    const { user, sandbox } = this.#guest;
    return await sandbox.run(command, {
      ...{ cwd: '/', env: { LC_ALL: 'C' }, outputBytesMax: 65_536 },
      ...(user === undefined ? {} : { user }),
    });
  }

  /** Throws Refused with what the program said. */
  async #must(command: string[]): Promise<string> {
    const { exitCode, stdout, stderr } = await this.#run(command);
    if (exitCode === 0) return stdout;
    const code = /permission denied|not permitted/i.test(stderr)
      ? status.permissionDenied
      : /no such file/i.test(stderr)
        ? status.noSuchFile
        : status.failure;
    throw new Refused(code, stderr.trim().slice(0, 500) || `${command[0]} exited with ${exitCode}`);
  }
}
