// The floors for create → first output, in the agent's own runtime (Bun), without walls or daemon. `POST /shell` starts a shell and answers how many milliseconds
// passed before its first output. The other two do no more than any server whose log must not lose a call: `POST /create` syncs a line, `POST /command` syncs a
// line and sends what a shell says. Prints its port.
import { constants } from 'node:fs';
import { open } from 'node:fs/promises';

const { O_WRONLY, O_APPEND, O_CREAT, O_DSYNC } = constants;
const log = await open(Bun.argv[2], O_WRONLY | O_APPEND | O_CREAT | O_DSYNC);
const line = `${'x'.repeat(500)}\n`;
const shell = () =>
  Bun.spawn(['bash', '-c', 'echo out'], { stdin: 'ignore', stdout: 'pipe', stderr: 'pipe' });

async function shellMs() {
  const started = performance.now();
  const child = shell();
  await child.stdout.getReader().read();
  const took = performance.now() - started;
  await child.exited;
  return String(took);
}

const server = Bun.serve({
  hostname: '127.0.0.1',
  port: 0,
  async fetch(request) {
    const path = new URL(request.url).pathname;
    if (path === '/shell') return new Response(await shellMs());
    await request.json();
    await log.write(line);
    return new Response(path === '/create' ? '{"id":"one"}' : shell().stdout);
  },
});
console.log(server.port);
