// Whether anybody uses a sandbox: commands that run in it and clients that are attached. Tells when it has been left alone for long enough.

export interface ActivityOptions {
  /** Absent: it is never left alone. */
  idleAfterMs: number | undefined;
  now: () => Date;
  /** Called when nothing has happened for so long, again after each further period. */
  onIdle: () => void;
  /** Use has ended, or begun after a pause. */
  onUsed: (at: Date) => void;
}

export class Activity {
  readonly #options: ActivityOptions;
  #holds = 0;
  #commands = 0;
  #timer: NodeJS.Timeout | undefined;
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

  /** From now on it may be found idle; before, and after `rest`, nobody counts. */
  watch(): void {
    this.#watching = true;
    this.#arm();
  }

  rest(): void {
    this.#watching = false;
    clearTimeout(this.#timer);
  }

  #change(change: () => void): void {
    const before = this.idle;
    change();
    if (before !== this.idle) this.#options.onUsed(this.#options.now());
    this.#arm();
  }

  #arm(): void {
    clearTimeout(this.#timer);
    const { idleAfterMs, onIdle } = this.#options;
    if (idleAfterMs === undefined || !this.#watching || !this.idle) return;
    this.#timer = setTimeout(
      () => {
        onIdle();
        this.#arm();
      },
      Math.min(idleAfterMs, 2_147_483_647),
    );
    this.#timer.unref();
  }
}
