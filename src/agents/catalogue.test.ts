// The registry of agents: what is built in is sound, and what users add is read anew, told apart and reported.
import { mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parse } from 'smol-toml';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { AgentService } from '../api/agents.ts';
import type { AgentDefinition } from '../contract/agents.ts';
import { openLog } from '../lib/log.ts';
import { validateRule } from '../policy/rules.ts';
import type { CreateRequest } from '../sandbox/sandbox.ts';
import { builtInAgents } from './built-in.ts';
import { AgentCatalogue, type CatalogueOptions } from './catalogue.ts';

const signal = new AbortController().signal;
let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'glovebox-agents-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const request = (more: Partial<CreateRequest> = {}): CreateRequest => ({
  ...{ image: '', entrypoint: [], env: {}, metadata: {}, extensions: {}, limits: {}, mounts: [] },
  ...more,
});

function catalogue(more: Partial<CatalogueOptions> = {}, secrets: Record<string, string> = {}) {
  const opened = new AgentCatalogue({
    folder,
    placeholderOf: (service) => secrets[service],
    defaultRuntime: 'bubblewrap',
    defaultImage: (runtime) => (runtime === 'bubblewrap' ? 'host' : undefined),
    log: openLog({ level: 'silent' }),
    ...more,
  });
  // What the API asks for, and what only we have.
  return opened satisfies AgentService;
}

const unattended = {
  claude: 'claude --dangerously-skip-permissions',
  codex: 'codex --dangerously-bypass-approvals-and-sandbox',
  gemini: 'gemini --yolo',
  copilot: 'copilot --yolo',
  opencode: 'opencode',
  kiro: 'kiro-cli chat --trust-all-tools',
  cursor: 'cursor-agent --force',
  droid: 'droid',
  'docker-agent': 'docker-agent run --yolo',
};

describe('built in', () => {
  test.each(Object.entries(unattended))('%s starts unattended: %s', (name, command) => {
    expect(catalogue().get(name)).toMatchObject({ source: 'built-in', command: command.split(' ') });
  });

  test('shell needs nothing but sh', () => {
    expect(catalogue().get('shell')).toMatchObject({ command: ['sh', '-c', expect.any(String), 'shell'] });
    expect(builtInAgents.map((it) => it.name).sort()).toEqual([...Object.keys(unattended), 'shell'].sort());
  });

  const secrets = {
    ...{ anthropic: 'sk-ant-api03-x', 'anthropic-oauth': 'sk-ant-oat01-"x', openai: 'sk-proj-x' },
    ...{ google: 'AIzax', github: 'gho_x' },
  };
  test.each(
    builtInAgents,
  )('$name: its rules are rules, its settings are what they are called, once each', async ({ name }) => {
    for (const stored of [{}, secrets, { 'anthropic-oauth': secrets['anthropic-oauth'] }]) {
      const workspaces = [{ path: '/w/with "quotes" \\ and ü', mode: 'mount' as const, readOnly: false }];
      const planned = await catalogue({}, stored).prepare(request({ workspaces }), name, signal);
      for (const rule of planned.rules ?? []) validateRule({ ...rule, protocols: ['tcp'] });
      const paths = (planned.files ?? []).map((it) => it.path);
      expect(new Set(paths).size).toBe(paths.length);
      for (const { path, content } of planned.files ?? []) {
        expect(content).not.toContain('{{');
        if (path.endsWith('.json')) JSON.parse(content);
        if (path.endsWith('.toml')) parse(content);
      }
    }
  });
});

describe('files of the home', () => {
  const write = (name: string, text: string) => writeFileSync(join(folder, name), text);

  test('add agents and replace built-in ones, and are read again when they change', () => {
    const agents = catalogue();
    expect(agents.get('mine')).toBeUndefined();
    write('mine.toml', 'command = ["mine", "--yes"]\nhosts = ["api.example.com"]\n');
    expect(agents.get('mine')).toMatchObject({ source: 'config', command: ['mine', '--yes'] });
    write('mine.toml', 'command = ["mine", "--no"]\n');
    expect(agents.get('mine')?.command).toEqual(['mine', '--no']);
    write('claude.toml', 'command = ["my-claude"]\n');
    expect(agents.get('claude')).toMatchObject({ source: 'config', command: ['my-claude'] });
    rmSync(join(folder, 'claude.toml'));
    expect(agents.get('claude')).toMatchObject({ source: 'built-in' });
    expect(agents.list().map((it) => it.name)).toEqual([...Object.keys(unattended), 'mine', 'shell'].sort());
  });

  test.each([
    ['no command', 'description = "x"\n', 'broken.toml: command: '],
    ['no TOML', 'command = ["x"]\nenv = {\n', 'broken.toml:'],
    [
      'an unknown key',
      'command = ["x"]\n\n[env]\nA = "b"\n[extra]\nx = 1\n',
      'broken.toml:5: extra: is no key',
    ],
    ['a wrong type', 'command = ["x"]\nhosts = "one"\n', 'broken.toml:2: hosts: '],
    ['an unknown service', 'command = ["x"]\ncredentials = ["nobody"]\n', 'broken.toml:2: credentials.0: '],
    [
      'a path with ..',
      'command = ["x"]\n[[files]]\npath = "/a/../b"\ncontent = ""\n',
      'broken.toml:3: files.0.path: ',
    ],
  ])('that are broken (%s) are reported with file and line, and break no others', (_, text, message) => {
    write('good.toml', 'command = ["good"]\n');
    write('broken.toml', text);
    const agents = catalogue();
    expect(agents.list().map((it) => it.name)).toContain('good');
    expect(agents.list().map((it) => it.name)).not.toContain('broken');
    expect(agents.problems().map((it) => it.message)).toEqual([
      expect.stringContaining(join(folder, message)),
    ]);
    expect(() => agents.get('broken')).toThrow(message);
    rmSync(join(folder, 'broken.toml'));
    expect(agents.problems()).toEqual([]);
  });

  test('of one name are a mistake of the second, until the first is gone', () => {
    write('a.toml', 'name = "same"\ncommand = ["first"]\n');
    write('b.toml', 'name = "same"\ncommand = ["second"]\n');
    const agents = catalogue();
    expect(agents.get('same')?.command).toEqual(['first']);
    expect(agents.problems()).toMatchObject([{ message: expect.stringContaining('b.toml') }]);
    renameSync(join(folder, 'a.toml'), join(folder, 'a.off'));
    expect(agents.get('same')?.command).toEqual(['second']);
    expect(agents.problems()).toEqual([]);
  });

  test('that are folders, too large, or none are no trouble', () => {
    mkdirSync(join(folder, 'folder.toml'));
    write('large.toml', `command = ["x"]\n#${'x'.repeat(300_000)}`);
    expect(catalogue().problems()).toHaveLength(2);
    expect(catalogue({ folder: '/nowhere' }).list()).toHaveLength(builtInAgents.length);
  });
});

describe('a request', () => {
  const path = '/home/me/project';
  const workspaces = [{ path, mode: 'mount' as const, readOnly: false }];

  test('is kept, stops by itself, and is in the workspace, with what the agent has to reach', async () => {
    const planned = await catalogue().prepare(
      request({ workspaces, metadata: { 'glovebox.name': 'claude-project' } }),
      'claude',
      signal,
    );
    expect(planned).toMatchObject({
      ...{ agent: 'claude', image: 'host', keep: true, autoStopAfterMs: 30_000, cwd: path },
      env: {
        ...{ IS_SANDBOX: '1', SANDBOX_NAME: 'claude-project', WORKSPACE_DIR: path, DISABLE_AUTOUPDATER: '1' },
        ...{ GIT_CONFIG_COUNT: '1', GIT_CONFIG_KEY_0: 'safe.directory', GIT_CONFIG_VALUE_0: path },
      },
      requires: { binary: 'claude', message: 'agent binary "claude" not found in sandbox (image host)' },
    });
    expect(planned.requires?.hint).toMatch(/glovebox\/claude.*--install/);
    expect(planned.rules?.[0]).toMatchObject({
      decision: 'allow',
      resources: expect.arrayContaining(['api.anthropic.com:443']),
    });
    expect(planned.setup).toEqual([]);
    const { projects } = JSON.parse(planned.files?.find((it) => it.path === '~/.claude.json')?.content ?? '');
    expect(projects[path]).toMatchObject({ hasTrustDialogAccepted: true });
    expect(planned.files?.at(-1)).toMatchObject({ path: '~/.claude/CLAUDE.md', keep: true });
    expect(planned.files?.at(-1)?.content).toContain('--sandbox claude-project HOST:PORT');
  });

  test('says itself what it wants, and gets it', async () => {
    const own = request({
      ...{ image: 'mine', keep: false, cwd: '/elsewhere', user: 'me', workspaces },
      env: { IS_SANDBOX: '', GIT_CONFIG_COUNT: '1', GIT_CONFIG_KEY_0: 'user.name', GIT_CONFIG_VALUE_0: 'Me' },
      files: [{ path: '~/.claude/settings.json', content: '{}', mode: '0600', keep: false }],
      rules: [{ decision: 'deny', resources: ['claude.ai'] }],
      setup: [{ run: 'true', when: 'create', timeoutSeconds: 5 }],
    });
    const planned = await catalogue().prepare(own, 'claude', signal);
    expect(planned).toMatchObject({ image: 'mine', keep: false, cwd: '/elsewhere', user: 'me' });
    expect(planned.autoStopAfterMs).toBeUndefined();
    expect(planned.env).toMatchObject({
      ...{ IS_SANDBOX: '', GIT_CONFIG_COUNT: '2', GIT_CONFIG_KEY_0: 'safe.directory' },
      ...{ GIT_CONFIG_KEY_1: 'user.name', GIT_CONFIG_VALUE_1: 'Me' },
    });
    expect(planned.files?.filter((it) => it.path === '~/.claude/settings.json')).toEqual(own.files);
    expect(planned.rules?.at(-1)).toEqual(own.rules?.[0]);
    expect(planned.rules?.[0]?.resources).not.toContain('claude.ai:443');
    expect(planned.setup).toEqual(own.setup);
    const longer = await catalogue().prepare(request({ autoStopAfterMs: 5 }), 'shell', signal);
    expect(longer).toMatchObject({ keep: true, autoStopAfterMs: 5 });
    const never = await catalogue().prepare(request({ autoStopAfterMs: null }), 'shell', signal);
    expect(never).toMatchObject({ keep: true, autoStopAfterMs: null });
  });

  test.each([
    ['its own template', ['glovebox/claude', 'glovebox/base'], 'glovebox/claude'],
    ['the base template', ['glovebox/base'], 'glovebox/base'],
    ['what the runtime makes of nothing', [], 'host'],
  ])('gets as image %s', async (_, there, image) => {
    const asked: string[] = [];
    const hasImage = async (name: string, runtime: string) => {
      asked.push(runtime);
      return there.includes(name);
    };
    expect((await catalogue({ hasImage }).prepare(request(), 'claude', signal)).image).toBe(image);
    expect(new Set(asked)).toEqual(new Set(['bubblewrap']));
  });

  test('gets the image that its definition says, for its runtime', async () => {
    const definition = (image: AgentDefinition['image']) =>
      ({ ...builtInAgents[0], image }) as AgentDefinition;
    const imageOf = async (image: AgentDefinition['image'], runtime: string) =>
      (await catalogue().prepare(request({ runtime }), definition(image), signal)).image;
    expect(await imageOf('one', 'docker')).toBe('one');
    expect(await imageOf({ docker: 'd', default: 'x' }, 'docker')).toBe('d');
    expect(await imageOf({ docker: 'd', default: 'x' }, 'bubblewrap')).toBe('x');
    await expect(imageOf(undefined, 'docker')).rejects.toMatchObject({
      code: 'invalid',
      hint: expect.stringContaining('template build'),
    });
  });

  test('for an agent that nobody knows names those there are', async () => {
    await expect(catalogue().prepare(request(), 'nobody', signal)).rejects.toMatchObject({
      code: 'not-found',
      hint: expect.stringContaining('claude, codex'),
    });
  });

  test('has settings by the credential that is stored: a key, a subscription, neither', async () => {
    const filesOf = async (secrets: Record<string, string>) => {
      const { files } = await catalogue({}, secrets).prepare(request(), 'claude', signal);
      const content = (path: string) => files?.find((it) => it.path === path)?.content;
      return {
        state: JSON.parse(content('~/.claude.json') ?? ''),
        login: content('~/.claude/.credentials.json'),
      };
    };
    const key = `sk-ant-api03-${'k'.repeat(60)}-the-last-20-of-it`;
    const neither = await filesOf({});
    expect([neither.state.customApiKeyResponses, neither.login]).toEqual([undefined, undefined]);
    const withKey = await filesOf({ anthropic: key, 'anthropic-oauth': 'sk-ant-oat01-x' });
    expect(withKey.state.customApiKeyResponses.approved).toEqual([key.slice(-20)]);
    expect(withKey.login).toBeUndefined();
    const { claudeAiOauth } = JSON.parse(
      (await filesOf({ 'anthropic-oauth': 'sk-ant-oat01-x' })).login ?? '',
    );
    expect(claudeAiOauth.accessToken).toBe('sk-ant-oat01-x');
    expect(claudeAiOauth.expiresAt).toBeGreaterThan(Date.UTC(2090, 0));
    expect(catalogue({}, { anthropic: key }).get('claude')?.available).toEqual(['anthropic']);
  });

  test('has no instructions written into a workspace', async () => {
    const definition = { ...builtInAgents[0], instructions: `${path}/AGENTS.md` } as AgentDefinition;
    const planned = await catalogue().prepare(request({ workspaces }), definition, signal);
    expect(planned.files?.map((it) => it.path)).not.toContain(`${path}/AGENTS.md`);
  });
});
