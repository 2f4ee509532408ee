// What has to be done so that two folders become alike, decided from three states: what both were when they last agreed, and what each is now. Pure.
//
//   one side changed            the other follows
//   both, to the same           nothing is done, and it is remembered
//   both, otherwise             the host's stands; the guest's is kept under another name and then is a file like others
//   deleted here, changed there what was changed stays: the host's as it is, the guest's under another name
//   folder deleted here         what changed in it there stays, and so does the folder
//
// What cannot be synchronised (devices, links that lead out, names that are ignored) counts as `other`: it is left alone with all below, on both sides.

export type Item =
  /** `content` is the same for the same bytes, and different for others as far as anybody knows. */
  | { kind: 'file'; content: string; executable: boolean }
  | { kind: 'folder' }
  | { kind: 'link'; target: string }
  | { kind: 'other' };

/** By path below the workspace. The folders that lead to an item are in it, too. */
export type Tree = ReadonlyMap<string, Item>;

export type Step =
  /** Both sides have it: it is remembered as what they agree on. */
  | { do: 'agree'; path: string }
  /** Neither side has it any more. */
  | { do: 'forget'; path: string }
  | { do: 'to-guest' | 'to-host'; path: string; item: Item }
  /** Of folders: what is in it has gone before. */
  | { do: 'drop-guest' | 'drop-host'; path: string; item: Item }
  /** The guest's gets another name. What was agreed on for the path and all below is forgotten. */
  | { do: 'keep-guest'; path: string };

export interface States {
  ancestor: Tree;
  host: Tree;
  guest: Tree;
}

export function same(a: Item | undefined, b: Item | undefined): boolean {
  if (a === undefined || b === undefined) return a === b;
  if (a.kind === 'file') return b.kind === 'file' && a.content === b.content && a.executable === b.executable;
  if (a.kind === 'link') return b.kind === 'link' && a.target === b.target;
  return a.kind === b.kind;
}

/** In the order in which they can be done. */
export function reconcile(states: States): Step[] {
  const reconciler = new Reconciler(states);
  return reconciler.children('').steps;
}

interface Outcome {
  steps: Step[];
  /** Something is there when the steps are done, or has yet to be decided. */
  stays: boolean;
}

class Reconciler {
  readonly #states: States;
  readonly #children = new Map<string, Set<string>>();

  constructor(states: States) {
    this.#states = states;
    for (const tree of [states.ancestor, states.host, states.guest])
      for (const path of tree.keys()) {
        const parent = path.slice(0, Math.max(0, path.lastIndexOf('/')));
        const siblings = this.#children.get(parent);
        if (siblings) siblings.add(path);
        else this.#children.set(parent, new Set([path]));
      }
  }

  children(path: string): Outcome {
    const outcome: Outcome = { steps: [], stays: false };
    for (const child of this.#children.get(path) ?? []) {
      const { steps, stays } = this.#visit(child);
      for (const step of steps) outcome.steps.push(step);
      outcome.stays ||= stays;
    }
    return outcome;
  }

  #visit(path: string): Outcome {
    const ancestor = this.#states.ancestor.get(path);
    const host = this.#states.host.get(path);
    const guest = this.#states.guest.get(path);
    if (host?.kind === 'other' || guest?.kind === 'other') return { steps: [], stays: true };
    if (same(host, guest)) return this.#alike(path, ancestor, host);
    if (host === undefined) return this.#onlyOne(path, ancestor, guest as Item, 'guest');
    if (guest === undefined) return this.#onlyOne(path, ancestor, host, 'host');
    const hostChanged = !same(ancestor, host);
    if (hostChanged && !same(ancestor, guest)) return { steps: [{ do: 'keep-guest', path }], stays: true };
    return hostChanged ? this.#follow(path, host, guest, 'guest') : this.#follow(path, guest, host, 'host');
  }

  #alike(path: string, ancestor: Item | undefined, both: Item | undefined): Outcome {
    const { steps } = this.children(path);
    if (same(ancestor, both)) return { steps, stays: both !== undefined };
    if (both === undefined) return { steps: [...steps, { do: 'forget', path }], stays: false };
    return { steps: [{ do: 'agree', path }, ...steps], stays: true };
  }

  /** One side alone has it: it is new there, or the other has deleted it. */
  #onlyOne(path: string, ancestor: Item | undefined, item: Item, side: 'host' | 'guest'): Outcome {
    const other = side === 'host' ? 'guest' : 'host';
    const copy: Step = { do: `to-${other}`, path, item };
    const drop: Step = { do: `drop-${side}`, path, item };
    if (item.kind === 'folder') {
      const inside = this.children(path);
      if (ancestor?.kind === 'folder' && !inside.stays)
        return { steps: [...inside.steps, drop], stays: false };
      return { steps: [copy, ...inside.steps], stays: true };
    }
    // Of a folder that it was, both sides have nothing left.
    const below = this.children(path).steps;
    if (ancestor === undefined) return { steps: [copy, ...below], stays: true };
    if (same(ancestor, item)) return { steps: [drop, ...below], stays: false };
    if (side === 'guest') return { steps: [{ do: 'keep-guest', path }], stays: true };
    return { steps: [copy, ...below], stays: true };
  }

  /** Both have something, and one alone has changed it: `to` becomes like that. */
  #follow(path: string, item: Item, old: Item, to: 'host' | 'guest'): Outcome {
    const copy: Step = { do: `to-${to}`, path, item };
    if (old.kind === 'folder') {
      if (this.#changedBelow(path, to)) return { steps: [{ do: 'keep-guest', path }], stays: true };
      return { steps: [...this.#dropTree(path, to), copy], stays: true };
    }
    if (item.kind !== 'folder') return { steps: [copy], stays: true };
    return {
      steps: [{ do: `drop-${to}`, path, item: old }, copy, ...this.children(path).steps],
      stays: true,
    };
  }

  #changedBelow(path: string, side: 'host' | 'guest'): boolean {
    for (const child of this.#children.get(path) ?? []) {
      const item = this.#states[side].get(child);
      if (item === undefined) continue;
      if (item.kind === 'other' || !same(item, this.#states.ancestor.get(child))) return true;
      if (this.#changedBelow(child, side)) return true;
    }
    return false;
  }

  #dropTree(path: string, side: 'host' | 'guest'): Step[] {
    const steps: Step[] = [];
    for (const child of this.#children.get(path) ?? []) {
      for (const step of this.#dropTree(child, side)) steps.push(step);
    }
    const item = this.#states[side].get(path);
    steps.push(item === undefined ? { do: 'forget', path } : { do: `drop-${side}`, path, item });
    return steps;
  }
}
