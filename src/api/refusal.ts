// A failure of HTTP itself, for which the table of contract/errors.ts is too coarse: it brings its own status and, where OpenSandbox has one, its own code.
import type { Area } from '../contract/errors.ts';
import { Failure, type FailureCode, type FailureOptions } from '../lib/failure.ts';

export interface RefusalOptions extends FailureOptions {
  status?: number;
  wireCode?: string;
  /** Where its thrower knows better than the server what the request was about. */
  area?: Area;
  headers?: Record<string, string>;
}

export class Refusal extends Failure {
  readonly status: number | undefined;
  readonly wireCode: string | undefined;
  readonly area: Area | undefined;
  readonly headers: Record<string, string>;

  constructor(code: FailureCode, message: string, options: RefusalOptions = {}) {
    super(code, message, options);
    this.status = options.status;
    this.wireCode = options.wireCode;
    this.area = options.area;
    this.headers = options.headers ?? {};
  }
}
