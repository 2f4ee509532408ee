// Buckets as volumes: OpenSandbox's `ossfs` (sandbox-lifecycle, schema OSSFS).
import { z } from 'zod';

/** Keys go into files of lines, parted by colons: what is no letter, digit or one of these has no place there. */
const accessKey = z
  .string()
  .min(1)
  .max(256)
  .regex(/^[A-Za-z0-9/+=._~-]+$/, 'must be letters, digits and / + = . _ ~ -');

export const OssfsVolume = z
  .strictObject({
    bucket: z
      .string()
      .regex(
        /^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$/,
        'must be the name of a bucket: 3 to 63 small letters, digits and -',
      ),
    endpoint: z
      .string()
      .max(512)
      .refine((text) => endpointOf(text) !== undefined, 'must be a host, host:port, or its http(s) address')
      .describe('A host or the address of one; https unless it says http.'),
    version: z
      .enum(['1.0', '2.0'])
      .default('2.0')
      .describe('`1.0` is mounted by `ossfs`, `2.0` by `ossfs2`.'),
    options: z
      .array(
        z
          .string()
          .min(1)
          .max(256)
          .regex(/^[A-Za-z0-9][\x21-\x2b\x2d-\x7e]*$/, 'must begin with its name, without spaces and commas'),
      )
      .max(32)
      .default([])
      .describe(
        'More options of the program that mounts it, without a leading `-`; those that concern the bucket.',
      ),
    accessKeyId: accessKey,
    accessKeySecret: accessKey,
  })
  .describe(
    'A bucket of Alibaba Cloud OSS, or of a store that answers like it, where the host has the program that mounts it. `subPath` is the prefix of its objects.',
  );

/** With its scheme and without a slash at the end; undefined for what is none. */
export function endpointOf(text: string): string | undefined {
  if (
    !/^(https?:\/\/)?([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?\/?$/.test(text)
  )
    return undefined;
  const full = /^https?:\/\//.test(text) ? text : `https://${text}`;
  return URL.canParse(full) ? full.replace(/\/$/, '') : undefined;
}

/** What programs that show buckets as folders take literally in a prefix. */
export const bucketPrefix = /^[^\p{Cc}"'\\`$#:]*$/u;

/** A bucket in a sandbox, as it is kept: without its keys. */
export interface BucketClaim {
  /** Of the volume in the request, for messages. */
  name: string;
  bucket: string;
  endpoint: string;
  version: '1.0' | '2.0';
  options: string[];
  /** Without slashes at its ends; empty: all of it. */
  prefix: string;
  guestPath: string;
  readOnly: boolean;
  /** Where it is mounted on the host. */
  folder: string;
}
