// What a template file asks for, as steps in the order in which they are taken. Pure.
import { createHash } from 'node:crypto';
import { parse, TomlError } from 'smol-toml';
import type { SetupStep } from '../contract/agents.ts';
import { TemplateFile } from '../contract/template.ts';
import { Failure } from '../lib/failure.ts';
import { startupPath } from '../sandbox/preparation.ts';

/** Where the folder of the template file is during a build. */
export const contextPath = '/run/glovebox-context';
/** What Debian's package manager asks by default. */
export const debianHosts = ['deb.debian.org', 'security.debian.org'] as const;

export interface RecipeStep {
  label: string;
  /** A shell line, or what is written. */
  work:
    | { kind: 'run'; step: SetupStep }
    | { kind: 'file'; path: string; content: string; mode: string; owner?: string };
  /** Slow enough to be kept for the next build. */
  kept: boolean;
}

/** Failure('invalid') with every mistake and where it is. */
export function parseTemplateFile(text: string, path: string): TemplateFile {
  let value: unknown;
  try {
    value = parse(text);
  } catch (error) {
    const where = error instanceof TomlError ? `:${error.line}:${error.column}` : '';
    throw new Failure('invalid', `${path}${where}: ${firstLine(error)}`);
  }
  const result = TemplateFile.safeParse(value);
  if (!result.success) {
    const problems = result.error.issues
      .slice(0, 10)
      .map((it) => `${it.path.join('.') || 'the file'}: ${it.message}`);
    throw new Failure('invalid', `${path}: ${problems.join('; ')}`);
  }
  for (const [index, file] of result.data.files.entries())
    if ((file.content === undefined) === (file.source === undefined))
      throw new Failure('invalid', `${path}: files.${index}: give either content or source`);
  return result.data;
}

const firstLine = (error: unknown) => String((error as Error).message).split('\n')[0] ?? '';

const quoted = (text: string) => `'${text.replaceAll("'", "'\\''")}'`;

export function stepsOf(file: TemplateFile): RecipeStep[] {
  const steps: RecipeStep[] = [];
  const run = (label: string, script: string, { kept = false, timeoutSeconds = 1_800 } = {}) =>
    steps.push({ label, kept, work: { kind: 'run', step: { run: script, when: 'create', timeoutSeconds } } });
  if (file.packages.length > 0)
    run(`install ${file.packages.length} Debian packages`, installScript(file.packages), {
      kept: true,
      timeoutSeconds: 3_600,
    });
  if (file.user !== undefined) run(`make the user ${file.user}`, userScript(file.user));
  for (const { path, content, source, mode, owner } of file.files) {
    if (content !== undefined) {
      const owned = owner === undefined ? {} : { owner };
      steps.push({
        label: `write ${path}`,
        kept: false,
        work: { kind: 'file', path, content, mode: mode ?? '0644', ...owned },
      });
    } else run(`copy ${source} to ${path}`, copyScript({ path, source: source ?? '', mode, owner }));
  }
  for (const it of file.run) {
    const step: SetupStep = typeof it === 'string' ? { run: it, when: 'create', timeoutSeconds: 1_800 } : it;
    const label = step.label ?? (step.run.trim().split('\n')[0] ?? '').slice(0, 80);
    steps.push({ label, kept: false, work: { kind: 'run', step } });
  }
  if (file.startup.length > 0)
    steps.push({
      label: 'write what runs at every start',
      kept: false,
      work: {
        kind: 'file',
        path: startupPath,
        content: `#!/bin/sh\nset -e\n${file.startup.join('\n')}\n`,
        mode: '0755',
      },
    });
  return steps;
}

function installScript(packages: readonly string[]): string {
  return [
    'export DEBIAN_FRONTEND=noninteractive',
    'apt-get update',
    `apt-get install -y --no-install-recommends ${packages.map(quoted).join(' ')}`,
    'apt-get clean',
    'rm -rf /var/lib/apt/lists/*',
  ].join(' &&\n');
}

/** Number 1000 where it is free, which is what images for agents have. */
function userScript(user: string): string {
  const name = quoted(user);
  return `id ${name} >/dev/null 2>&1 || useradd --create-home --shell /bin/bash $(getent passwd 1000 >/dev/null || echo --uid 1000) ${name}`;
}

function copyScript(copy: {
  path: string;
  source: string;
  mode: string | undefined;
  owner: string | undefined;
}): string {
  const to = quoted(copy.path);
  const from = quoted(`${contextPath}/${copy.source.replace(/^(\.?\/)+/, '')}`);
  return [
    `mkdir -p "$(dirname ${to})"`,
    `cp -R -T ${from} ${to}`,
    ...(copy.owner === undefined ? [] : [`chown -R ${quoted(copy.owner)} ${to}`]),
    ...(copy.mode === undefined ? [] : [`chmod ${copy.mode} ${to}`]),
  ].join(' && ');
}

/** The same base and the same steps up to here make the same image: names it. */
export function keyOf(base: string, steps: readonly RecipeStep[], contextDigest: string): string {
  const hash = createHash('sha256').update(JSON.stringify([base, steps.map((it) => it.work)]));
  // What is copied from the context is known by its content only.
  if (steps.some((it) => it.work.kind === 'run' && it.work.step.run.includes(contextPath)))
    hash.update(contextDigest);
  return hash.digest('hex').slice(0, 32);
}

/** Ready recipes, by the name under which `template build` knows them. All of it comes from Debian's packages. */
export const recipes: Readonly<Record<string, { description: string; name: string; file: TemplateFile }>> = {
  base: {
    description: 'what a coding agent usually needs: git, Node.js, Python, Go, compilers, search tools',
    name: 'glovebox/base',
    file: {
      packages: [
        ...[
          'ca-certificates',
          'curl',
          'wget',
          'git',
          'openssh-client',
          'gnupg',
          'less',
          'nano',
          'procps',
          'tini',
        ],
        ...[
          'nodejs',
          'npm',
          'python3',
          'python3-pip',
          'python3-venv',
          'golang-go',
          'build-essential',
          'pkg-config',
        ],
        ...[
          'ripgrep',
          'fd-find',
          'jq',
          'unzip',
          'zip',
          'xz-utils',
          'file',
          'tree',
          'rsync',
          'socat',
          'sqlite3',
          'patch',
        ],
      ],
      user: 'agent',
      workdir: '/home/agent',
      env: { LANG: 'C.UTF-8' },
      files: [],
      run: ['ln -sf /usr/bin/fdfind /usr/local/bin/fd'],
      startup: [],
      hosts: [],
    },
  },
};
