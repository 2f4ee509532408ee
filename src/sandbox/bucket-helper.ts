// The command lines of `ossfs` and `ossfs2`, the programs that show a bucket as a folder: what they are told, and which of a request's options they may be told.
// Starts nothing.
import type { BucketClaim } from '../contract/bucket.ts';
import { Failure } from '../lib/failure.ts';

export interface BucketKeys {
  accessKeyId: string;
  accessKeySecret: string;
}

/** What is to be run, as the program of one version wants it. */
export interface HelperPlan {
  program: string;
  args: string[];
  /** Of the file that holds the keys, whose path is among `args`. */
  secretFile: string;
  /**
   * It goes on in the foreground while the bucket is mounted. Otherwise it ends once it is. In the foreground `ossfs` says what is wrong with keys and endpoint, of
   * which in the background it tells the system's log alone.
   */
  foreground: boolean;
}

export const helpers: Record<BucketClaim['version'], string> = { '1.0': 'ossfs', '2.0': 'ossfs2' };

const whole = /^\d{1,12}$/;
const size = /^\d{1,12}[KMGkmg]?[Bb]?$/;
const word = /^[A-Za-z0-9_-]{1,64}$/;
const yesOrNo = /^(true|false|0|1)$/;
/** Without a value. */
const flag = 'flag';

/**
 * Those that concern the bucket and the way to it. What reads or writes files of the host, runs programs, borrows the host's own credentials or changes who owns
 * what is not among them: a request may have of the host what `storage.allowed_host_paths` says, and no more.
 */
const options: Record<BucketClaim['version'], Record<string, RegExp | typeof flag>> = {
  '1.0': {
    ...{ allow_other: flag, use_path_request_style: flag, sigv2: flag, sigv4: flag, noxmlns: flag },
    ...{ nomultipart: flag, norenameapi: flag, nocopyapi: flag, compat_dir: flag, notsup_compat_dir: flag },
    ...{ complement_stat: flag, enable_noobj_cache: flag, enable_content_md5: flag, noatime: flag, ro: flag },
    ...{ big_writes: flag, retries: whole, connect_timeout: whole, readwrite_timeout: whole },
    ...{ list_object_max_keys: whole, max_stat_cache_size: whole, stat_cache_expire: whole },
    ...{ stat_cache_interval_expire: whole, parallel_count: whole, multipart_size: whole },
    ...{
      multipart_copy_size: whole,
      singlepart_copy_limit: whole,
      multireq_max: whole,
      max_dirty_data: whole,
    },
    ...{ max_background: whole, max_write: whole, umask: /^0?[0-7]{3}$/, mp_umask: /^0?[0-7]{3}$/ },
    ...{ endpoint: word, region: word, storage_class: word, default_acl: word },
  },
  '2.0': {
    ...{ allow_other: yesOrNo, ro: yesOrNo, oss_region: word, attr_timeout: whole, negative_timeout: whole },
    ...{ readdirplus: yesOrNo, close_to_open: yesOrNo, max_inode_cache_count: whole },
    ...{ inode_cache_eviction_threshold: whole, inode_cache_eviction_interval_ms: whole },
    ...{ oss_negative_cache_timeout: whole, oss_negative_cache_size: whole, memory_data_cache_size: size },
    ...{ upload_buffer_size: size, upload_concurrency: whole, upload_copy_concurrency: whole },
    ...{ prefetch_concurrency: whole, prefetch_concurrency_per_file: whole, prefetch_chunk_size: size },
    ...{ prefetch_chunks: /^-?\d{1,9}$/, enable_appendable_object: yesOrNo },
    ...{ appendable_object_autoswitch_threshold: whole, enable_crc64: yesOrNo, use_list_obj_v2: yesOrNo },
    ...{ max_list_ret_count: whole, oss_request_timeout_ms: whole, rename_dir_limit: whole },
    ...{ rename_dir_concurrency: whole, file_mode: /^0?[0-7]{3}$/, dir_mode: /^0?[0-7]{3}$/ },
  },
};

/** Failure('invalid') for an option that may not be given, or not like that. `what` names the volume. */
export function checkBucketOptions(version: BucketClaim['version'], given: readonly string[], what: string) {
  for (const option of given) {
    const equals = option.indexOf('=');
    const name = equals === -1 ? option : option.slice(0, equals);
    const value = equals === -1 ? undefined : option.slice(equals + 1);
    const known = options[version];
    const wanted = Object.hasOwn(known, name) ? known[name] : undefined;
    const details = { kind: 'bucket-option' };
    const told = JSON.stringify(option.slice(0, 80));
    if (wanted === undefined)
      throw new Failure(
        'invalid',
        `${what}: the option ${told} of ${helpers[version]} cannot be given here`,
        {
          hint: `Leave it out; there are ${Object.keys(known).sort().join(', ')}.`,
          details,
        },
      );
    // `ro` of ossfs2 may stand alone, as its flags may.
    const fits =
      wanted === flag ? value === undefined : value === undefined ? wanted === yesOrNo : wanted.test(value);
    if (!fits)
      throw new Failure(
        'invalid',
        `${what}: the option ${told} of ${helpers[version]} ${wanted === flag ? 'has no value' : `needs a value like ${wanted.source}`}`,
        { hint: 'Correct it, or leave it out.', details },
      );
  }
}

/**
 * `owner`: whom of the host the guest's root is. Everybody inside may use all of it, as in a named volume. `toOthers`: other users than ours get at it.
 */
export function helperPlan(
  claim: BucketClaim,
  { accessKeyId, accessKeySecret }: BucketKeys,
  {
    secretFile,
    owner,
    toOthers,
  }: { secretFile: string; owner: { uid: number; gid: number }; toOthers: boolean },
): HelperPlan {
  const { bucket, endpoint, prefix, readOnly, folder, version } = claim;
  const given = claim.options.filter((it) => !/^(allow_other|ro)\b/.test(it));
  const said = (name: string) => given.some((it) => it.startsWith(`${name}=`));
  const mayWrite = !readOnly && !claim.options.some((it) => /^ro(=true|=1)?$/.test(it));
  if (version === '1.0') {
    const mine = [
      ...[`url=${endpoint}`, `passwd_file=${secretFile}`, `uid=${owner.uid}`, `gid=${owner.gid}`],
      ...['nosuid', 'nodev'],
      ...(said('umask') ? [] : ['umask=000']),
      ...(toOthers ? ['allow_other'] : []),
      ...(mayWrite ? [] : ['ro']),
    ];
    return {
      program: helpers[version],
      args: [
        ...[prefix === '' ? bucket : `${bucket}:/${prefix}`, folder, '-f'],
        ...[...mine, ...given].flatMap((it) => ['-o', it]),
      ],
      secretFile: `${bucket}:${accessKeyId}:${accessKeySecret}\n`,
      foreground: true,
    };
  }
  const lines = [
    ...[`oss_endpoint=${endpoint}`, `oss_bucket=${bucket}`],
    ...[`oss_access_key_id=${accessKeyId}`, `oss_access_key_secret=${accessKeySecret}`],
    ...(prefix === '' ? [] : [`oss_bucket_prefix=${prefix}/`]),
    ...[`uid=${owner.uid}`, `gid=${owner.gid}`],
    ...(said('file_mode') ? [] : ['file_mode=0777']),
    ...(said('dir_mode') ? [] : ['dir_mode=0777']),
    ...[`allow_other=${toOthers}`, `ro=${!mayWrite}`],
    ...given,
  ];
  return {
    program: helpers[version],
    args: ['mount', folder, '-c', secretFile],
    secretFile: lines.map((it) => `--${it}\n`).join(''),
    foreground: false,
  };
}
