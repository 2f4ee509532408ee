// Signatures against those that AWS has published (General Reference, "Signature Version 4 test suite"; S3 API Reference, "Authenticating requests"),
// and, marked so, against those of an independent implementation (aws4 1.13.2 of npm).
import { createHash } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { awsCredential, type KeyPair, parseKeyPair, resign } from './sigv4.ts';

const hash = (text: string) => createHash('sha256').update(text).digest('hex');
const suite: KeyPair = {
  accessKeyId: 'AKIDEXAMPLE',
  secretAccessKey: 'wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY',
};
const s3: KeyPair = {
  accessKeyId: 'AKIAIOSFODNN7EXAMPLE',
  secretAccessKey: 'wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY',
};
const placeholder = 'AKIAPLACEHOLDER00000';

interface Case {
  method?: string;
  host?: string;
  port?: number;
  target: string;
  headers?: [string, string][];
  body?: string;
  service?: string;
  keys?: KeyPair;
  date?: string;
}

/** What a guest would send: signed with the placeholder, so with a signature of no use. */
function signedBy(the: Case): { authorization: string; target: string; headers: [string, string][] } {
  const date = the.date ?? '20150830T123600Z';
  const names = [...new Set(['host', 'x-amz-date', ...(the.headers ?? []).map(([name]) => name)])]
    .sort()
    .join(';');
  const sent: [string, string][] = [
    ...(the.headers ?? []),
    ['x-amz-date', date],
    [
      'authorization',
      `AWS4-HMAC-SHA256 Credential=${placeholder}/${date.slice(0, 8)}/us-east-1/${the.service ?? 'service'}/aws4_request, SignedHeaders=${names}, Signature=${'0'.repeat(64)}`,
    ],
  ];
  const resigned = resign(
    {
      host: the.host ?? 'example.amazonaws.com',
      port: the.port ?? 443,
      method: the.method ?? 'GET',
      target: the.target,
      headers: sent,
    },
    the.keys ?? suite,
    { bodyChanges: false },
  );
  if (resigned.kind === 'refused') throw new Error(resigned.message);
  const headers = resigned.kind === 'body' ? resigned.sign(Buffer.from(the.body ?? '')) : resigned.headers;
  return {
    headers,
    target: resigned.kind === 'signed' ? resigned.target : the.target,
    authorization: headers.find(([name]) => name === 'authorization')?.[1] ?? '',
  };
}

const s3Case = (over: Case): Case => ({
  host: 'examplebucket.s3.amazonaws.com',
  service: 's3',
  keys: s3,
  date: '20130524T000000Z',
  ...over,
});
const emptyHash: [string, string] = ['x-amz-content-sha256', hash('')];

describe('published signatures', () => {
  const published: [string, Case, string][] = [
    ['get-vanilla', { target: '/' }, '5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31'],
    [
      'post-vanilla',
      { target: '/', method: 'POST' },
      '5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b',
    ],
    [
      'get-vanilla-query-order-key-case',
      { target: '/?Param2=value2&Param1=value1' },
      'b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500',
    ],
    ['get-slash', { target: '//' }, '5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31'],
    [
      'get-relative',
      { target: '/example/..' },
      '5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31',
    ],
    [
      'S3: GET Object',
      s3Case({ target: '/test.txt', headers: [['range', 'bytes=0-9'], emptyHash] }),
      'f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41',
    ],
    [
      'S3: PUT Object',
      s3Case({
        method: 'PUT',
        target: '/test%24file.text',
        headers: [
          ['date', 'Fri, 24 May 2013 00:00:00 GMT'],
          ['x-amz-storage-class', 'REDUCED_REDUNDANCY'],
          ['x-amz-content-sha256', hash('Welcome to Amazon S3.')],
        ],
      }),
      '98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd',
    ],
    [
      'S3: GET Bucket Lifecycle',
      s3Case({ target: '/?lifecycle', headers: [emptyHash] }),
      'fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543',
    ],
    [
      'S3: List Objects',
      s3Case({ target: '/?max-keys=2&prefix=J', headers: [emptyHash] }),
      '34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7',
    ],
  ];
  test.each(published)('%s', (_, the, signature) => {
    expect(signedBy(the).authorization).toMatch(new RegExp(`Signature=${signature}$`));
  });

  test('S3: presigned GET Object', () => {
    const fields = (key: string) =>
      `X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=${key}%2F20130524%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host`;
    const resigned = resign(
      {
        host: 'examplebucket.s3.amazonaws.com',
        port: 443,
        method: 'GET',
        target: `/test.txt?${fields(placeholder)}&X-Amz-Signature=00`,
        headers: [],
      },
      s3,
      { bodyChanges: false },
    );
    if (resigned.kind !== 'signed') throw new Error(resigned.kind);
    const query = new URL(resigned.target, 'https://x').searchParams;
    expect(query.get('X-Amz-Signature')).toBe(
      'aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404',
    );
    expect(query.getAll('X-Amz-Credential')).toEqual([
      'AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request',
    ]);
    expect(resigned.target).not.toContain(placeholder);
  });
});

describe('signatures of another implementation', () => {
  const computed: [string, Case, string][] = [
    [
      'a form whose hash is not given',
      {
        host: 'iam.amazonaws.com',
        service: 'iam',
        method: 'POST',
        target: '/',
        body: 'Action=ListUsers&Version=2010-05-08',
        headers: [['content-type', 'application/x-www-form-urlencoded']],
      },
      '1a07cb0ccdd608fadb49e083a5172c4bb753074a560101ac716b6ac317a9eba7',
    ],
    [
      'a path that is encoded twice, and a query in another order',
      { service: 'execute-api', target: '/a%20b//c/../d/?x=%20y&a-b=1&a=2' },
      '1aa4f98580f9c41e5a3e14c368a301185b0de19cbd17224d4c9656f98a587be2',
    ],
    [
      'a path of S3, which is encoded once',
      {
        host: 'bucket.s3.amazonaws.com',
        service: 's3',
        target: '/a+b/key%2Fwith~?list-type=2&prefix=a%2Fb',
        headers: [
          ['x-amz-content-sha256', 'UNSIGNED-PAYLOAD'],
          ['x-amz-meta-a', ' a   b '],
        ],
      },
      '9dc85bf801a84311e5eee620515fa14b66ff61564f3f8266f2eb2521dd516f44',
    ],
    [
      'a session token',
      { host: 'iam.amazonaws.com', service: 'iam', target: '/', keys: { ...suite, sessionToken: 'tok/+=' } },
      'f5572b217011eaca7d632b5c67bd7bbd9c6370d6903af42533ac0ae3e2d0365f',
    ],
    [
      'a port that is not 443',
      { port: 8443, target: '/' },
      '6c603abd17f7fbcfc7898db27fd6c82700a814be690b4fdeb418d9bf88d6df2c',
    ],
  ];
  test.each(computed)('%s', (_, the, signature) => {
    expect(signedBy(the).authorization).toMatch(new RegExp(`Signature=${signature}$`));
  });
});

describe('signing anew', () => {
  test("takes the session token of the real pair, and none of the guest's", () => {
    const { headers } = signedBy({
      target: '/',
      headers: [['x-amz-security-token', 'of the guest']],
      keys: { ...suite, sessionToken: 'real-token' },
    });
    expect(headers.filter(([name]) => name === 'x-amz-security-token')).toEqual([
      ['x-amz-security-token', 'real-token'],
    ]);
    expect(headers.at(-1)?.[1]).toContain('x-amz-security-token');
    const without = signedBy({ target: '/', headers: [['x-amz-security-token', 'of the guest']] });
    expect(JSON.stringify(without.headers)).not.toContain('of the guest');
  });

  test('does not sign what changes on the way, and signs every x-amz- header', () => {
    const { authorization } = signedBy({
      target: '/',
      headers: [
        ['content-length', '3'],
        ['accept-encoding', 'gzip'],
        ['connection', 'close'],
        ['user-agent', 'x'],
        ['content-type', 'a/b'],
        ['x-amz-target', 'A.B'],
      ],
    });
    expect(/SignedHeaders=([^,]+)/.exec(authorization)?.[1]).toBe(
      'content-type;host;x-amz-date;x-amz-target',
    );
  });

  test.each([
    'UNSIGNED-PAYLOAD',
    'STREAMING-UNSIGNED-PAYLOAD-TRAILER',
  ])('goes on at once with a body that is %s', (given) => {
    const sent: [string, string][] = [
      ['x-amz-date', '20130524T000000Z'],
      ['x-amz-content-sha256', given],
      [
        'authorization',
        `AWS4-HMAC-SHA256 Credential=${placeholder}/20130524/us-east-1/s3/aws4_request, SignedHeaders=host;x-amz-date, Signature=0`,
      ],
    ];
    const resigned = resign(
      { host: 'b.s3.amazonaws.com', port: 443, method: 'PUT', target: '/k', headers: sent },
      s3,
      { bodyChanges: false },
    );
    expect(resigned).toMatchObject({
      kind: 'signed',
      headers: expect.arrayContaining([['x-amz-content-sha256', given]]),
    });
  });

  test('waits for a body that has no hash, or that is changed on the way', () => {
    const waits = (headers: [string, string][], bodyChanges: boolean) =>
      resign(
        {
          host: 'iam.amazonaws.com',
          port: 443,
          method: 'POST',
          target: '/',
          headers: [
            ...headers,
            ['x-amz-date', '20150830T123600Z'],
            [
              'authorization',
              `AWS4-HMAC-SHA256 Credential=${placeholder}/20150830/us-east-1/iam/aws4_request, SignedHeaders=host, Signature=0`,
            ],
          ],
        },
        suite,
        { bodyChanges },
      );
    expect(waits([emptyHash], false).kind).toBe('signed');
    expect(waits([], false).kind).toBe('body');
    const changing = waits([emptyHash], true);
    if (changing.kind !== 'body') throw new Error(changing.kind);
    expect(changing.sign(Buffer.from('new'))).toContainEqual(['x-amz-content-sha256', hash('new')]);
  });

  const refusals: [string, [string, string][], RegExp][] = [
    [
      'chunks that are signed',
      [['x-amz-content-sha256', 'STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER']],
      /chunk by chunk/,
    ],
    [
      'Version 4A',
      [
        [
          'authorization',
          `AWS4-ECDSA-P256-SHA256 Credential=${placeholder}/20150830/s3/aws4_request, SignedHeaders=host, Signature=0`,
        ],
      ],
      /4A/,
    ],
    ['no date', [['x-amz-date', '']], /X-Amz-Date/],
    ['a date that is none', [['x-amz-date', 'yesterday']], /X-Amz-Date/],
  ];
  test.each(refusals)('refuses %s', (_, headers, message) => {
    const sent = new Map([
      ['x-amz-date', '20150830T123600Z'],
      [
        'authorization',
        `AWS4-HMAC-SHA256 Credential=${placeholder}/20150830/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0`,
      ],
      ...headers,
    ]);
    expect(
      resign({ host: 'b.s3.amazonaws.com', port: 443, method: 'PUT', target: '/', headers: [...sent] }, s3, {
        bodyChanges: false,
      }),
    ).toMatchObject({ kind: 'refused', message: expect.stringMatching(message) });
  });

  test.each([
    'AWS4-HMAC-SHA256',
    'AWS4-HMAC-SHA256 Credential=',
    `AWS4-HMAC-SHA256 Credential=${placeholder}`,
    'Bearer AWS4-HMAC-SHA256 Credential=A/20150830/us-east-1/s3/aws4_request',
    '',
  ])('sees no signature in "%s"', (authorization) => {
    expect(
      awsCredential({ target: '/?x-amz-credential', headers: [['authorization', authorization]] }),
    ).toBeUndefined();
  });
});

describe('a key pair', () => {
  const forms: [string, KeyPair | undefined][] = [
    [`${s3.accessKeyId}:${s3.secretAccessKey}`, s3],
    [`${s3.accessKeyId}:${s3.secretAccessKey}:tok/en==`, { ...s3, sessionToken: 'tok/en==' }],
    [
      JSON.stringify(
        { Version: 1, AccessKeyId: s3.accessKeyId, SecretAccessKey: s3.secretAccessKey },
        null,
        2,
      ),
      s3,
    ],
    [
      JSON.stringify({ AccessKeyId: s3.accessKeyId, SecretAccessKey: s3.secretAccessKey, SessionToken: 't' }),
      { ...s3, sessionToken: 't' },
    ],
    [s3.accessKeyId, undefined],
    [`${s3.accessKeyId}:short`, undefined],
    [`${s3.accessKeyId}:${s3.secretAccessKey}:a:b`, undefined],
    [`${s3.accessKeyId}:${s3.secretAccessKey}\r\nx: y`, undefined],
    [JSON.stringify({ AccessKeyId: s3.accessKeyId, SecretAccessKey: { length: 40 } }), undefined],
    ['{"AccessKeyId": ', undefined],
  ];
  test.each(forms)('from %j', (text, pair) => {
    expect(parseKeyPair(text)).toEqual(pair);
  });
});
