// Tells from the heads of programs which machine a root file system was built for. The names are those of OCI images (Go's GOARCH).

const names: Record<number, string> = {
  3: '386',
  8: 'mips',
  21: 'ppc64le',
  22: 's390x',
  40: 'arm',
  62: 'amd64',
  183: 'arm64',
  243: 'riscv64',
  258: 'loong64',
};

/** The number of the machine that a program or library is for; undefined for anything that is not ELF. */
export function machineOf(head: Uint8Array): number | undefined {
  if (head.length < 20 || head[0] !== 0x7f || head[1] !== 0x45 || head[2] !== 0x4c || head[3] !== 0x46)
    return undefined;
  return new DataView(head.buffer, head.byteOffset).getUint16(18, head[5] === 1);
}

/** The architecture with the most programs: an image may hold an emulator or two for another one. */
export function majorityArch(counts: ReadonlyMap<number, number>): string | undefined {
  let best: [machine: number, count: number] | undefined;
  for (const entry of counts) if (!best || entry[1] > best[1]) best = entry;
  return best && (names[best[0]] ?? `elf-${best[0]}`);
}

/** The host's architecture in the same spelling. */
export function hostArch(): string {
  const spelled: Partial<Record<NodeJS.Architecture, string>> = { x64: 'amd64', ia32: '386' };
  return spelled[process.arch] ?? process.arch;
}
