// Puts text onto the owner's clipboard. Never reads it.
import { plain } from '../../journal/escape.ts';
import { only, text } from '../arguments.ts';
import { type Action, BellError } from '../bell.ts';
import type { Programs } from '../programs.ts';

const textBytesMax = 64 * 1024;
const shownMax = 80;
const copyingMs = 5_000;

export interface ClipboardOptions {
  programs: Programs;
}

export function createClipboard({ programs }: ClipboardOptions): Action<string> {
  async function unavailable(): Promise<string | undefined> {
    if (!programs.hasDisplay) return 'the host has no desktop with a clipboard';
    const found = await Promise.all(copiersOf(programs).map(({ name }) => programs.find(name)));
    if (found.some((it) => it !== undefined)) return undefined;
    return 'the host has no program that writes to the clipboard, such as wl-copy or xclip';
  }

  return {
    name: 'clipboard',
    summary: "Puts text onto the owner's clipboard",
    decision: 'ask',

    parse(args) {
      only('clipboard', args, ['text']);
      const copied = text('clipboard', args, 'text');
      if (Buffer.byteLength(copied) > textBytesMax)
        throw new BellError('bad_request', `clipboard: text is longer than ${textBytesMax} bytes`);
      // Pasted into a terminal, they are commands to it.
      if (/[^\P{Cc}\t\n\r]/u.test(copied))
        throw new BellError('bad_request', 'clipboard: text has control characters in it');
      return copied.toWellFormed();
    },

    describe: (copied) =>
      `${plain(copied, shownMax)} (${copied.length} ${copied.length === 1 ? 'character' : 'characters'})`,

    unavailable,

    async run(copied, { signal }) {
      const missing = await unavailable();
      if (missing !== undefined) throw new BellError('unavailable', missing);
      for (const { name, args } of copiersOf(programs)) {
        const program = await programs.find(name);
        if (program === undefined) continue;
        const code = await programs.run(program, args, { input: copied, timeoutMs: copyingMs, signal });
        if (code === 0) return { copied: true, by: name };
      }
      throw new BellError('failed', 'no program of the host could write to the clipboard');
    },
  };
}

/** Those of Linux leave a process behind that holds the text until something else is copied. */
function copiersOf({ platform, env }: Programs): { name: string; args: string[] }[] {
  if (platform === 'darwin') return [{ name: 'pbcopy', args: [] }];
  return [
    ...(env.WAYLAND_DISPLAY === undefined ? [] : [{ name: 'wl-copy', args: ['--type', 'text/plain'] }]),
    ...(env.DISPLAY === undefined
      ? []
      : [
          { name: 'xclip', args: ['-selection', 'clipboard', '-in'] },
          { name: 'xsel', args: ['--input', '--clipboard'] },
        ]),
  ];
}
