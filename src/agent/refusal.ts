// Why the agent says no, in the words of the contract.
import type { GuestErrorCode, GuestReply } from '../contract/guest.ts';

export class Refusal extends Error {
  readonly code: GuestErrorCode;
  readonly errno: string | undefined;

  constructor(code: GuestErrorCode, message: string, errno?: string) {
    super(message);
    this.code = code;
    this.errno = errno;
  }

  /** Any thrown value as a Refusal; `doing` says what was tried, on what. */
  static from(thrown: unknown, doing: string): Refusal {
    if (isRefusal(thrown)) return thrown;
    const errno = errnoOf(thrown);
    if (errno === undefined) {
      return new Refusal('io', `${doing}: ${thrown instanceof Error ? thrown.message : String(thrown)}`);
    }
    const [code, words] = meanings[errno] ?? ['io', errno];
    return new Refusal(code, `${doing}: ${words}`, errno);
  }

  toReply(): GuestReply & { type: 'error' } {
    const message = this.message.slice(0, 4096).toWellFormed();
    return { type: 'error', code: this.code, message, ...(this.errno && { errno: this.errno.slice(0, 32) }) };
  }
}

// By its shape, for the two files of the bundle have a class of this name each.
function isRefusal(thrown: unknown): thrown is Refusal {
  return typeof (thrown as Partial<Refusal> | null)?.toReply === 'function';
}

export function errnoOf(thrown: unknown): string | undefined {
  const code = (thrown as { code?: unknown } | null)?.code;
  return typeof code === 'string' && /^E[A-Z0-9]+$/.test(code) ? code : undefined;
}

const meanings: Record<string, readonly [GuestErrorCode, string]> = {
  ENOENT: ['not-found', 'no such file or directory'],
  EEXIST: ['exists', 'it exists already'],
  ENOTEMPTY: ['conflict', 'the directory is not empty'],
  EBUSY: ['conflict', 'it is in use'],
  ETXTBSY: ['conflict', 'the program is running'],
  EISDIR: ['is-a-directory', 'it is a directory'],
  ENOTDIR: ['not-a-directory', 'a part of the path is not a directory'],
  EACCES: ['permission', 'permission denied'],
  EPERM: ['permission', 'not permitted'],
  EROFS: ['permission', 'the file system is read-only'],
  ENOSPC: ['full', 'no space left'],
  EDQUOT: ['full', 'the quota is used up'],
  EFBIG: ['too-large', 'the file would be too large'],
  E2BIG: ['too-large', 'arguments and environment together are too long for the kernel'],
  ENAMETOOLONG: ['invalid', 'the name is too long'],
  ELOOP: ['invalid', 'too many symbolic links'],
  EINVAL: ['invalid', 'the kernel refuses the value'],
  EMFILE: ['exhausted', 'too many open files'],
  ENFILE: ['exhausted', 'too many open files'],
  ENOMEM: ['exhausted', 'no memory left'],
  EAGAIN: ['exhausted', 'too many processes'],
  ECONNREFUSED: ['refused', 'nothing listens there'],
  ETIMEDOUT: ['timeout', 'no answer'],
  ENOSYS: ['unsupported', 'the kernel cannot do this'],
  EOPNOTSUPP: ['unsupported', 'the file system cannot do this'],
  EXDEV: ['unsupported', 'source and target are on different file systems; copy and remove instead'],
};
