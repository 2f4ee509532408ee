// Where a secret's value comes from, read when it is needed: the value itself, a variable of the daemon, a file, or a command's output.
// Nothing that was read ever stands in an error: a Failure here names the source only.
import { spawn } from 'node:child_process';
import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { isAbsolute } from 'node:path';
import type { SetSecret } from '../contract/network.ts';
import { Failure } from '../lib/failure.ts';

export type Source = SetSecret['source'];

export const valueBytesMax = 64 * 1024;
/** Of a JSON file that holds more than the value. */
const jsonBytesMax = 1024 * 1024;
const commandMs = 30_000;
/** How long after a command's end its output may still come, when something that it has left running holds the pipe. */
const outputMs = 1_000;
const refreshSecondsDefault = 55 * 60;
/** A command or file that has just failed is not tried again at once: a guest could otherwise make it run as often as it likes. */
const failureMs = 5_000;
const stderrShownMax = 200;

export interface Values {
  /** The value now. Reads at the same time are one read. What is remembered belongs to this very object, and goes with it. */
  read(source: Source, signal: AbortSignal): Promise<string>;
}

interface Kept {
  reading?: Promise<string>;
  value?: { text: string; until: number };
  failure?: { error: unknown; until: number };
}

export function openValues(options: {
  readEnv: (name: string) => string | undefined;
  now: () => Date;
}): Values {
  const kept = new WeakMap<Source, Kept>();

  const remembered = (source: Source): Promise<string> => {
    const now = options.now().getTime();
    const state = kept.get(source) ?? {};
    kept.set(source, state);
    if (state.value !== undefined && now < state.value.until) return Promise.resolve(state.value.text);
    if (state.failure !== undefined && now < state.failure.until) return Promise.reject(state.failure.error);
    state.reading ??= readSource(source, options.readEnv).then(
      (text) => {
        delete state.reading;
        delete state.failure;
        if (source.type === 'command') {
          const seconds = source.refreshSeconds ?? refreshSecondsDefault;
          state.value = { text, until: options.now().getTime() + seconds * 1_000 };
        }
        return text;
      },
      (error: unknown) => {
        delete state.reading;
        state.failure = { error, until: options.now().getTime() + failureMs };
        throw error;
      },
    );
    return state.reading;
  };

  return {
    read(source, signal) {
      if (source.type === 'value') return Promise.resolve(source.value);
      if (source.type === 'env') return readSource(source, options.readEnv);
      return unlessAborted(remembered(source), signal);
    },
  };
}

async function readSource(source: Source, readEnv: (name: string) => string | undefined): Promise<string> {
  switch (source.type) {
    case 'value':
      return source.value;
    case 'env': {
      const value = readEnv(source.variable);
      if (value) return value;
      throw new Failure('unavailable', `the daemon's environment has no ${source.variable}`, {
        hint: 'Start the daemon with that variable set, or store the value itself.',
      });
    }
    case 'file':
      return source.json === undefined
        ? withoutLineEnd(await readFileSource(source.path, valueBytesMax))
        : valueAt(await readFileSource(source.path, jsonBytesMax), source.json, source.path);
    case 'command':
      return withoutLineEnd(await runCommand(source.command));
    default:
      return source satisfies never;
  }
}

const withoutLineEnd = (bytes: Buffer): string => bytes.toString('utf8').replace(/[\r\n]+$/, '');

async function readFileSource(path: string, bytesMax: number): Promise<Buffer> {
  if (!isAbsolute(path) || path.includes('\0'))
    throw new Failure('invalid', `the path ${JSON.stringify(path)} of a secret is not absolute`);
  try {
    // Not blocking, so that a pipe without a writer does not hold us up before it is refused.
    const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      if (!(await file.stat()).isFile()) throw new Failure('unavailable', `${path} is not a regular file`);
      const buffer = Buffer.alloc(bytesMax + 1);
      let length = 0;
      for (;;) {
        const { bytesRead } = await file.read(buffer, length, buffer.length - length);
        if (bytesRead === 0) return buffer.subarray(0, length);
        length += bytesRead;
        if (length > bytesMax) throw new Failure('unavailable', `${path} has more than ${bytesMax} bytes`);
      }
    } finally {
      await file.close();
    }
  } catch (error) {
    throw Failure.from(error, `read ${path}`);
  }
}

/** The string that a JSON pointer leads to. What the parser says of a document would show a part of it. */
function valueAt(document: Buffer, pointer: string, path: string): string {
  let value: unknown;
  try {
    value = JSON.parse(document.toString('utf8'));
  } catch {
    throw new Failure('unavailable', `${path} is not JSON`);
  }
  for (const part of pointer.split('/').slice(1)) {
    const key = part.replaceAll('~1', '/').replaceAll('~0', '~');
    value =
      typeof value === 'object' && value !== null && Object.hasOwn(value, key)
        ? (value as Record<string, unknown>)[key]
        : undefined;
  }
  if (typeof value === 'string' && value !== '') return value;
  throw new Failure('unavailable', `${path} holds no text at ${pointer}`, {
    hint: 'Log in again with the program whose file it is.',
  });
}

/** In a process group of its own, so that what it started ends with it. */
function runCommand(command: readonly string[]): Promise<Buffer> {
  const [program = '', ...args] = command;
  if (program === '' || command.some((word) => word.includes('\0')))
    return Promise.reject(new Failure('invalid', 'the command is empty or holds a NUL'));
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'], detached: true });
    const output: Buffer[] = [];
    let length = 0;
    let errors = '';
    let given: string | undefined;
    const giveUp = (why: string) => {
      given ??= why;
      try {
        if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
      } catch {
        // It has just ended by itself.
      }
      closePipes();
    };
    /** Without this, a process that left the group and holds them would be waited for. */
    const closePipes = () => {
      child.stdout.destroy();
      child.stderr.destroy();
    };
    const timer = setTimeout(() => giveUp(`did not end within ${commandMs / 1_000} seconds`), commandMs);
    child.stdout.on('data', (chunk: Buffer) => {
      length += chunk.length;
      if (length > valueBytesMax) giveUp(`wrote more than ${valueBytesMax} bytes`);
      else output.push(chunk);
    });
    child.stderr.on('data', (chunk: Buffer) => {
      if (errors.length < 4_096) errors += chunk.toString('latin1');
    });
    let lingering: NodeJS.Timeout | undefined;
    child.once('exit', () => {
      lingering = setTimeout(closePipes, outputMs);
    });
    const failed = (why: string) => {
      clearTimeout(timer);
      const said = lastLine(errors);
      reject(
        new Failure(
          'unavailable',
          `the command ${JSON.stringify(program)} ${why}${said === '' ? '' : `: ${said}`}`,
          {
            hint: 'Run the command by hand to see what it says.',
          },
        ),
      );
    };
    child.once('error', (error: NodeJS.ErrnoException) =>
      failed(`cannot be run (${error.code ?? 'unknown'})`),
    );
    child.once('close', (code, signal) => {
      clearTimeout(timer);
      clearTimeout(lingering);
      if (given !== undefined) failed(given);
      else if (code !== 0)
        failed(signal === null ? `ended with exit code ${code}` : `was ended by ${signal}`);
      else resolve(Buffer.concat(output));
    });
  });
}

/** One line of printable ASCII. */
function lastLine(text: string): string {
  const line = text.trimEnd().split('\n').at(-1) ?? '';
  return line.replace(/[^\x20-\x7e]/g, '?').slice(0, stderrShownMax);
}

/** The wait ends, not what is waited for: others may wait for it, too. */
function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const aborted = () => reject(Failure.from(signal.reason, 'read a secret'));
    if (signal.aborted) aborted();
    signal.addEventListener('abort', aborted, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', aborted));
  });
}
