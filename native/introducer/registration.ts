/**
 * Steps 1 and 2: a participant registers, and is kept with the endpoint that it is seen at, where its room lives. It owns
 * the ids, the names of those who have left, who is wished for, the tokens of probes and of the other address family, and
 * which rooms are at home here. For introducer.ts alone.
 */
import {
  formatEndpoint,
  formatHostPort,
  forwardedEndpoint,
  hiddenEndpoint,
  isNumberedName,
  parsePlace,
  type Peer,
  type PeerChange,
  type Place,
  publicInstance,
  Refusal,
} from "../../protocol.ts";
import { handshakeRoundTripMs } from "../host/libc.ts";
import { stamps } from "../shares/clock.ts";
import { Gatekeeper } from "./access.ts";
import { checkName, checkPlace, holderOf } from "./admission.ts";
import type { Door } from "./door.ts";
import { type Drain, retryInMs } from "./drain.ts";
import type { Guard } from "./guard.ts";
import type { Limits } from "./limits.ts";
import { snapshot, sortCandidates } from "./lines.ts";
import { keepLinks } from "./links.ts";
import type { Members } from "./members.ts";
import type { Metrics } from "./metrics.ts";
import type { Presence } from "./presence.ts";
import { publicAddress } from "./observe.ts";
import { OtherFamily } from "./other-family.ts";
import { Homes, type HomesOwner, randomFirstId } from "./redis/homes.ts";
import type { Relays } from "./relay.ts";
import { KeptNames } from "./rooms.ts";
import { type Member, type MessageOf, newToken, type Session } from "./session.ts";
import { Wishes } from "./wishes.ts";

/** What it needs. */
export interface RegistrationParts {
  readonly limits: Limits;
  readonly guard: Guard;
  readonly members: Members;
  readonly presence: Presence;
  readonly metrics: Metrics;
  readonly drain: Drain;
  readonly door: Door;
  readonly relays: Relays<Session> | undefined;
  /** Where mapping probes are answered, at our address and at the alternate one. */
  probePorts(): number[];
  readonly alternate: string | undefined;
  /** The Redis by which several introducers know where rooms live, and where this one is. */
  readonly redis: string | undefined;
  readonly advertise: string | undefined;
  /** Who registers must have it. */
  readonly key: string | undefined;
  /** Its room is told soon. */
  change(member: Member, change: PeerChange): void;
  /** Says something to everyone here. */
  notify(text: string): Promise<unknown>;
}

export class Registration {
  readonly #parts: RegistrationParts;
  readonly #keptNames: KeptNames;
  readonly #wishes: Wishes;
  readonly #otherFamily = new OtherFamily();
  readonly #gatekeeper: Gatekeeper | undefined;
  /** For whose first wish for a name its holder has been asked. What they try next is for us to offer. */
  readonly #claimed = new WeakSet<Session>();
  /** By what their probes repeat. */
  readonly #probing = new Map<string, Member>();
  /** Which introducer each room lives at, where several share a Redis. */
  readonly homes: Homes | undefined;
  #lastId: number;

  /** `ask`: what a wish asks for. Throws a {@link Refusal}. */
  constructor(parts: RegistrationParts, ask: (asker: Member, target: Member) => void) {
    this.#parts = parts;
    this.#wishes = new Wishes(parts.limits, parts.guard, ask);
    this.#keptNames = new KeptNames(parts.limits);
    this.#gatekeeper = parts.key === undefined ? undefined : new Gatekeeper(parts.key);
    this.#lastId = parts.redis === undefined ? 0 : randomFirstId();
    this.homes = parts.redis === undefined ? undefined : this.#share(parts.redis);
  }

  #share(redis: string): Homes {
    const { advertise = "", door, members, guard, notify, limits } = this.#parts;
    const firstId = this.#lastId;
    const likeliest = { host: publicAddress(door.host), port: door.port };
    const { host, port } = parsePlace(advertise, door.port) ?? likeliest;
    const owner: HomesOwner = {
      rooms: () => members.rooms.keys(),
      counts: () => ({ participants: members.size, rooms: members.rooms.size, firstId }),
      movedOut: (room, home) => guard.serve(undefined, () => this.#movedOut(room, home)),
      notice: (text) => void notify(text).catch((error: unknown) => guard.report(error)),
      sharing: (isShared, message) => guard.emit({ event: isShared ? "shared" : "warning", message }),
    };
    return new Homes(redis, formatHostPort(host, port), owner, limits.homeMs);
  }

  /** Registers it where its room lives: here if somebody is in it already, else it is asked. */
  enter(session: Session, message: MessageOf<"register">): void {
    if (!session.member) this.#gatekeeper?.check(session, message);
    const { room } = message;
    const { homes } = this;
    const { drain, members, guard } = this.#parts;
    if (!homes || session.member || drain.reason !== undefined || members.rooms.has(room))
      return this.#claim(session, message);
    session.enter();
    const goOn = (home: string) => entered(session, () => this.#claimAt(home, session, message));
    void homes.find(room).then((home) => guard.serve(session, () => goOn(home)));
  }

  #claimAt(home: string, session: Session, message: MessageOf<"register">): void {
    const { members } = this.#parts;
    const place = this.homes!.isOwn(home) || members.rooms.has(message.room) ? undefined : parsePlace(home);
    if (place) sendTo(session, place);
    else this.#claim(session, message);
  }

  /**
   * Whom it says to be may be listed though it is gone: by the name, or by the certificate of a program that was started
   * anew. They are asked. It waits for the answer of the one that has the name.
   */
  #claim(session: Session, message: MessageOf<"register">): void {
    const { members, presence, guard, drain } = this.#parts;
    if (session.member || drain.reason !== undefined) return this.#register(session, message);
    const others = [...members.in(message.room)].filter(({ peer }) => !isSame(peer, message));
    for (const other of others)
      if (other.peer.fingerprint === message.fingerprint) presence.askSibling(other);
    const holder = this.#claimed.has(session) ? undefined : holderOf(message.name, others);
    if (!holder) return this.#register(session, message);
    this.#claimed.add(session);
    session.enter();
    const goOn = () => entered(session, () => this.#register(session, message));
    void presence.isThere(holder).then(() => guard.serve(session, goOn));
  }

  #register(session: Session, message: MessageOf<"register">): void {
    const { limits, members, metrics, guard, drain } = this.#parts;
    if (session.member)
      throw new Refusal("already-registered", `you are registered as ${session.member.peer.id}`);
    if (drain.reason !== undefined) return session.dismiss(drain.reason, retryInMs());
    const { name, room, fingerprint, proof } = message;
    const instance = publicInstance(message.instance);
    const [allowed, ignored] = sortCandidates(message.private ?? [], session.observed);
    const takes = message.private === undefined ? "relayed" : message.direct ? "direct" : "any";
    for (const { peer, session: older } of members.in(room))
      if (isSame(peer, message)) older.close("it registered anew");
    checkPlace(session.source, members.in(room), limits);
    checkName(message, members.in(room), this.#keptNames);
    const seen = { id: ++this.#lastId, name, private: allowed, public: session.observed };
    const own = takes === "relayed" ? { ...seen, public: hiddenEndpoint } : seen;
    const roundTripMs = handshakeRoundTripMs(session.socket.fd);
    const isTold = roundTripMs !== undefined && takes !== "relayed";
    const measured = isTold && { roundTripMs: Math.round(roundTripMs) };
    const mapped = takes === "relayed" ? undefined : forwardedEndpoint(own, message.forwarded);
    const proved = proof !== undefined && { proof };
    const shown = { ...own, instance, fingerprint, ...proved, ...(mapped && { mapped }), ...measured };
    const peer = { ...shown, mapping: message.mapping ?? "unknown", since: Math.round(stamps.now) } as const;
    const member = session.join(peer, room, takes, roundTripMs);
    members.add(member); // first, so that leaving undoes whatever fails from here on
    keepLinks(member, message.links);
    this.#welcome(member);
    members.show(member);
    metrics.joined();
    guard.emit({ event: "joined", ...seen, room });
    if (ignored.length > 0) guard.emit({ event: "ignored", address: session.observed, endpoints: ignored });
    this.#wishes.registered(member, message.wants ?? [], members.in(room));
  }

  /** Answers `register`. */
  #welcome(member: Member): void {
    const { alternate, relays, door, members } = this.#parts;
    const probePorts = this.#parts.probePorts();
    const { session, room, peer } = member;
    const { id, name, private: candidates } = peer;
    const { observed, roundTripMs } = member;
    const hasAlternate = alternate !== undefined && probePorts[0] !== undefined;
    const alternates = hasAlternate ? [formatEndpoint(alternate, probePorts[0]!)] : [];
    const verify = door.host === "::" ? this.#otherFamily.offer(member, door.port) : undefined;
    const own = { id, name, room, public: observed, private: candidates };
    const probeToken = probePorts.length > 0 ? newToken() : undefined;
    if (probeToken !== undefined) this.#probing.set((member.tokens.probe = probeToken), member);
    const offers = {
      ...(probeToken !== undefined && { probeToken }),
      ...(verify && { verify }),
      ...(relays && { relay: relays.rates }),
      ...(roundTripMs !== undefined && { roundTripMs: Math.round(roundTripMs) }),
    };
    session.send({ type: "registered", ...own, probePorts, alternates, ...offers });
    session.ping();
    session.write(snapshot(members.in(room)));
  }

  /**
   * It has the name that it wanted from the start, if that is free now. It can only lose a number: nobody's name can be
   * changed to another and back, and the room be told each time. Throws a {@link Refusal}.
   */
  rename(member: Member, { name, proof }: MessageOf<"rename">): void {
    const { members, guard, change } = this.#parts;
    const { room, peer, session } = member;
    const { id, name: was, fingerprint } = peer;
    if (!isNumberedName(was, name)) throw new Refusal("bad-field", `name must be ${was} without its number`);
    const others = [...members.in(room)].filter((one) => one !== member);
    checkName({ name, room, fingerprint }, others, this.#keptNames);
    // Before any `punch` shows the other that name, by which both prove themselves then.
    session.send({ type: "renamed", name });
    change(member, { name, ...(proof !== undefined && { proof }) });
    guard.emit({ event: "renamed", id, name, was });
  }

  /** Its host has other addresses. */
  update(member: Member, message: MessageOf<"update">): void {
    const [hosts] = sortCandidates(message.private, member.observed);
    if (hosts.join() !== member.peer.private.join()) this.#parts.change(member, { private: hosts });
  }

  /** The member that shows how it is seen in the other address family. Throws a {@link Refusal}. */
  verified(session: Session, token: string): Member {
    if (session.member) throw new Refusal("already-registered", "verify belongs on a connection of its own");
    const member = this.#otherFamily.verified(token, session.observed);
    session.send({ type: "observed", endpoint: session.observed });
    session.close("it was verified");
    return member;
  }

  /** The member whose probes have that token. */
  probing(token: string): Member | undefined {
    return this.#probing.get(token);
  }

  /** It has left, and its name is kept for it. */
  forget(member: Member): void {
    const { room, source, tokens } = member;
    const { name, fingerprint } = member.peer;
    this.#keptNames.keep(room, name, fingerprint, source);
    this.#wishes.forget(member);
    this.#otherFamily.forget(member);
    if (tokens.probe !== undefined) this.#probing.delete(tokens.probe);
    if (!this.#parts.members.rooms.has(room)) void this.homes?.release([room]);
  }

  /** Sends everybody in that room there. If the place that another introducer has given is none, they stay. */
  #movedOut(room: string, home: string): void {
    const place = parsePlace(home);
    if (!place) return;
    const sessions = [...this.#parts.members.in(room)].map(({ session }) => session);
    const leaving = sessions.filter(({ isOver }) => !isOver);
    for (const session of leaving) session.silence({ type: "elsewhere", ...place });
    void this.#parts.door.close(leaving, `its room lives at ${home}`);
  }
}

/** To the introducer that its room lives at. */
function sendTo(session: Session, place: Place): void {
  session.send({ type: "elsewhere", ...place });
  session.close(`its room lives at ${formatHostPort(place.host, place.port)}`);
}

/** Whether that is the same program, which has come back before we noticed that it was gone. */
function isSame(peer: Peer, { instance, fingerprint }: MessageOf<"register">): boolean {
  return peer.fingerprint === fingerprint && peer.instance === publicInstance(instance);
}

/** It has waited, and goes on with what it asked for. */
function entered(session: Session, work: () => void): void {
  if (!session.entered()) return;
  try {
    work();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    session.refuse(error, { request: "register" });
  }
}
