// glovebox tui, or glovebox alone at a terminal: sandboxes, their sessions, what they reach and what they ask for, on one screen.
import { connect } from '../connect.ts';
import { usageError } from '../exit-codes.ts';
import { runApp } from '../tui/app.ts';

export async function tui(): Promise<number> {
  if (!process.stdin.isTTY || !process.stdout.isTTY) {
    throw usageError(
      'tui: needs a terminal',
      'For scripts there are `glovebox ls`, `policy log` and the others.',
    );
  }
  const color = !process.env.NO_COLOR && process.env.TERM !== 'dumb';
  return await runApp(await connect(), { folder: process.cwd(), color });
}
