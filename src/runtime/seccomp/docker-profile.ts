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
    typeof verdict === 'string' ? [] : checksOf(name, verdict),
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

function checksOf(name: string, verdict: Exclude<Verdict, string>): DockerRule[] {
  const rule = (tests: readonly (ArgumentTest | undefined)[], errno?: number): DockerRule => ({
    names: [name],
    ...(errno === undefined ? { action: 'SCMP_ACT_ALLOW' } : { action: 'SCMP_ACT_ERRNO', errnoRet: errno }),
    args: tests
      .filter((it) => it !== undefined)
      .map(({ arg, mask, value }) => ({
        index: arg,
        op: 'SCMP_CMP_MASKED_EQ',
        value: mask,
        valueTwo: value,
      })),
  });
  if ('refuseIf' in verdict) return complement(verdict.refuseIf).map((it) => rule([it]));
  const { allowIf, errno } = verdict;
  const allowed = allowIf.map((it) => rule(it));
  // The default of the profile catches the rest, unless the error is another one.
  if (errno === errnoRefused) return allowed;
  const others = complement(allowIf.map(([first]) => first)).map((it) => rule([it], errno));
  const halves = allowIf.flatMap(([first, second]) =>
    second === undefined ? [] : complement([second]).map((it) => rule([first, it], errno)),
  );
  return [...allowed, ...others, ...halves];
}

/**
 * Tests of which one holds exactly when none of the given holds; those must look at one argument and at all of its bits. The engine takes
 * no "unless", and its "not equal" compares 64 bits where the kernel reads 32, so that a set high bit would slip through. Hence one test for
 * each way to leave the common path of the values.
 */
function complement(tests: readonly ArgumentTest[]): ArgumentTest[] {
  const arg = tests[0]?.arg ?? 0;
  const walk = (values: number[], bit: number, mask: number, value: number): ArgumentTest[] => {
    if (values.length === 0) return [{ arg, mask, value }];
    if (bit < 0) return [];
    const one = 2 ** bit;
    const [set, clear] = [values.filter((it) => (it & one) !== 0), values.filter((it) => (it & one) === 0)];
    return [...walk(clear, bit - 1, mask + one, value), ...walk(set, bit - 1, mask + one, value + one)];
  };
  const values = tests.map((it) => it.value);
  return walk(values, 31, 0, 0);
}
