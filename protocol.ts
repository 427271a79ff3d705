/**
 * The wire formats: what participants and introducer, and two linked participants, say to each other.
 * Pure: no socket, no clock, no output. The introducer and the participant import this file and never
 * each other.
 *
 * Control channel (participant ↔ introducer, TCP): one JSON object a line, UTF-8, ended by LF, at most
 * {@link maxLineBytes} with the LF; `type` names the message. An unknown type is refused, an unknown extra
 * field is ignored. The first line of a participant is `register`.
 *
 *   participant                      introducer                        participant
 *       │ register ────────────────────► │
 *       │ ◄──────────── registered, peers │ joined ──────────────────────► │
 *       │ connect ─────────────────────► │
 *       │ ◄─────────────────────── punch │ punch ───────────────────────► │
 *       │ ◄════ TCP simultaneous open, TLS 1.3, nominate, nominated ══► │
 *       │ linked ──────────────────────► │ ◄─────────────────────── linked │
 *
 * Punched connection (participant ↔ participant): TLS 1.3 with both certificates, inside it a JSON line of each,
 * `nominate` and `nominated`, and then frames (native/session/frame.ts).
 *
 * Endpoints are written `203.0.113.7:40000` and `[2001:db8::7]:40000`.
 */

export const protocolVersion = 2;
export const defaultPort = 7000;

// --- limits and timers -----------------------------------------------------------------------------------

/** Bytes of one line, LF included; the decoder refuses a longer one before buffering it. */
export const maxLineBytes = 64 * 1024;
/** Candidates a side may offer (RFC 8445 §5.1.3 asks for a limit; 100 pairs is its default for both sides). */
export const maxCandidates = 10;
export const maxNameLength = 64;
export const maxRoomLength = 128;
/** Of a name as in the DNS (RFC 1035 §2.3.4). */
export const maxHostLength = 253;
/** Links that a participant may report when it registers: more than fit in a room. */
export const maxReportedLinks = 1024;
/** Names that a participant may want to be introduced to when it registers. */
export const maxWants = 8;
/** Characters of a `say`, `tell`, `broadcast` or `echo`. */
export const maxTextLength = 8192;
/** A connection that has not registered after this long is closed. */
export const registerDeadlineMs = 10_000;
/**
 * The introducer's `ping` period. It keeps the mapping alive: RFC 5382 §5 lets a NAT forget an idle established
 * connection after 2 h 4 min, home routers forget after minutes.
 */
export const introducerPingMs = 25_000;
/** Silence after which a control channel counts as dead, on either side. */
export const controlSilenceMs = 60_000;
/** How long an offer of a relay holds, and how long its first side waits for the other. */
export const relayOfferMs = 10_000;
/** Without a direct link by then, a relay is offered beside the rounds of the punch. */
export const relayAfterMs = 1000;
/** A punch is given up after this long. */
export const punchDeadlineMs = 10_000;
/** No introducer keeps a participant away for longer. */
export const maxRetryInMs = 60_000;
export const defaultRoom = "lobby";
/** Further ports of the introducer that mapping probes go to. */
export const maxProbePorts = 4;
/**
 * Sockets that aim at the ports a sequential NAT gives next. It may serve somebody else between our measuring
 * and our SYN, so this many connections of others are allowed for.
 */
export const predictedPorts = 12;
/** Sockets of either side of a birthday punch: 1 − (1 − 512/64512)^512 = 98 % to hit at least once. */
export const birthdaySockets = 512;
/** Ports a NAT with random allocation draws from (netfilter: 1024 to 65535). */
export const birthdayPorts = { first: 1024, last: 65535 };

// --- errors ----------------------------------------------------------------------------------------------

/** Why a punch failed: the closed set of diagnoses, with the sentence a user reads. */
export const failureReasons = {
  "peer-left": "the peer left while we were punching",
  "refused-by-peer": "the peer declined the introduction",
  "no-candidate-answered": "none of the peer's endpoints answered",
  "both-mappings-random": "both NATs choose a random port for every connection, so none can be guessed",
  "only-relayed":
    "one side hides where it is (--only-relay), and the other, or the introducer, does not relay",
  "authentication-failed": "something answered, but it could not prove to be the peer",
  "handshake-cut":
    "a connection opened, but something on the way cut it before either side could prove itself",
  "relay-failed": "there is no direct way, and the relay did not work",
  refused: "the introducer refused",
  cancelled: "you cancelled it",
  "introducer-lost": "the connection to the introducer was lost before it introduced us",
  "timed-out": "a connection opened, but was not agreed on in time",
} as const;
export type FailureReason = keyof typeof failureReasons;

/** Why something else could not be done, with the sentence for it; the message of an error says more. */
export const errorCodes = {
  ...failureReasons,
  "not-possible": "it can't be done as it was asked for",
  "no-introducer": "the introducer can't be reached, or did not register us",
  "not-registered": "we are not registered with the introducer",
  "no-such-peer": "nobody who is meant by that is in the room",
  "ambiguous-peer": "several in the room could be meant by that",
  "untrusted-peer": "the peer has not proved to be one of the room",
  "not-linked": "there is no link with the peer",
  "not-confirmed": "the peer has not confirmed it",
  "transfer-failed": "the files were not transferred",
  "open-room": "the lobby is open to everyone, so nothing is opened to others there",
  "unusable-file": "a file in our own state folder can't be read or made",
  "has-quit": "this participant has quit",
} as const;
export type ErrorCode = keyof typeof errorCodes;

/** What every method of a participant rejects with, but for an aborted signal: that rejects with its own reason. */
export class HolePunchError extends Error {
  static {
    this.prototype.name = "HolePunchError";
  }
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string = errorCodes[code], options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** An error for the user: what went wrong and what to do next. */
export class UserError extends HolePunchError {
  constructor(
    message: string,
    { code = "not-possible", ...options }: ErrorOptions & { code?: ErrorCode } = {},
  ) {
    super(code, message, options);
  }
}
/** A failure that has been told by an event already. */
export class ToldError extends UserError {}

/** Why a link ended, from the view of the side that says so: a closed set, with the phrase a user reads. */
export const unlinkReasons = {
  disconnected: "we disconnected",
  quit: "we quit",
  "peer-disconnected": "the peer disconnected",
  "peer-quit": "the peer quit",
  replaced: "a newer link has taken its place",
  "connection-lost": "the connection broke, and no other one came about",
  "protocol-error": "the peer sent what is not in the protocol; it may be of another version",
  "peer-restarted": "the peer's program was started anew",
} as const;
export type UnlinkReason = keyof typeof unlinkReasons;

/** Why a line was refused: sent back in `refused`, so that the sender knows what to mend. */
export const refusalCodes = [
  "bad-line",
  "too-long",
  "unknown-type",
  "bad-field",
  "bad-version",
  "not-registered",
  "already-registered",
  "unknown-peer",
  "self",
  "limit",
  "name-taken",
  "key",
] as const;
export type RefusalCode = (typeof refusalCodes)[number];

/** Input from the network that is refused. `message` is written for whoever sent it. */
export class Refusal extends Error {
  readonly code: RefusalCode;
  /** Whether nothing sensible can follow on this connection. */
  readonly fatal: boolean;
  constructor(code: RefusalCode, message: string, fatal = false) {
    super(message);
    this.code = code;
    this.fatal = fatal;
  }
}

// --- endpoints -------------------------------------------------------------------------------------------

/** A transport address in canonical text: `203.0.113.7:40000`, `[2001:db8::7]:40000`. Equal endpoints are `===`. */
export type Endpoint = string & { readonly endpoint: unique symbol };
export interface EndpointParts {
  family: 4 | 6;
  address: string;
  port: number;
}

const octet = String.raw`(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)`;
const ipv4 = String.raw`(?:${octet}\.){3}${octet}`;
const ipv4Pattern = new RegExp(`^${ipv4}$`);
/** Of one in canonical text, but for a port that is too high. */
const ipv4EndpointPattern = new RegExp(String.raw`^${ipv4}:[1-9]\d{0,4}$`);

/** A name as in the DNS, or an IPv4 address. */
const hostPattern = /^[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?$/;

/** The canonical form of an IP address (IPv4-mapped IPv6 becomes IPv4), or undefined when it is none. */
export function canonicalAddress(text: string): { family: 4 | 6; address: string } | undefined {
  if (ipv4Pattern.test(text)) return { family: 4, address: text };
  if (!text.includes(":") || !/^[0-9a-fA-F:.]{2,45}$/.test(text)) return undefined;
  const parsed = URL.parse(`http://[${text}]/`)?.hostname.slice(1, -1);
  if (parsed === undefined) return undefined;
  const mapped = /^::ffff:([0-9a-f]+):([0-9a-f]+)$/.exec(parsed);
  if (!mapped) return { family: 6, address: parsed };
  const [high, low] = [parseInt(mapped[1]!, 16), parseInt(mapped[2]!, 16)];
  return { family: 4, address: [high >> 8, high & 255, low >> 8, low & 255].join(".") };
}

/** Makes an endpoint; throws RangeError for what is no address or no port. */
export function formatEndpoint(address: string, port: number): Endpoint {
  const canonical = canonicalAddress(address);
  if (!canonical || !Number.isInteger(port) || port < 1 || port > 65535) {
    throw new RangeError(`not an endpoint: ${address} port ${port}`);
  }
  return `${canonical.family === 6 ? `[${canonical.address}]` : canonical.address}:${port}` as Endpoint;
}

/** Reads an endpoint in any spelling, or returns undefined. */
export function parseEndpoint(text: string): Endpoint | undefined {
  // As most are written, and there are four of them in the reports of each introduction.
  if (ipv4EndpointPattern.test(text) && portOf(text) <= 65535) return text as Endpoint;
  const match = /^(?:\[([^\]]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(text);
  if (!match) return undefined;
  const address = canonicalAddress(match[1] ?? match[2]!);
  const port = Number(match[3]);
  if (!address || match[1]?.includes(":") === false || port < 1 || port > 65535) return undefined;
  return formatEndpoint(address.address, port);
}

function portOf(text: string): number {
  return Number(text.slice(text.lastIndexOf(":") + 1));
}

export function splitEndpoint(endpoint: Endpoint): EndpointParts {
  const colon = endpoint.lastIndexOf(":");
  const port = portOf(endpoint);
  return endpoint.startsWith("[")
    ? { family: 6, address: endpoint.slice(1, colon - 1), port }
    : { family: 4, address: endpoint.slice(0, colon), port };
}

/** Where an introducer is, as it is said to whoever shall go there: a name, or an address in canonical text. */
export interface Place {
  host: string;
  port: number;
}

/** `203.0.113.7:80`, `[2001:db8::7]:80`, `db.internal:5432`. */
export function formatHostPort(host: string, port: number | string): string {
  return `${host.includes(":") ? `[${host}]` : host}:${port}`;
}

/** `host`, `host:port`, `1.2.3.4:port`, `2001:db8::1`, `[2001:db8::1]:port`; undefined for anything else. */
export function parseHostPort(text: string, port = defaultPort): Place | undefined {
  const bare = canonicalAddress(text.replace(/^\[(.*)\]$/, "$1"));
  if (bare) return { host: bare.address, port };
  const match = /^(?:\[([^\]]+)\]|([^\s:/[\]]+))(?::(\d{1,5}))?$/.exec(text);
  const given = Number(match?.[3] ?? port);
  if (!match || given < 1 || given > 65535) return undefined;
  return { host: match[1] ?? match[2]!, port: given };
}

/** A {@link Place} as {@link formatHostPort} writes it, such that it may be said to a participant. */
export function parsePlace(text: string, port = defaultPort): Place | undefined {
  const place = parseHostPort(text, port);
  return place && isHost(place.host) ? place : undefined;
}

function isHost(word: string): boolean {
  if (word.length > maxHostLength) return false;
  return hostPattern.test(word) || canonicalAddress(word)?.address === word;
}

export type AddressScope = "unusable" | "loopback" | "private" | "global";

/** What kind of address it is. `unusable`: unspecified, multicast, broadcast, link-local (it needs a zone). */
export function addressScope(address: string): AddressScope {
  if (address.includes(":")) {
    if (address === "::1") return "loopback";
    if (address === "::" || /^f(f[^:]|e[89ab])[^:]:/.test(address)) return "unusable";
    if (/^(f[cd][^:]{2}|fe[c-f][^:]|64:ff9b:1):/.test(address)) return "private"; // RFC 4193, 3879, 8215
    const embedded = embeddedIPv4(address);
    if (embedded === undefined) return "global";
    const scope = addressScope(embedded);
    return scope === "loopback" ? "unusable" : scope;
  }
  const [a, b] = [parseInt(address), parseInt(address.slice(address.indexOf(".") + 1))];
  if (a === 127) return "loopback";
  if (a === 0 || a >= 224 || (a === 169 && b === 254)) return "unusable";
  const isPrivate =
    a === 10 ||
    (a === 172 && b >= 16 && b < 32) ||
    (a === 192 && b === 168) ||
    (a === 100 && b >= 64 && b < 128);
  return isPrivate ? "private" : "global"; // RFC 1918, RFC 6598
}

/**
 * The IPv4 address to which a translator or a tunnel takes what is sent to that IPv6 address, which is no nearer or farther
 * than that one: NAT64 (RFC 6052 §2.1), 6to4 (RFC 3056 §2), IPv4-compatible (RFC 4291 §2.5.5.1).
 */
function embeddedIPv4(address: string): string | undefined {
  const [head = "", tail = ""] = address.split("::");
  const groups = (text: string) => text.split(":").filter(Boolean);
  const zeros = Array<string>(Math.max(0, 8 - groups(head).length - groups(tail).length)).fill("0");
  const all = [...groups(head), ...zeros, ...groups(tail)].map((group) => parseInt(group, 16));
  const has = (...prefix: number[]) => prefix.every((group, index) => all[index] === group);
  const isLast = has(0x64, 0xff9b, 0, 0, 0, 0) || has(0, 0, 0, 0, 0, 0);
  const at = isLast ? 6 : has(0x2002) ? 1 : undefined;
  if (at === undefined) return undefined;
  return [all[at]! >> 8, all[at]! & 255, all[at + 1]! >> 8, all[at + 1]! & 255].join(".");
}

/**
 * Whether a participant seen at `observed` may name `candidate` as its own, so that no one can be made to
 * punch at a third party: a private address, the observed address itself, any IPv6 address of a host
 * (RFC 8445 §5.1.1.1), and loopback only from loopback.
 */
export function mayOffer(candidate: Endpoint, observed: Endpoint): boolean {
  const own = splitEndpoint(observed);
  const { address, family } = splitEndpoint(candidate);
  const scope = addressScope(address);
  if (scope === "loopback") return addressScope(own.address) === "loopback";
  return address === own.address || scope === "private" || (scope === "global" && family === 6);
}

// --- mapping behaviour -----------------------------------------------------------------------------------

/**
 * How a NAT chooses the external port (RFC 5382 §4.1, RFC 4787 §4.2): the same for every destination, or for
 * every destination another one that follows the last by a constant step, or that nobody can tell.
 */
export const mappings = ["unknown", "endpoint-independent", "sequential", "random"] as const;
export type Mapping = (typeof mappings)[number];

/** What decides how two participants can meet. */
export interface Situation {
  mapping: Mapping;
  private: readonly Endpoint[];
  public: Endpoint;
  mapped?: Endpoint;
}

/**
 * How one round is punched. All dial the host candidates; besides:
 * `direct`: both dial the endpoint that the introducer saw, and the one that the other's router has opened.
 * `predicted`: a side with sequential ports, or each where neither seems to have them, measures where its NAT stands,
 * and the other dials what comes next.
 * `birthday`: the side with random ports opens many, and the other guesses as many.
 * `fresh`: both dial a port that each has measured just now, for a NAT may hold the old ones locked (a link that
 * broke, a refusal by ICMP, a forgotten mapping).
 */
export const ways = ["direct", "predicted", "birthday", "fresh"] as const;
export type Way = (typeof ways)[number];

/** Where others reach whom the introducer sees so, if its router forwards that port; undefined if that is nothing new. */
export function forwardedEndpoint(
  side: Pick<Situation, "private" | "public">,
  port: number | undefined,
): Endpoint | undefined {
  if (port === undefined || isUntranslated(side)) return undefined;
  const endpoint = formatEndpoint(splitEndpoint(side.public).address, port);
  return endpoint === side.public ? undefined : endpoint;
}

/** By which kind of way a participant lets itself be linked. */
export type Takes = "any" | "direct" | "relayed";

/**
 * What the introducer says in place of {@link Peer.public} of who only lets itself be relayed: nobody is told where it is.
 * RFC 6666: what is sent to 100::/64 goes nowhere.
 */
export const hiddenEndpoint = "[100::1]:9" as Endpoint;
export const isHidden = (peer: Pick<Peer, "public">): boolean => peer.public === hiddenEndpoint;

/** Whether nothing translates: the introducer saw an address of the host itself. */
export function isUntranslated(side: Pick<Situation, "private" | "public">): boolean {
  return side.private.includes(side.public);
}

export function scopeOf(endpoint: Endpoint): AddressScope {
  return addressScope(splitEndpoint(endpoint).address);
}

// --- checks ----------------------------------------------------------------------------------------------

/** Turns a parsed JSON value into its exact type, or throws a {@link Refusal} that names the field. */
type Check<T> = (value: unknown, field: string) => T;
/** Of a field that may be left out. */
type Optional<T> = Check<T | undefined> & { readonly isOptional: true };
type Fields = Record<string, Check<unknown>>;
/** What a table of checks lets pass: the one place where a message is written is its table. */
type Read<F extends Fields> = {
  [K in keyof F as F[K] extends { isOptional: true } ? never : K]: ReturnType<F[K]>;
} & {
  [K in keyof F as F[K] extends { isOptional: true } ? K : never]?: Exclude<ReturnType<F[K]>, undefined>;
};
/** The union of a table's messages, each with its key as `type`. */
type MessageOf<Table extends Record<string, Fields>> = {
  [Type in keyof Table]: { type: Type } & Read<Table[Type]>;
}[keyof Table];

function refuse(field: string, expected: string): never {
  throw new Refusal("bad-field", `${field} must be ${expected}`);
}

function integer(low: number, high: number): Check<number> {
  return (value, field) => {
    if (typeof value === "number" && Number.isInteger(value) && value >= low && value <= high) return value;
    return refuse(field, `a whole number from ${low} to ${high}`);
  };
}

function text(maxLength: number): Check<string> {
  return (value, field) => {
    if (typeof value === "string" && value.length <= maxLength && value.isWellFormed()) return value;
    return refuse(field, `text of at most ${maxLength} characters`);
  };
}

function hex(digits: number): Check<string> {
  const pattern = new RegExp(`^[0-9a-f]{${digits}}$`);
  return (value, field) => {
    if (typeof value === "string" && pattern.test(value)) return value;
    return refuse(field, `${digits} lower-case hex digits`);
  };
}

function oneOf<T extends string>(words: readonly T[]): Check<T> {
  return (value, field) =>
    words.find((word) => word === value) ?? refuse(field, `one of ${words.join(", ")}`);
}

function exactly<T extends boolean>(only: T): Check<T> {
  return (value, field) => (value === only ? only : refuse(field, String(only)));
}

function listOf<T>(item: Check<T>, maxItems: number): Check<T[]> {
  return (value, field) => {
    if (!Array.isArray(value) || value.length > maxItems) {
      return refuse(field, `a list of at most ${maxItems} items`);
    }
    return value.map((entry, index) => item(entry, `${field}[${index}]`));
  };
}

function nullable<T>(check: Check<T>): Check<T | null> {
  return (value, field) => (value === null ? null : check(value, field));
}

function optional<T>(check: Check<T>): Optional<T> {
  const read: Check<T | undefined> = (value, field) =>
    value === undefined ? undefined : check(value, field);
  return Object.assign(read, { isOptional: true } as const);
}

const boolean: Check<boolean> = (value, field) =>
  typeof value === "boolean" ? value : refuse(field, "true or false");

export const endpoint: Check<Endpoint> = (value, field) => {
  const parsed = typeof value === "string" && value.length <= 64 ? parseEndpoint(value) : undefined;
  if (!parsed) return refuse(field, "an endpoint such as 203.0.113.7:40000 or [2001:db8::7]:40000");
  if (addressScope(splitEndpoint(parsed).address) === "unusable") {
    return refuse(field, "an endpoint a host can have (not unspecified, link-local, multicast or broadcast)");
  }
  return parsed;
};

// --- names and rooms -------------------------------------------------------------------------------------

/** A name must not let its bearer pass for the program, or for somebody's idea of everyone. */
const reservedNames: ReadonlySet<string> = new Set([
  "introducer",
  "participant",
  "operator",
  "error",
  "warning",
  "notice",
  "everyone",
  "all",
  "you",
  "me",
]);

/**
 * Letters that look like Latin ones, or nearly, and what they are taken for: of Cyrillic, Greek and their neighbours, as
 * most keyboards or character pickers have them, and the digits 0 and 1. A choice from Unicode's confusables (UTS #39);
 * whole alphabets of look-alikes are in compatibility forms already.
 */
const lookAlikes: ReadonlyMap<string, string> = new Map(
  [
    // Before upper case is folded, for В looks like B where в hardly does.
    ["АВЕЅІЈКМНОРСТУХҮԌԚԜ", "abesijkmhopctyxygqw"],
    ["ΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "abezhikmnoptyx"],
    ["авеѕіјкмнорстухүһԁԛԝѵӏ", "abesijkmhopctyxyhdqwvl"],
    ["αβεηικνορτυχγωϲϳ", "abenikvoptuxywcj"],
    ["ıɩɑɡʋոօսհց", "iiagvnouhq"],
    ["01", "ol"],
  ].flatMap(([alike, latin]) => [...alike!].map((one, index) => [one, latin![index]!] as const)),
);
const lookAlike = new RegExp(`[${[...lookAlikes.keys()].join("")}]`, "gu");
const invisible = /[\p{White_Space}\p{Default_Ignorable_Code_Point}\p{Mn}\p{Me}\p{C}\u2800]/gu;
const plainName = /^[!-~]+$/;
/** One letter may stand for eighteen: of those, so many tell two names apart. */
const maxSkeletonLength = 2 * maxNameLength;

/**
 * What a name looks like: two of the same are taken for each other, and can't be both somebody's. Without what can't be
 * seen (blanks, fillers, variation selectors) and marks above or below letters, in one case, in Latin letters where it
 * looks like such.
 */
export function nameSkeleton(name: string): string {
  const seen = plainName.test(name)
    ? name
    : name.normalize("NFKD").slice(0, maxSkeletonLength).replace(invisible, "");
  const latin = (text: string) => text.replace(lookAlike, (char) => lookAlikes.get(char)!);
  return latin(latin(seen).toLowerCase());
}

/** A name is one word, so that it can be typed as a command's argument, and never a number, which is an id. */
export function nameProblem(name: string): string | undefined {
  if (name.length < 1 || name.length > maxNameLength) return `must have 1 to ${maxNameLength} characters`;
  if (!/^[^\s\p{C}]+$/u.test(name)) return "must be one word without blanks or control characters";
  if (/^\d+$/.test(name.normalize("NFKC"))) return "must not be a number: that is how ids look";
  const skeleton = nameSkeleton(name);
  if (skeleton === "") return "must have something that can be seen";
  if (reservedNames.has(skeleton)) return "must not be one of the program's own words";
  return undefined;
}

export const name: Check<string> = (value, field) => {
  const word = text(maxNameLength)(value, field);
  const problem = nameProblem(word);
  if (problem) throw new Refusal("bad-field", `${field} ${problem}`);
  return word;
};

/** What a participant is called where its name is taken: `alice-2`, cut where it would be too long. */
export function numberedName(name: string, number: number): string {
  const suffix = `-${number}`;
  const kept = name.slice(0, maxNameLength - suffix.length).replace(/\p{Cs}$/u, ""); // no half of a pair
  return kept + suffix;
}

/** Whether it is a {@link numberedName} of `wanted`: no introducer may name us otherwise. */
export function isNumberedName(name: string, wanted: string): boolean {
  const number = /-([1-9]\d{0,5})$/.exec(name)?.[1];
  return number !== undefined && name === numberedName(wanted, Number(number));
}

/** A room is a capability: any words, but nothing a terminal would obey. */
export function roomProblem(room: string): string | undefined {
  if (room.length < 1 || room.length > maxRoomLength) return `must have 1 to ${maxRoomLength} characters`;
  return /^[^\p{C}]+$/u.test(room) ? undefined : "must not have control characters";
}

const room: Check<string> = (value, field) => {
  const words = text(maxRoomLength)(value, field);
  const problem = roomProblem(words);
  if (problem) throw new Refusal("bad-field", `${field} ${problem}`);
  return words;
};

// --- messages --------------------------------------------------------------------------------------------

export const id = integer(1, Number.MAX_SAFE_INTEGER);
export const count = integer(0, Number.MAX_SAFE_INTEGER);
const instance = hex(16);
const fingerprint = hex(64);
const proof = hex(64);
const token = hex(32);
const message = text(maxTextLength);
const shortText = text(1024);
/** What one side may say to the other; the rest is each side's own. */
const ownReasons: ReadonlySet<string> = new Set<FailureReason>([
  "relay-failed",
  "refused",
  "cancelled",
  "introducer-lost",
]);
const reason = oneOf((Object.keys(failureReasons) as FailureReason[]).filter((one) => !ownReasons.has(one)));
export const port = integer(1, 65535);
const endpoints = listOf(endpoint, maxCandidates);
/** A name, or an address in canonical text. */
const host: Check<string> = (value, field) =>
  typeof value === "string" && isHost(value)
    ? value
    : refuse(field, "a host's name, or an address without brackets");

type Entries = [key: string, check: Check<unknown>][];

function fieldsOf<F extends Fields>(fields: F): Check<Read<F>> {
  const entries: Entries = Object.entries(fields);
  return (value, field) => {
    if (typeof value !== "object" || value === null || Array.isArray(value))
      return refuse(field, "an object");
    return readFields(entries, value as Record<string, unknown>, `${field}.`) as Read<F>;
  };
}

function readFields(
  entries: Entries,
  source: Record<string, unknown>,
  prefix: string,
  result: Record<string, unknown> = {},
): object {
  for (const [key, check] of entries) {
    const value = check(Object.hasOwn(source, key) ? source[key] : undefined, prefix + key);
    if (value !== undefined) result[key] = value;
  }
  return result;
}

/** The side that asked is `controlling`: it nominates, and is the TLS client. Never who called connect(). */
export const roles = ["controlling", "controlled"] as const;
export type Role = (typeof roles)[number];
/** How a connection came about: accepted by our listener, by our connect() to that kind of candidate, or by relay. */
export const routes = ["listen", "private", "public", "mapped", "predicted", "birthday", "relay"] as const;
export type Route = (typeof routes)[number];
/** What an unsolicited SYN from the introducer met (RFC 5382 §4.3): silence, RST or ICMP, or our listener. */
export const filterings = ["dropped", "refused", "let-in"] as const;
export type Filtering = (typeof filterings)[number];

const role = oneOf(roles);
const route = oneOf(routes);
const filtering = oneOf(filterings);
export const way = oneOf(ways);
export const mapping = oneOf(mappings);
export const step = integer(-4096, 4096);

/**
 * Where a NAT stood when it was measured: the last external endpoint, and the step to the next (0: the measured port
 * itself is dialled from).
 */
const predictionFields = { endpoint, step };
export interface Prediction extends Read<typeof predictionFields> {}
const prediction = fieldsOf(predictionFields);

/** Bytes a second. */
const relayRates = { rate: count, total: count };
export interface RelayRates extends Read<typeof relayRates> {}

/** A link that outlived the registration under which it was made; `peer` is the peer's {@link Peer.instance}. */
const reportedLink = { peer: instance, route };

/** What everyone in a room knows of a participant. */
const peerFields = {
  id,
  name,
  /**
   * A hash of what the participant registers with, which is random and made at each start of the program: it
   * recognises one that came back with another id.
   */
  instance,
  /** SHA-256 of its certificate, 64 hex digits: its own word, until TLS has shown it. */
  fingerprint,
  /** What shows those who know the room that it does, too: made and judged by participants only. */
  proof: optional(proof),
  /** Host candidates (RFC 8445 §5.1.1.1): its own word. */
  private: endpoints,
  /** What the introducer saw: the server-reflexive candidate. */
  public: endpoint,
  /** The same of the other address family, once the introducer has seen the participant there too (`verify`). */
  otherPublic: optional(endpoint),
  /** At the address that the introducer saw, the port that its router has opened, or forwards, to it: its own word. */
  mapped: optional(endpoint),
  /** How its NAT maps, as far as it has measured: its own word. */
  mapping,
  /** Its round trip to the introducer, once measured. */
  roundTripMs: optional(count),
  /** When it registered: milliseconds since the epoch, the introducer's clock. */
  since: count,
};
export interface Peer extends Read<typeof peerFields> {}
const peer = fieldsOf(peerFields);

/** What can change of a peer while it is registered. `mapped` is null when there is none any more. */
const peerChange = {
  name: optional(name),
  proof: optional(proof),
  private: optional(endpoints),
  otherPublic: optional(endpoint),
  mapped: optional(nullable(endpoint)),
  mapping: optional(mapping),
  roundTripMs: optional(count),
};
export type PeerChange = Read<typeof peerChange>;

/** What others may know of an instance: with the value itself they could pass for a participant that comes back. */
export function publicInstance(instance: string): string {
  return new Bun.CryptoHasher("sha256").update(instance).digest("hex").slice(0, instance.length);
}

/** The peer after a change. */
export function changedPeer(
  { mapped: before, ...peer }: Peer,
  { mapped = before, ...change }: PeerChange,
): Peer {
  return { ...peer, ...change, ...(mapped && { mapped }) };
}

/** Whether the introducer has seen the participant at that address: only there may many SYNs be sent. */
export function isVerified({ public: observed, otherPublic }: Peer, address: string): boolean {
  const isSeen = (endpoint: Endpoint) => splitEndpoint(endpoint).address === address;
  return isSeen(observed) || (otherPublic !== undefined && isSeen(otherPublic));
}

/** From a participant to the introducer. */
const toIntroducer = {
  /** Sent by a participant, once, first. */
  register: {
    version: count,
    name,
    room,
    instance,
    fingerprint,
    /**
     * Host candidates. Left out by who only lets itself be relayed: then nobody is told where it is. An introducer that can't
     * keep that for itself does not know a `register` without it, and refuses.
     */
    private: optional(endpoints),
    /** Handed on as {@link Peer.proof}. */
    proof: optional(proof),
    /** That it has the introducer's key (native/shares/access.ts). `at`: its clock, in ms since the epoch. */
    access: optional(fieldsOf({ at: count, proof })),
    /** The links it has already. */
    links: listOf(fieldsOf(reportedLink), maxReportedLinks),
    /** It takes no relay. */
    direct: optional(exactly(true)),
    /** A port that its router forwards to it by hand, at the address where it is seen: becomes {@link Peer.mapped}. */
    forwarded: optional(port),
    /** How its NAT has mapped before, at this network: a guess until `mapping` says more. */
    mapping: optional(mapping),
    /**
     * Whom it wants to be introduced to, as if it said `connect` to each: at once, or when somebody of that name registers.
     * Kept for a while, and no longer than its registration.
     */
    wants: optional(listOf(name, maxWants)),
  },
  /**
   * The one line of a further connection to the introducer, from the shared port to `registered.verify`: shows where the
   * participant is seen in the other address family. Answered by `observed`, and told to the room.
   */
  verify: { token },
  /**
   * The one line of a further connection to the introducer: takes what `relay` offered. Answered by `relaying` once the
   * other side has come; from then on its bytes are the other side's.
   */
  relay: { token },
  /**
   * The one line of a connection to a probe port, by which the introducer knows where the NAT of whom it gave the token
   * in `registered` stands, and for which peer that is measured: half a round trip before `measured` could say it.
   */
  probe: { token, peer: id, step },
  /**
   * Sent by the side that wants a link, when the user says `connect`; with `relay: false` by one that looks for a direct
   * way to replace what it has. `early`: its first SYN leaves before the answer can be there, timed to meet the other's, so
   * the other is not to wait for it.
   */
  connect: { peer: id, relay: optional(exactly(false)), early: optional(exactly(true)) },
  /** Sent by both sides when they hold the nominated connection; `token` is that of the punch, or of the relay. */
  linked: { peer: id, token, route, local: endpoint, remote: endpoint },
  /** Sent by both sides when a link has ended. */
  unlinked: { peer: id, reason: oneOf(Object.keys(unlinkReasons) as UnlinkReason[]) },
  /**
   * Sent by a side whose round failed. A reason and no detail: what became of a single candidate would tell others what
   * is in our network.
   */
  failed: { peer: id, token, reason },
  /**
   * Sent by one whose name was taken, when the name that it wanted seems to be free; `proof` as in `register`. Answered by
   * `renamed`.
   */
  rename: { name, proof: optional(proof) },
  /** Sent when this host has other addresses, and the one in use is still there. */
  update: { private: endpoints },
  /** Sent when a participant knows how its NAT maps and, with sequential ports, where it stood. */
  mapping: { mapping, prediction: optional(prediction) },
  /** Sent when the router has opened a port at the observed address; without `endpoint` when it is closed again. */
  mapped: { endpoint: optional(endpoint) },
  /** Answers `measure`, where no `probe` has told it before; without `prediction` when measuring failed. */
  measured: { token, prediction: optional(prediction) },
  /** Asks to be connected back to, at the endpoint that the introducer sees; answered by `filtering`. */
  "connect-back": {},
  /** Sent when the user says `echo`; the introducer sends it back. */
  echo: { text: message },
  /** Answers `ping`. */
  pong: { id: count },
};
export type ToIntroducer = MessageOf<typeof toIntroducer>;

/** From the introducer to a participant: all of it only its word. */
const toParticipant = {
  /** Answers `register`. */
  registered: {
    id,
    name,
    room,
    public: endpoint,
    private: endpoints,
    /** Where mapping probes go: ports of the introducer, and endpoints at a further address of it. */
    probePorts: listOf(port, maxProbePorts),
    alternates: listOf(endpoint, maxProbePorts),
    /** What `probe` repeats, where there are probe ports. */
    probeToken: optional(token),
    /** Where the introducer can be reached in the other address family, and what `verify` repeats. */
    verify: optional(fieldsOf({ endpoint, token })),
    /** Where it relays: bytes a second, of one link in each direction and of all links. */
    relay: optional(fieldsOf(relayRates)),
    /** The round trip to it, as {@link Peer.roundTripMs}, where the introducer's kernel has measured it already. */
    roundTripMs: optional(count),
  },
  /** Sent on a connection to a probe port, at once, and in answer to `verify`: what the introducer sees. */
  observed: { endpoint },
  /** Follows `registered`: who else is in the room, in as many lines as it takes; `more` on all but the last. */
  peers: { peers: listOf(peer, 1024), more: boolean },
  /** Answers `rename`: from now on others call it so. */
  renamed: { name },
  /** Sent to the room when somebody registered, changed (the changed fields only), left. */
  joined: { peer },
  updated: { id, ...peerChange },
  left: { id },
  /**
   * Sent before a `predicted` round to a side with sequential ports, before a `fresh` one to both: measure, and answer
   * `measured`. A `predicted` round may begin meanwhile, by what was measured last; another follows if that was wrong.
   * `role` is that of the punch to come: who asked and has cancelled it meanwhile measures no more.
   */
  measure: { peer, role: optional(role), token, way },
  /** Sent to both sides of an introduction: start punching in `startInMs`. */
  punch: {
    peer,
    role,
    token,
    startInMs: integer(0, punchDeadlineMs),
    way,
    /** Counted from 1; after a failed round that is not the `last`, another `punch` or `failed` follows. */
    round: integer(1, 100),
    last: boolean,
    deadlineMs: integer(1, punchDeadlineMs),
    /** What the sides have measured for this round. */
    own: optional(prediction),
    theirs: optional(prediction),
  },
  /**
   * Sent to both sides of an introduction, once, where there is no direct way or it takes long: both may take it. `why`:
   * the reason why there is no direct way, where that is known.
   */
  relay: { peer, role, token, why: optional(reason) },
  /**
   * Answers `relay` on its connection: what follows is the other side's. `rate`: bytes a second that go on each way; fewer
   * while links share what there is for all.
   */
  relaying: { rate: integer(1, Number.MAX_SAFE_INTEGER) },
  /** Answers `connect-back`; `elsewhere` is what a SYN from the introducer's alternate address met, if it has one. */
  filtering: { filtering, elsewhere: optional(filtering) },
  /** Sent to the other side of a punch when one side failed, or to the asker when there is no way. */
  failed: { peer: id, token, reason },
  /** Sent when the introducer's operator says `tell` or `broadcast`. */
  notice: { text: message },
  /** Sends an `echo` back. */
  echo: { text: message },
  /** Measures the round trip and keeps the mapping alive; answered by `pong`. */
  ping: { id: count },
  /**
   * Answers a line that was refused: its type where it had one, and whom it named. With `name-taken` comes a
   * {@link numberedName} that is free, with `key` a challenge if the proof was a right one of another time: register again
   * with it, on the same connection.
   */
  refused: {
    code: oneOf(refusalCodes),
    message: shortText,
    request: optional(shortText),
    peer: optional(id),
    name: optional(name),
    challenge: optional(token),
    /** Ask again after so long. */
    retryInMs: optional(integer(0, maxRetryInMs)),
  },
  /** Sent, in answer to `register` or later, before the introducer closes the connection: your room lives there. */
  elsewhere: { host, port },
  /** Sent before the introducer closes the connection: come back in `retryInMs`, or whenever you like. */
  bye: { reason: shortText, retryInMs: optional(integer(0, maxRetryInMs)) },
};
export type ToParticipant = MessageOf<typeof toParticipant>;

/** Why a side ends a link on purpose: what it says to the other as it ends it. */
export const byeReasons = ["disconnected", "quit", "replaced"] as const;
export type ByeReason = (typeof byeReasons)[number];

/**
 * Between two participants inside TLS, on a connection that is to become a carrier. Each `proof` is bound to the room, both
 * programs and this connection (native/secure/room.ts).
 */
const toPeer = {
  /** Sent once by the controlling side, on the connection that both shall keep; `token` is that of the punch. */
  nominate: { token, proof },
  /** The answer. Until it has come, nothing of the link counts that was nominated. */
  nominated: { proof },
};
export type ToPeer = MessageOf<typeof toPeer>;

/** Between two linked participants, on the stream of lines of their link. */
const linkLine = {
  /** Sent when the user says `say`; answered by `heard`. */
  say: { id: count, text: message },
  heard: { id: count },
  /** Sent when the user says `ping`; answered by `pong`. */
  ping: { id: count },
  pong: { id: count },
};
export type LinkLine = MessageOf<typeof linkLine>;

function parser<Table extends Record<string, Fields>>(table: Table) {
  type Union = MessageOf<Table>;
  const fields = new Map(Object.entries(table).map(([type, ofType]) => [type, Object.entries(ofType)]));
  /** Of what was parsed already, as {@link parse}. */
  const check = (value: unknown): Union => {
    if (typeof value !== "object" || value === null || Array.isArray(value)) {
      throw new Refusal("bad-line", "a line must be one JSON object");
    }
    const { type } = value as { type?: unknown };
    const entries = typeof type === "string" ? fields.get(type) : undefined;
    if (!entries) throw new Refusal("unknown-type", `type must be one of ${[...fields.keys()].join(", ")}`);
    return readFields(entries, value as Record<string, unknown>, "", { type }) as Union;
  };
  /** Parses one line; throws a {@link Refusal} with the reason. */
  const parse = (line: string): Union => {
    let value: unknown;
    try {
      value = JSON.parse(line);
    } catch {
      throw new Refusal("bad-line", "a line must be one JSON object");
    }
    return check(value);
  };
  return { check, parse };
}

export const { check: checkToIntroducer, parse: parseToIntroducer } = parser(toIntroducer);
export const { check: checkToParticipant, parse: parseToParticipant } = parser(toParticipant);
export const { parse: parseToPeer } = parser(toPeer);
export const { parse: parseLinkLine } = parser(linkLine);

/** One message as its line, LF included. */
export function encode(message: ToIntroducer | ToParticipant | ToPeer | LinkLine): string {
  return JSON.stringify(message) + "\n";
}

// --- framing ---------------------------------------------------------------------------------------------

const nothing = new Uint8Array(0);

/** Cuts a byte stream into lines. Never holds more than {@link maxLineBytes}. */
export class LineDecoder {
  #held = nothing;
  #heldBytes = 0;

  /**
   * The whole lines that end in `chunk`, without LF or CR LF; throws a fatal {@link Refusal} for a line that is
   * too long or not UTF-8, after which nothing more must be pushed.
   */
  *push(chunk: Uint8Array): Generator<string, void> {
    let from = 0;
    for (let lf = chunk.indexOf(10); lf !== -1; lf = chunk.indexOf(10, from)) {
      const tail = chunk.subarray(from, lf);
      from = lf + 1;
      yield this.line(tail);
    }
    if (from < chunk.length) this.hold(chunk.subarray(from));
  }

  /** The line of which these are the last bytes before its LF. */
  line(tail: Uint8Array): string {
    return decodeLine(this.#heldBytes === 0 ? bounded(tail) : this.#take(tail));
  }

  /** Bytes that have come without their LF. */
  get pendingBytes(): number {
    return this.#heldBytes;
  }

  #take(tail: Uint8Array): Uint8Array {
    this.hold(tail);
    const line = this.#held.subarray(0, this.#heldBytes);
    this.#held = nothing;
    this.#heldBytes = 0;
    return line;
  }

  /** Bytes of a line whose LF is still to come. */
  hold(bytes: Uint8Array): void {
    const total = this.#heldBytes + bytes.length;
    if (total >= maxLineBytes) throw tooLong();
    if (total > this.#held.length) {
      // Doubled, so that a line that comes byte by byte is not copied for each of them.
      const grown = new Uint8Array(Math.min(maxLineBytes, Math.max(total, 2 * this.#held.length)));
      grown.set(this.#held.subarray(0, this.#heldBytes));
      this.#held = grown;
    }
    this.#held.set(bytes, this.#heldBytes);
    this.#heldBytes = total;
  }
}

function tooLong(): Refusal {
  return new Refusal("too-long", `a line must have at most ${maxLineBytes} bytes`, true);
}

function bounded(line: Uint8Array): Uint8Array {
  if (line.length >= maxLineBytes) throw tooLong();
  return line;
}

const utf8 = new TextDecoder("utf-8", { fatal: true });

function decodeLine(line: Uint8Array): string {
  let text: string;
  try {
    text = utf8.decode(line);
  } catch {
    throw new Refusal("bad-line", "a line must be UTF-8", true);
  }
  return text.endsWith("\r") ? text.slice(0, -1) : text;
}

// --- text ------------------------------------------------------------------------------------------------

/**
 * Text from the network as a terminal may show it: control characters (C0, C1, bidi) made visible. A zero-width joiner
 * stays between two emoji, which it makes one (UTS #51 §2.6).
 */
export function printable(text: string): string {
  return text.replace(
    /(?!(?<=[\p{Extended_Pictographic}\p{Emoji_Modifier}\ufe0f])\u200d\p{Extended_Pictographic})[\p{Cc}\p{Cf}\p{Co}\p{Cn}\u2028\u2029]/gu,
    (char) => (char === "\t" ? " " : "\ufffd"),
  );
}
