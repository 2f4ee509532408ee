// JavaScript and TypeScript that live from run to run: `node -e THIS LANGUAGE`, with their runs on stdin; ../frames.ts tells what it says of them.
// On stdin each field ends with NUL: once the mark and nothing; then for each run its id, a folder or nothing, and the code.
'use strict';
const { createRequire, stripTypeScriptTypes } = require('node:module');
const { PassThrough, Writable } = require('node:stream');
const { inspect } = require('node:util');
const { Script } = require('node:vm');

const typed = process.argv.at(-1) === 'typescript';
const write = process.stdout.write.bind(process.stdout);
const writeErrors = process.stderr.write.bind(process.stderr);
let rest = Buffer.alloc(0);
const waiting = [];

/** The next field, or undefined at the end. */
function field() {
  return new Promise((resolve) => {
    waiting.push(resolve);
    hand();
  });
}

function hand(ended = false) {
  while (waiting.length > 0) {
    const end = rest.indexOf(0);
    if (end < 0) {
      if (ended) waiting.shift()(undefined);
      else return;
    } else {
      waiting.shift()(rest.toString('utf8', 0, end));
      rest = rest.subarray(end + 1);
    }
  }
}

// Code that reads stdin finds nothing there.
const wanted = process.stdin;
Object.defineProperty(process, 'stdin', { configurable: true, value: new PassThrough().end() });
wanted.on('data', (bytes) => {
  rest = Buffer.concat([rest, bytes]);
  hand();
});
wanted.on('end', () => hand(true));

let mark = '';
function tell(message, both = false) {
  const text = JSON.stringify(message);
  // A write of this size is not torn by what others write to the same pipe.
  const pieces = text.match(/.{1,1000}/gsu) ?? [];
  for (const to of both ? [write, writeErrors] : [write])
    for (const [index, piece] of pieces.entries())
      to(`\0${mark}${index < pieces.length - 1 ? '+' : ''}${piece}\0`);
}

const ownForms = Symbol.for('Jupyter.display');
async function display(value) {
  const forms = { 'text/plain': typeof value === 'string' ? inspect(value) : inspect(value, { depth: 4 }) };
  const told = value?.[ownForms] === undefined ? {} : await value[ownForms]();
  for (const [kind, each] of Object.entries(told))
    forms[kind] = typeof each === 'string' ? each : JSON.stringify(each);
  tell({ result: forms });
}

/** Of the run that has its turn. */
let fail;
const domain = require('node:domain').create();
// Where most errors of the code come out.
domain.on('error', (error) => (fail ?? late)(error));
const late = (error) => writeErrors(`Uncaught ${inspect(error)}\n`);
const shell = require('node:repl').start({
  domain,
  input: new PassThrough(),
  output: new Writable({ write: (_, __, done) => done() }),
  useGlobal: true,
  terminal: false,
});
globalThis.display = display;
globalThis.require = createRequire(`${process.cwd()}/`);

function problemOf(error) {
  const isError = error instanceof Error || Object.prototype.toString.call(error) === '[object Error]';
  if (!isError) return { ename: 'Error', evalue: inspect(error), traceback: [inspect(error)] };
  const lines = String(error.stack ?? error).split('\n');
  const ours = lines.findIndex((line) => /node:repl|node:vm|node:internal/.test(line));
  return {
    ename: String(error.name),
    evalue: String(error.message),
    traceback: ours > 0 ? lines.slice(0, ours) : lines,
  };
}

/** Without a word on what is experimental. */
function quietly(work) {
  const { emitWarning } = process;
  process.emitWarning = () => {};
  try {
    return work();
  } finally {
    process.emitWarning = emitWarning;
  }
}

function compiled(text) {
  if (!typed) return text;
  if (stripTypeScriptTypes === undefined)
    throw new Error('TypeScript needs Node.js 22.13 or newer in the image');
  return quietly(() => stripTypeScriptTypes(text, { mode: 'transform' }));
}

const interrupted = () =>
  Object.assign(new Error('interrupted'), { code: 'ERR_SCRIPT_EXECUTION_INTERRUPTED' });

/** The value of the last statement. */
function valueOfLast(text, filename) {
  const braced = /^\s*\{/.test(text) && !/;\s*$/.test(text);
  for (const code of braced ? [`(${text.trim()})`, text] : [text])
    try {
      const script = new Script(code, { filename });
      return [script.runInThisContext({ breakOnSigint: true, displayErrors: false })];
    } catch (error) {
      if (!(error instanceof SyntaxError) || (code === text && !/\bawait\b/.test(text))) throw error;
    }
  return undefined;
}

async function evaluate(text, filename) {
  const value = valueOfLast(text, filename);
  if (value !== undefined) return value[0];
  // What awaits at its top level is rewritten by Node.js's own shell.
  return await new Promise((resolve, reject) => {
    fail = reject;
    shell.eval(`${text}\n`, shell.context, filename, (error, value) =>
      error ? reject(error.err ?? error) : resolve(value),
    );
  });
}

async function main() {
  mark = await field();
  await field();
  process.on('SIGINT', () => fail?.(interrupted()));
  // Who awaits what never comes is not at the end of everything.
  setInterval(() => {}, 2 ** 30);
  tell({ ready: true });
  for (let count = 1; ; count++) {
    const [id, folder, text] = [await field(), await field(), await field()];
    if (text === undefined) return;
    tell({ begin: id }, true);
    const end = { end: id, code: 0, count };
    try {
      if (folder !== '') process.chdir(folder);
      const value = await evaluate(compiled(text), `cell ${count}`);
      if (value !== undefined) await display(value);
    } catch (error) {
      const stopped = error?.code === 'ERR_SCRIPT_EXECUTION_INTERRUPTED';
      end.code = stopped ? 130 : 1;
      end.error = stopped
        ? { ename: 'Interrupted', evalue: 'interrupted', traceback: ['interrupted'] }
        : problemOf(error);
    }
    fail = undefined;
    tell(end, true);
  }
}

process.on('uncaughtException', late);
process.on('unhandledRejection', (error) => writeErrors(`Unhandled rejection: ${inspect(error)}\n`));
main().then(() => process.exit(0));
