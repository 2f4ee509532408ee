// Which system calls a guest may make: one table, from which the Docker profile and the BPF program for bubblewrap are made.
// Refused calls fail with EPERM, or with what the kernel says when it lacks the feature, where programs rely on that. Calls that are unknown, obsolete, or must look absent so that libc falls back fail with ENOSYS.
// 32-bit and x32 calls kill the process (32-bit) or are ENOSYS (x32): their numbers and arguments mean other things.
import { syscallNumbers } from './syscalls.ts';

export type SeccompArch = 'x86_64' | 'aarch64';

export const seccompArchs: readonly SeccompArch[] = ['x86_64', 'aarch64'];

/** The architecture of this process as seccomp knows it; undefined where we have no profile. */
export function hostArch(): SeccompArch | undefined {
  if (process.arch === 'x64') return 'x86_64';
  return process.arch === 'arm64' ? 'aarch64' : undefined;
}

/** True when the low 32 bits of the argument, masked, equal the value. The kernel itself reads these arguments as 32 bits. */
export interface ArgumentTest {
  arg: number;
  mask: number;
  value: number;
}

/** One or two tests each; the first tests of all look at the same argument and have different values. */
export type Alternatives = readonly (readonly [ArgumentTest, ArgumentTest?])[];

export type Verdict =
  | 'allow'
  | 'refuse'
  | 'missing'
  /** Allowed when every test of any one list holds; otherwise refused. */
  | { allowIf: Alternatives; errno: number }
  /** Refused when any test holds; otherwise allowed. */
  | { refuseIf: readonly ArgumentTest[] };

export const errnoRefused = 1; // EPERM
export const errnoMissing = 38; // ENOSYS
/** EAFNOSUPPORT: useradd and others give up on any other error when they look for the kernel's audit. */
const errnoFamily = 97;

/** Calls above this number are unknown to guests until someone has judged them here. */
const newestReviewed = 469;

const words = (text: string) => text.trim().split(/\s+/);

const refused = new Set([
  // Not divided by namespaces, or of the whole host.
  ...words('add_key request_key keyctl acct quotactl quotactl_fd swapon swapoff reboot syslog vhangup'),
  ...words('settimeofday clock_settime sethostname setdomainname sysfs uselib nfsservctl lookup_dcookie'),
  ...words('kexec_load kexec_file_load init_module finit_module delete_module create_module'),
  // Wide and often broken parts of the kernel that programs do without.
  ...words('bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register fanotify_init'),
  ...words('iopl ioperm modify_ldt'),
  // New walls and holes in walls. (ptrace and process_vm_* stay: they reach only the guest's own processes.)
  ...words(
    'mount umount2 pivot_root open_tree open_tree_attr move_mount mount_setattr fsopen fsconfig fsmount',
  ),
  ...words('fspick setns open_by_handle_at kcmp pidfd_getfd migrate_pages move_pages'),
]);

const missing = new Set([
  // The flags of clone3 lie in memory, where a filter cannot look: libc falls back to clone, whose flags are checked.
  'clone3',
  // Programs fall back to /proc/self/mountinfo and /proc/self/attr.
  ...words('statmount listmount lsm_get_self_attr lsm_set_self_attr lsm_list_modules'),
  // Reserved numbers without a call behind them, or calls that modern kernels dropped.
  ...words(
    '_sysctl afs_syscall epoll_ctl_old epoll_wait_old get_kernel_syms getpmsg get_thread_area putpmsg',
  ),
  ...words('query_module security set_thread_area tuxcall ustat vserver'),
]);

const all = 0xffff_ffff;
const is = (arg: number, value: number): ArgumentTest => ({ arg, mask: all, value });

// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET. CLONE_NEWTIME exists for unshare only: in clone its bit is part of the exit signal.
const newNamespaces = 0x7e02_0000;
const newTimeNamespace = 0x80;

const family = { unix: 1, inet: 2, inet6: 10, netlink: 16 };
const netlinkRoute = 0;

const checked: Record<string, Verdict> = {
  clone: { allowIf: [[{ arg: 0, mask: newNamespaces, value: 0 }]], errno: errnoRefused },
  unshare: {
    allowIf: [[{ arg: 0, mask: newNamespaces | newTimeNamespace, value: 0 }]],
    errno: errnoRefused,
  },
  socket: {
    allowIf: [
      [is(0, family.unix)],
      [is(0, family.inet)],
      [is(0, family.inet6)],
      [is(0, family.netlink), is(2, netlinkRoute)],
    ],
    errno: errnoFamily,
  },
  socketpair: { allowIf: [[is(0, family.unix)]], errno: errnoFamily },
  // Linux, with or without address randomisation (debuggers turn it off), and the question which it is.
  personality: {
    allowIf: [[{ arg: 0, mask: ~0x0004_0000 >>> 0, value: 0 }], [is(0, all)]],
    errno: errnoRefused,
  },
  // TIOCSTI and TIOCLINUX put characters into a terminal as if a person had typed them.
  ioctl: { refuseIf: [is(1, 0x5412), is(1, 0x541c)] },
};

/** The number of a call on an architecture; undefined where it does not exist. */
export function syscallNumber(name: string, arch: SeccompArch): number | undefined {
  return syscallNumbers[name]?.[arch === 'x86_64' ? 0 : 1] ?? undefined;
}

/**
 * What a guest may do besides that is to make walls of its own: namespaces, and mounts in those. That it can mount nowhere else is the kernel's rule, for it
 * has no right to in the namespaces that it was given. The newer calls for mounts stay refused: bubblewrap and mount(8) do without.
 */
const nestedCalls = new Set(words('clone unshare mount umount2 pivot_root'));

/** Every call that exists on the architecture, by number. `nested`: for guests that may make namespaces. */
export function syscallsOf(
  arch: SeccompArch,
  { nested = false }: { nested?: boolean } = {},
): { name: string; number: number; verdict: Verdict }[] {
  const calls = Object.keys(syscallNumbers).flatMap((name) => {
    const number = syscallNumber(name, arch);
    if (number === undefined) return [];
    const verdict = nested && nestedCalls.has(name) ? 'allow' : verdictOf(name, number);
    return [{ name, number, verdict }];
  });
  return calls.sort((a, b) => a.number - b.number);
}

function verdictOf(name: string, number: number): Verdict {
  if (number > newestReviewed || missing.has(name)) return 'missing';
  return refused.has(name) ? 'refuse' : (checked[name] ?? 'allow');
}
