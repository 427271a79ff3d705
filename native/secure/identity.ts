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
import {
  closeSync,
  constants,
  fstatSync,
  linkSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  type Stats,
  writeFileSync,
} from "node:fs";
import { homedir } from "node:os";
import { isAbsolute, join } from "node:path";

export interface Identity {
  /** PEM, PKCS #8. */
  key: string;
  /** PEM. */
  certificate: string;
  /** SHA-256 of the DER certificate, 64 lower-case hex digits. */
  fingerprint: string;
}

/** The identity file can't be used. `message` says which file, what is wrong and what to do next. */
export class IdentityError extends Error {}

/** There is no identity yet, and none can be kept. The program can go on with one for this run. */
export class UnkeepableError extends IdentityError {}

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

/** `${XDG_STATE_HOME:-~/.local/state}/tcp-hole-punching`. Throws an {@link UnkeepableError} if the user has no home. */
export function stateFolder(env: Record<string, string | undefined> = process.env): string {
  // XDG Base Directory: a relative path in the variable is invalid, and must be ignored.
  const set = env.XDG_STATE_HOME;
  const base = set && isAbsolute(set) ? set : join(env.HOME || home(), ".local", "state");
  return join(base, "tcp-hole-punching");
}

/** The same; undefined if there is none. */
export function stateFolderOrNone(): string | undefined {
  try {
    return stateFolder();
  } catch (error) {
    if (!(error instanceof UnkeepableError)) throw error;
    return undefined;
  }
}

function home(): string {
  try {
    return homedir();
  } catch {
    // Neither HOME nor an account, as in a container of any user id.
    throw new UnkeepableError("this user has no home folder; set XDG_STATE_HOME to a folder that is yours");
  }
}

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

/** The identity kept in that folder. It is made if it is not there. */
export function loadIdentity(folder: string = stateFolder()): Identity {
  const file = join(folder, fileName);
  refuseFolderOfOthers(folder);
  const kept = readKept(file);
  if (kept !== undefined) return parseIdentity(file, kept);
  create(folder, file);
  // Read from the disk: another program may have made it first.
  const made = readKept(file);
  if (made === undefined) throw new IdentityError(`${file} vanished as it was made; remove what is there`);
  return parseIdentity(file, made);
}

function errnoOf(error: unknown): string {
  if (error instanceof Error && "code" in error && typeof error.code === "string") return error.code;
  throw error;
}

/** The file's text, undefined when there is none. */
function readKept(file: string): string | undefined {
  let fd: number | undefined;
  try {
    // O_NONBLOCK: opening a FIFO would wait. O_NOFOLLOW: a link may lead to a file that somebody else can change.
    const { O_RDONLY, O_NOFOLLOW = 0, O_NONBLOCK = 0 } = constants;
    fd = openSync(file, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
    refuseUnfit(file, fstatSync(fd));
    return readFileSync(fd, "utf8");
  } catch (error) {
    if (error instanceof IdentityError) throw error;
    const errno = errnoOf(error);
    if (errno === "ENOENT" || errno === "ENOTDIR") return undefined;
    if (errno === "ELOOP")
      throw new IdentityError(`${file} is a symbolic link; put the file itself in its place`);
    throw new IdentityError(`cannot read ${file} (${errno}); it must be a file that you own`, {
      cause: error,
    });
  } finally {
    if (fd !== undefined) closeSync(fd);
  }
}

/** The file must be our own, and nobody else may be able to read or change it. */
function refuseUnfit(file: string, found: Stats): void {
  if (found.isDirectory()) throw new IdentityError(`${file} is a folder, not a file; move it away`);
  if (!found.isFile()) throw new IdentityError(`${file} is no regular file; move it away`);
  if (found.size > maxFileBytes)
    throw new IdentityError(
      `${file} has ${found.size} bytes, too many for what it should hold; move it away`,
    );
  if (process.platform === "win32") return;
  refuseOwner(file, found.uid);
  if ((found.mode & 0o077) === 0) return;
  throw new IdentityError(
    `${file} holds a key, but others can use it (mode ${octal(found.mode)}); run: chmod 600 ${file}`,
  );
}

/** Whoever can write to the folder could put another file there. A folder that is not there yet is fine. */
function refuseFolderOfOthers(folder: string): void {
  const found = statOf(folder);
  if (!found?.isDirectory() || process.platform === "win32") return;
  if (found.uid !== 0) refuseOwner(folder, found.uid);
  if ((found.mode & 0o022) === 0) return;
  throw new IdentityError(
    `${folder} holds a key, but others can write to it (mode ${octal(found.mode)}); run: chmod 700 ${folder}`,
  );
}

/** Undefined if it can't be looked at. Reading or making the file then fails, and says why. */
function statOf(path: string): Stats | undefined {
  try {
    return statSync(path);
  } catch (error) {
    errnoOf(error);
    return undefined;
  }
}

function refuseOwner(path: string, uid: number): void {
  const own = process.geteuid?.();
  if (own === undefined || uid === own) return;
  throw new IdentityError(
    `${path} belongs to another user (${uid}, and this is ${own}); run this as that user, or set XDG_STATE_HOME to a folder of yours`,
  );
}

const octal = (mode: number): string => (mode & 0o777).toString(8).padStart(4, "0");

/** Reads the text of an identity file. Throws an {@link IdentityError} that names `file`. */
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
    throw error instanceof IdentityError ? error : damaged(file, "is damaged", error);
  }
}

function damaged(file: string, what: string, cause?: unknown): IdentityError {
  const next = "restore it from a backup, or move it away to get a new identity";
  return new IdentityError(`${file} ${what}; ${next} (peers who know the old one will have to be told)`, {
    cause,
  });
}

function create(folder: string, file: string): void {
  const draft = `${file}.${process.pid}.${randomBytes(8).toString("hex")}`;
  const { key, certificate } = makeIdentity();
  try {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    try {
      writeFileSync(draft, key + certificate, { flag: "wx", mode: 0o600 });
      linkUnlessThere(draft, file);
    } finally {
      rmSync(draft, { force: true });
    }
  } catch (error) {
    const next = "make the folder writable for you, or set XDG_STATE_HOME to one that is";
    const message = `cannot make ${file} (${errnoOf(error)}); ${next}`;
    const isReadOnly = ["EACCES", "EPERM", "EROFS"].includes(errnoOf(error));
    throw new (isReadOnly ? UnkeepableError : IdentityError)(message, { cause: error });
  }
}

/** link(2), not rename(2): when several programs start together, it works for the first one only. */
function linkUnlessThere(draft: string, file: string): void {
  try {
    linkSync(draft, file);
  } catch (error) {
    if (errnoOf(error) !== "EEXIST") throw error;
  }
}
