// A worker's key and the tokens that it signs with it: Ed25519, JWT (RFC 7519) with alg EdDSA and no other.
import { createPublicKey, generateKeyPairSync, type KeyObject } from 'node:crypto';
import { decodeJwt, jwtVerify, SignJWT } from 'jose';

/** What a worker asks for; the most that a controller takes is twice that. */
const tokenSeconds = 300;
const tokenSecondsMax = 600;
/** By how much the two clocks may differ. */
const leewaySeconds = 60;
/** A token of ours has some 300 characters. */
const tokenCharactersMax = 2_048;

export function newPrivateKey(): KeyObject {
  return generateKeyPairSync('ed25519').privateKey;
}

/** Raw, base64url: 43 characters. */
export function publicHalf(privateKey: KeyObject): string {
  return createPublicKey(privateKey).export({ format: 'jwk' }).x as string;
}

/** Whether it is 32 bytes in their one spelling, and none of the keys of small order, for which anybody can sign. */
export function isPublicKey(text: string): boolean {
  const bytes = Buffer.from(text, 'base64url');
  return bytes.length === 32 && bytes.toString('base64url') === text && !isSmallOrder(bytes);
}

export interface TokenBinding {
  workerId: string;
  controllerId: string;
  /** By the controller's clock. */
  at: Date;
}

export async function signToken(
  privateKey: KeyObject,
  { workerId, controllerId, at }: TokenBinding,
): Promise<string> {
  const seconds = Math.floor(at.getTime() / 1000);
  return await new SignJWT()
    .setProtectedHeader({ alg: 'EdDSA', typ: 'JWT' })
    .setSubject(workerId)
    .setAudience(controllerId)
    .setIssuedAt(seconds)
    .setExpirationTime(seconds + tokenSeconds)
    .sign(privateKey);
}

/** Whom a token is about, not verified. */
export function claimedSubject(token: string): string | undefined {
  if (token.length > tokenCharactersMax) return undefined;
  try {
    const { sub } = decodeJwt(token);
    return typeof sub === 'string' ? sub : undefined;
  } catch {
    return undefined;
  }
}

/** Throws whatever is wrong with it, for the log; who sent it is told nothing of that. */
export async function verifyToken(
  token: string,
  publicKey: string,
  { workerId, controllerId, at }: TokenBinding,
): Promise<void> {
  const key = createPublicKey({ key: { kty: 'OKP', crv: 'Ed25519', x: publicKey }, format: 'jwk' });
  const { payload } = await jwtVerify(token, key, {
    algorithms: ['EdDSA'],
    audience: controllerId,
    subject: workerId,
    requiredClaims: ['iat', 'exp'],
    clockTolerance: leewaySeconds,
    maxTokenAge: tokenSecondsMax,
    currentDate: at,
  });
  const { iat = 0, exp = 0 } = payload;
  if (exp - iat > tokenSecondsMax)
    throw new Error(`valid for ${exp - iat} seconds; the most is ${tokenSecondsMax}`);
}

/** The y-coordinates, little-endian and without the sign, of the points whose order divides 8, in every encoding of theirs that 255 bits can hold. */
const smallOrder = new Set([
  '0000000000000000000000000000000000000000000000000000000000000000',
  '0100000000000000000000000000000000000000000000000000000000000000',
  '26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05',
  'c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a',
  'ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f',
  'edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f',
  'eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f',
]);

function isSmallOrder(bytes: Uint8Array): boolean {
  const y = Buffer.from(bytes);
  y[31] = (y[31] as number) & 0x7f;
  return smallOrder.has(y.toString('hex'));
}
