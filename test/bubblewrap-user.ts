// What an ordinary user gets of bubblewrap. Run by a test as a process of its own, as such a user:  node bubblewrap-user.ts <folder>
// Prints what it has seen as JSON, and fails if anything is left.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { BubblewrapHome, removeAll, soon } from './bubblewrap.ts';

const home = new BubblewrapHome(process.argv[2]);
const runtime = home.open();
const { usable, capabilities, problems } = await runtime.check(soon());

const ids = await home.run(runtime, {
  job: 'id -u; cat /proc/self/uid_map; chown 5 /output 2>&1 | grep -c chown; cat /proc/sys/user/max_user_namespaces',
});
const walls = await home.run(runtime, {
  job: [
    `ls -d /etc/shadow ${home.folder} 2>/dev/null`,
    '( : >>/proc/sys/kernel/core_pattern ) 2>/dev/null && echo writable',
    'unshare -U true 2>/dev/null && echo namespace',
    'mount -t tmpfs none /mnt 2>/dev/null && echo mounted',
    'grep -E "CapBnd|NoNewPrivs|Seccomp:" /proc/self/status | tr "\\t\\n" "  "',
  ].join('\n'),
});
const image = await home.run(runtime, {
  image: home.image('busybox'),
  job: 'rm /bin/vi && mkdir /bin/vi && ls -d /bin/vi; rm -r /root; mkdir /root; ls -A /root',
});
const hostile = await home.run(runtime, {
  job: 'mkdir -p /closed/in/deep; touch /closed/in/file; chmod 000 /closed/in/deep /closed/in /closed; echo made',
});
const bomb = await home.run(runtime, {
  limits: { pids: 20 },
  job: 'i=0; while [ $i -lt 60 ]; do /.glovebox/agent/busybox sleep 100 & i=$((i + 1)); done 2>&1; ls -d /proc/[0-9]* | wc -l',
});
const routes = await home.run(runtime, {
  job: 'ip route show table local; ip -6 route show table local; ip route add 10.0.0.0/8 dev lo 2>/dev/null && echo changed',
});
const disk = await home.run(runtime, { job: 'echo unlimited' });
const refused = await runtime
  .create(home.spec({ limits: { memoryBytes: 2 ** 28 } }), soon())
  .catch((it) => ({ code: it.code, hint: it.hint }));

// A restart: another runtime finds the machine by its record and removes it without control groups.
const spec = home.spec({ id: 'adopted' });
await runtime.create(spec, soon());
await home.output('adopted');
const record = JSON.parse(readFileSync(join(spec.stateFolder, 'machine.json'), 'utf8'));
const later = home.open();
const found = await later.list(soon());
const exited = found[0]?.exited;
await removeAll(found);
const adopted = { ids: found.map((it) => it.id), exit: await exited };

runtime[Symbol.dispose]();
await home.close();
console.log(
  JSON.stringify({
    usable,
    capabilities,
    problems,
    ids,
    walls,
    image,
    hostile,
    bomb,
    disk,
    routes,
    refused,
    adopted,
    monitor: record.monitor.pid,
  }),
);
