/**
 * The serving end of forwards and pipes: dials what its {@link AllowList} permits, and joins it to the stream. A name
 * is looked up once, on this side, and only the addresses that were checked are dialled. The peer learns no address
 * that it has not named itself. For native/uses/services.ts.
 */
import { canonicalAddress, Refusal, formatHostPort } from "../../protocol.ts";
import { Connection, type Joinable } from "./connection.ts";
import { dial, type Place, type Undialled } from "./dialling.ts";
import { NameError, type Names, namesOfAll } from "./names.ts";
import type { WhyRefused } from "./forward.ts";
import { Pipe } from "./pipe.ts";
import { connected } from "./socks.ts";
import type { Pace } from "../shares/pace.ts";
import { resetCodes, type Stream } from "../session/stream.ts";
import { AllowList } from "./allow-list.ts";
import {
  formatTarget,
  type HostTarget,
  localhostAddresses,
  readPurposeTarget,
  type StreamTarget,
  type Target,
} from "./target.ts";

export interface ServeOptions {
  allow: AllowList;
  /** The fingerprint of the peer that has opened the stream. What it takes is counted by it. */
  peer: string;
  names?: Names;
  /** How fast a pipe gives what the target says. */
  pace?: Pace | undefined;
}

const codes: Readonly<Record<WhyRefused, number>> = {
  "not-allowed": resetCodes.refused,
  "no-answer": resetCodes.unreachable,
  "no-link": resetCodes["link-ended"],
};

/**
 * A stream is not served. The message is for our user. `told` is for the peer: it has no address that the peer did not
 * name.
 */
export class Unserved extends Error {
  readonly told: string;
  readonly why: WhyRefused;
  /** How the stream is reset. */
  readonly code: number;

  constructor(why: WhyRefused, told: string, message: string = told, code = codes[why]) {
    super(message);
    this.why = why;
    this.told = told;
    this.code = code;
  }
}

/** Why a stream of a peer was refused. */
export interface Refused {
  reason: string;
  why: WhyRefused;
}

/** What became of a stream of a peer. */
export interface Served {
  /** The target in canonical form, or as much of it as could be read. */
  target: string;
  /** Undefined if it is joined to the target. */
  refused?: Refused;
}

/**
 * Joins the stream to the target that its purpose names, or resets it with the reason. `first`: what the client gets once it
 * is connected.
 */
export async function serveForward(
  stream: Joinable,
  purpose: Record<string, unknown>,
  options: ServeOptions,
  { connection = new Connection(), first }: { connection?: Connection; first?: Buffer } = {},
): Promise<Served> {
  return serving(stream, purpose, async (wanted) => {
    if (wanted.kind === "udp") throw new Refusal("bad-field", "kind must not be udp");
    const places = await permittedPlaces(wanted, options);
    const failed = await dial(places, { stream, connection, of: options.peer, first });
    if (failed) throw unanswered(formatTarget(wanted), failed);
  });
}

/** Serves the target that the purpose names. Resets the stream with the reason if it can't be served. */
export async function serving(
  stream: Pick<Joinable, "reset">,
  purpose: Record<string, unknown>,
  serve: (wanted: Target) => Promise<void>,
): Promise<Served> {
  let target = "?";
  try {
    const wanted = readPurposeTarget(purpose);
    target = formatTarget(wanted);
    await serve(wanted);
    return { target };
  } catch (error) {
    if (!(error instanceof Unserved || error instanceof NameError || error instanceof Refusal)) throw error;
    const { told, why, code } =
      error instanceof Unserved ? error : new Unserved(whyNamed(error), error.message);
    stream.reset(told, code);
    return { target, refused: { reason: error.message, why } };
  }
}

/** A name that has no address may be allowed; a purpose that can't be read is not. */
const whyNamed = (error: Error): WhyRefused => (error instanceof NameError ? "no-answer" : "not-allowed");

/** As {@link serveForward}, for a client that speaks SOCKS5 and waits for the answer. */
export const serveSocks: typeof serveForward = (stream, purpose, options) =>
  serveForward(stream, purpose, options, { first: connected });

/**
 * As {@link serveForward}, for a pipe to a target. What arrives is confirmed once the target has closed without an
 * error.
 */
export async function servePipe(
  stream: Stream,
  purpose: Record<string, unknown>,
  options: ServeOptions,
): Promise<Served> {
  const pipe = new Pipe(stream, options.pace);
  const connection = new Connection();
  connection.awaitsClose = true;
  connection.onOver = (error) => void (error ?? pipe.confirm());
  return serveForward(pipe, purpose, options, { connection });
}

function unanswered(target: string, { place, reason, isRefused }: Undialled): Unserved {
  const code = isRefused ? resetCodes["nobody-listens"] : resetCodes.unreachable;
  const at = "unix" in place ? place.unix : formatHostPort(place.hostname, place.port);
  return new Unserved("no-answer", `${target}: ${reason}`, `${at}: ${reason}`, code);
}

async function permittedPlaces(target: StreamTarget, options: ServeOptions): Promise<Place[]> {
  if (target.kind !== "unix") {
    const { port } = target;
    return (await permittedAddresses(target, options)).map((hostname) => ({ hostname, port }));
  }
  if (options.allow.permitsPath(target.path)) return [{ unix: target.path }];
  throw new Unserved("not-allowed", `${target.path} is not allowed`);
}

/** The addresses of the target that may be dialled. Throws an {@link Unserved} or a {@link NameError}. */
export async function permittedAddresses(
  target: HostTarget,
  { allow, peer, names = namesOfAll }: ServeOptions,
): Promise<string[]> {
  const refused = `${formatTarget(target)} is not allowed`;
  if (!allow.mayPermit(target)) throw new Unserved("not-allowed", refused);
  const { host, port } = target;
  if (host === "localhost") return permittedOf([...localhostAddresses]);
  if (canonicalAddress(host)) return permittedOf([host]);
  const addresses = await names.addresses(host, peer, allow.names(target));
  const rule = formatHostPort(addresses[0]!, port);
  return permittedOf(addresses, `${refused} at ${addresses.slice(0, 4).join(", ")} (\`--allow ${rule}\`)`);

  function permittedOf(all: readonly string[], reason = refused): string[] {
    const permitted = allow.permitted(target, all);
    if (permitted.length === 0) throw new Unserved("not-allowed", refused, reason);
    return permitted;
  }
}
