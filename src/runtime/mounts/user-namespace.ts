// User namespaces that nobody lives in: the kernel takes their maps to show the owners of files as others.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { openSync, writeFileSync } from 'node:fs';
import { Failure } from '../../lib/failure.ts';
import type { Ids } from './trees.ts';

export class IdMaps implements AsyncDisposable {
  readonly #open = new Map<string, Promise<number>>();
  readonly #children: ChildProcess[] = [];

  /** A namespace in which `disk` on a file system is `guest` for who looks through it, and every other id is nobody. */
  open(owners: { disk: Ids; guest: Ids }): Promise<number> {
    const key = JSON.stringify(owners);
    const known = this.#open.get(key);
    if (known !== undefined) return known;
    const made = this.#make(owners);
    this.#open.set(key, made);
    return made;
  }

  /** The namespaces stay as long as their descriptors. */
  async [Symbol.asyncDispose](): Promise<void> {
    for (const child of this.#children) {
      if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) continue;
      const ended = once(child, 'exit');
      child.kill('SIGKILL');
      await ended;
    }
  }

  async #make({ disk, guest }: { disk: Ids; guest: Ids }): Promise<number> {
    const child = spawn('unshare', ['--user', 'cat'], { stdio: ['pipe', 'pipe', 'inherit'] });
    this.#children.push(child);
    const failed = once(child, 'exit').then(([code]) => {
      throw new Failure('unavailable', `make a user namespace: unshare ended with ${code}`, {
        hint: 'Install util-linux, and look at the sysctl user.max_user_namespaces.',
      });
    });
    failed.catch(() => {});
    // What answers is past the making of the namespace.
    child.stdin.write('.');
    await Promise.race([once(child.stdout, 'data'), failed]);
    writeFileSync(`/proc/${child.pid}/uid_map`, `${disk.uid} ${guest.uid} 1\n`);
    writeFileSync(`/proc/${child.pid}/gid_map`, `${disk.gid} ${guest.gid} 1\n`);
    return openSync(`/proc/${child.pid}/ns/user`, 'r');
  }
}
