// The last step into an isolated session, inside the walls that bubblewrap has made for it: lays a layer over its workspace where one was asked for, gives up
// what rights were left for that, and becomes the session's shell.
//
//   enter-session.js WORKSPACE LAYER_BYTES PROGRAM ARGUMENT…        0 bytes: no layer
import { dlopen, ptr, read } from 'bun:ffi';
import { accessSync, constants, mkdirSync } from 'node:fs';
import { defaultPath, sessionLayer } from '../contract/guest-wire.ts';

const c = dlopen('libc.so.6', {
  mount: { args: ['i64', 'i64', 'i64', 'i64', 'i64'], returns: 'i32' },
  umount2: { args: ['i64', 'i32'], returns: 'i32' },
  prctl: { args: ['i32', 'i64', 'i64', 'i64', 'i64'], returns: 'i32' },
  capset: { args: ['i64', 'i64'], returns: 'i32' },
  signal: { args: ['i32', 'i64'], returns: 'ptr' },
  execve: { args: ['i64', 'i64', 'i64'], returns: 'i32' },
  __errno_location: { args: [], returns: 'ptr' },
}).symbols;

const noSetuid = 2;
const noDevices = 4;
const detach = 2;
const dropFromBoundingSet = 24;
const ambient = 47;
const clearAll = 4;
const capabilitiesVersion = 0x2008_0522;
const interrupt = 2;
const brokenPipe = 13;
const failed = 3;

/** Whatever an address was taken of, so that it stays where it is. */
const held: Uint8Array[] = [];
function text(of: string): number {
  const bytes = Buffer.from(`${of}\0`);
  held.push(bytes);
  return ptr(bytes);
}
function list(of: string[]): number {
  const addresses = new BigUint64Array([...of.map((it) => BigInt(text(it))), 0n]);
  held.push(new Uint8Array(addresses.buffer));
  return ptr(addresses);
}

function must(doing: string, result: number): void {
  if (result === 0) return;
  const number = read.i32(c.__errno_location(), 0);
  process.stderr.write(`${doing}: the kernel refuses it (error ${number})\n`);
  process.exit(failed);
}

/** What is written lies in memory, out of the session's sight; what is read and was not written comes from the workspace itself. */
function layOver(workspace: string, bytes: number): void {
  const flags = noSetuid | noDevices;
  const place = text(sessionLayer);
  must(
    'make a place for changes',
    c.mount(text('layer'), place, text('tmpfs'), flags, text(`size=${bytes},mode=0700`)),
  );
  for (const name of ['upper', 'work']) mkdirSync(`${sessionLayer}/${name}`, { mode: 0o755 });
  // By where we are, for a path may hold the characters that separate options.
  process.chdir(workspace);
  const options = `lowerdir=.,upperdir=${sessionLayer}/upper,workdir=${sessionLayer}/work,userxattr`;
  must(
    'lay an overlay over the workspace',
    c.mount(text('overlay'), text(workspace), text('overlay'), flags, text(options)),
  );
  must('hide the layer', c.umount2(place, detach));
}

function giveUpRights(): void {
  c.prctl(ambient, clearAll, 0, 0, 0);
  for (let capability = 0; capability < 64; capability++) c.prctl(dropFromBoundingSet, capability, 0, 0, 0);
  const header = new Uint32Array([capabilitiesVersion, 0]);
  const none = new Uint32Array(6);
  must('give up rights', c.capset(ptr(header), ptr(none)));
}

function find(program: string): string {
  for (const folder of (process.env.PATH ?? defaultPath).split(':')) {
    try {
      accessSync(`${folder}/${program}`, constants.X_OK);
      return `${folder}/${program}`;
    } catch {
      // The next one may have it.
    }
  }
  process.stderr.write(`${program}: not found\n`);
  return process.exit(127);
}

const [workspace = '/', layerBytes = '0', program = '', ...rest] = process.argv.slice(2);
const path = find(program);
if (layerBytes !== '0') layOver(workspace, Number(layerBytes));
process.chdir(workspace);
giveUpRights();
// bubblewrap, which waits for the shell, must not hear an interrupt that is meant for what runs in there; and Bun does not care for broken pipes.
for (const number of [interrupt, brokenPipe]) c.signal(number, 0);
const variables = Object.entries(process.env).map(([name, value]) => `${name}=${value}`);
c.execve(text(path), list([program, ...rest]), list(variables));
must(`run ${path}`, -1);
