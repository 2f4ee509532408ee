// How many a pool is to make or take away. Pure.
import type { CapacitySpec } from '../contract/pool.ts';

export interface Stock {
  ready: number;
  starting: number;
  allocated: number;
  /** It fell below bufferMin, and bufferMax is not reached yet. */
  filling: boolean;
}

export interface Plan {
  /** To be made; below zero, to be taken away of those that are ready. */
  more: number;
  filling: boolean;
  /** What keeps it from having more: its poolMax, or the memory that it may take. */
  heldBy?: 'at-maximum' | 'memory';
}

/** `waitingMax`: as many as the memory allows to wait. */
export function planFor(capacity: CapacitySpec, stock: Stock, waitingMax: number): Plan {
  const { bufferMin, bufferMax, poolMin, poolMax } = capacity;
  const coming = stock.ready + stock.starting;
  const filling = coming < bufferMin || (stock.filling && coming < bufferMax);
  const buffer = filling ? bufferMax : Math.min(coming, bufferMax);
  const wanted = Math.max(buffer, poolMin - stock.allocated);
  const room = Math.max(0, poolMax - stock.allocated);
  const target = Math.min(wanted, room, waitingMax);
  const heldBy = target >= wanted ? undefined : room <= waitingMax ? 'at-maximum' : 'memory';
  return { more: target - coming, filling, ...(heldBy === undefined ? {} : { heldBy }) };
}
