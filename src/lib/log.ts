// The log: events with fields, one JSON object a line. Secrets and text of guests never go into the message.
import { pino } from 'pino';

type Write = (fields: Record<string, unknown>, message: string) => void;

export interface Log {
  debug: Write;
  info: Write;
  warn: Write;
  error: Write;
}

export type LogLevel = 'debug' | 'info' | 'warn' | 'error' | 'silent';

/** Writes to a file, made with mode 0600 when missing, or to stderr. */
export function openLog(options: { level: LogLevel; file?: string }): Log {
  const target = pino.destination(
    options.file === undefined
      ? { dest: 2, sync: true }
      : { dest: options.file, append: true, mkdir: true, mode: 0o600, sync: true },
  );
  return pino({ level: options.level, base: null, timestamp: pino.stdTimeFunctions.isoTime }, target);
}
