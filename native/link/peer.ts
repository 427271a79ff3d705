/**
 * One peer's life: known, being introduced to us, linked, gone. {@link RemotePeer} is the single writer of its state
 * and owns the introduction and the link under way; it knows neither the prompt nor any other peer. For participant.ts.
 */
import {
  failureReasons,
  maxTextLength,
  printable,
  UserError,
  type ByeReason,
  type Endpoint,
  type FailureReason,
  type Mapping,
  type Peer,
  type PeerChange,
  type Role,
  type Route,
  type ToParticipant,
  type UnlinkReason,
  type Way,
} from "../../protocol.ts";
import type { Unasked } from "../punch/allowance.ts";
import { Introduction, type Ground, type PunchMessage } from "../punch/introduction.ts";
import type { Attempt } from "../punch/punch.ts";
import { LinkError, type Channel } from "./channel.ts";
import { Link } from "./link.ts";

/** Tokens of earlier rounds that are kept in mind, so that a late `failed` is told from the answer to our `connect`. */
const maxPastTokens = 16;

/** Whose event it is; `peer` is null when it is not in the room now, for its old id may be somebody else's. */
interface Who {
  peer: number | null;
  name: string;
}

/** What a peer's life is told by, in the shape of the `--json` lines. Endpoints are text. */
export type PeerEvent = Who &
  (
    | { event: "punching"; role: Role; way: Way; round: number }
    | ({ event: "attempt" } & Attempt)
    | {
        event: "linked";
        route: Route;
        local: Endpoint;
        remote: Endpoint;
        /** Since our `connect`, or since the introducer asked us to punch. */
        elapsedMs: number;
      }
    | { event: "failed"; reason: FailureReason; detail: string }
    | { event: "unlinked"; reason: UnlinkReason; detail: string }
    | { event: "said"; text: string }
    | { event: "sent"; rttMs: number }
    | { event: "pong"; rttMs: number }
  );
type EventOf<Event> = Event extends Who ? Omit<Event, keyof Who> : never;

/** One peer as the list shows it. */
export interface PeerRow {
  id: number;
  name: string;
  state: PeerState["is"];
  /** Whether the introducer lists it. */
  present: boolean;
  /** When the introducer last did: milliseconds since the epoch. */
  lastSeenAt: number;
  private: Endpoint[];
  public: Endpoint;
  mapping: Mapping;
  /** To the introducer. */
  roundTripMs?: number;
  reason?: FailureReason;
  route?: Route;
  local?: Endpoint;
  remote?: Endpoint;
  rttMs?: number;
  ageMs?: number;
  bytesIn?: number;
  bytesOut?: number;
}

export type PeerState =
  | { is: "known" }
  | { is: "punching"; introduction: Introduction }
  | { is: "linked"; link: Link }
  | { is: "failed"; reason: FailureReason };

/** A failure that has been told by an event already. */
export class ToldError extends UserError {}

/** What a peer needs of the participant. */
export interface PeerSurroundings {
  /** Our registration, while there is one. */
  ground(): Ground | undefined;
  emit(event: PeerEvent): void;
  /** Report every attempt of every punch. */
  isVerbose: boolean;
  /** Admits an introduction that we did not ask for; undefined when it is one too many. */
  admit(peer: RemotePeer): Unasked | undefined;
}

export class RemotePeer {
  #peer: Peer;
  #isPresent = true;
  #lastSeenAt = Date.now();
  #state: PeerState = { is: "known" };
  /** Whether the attempts of its punches are told: asked for with the last `connect`. */
  #isVerbose = false;
  #lastEndedAt: number | undefined;
  readonly #pastTokens: string[] = [];
  readonly #surroundings: PeerSurroundings;
  /** Those who wait for the end of the introduction under way. */
  #waiting: { resolve: (link: Link) => void; reject: (error: Error) => void }[] = [];

  constructor(peer: Peer, surroundings: PeerSurroundings) {
    this.#peer = peer;
    this.#surroundings = surroundings;
  }

  get id(): number {
    return this.#peer.id;
  }
  get name(): string {
    return this.#peer.name;
  }
  get instance(): string {
    return this.#peer.instance;
  }
  get isPresent(): boolean {
    return this.#isPresent;
  }
  get link(): Link | undefined {
    return this.#state.is === "linked" ? this.#state.link : undefined;
  }
  /** Whether nothing but the introducer's list keeps it in mind. */
  get isIdle(): boolean {
    return this.#state.is === "known" || this.#state.is === "failed";
  }

  get row(): PeerRow {
    const { id, name, private: hosts, public: observed, mapping, roundTripMs } = this.#peer;
    const row = {
      ...{ id, name, private: hosts, public: observed, mapping },
      ...{ state: this.#state.is, present: this.#isPresent, lastSeenAt: this.#lastSeenAt },
      ...(roundTripMs !== undefined && { roundTripMs }),
    };
    if (this.#state.is === "failed") return { ...row, reason: this.#state.reason };
    if (this.#state.is !== "linked") return row;
    const { route, local, remote, rttMs, openedAt, bytesIn, bytesOut } = this.#state.link;
    const measured = rttMs === undefined ? {} : { rttMs };
    return { ...row, route, local, remote, ageMs: Date.now() - openedAt, bytesIn, bytesOut, ...measured };
  }

  // --- what the introducer says of it --------------------------------------------------------------------

  /** It is in the room, with what is newest of it. */
  seen(peer: Peer): void {
    // A session that has not timed out yet may be listed beside the one that replaced it.
    if (this.#isPresent && peer.id < this.#peer.id) return;
    this.#peer = peer;
    this.#isPresent = true;
    this.#lastSeenAt = Date.now();
  }

  change(change: PeerChange): void {
    this.#peer = { ...this.#peer, ...change };
    this.#lastSeenAt = Date.now();
  }

  /** It left the room. */
  left(): void {
    this.#absent();
    if (this.#state.is === "punching") this.#state.introduction.abort("peer-left", "it left the introducer");
  }

  /** Nobody knows whether it is still there. */
  introducerLost(reason: string): void {
    this.#absent();
    if (this.#state.is === "punching") this.#state.introduction.introducerLost(reason);
  }

  #absent(): void {
    if (this.#isPresent) this.#lastSeenAt = Date.now();
    this.#isPresent = false;
  }

  measure(message: ToParticipant & { type: "measure" }): void {
    const introduction = this.#introduction(message);
    void introduction?.measure(message);
  }

  punch(message: PunchMessage): void {
    const isNew = this.#state.is !== "punching";
    // Whoever asks is controlling: if that is us, it answers a `connect` that was cancelled meanwhile.
    if (isNew && message.role === "controlling") return this.#decline(message.token);
    this.#introduction(message)?.punch(message);
  }

  /** A round's failure at the other side, or the answer to our `connect`. */
  failed({ token, reason }: ToParticipant & { type: "failed" }): void {
    if (this.#state.is !== "punching") return;
    const { introduction } = this.#state;
    const isAnswer = introduction.isAsking && !this.#pastTokens.includes(token);
    if (isAnswer || introduction.isOf(token)) introduction.abort(reason, failureDetail(reason, this.#peer));
  }

  /** The introducer refused our `connect`. */
  refused(text: string): void {
    if (this.#state.is === "punching" && this.#state.introduction.isAsking)
      this.#state.introduction.abort("refused", text);
  }

  /** The introduction that a round belongs to; undefined when it was declined. */
  #introduction({ peer, token }: { peer: Peer; token: string }): Introduction | undefined {
    this.seen(peer);
    this.#pastTokens.push(token);
    this.#pastTokens.splice(0, this.#pastTokens.length - maxPastTokens);
    if (this.#state.is === "punching") return this.#state.introduction;
    const unasked = this.#surroundings.admit(this);
    if (!unasked) return void this.#decline(token);
    // Only a peer that no longer has our link asks for another one.
    this.#drop("replaced");
    return this.#introduce(unasked);
  }

  #decline(token: string): void {
    const ground = this.#surroundings.ground();
    ground?.send({ type: "failed", peer: this.id, token, reason: "refused-by-peer" });
  }

  #introduce(unasked?: Unasked): Introduction | undefined {
    const ground = this.#surroundings.ground();
    if (!ground) return undefined;
    const introduction = new Introduction({
      ground,
      peer: this.#peer,
      unasked,
      lastEndedAt: this.#lastEndedAt,
      onRound: (round) => this.#emit({ event: "punching", ...round }),
      onAttempt: (attempt) => {
        if (this.#surroundings.isVerbose || this.#isVerbose) this.#emit({ event: "attempt", ...attempt });
      },
      onChannel: (channel, token, elapsedMs) => this.#linked(channel, token, elapsedMs),
      onFailed: (reason, detail) => this.#failed(reason, detail),
    });
    this.#setState({ is: "punching", introduction });
    return introduction;
  }

  // --- what the user wants of it -------------------------------------------------------------------------

  /** Asks to be introduced, or joins the introduction under way; resolves to the link. */
  connect(isVerbose: boolean): Promise<Link> {
    this.#isVerbose = isVerbose;
    if (this.#state.is === "linked") throw new UserError(`already linked with ${printable(this.name)}`);
    const isNew = this.#state.is !== "punching";
    if (isNew && !this.#isPresent) throw new UserError(`${printable(this.name)} is not in the room now`);
    const introduction = isNew ? this.#introduce() : undefined;
    if (isNew && !introduction) throw new UserError("not registered with the introducer; `join` first");
    const { promise, resolve, reject } = Promise.withResolvers<Link>();
    this.#waiting.push({ resolve, reject });
    introduction?.ask();
    return promise;
  }

  /** Resolves to the round trip once the peer's program has the text. */
  async say(text: string): Promise<number> {
    const link = this.#linkFor("say");
    const quoted = `"${printable([...text].length > 40 ? `${[...text].slice(0, 40).join("")}…` : text)}"`;
    if (text.length > maxTextLength || !text.isWellFormed())
      throw new UserError(
        `not sent: a text has at most ${maxTextLength} characters of valid Unicode: ${quoted}`,
      );
    try {
      const rttMs = await link.say(text);
      this.#emit({ event: "sent", rttMs });
      return rttMs;
    } catch (error) {
      if (!(error instanceof LinkError)) throw error;
      throw new UserError(`not confirmed by ${printable(this.name)}: ${quoted}: ${error.message}`);
    }
  }

  /** Resolves to the link's round trip. */
  async ping(): Promise<number> {
    try {
      const rttMs = await this.#linkFor("ping").ping();
      this.#emit({ event: "pong", rttMs });
      return rttMs;
    } catch (error) {
      if (!(error instanceof LinkError)) throw error;
      throw new UserError(`no answer from ${printable(this.name)}: ${error.message}`);
    }
  }

  /** Ends the link, or cancels the introduction under way. Resolves once it has ended. */
  async disconnect(): Promise<void> {
    if (this.#state.is === "punching") return this.#state.introduction.cancel("cancelled", "disconnect");
    await this.#linkFor("disconnect").close("disconnected");
  }

  /** Ends whatever there is, for good. */
  async quit(): Promise<void> {
    if (this.#state.is === "punching") this.#state.introduction.cancel("cancelled", "we are leaving");
    await this.link?.close("quit");
  }

  #linkFor(command: string): Link {
    if (this.#state.is === "linked") return this.#state.link;
    const next = command === "disconnect" ? "" : `; \`connect ${printable(this.name)}\` first`;
    throw new UserError(`not linked with ${printable(this.name)}${next}`);
  }

  // --- transitions ---------------------------------------------------------------------------------------

  #linked(channel: Channel, token: string, elapsedMs: number): void {
    const link = new Link(channel);
    this.#setState({ is: "linked", link });
    link.onSaid = (text) => this.#emit({ event: "said", text });
    link.onClose = (reason, detail = "") => this.#unlinked(link, reason, detail);
    const { route, local, remote } = link;
    this.#emit({ event: "linked", route, local, remote, elapsedMs });
    this.#tell({ type: "linked", peer: this.id, token, route, local, remote });
    for (const { resolve } of this.#waiting.splice(0)) resolve(link);
  }

  /** Ends the link before its time, told now: never after whatever takes its place. */
  #drop(reason: ByeReason & UnlinkReason): void {
    if (this.#state.is !== "linked") return;
    const { link } = this.#state;
    link.onClose = () => {};
    void link.close(reason);
    this.#unlinked(link, reason, "");
  }

  #unlinked(link: Link, reason: UnlinkReason, detail: string): void {
    if (this.link !== link) return;
    this.#lastEndedAt = performance.now();
    this.#setState({ is: "known" });
    this.#emit({ event: "unlinked", reason, detail });
    this.#tell({ type: "unlinked", peer: this.id, reason });
  }

  #failed(reason: FailureReason, detail: string): void {
    this.#setState({ is: "failed", reason });
    this.#emit({ event: "failed", reason, detail });
    const error = new ToldError(
      `no link with ${printable(this.name)}: ${failureReasons[reason]} (${reason})`,
    );
    for (const { reject } of this.#waiting.splice(0)) reject(error);
  }

  /** The only writer of the state. */
  #setState(state: PeerState): void {
    this.#state = state;
  }

  #tell(message: Parameters<Ground["send"]>[0]): void {
    if (this.#isPresent) this.#surroundings.ground()?.send(message);
  }

  #emit(event: EventOf<PeerEvent>): void {
    const who = { peer: this.#isPresent ? this.id : null, name: this.name };
    this.#surroundings.emit({ ...event, ...who } as PeerEvent);
  }
}

/** What helps with a failure that the other side or the introducer told us of. */
function failureDetail(reason: FailureReason, peer: Peer): string {
  if (reason !== "both-mappings-random") return "the peer's side gave up";
  return `the peer's mapping is ${peer.mapping}; it would help if one of you forwarded a port, used IPv6, or another network such as a phone's`;
}
