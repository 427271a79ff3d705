/**
 * One participant in one room: the class for programs, and the wiring of its parts. Owns no state but that it has quit. The
 * nine steps, and where they are: ../../participant.ts. For participant.ts and native/terminal/.
 */
import {
  defaultKeepMinutes,
  type NatReport,
  type ParticipantEvent,
  type ParticipantOptions,
  type Self,
} from "./events.ts";
import { Hearing } from "./hearing.ts";
import { Membership } from "./membership.ts";
import { idOf } from "./meant.ts";
import { Naming } from "./naming.ts";
import type { PeerRow } from "./peer-events.ts";
import { answerTimeoutMs } from "./questions.ts";
import { Registration } from "./registration.ts";
import { Roster } from "./roster.ts";
import type { Situation } from "./situation.ts";
import { type Taker, Takers } from "./takers.ts";
import { quitAlready, type Waits } from "./waits.ts";
import { identityOrOneForNow } from "../secure/identity.ts";
import type { Link } from "../session/link.ts";
import { resetCodes } from "../session/stream.ts";
import { otherStartedAs } from "../host/started.ts";
import { UserError } from "../../protocol.ts";

type Emit = (event: ParticipantEvent) => void;

/**
 * One participant in one room. Importing and making it does nothing to the program: it prints nothing, takes no signal,
 * and lets the program end once it has quit. Every event goes to `onEvent`; every method rejects with a
 * {@link UserError}.
 *
 *   const alice = new Participant({ host: "introducer.example", name: "alice", room: "our secret words" });
 *   alice.onStream("my-game/1", (stream, { name }) => …);
 *   await alice.join();
 *   await alice.waitFor("bob");
 *   const link = await alice.connect("bob");
 *   const stream = link.open("my-game/1");
 *   await alice.quit();
 */
export class Participant {
  readonly options: ParticipantOptions;
  /** Waits that few programs need; see also {@link waitFor} and {@link whenLinked}. */
  readonly waits: Waits;
  readonly #emit: Emit;
  readonly #membership: Membership;
  readonly #roster: Roster;
  readonly #registration: Registration;
  readonly #takers: Takers;
  #hasQuit = false;

  constructor(options: ParticipantOptions) {
    this.options = options;
    const emit = emitTo(options.onEvent);
    this.#emit = emit;
    const identity =
      options.identity ?? identityOrOneForNow((message) => emit({ event: "warning", message }));
    this.#membership = new Membership(identity, options.name, options.room);
    this.#takers = new Takers((message) => emit({ event: "error", message }));
    const participant = this;
    this.#roster = makeRoster({
      ...{ options, emit, membership: this.#membership, takers: this.#takers },
      registration: () => this.#registration,
      get hasQuit() {
        return participant.hasQuit;
      },
    });
    this.waits = this.#roster.waits;
    const naming = new Naming(this.#membership, {
      peers: this.#roster,
      send: (message) => this.#registration.situation?.context.send(message),
    });
    const { host, port, direct, portMapping, networks } = options;
    const startCommand = otherStartedAs("introducer");
    this.#registration = new Registration(
      {
        host,
        startCommand,
        ...(port !== undefined && { port }),
        direct: direct ?? false,
        portMapping: portMapping ?? true,
        isPatient: options.patient ?? false,
        networks,
      },
      this.#membership,
      new Hearing(this.#roster, naming, emit, (reason) => this.#registration.close(reason)),
    );
  }

  get hasQuit(): boolean {
    return this.#hasQuit;
  }

  get isRegistered(): boolean {
    return this.#registration.is === "registered";
  }

  /** Whether only those can be in the room who know its words. */
  get isPrivate(): boolean {
    return this.#membership.isPrivate;
  }

  /** The list, in the order of the ids: at once, so where there may be thousands {@link listed} is better. */
  get rows(): PeerRow[] {
    return this.#roster.rows;
  }

  /** The rows, made by turns with all else. */
  listed(): Promise<PeerRow[]> {
    return this.#roster.listed();
  }

  *names(): Generator<string, void> {
    for (const { name } of this.#roster) yield name;
  }

  /** How many links are up. */
  get linkCount(): number {
    return this.#roster.links.length;
  }

  /** What the introducer knows of us, while we are registered. */
  get self(): Self | undefined {
    const context = this.#registration.situation?.context;
    if (!context) return undefined;
    const { id, public: observed, private: hosts, mapped, behaviour } = context;
    const { name, roomKind: room, fingerprint } = this.#membership;
    const mapping = behaviour?.mapping ?? "unknown";
    const own = { id, name, room, public: observed, private: [...hosts], ...(mapped && { mapped }) };
    return { ...own, fingerprint, mapping };
  }

  /**
   * Registers with the introducer; resolves once the room's list is there. Once we have been registered, a try that
   * fails is followed by others, until `leave`; so is the first one of who is patient. Whoever is named in `wants` is punched towards at once, or as soon as it
   * registers: `connect` then joins that punch.
   */
  async join(wants: readonly string[] = []): Promise<void> {
    if (this.#hasQuit) throw new UserError(quitAlready);
    this.#roster.wishes.add(wants);
    try {
      await this.#registration.join();
    } catch (error) {
      if (!this.options.patient || !(error instanceof UserError)) throw error;
      const settled = () => (["registered", "away"] as const).find((is) => is === this.#registration.is);
      if ((await this.waits.until(settled, undefined)) === "away") throw error;
    }
  }

  /** Leaves the introducer; links stay. */
  leave(): void {
    if (this.#registration.is === "away")
      throw new UserError("not registered with an introducer; `join` comes back");
    for (const peer of this.#roster) peer.leaving();
    this.#registration.leave("we left");
    this.#emit({ event: "introducer", state: "left", reason: "links stay up; `join` comes back" });
  }

  /** Ends all links in order, and leaves; for good. */
  async quit(): Promise<void> {
    this.#hasQuit = true;
    this.waits.wake(); // whoever waits for somebody waits in vain
    await Promise.all([...this.#roster].map((peer) => peer.quit()));
    await this.#registration.quit();
  }

  /** Resolves once `word` names exactly one peer that is there; rejects while it names several. */
  async waitFor(word: string, signal?: AbortSignal): Promise<void> {
    await this.waits.for(word, signal);
  }

  /**
   * Punches towards a peer that is in the room ({@link waitFor}), or joins the punch that is under way; resolves to the
   * link, also when the peer has asked for it.
   */
  async connect(word: string, isVerbose = false): Promise<Link> {
    return this.#roster.findUnlike(word).connect(isVerbose);
  }

  /** The link with a peer, while there is one. */
  linkWith(word: string): Link | undefined {
    return this.#roster.find(word).link;
  }

  /** The link with whoever has that name or id, while it is open. */
  openLink(word: string): Link | undefined {
    return this.#roster.openLink(word);
  }

  /** The id of the peer of that name; null if it is not in the room. */
  idOf(name: string): number | null {
    return idOf(this.#roster, name);
  }

  /** Resolves to the link with that peer as soon as there is one; asks for none. */
  whenLinked(word: string, signal?: AbortSignal): Promise<Link> {
    return this.waits.until(() => this.#roster.openLink(word), signal);
  }

  /**
   * From now on streams that peers open for `use` (the first argument of their `link.open`) are given to `take`, with who
   * the peer is; streams for what nobody takes are refused. A stream is a Node Duplex, which `Duplex.toWeb` turns into
   * Web streams. Its user ends his half by `end()`; `for await` over a Duplex destroys it at the end, with what was not
   * sent: `stream.iterator({ destroyOnReturn: false })` does not. What `take` throws or rejects with resets that stream
   * alone, and is told as an `error`.
   */
  onStream(use: string, take: Taker): void {
    this.#takers.set(use, take);
  }

  /** What a peer that is there is called, by its id, too; any other word is a name. */
  nameOf(word: string): string {
    return this.#roster.nameOf(word);
  }

  /** Resolves to the round trip once the peer's program has the text. */
  async say(word: string, text: string): Promise<number> {
    return this.#roster.find(word).talk.say(text);
  }

  async ping(word: string): Promise<number> {
    return this.#roster.find(word).talk.ping();
  }

  /** Ends the link, or cancels the punch that is under way. */
  async disconnect(word: string): Promise<void> {
    this.#roster.wishes.take(word);
    return this.#roster.find(word).disconnect();
  }

  /** Measures the round trip to the introducer. */
  async echo(text: string): Promise<void> {
    const { questions } = this.#registration.settled;
    const startedAt = performance.now();
    const answer = await questions.echo(text);
    this.#emit({ event: "echo", text: answer, rttMs: performance.now() - startedAt });
  }

  /** Finds out what kind of NAT this host is behind; begins anew when we are registered anew meanwhile. */
  async nat(): Promise<NatReport> {
    let situation = this.#registration.settled;
    for (;;) {
      const report = await situation.nat();
      if (this.#registration.situation === situation) {
        this.#emit({ event: "nat", ...report });
        return report;
      }
      situation = await nextSituation(this.#registration, this.#roster);
    }
  }
}

// --- wiring ----------------------------------------------------------------------------------------------

interface RosterParts {
  readonly options: ParticipantOptions;
  readonly emit: Emit;
  readonly membership: Membership;
  readonly takers: Takers;
  readonly hasQuit: boolean;
  registration(): Registration;
}

function makeRoster(parts: RosterParts): Roster {
  const { options, emit, membership, takers, registration } = parts;
  const { verbose = false, keepMinutes = defaultKeepMinutes } = options;
  const owner = {
    emit,
    self: membership,
    id: () => registration().situation?.context.id,
    distrust: (peer: Parameters<Membership["distrust"]>[0]) => membership.distrust(peer),
    tooMany: () => registration().close("it names more peers than a room can have"),
    get isListed() {
      return registration().is === "registered";
    },
    get hasQuit() {
      return parts.hasQuit;
    },
  };
  return new Roster(owner, {
    context: () => registration().situation?.context,
    emit,
    isVerbose: verbose,
    keepMs: keepMinutes * 60_000,
    stream: (peer, stream, purpose) => {
      if (parts.hasQuit) stream.reset("it has quit", resetCodes.refused);
      else takers.give(peer, stream, purpose);
    },
    threw: ({ name }, error) => takers.threw(name, "a stream", error),
    measureAnew: async () => registration().situation?.measureAnew(),
  });
}

/** The one after a loss; rejects when nobody comes back. */
async function nextSituation(registration: Registration, roster: Roster): Promise<Situation> {
  const isSettled = () => ["registered", "away"].includes(registration.is) || undefined;
  await roster.waits.until(isSettled, AbortSignal.timeout(answerTimeoutMs)).catch(() => {});
  return registration.settled;
}

/** What `onEvent` throws must not stop us in the middle of things; it is told, once. */
function emitTo(onEvent: ParticipantOptions["onEvent"]): Emit {
  return (event) => {
    try {
      onEvent?.(event);
    } catch (error) {
      const text = error instanceof Error ? error.message : String(error);
      try {
        onEvent?.({ event: "error", message: `onEvent threw at \`${event.event}\`: ${text}` });
      } catch {
        // It takes none.
      }
    }
  };
}
