// Writes syscalls.ts from the kernel headers of a Debian machine (packages linux-libc-dev and cpp). Run by hand when a kernel release
// brings new system calls: `bin/node src/runtime/seccomp/generate.ts`. New calls stay unknown to guests until profile.ts is reviewed.
import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';

// Calls that are newer than the headers of Debian 12. From 403 on, a number means the same call on every architecture.
const newer = {
  cachestat: 451,
  fchmodat2: 452,
  map_shadow_stack: 453,
  futex_wake: 454,
  futex_wait: 455,
  futex_requeue: 456,
  statmount: 457,
  listmount: 458,
  lsm_get_self_attr: 459,
  lsm_set_self_attr: 460,
  lsm_list_modules: 461,
  mseal: 462,
  setxattrat: 463,
  getxattrat: 464,
  listxattrat: 465,
  removexattrat: 466,
  open_tree_attr: 467,
  file_getattr: 468,
  file_setattr: 469,
};

const headers = {
  x86_64: { file: '/usr/include/x86_64-linux-gnu/asm/unistd_64.h', defines: [] },
  aarch64: {
    file: '/usr/include/asm-generic/unistd.h',
    // What arch/arm64/include/uapi/asm/unistd.h defines before it includes the generic list.
    defines: [
      '__BITS_PER_LONG=64',
      '__ARCH_WANT_RENAMEAT',
      '__ARCH_WANT_NEW_STAT',
      '__ARCH_WANT_SET_GET_RLIMIT',
      '__ARCH_WANT_TIME32_SYSCALLS',
      '__ARCH_WANT_SYS_CLONE3',
      '__ARCH_WANT_MEMFD_SECRET',
    ],
  },
};

function numbersOf({ file, defines }: { file: string; defines: string[] }): Map<string, number> {
  const flags = defines.map((it) => `-D${it}`);
  const text = execFileSync('cpp', ['-dM', ...flags, file], { encoding: 'utf8' });
  const macros = new Map<string, string>();
  for (const [, name = '', value = ''] of text.matchAll(/^#define (__NR\w*) (\S+)$/gm))
    macros.set(name, value);
  const numbers = new Map<string, number>();
  for (const [macro, value] of macros) {
    const name = macro.slice('__NR_'.length);
    if (!macro.startsWith('__NR_') || name === 'syscalls' || name === 'arch_specific_syscall') continue;
    numbers.set(name, Number(macros.get(value) ?? value));
  }
  for (const [name, number] of Object.entries(newer)) numbers.set(name, number);
  return numbers;
}

const x86 = numbersOf(headers.x86_64);
const arm = numbersOf(headers.aarch64);
// Entry points of the kernel's own probes: not in the headers, and a host that traces a guest needs them.
x86.set('uretprobe', 335);
x86.set('uprobe', 336);
const names = [...new Set([...x86.keys(), ...arm.keys()])].sort();
const lines = names.map((name) => `  ${name}: [${x86.get(name) ?? null}, ${arm.get(name) ?? null}],`);
writeFileSync(
  new URL('syscalls.ts', import.meta.url),
  `// Every Linux system call by name with its number on x86_64 and aarch64. Written by generate.ts; do not edit.

export const syscallNumbers: Record<string, readonly [x86_64: number | null, aarch64: number | null]> = {
${lines.join('\n')}
};
`,
);
