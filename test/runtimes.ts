// The runtimes that end-to-end tests run on, each with the image it starts from. Test files skip what `test/setup.ts` found missing, and said so.
import { readFileSync } from 'node:fs';
import type { TestDaemon } from './daemon.ts';
import { dockerImage, rootfsTar, type TestImage } from './images.ts';

const present = (process.env.GLOVEBOX_TEST_PRESENT ?? '').split(',');

export const runtimes = ['bubblewrap', 'docker'].filter((name) => present.includes(name));

/** Makes a test image usable in a daemon's runtime and gives the name to create from. */
export async function imageFor(runtime: string, daemon: TestDaemon, image: TestImage): Promise<string> {
  if (runtime === 'docker') return dockerImage(image);
  const reply = await fetch(`${daemon.url}/v1/images?name=${image}`, {
    method: 'POST',
    headers: { 'OPEN-SANDBOX-API-KEY': daemon.apiKey, 'Content-Type': 'application/octet-stream' },
    body: readFileSync(rootfsTar(image)),
  });
  if (reply.status !== 201) throw new Error(`import ${image}: ${reply.status} ${await reply.text()}`);
  return image;
}
