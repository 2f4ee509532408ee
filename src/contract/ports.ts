// Ports of a sandbox published on the host, in the words of `docker run -p`.
//
//   GET    /v1/sandboxes/{id}/ports            -> 200 { items: PublishedPort[] }
//   POST   /v1/sandboxes/{id}/ports  PublishPort[]   -> 201 { items: PublishedPort[] }     all of them, or none
//   POST   /v1/sandboxes/{id}/ports/unpublish UnpublishPort[] -> 200 { unpublished: n }
//
// They are kept over stop and start: a host port that was asked for is taken again, one that was chosen by us is chosen again.
import { isIP } from 'node:net';
import { z } from 'zod';
import { Failure } from '../lib/failure.ts';

const port = z.int().min(1).max(65_535);

export const PublishPort = z.strictObject({
  /** An address of the host. 127.0.0.1 by default; others let machines of the network in. */
  hostIp: z.string().max(64).optional(),
  /** 0 or absent: any free one. */
  hostPort: z.int().min(0).max(65_535).optional(),
  sandboxPort: port,
  /** `tcp`: on both loopbacks; `tcp4` (default), `tcp6` on one. */
  protocol: z.enum(['tcp', 'tcp4', 'tcp6']).default('tcp4'),
});
export type PublishPort = z.infer<typeof PublishPort>;

export const UnpublishPort = z.strictObject({
  sandboxPort: port,
  hostIp: z.string().max(64).optional(),
  hostPort: port.optional(),
  protocol: z.enum(['tcp', 'tcp4', 'tcp6']).optional(),
});
export type UnpublishPort = z.infer<typeof UnpublishPort>;

export const PublishedPort = z.object({
  hostIp: z.string(),
  /** 0 while the sandbox is stopped and the port was ours to choose. */
  hostPort: z.int(),
  sandboxPort: z.int(),
  protocol: z.enum(['tcp4', 'tcp6']),
  /** Why it is not open although the sandbox runs, e.g. that something else has the port. */
  problem: z.string().optional(),
});
export type PublishedPort = z.infer<typeof PublishedPort>;

const publishForm = '[[HOST_IP:]HOST_PORT:]SANDBOX_PORT[/PROTOCOL]';

/**
 * What stands behind `--publish`, in the words of `docker run -p`: `3000`, `8080:3000`, `127.0.0.1:8080:3000`, `[::1]:8080:3000`, each perhaps with `/tcp`,
 * `/tcp4` or `/tcp6`; an empty host port, or 0, is any free one. Failure('invalid') says what is wrong with which part.
 */
export function parsePublish(text: string): PublishPort {
  const invalid = (what: string, hint = `Write ${publishForm}, e.g. 8080:3000.`): Failure =>
    new Failure('invalid', `publish ${JSON.stringify(text.slice(0, 100))}: ${what}`, { hint });
  const [, places = '', named] = /^([^/]*)(?:\/(.*))?$/s.exec(text) ?? [];
  const protocol = named?.toLowerCase();
  if (protocol !== undefined && /^udp[46]?$/.test(protocol))
    throw invalid('UDP cannot be published, only TCP', 'Leave the protocol out, or write /tcp.');
  if (protocol !== undefined && protocol !== 'tcp' && protocol !== 'tcp4' && protocol !== 'tcp6')
    throw invalid(`${JSON.stringify(protocol)} is no protocol`, 'There are tcp, tcp4 and tcp6.');

  const bracketed = /^\[([^\]]*)\]:(.*)$/s.exec(places);
  const parts = (bracketed?.[2] ?? places).split(':');
  if (parts.length > (bracketed ? 2 : 3))
    throw invalid(
      'it has too many parts',
      places.includes('[') ? undefined : 'An IPv6 address stands in brackets: [::1]:8080:3000.',
    );
  const portOf = (what: string, digits: string, least: number): number => {
    const number = /^\d{1,5}$/.test(digits) ? Number(digits) : Number.NaN;
    if (!(number >= least && number <= 65_535))
      throw invalid(`${JSON.stringify(digits)} is no ${what}; ports go from ${least} to 65535`);
    return number;
  };
  const sandboxPort = portOf('port of the sandbox', parts.at(-1) ?? '', 1);
  const hostDigits = parts.length > 1 ? parts.at(-2) : undefined;
  if (bracketed && hostDigits === undefined)
    throw invalid('an address needs a host port behind it, or nothing and a colon');
  const hostPort = hostDigits ? portOf('port of the host', hostDigits, 0) : 0;

  const hostIp = bracketed ? bracketed[1] : parts.length === 3 ? parts[0] : undefined;
  if (hostIp !== undefined && isIP(hostIp) !== (bracketed ? 6 : 4))
    throw invalid(
      `${JSON.stringify(hostIp)} is no ${bracketed ? 'IPv6' : 'IPv4'} address`,
      'Give an address of this host, such as 127.0.0.1 or [::1]; 0.0.0.0 lets the whole network in.',
    );
  const wanted = protocol ?? (bracketed ? 'tcp6' : 'tcp4');
  if (hostIp !== undefined && wanted !== 'tcp' && (wanted === 'tcp6') !== (isIP(hostIp) === 6))
    throw invalid(`${hostIp} is no address of ${wanted}`, 'Leave the protocol out.');
  return {
    ...(hostIp === undefined ? {} : { hostIp }),
    ...(hostPort === 0 ? {} : { hostPort }),
    sandboxPort,
    protocol: wanted,
  };
}

/** What stands behind `--unpublish`, in the same form: what is left out matches anything, so `3000` takes off every mapping of that port. */
export function parseUnpublish(text: string): UnpublishPort {
  const { protocol, ...places } = parsePublish(text);
  return { ...places, ...(text.includes('/') ? { protocol } : {}) };
}

/** As `parsePublish` reads it. */
export function publishText({
  hostIp,
  hostPort,
  sandboxPort,
  protocol,
}: PublishPort | PublishedPort): string {
  const place = hostIp?.includes(':') ? `[${hostIp}]` : hostIp;
  const before = place === undefined ? (hostPort ? `${hostPort}:` : '') : `${place}:${hostPort || ''}:`;
  return `${before}${sandboxPort}/${protocol}`;
}
