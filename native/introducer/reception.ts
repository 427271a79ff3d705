/**
 * What happens to the bytes of a connection, from its first to its last: lines are read by turns, what is relayed is
 * copied, and what is written waits for the end of the tick. It wires the door, the turns and the relays; what a line
 * asks for is for whoever owns it. For introducer.ts alone.
 */
import { type Prediction, Refusal, type RelayRates } from "../../protocol.ts";
import { isSupported, limitUnread, segmentsReceived, unlimitUnread } from "../host/libc.ts";
import { Door, unreadBytes } from "./door.ts";
import type { IntroducerOptions } from "./events.ts";
import type { Guard } from "./guard.ts";
import type { Limits } from "./limits.ts";
import type { Metrics } from "./metrics.ts";
import { Outbox } from "./output.ts";
import { Probes } from "./probes.ts";
import { defaultRelayRates, Relays } from "./relay.ts";
import { type Member, newToken, type Session } from "./session.ts";
import type { Sources } from "./sources.ts";
import { Turns } from "./turns.ts";
import type { Wheel } from "./wheel.ts";

/** So much of a relayed connection may wait to be read: enough for the default rate over a path of half a second. */
const unreadRelayBytes = 1024 * 1024;

/** Who understands what comes. */
interface Owner {
  readonly limits: Limits;
  readonly sources: Sources;
  readonly guard: Guard;
  readonly metrics: Metrics;
  readonly wheel: Wheel;
  /** What somebody is told when too much of his source waits to be read. */
  readonly tooMuch: string;
  line(session: Session, line: string): void;
  leave(member: Member, reason: string): void;
  /** The round trip to it has changed. */
  measured(member: Member, roundTripMs: number): void;
  /** A probe with that token has shown where the NAT stands, on the way to that peer. */
  probed(token: string, peer: number, stands: Prediction): void;
}

export class Reception {
  readonly turns: Turns;
  readonly door: Door;
  readonly probes: Probes;
  readonly relays: Relays<Session> | undefined;
  readonly #owner: Owner;

  /** Throws what {@link Door} and {@link Probes} throw. */
  constructor(owner: Owner, options: IntroducerOptions) {
    this.#owner = owner;
    const outbox = new Outbox(owner.guard, owner.limits, owner.sources);
    this.turns = this.#makeTurns(outbox);
    this.door = this.#makeDoor(outbox, options);
    this.probes = this.#makeProbes(options);
    const { rate, total } = defaultRelayRates;
    const { relay = true, relayRate = rate, relayTotal = total } = options;
    if (relay) this.relays = this.#makeRelays({ rate: relayRate, total: relayTotal });
  }

  #makeTurns(outbox: Outbox): Turns {
    const { limits, sources, guard, tooMuch } = this.#owner;
    return new Turns({
      limits,
      sources,
      guard,
      outbox,
      line: (session, line) => this.#owner.line(session, line),
      relayed: ({ relayed }, bytes) => this.relays?.copier.data(relayed!, bytes),
      ended: (session) => {
        if (session.relayed) this.relays?.ended(session.relayed);
        else if (!session.isOver) session.close("it closed the connection");
      },
      tooMuch: (session) => session.refuse(new Refusal("limit", tooMuch, true)),
    });
  }

  #makeDoor(outbox: Outbox, { host, port }: IntroducerOptions): Door {
    const { limits, sources, guard, metrics, wheel } = this.#owner;
    const owner = {
      limits,
      sources,
      guard,
      outbox,
      wheel,
      turns: this.turns,
      metrics,
      measured: (member: Member, roundTripMs: number) => this.#owner.measured(member, roundTripMs),
      receive: (session: Session, chunk: Uint8Array) => this.#receive(session, chunk),
      drained: (session: Session) => this.#drained(session),
      ended: (session: Session) => this.turns.end(session),
      leave: (session: Session, reason: string) => this.#leave(session, reason),
      closed: (session: Session, reason: string) => this.#closed(session, reason),
    };
    return new Door(owner, host, port);
  }

  #makeProbes(options: IntroducerOptions): Probes {
    const { limits, sources, guard, metrics } = this.#owner;
    const owner = {
      limits,
      sources,
      guard,
      turns: this.turns,
      metrics,
      probed: (token: string, peer: number, stands: Prediction) => this.#owner.probed(token, peer, stands),
    };
    try {
      return new Probes(owner, options, this.door.host);
    } catch (error) {
      this.door.stopListening();
      throw error;
    }
  }

  #makeRelays(rates: RelayRates): Relays<Session> {
    const { limits, sources, guard } = this.#owner;
    return new Relays(rates, {
      limits,
      shares: sources.relays,
      newToken,
      refuse: (session, refusal) => session.refuse(refusal, { request: "relay" }),
      close: (session, reason) => session.close(reason),
      serve: (session, work) => guard.serve(session, work),
      charge: (session, work, moreMs = 0) =>
        guard.serve(session, () => this.turns.chargeRelayed(session, work, moreMs)),
      segments: ({ socket }) => segmentsReceived(socket.fd),
      limitUnread: ({ socket: { fd } }, unread) => {
        if (!isSupported()) return;
        if (unread === "much") unlimitUnread(fd, unreadRelayBytes);
        else limitUnread(fd, unreadBytes);
      },
      mayRead: (session, now) => !this.turns.isOver(session, now),
      emit: (event) => guard.emit(event),
    });
  }

  #receive(session: Session, chunk: Uint8Array): void {
    session.heardAt = performance.now();
    if (session.isOver) this.turns.receiveNothing(session);
    else if (session.relayed) this.relays?.copier.data(session.relayed, chunk);
    else this.turns.receive(session, chunk);
  }

  /** The kernel takes more again. */
  #drained(session: Session): void {
    if (session.relayed && !session.isOver) this.relays?.copier.drained(session.relayed);
    else if (session.hasUnsent) this.turns.charge(session, () => session.sendRest());
  }

  #leave(session: Session, reason: string): void {
    this.turns.forget(session);
    if (session.member) this.#owner.leave(session.member, reason);
  }

  #closed(session: Session, reason: string): void {
    const { guard } = this.#owner;
    const { relayed } = session;
    guard.serve(session, () => this.turns.forget(session));
    if (relayed) guard.serve(session, () => this.relays?.closed(relayed));
    guard.serve(session, () => this.turns.charge(session, () => this.#leave(session, reason)));
  }

  /** What the operator has set counts from now on. */
  limitsChanged(): void {
    const { sources, limits } = this.#owner;
    sources.resize(limits);
  }

  tick(now: number): void {
    const { guard } = this.#owner;
    guard.serve(undefined, () => this.#owner.sources.tick(now));
    guard.serve(undefined, () => this.relays?.tick(now));
  }

  /** The next introducer finds all of its ports free once it has the first. */
  stopListening(): void {
    this.probes.stop();
    this.door.stopListening();
  }

  stop(): void {
    this.turns.stop();
    this.relays?.copier.stop();
    this.door.terminate();
  }
}
