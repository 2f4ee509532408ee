// The log: events with fields, one JSON object a line. Secrets and text of guests never go into the message.
import { pino } from 'pino';
import { RotatingFile } from './rotating-file.ts';

type Write = (fields: Record<string, unknown>, message: string) => void;

export interface Log {
  debug: Write;
  info: Write;
  warn: Write;
  error: Write;
}

export type LogLevel = 'debug' | 'info' | 'warn' | 'error' | 'silent';

export interface LogOptions {
  level: LogLevel;
  /** Made with mode 0600 when missing. Absent: standard error. */
  file?: string;
  /** The size at which the file is closed, becoming `<file>.1`, and a new one begun; it grows without end when absent. */
  fileBytesMax?: number;
  /** How many closed ones are kept. */
  filesKept?: number;
}

/** A log whose owner can change it while others write. */
export interface OwnLog extends Log {
  setLevel(level: LogLevel): void;
  /** Goes on in the file of that name, where somebody else has moved the old one away. */
  reopen(): void;
  close(): void;
}

/** Throws what the file system says when the file cannot be made. */
export function openLog({ level, file, fileBytesMax, filesKept = 0 }: LogOptions): OwnLog {
  const target =
    file === undefined
      ? undefined
      : new RotatingFile(file, { bytesMax: fileBytesMax ?? Number.POSITIVE_INFINITY, kept: filesKept });
  const logger = pino(
    { level, base: null, timestamp: pino.stdTimeFunctions.isoTime },
    target ?? pino.destination({ dest: 2, sync: true }),
  );
  return Object.assign(logger, {
    setLevel: (next: LogLevel) => {
      logger.level = next;
    },
    reopen: () => target?.reopen(),
    close: () => target?.close(),
  });
}
