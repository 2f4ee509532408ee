// The services whose secrets need no bindings of one's own, and the variables in which programs look for each: `secret import` reads the first
// of them that is set, and a guest finds its placeholder in all of them. Where a value goes is known in vault/services.ts.

export const serviceVariables = {
  anthropic: ['ANTHROPIC_API_KEY'],
  /** Of a subscription; where there is a key, too, the key is used. */
  'anthropic-oauth': ['CLAUDE_CODE_OAUTH_TOKEN'],
  openai: ['OPENAI_API_KEY'],
  github: ['GH_TOKEN', 'GITHUB_TOKEN'],
  google: ['GEMINI_API_KEY', 'GOOGLE_API_KEY'],
  groq: ['GROQ_API_KEY'],
  mistral: ['MISTRAL_API_KEY'],
  openrouter: ['OPENROUTER_API_KEY'],
  xai: ['XAI_API_KEY'],
  npm: ['NPM_TOKEN', 'NODE_AUTH_TOKEN'],
  pypi: ['PYPI_TOKEN', 'UV_PUBLISH_TOKEN', 'TWINE_PASSWORD'],
  aws: ['AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'],
  cursor: ['CURSOR_API_KEY'],
  droid: ['FACTORY_API_KEY'],
  nebius: ['NEBIUS_API_KEY'],
} as const satisfies Record<string, readonly string[]>;

export type ServiceName = keyof typeof serviceVariables;

/**
 * What an environment holds for a service, and in which variable it was found. An AWS key pair is several variables in one value:
 * `ACCESS_KEY_ID:SECRET`, or `ACCESS_KEY_ID:SECRET:SESSION_TOKEN`.
 */
export function importedValue(
  service: ServiceName,
  readEnv: (variable: string) => string | undefined,
): { variable: string; value: string } | undefined {
  if (service === 'aws') {
    const parts = serviceVariables.aws.map(readEnv);
    if (parts.some((part) => !part)) return undefined;
    const session = readEnv('AWS_SESSION_TOKEN');
    return {
      variable: serviceVariables.aws[0],
      value: [...parts, ...(session ? [session] : [])].join(':'),
    };
  }
  for (const variable of serviceVariables[service]) {
    const value = readEnv(variable);
    if (value) return { variable, value };
  }
  return undefined;
}
