// The agents that are known without a file: how each starts unattended, what it has to reach, and the settings with which it asks nothing at its first
// start. Data only; what is done with it is in plan.ts.
import type { z } from 'zod';
import { AgentDefinition } from '../contract/agents.ts';

type Definition = z.input<typeof AgentDefinition>;
type File = NonNullable<Definition['files']>[number];

const json = (path: string, content: unknown, more: Partial<File> = {}): File => ({
  ...{ path, content: `${JSON.stringify(content, null, 2)}\n` },
  ...more,
});

const npm = (packageName: string): Definition['install'] => [
  {
    label: `npm install ${packageName}`,
    run: `command -v npm >/dev/null || { echo 'npm is not in this image' >&2; exit 1; }
npm install -g --no-fund --no-audit ${packageName}`,
    hosts: ['registry.npmjs.org'],
  },
];

/** Installers that put a program below the home folder of whoever runs them; everybody is to find it. */
const script = (url: string, program: string, hosts: string[]): Definition['install'] => [
  {
    label: `install ${program}`,
    run: `set -e
export HOME=/opt/${program}
mkdir -p "$HOME"
curl -fsSL ${url} -o "$HOME/install.sh"
bash "$HOME/install.sh"
chmod -R a+rX "$HOME"
bin=/usr/local/bin
[ -w "$bin" ] || bin=/opt/bin
mkdir -p "$bin"
ln -sf "$HOME/.local/bin/${program}" "$bin/${program}"`,
    hosts: [new URL(url).hostname, ...hosts],
  },
];

const claudeState = {
  hasCompletedOnboarding: true,
  theme: 'dark',
  bypassPermissionsModeAccepted: true,
  projects: {
    '{{workspace}}': {
      allowedTools: [],
      hasTrustDialogAccepted: true,
      hasTrustDialogHooksAccepted: true,
      hasCompletedProjectOnboarding: true,
    },
  },
};

const claude: Definition = {
  name: 'claude',
  description: 'Claude Code',
  command: ['claude', '--dangerously-skip-permissions'],
  install: npm('@anthropic-ai/claude-code'),
  env: { DISABLE_AUTOUPDATER: '1', CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: '1' },
  files: [
    json('~/.claude.json', claudeState, { mode: '0600', if: { lacks: 'anthropic' } }),
    // Without the second part it asks whether the key in its environment may be used.
    json(
      '~/.claude.json',
      { ...claudeState, customApiKeyResponses: { approved: ['{{secret.anthropic.tail}}'], rejected: [] } },
      { mode: '0600', if: { has: 'anthropic' } },
    ),
    json('~/.claude/settings.json', {
      permissions: { defaultMode: 'bypassPermissions' },
      skipDangerousModePermissionPrompt: true,
    }),
    // It looks valid for ever, so that nothing tries to renew it from inside: what is put in on the way out is as old as the host's own.
    json(
      '~/.claude/.credentials.json',
      {
        claudeAiOauth: {
          accessToken: '{{secret.anthropic-oauth}}',
          refreshToken: `sk-ant-ort01-${'0'.repeat(93)}AA`,
          expiresAt: Date.UTC(2099, 11, 31),
          scopes: ['user:inference', 'user:profile'],
          subscriptionType: null,
        },
      },
      { mode: '0600', if: { has: 'anthropic-oauth', lacks: 'anthropic' } },
    ),
  ],
  hosts: [
    'api.anthropic.com',
    'mcp-proxy.anthropic.com',
    'claude.ai',
    'console.anthropic.com',
    'platform.claude.com',
  ],
  credentials: ['anthropic', 'anthropic-oauth'],
  instructions: '~/.claude/CLAUDE.md',
};

const codex: Definition = {
  name: 'codex',
  description: 'OpenAI Codex',
  command: ['codex', '--dangerously-bypass-approvals-and-sandbox'],
  install: npm('@openai/codex'),
  files: [
    {
      path: '~/.codex/config.toml',
      content: `approval_policy = "never"
sandbox_mode = "danger-full-access"
check_for_update_on_startup = false
cli_auth_credentials_store = "file"

[projects."{{workspace}}"]
trust_level = "trusted"
`,
    },
    json(
      '~/.codex/auth.json',
      { OPENAI_API_KEY: '{{secret.openai}}' },
      { mode: '0600', if: { has: 'openai' } },
    ),
  ],
  hosts: ['api.openai.com', 'chatgpt.com', 'auth.openai.com'],
  credentials: ['openai'],
  instructions: '~/.codex/AGENTS.md',
};

const geminiSettings = {
  general: { disableAutoUpdate: true, disableUpdateNag: true },
  privacy: { usageStatisticsEnabled: false },
  security: { folderTrust: { enabled: false } },
};

const gemini: Definition = {
  name: 'gemini',
  description: 'Gemini CLI',
  command: ['gemini', '--yolo'],
  install: npm('@google/gemini-cli'),
  files: [
    json('~/.gemini/settings.json', geminiSettings, { if: { lacks: 'google' } }),
    json(
      '~/.gemini/settings.json',
      {
        ...geminiSettings,
        security: { ...geminiSettings.security, auth: { selectedType: 'gemini-api-key' } },
      },
      { if: { has: 'google' } },
    ),
  ],
  hosts: [
    ...['generativelanguage.googleapis.com', 'cloudcode-pa.googleapis.com', 'oauth2.googleapis.com'],
    'accounts.google.com',
  ],
  credentials: ['google'],
  instructions: '~/.gemini/GEMINI.md',
};

const copilot: Definition = {
  name: 'copilot',
  description: 'GitHub Copilot CLI',
  command: ['copilot', '--yolo'],
  install: npm('@github/copilot'),
  // The second spelling is that of later versions.
  files: [
    json('~/.copilot/config.json', {
      banner: 'never',
      trusted_folders: ['{{workspace}}'],
      trustedFolders: ['{{workspace}}'],
    }),
  ],
  hosts: ['api.github.com', 'github.com', 'api.githubcopilot.com', '*.githubcopilot.com'],
  credentials: ['github'],
  instructions: '~/.copilot/copilot-instructions.md',
};

const opencode: Definition = {
  name: 'opencode',
  description: 'OpenCode',
  command: ['opencode'],
  install: npm('opencode-ai'),
  files: [
    json('~/.config/opencode/opencode.json', {
      $schema: 'https://opencode.ai/config.json',
      autoupdate: false,
      permission: { edit: 'allow', bash: 'allow', webfetch: 'allow' },
    }),
  ],
  hosts: [
    ...['models.dev', 'opencode.ai', 'api.anthropic.com', 'api.openai.com', 'openrouter.ai', 'api.groq.com'],
    ...['generativelanguage.googleapis.com', 'api.mistral.ai', 'api.x.ai', 'registry.npmjs.org'],
  ],
  credentials: ['anthropic', 'openai', 'google', 'openrouter', 'groq', 'mistral', 'xai'],
  instructions: '~/.config/opencode/AGENTS.md',
};

const kiro: Definition = {
  name: 'kiro',
  description: 'Kiro CLI',
  command: ['kiro-cli', 'chat', '--trust-all-tools'],
  install: script('https://cli.kiro.dev/install', 'kiro-cli', [
    'desktop-release.q.us-east-1.amazonaws.com',
    'prod.download.cli.kiro.dev',
  ]),
  hosts: [
    ...['*.kiro.dev', 'q.us-east-1.amazonaws.com', 'codewhisperer.us-east-1.amazonaws.com'],
    ...['oidc.us-east-1.amazonaws.com', 'cognito-identity.us-east-1.amazonaws.com', 'view.awsapps.com'],
  ],
  instructions: '~/.kiro/steering/sandbox.md',
};

const cursor: Definition = {
  name: 'cursor',
  description: 'Cursor CLI',
  command: ['cursor-agent', '--force'],
  install: script('https://cursor.com/install', 'cursor-agent', ['downloads.cursor.com']),
  // HTTP/1.1: its other way of speaking is one stream over HTTP/2 that proxies hold up.
  files: [
    json('~/.cursor/cli-config.json', {
      version: 1,
      editor: { vimMode: false },
      permissions: { allow: ['Shell(**)', 'Read(**)', 'Write(**)', 'WebFetch(*)', 'Mcp(*:*)'], deny: [] },
      approvalMode: 'unrestricted',
      network: { useHttp1ForAgent: true },
    }),
  ],
  hosts: ['cursor.com', '*.cursor.com', '*.cursor.sh'],
  credentials: ['cursor'],
};

const droid: Definition = {
  name: 'droid',
  description: 'Factory Droid',
  command: ['droid'],
  install: script('https://app.factory.ai/cli', 'droid', ['downloads.factory.ai']),
  env: { FACTORY_DROID_AUTO_UPDATE_ENABLED: 'false' },
  hosts: ['api.factory.ai', 'app.factory.ai', 'relay.factory.ai', 'auth.factory.ai'],
  credentials: ['droid'],
  instructions: '~/.factory/AGENTS.md',
};

const dockerAgent: Definition = {
  name: 'docker-agent',
  description: 'Docker Agent',
  command: ['docker-agent', 'run', '--yolo'],
  hosts: ['api.anthropic.com', 'api.openai.com', 'generativelanguage.googleapis.com', 'api.mistral.ai'],
  credentials: ['anthropic', 'openai', 'google', 'mistral'],
};

const shell: Definition = {
  name: 'shell',
  description: 'a login shell, without an agent',
  // Words behind it are the shell's own arguments.
  command: [
    'sh',
    '-c',
    'if command -v bash >/dev/null 2>&1; then exec bash -l "$@"; fi; exec sh -l "$@"',
    'shell',
  ],
};

export const builtInAgents: readonly AgentDefinition[] = [
  ...[claude, codex, gemini, copilot, opencode, kiro, cursor, droid, dockerAgent, shell],
].map((definition) => AgentDefinition.parse(definition));
