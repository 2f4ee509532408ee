// What a guest is told when its request goes nowhere: a status, one line for a program, and lines that a person can act on. No address that a name was
// resolved to, and nothing of this host.
import { targetText } from '../policy/names.ts';
import type { Decision } from '../policy/policy.ts';
import { bodyBytesMax } from '../vault/vault.ts';
import type { Refused } from './gate.ts';
import { authorityText } from './place.ts';
import type { Destination, UpstreamError } from './upstream.ts';

function refused(
  status: number,
  header: [string, string] | undefined,
  body: string,
  close: boolean,
): Refused {
  return {
    kind: 'refused',
    status,
    headers: [['Content-Type', 'text/plain; charset=utf-8'], ...(header === undefined ? [] : [header])],
    body: `${body}\n`,
    close,
  };
}

/** The policy, or a person, said no. */
export function policyRefusal(
  to: Destination,
  scheme: 'http' | 'https',
  decision: Pick<Decision, 'rule' | 'message' | 'remedy'> & { reason: string },
): Refused {
  const lines = [`Blocked by network policy: domain ${authorityText(to, scheme)}`];
  if (decision.rule !== undefined) lines.push(`  rule: ${decision.rule.text}`);
  lines.push(`  detail: ${decision.message}`);
  if (decision.remedy !== undefined) lines.push(`  allow it with: ${decision.remedy}`);
  return refused(403, ['X-Glovebox-Deny', decision.reason], lines.join('\n'), false);
}

/** A request that says two things, or carries what it must not. */
export function requestRefusal(status: number, reason: string, message: string): Refused {
  return refused(status, ['X-Glovebox-Deny', reason], message, status === 400 || status === 421);
}

export const bodyTooLong = requestRefusal(
  413,
  'body-too-large',
  `A body that has to be seen whole is longer than ${bodyBytesMax} bytes.`,
);

export const bodyUnusable = requestRefusal(403, 'body-unusable', 'A secret cannot be put into this body.');

/** Not HTTP as it should be; whatever comes behind it cannot be trusted to be a request. */
export const malformedRefusal = (status: number, message: string): Refused =>
  refused(status, ['X-Glovebox-Deny', 'malformed'], message, true);

/** It was allowed, but the world did not play along. */
export function upstreamRefusal(
  to: Destination,
  scheme: 'http' | 'https',
  error: { code: string; message: string },
): Refused {
  const status = error.code === 'timeout' ? 504 : 502;
  return refused(
    status,
    ['X-Glovebox-Error', error.code],
    `Could not reach ${authorityText(to, scheme)}: ${withoutPlace(error.message, to)}`,
    false,
  );
}

/** Messages about the world begin with the place, which the guest has been told by then. */
function withoutPlace(message: string, { host, port }: Destination): string {
  const place = targetText(host, port);
  return message.startsWith(place) ? message.slice(place.length).replace(/^:? /, '') : message;
}

/** What an error of the connection to the world means for the guest: a refusal where the policy refused all addresses. */
export function errorRefusal(to: Destination, scheme: 'http' | 'https', error: UpstreamError): Refused {
  return error.code === 'denied' && error.decision !== undefined
    ? policyRefusal(to, scheme, error.decision)
    : upstreamRefusal(to, scheme, error);
}
