/**
 * The relays: which two may come for one, who has come, and how long they last. It owns the relays on offer and under way;
 * native/introducer/copier.ts copies their bytes. It owns neither sockets nor sessions: it closes them by who made it. For
 * introducer.ts and native/introducer/.
 */
import { encode, Refusal, type RelayRates } from "../../protocol.ts";
import type { Shares } from "../shares/budget.ts";
import { Copier, type CopierOwner } from "./copier.ts";
import type { IntroducerEvent } from "./events.ts";
import type { Limits } from "./limits.ts";
import { type RelayUse, RelayUses } from "./relay-use.ts";
import { type Relay, type RelayConnection, type RelayEnd, relayKey, type RelayMember } from "./relayed.ts";

/** Bytes a second that are relayed, of one link in each direction and of all, unless told otherwise. */
export const defaultRelayRates = { rate: 1024 * 1024, total: 16 * 1024 * 1024 };

/** What the relays need of the sessions. */
interface Sessions<Connection> extends CopierOwner<Connection> {
  readonly limits: Limits;
  /** Relays of each source: each relay is of two. */
  readonly shares: Shares;
  newToken(): string;
  refuse(session: Connection, refusal: Refusal): void;
  emit(event: IntroducerEvent): void;
}

export class Relays<Connection extends RelayConnection<Connection>> {
  readonly rates: RelayRates;
  readonly copier: Copier<Connection>;
  readonly #sessions: Sessions<Connection>;
  readonly #relays = new Map<string, Relay<Connection>>();
  readonly #shares: Shares;
  readonly #perMember = new Map<number, number>();
  readonly #uses = new RelayUses();

  constructor(rates: RelayRates, sessions: Sessions<Connection>) {
    this.rates = rates;
    this.copier = new Copier(rates, sessions);
    this.#sessions = sessions;
    this.#shares = sessions.shares;
  }

  /** Offered or under way. */
  get size(): number {
    return this.#relays.size;
  }

  /** Whether any is offered, and still to be taken. */
  get isAwaited(): boolean {
    return this.#relays.values().some(({ isPaired }) => !isPaired);
  }

  get #underWay(): Relay<Connection>[] {
    return [...this.#relays.values()].filter(({ isPaired }) => isPaired);
  }

  /** Relayed links now, and the bytes of all there have been. */
  get totals(): { links: number; bytes: number } {
    return { links: this.#underWay.length, bytes: this.copier.bytes };
  }

  /** Who was relayed most, those first. */
  get uses(): RelayUse[] {
    return this.#uses.read(this.#underWay.map(({ members, bytes }) => ({ users: usersOf(members), bytes })));
  }

  /** Bytes relayed so far of links under way, by {@link relayKey} of the two. */
  bytes(): Map<string, number> {
    return new Map(this.#underWay.map(({ members: [a, b], bytes }) => [relayKey(a, b), bytes]));
  }

  /** A token by which both can come here, once; undefined where they may have no more. */
  offer(a: RelayMember, b: RelayMember): string | undefined {
    const { relays, relaysPerMember } = this.#sessions.limits;
    const isOver = ({ peer, source }: RelayMember) =>
      (this.#perMember.get(peer.id) ?? 0) >= relaysPerMember || this.#shares.isOver(source, 1);
    if (this.#relays.size >= relays || isOver(a) || isOver(b)) return undefined;
    const token = this.#sessions.newToken();
    const untilMs = performance.now() + this.#sessions.limits.relayOfferMs;
    this.#relays.set(token, { token, members: [a, b], ends: [], isPaired: false, bytes: 0, untilMs });
    for (const { peer, source } of [a, b]) {
      this.#shares.add(source);
      this.#perMember.set(peer.id, (this.#perMember.get(peer.id) ?? 0) + 1);
    }
    return token;
  }

  /** Nobody is to come any more. One that both have come for goes on. */
  withdraw(token: string): void {
    const relay = this.#relays.get(token);
    if (relay && !relay.isPaired) this.#expire(relay);
  }

  /** Takes a connection that has said `relay`; throws a {@link Refusal}. */
  join(session: Connection, token: string): void {
    const relay = this.#relays.get(token);
    if (!relay || relay.isPaired)
      throw new Refusal("bad-field", "token must be of a relay that is still open");
    const end = this.copier.end(session, relay);
    session.relayed = end;
    relay.ends.push(end);
    const [a, b] = relay.ends;
    if (a && b) this.#pair(relay, a, b);
  }

  #pair(relay: Relay<Connection>, a: RelayEnd<Connection>, b: RelayEnd<Connection>): void {
    relay.isPaired = true;
    const rate = Math.ceil(Math.min(this.rates.rate, this.rates.total));
    for (const { session } of relay.ends) session.socket.write(encode({ type: "relaying", rate }));
    this.#sessions.emit({ event: "relaying", ...idsOf(relay.members), names: namesOf(relay.members) });
    this.copier.join(a, b);
  }

  /** One end will send no more. */
  ended(end: RelayEnd<Connection>): void {
    this.copier.ended(end);
    if (end.other) return;
    this.#withdraw(end);
    this.#sessions.close(end.session, "it did not wait for the other side of the relay");
  }

  /** It came first, and has left again before the other came: it may come again. */
  #withdraw({ relay, session }: RelayEnd<Connection>): void {
    relay.ends.splice(0);
    session.relayed = undefined;
  }

  /** One end is gone: the other gets what that has sent. */
  closed(end: RelayEnd<Connection>): void {
    this.copier.closed(end);
    if (!end.other) this.#withdraw(end);
    else if (end.other.life === "gone") this.#forget(end.relay);
  }

  tick(now: number): void {
    for (const relay of this.#relays.values())
      if (now >= relay.untilMs) this.#sessions.serve(undefined, () => this.#expire(relay));
  }

  #expire(relay: Relay<Connection>): void {
    if (!relay.isPaired) this.#forget(relay);
    for (const { session } of relay.ends) {
      if (relay.isPaired) session.socket.terminate();
      else this.#sessions.serve(session, () => this.#expired(session));
    }
  }

  #expired(session: Connection): void {
    session.relayed = undefined;
    this.#sessions.refuse(session, new Refusal("limit", "the other side did not come", true));
  }

  #forget(relay: Relay<Connection>): void {
    const { token, members, isPaired, bytes } = relay;
    if (!this.#relays.delete(token)) return;
    for (const { peer, source } of members) {
      this.#shares.remove(source);
      const count = (this.#perMember.get(peer.id) ?? 0) - 1;
      if (count > 0) this.#perMember.set(peer.id, count);
      else this.#perMember.delete(peer.id);
    }
    if (!isPaired) return;
    this.#uses.add(usersOf(members), bytes);
    this.#sessions.emit({ event: "relayed", ...idsOf(members), names: namesOf(members), bytes });
  }
}

type Two = readonly [RelayMember, RelayMember];

const usersOf = (two: Two) => two.map(({ peer }) => peer);
const idsOf = ([a, b]: Two) => ({ a: a.peer.id, b: b.peer.id });
const namesOf = ([a, b]: Two): [string, string] => [a.peer.name, b.peer.name];
