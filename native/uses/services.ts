/**
 * What links are used for: forwards, pipes and files, whether the user or a peer asks for them. Owns the forwards, the list
 * of what peers may reach, and the transfers. In a room that anyone may enter it opens nothing to others. It knows no
 * registration and prints nothing. For participant.ts.
 */
import { printable, UserError } from "../../protocol.ts";
import type { WhyRefused } from "./forward.ts";
import { type ForwardRow, type Forwarding, Forwards } from "./forwards.ts";
import { Gathering } from "./gather.ts";
import type { From } from "./from.ts";
import { Lent } from "./lent.ts";
import type { Link } from "../session/link.ts";
import { Pipe, pipePurpose } from "./pipe.ts";
import {
  type Refused,
  type Served,
  serveForward,
  servePipe,
  type ServeOptions,
  serveSocks,
} from "./serve.ts";
import { serveUdp } from "./serve-udp.ts";
import { resetCodes, type Stream } from "../session/stream.ts";
import { Pace } from "../shares/pace.ts";
import { type TransferEvent, Transfers, type TransfersOptions } from "./transfers.ts";
import { AllowList } from "./allow-list.ts";
import { fingerprintIn, isCalled, type Shown, splitWhom } from "./whom.ts";
import { type ForwardSpec, parseForward, parsePipe, parseProxy, parseRemote, SpecError } from "./target.ts";

/** So many uses are remembered, to tell each once. Then it begins anew. */
const maxRemembered = 1024;

/** What peers open streams for to reach something through us. */
export const reachingUses: readonly string[] = ["forward", "socks", "udp", "pipe"];
/** The same, with what else is taken here. */
export const allUses: readonly string[] = [...reachingUses, "listen", "accepted", "files"];

const openRoom = "in the open lobby anyone could use it: use a private room (--room WORDS)";

/** Events of forwards, pipes and files. `name` is the peer's name. */
export type UseEvent =
  | { event: "forwarding"; listen: string; name: string; target: string }
  /** `by`: who was to reach it. `more`: how many others of that second are not told. */
  | {
      event: "forward-refused";
      name: string;
      target: string;
      reason: string;
      why: WhyRefused;
      by: "us" | "peer";
      more?: number;
    }
  /** A listener that was asked for is there: a peer's, for us, with our target; or ours, for a peer. */
  | { event: "listening"; name: string; listen: string; target?: string; by: "us" | "peer"; more?: number }
  /** It is not. `by`: who was to listen. */
  | {
      event: "listen-refused";
      name: string;
      listen: string;
      reason: string;
      why: WhyRefused;
      by: "us" | "peer";
      more?: number;
    }
  /** The first time that this peer has reached it through us. */
  | { event: "used"; name: string; target: string; more?: number }
  | TransferEvent;

const claimed = (does: string, what: string, name: string) =>
  `whoever has the room's words can call itself ${name}, and then ${does} ${what}: with --remember it must have the certificate of the first ${name}, with ${what}@SHA256:… that one (\`whoami\` there)`;

export interface ServicesOptions extends TransfersOptions {
  /** The link with that peer, as soon as it carries something. Rejects if none is being made, or the peer is gone. */
  liveLink: (peer: string) => Link | Promise<Link>;
  /** Something is wrong with this program's surroundings. */
  onProblem: (message: string) => void;
  onEvent: (event: UseEvent) => void;
}

export class Services {
  readonly transfers: Transfers;
  /** How fast files and pipes are sent. */
  readonly pace: Pace;
  readonly #options: ServicesOptions;
  readonly #allow = new AllowList();
  readonly #forwards: Forwards;
  readonly #lent: Lent;
  /** The name of the peer whose pipe is joined to ours. */
  #pipesWith: (() => string) | undefined;
  /** The stream that the peer opens for our pipe. */
  readonly #incoming = Promise.withResolvers<Pipe>();
  /** What a peer can cause as often as it likes. */
  readonly #gathered = new Gathering();
  /** Who has reached what. */
  readonly #used = new Set<string>();

  constructor(options: ServicesOptions) {
    this.#options = options;
    this.pace = options.pace ?? new Pace();
    this.transfers = new Transfers({ ...options, pace: this.pace });
    this.#forwards = new Forwards({
      liveLink: options.liveLink,
      onProblem: options.onProblem,
      onRefused: (peer, target, reason, why) => this.#refused(peer, target, { reason, why }, "peer"),
      onUnanswered: (name, target, reason) => this.#refused(name, target, { reason, why: "no-answer" }, "us"),
      onListening: (name, listen, target) =>
        options.onEvent({ event: "listening", name, listen, target, by: "peer" }),
      onListenRefused: (name, listen, reason, why) =>
        options.onEvent({ event: "listen-refused", name, listen, reason, why, by: "peer" }),
    });
    this.#lent = new Lent({
      ...options,
      isMeant: (whom, shown) => this.#is(whom, shown),
      onListening: (name, listen) =>
        this.#gather(`lent ${name}`, { event: "listening", name, listen, by: "us" }),
      onRefused: (name, listen, reason, why) =>
        this.#gather(`listen ${name}`, { event: "listen-refused", name, listen, reason, why, by: "us" }),
    });
  }

  /** Takes a stream that a peer has opened. */
  take(stream: Stream, from: From): void | Promise<void> {
    switch (from.purpose["use"]) {
      case "forward":
        return this.#serve(stream, from, serveForward);
      case "socks":
        return this.#serve(stream, from, serveSocks);
      case "udp":
        return this.#serve(stream, from, (one, purpose, options) =>
          serveUdp(one, purpose, {
            ...options,
            onRefused: (target, refused) => this.#refused(from.name, target, refused, "us"),
          }),
        );
      case "pipe":
        return "host" in from.purpose || "path" in from.purpose
          ? this.#serve(stream, from, servePipe)
          : this.#takePipe(stream, from);
      case "listen":
        return this.#lent.take(stream, from);
      case "accepted": {
        const forward = this.#forwards.byToken(from.purpose["token"]);
        if (forward) return forward.accept(stream, from.fingerprint);
        return stream.reset("nobody has asked for that", resetCodes.refused);
      }
      case "files":
        return this.transfers.receive(stream, from);
    }
  }

  // --- forwards ------------------------------------------------------------------------------------------

  /** Starts a forward: `[BIND:]PORT:PEER:[HOST:]PORT`, or a range of ports. It listens at once. */
  forward(text: string): Forwarding {
    return this.forwardTo(specified(() => parseForward(text)));
  }

  /** Starts a SOCKS5 proxy: `[BIND:]PORT:PEER`. It listens at once. */
  proxy(text: string): Forwarding {
    return this.forwardTo(specified(() => parseProxy(text)));
  }

  /** The same; port 0 listens on a free one. */
  forwardTo(spec: ForwardSpec): Forwarding {
    const { listen, peer, target } = this.#forwards.make(spec);
    this.#options.onEvent({ event: "forwarding", listen, name: peer, target });
    return { listen, peer };
  }

  /** Has the peer listen: `[BIND:]PORT:PEER:[HOST:]PORT`, as soon as there is a link. */
  remote(text: string): Forwarding {
    this.#mustBePrivate("forward -R");
    return this.#forwards.makeRemote(specified(() => parseRemote(text)));
  }

  unremote(text: string): Forwarding {
    return specified(() => this.#forwards.takeBackRemote(text));
  }

  unforward(text: string): Forwarding {
    return specified(() => this.#forwards.takeBack(text));
  }

  get forwards(): ForwardRow[] {
    return [...this.#forwards.rows, ...this.#lent.rows];
  }

  /** Lets peers listen here, on `[BIND:]PORT`, or with `@NAME` that one. Returns it in canonical form. */
  allowListen(text: string): string {
    this.#mustBePrivate("allow-listen");
    const rule = specified(() => this.#lent.allow(text));
    this.#warnOfClaim("listen on", rule);
    return rule;
  }

  disallowListen(text: string): void {
    if (!specified(() => this.#lent.disallow(text)))
      throw new UserError(`listening on ${printable(text)} is not allowed anyway; \`allowed\` shows what is`);
  }

  get allowedToListen(): readonly string[] {
    return this.#lent.rules;
  }

  /** Lets peers reach `[HOST:]PORT`, or with `@NAME` that one. Returns it in canonical form. */
  allow(text: string): string {
    this.#mustBePrivate("allow");
    const rule = specified(() => this.#allow.add(text));
    this.#warnOfClaim("reach", rule);
    return rule;
  }

  /** A rule for a name lets in whoever calls itself so. */
  #warnOfClaim(does: "reach" | "listen on", rule: string): void {
    const { rule: what, whom } = splitWhom(rule);
    const isClaim = whom !== undefined && fingerprintIn(whom) === undefined && !this.#options.remembers;
    if (isClaim)
      this.#options.onProblem(claimed(does, what.replace(/^(localhost|127\.0\.0\.1):/, ""), printable(whom)));
  }

  /** Whether that peer is whom the user means. */
  #is(whom: string, shown: Shown): boolean {
    return (this.#options.isMeant ?? isCalled)(whom, shown);
  }

  disallow(text: string): void {
    if (!specified(() => this.#allow.remove(text)))
      throw new UserError(`${printable(text)} is not allowed anyway; \`allowed\` shows what is`);
  }

  get allowed(): readonly string[] {
    return this.#allow.rules;
  }

  async #serve(
    stream: Stream,
    { name, fingerprint: peer, purpose }: From,
    serve: (stream: Stream, purpose: From["purpose"], options: ServeOptions) => Promise<Served>,
  ): Promise<void> {
    const { target, refused } = await serve(stream, purpose, {
      ...{ allow: this.#allow.for((whom) => this.#is(whom, { name, fingerprint: peer })), peer },
      pace: this.pace,
    });
    if (refused) return this.#refused(name, target, refused, "us");
    if (this.#used.has(`${peer} ${target}`)) return;
    if (this.#used.size >= maxRemembered) this.#used.clear();
    this.#used.add(`${peer} ${target}`);
    this.#gather(`used ${name}`, { event: "used", name, target });
  }

  #refused(name: string, target: string, refused: Refused, by: "us" | "peer"): void {
    this.#gather(`${by} ${name}`, { event: "forward-refused", name, target, ...refused, by });
  }

  #gather(key: string, event: UseEvent): void {
    this.#gathered.add(key, (more) =>
      this.#options.onEvent(more > 0 ? ({ ...event, more } as UseEvent) : event),
    );
  }

  #mustBePrivate(what: string): void {
    if (!this.#options.isPrivate())
      throw new UserError(`\`${what}\` is refused: ${openRoom}`, { code: "open-room" });
  }

  // --- pipes ---------------------------------------------------------------------------------------------

  /**
   * Our end of a pipe: to the peer's pipe, where each side opens a stream; or to a target `[HOST:]PORT`, both directions on one
   * stream.
   */
  pipe(link: Link, text: string | undefined): { sending: Pipe; incoming?: Promise<Pipe> } {
    const { target } = text === undefined ? {} : specified(() => parsePipe(`PEER:${text}`));
    const sending = new Pipe(link.open(pipePurpose(target)), this.pace);
    return target ? { sending } : { sending, incoming: this.#incoming.promise };
  }

  /** From now on the pipe of the peer of that name is joined to ours. */
  takePipeOf(name: () => string): void {
    this.#pipesWith = name;
  }

  /** Takes the peer's stream for our pipe. If it comes early, it waits. A second one is refused. */
  #takePipe(stream: Stream, { name }: From): void {
    if (this.#pipesWith?.() !== name)
      return stream.reset("it was not started with --pipe and your name", resetCodes.refused);
    const pipe = new Pipe(stream, this.pace);
    const { promise, resolve } = this.#incoming;
    resolve(pipe);
    void promise.then((first) => first !== pipe && pipe.reset("there is a pipe already", resetCodes.refused));
  }

  /** Stops listening, and cancels what is sent and received. Resolves once the peers know, or after a while. */
  async close(): Promise<void> {
    this.#forwards.close();
    this.#lent.close();
    await this.transfers.close();
  }
}

/** Turns a {@link SpecError} into a {@link UserError}. */
function specified<T>(read: () => T): T {
  try {
    return read();
  } catch (error) {
    if (error instanceof SpecError) throw new UserError(error.message);
    throw error;
  }
}
