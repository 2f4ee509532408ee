// Settings of git in the environment, which leave no file behind: GIT_CONFIG_COUNT, and GIT_CONFIG_KEY_n and GIT_CONFIG_VALUE_n for each.

export type GitSetting = readonly [key: string, value: string];

const settingsMax = 256;

/** Those that variables hold; what is incomplete is left out. */
export function gitSettings(env: Readonly<Record<string, string>>): GitSetting[] {
  const count = Number(env.GIT_CONFIG_COUNT ?? 0);
  if (!Number.isInteger(count) || count < 1) return [];
  return Array.from({ length: Math.min(count, settingsMax) }, (_, index) => index).flatMap((index) => {
    const [key, value] = [env[`GIT_CONFIG_KEY_${index}`], env[`GIT_CONFIG_VALUE_${index}`]];
    return key === undefined || value === undefined ? [] : [[key, value] as const];
  });
}

export function gitVariables(settings: readonly GitSetting[]): Record<string, string> {
  if (settings.length === 0) return {};
  return Object.fromEntries([
    ['GIT_CONFIG_COUNT', String(settings.length)],
    ...settings.flatMap(([key, value], index) => [
      [`GIT_CONFIG_KEY_${index}`, key],
      [`GIT_CONFIG_VALUE_${index}`, value],
    ]),
  ]);
}

/** Who commits in a sandbox are from: nothing of the host's configuration is seen inside. */
export function gitIdentity({ name, email }: { name?: string; email?: string }): GitSetting[] {
  return [
    ...(name ? [['user.name', name] as const] : []),
    ...(email ? [['user.email', email] as const] : []),
  ];
}
