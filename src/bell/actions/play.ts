// Plays the owner's sound. A guest cannot name a file. One sound at a time, which outlives the call: nobody waits for its end.
import { open, stat } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { only } from '../arguments.ts';
import { type Action, BellError } from '../bell.ts';
import type { Programs, Running } from '../programs.ts';

/** A player that has not given up by then plays. */
const settlingMs = 2_000;
const playingMsMax = 60_000;

export interface PlayOptions {
  programs: Programs;
  /** An absolute path. */
  soundFile: string | undefined;
  /** Aborted when the daemon stops: so does the sound. */
  stopped: AbortSignal;
}

export function createPlay(options: PlayOptions): Action<undefined> {
  const { programs, soundFile, stopped } = options;
  let playing = false;

  /** The players that are installed and take the file, in the order they are tried. */
  async function players(): Promise<{ program: string; args: string[] }[]> {
    if (soundFile === undefined)
      throw new BellError('unavailable', 'no sound is set on the host; its owner sets sound_file');
    const kind = await kindOf(soundFile);
    const found = playersOf(programs.platform, soundFile)
      .filter((it) => it.only === undefined || it.only === kind)
      .map(async ({ name, args }) => ({ program: await programs.find(name), args }));
    const installed = (await Promise.all(found)).flatMap(({ program, args }) =>
      program === undefined ? [] : [{ program, args }],
    );
    if (installed.length === 0)
      throw new BellError('unavailable', 'the host has no program that plays sounds');
    return installed;
  }

  async function begin(): Promise<Running> {
    for (const { program, args } of await players()) {
      stopped.throwIfAborted();
      const sound = programs.start(program, args);
      const over = AbortSignal.any([stopped, AbortSignal.timeout(playingMsMax)]);
      over.addEventListener('abort', () => sound.kill(), { once: true });
      const code = await Promise.race([sound.ended, delay(settlingMs, undefined, { ref: false })]);
      if (code === undefined || code === 0) return sound;
    }
    throw new BellError('unavailable', 'no program of the host could play the sound');
  }

  return {
    name: 'play',
    summary: "Plays the owner's sound",
    decision: 'allow',

    parse(args) {
      only('play', args, []);
      return undefined;
    },

    describe: () => '',

    async unavailable() {
      try {
        await players();
        return undefined;
      } catch (error) {
        return (error as Error).message;
      }
    },

    async run() {
      if (playing) return { playing };
      playing = true;
      const over = () => {
        playing = false;
      };
      try {
        const sound = await begin();
        void sound.ended.then(over);
      } catch (error) {
        over();
        throw error;
      }
      return { playing: true };
    },
  };
}

type Kind = 'wav' | 'other';

interface Player {
  name: string;
  args: string[];
  only?: Kind;
}

function playersOf(platform: NodeJS.Platform, file: string): Player[] {
  if (platform === 'darwin') return [{ name: 'afplay', args: [file] }];
  return [
    { name: 'paplay', args: [file] },
    // Takes whatever it does not know for samples, and makes a noise.
    { name: 'aplay', args: ['-q', file], only: 'wav' },
    { name: 'mpg123', args: ['-q', file], only: 'other' },
    { name: 'ffplay', args: ['-nodisp', '-autoexit', '-loglevel', 'quiet', file] },
  ];
}

async function kindOf(file: string): Promise<Kind> {
  try {
    // Opening a pipe would wait for somebody to write.
    if (!(await stat(file)).isFile()) throw new Error('no regular file');
    await using opened = await open(file);
    const { buffer, bytesRead } = await opened.read(Buffer.alloc(12), 0, 12);
    const head = buffer.toString('latin1', 0, bytesRead);
    return head.startsWith('RIFF') && head.endsWith('WAVE') ? 'wav' : 'other';
  } catch (cause) {
    throw new BellError('unavailable', "the host's sound_file cannot be read", { cause });
  }
}
