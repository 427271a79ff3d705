/**
 * The parts of one participant, and how they are joined. Owns them, and that it has quit. For participant.ts.
 */
import { otherStartedAs } from "../host/started.ts";
import { identityOrOneForNow } from "../secure/identity.ts";
import type { Link } from "../session/link.ts";
import { canonicalWords } from "../secure/words.ts";
import { Pace } from "../shares/pace.ts";
import { resetCodes } from "../session/stream.ts";
import { allUses, Services } from "../uses/services.ts";
import { defaultKeepMinutes, type ParticipantEvent, type ParticipantOptions } from "./events.ts";
import { Hearing } from "./hearing.ts";
import { Keep } from "./keep.ts";
import { Listeners } from "./listeners.ts";
import { idOf } from "./meant.ts";
import { Membership } from "./membership.ts";
import { Naming } from "./naming.ts";
import type { RemotePeer } from "./peer.ts";
import { Registration } from "./registration.ts";
import { Roster } from "./roster.ts";
import { Takers } from "./takers.ts";
import { hasQuit } from "./refused.ts";

export class Parts {
  readonly listeners: Listeners;
  readonly membership: Membership;
  readonly takers: Takers;
  readonly roster: Roster;
  readonly registration: Registration;
  readonly keep: Keep;
  readonly uses: Services;
  readonly #options: ParticipantOptions;
  #keepers = 0;
  #quitting: Promise<void> | undefined;

  constructor(options: ParticipantOptions) {
    this.#options = options;
    this.listeners = new Listeners(options.onEvent);
    const identity = options.identity ?? identityOrOneForNow((message) => this.#warn(message));
    this.membership = new Membership(identity, options.name, options.room, options.known);
    this.takers = new Takers((message) => this.emit({ event: "error", message }));
    this.roster = this.#newRoster();
    this.registration = this.#newRegistration();
    this.keep = this.#newKeep();
    this.uses = this.#newUses();
    for (const use of allUses) this.takers.set(use, (stream, from) => this.uses.take(stream, from));
  }

  readonly emit = (event: ParticipantEvent): void => this.listeners.emit(event);

  #warn(message: string): void {
    this.emit({ event: "warning", message });
  }

  get hasQuit(): boolean {
    return this.#quitting !== undefined;
  }

  mustGoOn(): void {
    if (this.hasQuit) throw hasQuit();
  }

  /** The user means that peer: if it is linked with us, its name is bound to its certificate from now on. */
  met(peer: RemotePeer): RemotePeer {
    if (peer.link) this.membership.met(peer);
    return peer;
  }

  /** A name of its own for who keeps a link. */
  newWant(): string {
    return `keeper ${++this.#keepers}`;
  }

  /** Ends all there is, in order. The same for all who call it. */
  quit(): Promise<void> {
    return (this.#quitting ??= this.#quit());
  }

  async #quit(): Promise<void> {
    await Promise.resolve(); // so that all know that we have quit
    this.keep.close();
    this.roster.waits.wake(); // whoever waits for somebody waits in vain
    await this.uses.close();
    await Promise.all([...this.roster].map((peer) => peer.quit()));
    await this.registration.quit();
    this.listeners.close();
  }

  #newRoster(): Roster {
    const parts = this;
    const { verbose = false, keepMinutes = defaultKeepMinutes } = this.#options;
    const context = () => this.registration.situation?.context;
    const owner = {
      emit: this.emit,
      self: this.membership,
      id: () => context()?.id,
      distrust: (peer: Parameters<Membership["distrust"]>[0]) => this.membership.distrust(peer),
      tooMany: () => this.registration.close("it names more peers than a room can have"),
      get isListed() {
        return parts.registration.is === "registered";
      },
      get hasQuit() {
        return parts.hasQuit;
      },
    };
    return new Roster(owner, {
      ...{ context, emit: this.emit, isVerbose: verbose, keepMs: keepMinutes * 60_000 },
      stream: (peer, stream, purpose) => {
        if (this.hasQuit) stream.reset("it has quit", resetCodes.refused);
        else this.takers.give(peer, stream, purpose);
      },
      threw: ({ name }, error) => this.takers.threw(name, "a stream", error),
      measureAnew: async () => this.registration.situation?.measureAnew(),
    });
  }

  #newRegistration(): Registration {
    const {
      host,
      port,
      localPort,
      key,
      onlyRelay = false,
      direct = false,
      portMapping = true,
      patient = false,
      networks,
    } = this.#options;
    const naming = new Naming(this.membership, {
      peers: this.roster,
      send: (message) => this.registration.situation?.context.send(message),
    });
    const close = (reason: string) => this.registration.close(reason);
    const startCommand = otherStartedAs("introducer");
    return new Registration(
      {
        ...{
          host,
          localPort,
          startCommand,
          direct,
          onlyRelay,
          key: key && canonicalWords(key),
          portMapping,
          networks,
          isPatient: patient,
        },
        ...(port !== undefined && { port }),
      },
      this.membership,
      new Hearing(this.roster, naming, this.emit, close),
    );
  }

  /** Nobody is waited for before we are in the room. */
  #newKeep(): Keep {
    const { roster } = this;
    const isIn = () => this.registration.is === "registered" || undefined;
    return new Keep({
      nameOf: (word) => roster.nameOf(word),
      waitFor: async (name, signal) => {
        await roster.waits.until(isIn, signal);
        await roster.waits.for(name, signal);
      },
      linkWith: (name) => this.met(roster.find(name)).link,
      connect: async (name) => {
        const peer = roster.findUnlike(name);
        const link = await peer.connect();
        this.met(peer);
        return link;
      },
      whenLinked: (name, signal) => roster.waits.until(() => roster.linked(name)?.link, signal),
      whenOver: (name, link, signal) => roster.waits.over(name, link, signal),
    });
  }

  #newUses(): Services {
    const { canAsk = false, executable = false, exclude = [], bytesPerSecond } = this.#options;
    const link = (peer: string): Link | Promise<Link> =>
      this.roster.linked(peer)?.link ?? this.keep.linked(peer);
    return new Services({
      ...{ link, canAsk, executable, exclude, pace: new Pace(bytesPerSecond) },
      liveLink: (peer) => {
        const found = link(peer);
        const isGone = "state" in found && found.state === "returning";
        return isGone ? this.roster.waits.live(peer) : found;
      },
      isPrivate: () => this.membership.isPrivate,
      isMeant: (whom, peer) => this.membership.isMeant(whom, peer),
      remembers: this.#options.known !== undefined,
      onProblem: (message) => this.#warn(message),
      onEvent: (event) => this.emit({ ...event, peer: idOf(this.roster, event.name) }),
    });
  }
}
