// Whether anybody uses a sandbox: commands that run in it and clients that are attached. Tells when it has been left alone for long enough.

export interface ActivityOptions {
  /** Each is called when nothing has happened for so long, again after each further period. None: it is never left alone. Asked for anew with each use. */
  idle: () => readonly { afterMs: number; onIdle: () => void }[];
  now: () => Date;
  /** Use has ended, or begun after a pause. */
  onUsed: (at: Date) => void;
}

export class Activity {
  readonly #options: ActivityOptions;
  #holds = 0;
  #commands = 0;
  #timers: NodeJS.Timeout[] = [];
  #watching = false;

  constructor(options: ActivityOptions) {
    this.#options = options;
  }

  get holds(): number {
    return this.#holds;
  }

  get commands(): number {
    return this.#commands;
  }

  get idle(): boolean {
    return this.#holds === 0 && this.#commands === 0;
  }

  hold(): Disposable {
    this.#change(() => this.#holds++);
    let held = true;
    return {
      [Symbol.dispose]: () => {
        if (held) this.#change(() => this.#holds--);
        held = false;
      },
    };
  }

  /** How many commands run now. */
  setCommands(count: number): void {
    if (count !== this.#commands) this.#change(() => (this.#commands = count));
  }

  /** Something was asked of it, which is over already. */
  touch(): void {
    this.#arm();
  }

  /** From now on it may be found idle; before, and after `rest`, nobody counts. */
  watch(): void {
    this.#watching = true;
    this.#arm();
  }

  rest(): void {
    this.#watching = false;
    this.#disarm();
  }

  #change(change: () => void): void {
    const before = this.idle;
    change();
    if (before !== this.idle) this.#options.onUsed(this.#options.now());
    this.#arm();
  }

  #arm(): void {
    this.#disarm();
    if (!this.#watching || !this.idle) return;
    this.#timers = this.#options.idle().map(({ afterMs, onIdle }) => {
      const timer = setInterval(onIdle, Math.min(afterMs, 2_147_483_647));
      timer.unref();
      return timer;
    });
  }

  #disarm(): void {
    for (const timer of this.#timers) clearInterval(timer);
    this.#timers = [];
  }
}
