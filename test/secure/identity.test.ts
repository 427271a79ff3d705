import { expect, setDefaultTimeout, test } from "bun:test";
import { X509Certificate, createHash, createPrivateKey } from "node:crypto";
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import net from "node:net";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import tls from "node:tls";
import { StateError, stateFolder } from "../../native/host/state.ts";
import {
  type Identity,
  identityOrOneForNow,
  loadIdentity,
  makeIdentity,
  makeRun,
  readShown,
} from "../../native/secure/identity.ts";
import { linuxTest, missing, onWindows, testNeeding } from "../needing-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

function temporaryFolder(): Disposable & { path: string } {
  const path = mkdtempSync(join(tmpdir(), `identity-${process.pid}-`));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

function messageOf(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    if (error instanceof StateError) return error.message;
    throw error;
  }
  throw new Error("nothing was refused");
}

const plainHex = (colons: string) => colons.replaceAll(":", "").toLowerCase();

// --- the certificate -------------------------------------------------------------------------------------

test("a made certificate says what it should", () => {
  const { key, certificate, fingerprint } = makeIdentity();
  const parsed = new X509Certificate(certificate);
  expect({
    subject: parsed.subject,
    issuer: parsed.issuer,
    validFrom: parsed.validFrom,
    validTo: parsed.validTo,
    fingerprint: plainHex(parsed.fingerprint256),
    curve: parsed.publicKey.asymmetricKeyDetails?.namedCurve,
    selfSigned: parsed.verify(parsed.publicKey),
    ofThisKey: parsed.checkPrivateKey(createPrivateKey(key)),
  }).toEqual({
    subject: "CN=tcp-hole-punching",
    issuer: "CN=tcp-hole-punching",
    validFrom: "Jan  1 00:00:00 1970 GMT",
    validTo: "Dec 31 23:59:59 9999 GMT",
    fingerprint,
    curve: "prime256v1",
    selfSigned: true,
    ofThisKey: true,
  });
  expect(fingerprint).toMatch(/^[0-9a-f]{64}$/);
  expect(fingerprint).toBe(createHash("sha256").update(parsed.raw).digest("hex"));
});

test("200 identities: all parse, all differ, every serial is a minimal positive INTEGER of 16 bytes", () => {
  const seen = new Set<string>();
  for (let made = 0; made < 200; made++) {
    const parsed = new X509Certificate(makeIdentity().certificate);
    expect(parsed.verify(parsed.publicKey)).toBe(true);
    expect(parsed.serialNumber).toMatch(/^[4-7][0-9A-F]{31}$/);
    // After the outer SEQUENCE (30 82 xx xx), the signed SEQUENCE (30 81 xx), version 3 and INTEGER of 16.
    expect(parsed.raw.subarray(7, 14).toString("hex")).toBe("a0030201020210");
    seen.add(parsed.serialNumber);
  }
  expect(seen.size).toBe(200);
});

test("what is shown is an identity, or the key of a run that it has issued, and nothing else", () => {
  const [own, other] = [makeIdentity(), makeIdentity()];
  const keys: Uint8Array[] = [];
  const sealed = makeRun(own, (publicKey) => (keys.push(publicKey), "ab".repeat(32)));
  const [run, identity] = sealed.certificate
    .split(/(?<=-----END CERTIFICATE-----\n)/)
    .map((pem) => new X509Certificate(pem));
  const [ofOwn, ofOther] = [own, other].map(({ certificate }) => new X509Certificate(certificate).raw);
  expect(identity!.raw.equals(ofOwn!)).toBe(true);
  expect(run!.checkPrivateKey(createPrivateKey(sealed.key))).toBe(true);
  expect(run!.checkPrivateKey(createPrivateKey(own.key))).toBe(false);
  const { fingerprint } = own;
  const shown = { fingerprint, run: { publicKey: keys[0]!, seal: "ab".repeat(32) } };
  expect(readShown(run!.raw, ofOwn)).toEqual(shown as never);
  expect(readShown(ofOwn!, undefined)).toEqual({ fingerprint });
  expect(readShown(ofOwn!, ofOwn)).toEqual({ fingerprint }); // as a self-signed one names its issuer
  expect(readShown(run!.raw, ofOther)).toBeUndefined();
  expect(readShown(ofOther!, ofOwn)).toBeUndefined();
  expect(readShown(new Uint8Array(8), ofOwn)).toBeUndefined();
});

test("a signature of a certificate that was changed does not verify", () => {
  const { raw } = new X509Certificate(makeIdentity().certificate);
  const changed = Buffer.from(raw);
  changed[changed.indexOf("tcp-hole")] = "T".charCodeAt(0);
  const parsed = new X509Certificate(changed);
  expect(parsed.issuer).toBe("CN=Tcp-hole-punching");
  expect(parsed.verify(parsed.publicKey)).toBe(false);
});

testNeeding(missing(["openssl"], "package openssl"))("openssl reads certificate and key too", async () => {
  const { key, certificate } = makeIdentity();
  const openssl = async (args: string[], input: string) => {
    await using child = Bun.spawn(["openssl", ...args], { stdin: Buffer.from(input), stderr: "pipe" });
    return { output: await child.stdout.text(), exitCode: await child.exited };
  };
  const shown = await openssl(["x509", "-noout", "-text"], certificate);
  expect(shown.exitCode).toBe(0);
  expect(shown.output).toContain("Version: 3 (0x2)");
  expect(shown.output).toContain("Signature Algorithm: ecdsa-with-SHA256");
  expect(shown.output).toContain("ASN1 OID: prime256v1");
  const publicOfCertificate = await openssl(["x509", "-noout", "-pubkey"], certificate);
  const publicOfKey = await openssl(["pkey", "-pubout"], key);
  expect(publicOfKey).toEqual(publicOfCertificate);
});

// --- TLS 1.3 ---------------------------------------------------------------------------------------------

interface Seen {
  protocol: string | null;
  peer: string;
}

function seenBy(socket: tls.TLSSocket): Seen {
  return {
    protocol: socket.getProtocol(),
    peer: plainHex(socket.getPeerCertificate().fingerprint256),
  };
}

function credentials(identity: Identity) {
  return {
    key: identity.key,
    cert: identity.certificate,
    rejectUnauthorized: false,
    minVersion: "TLSv1.3",
  } as const;
}

/** One handshake over loopback: what either side learnt of the other. */
async function handshake(client: Identity, server: Identity): Promise<{ client: Seen; server: Seen }> {
  const atServer = Promise.withResolvers<Seen>();
  const atClient = Promise.withResolvers<Seen>();
  const listener = net.createServer((socket) => {
    const secured = new tls.TLSSocket(socket, { isServer: true, requestCert: true, ...credentials(server) });
    secured.once("secure", () => atServer.resolve(seenBy(secured)));
    secured.once("error", atServer.reject);
  });
  const listening = Promise.withResolvers<void>();
  listener.listen(0, "127.0.0.1", listening.resolve);
  await listening.promise;
  const { port } = listener.address() as net.AddressInfo;
  const socket = net.connect(port, "127.0.0.1");
  const secured = tls.connect({ socket, ...credentials(client) });
  secured.once("secureConnect", () => atClient.resolve(seenBy(secured)));
  secured.once("error", atClient.reject);
  try {
    const [client, server] = await Promise.all([atClient.promise, atServer.promise]);
    return { client, server };
  } finally {
    secured.destroy();
    listener.close();
  }
}

test("TLS 1.3 in both roles: each side sees the other's fingerprint", async () => {
  const [alice, bob] = [makeIdentity(), makeIdentity()];
  const aliceSees = { protocol: "TLSv1.3", peer: bob.fingerprint };
  const bobSees = { protocol: "TLSv1.3", peer: alice.fingerprint };
  expect(await handshake(alice, bob)).toEqual({ client: aliceSees, server: bobSees });
  expect(await handshake(bob, alice)).toEqual({ client: bobSees, server: aliceSees });
});

test("TLS 1.3 with an identity that came from the file", async () => {
  using folder = temporaryFolder();
  loadIdentity(folder.path);
  const [kept, other] = [loadIdentity(folder.path), makeIdentity()];
  const { server } = await handshake(kept, other);
  expect(server).toEqual({ protocol: "TLSv1.3", peer: kept.fingerprint });
});

// --- the file --------------------------------------------------------------------------------------------

test("the state folder follows the XDG rules", () => {
  const rows: [what: string, env: Record<string, string | undefined>, folder: string][] = [
    ["variable set", { XDG_STATE_HOME: "/s", HOME: "/h" }, "/s/tcp-hole-punching"],
    ["variable unset", { HOME: "/h" }, "/h/.local/state/tcp-hole-punching"],
    ["variable empty", { XDG_STATE_HOME: "", HOME: "/h" }, "/h/.local/state/tcp-hole-punching"],
    ["relative, so ignored", { XDG_STATE_HOME: "s", HOME: "/h" }, "/h/.local/state/tcp-hole-punching"],
    ["nothing set", {}, join(homedir(), ".local/state/tcp-hole-punching")],
  ];
  for (const [what, env, folder] of rows) expect([what, stateFolder(env)]).toEqual([what, folder]);
});

test("first run makes folder 0700 and file 0600, whatever the umask; later runs reuse them", () => {
  using folder = temporaryFolder();
  const deep = join(folder.path, "a", "b");
  const umask = process.umask(0);
  let first: Identity;
  try {
    first = loadIdentity(deep);
  } finally {
    process.umask(umask);
  }
  expect(readdirSync(deep)).toEqual(["identity.pem"]);
  expect(statSync(deep).mode & 0o777).toBe(0o700);
  expect(statSync(join(deep, "identity.pem")).mode & 0o777).toBe(0o600);
  const before = readFileSync(join(deep, "identity.pem"), "utf8");
  expect(before).toBe(first.key + first.certificate);
  expect(loadIdentity(deep)).toEqual(first);
  expect(readFileSync(join(deep, "identity.pem"), "utf8")).toBe(before);
});

/** A program that loads the identity of each folder it reads from stdin, and writes its fingerprint. */
async function startLoader() {
  const program = `
    import { loadIdentity } from ${JSON.stringify(join(import.meta.dir, "../../native/secure/identity.ts"))};
    process.stdout.write("ready\\n");
    for await (const folder of console) {
      if (folder === "") break; // what Bun's console gives at the end of stdin
      process.stdout.write(loadIdentity(folder).fingerprint + "\\n");
    }
  `;
  const child = Bun.spawn([process.execPath, "-e", program], { stdin: "pipe", stdout: "pipe" });
  const reader = child.stdout.getReader();
  const nextLine = async () => new TextDecoder().decode((await reader.read()).value).trim();
  expect(await nextLine()).toBe("ready");
  return {
    load(folder: string) {
      child.stdin.write(`${folder}\n`);
      child.stdin.flush();
      return nextLine();
    },
    end() {
      child.stdin.end();
      return child.exited;
    },
  };
}

test("eight programs started at once end up with one identity and leave nothing else", async () => {
  using folder = temporaryFolder();
  const loaders = await Promise.all(Array.from({ length: 8 }, startLoader));
  for (let round = 0; round < 50; round++) {
    const state = join(folder.path, `${round}`, "state");
    const fingerprints = await Promise.all(loaders.map((loader) => loader.load(state)));
    expect(fingerprints).toEqual(Array(8).fill(loadIdentity(state).fingerprint));
    expect(readdirSync(state)).toEqual(["identity.pem"]);
  }
  expect(await Promise.all(loaders.map((loader) => loader.end()))).toEqual(Array(8).fill(0));
});

test("a damaged file is refused, says which and why, and is left alone", () => {
  const own = makeIdentity();
  const other = makeIdentity();
  // Characters 24 to 27 are bytes 18 to 20: inside the serial number, so that it still parses.
  const body = own.certificate.split("\n");
  const flipped = body.with(
    1,
    body[1]!.slice(0, 24) + (body[1]![24] === "A" ? "B" : "A") + body[1]!.slice(25),
  );
  const rows: [what: string, text: string, says: string][] = [
    ["empty", "", "has no private key in it"],
    ["garbage", "\0\xff garbage", "has no private key in it"],
    ["key alone", own.key, "has no certificate in it"],
    ["certificate alone", own.certificate, "has no private key in it"],
    ["cut short", (own.key + own.certificate).slice(0, -60), "has no certificate in it"],
    ["certificate not DER", own.key + own.certificate.replace("MII", "AII"), "is damaged"],
    ["key not DER", own.key.replace("MIG", "AIG") + own.certificate, "is damaged"],
    ["key of another", other.key + own.certificate, "do not belong together"],
    ["serial number changed", own.key + flipped.join("\n"), "is damaged"],
  ];
  for (const [what, text, says] of rows) {
    using folder = temporaryFolder();
    const file = join(folder.path, "identity.pem");
    writeFileSync(file, text, { mode: 0o600 });
    const message = messageOf(() => loadIdentity(folder.path));
    expect([what, message]).toEqual([what, expect.stringContaining(`${file} `)]);
    expect([what, message]).toEqual([what, expect.stringContaining(says)]);
    expect([what, message]).toEqual([what, expect.stringContaining("move it away")]);
    expect([what, readFileSync(file, "utf8")]).toEqual([what, text]);
    expect(readdirSync(folder.path)).toEqual(["identity.pem"]);
  }
});

test("a whole file with other text around the two blocks is read", () => {
  using folder = temporaryFolder();
  const { key, certificate, fingerprint } = makeIdentity();
  const text = `the one of my laptop\r\n${certificate}\n${key}`.replaceAll("\n", "\r\n");
  writeFileSync(join(folder.path, "identity.pem"), text, { mode: 0o600 });
  expect(loadIdentity(folder.path).fingerprint).toBe(fingerprint);
});

testNeeding(onWindows)("a file that others can use is refused with the command", () => {
  using folder = temporaryFolder();
  const file = join(folder.path, "identity.pem");
  const { fingerprint } = loadIdentity(folder.path);
  for (const mode of [0o644, 0o640, 0o604, 0o620, 0o602, 0o610, 0o601]) {
    chmodSync(file, mode);
    const message = messageOf(() => loadIdentity(folder.path));
    expect(message).toContain(`mode 0${mode.toString(8)}`);
    expect(message).toEndWith(`chmod 600 ${file}`);
  }
  for (const mode of [0o400, 0o600, 0o700]) {
    chmodSync(file, mode);
    expect(loadIdentity(folder.path).fingerprint).toBe(fingerprint);
  }
});

test("a place where nothing can be kept is refused with the next step", () => {
  using folder = temporaryFolder();
  const occupied = join(folder.path, "occupied");
  writeFileSync(occupied, "");
  const rows: [what: string, place: string, errno: string][] = [
    ["a file in the folder's place", occupied, "EEXIST"],
    ["a file in the place of the folder above", join(occupied, "below"), "ENOTDIR"],
  ];
  for (const [what, place, errno] of rows) {
    const message = messageOf(() => loadIdentity(place));
    const start = `cannot make ${join(place, "identity.pem")} (${errno})`;
    expect([what, message]).toEqual([what, expect.stringContaining(start)]);
    expect([what, message]).toEqual([what, expect.stringContaining("XDG_STATE_HOME")]);
  }
  expect(readdirSync(folder.path)).toEqual(["occupied"]);
});

test("what is no file in the file's place is refused and leaves nothing behind", () => {
  using folder = temporaryFolder();
  const [asFolder, dangling] = [join(folder.path, "1"), join(folder.path, "2")];
  mkdirSync(join(asFolder, "identity.pem"), { recursive: true, mode: 0o700 });
  expect(messageOf(() => loadIdentity(asFolder))).toBe(
    `${join(asFolder, "identity.pem")} is a folder, not a file; move it away`,
  );
  mkdirSync(dangling);
  symlinkSync(join(folder.path, "nowhere"), join(dangling, "identity.pem"));
  expect(messageOf(() => loadIdentity(dangling))).toContain(join(dangling, "identity.pem"));
  expect(readdirSync(dangling)).toEqual(["identity.pem"]);
});

/** The kernel's own file system: nobody may make anything there, not even root. */
const readOnly = "/sys/tcp-hole-punching-test";

linuxTest("where nothing may be written, one run has an identity", () => {
  const warnings: string[] = [];
  const warn = (message: string) => void warnings.push(message);
  const [one, other] = [identityOrOneForNow(warn, readOnly), identityOrOneForNow(warn, readOnly)];
  expect(one.fingerprint).not.toBe(other.fingerprint);
  expect(warnings[0]).toStartWith(`cannot make ${join(readOnly, "identity.pem")} (E`);
  expect(warnings[0]).toEndWith("Until then each run has an identity of its own");
});

test("a damaged identity is never replaced by one for the run", () => {
  using folder = temporaryFolder();
  writeFileSync(join(folder.path, "identity.pem"), "", { mode: 0o600 });
  expect(messageOf(() => identityOrOneForNow(() => {}, folder.path))).toContain("has no private key");
});

const isRoot = process.getuid?.() === 0;
testNeeding(isRoot ? "root may write anywhere" : undefined)(
  "a folder without write permission is refused",
  () => {
    using folder = temporaryFolder();
    chmodSync(folder.path, 0o500);
    expect(messageOf(() => loadIdentity(folder.path))).toContain("(EACCES)");
  },
);
