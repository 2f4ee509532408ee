// A project's own agents: each content is used once somebody has said yes to it, and nothing but a plain file is read.
import { execFileSync } from 'node:child_process';
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { approvedAgent, type ProjectAgent, projectAgents, summaryOf } from './project-agents.ts';

let folder: string;
let project: string;
let file: string;
const asked: string[] = [];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'glovebox-project-'));
  project = join(folder, 'project');
  mkdirSync(join(project, '.glovebox/agents'), { recursive: true });
  file = join(folder, 'home/approved-agents.json');
  asked.length = 0;
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const write = (text: string, name = 'mine.toml') =>
  writeFileSync(join(project, '.glovebox/agents', name), text);
const only = async () => (await projectAgents(project)).agents[0] as ProjectAgent;
const now = () => new Date(0);
const answer = (yes: boolean) => async (agent: ProjectAgent, why: string) => {
  asked.push(`${agent.definition.name} ${why}`);
  return yes;
};

test('a content is asked for once, and again when it has changed', async () => {
  write('command = ["one"]\n');
  expect((await approvedAgent(await only(), { file, ask: answer(true), now })).command).toEqual(['one']);
  expect((await approvedAgent(await only(), { file, ask: answer(false), now })).command).toEqual(['one']);
  write('command = ["two"]\n');
  await expect(approvedAgent(await only(), { file, ask: answer(false), now })).rejects.toMatchObject({
    code: 'permission',
    message: expect.stringContaining('has changed since it was approved'),
  });
  await approvedAgent(await only(), { file, ask: answer(true), now });
  write('command = ["one"]\n');
  await approvedAgent(await only(), { file, ask: answer(false), now });
  expect(asked).toEqual(['mine new', 'mine changed', 'mine changed']);
  expect(statSync(file).mode & 0o777).toBe(0o600);
  expect(readdirSync(join(folder, 'home'))).toEqual(['approved-agents.json']);
});

test('what is used is what was read, whatever the file is by then', async () => {
  write('command = ["one"]\n');
  const agent = await only();
  write('command = ["evil"]\n');
  expect((await approvedAgent(agent, { file, ask: answer(true), now })).command).toEqual(['one']);
  await expect(approvedAgent(await only(), { file, now })).rejects.toMatchObject({ code: 'permission' });
});

test('where nobody can be asked it is refused, with the way to approve', async () => {
  write('command = ["one"]\n');
  await expect(approvedAgent(await only(), { file, now })).rejects.toMatchObject({
    code: 'permission',
    message: expect.stringContaining('has not been approved'),
    hint: expect.stringContaining('terminal'),
  });
});

test('a list of approvals that is none approves nothing, and is not overwritten', async () => {
  write('command = ["one"]\n');
  mkdirSync(join(folder, 'home'));
  writeFileSync(file, '{"version": 1, "approved": 7}');
  await expect(approvedAgent(await only(), { file, ask: answer(true), now })).rejects.toMatchObject({
    code: 'invalid',
  });
  expect(readFileSync(file, 'utf8')).toBe('{"version": 1, "approved": 7}');
});

test('links, pipes and folders are not read, nor what is behind a folder that is a link', async () => {
  writeFileSync(join(folder, 'outside.toml'), 'command = ["outside"]\n');
  symlinkSync(join(folder, 'outside.toml'), join(project, '.glovebox/agents/link.toml'));
  execFileSync('mkfifo', [join(project, '.glovebox/agents/pipe.toml')]);
  mkdirSync(join(project, '.glovebox/agents/folder.toml'));
  expect(await projectAgents(project)).toEqual({ agents: [], problems: [] });

  write('command = ["real"]\n');
  expect((await projectAgents(project)).agents).toHaveLength(1);
  renameSync(join(project, '.glovebox/agents'), join(folder, 'agents'));
  symlinkSync(join(folder, 'agents'), join(project, '.glovebox/agents'));
  expect((await projectAgents(project)).agents).toEqual([]);
});

test('a broken file is reported by name and line beside the others', async () => {
  write('command = ["good"]\n', 'good.toml');
  write('command = ["x"]\nnonsense = 1\n', 'bad.toml');
  write(`#${'x'.repeat(300_000)}`, 'large.toml');
  const { agents, problems } = await projectAgents(project);
  expect(agents.map((it) => it.definition.name)).toEqual(['good']);
  expect(problems.map((it) => it.message)).toEqual([
    `${project}/.glovebox/agents/bad.toml:2: nonsense: is no key that is known here`,
    expect.stringContaining('large.toml: has more than'),
  ]);
});

test('a person is shown what it runs, reaches, writes and sets', async () => {
  write(`command = ["mine", "--yes"]
hosts = ["api.example.com"]
[env]
KEY = "value"
[[setup]]
run = "make"
[[files]]
path = "~/.minerc"
content = "x"
`);
  expect(summaryOf((await only()).definition)).toEqual([
    'runs: mine --yes',
    'sets up (create, as root): make',
    'may reach: api.example.com',
    'writes: ~/.minerc',
    'sets: KEY',
  ]);
});
