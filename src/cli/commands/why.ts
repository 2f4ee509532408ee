// glovebox why: what came of a sandbox or of a command in it, and the next step.
import type { Why, WhyCommand } from '../../../sdk/src/index.ts';
import { attemptLine } from '../attempts.ts';
import { entryLine } from '../bell-records.ts';
import { connect } from '../connect.ts';
import { clean, cleanLine, paint, print, printJson, sizeText } from '../output.ts';

export async function why(
  sandbox: string,
  command: string | undefined,
  { json }: { json?: boolean },
): Promise<void> {
  const client = await connect();
  const told = await client.why(sandbox, command === undefined ? {} : { command });
  await (json ? printJson(told) : print(described(told)));
}

function described(told: Why): string {
  const { id, name, state, since, explanation, next, command, ending, commands, refused, bell } = told;
  const title = `${cleanLine(name ?? id)}: ${state} since ${since.toISOString()}`;
  const output = command === undefined ? ending?.output : command.output;
  const sections = [
    paint('bold', title),
    ...(command === undefined ? [] : [commandText(command)]),
    `${clean(explanation)}\n${paint('dim', 'next:')} ${clean(next)}`,
    facts(told),
    ...(output === undefined ? [] : [`Last output:\n${indented(output)}`]),
    ...(command !== undefined || commands.length === 0
      ? []
      : [`Commands that did not end well:\n${commands.map((it) => indented(commandText(it))).join('\n')}`]),
    ...(refused.length === 0 ? [] : [`Refused connections:\n${refused.map(attemptLine).join('\n')}`]),
    ...(bell.length === 0 ? [] : [`Calls to the bell:\n${bell.map(entryLine).join('\n')}`]),
  ];
  return sections.join('\n\n');
}

const indented = (text: string) =>
  clean(text)
    .trimEnd()
    .split('\n')
    .map((line) => `  ${line}`)
    .join('\n');

function commandText({ id, command, explanation, startedAt, finishedAt }: WhyCommand): string {
  const ended = finishedAt === undefined ? '' : `, ended ${finishedAt.toISOString()}`;
  const line = `${cleanLine(id)} ${cleanLine(command)} (started ${startedAt.toISOString()}${ended})`;
  return `${line}\n${clean(explanation)}`;
}

function facts(told: Why): string {
  const { id, name, runtime, image, agent, createdAt, expiresAt, removedBy, limits, memory, ending } = told;
  const bounds = [
    ...(limits?.cpu === undefined ? [] : [`${limits.cpu} cores`]),
    ...(limits?.memoryBytes === undefined ? [] : [`${sizeText(limits.memoryBytes)} memory`]),
    ...(limits?.pids === undefined ? [] : [`${limits.pids} processes`]),
    ...(limits?.diskBytes === undefined ? [] : [`${sizeText(limits.diskBytes)} disk`]),
  ];
  const rows: [string, string | undefined][] = [
    ['id', id],
    ['name', name],
    ['reason', told.reason],
    ['runtime', runtime],
    ['image', image],
    ['agent', agent],
    ['created', createdAt?.toISOString()],
    ['expires', expiresAt?.toISOString()],
    ['ended', ending && `${ending.at.toISOString()} ${ending.reason}`],
    ['exit code', ending?.exitCode?.toString()],
    ['signal', ending?.signal],
    ['limits', bounds.join(', ') || undefined],
    ['memory peak', memory?.peakBytes === undefined ? undefined : sizeText(memory.peakBytes)],
    ['out-of-memory kills', memory && memory.kills > 0 ? String(memory.kills) : undefined],
    ['removed by', removedBy],
  ];
  return rows
    .flatMap(([what, value]) => (value === undefined ? [] : [`${what.padEnd(20)} ${cleanLine(value)}`]))
    .join('\n');
}
