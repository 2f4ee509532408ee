// Collects what large bodies leave behind as they pass through. Each of their buffers is a small object that keeps 64 KiB outside of V8's heap, and V8 looks at
// the small objects: it would let tens of MiB lie there.
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

/** Several times what is on its way at once, so that hardly anything survives two collections and is kept for long. */
const bytesBetween = 8 * 1024 * 1024;

// The only way to it that needs no option of the command line; the global object stays as it is.
setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as (options: { type: 'minor' }) => void;

export class YoungGarbage {
  #bytes = 0;

  /** So many bytes have passed. */
  passed(bytes: number): void {
    this.#bytes += bytes;
    if (this.#bytes < bytesBetween) return;
    this.#bytes = 0;
    collect({ type: 'minor' });
  }
}
