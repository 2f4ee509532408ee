// An overlay as an ordinary user gets it, through a daemon of that user's. Run by a test as a process of its own, as such a user:
//   node workspace-user.ts <folder>
// Prints what it has seen as JSON, and fails if anything is left.
import { chmodSync, existsSync, mkdirSync, readdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { SandboxClient } from '../sdk/src/index.ts';
import { put, read } from '../src/workspace/overlay/overlay.fixture.ts';
import { expectNothingLeft, startDaemon } from './daemon.ts';

const folder = process.argv[2] as string;
const [host, home] = [join(folder, 'project'), join(folder, 'home')];
for (const path of [host, home]) mkdirSync(path, { mode: 0o755 });
chmodSync(home, 0o700);
put(host, { 'a.txt': 'a\n', b: 'b\n', 'd/c': 'c\n', '.env': 'SECRET\n' });

const daemon = await startDaemon({ home, runtime: 'bubblewrap', env: { HOME: folder } });
const client = new SandboxClient({ home });
const sandbox = await client.create({
  ...{ image: 'host', keep: true, timeout: null, workspaces: [{ path: host, mode: 'overlay' }] },
});
const { workspaces } = sandbox;
const inside = async (line: string) => (await sandbox.run(line, { cwd: host, check: true })).stdout;
const changed = async () => (await workspaces.changes()).map(({ path, kind }) => `${kind} ${path}`).sort();

const seen: Record<string, unknown> = {};
seen.owners = await inside('stat -c %u a.txt d; cat .env 2>/dev/null || echo hidden');
await inside('echo A >>a.txt; rm b; rm -r d; mkdir d; echo n >d/n; mkdir locked; touch locked/in');
seen.changes = await changed();
await workspaces.undo();
seen.undone = await inside('cat a.txt b d/c');
await workspaces.undo();
seen.again = await changed();
seen.applied = await workspaces.apply({ paths: ['a.txt', 'd/n'] });
seen.host = read(host);
seen.own = ['a.txt', 'd/n'].every((it) => statSync(join(host, it)).uid === process.getuid?.());
await sandbox.stop();
seen.stopped = await changed();
await sandbox.wake();
seen.woken = await inside('cat a.txt d/n');
await sandbox.stop();
seen.discarded = (await workspaces.discard()).sort();
await sandbox.wake();
seen.after = await inside('cat a.txt b d/c d/n');
// Its layer is closed to its own user when it is removed.
await inside('mkdir -p locked/deep; touch locked/deep/in; chmod 000 locked/deep locked');
await sandbox.kill();
await daemon.stop();
const kept = join(home, 'workspaces');
const left = existsSync(kept) ? readdirSync(kept) : [];
if (left.length > 0) throw new Error(`left behind: ${left.join(', ')}`);
await expectNothingLeft(home);
rmSync(host, { recursive: true });
console.log(JSON.stringify(seen));
