// What a host has for agents: where it stays and is read from, and what is not offered.
import { expect, test } from 'vitest';
import { credentialAdvice, credentialOffers, type HostFacts } from './credential-offers.ts';

const host = (
  files: Record<string, unknown>,
  more: { env?: Record<string, string>; programs?: string[] } = {},
): HostFacts => ({
  home: '/home/me',
  env: (variable) => more.env?.[variable],
  readFile: (path) => {
    const content = files[path.replace('/home/me/', '~/')];
    return content === undefined || typeof content === 'string' ? content : JSON.stringify(content);
  },
  hasProgram: (name) => more.programs?.includes(name) ?? false,
});

const login = { claudeAiOauth: { accessToken: 'sk-ant-oat01-real' } };

test.each([
  ['a variable', host({}, { env: { ANTHROPIC_API_KEY: 'k' } }), 'anthropic', { type: 'value', value: 'k' }],
  [
    'the login of Claude Code',
    host({ '~/.claude/.credentials.json': login }),
    'anthropic-oauth',
    { type: 'file', path: '/home/me/.claude/.credentials.json', json: '/claudeAiOauth/accessToken' },
  ],
  [
    'its folder elsewhere',
    host({ '/c/.credentials.json': login }, { env: { CLAUDE_CONFIG_DIR: '/c' } }),
    'anthropic-oauth',
    { type: 'file', path: '/c/.credentials.json', json: '/claudeAiOauth/accessToken' },
  ],
  [
    'its key',
    host({ '~/.claude.json': { primaryApiKey: 'k' } }),
    'anthropic',
    { type: 'file', path: '/home/me/.claude.json', json: '/primaryApiKey' },
  ],
  [
    'a key of Codex',
    host({ '~/.codex/auth.json': { OPENAI_API_KEY: 'k' } }),
    'openai',
    { type: 'file', path: '/home/me/.codex/auth.json', json: '/OPENAI_API_KEY' },
  ],
  [
    'gh that is logged in',
    host({ '~/.config/gh/hosts.yml': 'github.com:\n  user: me\n' }, { programs: ['gh'] }),
    'github',
    { type: 'command', command: ['gh', 'auth', 'token'] },
  ],
  [
    'AWS',
    host({ '~/.aws/config': '[default]\n' }, { programs: ['aws'] }),
    'aws',
    { type: 'command', command: ['aws', 'configure', 'export-credentials'] },
  ],
])('%s is offered', (_, facts, service, source) => {
  expect(credentialOffers(facts).offers).toEqual([{ service, source, from: expect.any(String) }]);
});

test('a variable goes before a file', () => {
  const { offers } = credentialOffers(
    host({ '~/.codex/auth.json': { OPENAI_API_KEY: 'file' } }, { env: { OPENAI_API_KEY: 'env' } }),
  );
  expect(offers).toEqual([
    { service: 'openai', source: { type: 'value', value: 'env' }, from: 'OPENAI_API_KEY' },
  ]);
});

test.each([
  ['nothing', host({})],
  ['files of other kinds', host({ '~/.claude/.credentials.json': 'no JSON', '~/.codex/auth.json': [] })],
  [
    'a login without a token',
    host({ '~/.claude/.credentials.json': { claudeAiOauth: { accessToken: null } } }),
  ],
  ['gh without a login', host({ '~/.config/gh/hosts.yml': 'ghe.example.com:\n' }, { programs: ['gh'] })],
  ['a login without gh', host({ '~/.config/gh/hosts.yml': 'github.com:\n' })],
])('%s is no offer', (_, facts) => {
  expect(credentialOffers(facts)).toEqual({ offers: [], withheld: [] });
});

test('logins that would not work from outside are named with the reason', () => {
  const facts = host({
    '~/.codex/auth.json': { OPENAI_API_KEY: null, tokens: { access_token: 'canary-1' } },
    '~/.config/gcloud/application_default_credentials.json': { refresh_token: 'canary-2' },
  });
  const answer = credentialOffers(facts);
  expect(answer.offers).toEqual([]);
  expect(answer.withheld.map((it) => it.what)).toEqual([
    'the ChatGPT login in /home/me/.codex/auth.json',
    'the login of gcloud',
  ]);
  expect(JSON.stringify(answer)).not.toContain('canary');
});

test('whoever starts an agent without a credential is told how to store one', () => {
  const claude = { name: 'claude', credentials: ['anthropic', 'anthropic-oauth'], available: [] as string[] };
  const none = credentialOffers(host({}));
  expect(credentialAdvice(claude, none)).toMatch(/glovebox secret set anthropic$/);
  const there = credentialOffers(host({ '~/.claude/.credentials.json': login }));
  expect(credentialAdvice(claude, there)).toMatch(/glovebox secret import anthropic-oauth$/);
  expect(credentialAdvice({ ...claude, available: ['anthropic'] }, none)).toBeUndefined();
  expect(credentialAdvice({ ...claude, credentials: [] }, none)).toBeUndefined();
});
