/**
 * Who a participant is: a P-256 key and its self-signed certificate, made at the first run and kept in one file. Peers know
 * the certificate by its SHA-256, and check nothing else in it. With the key it issues certificates for one run of the
 * program. Certificates are written as DER here, because no API of Bun or Node makes one. Prints nothing. For
 * native/secure/ and participant.ts. RFC 5280 (certificate), RFC 5480 (key).
 */
import {
  X509Certificate,
  createHash,
  createPrivateKey,
  generateKeyPairSync,
  randomBytes,
  sign,
  type KeyObject,
} from "node:crypto";
import { StateError, StateFile, stateFolder, UnkeepableError } from "../host/state.ts";

export interface Identity {
  /** PEM, PKCS #8. */
  key: string;
  /** PEM. */
  certificate: string;
  /** SHA-256 of the DER certificate, 64 lower-case hex digits. */
  fingerprint: string;
}

const fileName = "identity.pem";
/** The two blocks take some 900 bytes. Other text may stand around them. */
const maxFileBytes = 64 * 1024;
const keyBlock = /-----BEGIN PRIVATE KEY-----[^-]+-----END PRIVATE KEY-----\n?/;
const certificateBlock = /-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----\n?/;

// --- the certificate -------------------------------------------------------------------------------------

function der(tag: number, ...contents: Uint8Array[]): Buffer {
  const body = Buffer.concat(contents);
  const { length } = body;
  const size =
    length < 0x80 ? [length] : length < 0x100 ? [0x81, length] : [0x82, length >> 8, length & 0xff];
  return Buffer.concat([Buffer.from([tag, ...size]), body]);
}

const sequence = (...contents: Uint8Array[]) => der(0x30, ...contents);
const ecdsaWithSha256 = sequence(der(0x06, Buffer.from("2a8648ce3d040302", "hex")));
const commonName = der(0x06, Buffer.from("550403", "hex"));
const named = (name: string) => sequence(der(0x31, sequence(commonName, der(0x0c, Buffer.from(name)))));
const subject = named("tcp-hole-punching");

/** RFC 8446 §4.4.2.2: "The certificate type MUST be X.509v3". */
const version3 = der(0xa0, der(0x02, Buffer.from([2])));

/**
 * Valid at any time: the clock of either machine may be wrong, and only the fingerprint counts. RFC 5280 §4.1.2.5:
 * "dates through the year 2049 as UTCTime", later ones as GeneralizedTime, and "no well-defined expiration date" is
 * 99991231235959Z.
 */
const validity = sequence(der(0x17, Buffer.from("700101000000Z")), der(0x18, Buffer.from("99991231235959Z")));

/** RFC 5280 §4.1.2.2 wants a positive number, DER one without leading zeros. So the first byte is 0x40 to 0x7f. */
function serialNumber(): Buffer {
  const bytes = randomBytes(16);
  bytes[0] = (bytes[0]! & 0x3f) | 0x40;
  return der(0x02, bytes);
}

function identity(key: string, certificate: X509Certificate): Identity {
  const fingerprint = createHash("sha256").update(certificate.raw).digest("hex");
  return { key, certificate: certificate.toString(), fingerprint };
}

const makePair = () => generateKeyPairSync("ec", { namedCurve: "prime256v1" });
const derOf = (key: KeyObject): Buffer => key.export({ type: "spki", format: "der" });
const pemOf = (key: KeyObject): string => key.export({ type: "pkcs8", format: "pem" }).toString();

function issue(bearer: Buffer, publicKey: Buffer, signer: KeyObject): X509Certificate {
  const signed = sequence(
    version3,
    serialNumber(),
    ecdsaWithSha256,
    subject, // the issuer
    validity,
    bearer,
    publicKey,
  );
  const signature = der(0x03, Buffer.from([0]), sign("sha256", signed, signer));
  return new X509Certificate(sequence(signed, ecdsaWithSha256, signature));
}

export function makeIdentity(): Identity {
  const { publicKey, privateKey } = makePair();
  return identity(pemOf(privateKey), issue(subject, derOf(publicKey), privateKey));
}

// --- one run ---------------------------------------------------------------------------------------------

/** Which certificates a peer has shown in TLS. */
export interface Shown {
  /** SHA-256 of the certificate of its identity. */
  fingerprint: string;
  /** If it showed a certificate for one run, issued by its identity: the key of the run as DER, and its seal. */
  run?: { publicKey: Uint8Array; seal: string };
}

/**
 * A key for one run of the program, which never leaves this process. Its certificate is issued by the identity, whose
 * own certificate follows in the same text. `sealOf` makes the seal of the key, at most 64 characters, that the
 * certificate has.
 */
export function makeRun(own: Identity, sealOf: (publicKey: Uint8Array) => string) {
  const { publicKey, privateKey } = makePair();
  const der = derOf(publicKey);
  const issued = issue(named(sealOf(der)), der, createPrivateKey(own.key));
  return { key: pemOf(privateKey), certificate: issued.toString() + own.certificate };
}

/** Reads DER certificates: one, or one for a run and then its issuer. Undefined if they can't be read or don't fit. */
export function readShown(first: Uint8Array, second: Uint8Array | undefined): Shown | undefined {
  const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");
  if (!second || Buffer.from(first).equals(second)) return { fingerprint: sha256(first) };
  try {
    const [run, issuer] = [new X509Certificate(first), new X509Certificate(second)];
    if (!run.verify(issuer.publicKey)) return undefined;
    const seal = /^CN=([^\n]*)$/.exec(run.subject)?.[1] ?? "";
    return { fingerprint: sha256(second), run: { publicKey: derOf(run.publicKey), seal } };
  } catch {
    return undefined; // TLS could read it, and we can't
  }
}

// --- the file --------------------------------------------------------------------------------------------

/** The identity kept in that folder. If none can be kept: one for this run, and a warning. */
export function identityOrOneForNow(warn: (message: string) => void, folder?: string): Identity {
  try {
    return loadIdentity(folder);
  } catch (error) {
    if (!(error instanceof UnkeepableError)) throw error;
    warn(`${error.message}. Until then each run has an identity of its own`);
    return makeIdentity();
  }
}

/** The identity kept in that folder. It is made if it is not there. Throws a {@link StateError}. */
export function loadIdentity(folder: string = stateFolder()): Identity {
  const file = new StateFile(folder, fileName, maxFileBytes);
  const kept = file.read();
  if (kept !== undefined) return parseIdentity(file.path, kept);
  const { key, certificate } = makeIdentity();
  file.create(key + certificate);
  // Read from the disk: another program may have made it first.
  const made = file.read();
  if (made === undefined) throw new StateError(`${file.path} vanished as it was made; remove what is there`);
  return parseIdentity(file.path, made);
}

/** Reads the text of an identity file. Throws an {@link StateError} that names `file`. */
export function parseIdentity(file: string, kept: string): Identity {
  const key = keyBlock.exec(kept)?.[0];
  const block = certificateBlock.exec(kept)?.[0];
  if (!key || !block) throw damaged(file, `has no ${key ? "certificate" : "private key"} in it`);
  try {
    const certificate = new X509Certificate(block);
    const matches = certificate.checkPrivateKey(createPrivateKey(key));
    if (!matches) throw damaged(file, "has a key and a certificate that do not belong together");
    if (!certificate.verify(certificate.publicKey)) throw damaged(file, "is damaged");
    return identity(key, certificate);
  } catch (error) {
    throw error instanceof StateError ? error : damaged(file, "is damaged", error);
  }
}

function damaged(file: string, what: string, cause?: unknown): StateError {
  const next = "restore it from a backup, or move it away to get a new identity";
  return new StateError(`${file} ${what}; ${next} (peers who know the old one will have to be told)`, {
    cause,
  });
}
