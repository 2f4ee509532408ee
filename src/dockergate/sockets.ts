// Unix sockets in our folders. A path of one may have 107 bytes; where a home folder's is longer, the socket is made through its folder's descriptor and handed
// out under a short one.
import { createHash } from 'node:crypto';
import { lstatSync, mkdirSync, readlinkSync, rmSync, symlinkSync } from 'node:fs';
import { chmod, open, rm } from 'node:fs/promises';
import type { Server } from 'node:http';
import { connect } from 'node:net';
import { basename, dirname, join } from 'node:path';
import { Failure } from '../lib/failure.ts';

export const socketPathBytesMax = 107;

export interface ListeningSocket {
  /** Ends connections, too. */
  close(): Promise<void>;
}

/** Listens at the path, in place of a socket that nobody listens at, open to nobody but the daemon's own user. Failure('conflict') where somebody does. */
export async function listenAt(server: Server, path: string): Promise<ListeningSocket> {
  // Kept open: Node removes the socket by this path when it is closed.
  const folder = await open(dirname(path), 'r');
  try {
    const short = `/proc/self/fd/${folder.fd}/${basename(path)}`;
    if (await isListening(short))
      throw new Failure('conflict', `listen at ${path}: another program listens there`, {
        hint: 'Stop it, or leave sandboxd.docker_path out.',
      });
    await rm(path, { force: true });
    await new Promise<void>((resolve, reject) => {
      server.once('error', (error) => reject(Failure.from(error, `listen at ${path}`)));
      server.listen(short, resolve);
    });
    await chmod(path, 0o600);
  } catch (error) {
    await folder.close();
    throw error;
  }
  // A connection that could not be accepted (no descriptors left) must not end the daemon.
  server.on('error', () => undefined);
  return {
    close: async () => {
      const closed = new Promise<void>((resolve) => void server.close(() => resolve()));
      server.closeAllConnections();
      await closed;
      await folder.close();
    },
  };
}

function isListening(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = connect(path);
    probe.once('connect', () => {
      probe.destroy();
      resolve(true);
    });
    probe.once('error', () => resolve(false));
  });
}

/**
 * A short name for a folder: a link in a folder of this user's alone. Other users may write to /tmp, so what is there already is looked at.
 * Failure('permission') where it is somebody else's.
 */
export function shortLink(folder: string, parent: string): { path: string; remove: () => void } {
  const doing = `make a short path in ${parent}`;
  try {
    mkdirSync(parent, { recursive: true, mode: 0o700 });
    const found = lstatSync(parent);
    if (!found.isDirectory() || found.uid !== process.getuid?.() || (found.mode & 0o077) !== 0)
      throw new Failure('permission', `${doing}: it is not a folder of this user’s alone`, {
        hint: 'Remove it, or choose a shorter GLOVEBOX_HOME.',
      });
    const path = join(parent, createHash('sha256').update(folder).digest('hex').slice(0, 12));
    rmSync(path, { force: true });
    symlinkSync(folder, path);
    const remove = () => {
      if (linkTarget(path) === folder) rmSync(path, { force: true });
    };
    return { path, remove };
  } catch (error) {
    throw Failure.from(error, doing);
  }
}

function linkTarget(path: string): string | undefined {
  try {
    return readlinkSync(path);
  } catch {
    return undefined;
  }
}
