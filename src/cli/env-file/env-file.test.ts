// What an env file says and what comes of it: each mistake with its line, the user's base below, expressions, bounds, and the lines that a person says yes to.
import { execFileSync } from 'node:child_process';
import {
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { Failure } from '../../lib/failure.ts';
import { fileBytesMax, parseYaml, readDocument } from './document.ts';
import { type EnvPlan, type PlanInputs, planLines, planOf, secretProblems, trackedLines } from './plan.ts';

const head = 'schemaVersion: "1"\nagent: shell\n';
const at = (text: string, path = '/p/sbxenv.yaml') => parseYaml(Buffer.from(text), path);
const plan = (text: string, more: Partial<PlanInputs> = {}): EnvPlan =>
  planOf({ document: at(text), given: {}, settle: (it) => [...it], ...more });
const messageOf = (act: () => unknown): string => {
  try {
    act();
  } catch (error) {
    const { code, message } = error as Failure;
    return `${code} ${message}`;
  }
  return 'nothing is wrong';
};
const problemOf = (text: string, given: Record<string, string> = {}) =>
  messageOf(() => plan(text, { given }));

describe('what is wrong with a file is said with its line', () => {
  const noHostCommands =
    'a command of a project does not run on this machine; `initialize` runs in the sandbox';
  const noSources =
    'a project does not say where a key comes from: name the secret alone, and keep it with `glovebox secret set`';
  const skills = 'skills are not shared: keep them in the project, where the agent looks for them';
  const cases: [file: string, message: string][] = [
    ['', ': must be a table of keys'],
    ['- a\n', ': must be a table of keys'],
    ['agent: shell\n', ': schemaVersion: must be "1"'],
    ['schemaVersion: "2"\nagent: shell\n', ':1: schemaVersion: must be "1"'],
    ['schemaVersion: "1"\n', ': agent: is missing'],
    ['schemaVersion: "1"\nagent: Claude Code\n', ':2: agent: is no name of an agent'],
    [`${head}name: a\n`, ':3: name: has to have 2 to 63 characters'],
    [`${head}name: default\n`, ':3: name: is reserved'],
    [`${head}name: \${{ env.projectDir }}\n`, ':3: name: has to begin with a letter or a digit'],
    [`${head}colour: red\n`, ':3: colour: is no key that is known here'],
    [`${head}workspace:\n  path: .\n  mode: overlay\n`, ':5: workspace.mode: is no key that is known here'],
    [`${head}workspace: {clone: true}\n`, ':3: workspace.path: is missing'],
    [`${head}workspace: [.]\n`, ':3: workspace: must be a table of keys'],
    [`${head}workspace: ""\n`, ':3: workspace.path: is empty'],
    [
      `${head}additionalWorkspaces:\n  - path: a\n    readOnly: yes\n`,
      ':5: additionalWorkspaces.0.readOnly: must be true or false',
    ],
    [`${head}additionalWorkspaces: a\n`, ':3: additionalWorkspaces: must be a list'],
    [`${head}env:\n  A=B: x\n`, ':4: env.A=B: is no name of a variable'],
    [`${head}env:\n  A: [x]\n`, ':4: env.A: must be a text'],
    [`${head}env:\n  A: 1\n  A: 2\n`, ':5: env.A: is there twice'],
    [`${head}env:\n  __proto__: {a: b}\n`, ':4: __proto__: is no key that is known here'],
    [`${head}env:\n  A: "\\0"\n`, ':4: env.A: has a NUL in it'],
    [`${head}sandboxOptions: {cpus: many}\n`, ':3: sandboxOptions.cpus: must be a number of cores'],
    [
      `${head}sandboxOptions:\n  memory: 4 gigs\n`,
      ':4: sandboxOptions.memory: must be a size such as 512m or 4g',
    ],
    [
      `${head}sandboxOptions:\n  writableEnvFiles: true\n`,
      ':4: sandboxOptions.writableEnvFiles: a file that has changed is asked about again, whoever wrote it',
    ],
    [`${head}sandboxOptions: {skills: off}\n`, `:3: sandboxOptions.skills: ${skills}`],
    [`${head}ports:\n  - sandbox: 70000\n`, ':4: ports.0.sandbox: must be a port, a number from 1 to 65535'],
    [`${head}ports:\n  - host: 80\n`, ':4: ports.0.sandbox: is missing'],
    [`${head}ports: ["3000:3000"]\n`, ':3: ports.0: must be a table of keys'],
    [
      `${head}kits: [a]\n`,
      ':3: kits: there are no kits: make a template (`glovebox template build`), or an agent of your own (docs/guide/agents.md)',
    ],
    [
      `${head}registries:\n  ghcr.io: {}\n`,
      ':3: registries: keys of registries are not taken from a project: bring the image in with `glovebox image import`',
    ],
    [
      `${head}mcp:\n  servers: {}\n`,
      ":3: mcp: servers are not set up from here: put them into the agent's own settings, as a file of its definition",
    ],
    [`${head}skills: readonly\n`, `:3: skills: ${skills}`],
    [`${head}lifecycle:\n  postCreate:\n    - command: x\n`, `:4: lifecycle.postCreate: ${noHostCommands}`],
    [`${head}lifecycle:\n  preRemove: []\n`, `:4: lifecycle.preRemove: ${noHostCommands}`],
    [
      `${head}lifecycle:\n  initialize:\n    - workdir: x\n`,
      ':5: lifecycle.initialize.0.command: is missing',
    ],
    [`${head}secrets:\n  github:\n    command: gh auth token\n`, `:5: secrets.github.command: ${noSources}`],
    [`${head}secrets: {x: {value: "1"}}\n`, `:3: secrets.x.value: ${noSources}`],
    [`${head}bindings:\n  github: {apiKey: {domains: []}}\n`, ':4: bindings.github.apiKey.domains: is empty'],
    [
      `${head}env: {A: "\${{ env.HOME }}"}\n`,
      `:3: env.A: \${{ env.HOME }}: there are env.args.NAME, env.projectDir and env.fileDir`,
    ],
    [
      `${head}env: {A: "\${{ env.args.x }}"}\n`,
      `:3: env.A: \${{ env.args.x }}: there is no argument 'x' under args`,
    ],
    [
      `${head}env: {A: "\${{ env.args.__proto__ }}"}\n`,
      `:3: env.A: \${{ env.args.__proto__ }}: there is no argument '__proto__' under args`,
    ],
    [
      `${head}env:\n  A: "\${{ env.fileDir"\n`,
      ':4: env.A: an expression has no }}; write $$ before {{ for the characters themselves',
    ],
    [`${head}args:\n  x: {}\n`, ':4: args.x: needs either a default or required: true'],
    [
      `${head}args:\n  x: {default: a, required: true}\n`,
      ':4: args.x: needs either a default or required: true',
    ],
    [`${head}args:\n  1x: {default: a}\n`, ':4: args.1x: is no name of an argument'],
    [`${head}args:\n  x: {required: true}\n`, ":4: the argument 'x' has to be given"],
    [`${head}args:\n  x: {default: c, enum: [a, b]}\n`, ":4: the argument 'x' is 'c', not one of a, b"],
    [
      `${head}args:\n  x: {default: ab, pattern: "a|b"}\n`,
      ":4: the argument 'x' is 'ab', which does not match a|b",
    ],
    [
      `${head}args:\n  x: {default: a, pattern: "("}\n`,
      ':4: the argument \'x\' has a pattern that cannot be used: "(" is no pattern: /(/u: Unterminated group',
    ],
    [
      `${head}args:\n  x: {default: "${'a'.repeat(40)}!", pattern: "(a+)+"}\n`,
      `:4: the argument 'x' is '${'a'.repeat(40)}!', which takes its pattern too long`,
    ],
    ['a: *x\n', ':1: *x: there is no &x before it'],
    ['a: &a [*a]\n', ':1: *a: there is no &a before it'],
    ['a: 1\n---\nb: 2\n', ':2:1: has more than one document'],
    ['a: !!js/function x\n', ':1:4: is not YAML: Unresolved tag: tag:yaml.org,2002:js/function'],
    ['a:\n\tb: 1\n', ':2:1: is not YAML: Tabs are not allowed as indentation'],
    ['? [a]\n: b\n', ':1: has a key that is no text'],
  ];
  test.each(cases)('%j', (file, message) => expect(problemOf(file)).toBe(`invalid /p/sbxenv.yaml${message}`));

  test('an argument that is not declared', () => {
    expect(problemOf(head, { y: '1' })).toBe("invalid --env-arg: the env file has no argument 'y'");
  });

  test('a name in the base', () => {
    const base = at(`${head}name: mine\n`, '/home/.sbxenv.yaml');
    expect(messageOf(() => plan(head, { base }))).toBe(
      'invalid /home/.sbxenv.yaml:3: name: is for the file of a project: all would have the same name',
    );
  });
});

describe('a file that is made to be too much is refused quickly', () => {
  const laughs = ['a0: &a0 [x, x, x, x]'];
  for (let i = 1; i < 12; i++)
    laughs.push(
      `a${i}: &a${i} [${Array(9)
        .fill(`*a${i - 1}`)
        .join(', ')}]`,
    );
  const cases: [string, string, string][] = [
    ['aliases of aliases', laughs.join('\n'), 'has more than 5000 values'],
    ['lists in lists', '['.repeat(200_000), 'is nested deeper than 16'],
    ['tables in tables', '{a: '.repeat(60_000), 'is nested deeper than 16'],
    ['lists in one line', `a: ${'- '.repeat(100_000)}`, 'is nested deeper than 16'],
    ['keys of keys', '? '.repeat(100_000), 'is nested deeper than 16'],
    [
      'tables by lines',
      Array.from({ length: 600 }, (_, i) => `${' '.repeat(i)}a:`).join('\n'),
      'is nested deeper than 16',
    ],
    [
      'very many keys',
      Array.from({ length: 20_000 }, (_, i) => `k${i}: v`).join('\n'),
      'has more than 5000 values',
    ],
    ['very many aliases', `a: &a 1\nb: [${'*a, '.repeat(50_000)}]`, 'has more than 5000 values'],
  ];
  // The parser without a bound takes minutes for some of these: longer than a test may.
  test.each(cases)('%s', (_, text, message) => {
    expect(problemOf(text)).toMatch(new RegExp(`^invalid /p/sbxenv\\.yaml:\\d+: ${message}$`));
  });
});

describe('reading', () => {
  let folder: string;
  beforeEach(() => {
    folder = realpathSync(mkdtempSync(join(tmpdir(), 'glovebox-env-file-')));
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));
  const failing = async (path: string, link = false) =>
    await readDocument(path, { link }).then(
      (it) => it?.value,
      (error: Failure) => error.message,
    );

  test('a plain file alone is read, and of links only the user’s own', async () => {
    const file = join(folder, 'sbxenv.yaml');
    expect(await failing(file)).toBeUndefined();
    writeFileSync(join(folder, 'other'), 'a: 1.10\n');
    symlinkSync('other', file);
    expect(await failing(file)).toBe(`${file}: is a link`);
    expect(await failing(file, true)).toEqual({ a: '1.10' });
    rmSync(file);
    mkdirSync(file);
    expect(await failing(file)).toBe(`${file}: is no plain file`);
    rmSync(file, { recursive: true });
    // Nobody writes to it: whoever opens it without care waits for ever.
    execFileSync('mkfifo', [file]);
    expect(await failing(file)).toBe(`${file}: is no plain file`);
    rmSync(file);
    writeFileSync(file, 'x'.repeat(fileBytesMax + 1));
    expect(await failing(file)).toBe(`${file}: has more than ${fileBytesMax} bytes`);
    writeFileSync(file, Buffer.from([0xff, 0xfe]));
    expect(await failing(file)).toBe(`${file}: is not UTF-8`);
  });
});

describe('what comes of a file', () => {
  test('everything it may say, over the base of the user', () => {
    const base = at(
      'schemaVersion: "1"\nagent: claude\nenv: {A: base, B: base}\nworkspace: ./mine\nsecrets: [npm]\nsandboxOptions: {cpus: 1, memory: 1g}\n' +
        'additionalWorkspaces: [../notes]\nlifecycle: {initialize: [{command: first}]}\n',
      '/home/me/.sbxenv.yaml',
    );
    const text = `schemaVersion: 1
name: web-\${{ env.args.channel }}
agent: shell
args:
  channel: {default: beta, enum: [beta, stable]}
  who: {required: true, pattern: "[a-z]+"}
workspace: {path: ./app, clone: true}
additionalWorkspaces:
  - {path: "\${{ env.projectDir }}/lib", readOnly: true}
  - /srv/data
env: {B: "\${{env.args.who}} & $\${{ env.args.who }}", V: 1.10, EMPTY: }
sandboxOptions: {cpus: 2.5}
secrets: {github: , anthropic: {}}
bindings: {github: {apiKey: {domains: [api.github.com]}, oauth: {domains: [github.com]}}}
ports: [{sandbox: 3000, host: 8080}, {sandbox: 4000}]
lifecycle:
  initialize: [{command: make, workdir: sub, timeout: 90s}, {command: ls, workdir: /etc}]
`;
    const { sha256, ...made } = plan(text, { base, given: { who: 'you' } });
    expect(sha256).toMatch(/^[0-9a-f]{64}$/);
    expect(made).toEqual({
      ...{ file: '/p/sbxenv.yaml', base: '/home/me/.sbxenv.yaml', args: { channel: 'beta', who: 'you' } },
      ...{ name: 'web-beta', agent: 'shell', cpus: '2.5', memory: '1g' },
      workspaces: [
        { path: '/p/app', readOnly: false, mode: 'clone', outside: false },
        { path: '/home/notes', readOnly: false, mode: 'mount', outside: true },
        { path: '/p/lib', readOnly: true, mode: 'mount', outside: false },
        { path: '/srv/data', readOnly: false, mode: 'mount', outside: true },
      ],
      env: { A: 'base', B: `you & \${{ env.args.who }}`, V: '1.10', EMPTY: '' },
      ports: [{ sandbox: 3000, host: 8080 }, { sandbox: 4000 }],
      secrets: ['npm', 'github', 'anthropic'],
      bindings: { github: ['api.github.com', 'github.com'] },
      initialize: [
        { command: 'first', workdir: '/p/app' },
        { command: 'make', workdir: '/p/app/sub', timeoutSeconds: 90 },
        { command: 'ls', workdir: '/etc' },
      ],
    });
  });

  test('the file of the guide is one', () => {
    const guide = readFileSync(join(import.meta.dirname, '../../../docs/guide/agents-at-home.md'), 'utf8');
    const file = /```yaml\n([\s\S]*?)```/.exec(guide)?.[1] as string;
    expect(plan(file)).toMatchObject({
      ...{ name: 'shop-beta', agent: 'claude', cpus: '2', memory: '4g', secrets: ['github'] },
      env: { BACKEND: 'https://beta.example.com' },
      initialize: [{ command: 'npm ci', workdir: '/p' }],
    });
  });

  test('a name comes from the folder that is mounted, else from that of the file, and --name goes before all', () => {
    expect(plan(`${head}workspace: ./my app\n`).name).toBe('my-app');
    expect(plan(head, { document: at(head, '/work/shop/sbxenv.yaml') }).name).toBe('shop');
    expect(plan(`${head}name: said\n`, { name: 'given' }).name).toBe('given');
    expect(plan(head).name).toBe('sandbox-p');
    expect(messageOf(() => plan(head, { document: at(head, '/日本/sbxenv.yaml') }))).toBe(
      "invalid the folder '日本' gives no name for a sandbox",
    );
  });

  test('whatever changes what is made changes its hash, and so does a byte of a file', () => {
    const named = `${head}name: web\n`;
    const withArg = `${named}args: {x: {default: a}}\n`;
    const base = (text: string) => at(`schemaVersion: "1"\n${text}`, '/home/.sbxenv.yaml');
    const hashes = [
      ...[named, `${named}# x\n`, `${named}env: {A: "1"}\n`, `${named}env: {A: "2"}\n`].map(
        (it) => plan(it).sha256,
      ),
      ...[plan(withArg).sha256, plan(withArg, { given: { x: 'b' } }).sha256],
      ...[plan(named, { name: 'other' }).sha256, plan(named, { base: base('') }).sha256],
      plan(named, { base: base('env: {A: "1"}\n') }).sha256,
      plan(named, { document: at(named, '/elsewhere/sbxenv.yaml') }).sha256,
      // A link that leads elsewhere by now.
      plan(`${named}workspace: ./a\n`, { settle: (it) => it.map((one) => ({ ...one, path: '/etc' })) })
        .sha256,
      plan(`${named}workspace: ./a\n`).sha256,
    ];
    expect(new Set(hashes).size).toBe(hashes.length);
    expect(plan(named).sha256).toBe(hashes[0]);
  });
});

describe('what a person reads', () => {
  const whole = plan(`${head}name: web
workspace: .
additionalWorkspaces: [{path: /srv, readOnly: true}]
env: {TOKEN: hunter2}
ports: [{sandbox: 3000, host: 80}, {sandbox: 1}]
secrets: [github]
bindings: {github: {oauth: {domains: [github.com]}}, npm: {apiKey: {domains: [x.example]}}}
sandboxOptions: {cpus: 2, memory: 4g}
lifecycle: {initialize: [{command: "a\\nb\\n"}]}
`);

  test('names, folders outside, ports and keys of this machine, commands in full; no value of a variable', () => {
    expect(planLines(whole)).toEqual([
      ['sandbox', 'web'],
      ['agent', 'shell'],
      ['workspace', '/p (mount, read-write)'],
      ['workspace', '/srv (mount, read-only) OUTSIDE the folder of the env file'],
      ['env', 'TOKEN'],
      ['port', '127.0.0.1:80 of this machine leads to 3000'],
      ['port', '127.0.0.1:(any) of this machine leads to 1'],
      ['secret', 'github, kept on this machine, for github.com'],
      ['binding', 'npm, if it is kept on this machine, for x.example'],
      ['limit', '2 cpus'],
      ['limit', '4g of memory'],
      ['runs inside', 'once, in /p:'],
      ['', '  a'],
      ['', '  b'],
      ['note', 'the sandbox may write the env file; what it changes is asked about again'],
    ]);
    expect(trackedLines(whole).join()).not.toContain('hunter2');
  });

  test('the value of a variable can be told from another', () => {
    const lines = (value: string) => trackedLines(plan(`${head}name: web\nenv: {A: ${value}}\n`));
    expect(lines('x')).not.toEqual(lines('y'));
    expect(lines('x')).toEqual(lines('x'));
  });

  const cases: [string, { name: string; hosts: string[] }[], string[]][] = [
    ['kept, and bound as expected', [{ name: 'github', hosts: ['*.github.com', 'github.com'] }], []],
    ['not kept', [], ['not-found /p/sbxenv.yaml: secrets.github: no secret of this name is kept here']],
    [
      'bound to less',
      [
        { name: 'github', hosts: ['api.github.com'] },
        { name: 'npm', hosts: ['*.example.org'] },
      ],
      [
        'permission /p/sbxenv.yaml: bindings.github: the secret does not go to github.com, only to api.github.com',
        'permission /p/sbxenv.yaml: bindings.npm: the secret does not go to x.example, only to *.example.org',
      ],
    ],
  ];
  test.each(cases)('a secret that is %s', (_, kept, expected) => {
    expect(secretProblems(whole, kept).map((it) => `${it.code} ${it.message}`)).toEqual(expected);
  });
});
