#!/usr/bin/env -S bun --no-env-file --config=/dev/null --tsconfig-override=/dev/null
/**
 * The introducer: the rendezvous server on a public host. Its participants have control connections to it. It tells
 * everyone in a room of everyone else, tells two of them when to punch towards each other, and relays between two who
 * have no direct way, or none yet.
 *
 * It never looks into what it relays, connects to nobody but back to whoever asks for it, and believes nothing it
 * reads: every line is parsed into its exact type or refused, and everything a client can make it hold has a limit.
 *
 * {@link Rendezvous} is what each message does. {@link Introducer} is how native/introducer/ is wired, what an operator may
 * ask, and how it ends. Another program may import it, a participant never does.
 *
 * RFC 5128 §3.4 (TCP hole punching), RFC 8445 (candidates, roles), RFC 5382 (what NATs do to TCP).
 */
import { byTurns } from "./native/shares/turns.ts";
import { ConnectBacks } from "./native/introducer/connect-back.ts";
import { Drain } from "./native/introducer/drain.ts";
import type { IntroducerEvent, IntroducerOptions } from "./native/introducer/events.ts";
import { Guard } from "./native/introducer/guard.ts";
import { Introductions } from "./native/introducer/introductions.ts";
import { defaultLimits, type Limits, shownLimits } from "./native/introducer/limits.ts";
import { type About, lineAbout, peek, refuseOtherVersion } from "./native/introducer/lines.ts";
import { addLink, lister, removeLink } from "./native/introducer/links.ts";
import { Members } from "./native/introducer/members.ts";
import { Metrics, renderPrometheus, type Stats } from "./native/introducer/metrics.ts";
import { MetricsServer } from "./native/introducer/metrics-server.ts";
import { isAt } from "./native/introducer/observe.ts";
import { spendIntroduction } from "./native/introducer/quotas.ts";
import { Presence } from "./native/introducer/presence.ts";
import { Reception } from "./native/introducer/reception.ts";
import { redisUrlProblem } from "./native/introducer/redis/connection.ts";
import type { Homes, Neighbour } from "./native/introducer/redis/homes.ts";
import { Registration, type RegistrationParts } from "./native/introducer/registration.ts";
import type { Participant } from "./native/introducer/rooms.ts";
import type { Member, MessageOf, Session } from "./native/introducer/session.ts";
import { Sources } from "./native/introducer/sources.ts";
import type { Turns } from "./native/introducer/turns.ts";
import { type Due, notScheduled, Wheel } from "./native/introducer/wheel.ts";
import { version } from "./native/terminal/command-line.ts";
import { readArguments, usage } from "./native/terminal/introducer-arguments.ts";
import { askPort } from "./native/terminal/introducer-prompt.ts";
import { ctl } from "./native/terminal/introducer-ctl.ts";
import { serve } from "./native/terminal/introducer-run.ts";
import { amount } from "./native/terminal/introducer-tables.ts";
import { runProgram, type Terminal } from "./native/terminal/terminal.ts";
import {
  defaultPort,
  type Endpoint,
  parseToIntroducer,
  type PeerChange,
  type Prediction,
  Refusal,
  type ToIntroducer,
  type ToParticipant,
} from "./protocol.ts";

/** What needs no punctuality is done so often. Deadlines are in the {@link Wheel}. */
const tickMs = 500;

// --- what each message does ------------------------------------------------------------------------------

/** What only a participant may say, once it has registered. */
type Said = Exclude<ToIntroducer["type"], "register" | "verify" | "relay" | "probe">;
type Answers = { readonly [T in Said]: (member: Member, message: MessageOf<T>) => void };

/** What the messages need. */
type Parts = Omit<RegistrationParts, "change"> & {
  sources: Sources;
  turns: Turns;
  introductions: Introductions;
};

/** The steps of a rendezvous, as the messages ask for them. */
class Rendezvous {
  readonly registration: Registration;
  readonly #parts: Parts;
  readonly #connectBacks: ConnectBacks;

  readonly #answers: Answers = {
    connect: (member, message) => this.#connect(member, message),
    linked: (member, message) => this.#linked(member, message),
    unlinked: (member, message) => this.#unlinked(member, message),
    failed: (member, message) => this.#parts.introductions.failed(member, message),
    rename: (member, message) => this.registration.rename(member, message),
    update: (member, message) => this.registration.update(member, message),
    mapping: (member, message) => this.#mapped(member, message),
    mapped: (member, { endpoint }) => this.#portMapped(member, endpoint),
    measured: (member, message) => this.#parts.introductions.measured(member, message),
    "connect-back": (member) => this.#connectBacks.begin(member),
    echo: ({ session }, { text }) => session.send({ type: "echo", text }),
    pong: (member, { id }) => this.#parts.presence.ponged(member, id),
  };

  constructor(parts: Parts) {
    this.#parts = parts;
    const change = (member: Member, change: PeerChange) => this.change(member, change);
    const ask = (asker: Member, target: Member) => this.#ask(asker, target, true);
    this.registration = new Registration({ ...parts, change }, ask);
    this.#connectBacks = new ConnectBacks(parts.guard, parts.limits, parts.sources, parts.alternate);
  }

  /** Understands a line, and does what it asks for. */
  line(session: Session, line: string): void {
    if (session.isOver) return;
    try {
      if (!session.member) refuseOtherVersion(line);
      this.#handle(session, parseToIntroducer(line));
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      const { type: request, peer } = peek(line);
      const of = { ...(request !== undefined && { request }), ...(peer !== undefined && { peer }) };
      session.refuse(error, of);
    }
  }

  #handle(session: Session, message: ToIntroducer): void {
    if (session.isEntering) throw new Refusal("not-registered", "wait for `registered`", true);
    if (message.type === "register") return this.registration.enter(session, message);
    if (message.type === "verify") return this.#verify(session, message.token);
    if (message.type === "relay") return this.#relay(session, message.token);
    if (message.type === "probe") throw new Refusal("bad-field", "probe belongs on a probe port");
    const { member } = session;
    if (!member) throw new Refusal("not-registered", "the first line must be a register", true);
    const answer = this.#answers[message.type] as (member: Member, message: ToIntroducer) => void;
    answer(member, message);
  }

  // --- steps 1 and 2: who it is, and how it is seen (native/introducer/registration.ts) ---

  #verify(session: Session, token: string): void {
    const member = this.registration.verified(session, token);
    const { observed: otherPublic } = session;
    if (member.peer.otherPublic !== otherPublic) this.change(member, { otherPublic });
  }

  // --- step 3: its room learns of it, and of what changes ---

  change(member: Member, change: PeerChange): void {
    const { members, turns } = this.#parts;
    // Of who hides where it is, nothing else is told, whatever it says itself.
    if (member.takes === "relayed" && change.name === undefined) return;
    turns.chargeWrites(member.source, members.in(member.room).size);
    members.change(member, change);
  }

  #mapped(member: Member, { mapping, prediction }: MessageOf<"mapping">): void {
    member.measured = { position: prediction && isAt(prediction.endpoint, member) ? prediction : undefined };
    if (member.peer.mapping !== mapping) this.change(member, { mapping });
    this.#parts.introductions.mapped(member);
    this.#parts.guard.emit({ event: "mapping", id: member.peer.id, mapping });
  }

  #portMapped(member: Member, endpoint: Endpoint | undefined): void {
    if (endpoint !== undefined && !isAt(endpoint, member))
      throw new Refusal("bad-field", "endpoint must be at the address where you are seen");
    if (member.peer.mapped === endpoint) return;
    this.change(member, { mapped: endpoint ?? null });
    this.#parts.guard.emit({ event: "mapped", id: member.peer.id, ...(endpoint && { endpoint }) });
  }

  /** Takes it out of its room. It may be called more than once. */
  leave(member: Member, reason: string): void {
    const { members, introductions, guard } = this.#parts;
    if (!members.remove(member)) return;
    const { id, name } = member.peer;
    this.registration.forget(member);
    introductions.left(member, reason);
    members.tellLeft(member);
    guard.emit({ event: "left", id, name, reason });
  }

  // --- steps 4 and 5: one asks for another, and both are told to punch ---

  #connect(member: Member, { peer, relay, early }: MessageOf<"connect">): void {
    const { drain, members } = this.#parts;
    if (drain.reason !== undefined)
      throw new Refusal("limit", "the introducer is ending: ask when you have come back");
    this.#ask(member, members.neighbour(member, peer), relay !== false, early);
  }

  #ask(member: Member, target: Member, wantsRelay: boolean, isEarly = false): void {
    const { limits, introductions, presence } = this.#parts;
    spendIntroduction(member, limits, performance.now());
    introductions.ask(member, target, wantsRelay, isEarly);
    // It may be gone, and its NAT may drop what we punch: that is known after two seconds, and not after a whole punch.
    presence.askIfQuiet(target);
  }

  /** A probe with that token has shown where the NAT stands, on the way to that peer. */
  probed(token: string, peer: number, stands: Prediction): void {
    const member = this.registration.probing(token);
    if (!member) return;
    const { guard, introductions } = this.#parts;
    guard.serve(member.session, () => introductions.probed(member, peer, stands));
  }

  #relay(session: Session, token: string): void {
    if (session.member) throw new Refusal("already-registered", "relay belongs on a connection of its own");
    const { relays } = this.#parts;
    if (!relays) throw new Refusal("bad-field", "this introducer does not relay");
    relays.join(session, token);
  }

  // --- step 9: both say what became of it ---

  #linked(member: Member, message: MessageOf<"linked">): void {
    const { members, introductions, guard } = this.#parts;
    const { peer, route, local, remote, token } = message;
    const other = members.neighbour(member, peer);
    if (!introductions.mayReport(member, other, token)) return; // untrue, late, or said before
    addLink(member, other, message, members.in(member.room));
    introductions.linked(member, message);
    guard.emit({ event: "linked", id: member.peer.id, peer, route, local, remote });
  }

  #unlinked(member: Member, { peer, reason }: MessageOf<"unlinked">): void {
    const { members, guard } = this.#parts;
    if (removeLink(member, peer, members.inRoom(member.room, peer)))
      guard.emit({ event: "unlinked", id: member.peer.id, peer, reason });
  }
}

// --- the introducer --------------------------------------------------------------------------------------

/** A rendezvous server. `start` listens; `stop` tells the participants and ends. */
export class Introducer {
  readonly limits: Limits;
  readonly #guard: Guard;
  readonly #wheel = new Wheel();
  readonly #reception: Reception;
  readonly #members: Members;
  readonly #introductions: Introductions;
  readonly #rendezvous: Rendezvous;
  readonly #drain: Drain;
  readonly #metrics = new Metrics();
  readonly #metricsServer: MetricsServer | undefined;
  #drained: Promise<void> | undefined;
  #stopped: Promise<void> | undefined;

  /** Throws what `Bun.listen` throws, such as EADDRINUSE, a {@link ProbePortError}, or a TypeError for a wrong option. */
  static start(options: IntroducerOptions = {}): Introducer {
    return new Introducer(options);
  }

  private constructor(options: IntroducerOptions) {
    const { redis, alternate, advertise, key } = options;
    const redisProblem = redis === undefined ? undefined : redisUrlProblem(redis);
    if (redisProblem !== undefined) throw new TypeError(`the URL of the Redis is wrong: ${redisProblem}`);
    const limits = (this.limits = { ...defaultLimits, ...options.limits });
    const sources = new Sources(limits);
    const guard = (this.#guard = new Guard(options.onEvent ?? (() => {})));
    const members = (this.#members = new Members(guard));
    const { door, turns, relays } = (this.#reception = this.#receive(options, sources));
    const presence = new Presence(guard);
    const introductions = (this.#introductions = this.#makeIntroductions(presence));
    const drain = (this.#drain = this.#makeDrain());
    const rooms = { members, presence, introductions, relays, drain, metrics: this.#metrics };
    const where = { door, probePorts: () => this.probePorts, alternate, redis, advertise, key };
    const notify = (text: string) => this.broadcast(text);
    this.#rendezvous = new Rendezvous({ limits, sources, guard, turns, ...rooms, ...where, notify });
    this.#startTicking();
    this.#metricsServer = options.metrics && this.#showMetrics(options.metrics);
    guard.emit({ event: "listening", host: this.host, port: this.port });
  }

  // wiring

  #receive(options: IntroducerOptions, sources: Sources): Reception {
    const { heldBytes, heldBytesPerAddress } = this.limits;
    const most = `of one address ${amount(heldBytesPerAddress)} may, ${amount(heldBytes)} in all`;
    const owner = {
      limits: this.limits,
      sources,
      guard: this.#guard,
      metrics: this.#metrics,
      wheel: this.#wheel,
      tooMuch: `too much waits to be read: ${most}; come back later, and say less at once`,
      line: (session: Session, line: string) => this.#rendezvous.line(session, line),
      leave: (member: Member, reason: string) => this.#rendezvous.leave(member, reason),
      measured: (member: Member, roundTripMs: number) => this.#rendezvous.change(member, { roundTripMs }),
      probed: (token: string, peer: number, stands: Prediction) =>
        this.#rendezvous.probed(token, peer, stands),
    };
    return new Reception(owner, options);
  }

  #makeIntroductions(presence: Presence): Introductions {
    const owner = {
      limits: this.limits,
      canMeasure: () => this.probePorts.length > 0,
      send: ({ session }: Member, message: ToParticipant) => session.send(message),
      show: ({ session }: Member, about: Member, message: About) => session.write(lineAbout(about, message)),
      offerRelay: (a: Member, b: Member) =>
        a.takes !== "direct" && b.takes !== "direct" ? this.#reception.relays?.offer(a, b) : undefined,
      withdrawRelay: (token: string) => this.#reception.relays?.withdraw(token),
      refuse: ({ session }: Member, refusal: Refusal, peer: number) =>
        session.refuse(refusal, { request: "connect", peer }),
      emit: (event: IntroducerEvent) => this.#guard.emit(event),
      serve: (member: Member | undefined, work: () => void) => this.#guard.serve(member?.session, work),
      silent: (member: Member) => presence.ask(member),
      count: this.#metrics.introduced.bind(this.#metrics),
    };
    return new Introductions(owner, this.#wheel);
  }

  #makeDrain(): Drain {
    return new Drain({
      guard: this.#guard,
      members: this.#members,
      isPunching: ({ peer }) => this.#introductions.punching(peer.id).length > 0,
      relays: () => this.#reception.relays,
      close: (sessions, reason) => this.#reception.door.close(sessions, reason),
      leaveRooms: async () => this.#homes?.leave(),
      stopListening: () => this.#reception.stopListening(),
    });
  }

  #showMetrics({ hostname, port }: { hostname: string; port: number }): MetricsServer {
    return new MetricsServer(hostname, port, {
      page: () => renderPrometheus(this.stats, version),
      illness: () => this.#drain.reason,
      mistake: (error) => this.#guard.report(error),
      warn: (message) => this.#guard.emit({ event: "warning", message }),
    });
  }

  #startTicking(): void {
    const wheel = this.#wheel;
    const works = [this.#reception, this.#introductions, this.#drain];
    const due = (now: number) => {
      for (const one of works) this.#guard.serve(undefined, () => one.tick(now));
      wheel.put(ticks, now + tickMs);
    };
    const ticks: Due = { slot: notScheduled, due };
    wheel.put(ticks, wheel.now() + tickMs);
    wheel.start((lateMs) => this.#guard.serve(undefined, () => this.#metrics.ticked(lateMs)));
  }

  get #homes(): Homes | undefined {
    return this.#rendezvous.registration.homes;
  }

  // what an operator asks

  /** Where the metrics are shown, while they are. */
  get metricsPort(): number | undefined {
    return this.#metricsServer?.port;
  }

  get stats(): Stats {
    const { relays: all } = this.#reception;
    const { links: relays, bytes: relayedBytes } = all?.totals ?? { links: 0, bytes: 0 };
    return this.#metrics.read({
      participants: this.#members.size,
      rooms: this.#members.rooms.size,
      connections: this.#reception.door.size,
      waiting: this.#reception.turns.waiting,
      relays,
      relayedBytes,
      relayUses: all?.uses ?? [],
      limits: shownLimits(this.limits, all?.rates),
      ...(this.#homes && { isShared: this.#homes.isShared }),
    });
  }

  /** From now on. What is beyond them already stays. */
  setLimits(limits: Partial<Limits>): void {
    Object.assign(this.limits, limits);
    this.#reception.limitsChanged();
  }

  get host(): string {
    return this.#reception.door.host;
  }

  get port(): number {
    return this.#reception.door.port;
  }

  /** Where mapping probes are answered. */
  get probePorts(): number[] {
    return this.#reception.probes.ports;
  }

  /** Everyone who has registered, the oldest first. It takes long for thousands: then take {@link listed}. */
  get participants(): Participant[] {
    return [...this.#members.values()].map(this.#lister());
  }

  /** The same in slices, so that all else goes on between them. */
  async listed(): Promise<Participant[]> {
    const all: Participant[] = [];
    const show = this.#lister();
    await byTurns(this.#members.values(), (member) => void all.push(show(member)));
    return all;
  }

  #lister(): (member: Member) => Participant {
    return lister(this.#members, this.#introductions, this.#reception.relays);
  }

  /** The names of all who have registered. */
  names(): Iterable<string> {
    return this.#members.values().map(({ peer }) => peer.name);
  }

  /** The other introducers that share the Redis; undefined without one. Rejects while it is away. */
  async others(): Promise<Neighbour[] | undefined> {
    return this.#homes?.others();
  }

  /** Says something to one participant. Resolves to whether it was there to be told. */
  async tell(text: string, id: number): Promise<boolean> {
    const member = this.#members.get(id);
    return member !== undefined && (await this.#members.notify(text, [member])) === 1;
  }

  /** Says something to everyone here. Resolves to how many were told. */
  broadcast(text: string): Promise<number> {
    return this.#members.notify(text, this.#members.values());
  }

  /** Has the other introducers say it to everyone there. Resolves to how many those are. Rejects while Redis is away. */
  async broadcastElsewhere(text: string): Promise<number | undefined> {
    return this.#homes?.broadcast(text);
  }

  // the end

  /**
   * Ends in order. Nobody is registered any more. Everyone is told to come back after a pause, once no introduction of
   * his is under way. It stops when introductions and relayed links are over, or after {@link drainMs}.
   */
  drain(reason = "the introducer is restarted"): Promise<void> {
    return (this.#drained ??= this.#drain.begin(reason).then(() => this.stop(reason)));
  }

  /** Tells everyone that it ends. Resolves when all connections are closed. */
  stop(reason = "the introducer was stopped"): Promise<void> {
    return (this.#stopped ??= this.#stop(reason));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }

  async #stop(reason: string): Promise<void> {
    const { door, probes } = this.#reception;
    this.#reception.stopListening();
    await probes.end();
    await door.tellEnd(reason);
    const left = this.#homes?.close();
    await door.end();
    await left;
    for (const one of [this.#wheel, this.#reception, this.#members, this.#metricsServer]) one?.stop();
    this.#drain.end();
  }
}

// --- main ------------------------------------------------------------------------------------------------

async function main(terminal: Terminal): Promise<number> {
  const parsed = readArguments(process.argv.slice(2));
  if (parsed === "help" || parsed === "version") {
    terminal.result(parsed === "help" ? usage : version);
    return 0;
  }
  if ("line" in parsed) return ctl(terminal, parsed);
  terminal.isQuiet = parsed.quiet;
  const port = parsed.port ?? (terminal.isInteractive ? await askPort(terminal) : defaultPort);
  if (parsed.json) terminal.isInteractive = false;
  return port === undefined
    ? 0
    : serve(terminal, { ...parsed, port }, (options) => Introducer.start(options));
}

if (import.meta.main) await runProgram(main);
