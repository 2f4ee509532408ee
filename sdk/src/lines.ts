// Answers without an end: one JSON value a line, for as long as somebody reads.
import type { Connection, RequestOptions } from './connection.ts';
import { errorOf } from './errors.ts';

/** A line that is longer than this is no line of ours. */
const lineLengthMax = 1024 * 1024;

/**
 * Yields each value as it comes; leaving the loop ends the request. Throws AbortError when the signal fires, UnavailableError when the server
 * stops, because it never does so by itself.
 */
export async function* jsonLines(
  connection: Connection,
  path: string,
  options: RequestOptions,
  method: 'GET' | 'POST' = 'GET',
): AsyncGenerator<unknown, void, undefined> {
  const { doing } = options;
  const response = await connection.request(method, path, options);
  const reader = response.body?.getReader();
  if (reader === undefined) throw errorOf('protocol', `${doing}: the server's answer has no content`);
  const decoder = new TextDecoder();
  let rest = '';
  try {
    for (;;) {
      const { done, value } = await connection.reading(reader.read(), options);
      if (done) throw errorOf('unavailable', `${doing}: the server has ended it`, { hint: 'Try again.' });
      const lines = (rest + decoder.decode(value, { stream: true })).split('\n');
      rest = lines.pop() ?? '';
      if (rest.length > lineLengthMax) throw errorOf('protocol', `${doing}: a line without an end`);
      // Empty lines are the server's signs of life.
      for (const line of lines) if (line.trim() !== '') yield parsed(line, doing);
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

function parsed(line: string, doing: string): unknown {
  try {
    return JSON.parse(line);
  } catch (cause) {
    throw errorOf('protocol', `${doing}: a line of the server's answer is not JSON`, { cause });
  }
}
