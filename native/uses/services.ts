/**
 * What links are used for: forwards, pipes and files, whether the user or a peer asks for them. Owns the forwards, the list
 * of what peers may reach, and the transfers. In a room that anyone may enter it opens nothing to others. It knows no
 * registration and prints nothing. For participant.ts.
 */
import { formatHostPort, printable, UserError } from "../../protocol.ts";
import { Forward, type WhyRefused } from "./forward.ts";
import { Gathering } from "./gather.ts";
import type { From } from "./from.ts";
import type { Link } from "../session/link.ts";
import { Pipe, pipePurpose } from "./pipe.ts";
import { type Refused, serveForward, servePipe } from "./serve.ts";
import { resetCodes, type Stream } from "../session/stream.ts";
import { type TransferEvent, Transfers, type TransfersOptions } from "./transfers.ts";
import {
  AllowList,
  type ForwardSpec,
  formatTarget,
  parseForward,
  parseListen,
  SpecError,
  type Target,
} from "./target.ts";

/** So many uses are remembered, to tell each once. Then it begins anew. */
const maxRemembered = 1024;

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
  /** The first time that this peer has reached it through us. */
  | { event: "used"; name: string; target: string }
  | TransferEvent;
/** A forward that was made or taken back: where it listens, and whose link it wants. */
export interface Forwarding {
  listen: string;
  peer: string;
}

/** A forward as the table shows it. */
export interface ForwardRow {
  listen: string;
  peer: string;
  target: string;
  open: number;
  total: number;
  bytesIn: number;
  bytesOut: number;
}

export interface ServicesOptions extends TransfersOptions {
  /** The link with that peer, as soon as it carries something. Rejects if none is being made, or the peer is gone. */
  liveLink: (peer: string) => Link | Promise<Link>;
  /** The name of the peer whose pipe is joined to ours. Undefined: there is no pipe. */
  pipesWith?: (() => string) | undefined;
  /** Something is wrong with this program's surroundings. */
  onProblem: (message: string) => void;
  onEvent: (event: UseEvent) => void;
}

export class Services {
  readonly transfers: Transfers;
  readonly #options: ServicesOptions;
  readonly #allow = new AllowList();
  readonly #forwards = new Map<string, { forward: Forward; peer: string }>();
  /** The stream that the peer opens for our pipe. */
  readonly #incoming = Promise.withResolvers<Pipe>();
  readonly #refusals = new Gathering();
  /** Who has reached what. */
  readonly #used = new Set<string>();

  constructor(options: ServicesOptions) {
    this.#options = options;
    this.transfers = new Transfers(options);
  }

  /** Takes a stream that a peer has opened. */
  take(stream: Stream, from: From): void | Promise<void> {
    switch (from.purpose["use"]) {
      case "forward":
        return this.#serve(stream, from, serveForward);
      case "pipe":
        return "host" in from.purpose ? this.#serve(stream, from, servePipe) : this.#takePipe(stream, from);
      case "files":
        return this.transfers.receive(stream, from);
    }
  }

  // --- forwards ------------------------------------------------------------------------------------------

  /** Starts a forward: `[BIND:]PORT:PEER:[HOST:]PORT`. It listens at once. */
  forward(text: string): Forwarding {
    return this.forwardTo(specified(() => parseForward(text)));
  }

  /** The same; port 0 listens on a free one. */
  forwardTo({ listen, peer, target }: ForwardSpec): Forwarding {
    const name = formatTarget(target);
    let forward: Forward;
    try {
      forward = new Forward({
        listen,
        target,
        link: () => this.#options.liveLink(peer),
        onProblem: (message) => this.#options.onProblem(message),
        onRefused: (reason, why) => this.#refused(peer, name, { reason, why }, "peer"),
      });
    } catch (error) {
      throw new UserError(error instanceof Error ? error.message : String(error));
    }
    const at = formatHostPort(forward.listen.bind, forward.listen.port);
    this.#forwards.set(at, { forward, peer });
    this.#options.onEvent({ event: "forwarding", listen: at, name: peer, target: name });
    return { listen: at, peer };
  }

  unforward(text: string): Forwarding {
    const { bind, port } = specified(() => parseListen(text));
    const at = formatHostPort(bind, port);
    const found = this.#forwards.get(at);
    if (!found) throw new UserError(`nothing is forwarded from ${at}; \`forwards\` shows what is`);
    found.forward.close();
    this.#forwards.delete(at);
    return { listen: at, peer: found.peer };
  }

  get forwards(): ForwardRow[] {
    return [...this.#forwards].map(([listen, { forward, peer }]) => {
      const { open, total, bytesIn, bytesOut, target } = forward;
      return { listen, peer, target: formatTarget(target), open, total, bytesIn, bytesOut };
    });
  }

  /** Lets peers reach `[HOST:]PORT`. Returns it in canonical form. */
  allow(text: string): string {
    this.#mustBePrivate("allow");
    return specified(() => this.#allow.add(text));
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
    serve: typeof serveForward | typeof servePipe,
  ): Promise<void> {
    const { target, refused } = await serve(stream, purpose, { allow: this.#allow, peer });
    if (refused) return this.#refused(name, target, refused, "us");
    if (this.#used.has(`${peer} ${target}`)) return;
    if (this.#used.size >= maxRemembered) this.#used.clear();
    this.#used.add(`${peer} ${target}`);
    this.#options.onEvent({ event: "used", name, target });
  }

  #refused(name: string, target: string, refused: Refused, by: "us" | "peer"): void {
    this.#refusals.add(`${by} ${name}`, (more) =>
      this.#options.onEvent({
        ...{ event: "forward-refused", name, target, ...refused, by },
        ...(more > 0 && { more }),
      }),
    );
  }

  #mustBePrivate(what: string): void {
    if (!this.#options.isPrivate()) throw new UserError(`\`${what}\` is refused: ${openRoom}`);
  }

  // --- pipes ---------------------------------------------------------------------------------------------

  /**
   * Our end of a pipe: to the peer's pipe, where each side opens a stream; or to a target, both directions on one
   * stream.
   */
  pipe(link: Link, target: Target | undefined): { sending: Pipe; incoming?: Promise<Pipe> } {
    const sending = new Pipe(link.open(pipePurpose(target)));
    return target ? { sending } : { sending, incoming: this.#incoming.promise };
  }

  /** Takes the peer's stream for our pipe. If it comes early, it waits. A second one is refused. */
  #takePipe(stream: Stream, { name }: From): void {
    if (this.#options.pipesWith?.() !== name)
      return stream.reset("it was not started with --pipe and your name", resetCodes.refused);
    const pipe = new Pipe(stream);
    const { promise, resolve } = this.#incoming;
    resolve(pipe);
    void promise.then((first) => first !== pipe && pipe.reset("there is a pipe already", resetCodes.refused));
  }

  /** Stops listening, and cancels what is sent and received. Resolves once the peers know, or after a while. */
  async close(): Promise<void> {
    for (const { forward } of this.#forwards.values()) forward.close();
    this.#forwards.clear();
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
