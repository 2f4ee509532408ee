// A guest that says nothing at first may be waiting for the server to speak. It may as well be slow, or want to be taken for one that waits: so as long
// as the server is silent, too, the guest's first bytes still say what this is.
import { type Opening, openingOf, openingWhenQuiet, quietMs } from './opening.ts';
import type { Wire, WireReader } from './wire.ts';

/**
 * Waits until one of both has spoken or ended, and puts back what it said. `world` means that the server was first; else it is what the guest
 * opened with. Undefined when it took too long, or one of them is gone; both are closed then.
 */
export function firstToSpeak(
  guest: Wire,
  world: Wire,
  withinMs: number,
): Promise<Opening | { kind: 'world' } | undefined> {
  return new Promise((resolve) => {
    let seen: Buffer = nothing;
    let quiet: NodeJS.Timeout | undefined;
    const settle = (found: Opening | { kind: 'world' } | undefined, ofWorld?: Buffer) => {
      clearTimeout(timer);
      clearTimeout(quiet);
      if (found === undefined) {
        guest.close();
        world.close();
      } else {
        guest.release(seen);
        world.release(ofWorld);
      }
      seen = nothing;
      resolve(found);
    };
    const timer = setTimeout(settle, withinMs, undefined);
    const ofGuest: WireReader = {
      data(bytes) {
        seen = seen.length === 0 ? bytes : Buffer.concat([seen, bytes]);
        const opening = openingOf(seen);
        if (opening !== undefined) return settle(opening);
        // The server may be waiting for this very word.
        clearTimeout(quiet);
        quiet = setTimeout(() => {
          const word = openingWhenQuiet(seen);
          if (word !== undefined) settle(word);
        }, quietMs);
      },
      end: () => settle({ kind: 'other' }),
      drained: () => {},
      gone: () => settle(undefined),
    };
    const ofWorld: WireReader = {
      data: (bytes) => settle({ kind: 'world' }, bytes),
      end: () => settle({ kind: 'world' }),
      drained: () => {},
      gone: () => settle(undefined),
    };
    world.take(ofWorld);
    // The world may have spoken, and ended this, already.
    if (!world.closed) guest.take(ofGuest);
  });
}

const nothing: Buffer = Buffer.alloc(0);
