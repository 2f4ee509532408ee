// What the kernel must answer inside a guest under our profile, for tests that ask the kernel itself through probe.js.
import { type SeccompArch, syscallNumber } from './profile.ts';

/** The program that makes the calls; its first lines tell how. */
export const probeFile = new URL('./probe.js', import.meta.url);

/** Calls that show each rule at work. Should a rule fail, none of them does any harm. */
export const refusals: [name: string, args: number[], answer: string][] = [
  ['keyctl', [0, 0, 0], 'EPERM'],
  ['add_key', [-1, -1, -1], 'EPERM'],
  ['bpf', [0, 0, 0], 'EPERM'],
  ['perf_event_open', [0], 'EPERM'],
  ['userfaultfd', [-1], 'EPERM'],
  ['io_uring_setup', [1, 0], 'EPERM'],
  ['mount', [0, 0, 0], 'EPERM'],
  ['umount2', [0, 0], 'EPERM'],
  ['fsopen', [0, 0], 'EPERM'],
  ['move_mount', [-1, 0, -1, 0, 0], 'EPERM'],
  ['pivot_root', [0, 0], 'EPERM'],
  ['open_by_handle_at', [-1, 0, 0], 'EPERM'],
  ['kexec_load', [0, 0, 0, 0], 'EPERM'],
  ['init_module', [0, 0, 0], 'EPERM'],
  ['finit_module', [-1, 0, 0], 'EPERM'],
  ['setns', [-1, 0], 'EPERM'],
  ['unshare', [0x1000_0000], 'EPERM'],
  ['unshare', [0x0002_0000], 'EPERM'],
  ['unshare', [0x80], 'EPERM'],
  ['unshare', [0x400], 'allow'],
  ['clone', [0x1000_0011, 0, 0, 0, 0], 'EPERM'],
  ['clone', [0x4000_0011, 0, 0, 0, 0], 'EPERM'],
  ['clone3', [0, 0], 'ENOSYS'],
  ['swapon', [0, 0], 'EPERM'],
  ['reboot', [0, 0, 0], 'EPERM'],
  ['settimeofday', [-1, -1], 'EPERM'],
  ['acct', [-1], 'EPERM'],
  ['quotactl', [-1, 0, 0, 0], 'EPERM'],
  ['syslog', [3, 0, 0], 'EPERM'],
  ['socket', [1, 1, 0], 'allow'],
  ['socket', [2, 1, 0], 'allow'],
  ['socket', [10, 1, 0], 'allow'],
  ['socket', [16, 3, 0], 'allow'],
  ['socket', [16, 3, 12], 'EAFNOSUPPORT'], // nfnetlink
  ['socket', [17, 3, 0], 'EAFNOSUPPORT'], // packet
  ['socket', [38, 5, 0], 'EAFNOSUPPORT'], // AF_ALG
  ['socket', [40, 1, 0], 'EAFNOSUPPORT'], // vsock
  ['socket', [2 ** 32 + 40, 1, 0], 'EAFNOSUPPORT'],
  ['socketpair', [30, 1, 0, 0], 'EAFNOSUPPORT'], // TIPC
  ['ioctl', [0, 0x5412, 0], 'EPERM'],
  ['ioctl', [0, 2 ** 32 + 0x5412, 0], 'EPERM'],
  ['ioctl', [0, 0x541c, 0], 'EPERM'],
  ['personality', [0xffff_ffff], 'allow'],
  ['personality', [0x0040_0000], 'EPERM'], // READ_IMPLIES_EXEC
  ['getpid', [], 'allow'],
];

/** The second argument of probe.js. */
export function refusalCalls(arch: SeccompArch): number[][] {
  return refusals.map(([name, args]) => [syscallNumber(name, arch) ?? -1, ...args]);
}

/** What the probe printed, in the form of `refusals`, so that the two can be compared. */
export function refusalAnswers(stdout: string): typeof refusals {
  const results = JSON.parse(stdout) as { errno: number }[];
  const names: Record<number, string> = { 0: 'allow', 1: 'EPERM', 38: 'ENOSYS', 97: 'EAFNOSUPPORT' };
  return refusals.map(([name, args], at) => {
    const errno = results[at]?.errno ?? -1;
    return [name, args, names[errno] ?? `errno ${errno}`];
  });
}
