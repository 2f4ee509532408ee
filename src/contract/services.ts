// The services whose secrets need no bindings of one's own, and the variables in which programs look for each: `secret import` reads the first
// of them that is set, and a guest finds its placeholder in all of them. Where a value goes is known in vault/services.ts.

export const serviceVariables = {
  anthropic: ['ANTHROPIC_API_KEY'],
  openai: ['OPENAI_API_KEY'],
  github: ['GH_TOKEN', 'GITHUB_TOKEN'],
  google: ['GEMINI_API_KEY', 'GOOGLE_API_KEY'],
  groq: ['GROQ_API_KEY'],
  mistral: ['MISTRAL_API_KEY'],
  openrouter: ['OPENROUTER_API_KEY'],
  xai: ['XAI_API_KEY'],
  npm: ['NPM_TOKEN', 'NODE_AUTH_TOKEN'],
  pypi: ['PYPI_TOKEN', 'UV_PUBLISH_TOKEN'],
} as const satisfies Record<string, readonly string[]>;

export type ServiceName = keyof typeof serviceVariables;
