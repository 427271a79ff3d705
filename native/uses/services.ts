/**
 * What links are used for: forwards, pipes and files, whether the user or a peer asks for them. Owns the forwards, the list
 * of what peers may reach, and the transfers. In a room that anyone may enter it opens nothing to others. It knows no
 * registration and prints nothing. For participant.ts.
 */
import { realpathSync } from "node:fs";
import { formatHostPort, printable, ToldError, UserError } from "../../protocol.ts";
import { type Bucket, tryTake } from "../shares/budget.ts";
import { collectFiles } from "./source-files.ts";
import { type TransferOutcome, TransferProgress } from "./files.ts";
import { Forward } from "./forward.ts";
import { Gathering } from "./gather.ts";
import type { Link, Purpose } from "../session/link.ts";
import { type Listing, listingOf, type FileOffer, storedName } from "./offer.ts";
import { Pipe, pipePurpose } from "./pipe.ts";
import { type Decision, receiveFiles } from "./receive.ts";
import { sendFiles } from "./send.ts";
import { FairShare } from "../shares/fair-share.ts";
import { serveForward, servePipe } from "./serve.ts";
import { resetCodes, type Stream } from "../session/stream.ts";
import { AllowList, formatTarget, parseForward, parseListen, SpecError, type Target } from "./target.ts";

/**
 * Offers that are being read, and offers that wait for the user, at one time; of all peers, in fair shares. Offers wait for
 * long, so a share of these is small: with shares of a half, seven peers would leave nothing.
 */
const maxOffers = 64;
/** Transfers that are being received at one time. Each holds four descriptors. */
const maxReceiving = 64;
/** So many files that could not be sent are told. */
const maxSkippedTold = 1_000;
/** Offers of one peer: so many at once, then so many a second. Each is a line or two for the user. */
const offers = { burst: 128, perSecond: 2, peers: 1_024 };
const openRoom = "in the open lobby anyone could use it: use a private room (--room WORDS)";

/** Events of forwards, pipes and files. `name` is the peer's name. */
export type UseEvent =
  | { event: "forwarding"; listen: string; name: string; target: string }
  /** `by`: who has refused it. `more`: how many others of that second are not told. */
  | {
      event: "forward-refused";
      name: string;
      target: string;
      reason: string;
      by: "us" | "peer";
      more?: number;
    }
  /** `storedAs`: the name that it would get here, if it is another one. A folder might also get a number. */
  | ({
      event: "offered";
      offer: number;
      name: string;
      what: string;
      files: number;
      bytes: number;
      storedAs?: string;
    } & Listing)
  /** When receiving: also what the offer said, and the name in the folder. */
  | ({
      event: "transferring";
      transfer: number;
      direction: Direction;
      name: string;
      what: string;
      files: number;
      bytes: number;
      storedAs?: string;
    } & Partial<Listing>)
  /** `storedAs`: the name in the folder, when receiving. */
  | ({
      event: "transferred";
      transfer: number;
      direction: Direction;
      name: string;
      what: string;
      storedAs?: string;
    } & Outcome)
  | {
      event: "transfer-failed";
      transfer: number;
      direction: Direction;
      name: string;
      what: string;
      reason: string;
    };
export type Direction = "sending" | "receiving";
type Outcome = TransferOutcome & { bytes: number; elapsedMs: number };

/** The peer that has opened a stream, and the purpose of the stream. */
export interface From {
  /** Its id, as long as it is in the room. */
  id: number;
  name: string;
  fingerprint: string;
  purpose: Purpose;
}

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

/** A transfer under way. */
export interface Transfer {
  id: number;
  direction: Direction;
  name: string;
  what: string;
  progress: TransferProgress;
  startedAt: number;
}

export interface UsesOptions {
  /** The link with that peer, as soon as there is one. Rejects if none is being made. */
  link: (peer: string) => Link | Promise<Link>;
  /** Whether it is a private room. */
  isPrivate: () => boolean;
  /** Whether there is a user who can accept an offer. */
  canAsk: boolean;
  /** The name of the peer whose pipe is joined to ours. Undefined: there is no pipe. */
  pipesWith?: (() => string) | undefined;
  /** Whether what is received may be executable. */
  executable?: boolean;
  onEvent: (event: UseEvent) => void;
}

interface Asked {
  decide: (decision: Decision) => void;
}

export class Services {
  readonly #options: UsesOptions;
  readonly #allow = new AllowList();
  readonly #forwards = new Map<string, { forward: Forward; peer: string }>();
  readonly #offers = new Map<number, Asked>();
  readonly #transfers = new Map<number, Transfer>();
  readonly #shares = {
    reading: new FairShare(maxOffers),
    offers: new FairShare(maxOffers, 1 / 8),
    receiving: new FairShare(maxReceiving),
  };
  /** The stream that the peer opens for our pipe. */
  readonly #incoming = Promise.withResolvers<Pipe>();
  readonly #refusals = new Gathering();
  readonly #offered = new Map<string, Bucket>();
  #lastId = 0;
  #acceptInto: Decision | undefined;

  constructor(options: UsesOptions) {
    this.#options = options;
  }

  get transfers(): Transfer[] {
    return [...this.#transfers.values()];
  }

  /** Takes a stream that a peer has opened. */
  take(stream: Stream, from: From): void | Promise<void> {
    switch (from.purpose["use"]) {
      case "forward":
        return this.#serve(stream, from, serveForward);
      case "pipe":
        return "host" in from.purpose ? this.#serve(stream, from, servePipe) : this.#takePipe(stream, from);
      case "files":
        return this.#receive(stream, from);
    }
  }

  // --- forwards ------------------------------------------------------------------------------------------

  /** Starts a forward: `[BIND:]PORT:PEER:[HOST:]PORT`. It listens at once. */
  forward(text: string): Forwarding {
    const { listen, peer, target } = specified(() => parseForward(text));
    const name = formatTarget(target);
    let forward: Forward;
    try {
      forward = new Forward({
        listen,
        target,
        link: () => this.#options.link(peer),
        onRefused: (reason) => this.#refused(peer, name, reason, "peer"),
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
    if (refused !== undefined) this.#refused(name, target, refused, "us");
  }

  #refused(name: string, target: string, reason: string, by: "us" | "peer"): void {
    this.#refusals.add(`${by} ${name}`, (more) =>
      this.#options.onEvent({
        ...{ event: "forward-refused", name, target, reason, by },
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

  // --- files ---------------------------------------------------------------------------------------------

  /** From now on files are put into that folder without asking. */
  acceptInto(directory: string): void {
    this.#mustBePrivate("accept");
    this.#acceptInto = resolved(directory);
  }

  accept(offer: string, directory: string): void {
    this.#mustBePrivate("accept");
    this.#asked(offer).decide({ directory });
  }

  refuse(offer: string): void {
    this.#asked(offer).decide({ refuse: "it was refused" });
  }

  /** Sends files. Resolves once each has arrived or has failed. Events tell which. */
  async send(peer: string, paths: readonly string[]): Promise<TransferOutcome> {
    const collection = await collectFiles(paths).catch((error: Error) => {
      throw new UserError(error.message);
    });
    const { path, reason } = collection.skipped[0] ?? {};
    if (collection.files.length === 0)
      throw new UserError(`nothing to send${path ? `: ${path}: ${reason}` : ""}`);
    const link = await this.#options.link(peer);
    const { name, files, bytes, skipped } = collection;
    const progress = new TransferProgress({ files: files.length, bytes });
    return await this.#transfer({ direction: "sending", name: peer, what: name, progress }, async () => {
      const sent = await sendFiles(link, collection, progress);
      return {
        files: sent.files,
        failed: sent.failed + skipped.length,
        failures: [...skipped.slice(0, maxSkippedTold), ...sent.failures],
      };
    });
  }

  #asked(text: string): Asked {
    const found = this.#offers.get(Number(text));
    if (!found) throw new UserError(`there is no offer ${printable(text)}`);
    return found;
  }

  async #receive(stream: Stream, { name, fingerprint, purpose }: From): Promise<void> {
    const begun = Promise.withResolvers<{ progress: TransferProgress; offer: FileOffer }>();
    const isRead = this.#shares.reading.take(fingerprint);
    if (!isRead) return stream.reset("too many offers wait already", resetCodes.refused);
    let give: (() => void) | undefined;
    const receiving = receiveFiles(stream, purpose, {
      ...{ peer: fingerprint, name, executable: this.#options.executable ?? false },
      decide: async (offer, signal) => {
        isRead();
        const decision = await this.#decide(offer, { name, fingerprint }, signal);
        if ("refuse" in decision) return decision;
        give = this.#shares.receiving.take(fingerprint);
        return give ? decision : { refuse: "too many files are being received already" };
      },
      onProgress: (progress, offer) => begun.resolve({ progress, offer }),
    });
    const over = receiving.finally(() => {
      isRead();
      give?.();
    });
    const begin = await Promise.race([
      begun.promise,
      over.then(
        () => undefined,
        () => undefined,
      ),
    ]);
    if (!begin) return;
    const { progress, offer } = begin;
    const about = { direction: "receiving", name, what: offer.name, progress } as const;
    await this.#transfer(about, () => over, listingOf(offer)).catch(() => {}); // it was told
  }

  #mayOffer(fingerprint: string): boolean {
    const now = performance.now();
    const bucket = this.#offered.get(fingerprint) ?? { tokens: offers.burst, at: now };
    this.#offered.delete(fingerprint); // so that the latest are last
    this.#offered.set(fingerprint, bucket);
    const [oldest] = this.#offered.keys();
    if (this.#offered.size > offers.peers) this.#offered.delete(oldest!);
    return tryTake(bucket, offers.burst, offers.perSecond, now);
  }

  #decide(
    offer: FileOffer,
    from: Pick<From, "name" | "fingerprint">,
    signal: AbortSignal,
  ): Promise<Decision> | Decision {
    const { name, fingerprint } = from;
    if (!this.#options.isPrivate()) return { refuse: "it takes no files in the open lobby" };
    if (!this.#mayOffer(fingerprint))
      return { refuse: "too many offers of yours came at once: wait a while" };
    if (this.#acceptInto) return this.#acceptInto;
    if (!this.#options.canAsk) return { refuse: "nobody is there to accept it (--accept DIR)" };
    const give = this.#shares.offers.take(fingerprint);
    if (!give) return { refuse: "too many offers wait already" };
    const id = ++this.#lastId;
    const { promise, resolve } = Promise.withResolvers<Decision>();
    this.#offers.set(id, { decide: resolve });
    const { name: what, files, bytes } = offer;
    const stored = offer.things === 1 ? storedName(what) : `from-${name}-…`;
    const renamed = stored === what ? {} : { storedAs: stored };
    this.#options.onEvent({
      event: "offered",
      offer: id,
      name,
      what,
      files,
      bytes,
      ...renamed,
      ...listingOf(offer),
    });
    signal.addEventListener("abort", () => resolve({ refuse: "it was taken back" }));
    return promise.finally(() => {
      give();
      this.#offers.delete(id);
    });
  }

  async #transfer(
    about: Pick<Transfer, "direction" | "name" | "what" | "progress">,
    work: () => Promise<TransferOutcome>,
    listing: Partial<Listing> = {},
  ): Promise<TransferOutcome> {
    const { direction, name, what, progress } = about;
    const id = ++this.#lastId;
    const startedAt = performance.now();
    const told = { transfer: id, direction, name, what };
    const stored = () => (progress.storedAs === undefined ? {} : { storedAs: progress.storedAs });
    this.#transfers.set(id, { ...about, id, startedAt });
    const { files, bytes } = progress;
    this.#options.onEvent({ event: "transferring", ...told, files, bytes, ...stored(), ...listing });
    try {
      const { files, failed, failures } = await work();
      const elapsedMs = performance.now() - startedAt;
      const moved = { files, failed, failures, bytes: progress.bytesDone, elapsedMs };
      this.#options.onEvent({ event: "transferred", ...told, ...moved, ...stored() });
      return { files, failed, failures };
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      this.#options.onEvent({ event: "transfer-failed", ...told, reason });
      throw new ToldError(reason, { cause: error });
    } finally {
      this.#transfers.delete(id);
    }
  }

  /** Stops listening. What goes over links ends with the links. */
  close(): void {
    for (const { forward } of this.#forwards.values()) forward.close();
    this.#forwards.clear();
    for (const { decide } of this.#offers.values()) decide({ refuse: "the program has ended" });
  }
}

/** The folder that a user means. Links that are there now are followed; links that come later are not. */
function resolved(directory: string): Decision {
  try {
    return { directory: realpathSync(directory), isReal: true };
  } catch {
    return { directory }; // it may be made later; until then senders are told that it is not there
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
