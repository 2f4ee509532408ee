// What the tests of Docker Sandboxes' API share: real programs on a Unix socket.
import { execFile } from 'node:child_process';

export interface Ran {
  code: number;
  stdout: string;
  stderr: string;
}

export function run(command: string, args: string[], cwd?: string): Promise<Ran> {
  return new Promise((resolve) => {
    execFile(
      command,
      args,
      { encoding: 'utf8', timeout: 200_000, ...(cwd === undefined ? {} : { cwd }) },
      (error, stdout, stderr) =>
        resolve({ code: error === null ? 0 : ((error.code as number | undefined) ?? -1), stdout, stderr }),
    ).stdin?.end();
  });
}

/** What curl makes of a request, with `options` of its own; a body is sent as JSON. */
export async function curlAt(
  socket: string,
  method: string,
  path: string,
  body?: unknown,
  options: string[] = [],
): Promise<{ status: number; body: never }> {
  const data = body === undefined ? [] : ['-H', 'Content-Type: application/json', '-d', JSON.stringify(body)];
  const common = ['-s', '--unix-socket', socket, '-X', method, '-w', '\n%{http_code}'];
  const { stdout } = await run('curl', [...common, ...data, ...options, `http://sandboxd${path}`]);
  const lines = stdout.split('\n');
  const status = Number(lines.pop());
  const text = lines.join('\n').trim();
  return { status, body: (text === '' ? undefined : JSON.parse(text)) as never };
}
