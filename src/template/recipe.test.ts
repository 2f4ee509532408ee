import { expect, test } from 'vitest';
import { TemplateFile } from '../contract/template.ts';
import { keyOf, parseTemplateFile, recipes, stepsOf } from './recipe.ts';

const file = `
base = "debian"
packages = ["git", "jq=1.6-2"]
user = "agent"
workdir = "/srv"
run = ["make -C /srv", { run = "id", user = "agent", label = "who" }]
startup = ["service something start"]
hosts = ["registry.npmjs.org"]

[env]
LANG = "C.UTF-8"

[[files]]
path = "/etc/motd"
content = "hello"

[[files]]
path = "/srv/tools"
source = "./tools"
owner = "agent"
mode = "0755"
`;

test('a template file becomes steps, in the order in which they depend on each other', () => {
  const steps = stepsOf(parseTemplateFile(file, 'template.toml'));
  expect(steps.map(({ label, kept }) => [label, kept])).toEqual([
    ['install 2 Debian packages', true],
    ['make the user agent', false],
    ['write /etc/motd', false],
    ['copy ./tools to /srv/tools', false],
    ['make -C /srv', false],
    ['who', false],
    ['write what runs at every start', false],
  ]);
});

const wrong = [
  ['packages = [', /t\.toml:1:\d+: /],
  ['packages = ["git; rm -rf /"]', /packages\.0: is no name of a Debian package/],
  ['packages = ["--allow-unauthenticated"]', /packages\.0/],
  ['user = "root; x"', /user: is no name of a user/],
  ['workdir = "srv"', /workdir: must be absolute/],
  ['colour = "red"', /colour/],
  ['[[files]]\npath = "/a"', /files\.0: give either content or source/],
  ['[[files]]\npath = "/a"\ncontent = "x"\nsource = "y"', /files\.0: give either content or source/],
  ['[[files]]\npath = "a"\ncontent = "x"', /files\.0\.path: must be absolute/],
] as const;

test.each(wrong)('%j is refused with its place', (text, message) => {
  expect(() => parseTemplateFile(text, 't.toml')).toThrow(message);
});

test('what is quoted for a shell stays one word', () => {
  const steps = stepsOf(TemplateFile.parse({ files: [{ path: "/it's", source: '$(id)', owner: 'a b' }] }));
  const [{ work } = { work: undefined }] = steps;
  expect(work).toMatchObject({ kind: 'run' });
  const script = work?.kind === 'run' ? work.step.run : '';
  expect(script).toContain(`'/it'\\''s'`);
  expect(script).toContain("'/run/glovebox-context/$(id)'");
  expect(script).toContain("chown -R 'a b'");
});

test('the key changes with the base, with each step, and with the context only where it is used', () => {
  const plain = stepsOf(TemplateFile.parse({ packages: ['git'] }));
  const copying = stepsOf(TemplateFile.parse({ files: [{ path: '/a', source: 'a' }] }));
  expect(keyOf('x', plain, '1')).toBe(keyOf('x', plain, '2'));
  expect(keyOf('x', plain, '1')).not.toBe(keyOf('y', plain, '1'));
  expect(keyOf('x', plain, '1')).not.toBe(keyOf('x', [], '1'));
  expect(keyOf('x', copying, '1')).not.toBe(keyOf('x', copying, '2'));
});

test('the ready recipes are template files themselves', () => {
  for (const { file: recipe } of Object.values(recipes)) expect(TemplateFile.parse(recipe)).toEqual(recipe);
});
