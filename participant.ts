#!/usr/bin/env -S bun --no-env-file --config=/dev/null --tsconfig-override=/dev/null
/**
 * The participant: registers with an introducer, learns who is in the room, and punches direct TCP connections to the
 * others. Below is the class for programs; our own program, in terminal/participant-main.ts, is one of its users. It owns
 * nothing: its parts are in participant/parts.ts. Never imports the introducer.
 *
 * The nine steps, and where they are:
 *
 *   1. connect to the introducer, say our private endpoints   registration.ts #introduceOurselves, host/control.ts
 *   2. it says the public endpoint that it sees               registration.ts #begin, situation.ts
 *   3. it says who is in the room                             roster.ts, by hearing.ts
 *   4. ask to be introduced to B                              peer.ts connect, punch/encounter.ts ask
 *   5. it tells both to punch                                 hearing.ts, punch/encounter.ts punch
 *   6. both start                                             punch/encounter.ts #start
 *   7. listen, and connect to all endpoints, from one port    punch/punch-port.ts
 *   8. the first that succeeds ends the others; retry         punch/punch.ts, punch/dial.ts
 *   9. both report it                                         linking.ts #linked, #unlinked, failed
 *
 * RFC 5128 §3.4 (TCP hole punching), RFC 8445 (candidates, roles, nomination).
 */
import type { NatReport, ParticipantEvent, ParticipantOptions, Self } from "./native/participant/events.ts";
import type { EventName, EventNamed, Missed } from "./native/participant/listeners.ts";
import type { PeerWord } from "./native/participant/meant.ts";
import type { PeerLink, PeerStream } from "./native/participant/peer-link.ts";
import { onceMore } from "./native/participant/once-more.ts";
import { beginRoom } from "./native/secure/room.ts";
import type {
  ConnectOptions,
  Forwarded,
  ForwardOptions,
  JoinOptions,
  Keeper,
  ParticipantState,
  PipeEnds,
  PipeOptions,
  SendOptions,
  StreamFrom,
  StreamHandler,
} from "./native/participant/public.ts";
import type { Abortable } from "./native/shares/abort.ts";
import type { Stream } from "./native/session/stream.ts";
import { likelyWords } from "./native/terminal/likely-words.ts";
import type { TransferOutcome } from "./native/uses/files.ts";
import type { SourceFiles } from "./native/uses/source-files.ts";
import type { ForwardSpec } from "./native/uses/target.ts";
import { ToldError, UserError } from "./protocol.ts";

// --- loading ---------------------------------------------------------------------------------------------

// What takes long begins first: the key of the room, in another thread, and then the way to the introducer.
if (import.meta.main) {
  const args = process.argv.slice(2);
  beginRoom(likelyWords(args, process.env));
  const [{ beginConnecting }, { likelyIntroducer }] = await Promise.all([
    import("./native/host/connecting.ts"),
    import("./native/terminal/participant-options.ts"),
  ]);
  beginConnecting(likelyIntroducer(args, process.env));
}

// All else is loaded meanwhile. So these are no static imports, which would come before everything.
const { answerTimeoutMs } = await import("./native/participant/questions.ts");
const { notLinked } = await import("./native/participant/refused.ts");
const { Parts } = await import("./native/participant/parts.ts");
const { linkOf, peerLink } = await import("./native/participant/peer-link.ts");
const { Peers } = await import("./native/participant/peers.ts");
const { Uses } = await import("./native/participant/uses.ts");
const { pairOf } = await import("./native/session/web-pair.ts");
const { resetCodes, StreamError } = await import("./native/session/stream.ts");
const { untilAborted } = await import("./native/shares/abort.ts");
const { watched } = await import("./native/uses/watched.ts");

type Parts = InstanceType<typeof Parts>;
type Peers = InstanceType<typeof Peers>;
type Uses = InstanceType<typeof Uses>;

export { errorCodes, HolePunchError } from "./protocol.ts";
export type { ErrorCode, FailureReason, UnlinkReason } from "./protocol.ts";
export type { NatReport, ParticipantEvent, ParticipantOptions, Self } from "./native/participant/events.ts";
export type { EventName, EventNamed, Missed } from "./native/participant/listeners.ts";
export type { PeerLink as Link, PeerStream as Stream } from "./native/participant/peer-link.ts";
export type { PeerRow } from "./native/participant/peer-events.ts";
export type { StreamPair } from "./native/session/web-pair.ts";
export { pairOf, StreamError };
export type * from "./native/participant/public.ts";
export type { Peers, Uses };

/**
 * One participant in one room. Importing and making it does nothing to the program: it prints nothing, takes no signal,
 * and lets the program end once it has quit.
 *
 *   await using me = new Participant({ host: "introducer.example", name: "alice", room: "our secret words" });
 *   me.onStream("my-game/1", (stream, { name }) => …);
 *   await me.join();
 *   const link = await me.connect("bob", { wait: true });
 *   const stream = link.open("my-game/1");
 *
 * No method throws; each rejects with a {@link HolePunchError}, or, once its signal aborts, with the reason of that. A peer is
 * meant by its name, or by its id while it is in the room; "" means the only other one.
 */
export class Participant implements AsyncDisposable {
  /** Who is in the room. */
  readonly peers: Peers;
  /** What links are used for now. */
  readonly uses: Uses;
  readonly #parts: Parts;
  readonly #isPatient: boolean;

  /** Throws a {@link HolePunchError} if there can be no such room, or if our own key can't be read or made. */
  constructor(options: ParticipantOptions) {
    const parts = (this.#parts = new Parts(options));
    this.#isPatient = options.patient ?? false;
    this.peers = new Peers(parts.roster, parts.membership);
    this.uses = new Uses(parts.uses);
  }

  // --- what is so now ---------------------------------------------------------------------------------

  get state(): ParticipantState {
    return this.#parts.hasQuit ? "quit" : this.#parts.registration.is;
  }

  /** Whether only those can be in the room who know its words. */
  get isPrivate(): boolean {
    return this.#parts.membership.isPrivate;
  }

  /** What the introducer knows of us, while we are registered. */
  get self(): Self | undefined {
    const context = this.#parts.registration.situation?.context;
    if (!context) return undefined;
    const { id, public: observed, private: hosts, mapped, behaviour } = context;
    const { name, roomKind: room, fingerprint } = this.#parts.membership;
    const mapping = behaviour?.mapping ?? "unknown";
    const own = { id, name, room, public: observed, private: [...hosts], ...(mapped && { mapped }) };
    return { ...own, fingerprint, mapping };
  }

  // --- what happens -----------------------------------------------------------------------------------

  /**
   * From now on `listener` gets each event of that name, until what this returns is disposed of, or the signal aborts. What
   * it throws or rejects with is told as an `error` event. What was before is not told again: see {@link self} and
   * {@link peers}.
   */
  on<Name extends EventName>(
    name: Name,
    listener: (event: EventNamed<Name>) => unknown,
    { signal }: Abortable = {},
  ): Disposable {
    return this.#parts.listeners.on(name, listener as (event: ParticipantEvent) => unknown, signal);
  }

  /**
   * All events from now on, one after the other. It ends when we have quit. At most 1,000 wait for who reads them slowly:
   * then the oldest are dropped, and a `missed` event says how many.
   */
  events({ signal }: Abortable = {}): AsyncGenerator<ParticipantEvent | Missed, void, undefined> {
    return this.#parts.listeners.events(signal);
  }

  /**
   * From now on streams that peers open for `use` are given to `handler`, after the `linked` event; what nobody takes is
   * refused. What it throws or rejects with resets that stream alone, and is told as an `error`. A later handler for the
   * same use takes its place. Streams that have come stay when what this returns is disposed of.
   */
  onStream(use: string, handler: StreamHandler): Disposable {
    return this.#parts.takers.set(use, (stream, { id, name, fingerprint, purpose }, peer) => {
      const { link } = peer;
      if (!link) return stream.reset("its link has ended", resetCodes["link-ended"]);
      return handler(stream, { peer: id, name, fingerprint, purpose, link: peerLink(link, peer) });
    });
  }

  // --- steps 1 to 3: to the introducer, and who is here -----------------------------------------------

  /**
   * Registers with the introducer; resolves once the room's list is there. Once we have been registered, a try that
   * fails is followed by others, until `leave`; so is the first one of who is patient. Whoever is named in `wants` (at most
   * 8) is punched towards at once, or as soon as it registers: `connect` then joins that punch. Rejects: `no-introducer`,
   * `has-quit`.
   */
  async join({ wants = [], signal }: JoinOptions = {}): Promise<void> {
    signal?.throwIfAborted();
    this.#parts.mustGoOn();
    const { registration, roster } = this.#parts;
    roster.wishes.add(wants);
    const abort = () => {
      for (const one of wants) roster.wishes.take(one);
      registration.leave("it was given up");
    };
    signal?.addEventListener("abort", abort);
    try {
      await joinOnce(this.#parts, this.#isPatient, signal);
    } finally {
      signal?.removeEventListener("abort", abort);
      signal?.throwIfAborted();
    }
  }

  /** Leaves the introducer; links stay. Rejects if we are not registered, nor on the way there: `not-registered`. */
  async leave(): Promise<void> {
    const { registration, roster, emit } = this.#parts;
    if (registration.is === "away")
      throw new UserError("not registered with an introducer; `join` comes back", { code: "not-registered" });
    for (const peer of roster) peer.leaving();
    registration.leave("we left");
    emit({ event: "introducer", state: "left", reason: "links stay up; `join` comes back" });
  }

  /**
   * Ends all there is, for good: transfers and forwards, links in order, the registration. Whatever waits is rejected:
   * `has-quit`. It may be called again.
   */
  quit(): Promise<void> {
    return this.#parts.quit();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.quit();
  }

  // --- steps 4 to 9: to a peer ------------------------------------------------------------------------

  /**
   * Resolves to the link with that peer: the one that there is, or else it punches, or joins the punch that is under way.
   * `wait`: first waits until the peer is here, and once more if the introducer is lost meanwhile. `verbose`: each attempt is an `attempt` event. Rejects with one of the
   * {@link FailureReason}s if no link comes about, or with `no-such-peer`, `ambiguous-peer`, `untrusted-peer`,
   * `not-registered`, `has-quit`. If its signal aborts and nobody else waits for the link, the punch is cancelled.
   */
  async connect(
    peer: PeerWord,
    { wait = false, verbose = false, signal }: ConnectOptions = {},
  ): Promise<PeerLink> {
    signal?.throwIfAborted();
    this.#parts.mustGoOn();
    const { roster } = this.#parts;
    const meet = async (until: AbortSignal | undefined) => {
      if (wait && !this.peers.link(peer)) await roster.waits.for(String(peer), until);
      const found = roster.linked(String(peer)) ?? roster.findUnlike(String(peer));
      const link = found.link ?? (await found.connect({ isVerbose: verbose, signal }));
      this.#parts.met(found);
      return peerLink(link, found);
    };
    return wait ? onceMore(meet, signal) : meet(signal);
  }

  /**
   * From now on a link with that peer is made, and made again whenever it has ended, also if the peer comes only later.
   * Until what this returns is disposed of, the signal aborts, or `disconnect`.
   */
  keep(peer: PeerWord, { signal }: Abortable = {}): Keeper {
    const { keep } = this.#parts;
    const want = this.#parts.newWant();
    const first = keep.keep(String(peer), want);
    const dispose = () => {
      signal?.removeEventListener("abort", dispose);
      keep.release(String(peer), want);
    };
    signal?.addEventListener("abort", dispose);
    if (signal?.aborted) dispose();
    return { first, [Symbol.dispose]: dispose };
  }

  /**
   * Ends the link in order, or the punch that is under way, and keeps it no more, whoever wanted that. Resolves to what it
   * has ended. Rejects: `not-linked`, `no-such-peer`, `ambiguous-peer`.
   */
  async disconnect(peer: PeerWord): Promise<"linked" | "kept"> {
    const { keep, roster } = this.#parts;
    const word = String(peer);
    const wasKept = keep.giveUp(word);
    roster.wishes.take(word);
    try {
      await roster.find(word).disconnect();
      return "linked";
    } catch (error) {
      if (!wasKept || !(error instanceof UserError)) throw error;
      return "kept";
    }
  }

  /** Resolves to the round trip in ms, once the peer's program has the text (8,192 characters). Else: `not-confirmed`. */
  async say(peer: PeerWord, text: string, { signal }: Abortable = {}): Promise<number> {
    return untilAborted(async () => this.#parts.roster.find(String(peer)).talk.say(text), signal);
  }

  /** Resolves to the link's round trip in ms. Rejects: `not-linked`, `not-confirmed`. */
  async ping(peer: PeerWord, { signal }: Abortable = {}): Promise<number> {
    return untilAborted(async () => this.#parts.roster.find(String(peer)).talk.ping(), signal);
  }

  // --- what links are for -----------------------------------------------------------------------------

  /**
   * Listens at once: `[BIND:]PORT:PEER:[HOST:]PORT`, as with ssh. What connects waits up to 30 s for the link, which is kept
   * unless `keep` is false. Rejects if it can't listen there. With `remote` the peer listens, as soon as there is a link; what
   * comes of that are the events `listening` and `listen-refused`. It is taken back by `unforward`, by the signal, or when what
   * this resolves to is disposed of.
   */
  async forward(
    spec: string | ForwardSpec,
    { keep = true, socks = false, remote = false, signal }: ForwardOptions = {},
  ): Promise<Forwarded> {
    signal?.throwIfAborted();
    this.#parts.mustGoOn();
    const { uses, keep: keeping, emit } = this.#parts;
    const make = (text: string) =>
      socks ? uses.proxy(text) : remote ? uses.remote(text) : uses.forward(text);
    const { listen, peer } = typeof spec === "string" ? make(spec) : uses.forwardTo(spec);
    if (keep)
      keeping.keep(peer, listen).catch((error: unknown) => {
        if (error instanceof UserError && !(error instanceof ToldError))
          emit({ event: "error", message: error.message });
      });
    const dispose = () => {
      signal?.removeEventListener("abort", dispose);
      void this.unforward(listen).catch(() => {}); // it may have been taken back
    };
    signal?.addEventListener("abort", dispose);
    return { listen, peer, [Symbol.dispose]: dispose };
  }

  /**
   * Takes a forward back: `[BIND:]PORT`, or `[BIND:]PORT:PEER` with `remote`, or as `forwards` shows it. What is open is cut
   * off. The link is kept no more for it. Rejects if there is none.
   */
  async unforward(listen: string, { remote = false }: Pick<ForwardOptions, "remote"> = {}): Promise<void> {
    const { uses, keep } = this.#parts;
    const found = remote ? uses.unremote(listen) : uses.unforward(listen);
    keep.release(found.peer, found.listen);
  }

  /** Lets peers reach `[HOST:]PORT` through us. Resolves to it in canonical form. Rejects in the lobby: `open-room`. */
  async allow(rule: string): Promise<string> {
    return this.#parts.uses.allow(rule);
  }

  /**
   * Sends files and folders. Resolves once each has arrived or has failed, and says which. There must be a link; `wait`: or
   * it is kept, and waited for. The same again goes on where it was cut short. Rejects: `not-linked`, `transfer-failed`.
   */
  async send(
    peer: PeerWord,
    paths: readonly string[] | SourceFiles,
    options: SendOptions = {},
  ): Promise<TransferOutcome> {
    const { roster, uses } = this.#parts;
    const [word, { wait = false, ...watching }] = [String(peer), options];
    if (!wait && !this.#parts.met(roster.find(word)).link) throw notLinked(word);
    return watched(watching, (watch) => uses.transfers.send(roster.nameOf(word), paths, watch));
  }

  /** From now on what peers send, or `from` alone, is put into that folder without asking. Never in the lobby. */
  async accept(folder: string, { from }: { from?: string | undefined } = {}): Promise<void> {
    this.#parts.uses.transfers.acceptInto(folder, from);
  }

  /**
   * Joins two pipes: ours and the peer's, or ours and a `target` that the peer allows. Success means that each byte is
   * confirmed. Waits for the peer, and connects.
   */
  async pipe(peer: PeerWord, { target, signal }: PipeOptions = {}): Promise<PipeEnds> {
    const { roster, uses } = this.#parts;
    if (target === undefined) uses.takePipeOf(() => roster.nameOf(String(peer)));
    await this.connect(peer, { wait: true, signal });
    return uses.pipe(roster.linked(String(peer))!.link!, target);
  }

  /**
   * Does with a stream of a use of ours (`forward`, `pipe`, `files`) what is done without a handler. For handlers of these uses
   * that choose whom they let through.
   */
  async serve(stream: PeerStream, { peer: id, link, ...from }: StreamFrom): Promise<void> {
    return this.#parts.uses.take(stream as Stream, { id, ...from, link: linkOf(link) });
  }

  // --- what the introducer can tell -------------------------------------------------------------------

  /** Resolves to the round trip to the introducer in ms. Rejects: `not-registered`. */
  async echo(text: string, { signal }: Abortable = {}): Promise<number> {
    const { questions } = this.#parts.registration.settled;
    const startedAt = performance.now();
    const answer = await untilAborted(() => questions.echo(text), signal);
    const rttMs = performance.now() - startedAt;
    this.#parts.emit({ event: "echo", text: answer, rttMs });
    return rttMs;
  }

  /** Finds out what kind of NAT this host is behind; begins anew when we are registered anew meanwhile. */
  async nat({ signal }: Abortable = {}): Promise<NatReport> {
    return untilAborted(() => natOf(this.#parts), signal);
  }
}

/** Resolves once the list is there. Of who is patient, or was told that all places are taken, other attempts follow. */
async function joinOnce(
  { registration, roster }: Parts,
  isPatient: boolean,
  signal?: AbortSignal,
): Promise<void> {
  try {
    await registration.join();
  } catch (error) {
    const mayWait = (isPatient || registration.placeUntilMs > 0) && registration.is !== "registered";
    if (!mayWait || !(error instanceof UserError)) throw error;
    const settled = () => (["registered", "away"] as const).find((is) => is === registration.is);
    if ((await roster.waits.until(settled, signal)) === "away") throw error;
  }
}

async function natOf({ registration, roster, emit }: Parts): Promise<NatReport> {
  const isSettled = () => ["registered", "away"].includes(registration.is) || undefined;
  for (let situation = registration.settled; ; situation = registration.settled) {
    const report = await situation.nat();
    if (registration.situation === situation) {
      emit({ event: "nat", ...report });
      return report;
    }
    // The next registration; or it rejects when nobody comes back.
    await roster.waits.until(isSettled, AbortSignal.timeout(answerTimeoutMs)).catch(() => {});
  }
}

// --- main ------------------------------------------------------------------------------------------------

if (import.meta.main) {
  const { main } = await import("./native/terminal/participant-main.ts");
  const { runProgram } = await import("./native/terminal/terminal.ts");
  await runProgram((terminal) => main(terminal, (options) => new Participant(options)));
}
