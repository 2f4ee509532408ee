// The seccomp profile in the form that Docker and other OCI engines take (`--security-opt seccomp=…`).
import {
  type ArgumentTest,
  errnoMissing,
  errnoRefused,
  seccompArchs,
  syscallsOf,
  type Verdict,
} from './profile.ts';

interface DockerRule {
  names: string[];
  action: 'SCMP_ACT_ALLOW' | 'SCMP_ACT_ERRNO';
  errnoRet?: number;
  args?: { index: number; op: 'SCMP_CMP_MASKED_EQ'; value: number; valueTwo: number }[];
}

/** The profile as Docker's JSON; engines of either architecture can take it. */
export function seccompDockerProfile(): object {
  const verdicts = new Map<string, Verdict>();
  for (const arch of seccompArchs) for (const it of syscallsOf(arch)) verdicts.set(it.name, it.verdict);
  const names = (wanted: Verdict) => [...verdicts].filter((it) => it[1] === wanted).map((it) => it[0]);
  const checks = [...verdicts].flatMap(([name, verdict]) =>
    alternatives(verdict).map(
      (tests): DockerRule => ({
        names: [name],
        action: 'SCMP_ACT_ALLOW',
        args: tests.map(({ arg, mask, value }) => ({
          index: arg,
          op: 'SCMP_CMP_MASKED_EQ',
          value: mask,
          valueTwo: value,
        })),
      }),
    ),
  );
  const rules: DockerRule[] = [
    { names: names('allow'), action: 'SCMP_ACT_ALLOW' },
    { names: names('refuse'), action: 'SCMP_ACT_ERRNO', errnoRet: errnoRefused },
    { names: names('missing'), action: 'SCMP_ACT_ERRNO', errnoRet: errnoMissing },
    ...checks,
  ];
  return {
    // The default catches checked calls whose arguments fit no rule. Numbers beyond all that are listed get ENOSYS from runc itself.
    defaultAction: 'SCMP_ACT_ERRNO',
    defaultErrnoRet: errnoRefused,
    archMap: seccompArchs.map((arch) => ({
      architecture: `SCMP_ARCH_${arch.toUpperCase()}`,
      subArchitectures: [],
    })),
    syscalls: rules,
  };
}

function alternatives(verdict: Verdict): (readonly ArgumentTest[])[] {
  if (typeof verdict === 'string') return [];
  if ('allowIf' in verdict) return [...verdict.allowIf];
  return complement(verdict.refuseIf).map((it) => [it]);
}

/**
 * Tests of which one holds exactly when none of the given holds. The engine can only list what is allowed, and "not equal" compares 64 bits
 * where the kernel reads 32, so that a set high bit would slip through. Hence one test for each way to leave the common path of the values.
 */
function complement(refused: readonly ArgumentTest[]): ArgumentTest[] {
  const arg = refused[0]?.arg ?? 0;
  const walk = (values: number[], bit: number, mask: number, value: number): ArgumentTest[] => {
    if (values.length === 0) return [{ arg, mask, value }];
    if (bit < 0) return [];
    const one = 2 ** bit;
    const [set, clear] = [values.filter((it) => (it & one) !== 0), values.filter((it) => (it & one) === 0)];
    return [...walk(clear, bit - 1, mask + one, value), ...walk(set, bit - 1, mask + one, value + one)];
  };
  return walk(
    refused.map((it) => it.value),
    31,
    0,
    0,
  );
}
