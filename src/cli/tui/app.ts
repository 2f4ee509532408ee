// Joins the screen, the state and the server: what is typed and told goes into the state, what is to be done is done, and the screen is drawn
// when something has changed.
import { homedir } from 'node:os';
import { join } from 'node:path';
import { type SandboxClient, SandboxError, type SandboxInfo } from '../../../sdk/src/index.ts';
import { lossesOf } from '../commands/life.ts';
import { exitCodes } from '../exit-codes.ts';
import { say } from '../output.ts';
import { placeOf, wishOf } from '../question.ts';
import { Keys } from '../terminal.ts';
import { startFeeds } from './feeds.ts';
import { lineText } from './lines.ts';
import { Screen } from './screen.ts';
import {
  type Effect,
  type Event,
  initialState,
  type Notice,
  type State,
  type Target,
  update,
} from './state.ts';
import { onOneLine, Verbs } from './verbs.ts';
import { view } from './view.ts';

const tickMs = 1_000;
const endings = {
  ...{ SIGINT: exitCodes.interrupted, SIGTERM: exitCodes.terminated, SIGHUP: exitCodes.hungUp },
} as const;
/** A shell as a person likes it, in whatever image. */
const shell = ['sh', '-c', 'if command -v bash >/dev/null 2>&1; then exec bash -l; else exec sh -l; fi'];

/** Resolves with the exit code when the person quits. */
export async function runApp(
  client: SandboxClient,
  options: { folder: string; color: boolean },
): Promise<number> {
  using app = new App(client, options);
  return await app.run();
}

class App implements Disposable {
  readonly #client: SandboxClient;
  readonly #color: boolean;
  readonly #verbs = new Verbs();
  readonly #screen: Screen;
  readonly #over = Promise.withResolvers<number>();
  #state: State;
  /** Whether the screen is somebody else's for a while. */
  #away = false;
  #feeds: AbortController | undefined;
  #look: () => void = () => {};
  #drawing: NodeJS.Immediate | undefined;
  #tick: NodeJS.Timeout | undefined;

  constructor(client: SandboxClient, { folder, color }: { folder: string; color: boolean }) {
    this.#client = client;
    this.#color = color;
    this.#state = initialState(folder);
    this.#screen = new Screen({
      onTyped: (typed) => this.#dispatch(typed.type === 'key' ? { ...typed, at: performance.now() } : typed),
      onResize: () => this.#draw(),
      onGone: () => this.#over.resolve(exitCodes.hungUp),
    });
    for (const name of Object.keys(endings)) process.on(name, this.#onSignal);
  }

  async run(): Promise<number> {
    this.#begin();
    const code = await this.#over.promise;
    this.#feeds?.abort();
    clearTimeout(this.#tick);
    clearImmediate(this.#drawing);
    await this.#verbs.frontEnded();
    await this.#screen.give();
    return code;
  }

  [Symbol.dispose](): void {
    for (const name of Object.keys(endings)) process.off(name, this.#onSignal);
    this.#feeds?.abort();
    this.#verbs[Symbol.dispose]();
    this.#screen[Symbol.dispose]();
  }

  /** Takes the screen, and asks the server what there is. */
  #begin(): void {
    this.#screen.take();
    const feeds = new AbortController();
    this.#feeds = feeds;
    const { look } = startFeeds(this.#client, {
      state: () => this.#state,
      dispatch: (event) => this.#dispatch(event),
      signal: feeds.signal,
    });
    this.#look = look;
    this.#draw();
  }

  #dispatch(event: Event): void {
    const before = this.#state;
    const [state, effects] = update(before, event);
    this.#state = state;
    for (const effect of effects) this.#perform(effect);
    // Time is shown only where something waits.
    if (state.questions.length > 0 || state.rung !== undefined) {
      this.#tick ??= setTimeout(() => {
        this.#tick = undefined;
        this.#dispatch({ type: 'now', at: Date.now() });
      }, tickMs);
    }
    if (state !== before) this.#draw();
  }

  /** Once for all that comes at once. */
  #draw(): void {
    this.#drawing ??= setImmediate(() => {
      this.#drawing = undefined;
      const { size } = this.#screen;
      const lines = view(this.#state, size);
      this.#screen.show(lines.map((line) => lineText(line, { cols: size.cols, color: this.#color })));
    });
  }

  #perform(effect: Effect): void {
    switch (effect.do) {
      case 'quit':
        return this.#over.resolve(effect.interrupted ? exitCodes.interrupted : exitCodes.ok);
      case 'look':
        return this.#look();
      case 'redraw':
        this.#screen.forget();
        return this.#draw();
      default:
        this.#act(effect).catch((error: unknown) => {
          const { message, hint } = error as SandboxError;
          const text = onOneLine([message, hint ?? ''].join('\n'));
          this.#dispatch({ type: 'done', ...idOf(effect), notice: { text, bad: true } });
        });
    }
  }

  async #act(effect: Exclude<Effect, { do: 'quit' | 'look' | 'redraw' }>): Promise<void> {
    switch (effect.do) {
      case 'enter':
        return await this.#inFront(await this.#wayInto(effect.sandbox));
      case 'attach':
        return await this.#inFront(['attach', effect.sandbox.id, effect.session]);
      case 'shell':
        return await this.#inFront(['exec', '-it', effect.sandbox.id, ...shell]);
      case 'start':
      case 'stop':
        return await this.#behind(
          effect.sandbox,
          [effect.do, effect.sandbox.id],
          effect.do === 'start' ? 'started' : 'stopped',
        );
      case 'losses':
        return await this.#lookForLosses(effect.sandbox);
      case 'remove':
        return await this.#remove(effect.sandbox, effect.force);
      case 'create':
        return await this.#create(effect);
      case 'rule': {
        const { decision, resource, sandbox } = effect;
        await this.#client.policy[decision](resource, sandbox ? { sandbox: sandbox.id } : {});
        const whose = sandbox ? `for ${sandbox.name}` : 'for all sandboxes';
        return this.#done({ text: `rule added: ${decision} ${resource} ${whose}`, bad: false });
      }
      case 'answer':
        return await this.#answer(effect);
    }
  }

  #done(notice: Notice, more: { id?: string; select?: string } = {}): void {
    this.#dispatch({ type: 'done', notice, ...more });
  }

  /** The newest session that was left; else one of its agent is begun. */
  async #wayInto(info: SandboxInfo): Promise<string[]> {
    const sandbox = this.#client.handle(info.id);
    const sessions = info.state === 'Running' ? await sandbox.processes().catch(() => []) : [];
    if (sessions.some((it) => it.tty && it.running)) return ['attach', info.id];
    // `run` takes a word that is no name for an image.
    return info.name === undefined ? ['exec', '-it', info.id, ...shell] : ['run', info.name];
  }

  /** Lets a verb have the terminal. Meanwhile nobody asks the server anything. */
  async #inFront(args: readonly string[]): Promise<void> {
    if (this.#away) return;
    this.#away = true;
    try {
      this.#feeds?.abort();
      await this.#screen.give();
      const code = await this.#verbs.front(args);
      // What it said would be gone with the screen.
      if (code !== 0 && !(await this.#ended())) await this.#anyKey(code);
    } finally {
      this.#away = false;
      if (!(await this.#ended())) this.#begin();
    }
  }

  async #ended(): Promise<boolean> {
    return await Promise.race([this.#over.promise.then(() => true), Promise.resolve(false)]);
  }

  async #anyKey(code: number): Promise<void> {
    say(`glovebox: it ended with ${code}; press any key to go back`);
    using keys = new Keys();
    const stop = new AbortController();
    keys.onInterrupt = () => stop.abort();
    const key = keys.next(stop.signal).catch(() => '');
    await Promise.race([key, this.#over.promise]);
    stop.abort();
  }

  async #behind(sandbox: Target, args: readonly string[], done: string): Promise<void> {
    const { code, said } = await this.#verbs.behind(args);
    const notice =
      code === 0
        ? { text: `${sandbox.name}: ${done}`, bad: false }
        : { text: said || `it ended with ${code}`, bad: true };
    this.#done(notice, { id: sandbox.id });
  }

  async #lookForLosses({ id }: Target): Promise<void> {
    const info = await this.#client.handle(id).info();
    this.#dispatch({ type: 'losses', id, losses: await lossesOf(this.#client, info) });
  }

  async #remove(sandbox: Target, force: boolean): Promise<void> {
    const { code, said } = await this.#verbs.behind(['rm', ...(force ? ['-f'] : []), sandbox.id]);
    if (code !== 0 && !force && said.includes('is in use'))
      return this.#dispatch({ type: 'in-use', sandbox, message: said.replace(sandbox.id, sandbox.name) });
    const notice = code === 0 ? { text: `${sandbox.name}: removed`, bad: false } : { text: said, bad: true };
    this.#done(notice, { id: sandbox.id });
  }

  async #create({ agent, folder, name }: { agent: string; folder: string; name: string }): Promise<void> {
    const args = ['create', '-q', ...(name === '' ? [] : [`--name=${name}`]), agent, ...folderWords(folder)];
    const { code, stdout, said } = await this.#verbs.behind(args);
    if (code !== 0) return this.#done({ text: said || `it ended with ${code}`, bad: true });
    this.#done({ text: `${stdout}: created, Enter starts its agent`, bad: false }, { select: stdout });
  }

  async #answer({ question, answer, said }: Extract<Effect, { do: 'answer' }>): Promise<void> {
    const name = question.sandboxName ?? question.sandbox;
    const wish = wishOf(question);
    const what = wish === undefined ? `${name} to ${placeOf(question)}` : `${name}, ${wish}`;
    try {
      await this.#client.network.answer(question.id, answer);
    } catch (error) {
      if (!(error instanceof SandboxError) || error.code !== 'not-found') throw error;
      return this.#done({ text: `${what}: too late, it waits no more`, bad: true });
    }
    this.#done({ text: `${what}: ${said}`, bad: false });
  }

  readonly #onSignal = (name: NodeJS.Signals): void => {
    if (this.#verbs.inFront) {
      // Ctrl-C is for whoever has the terminal, who has got it as we have.
      if (name === 'SIGINT') return;
      this.#verbs.signal(name);
    }
    this.#over.resolve(endings[name as keyof typeof endings]);
  };
}

function idOf(effect: Effect): { id?: string } {
  return 'sandbox' in effect && effect.sandbox ? { id: effect.sandbox.id } : {};
}

/** As a shell would have passed it on, and never as an option. */
function folderWords(folder: string): string[] {
  if (folder === '') return [];
  const path = folder === '~' || folder.startsWith('~/') ? join(homedir(), folder.slice(1)) : folder;
  return [path.startsWith('-') ? `./${path}` : path];
}
