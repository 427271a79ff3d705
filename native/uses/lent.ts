/**
 * Listeners that peers have asked for, as `ssh -R` does. Owns them, and the rules that say which there may be: at first none.
 * Each lasts as long as the stream by which it was asked for. native/uses/remote.ts is the other end, and tells what both
 * say. For native/uses/services.ts.
 *
 *   rule     [BIND:]PORT     without BIND 127.0.0.1; PORT-PORT for several; behind it @WHOM (native/uses/whom.ts)
 *
 * A rule for one address allows no other one: who may listen on this host alone may not be reached by its network.
 */
import { canonicalAddress, Refusal } from "../../protocol.ts";
import { resetCodes, type Stream } from "../session/stream.ts";
import { Forward, ListenError, type StreamOpener, type WhyRefused } from "./forward.ts";
import type { ForwardRow } from "./forwards.ts";
import type { From } from "./from.ts";
import { encodeMessage, text, wholeNumber } from "./message.ts";
import { formatListen, type ListenPort, parseListenRule, SpecError } from "./target.ts";
import { readForWhom, type Shown } from "./whom.ts";

const maxRules = 256;
/** Listeners at once, of one peer and of all. Each has two descriptors. */
const maxOfOne = 16;
const maxOfAll = 64;
/** So many refusals are remembered, to tell each once. Then it begins anew. */
const maxRemembered = 256;

export interface LentOptions {
  /** The link with that peer, as soon as it carries something. */
  liveLink: (peer: string) => StreamOpener | Promise<StreamOpener>;
  onProblem: (message: string) => void;
  /** Whether that peer is whom the user means. */
  isMeant: (whom: string, shown: Shown) => boolean;
  onListening: (name: string, listen: string) => void;
  onRefused: (name: string, listen: string, reason: string, why: WhyRefused) => void;
}

interface Rule {
  readonly text: string;
  readonly listen: ListenPort;
  readonly ports: number;
  /** For whom it is; without it: for everyone in the room. */
  readonly whom?: string;
}

interface Listener {
  readonly listen: ListenPort;
  readonly forward: Forward;
  readonly stream: Stream;
  readonly name: string;
  readonly peer: string;
}

/** Reads a rule; throws a {@link SpecError}. */
export const parseLentRule = (written: string): Rule =>
  readForWhom(written, (rule): Rule => {
    const { listen, ports } = parseListenRule(rule);
    return { text: formatListen(listen, ports), listen, ports };
  });

const permits = ({ listen, ports }: Rule, { bind, port }: ListenPort): boolean =>
  listen.bind === bind && listen.port <= port && port < listen.port + ports;

/** Listening is refused. The message is for the peer and for our user. */
class Unlent extends Error {
  readonly why: WhyRefused;
  constructor(why: WhyRefused, message: string) {
    super(message);
    this.why = why;
  }
}

export class Lent {
  readonly #options: LentOptions;
  #rules: Rule[] = [];
  readonly #listeners = new Set<Listener>();
  readonly #told = new Set<string>();

  constructor(options: LentOptions) {
    this.#options = options;
  }

  /** Adds a rule that a user wrote, and returns it in canonical form. Throws a {@link SpecError}. */
  allow(written: string): string {
    const rule = parseLentRule(written);
    if (this.#rules.some((one) => one.text === rule.text)) return rule.text;
    if (this.#rules.length >= maxRules) throw new SpecError(`at most ${maxRules} listeners can be allowed`);
    this.#rules.push(rule);
    return rule.text;
  }

  /** Takes a rule away, and closes what no rule allows any more. Returns whether there was one. */
  disallow(written: string): boolean {
    const { text: canonical } = parseLentRule(written);
    const before = this.#rules.length;
    this.#rules = this.#rules.filter((one) => one.text !== canonical);
    for (const { listen, stream, name, peer: fingerprint } of this.#listeners)
      if (!this.#permits(listen, { name, fingerprint }))
        stream.reset(`listening on ${formatListen(listen)} is not allowed any more`, resetCodes.refused);
    return this.#rules.length < before;
  }

  get rules(): string[] {
    return this.#rules.map((rule) => rule.text);
  }

  /** What peers have asked for, as the table of forwards shows it. */
  get rows(): ForwardRow[] {
    return [...this.#listeners].map(({ listen, name, forward }) => {
      const { open, total, bytesIn, bytesOut } = forward;
      return {
        ...{ listen: formatListen(listen), peer: name, target: "as it asked" },
        ...{ open, total, bytesIn, bytesOut },
      };
    });
  }

  /** Takes a stream by which a peer asks for a listener. */
  take(stream: Stream, from: From): void {
    let listen: ListenPort | undefined;
    try {
      listen = readListen(from.purpose);
      const token = text(from.purpose, "token", 64);
      this.#mayListen(listen, from);
      this.#listen(listen, token, stream, from);
    } catch (error) {
      if (!(error instanceof Unlent || error instanceof Refusal)) throw error;
      const why = error instanceof Unlent ? error.why : "not-allowed";
      stream.reset(error.message, why === "not-allowed" ? resetCodes.refused : resetCodes.unreachable);
      this.#refused(from, listen ? formatListen(listen) : "?", error.message, why);
    }
  }

  #permits(listen: ListenPort, peer: Shown): boolean {
    return this.#rules.some(
      (rule) => permits(rule, listen) && (rule.whom === undefined || this.#options.isMeant(rule.whom, peer)),
    );
  }

  #mayListen(listen: ListenPort, shown: Shown): void {
    if (!this.#permits(listen, shown))
      throw new Unlent("not-allowed", `listening on ${formatListen(listen)} is not allowed`);
    const own = [...this.#listeners].filter((one) => one.peer === shown.fingerprint).length;
    if (own < maxOfOne && this.#listeners.size < maxOfAll) return;
    const taken = own >= maxOfOne ? own : maxOfAll;
    throw new Unlent("no-answer", `can't listen: ${taken} ports are taken by peers already`);
  }

  #listen(listen: ListenPort, token: string, stream: Stream, from: From): void {
    const { name, fingerprint: peer } = from;
    const { liveLink, onProblem, onListening } = this.#options;
    let forward: Forward;
    try {
      forward = new Forward({
        ...{ listen, target: { kind: "accepted", token }, holder: peer, onProblem },
        link: () => (from.link?.state === "alive" ? from.link : liveLink(name)),
      });
    } catch (error) {
      if (!(error instanceof ListenError)) throw error;
      throw new Unlent("no-answer", error.message);
    }
    const listener = { listen, forward, stream, name, peer };
    this.#listeners.add(listener);
    stream.on("close", () => {
      this.#listeners.delete(listener);
      forward.close();
    });
    stream.on("end", () => stream.destroy());
    stream.resume();
    stream.write(encodeMessage({ type: "listening" }));
    onListening(name, formatListen(listen));
  }

  #refused({ name, fingerprint }: From, listen: string, reason: string, why: WhyRefused): void {
    const key = `${fingerprint} ${listen} ${reason}`;
    if (this.#told.has(key)) return;
    if (this.#told.size >= maxRemembered) this.#told.clear();
    this.#told.add(key);
    this.#options.onRefused(name, listen, reason, why);
  }

  /** Listens no more, and tells the peers. */
  close(): void {
    for (const { stream } of this.#listeners) stream.destroy();
  }
}

/** Where the purpose of a stream wants to listen. Throws a {@link Refusal}. */
function readListen(purpose: Record<string, unknown>): ListenPort {
  const bind = canonicalAddress(text(purpose, "bind", 64))?.address;
  if (bind === undefined) throw new Refusal("bad-field", "bind must be an address");
  return { kind: "tcp", bind, port: wholeNumber(purpose, "port", 65535, 1) };
}
