#!/usr/bin/env -S bun --no-env-file --config=/dev/null --tsconfig-override=/dev/null
/**
 * The participant: registers with an introducer, learns who is in the room, and punches direct TCP connections to the
 * others. Below are the class for programs, the wiring of its parts, and the program itself. It owns no state but that it
 * has quit. Never imports the introducer.
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
import type { PeerRow } from "./native/participant/peer-events.ts";
import type { Situation } from "./native/participant/situation.ts";
import type { Taker } from "./native/participant/takers.ts";
import type { Waits } from "./native/participant/waits.ts";
import { beginRoom, type Room } from "./native/secure/room.ts";
import type { Link } from "./native/session/link.ts";
import type { Stream } from "./native/session/stream.ts";
import { likelyWords } from "./native/terminal/likely-words.ts";
import type { Arguments } from "./native/terminal/participant-arguments.ts";
import type { Running } from "./native/terminal/running.ts";
import type { Terminal } from "./native/terminal/terminal.ts";
import type { From } from "./native/uses/from.ts";
import { defaultRoom, UserError } from "./protocol.ts";

export { UserError, type From, type Link, type Stream };

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
const { hideArgument } = await import("./native/host/arguments.ts");
const { callersFolder } = await import("./native/host/caller.ts");
const { requirePlatform } = await import("./native/host/libc.ts");
const { ServiceManager } = await import("./native/host/service.ts");
const { otherStartedAs } = await import("./native/host/started.ts");
const { defaultKeepMinutes } = await import("./native/participant/events.ts");
const { Hearing } = await import("./native/participant/hearing.ts");
const { Keep } = await import("./native/participant/keep.ts");
const { idOf } = await import("./native/participant/meant.ts");
const { Membership } = await import("./native/participant/membership.ts");
const { Naming } = await import("./native/participant/naming.ts");
const { Networks } = await import("./native/participant/networks.ts");
const { answerTimeoutMs } = await import("./native/participant/questions.ts");
const { Registration } = await import("./native/participant/registration.ts");
const { Roster } = await import("./native/participant/roster.ts");
const { Takers } = await import("./native/participant/takers.ts");
const { quitAlready } = await import("./native/participant/waits.ts");
const { IdentityError, identityOrOneForNow, stateFolderOrNone } = await import("./native/secure/identity.ts");
const { openRoom, roomOf } = await import("./native/secure/room.ts");
const { areWeak, newRoomWords } = await import("./native/secure/words.ts");
const { resetCodes } = await import("./native/session/stream.ts");
const { version } = await import("./native/terminal/command-line.ts");
const { invitationTo, readHostPort } = await import("./native/terminal/invitation.ts");
const { newRoom, readArguments, shownRoom, usage, weakRoom } =
  await import("./native/terminal/participant-arguments.ts");
const { Prompt, askMissing } = await import("./native/terminal/participant-prompt.ts");
const { Errands, live, statusPeriodMs } = await import("./native/terminal/participant-run.ts");
const { transferLine } = await import("./native/terminal/participant-story.ts");
const { runProgram } = await import("./native/terminal/terminal.ts");
const { isNoise } = await import("./native/terminal/verbs.ts");
const { Services } = await import("./native/uses/services.ts");

type Errands = InstanceType<typeof Errands>;
type Keep = InstanceType<typeof Keep>;
type Membership = InstanceType<typeof Membership>;
type Prompt = InstanceType<typeof Prompt>;
type Registration = InstanceType<typeof Registration>;
type Roster = InstanceType<typeof Roster>;
type ServiceManager = InstanceType<typeof ServiceManager>;
type Services = InstanceType<typeof Services>;
type Takers = InstanceType<typeof Takers>;

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

  // --- what is so now ---------------------------------------------------------------------------------

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

  // --- steps 1 to 3: to the introducer, and who is here -----------------------------------------------

  /**
   * Registers with the introducer; resolves once the room's list is there. Once we have been registered, a try that
   * fails is followed by others, until `leave`; so is the first one of who is patient. Whoever is named in `wants` is
   * punched towards at once, or as soon as it registers: `connect` then joins that punch.
   */
  async join(wants: readonly string[] = []): Promise<void> {
    if (this.#hasQuit) throw new UserError(quitAlready);
    this.#roster.wishes.add(wants);
    try {
      await this.#registration.join();
    } catch (error) {
      const mayWait = this.options.patient && this.#registration.is !== "registered";
      if (!mayWait || !(error instanceof UserError)) throw error;
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

  // --- steps 4 to 9: to a peer ------------------------------------------------------------------------

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

  // --- what links are for -----------------------------------------------------------------------------

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

  // --- what the introducer can tell -------------------------------------------------------------------

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

// --- main ------------------------------------------------------------------------------------------------

/** The room to be in. */
function chooseRoom({ room = defaultRoom, nat }: Arguments): Room | Promise<Room> {
  // Who only measures disturbs nobody.
  return nat ? openRoom(crypto.getRandomValues(new Uint8Array(32)).toHex()) : roomOf(room);
}

/** What others of this host, or whoever runs the introducer, may find out of the room's words. */
function warnOfWords(room: string | undefined, isShown: boolean, prompt: Prompt): void {
  if (isShown) prompt.event({ event: "warning", message: shownRoom });
  if (room !== undefined && areWeak(room)) prompt.event({ event: "warning", message: weakRoom });
}

function checkPlatform(): void {
  try {
    requirePlatform();
  } catch (error) {
    throw new UserError(error instanceof Error ? error.message : String(error));
  }
}

/** Resolves to the exit code. */
async function main(terminal: Terminal): Promise<number> {
  const options = readArguments(process.argv.slice(2));
  if (options === "help" || options === "version") {
    terminal.result(options === "help" ? usage : version);
    return 0;
  }
  const isShown = options.shown !== undefined && hideArgument(options.shown.option, options.shown.text);
  process.chdir(callersFolder() ?? "."); // Bun has read all that it reads of the folder it was started in
  checkPlatform();
  terminal.isQuiet = options.quiet;
  if (!(await askMissing(options, terminal))) {
    const isAwaited = options.verb ?? options.pipe ?? (options.nat || options.send.length > 0);
    return isAwaited ? 1 : 0;
  }
  const isNew = options.room === newRoom;
  if (isNew) options.room = newRoomWords();
  if (options.json) terminal.isInteractive = false;
  const manager = new ServiceManager();
  const running = prepare(terminal, options, manager);
  if (isNew) running.invitation = invitationTo(options.room!, options.introducer!);
  // A code is for one errand, and its line was printed to be typed.
  if (!options.quiet) warnOfWords(options.room, isShown && options.verb === undefined, running.prompt);
  const { participant, uses, keep } = running;
  const errands = new Errands(running);
  const stopped = whenStopped(terminal, errands);
  const status = () => terminal.status(uses.transfers.list.map(transferLine));
  const drawing = setInterval(status, statusPeriodMs);
  const code = await Promise.race([live(running, errands), stopped]);
  running.isOver = true;
  manager.stopping();
  clearInterval(drawing);
  terminal.status([]);
  await uses.close();
  terminal.close();
  keep.close();
  await participant.quit();
  return code;
}

/** Resolves to the exit code once a signal or the terminal's end stops the program. */
function whenStopped(terminal: Terminal, errands: Errands): Promise<number> {
  const { promise, resolve } = Promise.withResolvers<number>();
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const)
    process.once(signal, () => resolve(errands.codeAt(signal)));
  void terminal.broken.then(() => resolve(1));
  void promise.then(() => terminal.hurry());
  return promise;
}

function prepare(
  terminal: Terminal,
  options: Arguments,
  manager: ServiceManager,
): Running & { participant: Participant } {
  const prompt = new Prompt(terminal, {
    isJson: options.json,
    isPipe: options.pipe !== undefined,
    isDirect: options.direct,
  });
  const running = { prompt, terminal, options } as Running & { participant: Participant };
  const onEvent = (event: ParticipantEvent) => {
    running.heard?.(event);
    if (event.event === "registered") manager.ready(`registered as ${event.name}`);
    if (!isNoise(event, options)) prompt.event(event);
  };
  const { name, keepMinutes, direct, portMapping, verbose, stay, verb, waitMs } = options;
  // Who has typed a verb sits there, and may have mistyped the host.
  const patient = (stay && !verb) || waitMs !== undefined;
  const participant = new Participant({
    ...readHostPort(options.introducer!),
    ...{ name, keepMinutes, direct, portMapping, verbose, patient, onEvent },
    room: chooseRoom(options),
    networks: new Networks(stateFolderOrNone()),
    identity: identityOrOneForNow((message) => onEvent({ event: "warning", message })),
  });
  const joined = Promise.withResolvers<void>();
  const keep = keeping(participant, joined.promise);
  const uses = usesOf(participant, keep, running, onEvent);
  return Object.assign(running, { participant, uses, keep, joined });
}

function usesOf(
  participant: Participant,
  keep: Keep,
  { terminal, options }: Pick<Running, "terminal" | "options">,
  onEvent: (event: ParticipantEvent) => void,
): Services {
  const uses = new Services({
    link: (peer) => participant.openLink(peer) ?? keep.linked(peer),
    liveLink: (peer) => {
      const link = participant.openLink(peer);
      if (!link) return keep.linked(peer);
      return link.state === "returning" ? participant.waits.live(peer) : link;
    },
    isPrivate: () => participant.isPrivate,
    canAsk: terminal.isInteractive || options.stay,
    pipesWith:
      options.pipe && !options.pipe.target ? () => participant.nameOf(options.pipe!.peer) : undefined,
    executable: options.executable,
    onProblem: (message) => onEvent({ event: "warning", message }),
    onEvent: (event) => onEvent({ ...event, peer: participant.idOf(event.name) }),
  });
  for (const use of ["forward", "pipe", "files"])
    participant.onStream(use, (stream, from) => uses.take(stream, from));
  return uses;
}

/** Nobody is waited for before we are in the room. */
function keeping(participant: Participant, joined: Promise<void>): Keep {
  return new Keep({
    nameOf: (word) => participant.nameOf(word),
    waitFor: async (name, signal) => {
      await joined;
      await participant.waitFor(name, signal);
    },
    linkWith: (name) => participant.linkWith(name),
    connect: (name) => participant.connect(name),
    whenLinked: (name, signal) => participant.whenLinked(name, signal),
    whenOver: (name, link, signal) => participant.waits.over(name, link, signal),
  });
}

if (import.meta.main) await runProgram(main, [UserError, IdentityError]);
