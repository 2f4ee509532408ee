// A failure of HTTP itself, for which the table of contract/errors.ts is too coarse: it brings its own status and, where OpenSandbox has one, its own code.
import { Failure, type FailureCode, type FailureOptions } from '../lib/failure.ts';

export interface RefusalOptions extends FailureOptions {
  status?: number;
  wireCode?: string;
  headers?: Record<string, string>;
}

export class Refusal extends Failure {
  readonly status: number | undefined;
  readonly wireCode: string | undefined;
  readonly headers: Record<string, string>;

  constructor(code: FailureCode, message: string, options: RefusalOptions = {}) {
    super(code, message, options);
    this.status = options.status;
    this.wireCode = options.wireCode;
    this.headers = options.headers ?? {};
  }
}
