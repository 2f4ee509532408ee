import { expect, test } from 'vitest';
import { type Item, reconcile, type States, type Step, same } from './reconcile.ts';
import { isIgnored, staysInside } from './seen.ts';

const file = (content: string): Item => ({ kind: 'file', content, executable: false });
const folder: Item = { kind: 'folder' };
const link = (target: string): Item => ({ kind: 'link', target });
const other: Item = { kind: 'other' };

type Trees = { ancestor: Map<string, Item>; host: Map<string, Item>; guest: Map<string, Item> };

const parentOf = (path: string) => path.slice(0, Math.max(0, path.lastIndexOf('/')));
const below = (tree: Map<string, Item>, path: string) =>
  [...tree.keys()].filter((it) => it.startsWith(`${path}/`));

/** Does what the steps say, and fails where a file system would. */
function perform(trees: Trees, steps: readonly Step[]): void {
  for (const step of steps) {
    const { path } = step;
    if (step.do === 'keep-guest') {
      for (const it of [path, ...below(trees.guest, path)]) {
        const item = trees.guest.get(it) as Item;
        trees.guest.delete(it);
        trees.guest.set(`${path}.kept${it.slice(path.length)}`, item);
      }
      for (const it of [path, ...below(trees.ancestor, path)]) trees.ancestor.delete(it);
    } else if (step.do === 'to-host' || step.do === 'to-guest') {
      const tree = step.do === 'to-host' ? trees.host : trees.guest;
      const parent = parentOf(path);
      if (parent !== '' && tree.get(parent)?.kind !== 'folder')
        throw new Error(`${step.do} ${path}: no parent`);
      if (below(tree, path).length > 0) throw new Error(`${step.do} ${path}: a full folder is there`);
      tree.set(path, step.item);
      trees.ancestor.set(path, step.item);
    } else if (step.do === 'drop-host' || step.do === 'drop-guest') {
      const tree = step.do === 'drop-host' ? trees.host : trees.guest;
      if (below(tree, path).length > 0) throw new Error(`${step.do} ${path}: not empty`);
      if (!same(tree.get(path), step.item)) throw new Error(`${step.do} ${path}: not what it was`);
      tree.delete(path);
      trees.ancestor.delete(path);
    } else if (step.do === 'agree') {
      trees.ancestor.set(path, trees.host.get(path) as Item);
    } else {
      trees.ancestor.delete(path);
    }
  }
}

const names: Record<string, Item | undefined> = {
  absent: undefined,
  one: file('1'),
  two: file('2'),
  three: file('3'),
  folder,
  link: link('x'),
};

const rows: [string, string, string, string[]][] = [
  ['one', 'one', 'one', []],
  ['absent', 'absent', 'absent', []],
  ['absent', 'one', 'absent', ['to-guest']],
  ['absent', 'absent', 'one', ['to-host']],
  ['absent', 'one', 'one', ['agree']],
  ['absent', 'one', 'two', ['keep-guest']],
  ['one', 'two', 'one', ['to-guest']],
  ['one', 'one', 'two', ['to-host']],
  ['one', 'two', 'two', ['agree']],
  ['one', 'two', 'three', ['keep-guest']],
  ['one', 'absent', 'one', ['drop-guest']],
  ['one', 'one', 'absent', ['drop-host']],
  ['one', 'absent', 'absent', ['forget']],
  ['one', 'absent', 'two', ['keep-guest']],
  ['one', 'two', 'absent', ['to-guest']],
  ['one', 'link', 'one', ['to-guest']],
  ['one', 'one', 'link', ['to-host']],
  ['one', 'folder', 'one', ['drop-guest', 'to-guest']],
  ['one', 'one', 'folder', ['drop-host', 'to-host']],
  ['one', 'folder', 'two', ['keep-guest']],
  ['one', 'two', 'folder', ['keep-guest']],
  ['folder', 'folder', 'absent', ['drop-host']],
  ['folder', 'absent', 'folder', ['drop-guest']],
  ['folder', 'folder', 'one', ['drop-host', 'to-host']],
  ['folder', 'one', 'folder', ['drop-guest', 'to-guest']],
  ['link', 'absent', 'link', ['drop-guest']],
  ['absent', 'folder', 'folder', ['agree']],
];
test.each(rows)('was %s, host has %s, guest has %s: %j', (ancestor, host, guest, expected) => {
  const tree = (name: string) => {
    const item = names[name];
    return new Map(item === undefined ? [] : [['p', item]]);
  };
  const steps = reconcile({ ancestor: tree(ancestor), host: tree(host), guest: tree(guest) });
  expect(steps.map((it) => it.do)).toEqual(expected);
});

/** Everything that can stand at `d`, with what is in it. */
const shapes: [string, Item][][] = [
  [],
  [['d', file('1')]],
  [['d', file('2')]],
  [['d', link('1')]],
  [['d', folder]],
  [
    ['d', folder],
    ['d/x', file('1')],
  ],
  [
    ['d', folder],
    ['d/x', file('2')],
  ],
  [
    ['d', folder],
    ['d/x', file('1')],
    ['d/y', file('1')],
  ],
  [
    ['d', folder],
    ['d/x', folder],
    ['d/x/z', file('3')],
  ],
];

test('whatever both sides were and are, they end alike, and nothing that a side changed is lost', () => {
  let count = 0;
  for (const ancestor of shapes)
    for (const host of shapes)
      for (const guest of shapes) {
        count++;
        const trees: Trees = { ancestor: new Map(ancestor), host: new Map(host), guest: new Map(guest) };
        const about = JSON.stringify({ ancestor, host, guest });
        for (let round = 0; ; round++) {
          if (round > 4) throw new Error(`it goes on and on: ${about}`);
          const steps = reconcile(trees as States);
          if (steps.length === 0) break;
          perform(trees, steps);
        }
        const sorted = (tree: Map<string, Item>) => [...tree].sort(([a], [b]) => (a < b ? -1 : 1));
        expect(sorted(trees.guest), about).toEqual(sorted(trees.host));
        expect(sorted(trees.ancestor), about).toEqual(sorted(trees.host));
        const was = new Map(ancestor);
        const items = [...trees.host.values()];
        for (const [path, item] of [...host, ...guest]) {
          if (item.kind === 'folder' || same(was.get(path), item)) continue;
          expect(
            items.some((it) => same(it, item)),
            `${path} ${about}`,
          ).toBe(true);
        }
        // What the host has changed keeps its name.
        for (const [path, item] of host)
          if (item.kind !== 'folder' && !same(was.get(path), item))
            expect(trees.host.get(path), about).toEqual(item);
      }
  expect(count).toBe(shapes.length ** 3);
});

test('what cannot be synchronised is left alone, with all below, and keeps the folder it is in', () => {
  const cases: [States['ancestor'], States['host'], States['guest'], string[]][] = [
    [new Map([['a', file('1')]]), new Map([['a', file('1')]]), new Map([['a', other]]), []],
    [
      new Map([
        ['a', folder],
        ['a/b', file('1')],
      ]),
      new Map([
        ['a', folder],
        ['a/b', file('2')],
      ]),
      new Map([['a', other]]),
      [],
    ],
    [
      new Map([
        ['d', folder],
        ['d/x', file('1')],
      ]),
      new Map<string, Item>([
        ['d', folder],
        ['d/x', file('1')],
        ['d/secret', other],
      ]),
      new Map(),
      ['to-guest d', 'drop-host d/x'],
    ],
    [
      new Map([
        ['d', folder],
        ['d/x', file('1')],
      ]),
      new Map([['d', file('1')]]),
      new Map<string, Item>([
        ['d', folder],
        ['d/x', file('1')],
        ['d/socket', other],
      ]),
      ['keep-guest d'],
    ],
  ];
  for (const [ancestor, host, guest, expected] of cases)
    expect(reconcile({ ancestor, host, guest }).map((it) => `${it.do} ${it.path}`)).toEqual(expected);
});

const links = [
  ['a', 'b', true],
  ['a', './b/c', true],
  ['d/a', '../b', true],
  ['d/a', '../../b', false],
  ['a', '..', false],
  ['a', '../root/x', false],
  ['d/e/a', '../../b', true],
  ['a', 'b/../c', false],
  ['a', '/root/x', true],
  ['a', '/root', true],
  ['a', '/rooted', false],
  ['a', '/root/../etc', false],
  ['a', '/etc/passwd', false],
  ['a', '', false],
  ['a', 'x\0y', false],
  ['a', '.', true],
] as const;
test.each(links)('a link at %j to %j stays inside: %j', (path, target, inside) => {
  expect(staysInside('/root', path, target)).toBe(inside);
});

test('locks of git and files that are not whole are ignored, others are not', () => {
  for (const path of [
    '.git/index.lock',
    'a/.git/refs/heads/x.lock',
    '.git/objects/12/tmp_obj_x',
    '.glovebox-1',
    'a/.glovebox-x',
  ])
    expect(isIgnored(path), path).toBe(true);
  for (const path of ['yarn.lock', '.git/index', '.gitignore', 'tmp_x', 'a.git/x.lock'])
    expect(isIgnored(path), path).toBe(false);
});
