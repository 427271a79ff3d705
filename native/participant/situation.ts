/**
 * Our situation during one registration: our addresses, how our NAT maps, the port that our router has opened. Owns the
 * mapping, the one queue of measurements, and the watch over the host's addresses. Tells the introducer what it finds out.
 * Decides nothing about the registration, and knows no peer. For native/participant/ and participant.ts.
 *
 * RFC 5382 §4.1, RFC 5780 §4.3 (NAT behaviour), RFC 6887 (port mapping).
 */
import {
  type Endpoint,
  type Filtering,
  formatEndpoint,
  forwardedEndpoint,
  isUntranslated,
  mayOffer,
  scopeOf,
  type Situation as Mapped,
  splitEndpoint,
  type Takes,
  type ToIntroducer,
  type ToParticipant,
  UserError,
} from "../../protocol.ts";
import { planRounds } from "../shares/rounds.ts";
import { verify } from "../host/control.ts";
import { hostAddresses } from "../host/interfaces.ts";
import { sourceTowards } from "../host/routes.ts";
import { hostCandidates } from "../punch/candidates.ts";
import { type Gate, isAsFar } from "../punch/gate.ts";
import { rehearseCandidates } from "../punch/encounter.ts";
import type { PunchContext } from "../punch/context.ts";
import { classifyMapping, type MappingBehaviour, sampleMapping, testHairpinning } from "../punch/mapping.ts";
import { PortMapping, type PortMappingState } from "../punch/portmap.ts";
import { PunchPort } from "../punch/punch-port.ts";
import type { NatReport, ParticipantEvent } from "./events.ts";
import { Measurements } from "./measurements.ts";
import type { Membership } from "./membership.ts";
import { Questions } from "./questions.ts";

/** How often the host's own addresses are looked at. */
const addressWatchMs = 2_000;
/**
 * A mapping that could not be measured, because the probes were busy, is measured again after so long: doubled, up to
 * `most`.
 */
const firstRemeasureMs = 2_000;
const maxRemeasureMs = 120_000;

export type Registered = ToParticipant & { type: "registered" };

/** A connection to the introducer, which has registered us on it. */
interface Connection {
  readonly remote: Endpoint;
  readonly port: number;
  /** The address of this host that it uses, while it is open. */
  readonly localAddress: string | undefined;
  send(message: ToIntroducer): void;
}

export interface SituationOwner {
  emit(event: ParticipantEvent): void;
  /** Whether the router may be asked for a port. */
  readonly mapsPort: boolean;
  /** Whether our router forwards our port to us, by hand. */
  readonly isForwarded: boolean;
  readonly takes: Takes;
  readonly gate: Gate;
  /** How our NAT mapped when we were last here. */
  guess(): MappingBehaviour | undefined;
  measured(behaviour: MappingBehaviour): void;
  /** Our situation has changed: there may be a direct way now where there was none. */
  situationChanged(): void;
  /** The address in use is gone, or the way is another: the old endpoints are dead. */
  addressChanged(reason: string): void;
}

export class Situation {
  readonly questions: Questions;
  /** Written here, read by all others. */
  readonly #context: { -readonly [Field in keyof PunchContext]: PunchContext[Field] };
  /** Where else we connect to be seen: the introducer's other address family, and its second addresses. */
  readonly #verify: Registered["verify"];
  readonly #alternates: readonly Endpoint[];
  readonly #measurements = new Measurements();
  readonly #owner: SituationOwner;
  readonly #connection: Connection;
  /** Our host candidates, as the introducer was told last. */
  #offered: readonly Endpoint[];
  #portMapping: PortMapping | undefined;
  /** Settled once it is known how our NAT maps. */
  #classified: Promise<void> = Promise.resolve();
  #watch: NodeJS.Timeout | undefined;
  #isOver = false;

  constructor(connection: Connection, message: Registered, membership: Membership, owner: SituationOwner) {
    const mayVisit = (endpoint: Endpoint) => owner.gate.admits(endpoint, connection.remote);
    const isHiding = owner.takes === "relayed";
    const probes = isHiding ? [] : probesOf(message, connection).filter(mayVisit);
    const other = isHiding ? undefined : message.verify;
    this.#owner = owner;
    this.#connection = connection;
    this.#offered = offeredBy(connection);
    this.#alternates = isHiding ? [] : message.alternates.filter(mayVisit);
    this.#verify =
      other && isOtherFamily(other.endpoint, connection) && mayVisit(other.endpoint) ? other : undefined;
    this.questions = new Questions((question) => connection.send(question));
    const { credentials, bondKey } = membership;
    const portFor = (port: number) => new PunchPort(port, credentials);
    this.#context = {
      ...{ id: message.id, public: message.public, private: message.private, probeToken: message.probeToken },
      get self() {
        return membership.member;
      },
      ...{ credentials, bondKey, probes, portFor, port: portFor(connection.port) },
      ...{ introducer: connection.remote, takes: owner.takes },
      ...{
        behaviour: isHiding ? undefined : owner.guess(),
        mapped: owner.isForwarded ? forwardedEndpoint(message, connection.port) : undefined,
        roundTripMs: message.roundTripMs,
        segmentClamp: 0,
      },
      send: (told) => connection.send(told),
      measureFresh: (measure) => this.#measurements.beside(measure),
      doubtMapping: () => this.#portMapping?.doubt(),
      handshakeStuck: () => void (this.#context.segmentClamp = this.#context.segmentClamp === 0 ? 1 : 2),
    };
  }

  /** What introductions need of our registration. */
  get context(): PunchContext {
    return this.#context;
  }

  /** The round trip to the introducer, as it has measured it. */
  set roundTripMs(ms: number) {
    this.#context.roundTripMs = ms;
  }

  /** The registration is complete: finds out the rest in the background. */
  begin(): void {
    const { promise: next, resolve } = Promise.withResolvers<void>();
    setImmediate(resolve); // a punch that has come with the registration is first
    this.#classified = next.then(() => (this.#isOver ? undefined : this.#findOut()));
  }

  async #findOut(): Promise<void> {
    this.#watchAddresses();
    if (this.#owner.takes === "relayed") return;
    this.#mapPort();
    return this.#classify(firstRemeasureMs);
  }

  /** The registration is over. Resolves once the port at our router is closed. */
  async close(reason: string): Promise<void> {
    this.#isOver = true;
    clearInterval(this.#watch);
    this.questions.close(reason);
    await this.#portMapping?.close();
  }

  /** Resolves once our mapping has been measured anew. */
  async measureAnew(): Promise<void> {
    await this.#classified;
    if (!this.#isOver) this.#remeasure(firstRemeasureMs / 2);
    await this.#classified;
  }

  /** Finds out what kind of NAT this host is behind. */
  async nat(): Promise<NatReport> {
    const { probes, public: observed, introducer } = this.#context;
    const [probe] = probes;
    if (this.#owner.takes === "relayed")
      throw new UserError("with --only-relay nothing is measured: no link of yours depends on it");
    if (!probe)
      throw new UserError("this introducer has no probe ports (--probe-ports): nothing can be measured");
    await this.#classified;
    const mayHairpin = !isUntranslated(this.#context) && isAsFar(observed, introducer);
    const { port } = this.#context;
    const measured = await this.#measurements.alone(async () => {
      const { last: _, ...behaviour } = await this.#sample();
      const filtered = await port.listenDuring(() => this.questions.connectBack());
      const hairpinning = mayHairpin && (await testHairpinning(port.port, observed, probe));
      return { behaviour, filtered, hairpinning };
    });
    await this.#portMapping?.answered;
    return this.#report(measured);
  }

  #report({ behaviour, filtered, hairpinning }: Measured): NatReport {
    const { filtering, elsewhere } = filtered ?? {};
    const { private: hosts, mapped, public: observed } = this.#context;
    const own = { mapping: behaviour.mapping, private: hosts, public: observed, ...(mapped && { mapped }) };
    return {
      ...behaviour,
      observed,
      scope: scopeOf(observed),
      isTranslated: !isUntranslated(this.#context),
      ...(filtering && { filtering }),
      ...(elsewhere && { filteringElsewhere: elsewhere }),
      hairpinning,
      probes: this.#context.probes,
      ipv6: hosts.some((one) => one.startsWith("[") && scopeOf(one) === "global"),
      ...(this.#portState && { portMapping: this.#portState }),
      expected: expectations(own, filtering),
    };
  }

  // --- how our NAT maps ----------------------------------------------------------------------------------

  /** Never rejects: a failure must not end the registration or the program. */
  async #classify(againInMs: number): Promise<void> {
    try {
      if (this.#context.probes.length > 0) await this.#measure(againInMs);
    } catch (error) {
      const text = error instanceof Error ? error.message : String(error);
      this.#owner.emit({
        event: "warning",
        message: `how our NAT maps could not be measured: ${text}; a link may have to be relayed`,
      });
    }
  }

  /** Learns how our NAT maps, and tells it. Tries again later if the introducer's probe ports do not answer. */
  async #measure(againInMs: number): Promise<void> {
    const measuring = this.#measurements.alone(() => this.#sample());
    measuring.catch(() => {}); // it is awaited below, maybe not before it fails
    this.#showOtherFamily();
    rehearseCandidates(this.#context);
    const { last, ...behaviour } = await measuring;
    if (this.#isOver) return;
    if (behaviour.mapping === "unknown") this.#measureAgain(againInMs);
    const before = this.#context.behaviour;
    this.#context.behaviour = behaviour;
    const { mapping, step } = behaviour;
    if (before && before.mapping !== mapping) this.#owner.situationChanged();
    const prediction = mapping === "sequential" ? { endpoint: last, step } : undefined;
    this.#context.send({ type: "mapping", mapping, ...(prediction && { prediction }) });
    this.#owner.measured(behaviour);
    this.#owner.emit({ event: "mapping", mapping, step });
  }

  /** Samples from the shared port. The caller must be the only one who measures from it now. */
  async #sample(): Promise<MappingBehaviour & { last: Endpoint }> {
    const { introducer, public: observed, probes, port } = this.#context;
    const control = { destination: introducer, observed };
    const samples = await sampleMapping(port.port, control, probes, this.#alternates);
    return { ...classifyMapping(samples, port.port), last: samples.at(-1)!.observed };
  }

  /** Sends `verify`. Nobody waits for the outcome. */
  #showOtherFamily(): void {
    if (!this.#verify) return;
    const { endpoint, token } = this.#verify;
    void verify(this.#context.port.port, endpoint, token).catch(() => {});
  }

  #measureAgain(inMs: number): void {
    setTimeout(() => !this.#isOver && this.#remeasure(inMs), inMs).unref();
  }

  #remeasure(beforeMs: number): void {
    this.#classified = this.#classify(Math.min(2 * beforeMs, maxRemeasureMs));
  }

  // --- the router's port, and our addresses --------------------------------------------------------------

  get #portState(): PortMappingState | undefined {
    const { mapped } = this.#context;
    return this.#owner.isForwarded && mapped
      ? { is: "forwarded", candidate: mapped }
      : this.#portMapping?.state;
  }

  /** Asks the router for a port, in the background. Links that could not be direct may become so. */
  #mapPort(): void {
    const { port, public: observed, send } = this.#context;
    if (this.#owner.isForwarded) {
      const state = this.#portState;
      return state && this.#owner.emit({ event: "port-mapping", state });
    }
    if (!this.#owner.mapsPort || !canBeMapped(this.#context)) return;
    this.#portMapping = new PortMapping({
      internalPort: port.port,
      observed,
      onChange: (state) => {
        this.#owner.emit({ event: "port-mapping", state });
        const mapped = state.is === "mapped" ? state.candidate : undefined;
        if (mapped === this.#context.mapped) return;
        this.#context.mapped = mapped;
        send({ type: "mapped", ...(mapped && { endpoint: mapped }) });
        if (mapped) this.#owner.situationChanged();
      },
    });
  }

  #watchAddresses(): void {
    this.#watch = setInterval(() => void this.#lookAtAddresses(), addressWatchMs);
    this.#watch.unref();
  }

  /**
   * A bridge that comes or goes, a new temporary address: our mapping and all connections stay as they are, and the room is
   * told of the other candidates.
   */
  async #lookAtAddresses(): Promise<void> {
    const { localAddress, remote } = this.#connection;
    const source = await sourceTowards(remote);
    if (this.#isOver || localAddress === undefined) return;
    const hosts = hostAddresses();
    const deviceOf = (one: string | undefined) => hosts.find(({ address }) => address === one)?.device;
    const device = deviceOf(localAddress);
    const isRerouted = source !== undefined && deviceOf(source) !== device;
    if (device === undefined || isRerouted) {
      const is =
        device === undefined ? "is gone" : "is not the one that we use towards the introducer any more";
      return this.#owner.addressChanged(`our address ${localAddress} ${is}`);
    }
    if (this.#owner.takes === "relayed") return;
    const offered = offeredBy(this.#connection);
    if (isSame(offered, this.#offered)) return;
    this.#offered = offered;
    this.#context.private = offered.filter((one) => mayOffer(one, this.#context.public));
    this.#context.send({ type: "update", private: offered });
  }
}

/** Our host candidates, as a connection to the introducer shows which of them matter. */
export function offeredBy({ localAddress, port, remote }: Omit<Connection, "send">): Endpoint[] {
  return hostCandidates(localAddress, port, scopeOf(remote) === "loopback");
}

/** In whatever order. */
function isSame(one: readonly Endpoint[], other: readonly Endpoint[]): boolean {
  return one.length === other.length && one.every((endpoint) => other.includes(endpoint));
}

interface Measured {
  behaviour: MappingBehaviour;
  filtered: (ToParticipant & { type: "filtering" }) | undefined;
  hairpinning: boolean;
}

function probesOf({ probePorts }: Registered, { remote }: Connection): Endpoint[] {
  const { address } = splitEndpoint(remote);
  return probePorts.map((port) => formatEndpoint(address, port));
}

function isOtherFamily(endpoint: Endpoint, { remote }: Connection): boolean {
  return splitEndpoint(endpoint).family !== splitEndpoint(remote).family;
}

/** Whether a router could open a port at the address at which others see us. */
function canBeMapped(context: PunchContext): boolean {
  const { family } = splitEndpoint(context.public);
  return family === 4 && scopeOf(context.public) === "global" && !isUntranslated(context);
}

/** With which kinds of peer in other networks a participant in this situation can link. */
function expectations(own: Mapped, filtering: Filtering | undefined): NatReport["expected"] {
  const elsewhere = formatEndpoint("192.0.2.1", 1);
  const kinds: [string, Mapped][] = [
    ["no NAT", { mapping: "endpoint-independent", private: [elsewhere], public: elsewhere }],
    ["endpoint-independent mapping", { mapping: "endpoint-independent", private: [], public: elsewhere }],
    ["sequential ports", { mapping: "sequential", private: [], public: elsewhere }],
    ["random ports", { mapping: "random", private: [], public: elsewhere }],
  ];
  const isOpen = (isUntranslated(own) && filtering === "let-in") || own.mapped !== undefined;
  const firstWay = (peer: Mapped) => (isOpen ? "direct" : (planRounds(own, peer)[0] ?? "none"));
  return kinds.map(([peer, situation]) => ({ peer, way: firstWay(situation) }));
}
