// Patches taken apart and put together.
import { expect, test } from 'vitest';
import { chosenPatch, filesOf, isText } from './hunks.ts';

const patch = `diff --git a/a b.txt b/a b.txt
index 1..2 100644
--- a/a b.txt\t
+++ b/a b.txt\t
@@ -1 +1 @@
-x
+y
@@ -9 +9,2 @@ function
 z
+diff --git is a line of its own only at its beginning
diff --git "a/\\303\\244\\"" "b/\\303\\244\\""
deleted file mode 100644
--- "a/\\303\\244\\""
+++ /dev/null
@@ -1 +0,0 @@
-x
diff --git a/bin b/bin
Binary files a/bin and b/bin differ
`;

test('a patch is files and hunks, and the same again', () => {
  const files = filesOf(patch);
  expect(files.map(({ path, hunks }) => [path, hunks.length])).toEqual([
    ['a b.txt', 2],
    ['ä"', 1],
    ['bin', 0],
  ]);
  expect(chosenPatch(files.map((file) => ({ file, hunks: file.hunks })))).toBe(patch);
});

test('one hunk alone keeps the head of its file', () => {
  const [file] = filesOf(patch);
  if (!file) throw new Error('no file');
  expect(chosenPatch([{ file, hunks: [file.hunks[1] as string] }])).toBe(
    `${file.head}@@ -9 +9,2 @@ function\n z\n+diff --git is a line of its own only at its beginning\n`,
  );
});

test('a hunk goes to where it goes without those that were left', () => {
  const hunks = ['@@ -1,2 +1,12 @@ f\n', '@@ -20,0 +31,3 @@\n', '@@ -30,4 +42,0 @@\n', '@@ -50 +59 @@\n'];
  const file = { path: 'x', head: '', hunks };
  const lines = (...chosen: number[]) =>
    chosenPatch([{ file, hunks: chosen.map((it) => hunks[it] as string) }])
      .split('\n')
      .slice(0, -1);
  expect(lines(0, 1, 2, 3).join('\n')).toBe(hunks.join('').trimEnd());
  expect(lines(1, 3)).toEqual(['@@ -20,0 +21,3 @@', '@@ -50 +53 @@']);
  expect(lines(2, 3)).toEqual(['@@ -30,4 +29,0 @@', '@@ -50 +46 @@']);
});

test('what is no text is told', () => {
  expect(isText({ path: 'x', head: '', hunks: ['@@ -1 +1 @@\n+\xff\n'] })).toBe(false);
});
