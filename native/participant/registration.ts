/**
 * Our registration with the introducer, and the way to it. Owns its state, as its only writer, and the control channel. It
 * connects, says who we are, takes another name if ours is taken, and comes back by itself after a loss. It hands on,
 * unread, what the introducer says of others. Which introducer that is, is for ways.ts. Knows no peer and measures nothing:
 * that is situation.ts, one for each registration. For participant.ts.
 *
 *   away ──join──▶ joining ──list──▶ registered ──leave──▶ away
 *                    ▲ │ failed          │ broken, closed, other addresses
 *                    │ ▼                 ▼
 *                    lost ◀──────────────┘    (after a first failure: away)
 */
import {
  formatHostPort,
  type Peer,
  type Place,
  printable,
  type Route,
  splitEndpoint,
  type Takes,
  type ToParticipant,
  UserError,
} from "../../protocol.ts";
import { type ControlChannel, NotAdmitted } from "../host/control.ts";
import { Gate } from "../punch/gate.ts";
import { accessBy } from "../shares/access.ts";
import type { ParticipantEvent } from "./events.ts";
import type { Membership } from "./membership.ts";
import type { Networks } from "./networks.ts";
import { hasQuit, notRegistered } from "./refused.ts";
import { maxPeers } from "./roster.ts";
import { joinError, keyProblem, notRelayed, refused, unregistered } from "./registration-problems.ts";
import { offeredBy, type Registered, Situation, type SituationOwner } from "./situation.ts";
import { type Given, type Way, Ways } from "./ways.ts";

/** How long the introducer may take to answer `register`. */
const registerTimeoutMs = 8_000;
const silent = `what answered there said nothing for ${registerTimeoutMs / 1000} s: is it an introducer, with no proxy before it?`;
const noIntroducer = { code: "no-introducer" } as const;
/** After so long we say that we are still connecting. */
const announceAfterMs = 1_000;
/**
 * The longest pause before coming back to a lost introducer. It is doubled each time. Half of it is random, so that a
 * room does not come back at one moment. All are back within 10 s of the introducer's return.
 */
const firstPauseMs = 500;
const maxPauseMs = 8_000;
/** After a registration that lasted so long, the pause begins with the shortest again. */
const lastingMs = 10_000;
/** The same if the network has ended it. */
const briefMs = 1_000;
/** So many of our names may be taken in one attempt to register. */
const maxNamesTried = 8;
/**
 * The home of our room may be dead. It is still named until its lease ends (8 s). In one attempt we ask again so often. The
 * pause before that is this long, or down to half of it.
 */
const maxAskedAgain = 16;
/** Who comes first when all places are taken waits so long for one: a hundred ssh at once take turns. */
const placePatienceMs = 60_000;
const askAgainMs = 1_000;

export type Refused = ToParticipant & { type: "refused" };
/** What the introducer says once it has registered us. */
export type RoomMessage = Exclude<
  ToParticipant,
  { type: "registered" | "peers" | "refused" | "elsewhere" | "bye" | "ping" | "observed" | "relaying" }
>;

export interface RegistrationOptions extends Given {
  /** Whether other attempts follow the first one, too, if that fails. */
  isPatient?: boolean;
  /** The introducer's, where it has one. */
  key?: string | undefined;
  direct?: boolean;
  /** We hide where we are: only the introducer sees it. */
  onlyRelay?: boolean;
  portMapping?: boolean;
  /** What is known of networks where we have been. */
  networks?: Networks | undefined;
}

export interface RegistrationOwner {
  emit(event: ParticipantEvent): void;
  /** The links that are up: the introducer's list shows them. */
  links(): { peer: string; route: Route }[];
  /** Whom we want to be introduced to. */
  wants(): string[];
  /** Everyone in the room. `hasMoved`: we are at another public address than at the last time. */
  listed(peers: readonly Peer[], hasMoved: boolean): void;
  said(message: RoomMessage, situation: Situation): void;
  /** Any other message. */
  refused(message: Refused, situation: Situation | undefined): void;
  situationChanged(): void;
  registered(): void;
  /** The registration is over, or the way to it. */
  lost(reason: string): void;
}

/** One attempt to register. Whatever ends it settles it. Code of an earlier attempt sees that it is not current. */
interface Attempt {
  readonly resolve: () => void;
  readonly reject: (error: UserError) => void;
  control?: ControlChannel | undefined;
  /** Set once we have sent `register`: how long the answer may take. */
  timer?: NodeJS.Timeout | undefined;
  namesTried: number;
  /** What the introducer has us prove its key for, on this connection. */
  challenge?: string | undefined;
  way: Way;
  /** How often a home that was named could not be reached. */
  askedAgain: number;
  /** Aborted when it is over: what is still being connected is closed. */
  readonly over: AbortController;
  /** Set once we are registered, while the list is still coming. */
  situation?: Situation;
  /** The part of the list that has come. */
  readonly listed: Peer[];
}

type State =
  | { is: "away" }
  /** Until `registered` and the whole list have come. */
  | { is: "joining"; attempt: Attempt }
  | { is: "registered"; control: ControlChannel; situation: Situation; since: number }
  /** Coming back by ourselves. */
  | { is: "lost"; timer: NodeJS.Timeout };

/** The pauses before coming back to a lost introducer. */
export class Backoff {
  #pauseMs = firstPauseMs;
  #askedMs = 0;

  /** What the introducer asked for in `bye`. It counts once. */
  set askedMs(ms: number | undefined) {
    this.#askedMs = ms ?? 0;
  }

  /** An introducer can't have us come back sooner than we would by ourselves: each time costs it and the room. */
  next(): number {
    const pauseMs = Math.max(this.#askedMs, Math.round(this.#pauseMs * (0.5 + Math.random() / 2)));
    this.#askedMs = 0;
    this.#pauseMs = Math.min(maxPauseMs, this.#pauseMs * 2);
    return pauseMs;
  }

  /** The registration has lasted. */
  reset(): void {
    this.#pauseMs = firstPauseMs;
  }
}

export class Registration {
  readonly #options: RegistrationOptions;
  readonly #owner: RegistrationOwner;
  readonly #membership: Membership;
  readonly #situationOwner: SituationOwner;
  readonly #backoff = new Backoff();
  readonly #ways: Ways;
  #state: State = { is: "away" };
  /** What was told last of why we are not registered: told once, for it may last for days. */
  #trouble: string | undefined;
  /** Our public address in the latest registration; undefined before the first. */
  #lastAddress: string | undefined;
  /** All places were taken: until then another attempt follows one that fails (performance.now). */
  placeUntilMs = 0;
  /** Settled once the port mappings of earlier registrations are deleted. */
  #unmapped: Promise<unknown> = Promise.resolve();

  constructor(options: RegistrationOptions, membership: Membership, owner: RegistrationOwner) {
    this.#options = options;
    this.#membership = membership;
    this.#owner = owner;
    const gate = new Gate();
    this.#ways = new Ways(options, gate);
    this.#situationOwner = {
      emit: (event) => owner.emit(event),
      mapsPort: options.portMapping !== false,
      isForwarded: options.localPort !== undefined,
      takes: takesOf(options),
      gate,
      guess: () => this.#control && options.networks?.guess(this.#control),
      measured: (behaviour) => this.#control && options.networks?.learn(this.#control, behaviour),
      situationChanged: () => owner.situationChanged(),
      addressChanged: (reason) => this.#broken(reason),
    };
  }

  get is(): State["is"] {
    return this.#state.is;
  }

  /** From `registered` on, even while the list is still coming. */
  get situation(): Situation | undefined {
    if (this.#state.is === "joining") return this.#state.attempt.situation;
    return this.#state.is === "registered" ? this.#state.situation : undefined;
  }

  /** The same, but only once the list is there. Throws if we are not registered. */
  get settled(): Situation {
    if (this.#state.is === "registered") return this.#state.situation;
    throw notRegistered();
  }

  /** Resolves once the room's list is there. Once we have been registered, other attempts follow one that fails. */
  async join(): Promise<void> {
    if (this.#state.is === "registered") throw new UserError("already registered with the introducer");
    if (this.#state.is === "joining") throw new UserError("already on the way to the introducer");
    await this.#join();
  }

  /** `error`: what whoever waits for it is told. */
  leave(reason: string, error = new UserError(reason, { code: "cancelled" })): void {
    if (this.#state.is !== "away") this.#part("away", reason, error);
  }

  /** Resolves once nothing of it is left, at the router either. */
  async quit(): Promise<void> {
    this.leave("we quit", hasQuit());
    await this.#unmapped;
  }

  /** Ends the connection, because the introducer breaks the rules. We come back by ourselves. */
  close(reason: string): void {
    this.#control?.close(reason);
  }

  get #control(): ControlChannel | undefined {
    if (this.#state.is === "joining") return this.#state.attempt.control;
    return this.#state.is === "registered" ? this.#state.control : undefined;
  }

  /** The only writer of the state. Returns the former one. */
  #become(next: State): State {
    const before = this.#state;
    if (before.is === "lost") clearTimeout(before.timer);
    if (before.is === "joining") clearTimeout(before.attempt.timer);
    if (before.is === "joining") before.attempt.over.abort();
    this.#state = next;
    return before;
  }

  // --- the way there -------------------------------------------------------------------------------------

  #join(): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const way = this.#ways.first;
    const over = new AbortController();
    const attempt: Attempt = { resolve, reject, over, namesTried: 1, way, askedAgain: 0, listed: [] };
    this.#become({ is: "joining", attempt });
    this.#backoff.askedMs = undefined;
    const text = `connecting to ${this.#ways.given}`;
    const announce = setTimeout(() => {
      if (this.#trouble === undefined) this.#owner.emit({ event: "waiting", for: "introducer", text });
    }, announceAfterMs);
    void this.#go(attempt);
    return promise.finally(() => clearTimeout(announce));
  }

  /** Never rejects. */
  async #go(attempt: Attempt): Promise<void> {
    try {
      await this.#register(attempt);
    } catch (error) {
      if (!this.#isCurrent(attempt)) return;
      const isGone =
        attempt.way.is === "named" && attempt.control === undefined && !(error instanceof NotAdmitted);
      if (!isGone || ++attempt.askedAgain > maxAskedAgain) return this.#failed(attempt, joinError(error));
      await Bun.sleep(askAgainMs * (0.5 + Math.random() / 2));
      attempt.way = { is: "given" };
      if (this.#isCurrent(attempt)) await this.#go(attempt);
    }
  }

  async #register(attempt: Attempt): Promise<void> {
    const room = this.#membership.room();
    room.catch(() => {}); // it is waited for below
    const opening = this.#ways.open(attempt.way, attempt.over.signal);
    // While the SYN is on its way and the room is being made, there is nothing else to do.
    if (!this.#options.onlyRelay) setImmediate(() => this.#membership.rehearse());
    const { control, way } = await opening;
    if (!this.#isCurrent(attempt)) return control.close("no longer wanted");
    attempt.way = way;
    attempt.control = control;
    // The room is still being made of its words. Meanwhile the introducer may refuse us, or go.
    control.onMessage = (message) => this.#receive(attempt, control, message);
    control.onClose = (reason) => this.#closed(attempt, control, reason);
    await room;
    if (!this.#isCurrent(attempt)) return;
    const late = new UserError(silent, noIntroducer);
    attempt.timer = setTimeout(() => this.#failed(attempt, late), registerTimeoutMs);
    this.#introduceOurselves(attempt, control);
    setImmediate(() => this.#membership.credentials.prepare());
  }

  #introduceOurselves({ challenge }: Attempt, control: ControlChannel): void {
    const { direct, onlyRelay, localPort, key } = this.#options;
    const wants = this.#owner.wants();
    const mapping = onlyRelay ? undefined : this.#options.networks?.guess(control)?.mapping;
    const register = this.#membership.registers({
      ...(direct && { direct }),
      ...(!onlyRelay && { private: offeredBy(control) }),
      links: this.#owner.links(),
      ...(mapping && { mapping }),
      ...(localPort !== undefined && { forwarded: localPort }),
      ...(wants.length > 0 && { wants }),
    });
    const access = key === undefined ? undefined : accessBy(key, register, challenge);
    control.send({ ...register, ...(access && { access }) });
  }

  #isCurrent(attempt: Attempt): boolean {
    return this.#state.is === "joining" && this.#state.attempt === attempt;
  }

  // --- what the introducer says --------------------------------------------------------------------------

  #receive(attempt: Attempt, control: ControlChannel, message: ToParticipant): void {
    if (attempt.control !== control) return; // we have gone on from there
    const isEarly = this.#isCurrent(attempt) && attempt.timer === undefined;
    if (isEarly && message.type !== "refused" && message.type !== "bye")
      return control.close(`it said \`${message.type}\` before we had registered`);
    switch (message.type) {
      case "registered":
        return this.#begin(attempt, control, message);
      case "refused":
        return this.#refused(attempt, control, message);
      case "elsewhere":
        return this.#elsewhere(attempt, control, message);
      case "bye":
        this.#backoff.askedMs = message.retryInMs;
        return control.close(message.reason);
      case "ping":
        return control.send({ type: "pong", id: message.id });
      case "observed":
      case "relaying":
        return; // these are sent on other connections only
    }
    const { situation } = attempt;
    if (!situation || this.situation !== situation) return;
    if (message.type === "peers") this.#list(attempt, situation, control, message);
    else this.#owner.said(message, situation);
  }

  /** Our room lives at another introducer. One that had registered us is left like one that is lost. */
  #elsewhere(attempt: Attempt, control: ControlChannel, place: Place): void {
    const reason = `our room lives at ${formatHostPort(place.host, place.port)}`;
    if (!this.#isCurrent(attempt)) {
      if (this.#control !== control) return;
      this.#ways.keep(this.#ways.sentOn({ is: "given" }, place, control.remote)!);
      return this.#part("come back", reason);
    }
    if (attempt.situation) return control.close("it sent us on before it had listed the room");
    const way = this.#ways.sentOn(attempt.way, place, control.remote);
    if (!way)
      return this.#failed(
        attempt,
        new UserError(
          "introducers send us from one to another: tell whoever runs them (--advertise)",
          noIntroducer,
        ),
      );
    clearTimeout(attempt.timer);
    attempt.way = way;
    attempt.timer = attempt.control = attempt.challenge = undefined;
    control.close(reason);
    void this.#go(attempt);
  }

  #begin(attempt: Attempt, control: ControlChannel, message: Registered): void {
    if (!this.#isCurrent(attempt)) return;
    if (attempt.situation) return control.close("it registered us twice");
    const { name, roomKind: room } = this.#membership;
    // Our user would think that this is the name that others see.
    if (message.name !== name)
      return control.close(`it calls us ${printable(message.name)}, not ${printable(name)}`);
    if (this.#options.onlyRelay && !message.relay) return this.#failed(attempt, notRelayed());
    attempt.situation = new Situation(control, message, this.#membership, this.#situationOwner);
    const { id, public: observed, private: hosts } = message;
    this.#owner.emit({ event: "registered", id, name, room, public: observed, private: hosts });
    const isFirst = this.#lastAddress === undefined;
    if (this.#options.onlyRelay && isFirst) this.#owner.emit({ event: "hidden", ...message.relay! });
  }

  /** A part of the list has come. With the last one we are registered. */
  #list(
    attempt: Attempt,
    situation: Situation,
    control: ControlChannel,
    { peers, more }: ToParticipant & { type: "peers" },
  ): void {
    // Changes come one by one. A whole list again and again would each be an event of all that is known.
    if (!this.#isCurrent(attempt)) return control.close("it listed the room twice");
    attempt.listed.push(...peers);
    if (attempt.listed.length > maxPeers) return control.close("it lists more peers than a room can have");
    if (more) return;
    const { address } = splitEndpoint(situation.context.public);
    const hasMoved = this.#lastAddress !== undefined && this.#lastAddress !== address;
    this.#owner.listed(attempt.listed.splice(0), hasMoved);
    if (!this.#isCurrent(attempt)) return; // the callback may have ended it
    this.#lastAddress = address;
    this.#ways.keep(attempt.way);
    this.#trouble = undefined;
    const registered = { is: "registered", control, situation, since: performance.now() } as const;
    this.#become(registered);
    situation.begin();
    setTimeout(() => this.#state === registered && this.#backoff.reset(), lastingMs).unref();
    attempt.resolve();
    this.#owner.registered();
  }

  #refused(attempt: Attempt, control: ControlChannel, message: Refused): void {
    const { code, name, challenge } = message;
    if (!this.#isCurrent(attempt)) return this.#owner.refused(message, this.situation);
    const hasAsked = attempt.timer !== undefined;
    const { key } = this.#options;
    if (code === "key") {
      // Our clock may be wrong: then we prove the key once more.
      const mayAgain = hasAsked && key !== undefined && attempt.challenge === undefined;
      if (!mayAgain || challenge === undefined) return this.#failed(attempt, keyProblem(key));
      attempt.challenge = challenge;
      return this.#introduceOurselves(attempt, control);
    }
    if (code === "limit") this.placeUntilMs ||= performance.now() + placePatienceMs;
    const refusal = refused(message, this.#options.onlyRelay);
    const isRenamed = hasAsked && code === "name-taken" && name !== undefined;
    if (!isRenamed || ++attempt.namesTried > maxNamesTried) return this.#failed(attempt, refusal);
    // The name that we wanted is taken. We take another one, and register with it at once.
    const { name: before } = this.#membership;
    if (!this.#membership.rename(name)) return this.#failed(attempt, refusal);
    this.#owner.emit({ event: "name-taken", name, was: before });
    this.#introduceOurselves(attempt, control);
  }

  // --- the end, and the way back -------------------------------------------------------------------------

  #failed(attempt: Attempt, error: UserError): void {
    if (!this.#isCurrent(attempt)) return;
    this.#ways.forget(); // the next try is at what was given at the start
    const mayWait = this.#options.isPatient || performance.now() < this.placeUntilMs;
    const isLast = this.#lastAddress === undefined && !mayWait;
    this.#part(isLast ? "away" : "come back", error.message, error);
  }

  #closed(attempt: Attempt, control: ControlChannel, reason: string): void {
    if (attempt.control !== control) return; // we have gone on from there
    if (this.#isCurrent(attempt)) this.#failed(attempt, unregistered(reason));
    else if (this.#control === control) {
      if (control.isBroken) this.#broken(reason);
      else this.#part("come back", reason);
    }
  }

  /** The network has ended it: that is no reason to stay away. */
  #broken(reason: string): void {
    if (this.#state.is === "registered" && performance.now() - this.#state.since >= briefMs)
      this.#backoff.reset();
    this.#part("come back", reason);
  }

  /** The registration, or the way to it, is over. Those who wait for it are told the reason. */
  #part(next: "away" | "come back", reason: string, error = new UserError(reason, noIntroducer)): void {
    const { situation } = this;
    const isUnreachable = this.#state.is !== "registered";
    const before = this.#become(
      next === "away" ? { is: "away" } : this.#comeBack(isUnreachable ? "unreachable" : "lost", reason),
    );
    if (before.is === "registered") before.control.close(reason);
    if (before.is === "joining") before.attempt.control?.close(reason);
    if (before.is === "joining") before.attempt.reject(error);
    this.#unmapped = Promise.all([this.#unmapped, situation?.close(reason)]);
    this.#owner.lost(reason);
  }

  /** Tries again by itself. */
  #comeBack(state: "lost" | "unreachable", reason: string): State {
    const retryInMs = this.#backoff.next();
    const trouble = `${state}: ${reason}`;
    if (trouble !== this.#trouble) this.#owner.emit({ event: "introducer", state, reason, retryInMs });
    this.#trouble = trouble;
    const timer = setTimeout(() => {
      // A failure has been told by then, as `unreachable`.
      this.#join().catch((error: unknown) => {
        if (!(error instanceof UserError)) throw error;
      });
    }, retryInMs);
    return { is: "lost", timer };
  }
}

function takesOf({ direct, onlyRelay }: RegistrationOptions): Takes {
  return onlyRelay ? "relayed" : direct ? "direct" : "any";
}
