// Real machines of bubblewrap without the real agent: the first process is busybox's shell, which runs a script that the test leaves in the run folder.
import { execFileSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import {
  chmodSync,
  cpSync,
  existsSync,
  globSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type BubblewrapOptions, BubblewrapRuntime } from '../src/runtime/bubblewrap/bubblewrap.ts';
import { hostIdBase } from '../src/runtime/bubblewrap/rootfs.ts';
import type { Machine, MachineSpec } from '../src/runtime/runtime.ts';
import { until } from './daemon.ts';
import { rootfsTar, type TestImage } from './images.ts';

const settleMs = 60_000;
const shell = '/.glovebox/agent/busybox';
/** Runs the job, leaves its output and the word that it is done, and stays. */
const agentScript = `${shell} sh /.glovebox/run/job >/output 2>&1; echo done >/done; exec ${shell} sleep 100000`;

export class BubblewrapHome {
  readonly folder: string;
  readonly homeId: string;

  /** `parent`: where the home lies; by default root's own closed folder, as in real life. */
  constructor(parent = process.getuid?.() === 0 ? '/root' : tmpdir()) {
    this.folder = realpathSync(mkdtempSync(join(parent, 'glovebox-bwrap-')));
    this.homeId = createHash('sha256').update(this.folder).digest('hex').slice(0, 12);
    for (const name of ['agent', 'run', 'machines']) mkdirSync(join(this.folder, name));
    cpSync('/bin/busybox', join(this.folder, 'agent/busybox'));
  }

  open(options: Partial<BubblewrapOptions> = {}): BubblewrapRuntime {
    return new BubblewrapRuntime({
      homeId: this.homeId,
      stateRoot: join(this.folder, 'machines'),
      folder: join(this.folder, 'bubblewrap'),
      images: {
        resolve: async (name) =>
          name === 'host'
            ? { kind: 'host' }
            : { kind: 'folder', path: join(this.folder, name), image: { env: {}, entrypoint: [] } },
      },
      // The last word marks the processes of this home.
      agent: {
        folder: join(this.folder, 'agent'),
        command: [shell, 'sh', '-c', agentScript, this.homeId],
        environment: { PATH: '/bin:/usr/bin' },
      },
      ...options,
    });
  }

  /** An image of this home, with owners as the image store leaves them. */
  image(name: TestImage | 'empty'): string {
    const path = join(this.folder, name);
    if (existsSync(path)) return name;
    mkdirSync(path);
    if (name !== 'empty') execFileSync('tar', ['-C', path, '-xf', rootfsTar(name)]);
    chmodSync(path, 0o755);
    if (process.getuid?.() === 0) execFileSync('chown', ['-R', `${hostIdBase}:${hostIdBase}`, path]);
    return name;
  }

  spec(changes: Partial<MachineSpec> & { job?: string } = {}): MachineSpec {
    const { job = ':', ...rest } = changes;
    const id = rest.id ?? `t-${randomBytes(4).toString('hex')}`;
    const runFolder = join(this.folder, 'run', id);
    mkdirSync(runFolder, { recursive: true });
    writeFileSync(join(runFolder, 'job'), job);
    chmodSync(join(runFolder, 'job'), 0o644);
    chmodSync(runFolder, 0o755);
    return {
      id,
      image: 'host',
      limits: {},
      mounts: [],
      runFolder,
      stateFolder: join(this.folder, 'machines', id),
      labels: {},
      ...rest,
    };
  }

  /** What the job has printed, once it is done. */
  async output(id: string): Promise<string> {
    const upper = join(this.folder, 'machines', id, 'upper');
    await until(`the job of ${id}`, () => existsSync(join(upper, 'done')), Boolean, settleMs);
    return readFileSync(join(upper, 'output'), 'utf8');
  }

  /** Makes a machine, waits for its job, removes it, and returns what the job has printed. */
  async run(runtime: BubblewrapRuntime, changes: Partial<MachineSpec> & { job: string }): Promise<string> {
    const spec = this.spec(changes);
    const machine = await runtime.create(spec, soon());
    try {
      return await this.output(spec.id);
    } finally {
      await machine.remove(soon());
    }
  }

  /** Everything of this home on the host: processes (chains that only wait included), mounts, control groups, folders of machines. */
  left(): string[] {
    const processes = readdirSync('/proc').filter(
      (name) => /^\d+$/.test(name) && Number(name) !== process.pid,
    );
    const marked = processes.filter((pid) => this.#bearsMark(pid));
    const mounts = textOf('/proc/self/mountinfo')
      .split('\n')
      .filter((line) => line.includes(this.folder));
    return [
      ...marked.map((pid) => `process ${pid}: ${textOf(`/proc/${pid}/cmdline`)}`),
      ...mounts.map((line) => `mount ${line}`),
      ...globSync(`/sys/fs/cgroup/{,*/}glovebox/${this.homeId}/*/`).map((path) => `cgroup ${path}`),
      ...readdirSync(join(this.folder, 'machines')).map((name) => `machine ${name}`),
    ];
  }

  #bearsMark(pid: string): boolean {
    return ['cmdline', 'cgroup'].some((name) => textOf(`/proc/${pid}/${name}`).includes(this.homeId));
  }

  /** Fails if anything of this home stays; then removes the home itself. */
  async close(): Promise<void> {
    await until(
      'what is left',
      () => this.left(),
      (left) => left.length === 0,
      settleMs,
    );
    rmSync(this.folder, { recursive: true });
  }
}

export const soon = () => AbortSignal.timeout(settleMs);

export async function removeAll(machines: readonly Machine[]): Promise<void> {
  await Promise.all(machines.map((machine) => machine.remove(soon())));
}

function textOf(path: string): string {
  try {
    return readFileSync(path, 'utf8').replaceAll('\0', ' ');
  } catch {
    return '';
  }
}
