// A process of its own for tests that kill it, fill its disk or take its rights away: imports standard input into the folder given as argument.
// Prints one JSON line for each progress line and one for the outcome.
import { Failure } from '../lib/failure.ts';
import { ImageStore } from './store.ts';

const [folder = '', name = 'child'] = process.argv.slice(2);
const say = (value: unknown) => process.stdout.write(`${JSON.stringify(value)}\n`);
const store = new ImageStore({ folder, idShift: null, inUse: () => [] });
try {
  const image = await store.import(process.stdin, { name, onProgress: (progress) => say({ progress }) });
  say({ image, resolved: await store.resolve(name) });
  await store.remove(name);
} catch (thrown) {
  const failure = Failure.from(thrown, 'import');
  say({ code: failure.code, message: failure.message });
}
