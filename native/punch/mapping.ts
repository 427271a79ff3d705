/**
 * What kind of NAT this host is behind (RFC 5382 §4.1, RFC 5780 §4.3). Probes go out from the very port that punches
 * use, and a pure function classifies what was seen of them. Owns the descriptor of each probe. Prints nothing. For
 * native/punch/ and participant.ts.
 */
import {
  encode,
  LineDecoder,
  parseToParticipant,
  Refusal,
  splitEndpoint,
  type Endpoint,
  type Mapping,
  type Prediction,
  type ToIntroducer,
} from "../../protocol.ts";
import { SystemError } from "../host/libc.ts";
import { connectFrom, connectShared, handOver, type Socket } from "../host/socket.ts";

/** How long one probe may take. */
const probeTimeoutMs = 3_000;
/**
 * How much longer a probe to a second address may take than the others. Where no introducer answers, it always takes so
 * long. So the introducer can't learn from our timing who else listens there.
 */
export const alternateGraceMs = 250;
/** How long a connection to ourselves may take. It goes to our own NAT and back. */
const hairpinTimeoutMs = 1_500;
/** The largest step, and the most steps between two of our ports: other hosts may have taken ports between them. */
const largestStep = 1024;
const mostForeign = 24;

/** One observation: a connection from our port to `destination` was seen coming from `observed`. */
export interface Sample {
  destination: Endpoint;
  observed: Endpoint;
}

export interface MappingBehaviour {
  mapping: Mapping;
  /** For `sequential`: the difference between two successive external ports. */
  step: number;
  /** Whether the external port is the local one. */
  isPreserved: boolean;
  /** What of the destination the external port depends on; `unknown` without a second address. */
  dependsOn: "nothing" | "address" | "port" | "unknown";
}

/**
 * Classifies samples. They are in the order in which they were taken, and the first is the control connection. What was
 * seen from its address decides. If that was the same for every port, what was seen from a second address decides. Pure.
 */
export function classifyMapping(samples: readonly Sample[], localPort: number): MappingBehaviour {
  const main = samples[0] && splitEndpoint(samples[0].destination).address;
  const isMain = ({ destination }: Sample) => splitEndpoint(destination).address === main;
  const result = classifyPorts(samples.filter(isMain));
  const isPreserved =
    samples.length > 0 && samples.every((one) => splitEndpoint(one.observed).port === localPort);
  const behaviour = { ...result, isPreserved, dependsOn: dependence(samples) };
  if (result.mapping !== "endpoint-independent" || behaviour.dependsOn !== "address") return behaviour;
  const step = stepByAddress(samples, isMain);
  return step === undefined
    ? { ...behaviour, mapping: "random" }
    : { ...behaviour, mapping: "sequential", step };
}

/** The step of a NAT that makes a new mapping for each address; undefined if there is none. */
function stepByAddress(samples: readonly Sample[], isMain: (one: Sample) => boolean): number | undefined {
  const addresses = new Set(samples.map(({ observed }) => splitEndpoint(observed).address));
  if (addresses.size > 1) return undefined;
  const portOf = ({ observed }: Sample) => splitEndpoint(observed).port;
  const elsewhere = samples.filter((one) => !isMain(one)).map(portOf);
  const given = [portOf(samples.findLast(isMain)!), ...elsewhere];
  const steps = given.slice(1).map((port, index) => port - given[index]!);
  const [first = 0, ...others] = steps.filter((one) => one !== 0);
  if (others.length > 0) return commonStep([first, ...others]);
  // One difference alone shows only that the NAT counts. Others may have taken some ports between.
  return Math.abs(first) <= mostForeign ? Math.sign(first) : undefined;
}

/** The mapping by what was seen from one address. */
function classifyPorts(samples: readonly Sample[]): Pick<MappingBehaviour, "mapping" | "step"> {
  const ports = samples.map(({ observed }) => splitEndpoint(observed).port);
  const result = (mapping: Mapping, step: number) => ({ mapping, step });
  if (ports.length < 2) return result("unknown", 0);
  const addresses = new Set(samples.map(({ observed }) => splitEndpoint(observed).address));
  // The control connection may be older than the present behaviour of the NAT. If the probes to several ports agree, they
  // decide.
  const isAgreed = (some: number[]) => new Set(some).size === 1 && addresses.size === 1;
  if (isAgreed(ports) || (ports.length > 2 && isAgreed(ports.slice(1))))
    return result("endpoint-independent", 0);
  // The control connection was made long before the probes, so its port says nothing about the step.
  const probed = ports.slice(1);
  const step =
    addresses.size === 1
      ? (commonStep(differences(probed)) ?? commonStep(differences(inOrder(probed))))
      : undefined;
  return step === undefined ? result("random", 0) : result("sequential", step);
}

function differences(ports: number[]): number[] {
  return ports.slice(1).map((port, index) => port - ports[index]!);
}

/** The ports in the order in which the NAT gave them, if a SYN was lost and repeated. The two halves show the direction. */
function inOrder(ports: number[]): number[] {
  const half = Math.floor(ports.length / 2);
  const mean = (some: number[]) => some.reduce((sum, port) => sum + port, 0) / some.length;
  const sorted = ports.toSorted((a, b) => a - b);
  return mean(ports.slice(half)) >= mean(ports.slice(0, half)) ? sorted : sorted.reverse();
}

/**
 * The step of which all differences are small multiples: others may have taken ports in between. One difference may be
 * another: where the NAT's counter began anew.
 */
function commonStep(differences: number[]): number | undefined {
  const counted = differences.filter((one) => Math.abs(one) <= largestStep);
  const hasBegunAnew = counted.length === differences.length - 1 && counted.length > 1;
  return stepOf(differences) ?? (hasBegunAnew ? stepOf(counted) : undefined);
}

function stepOf(differences: number[]): number | undefined {
  if (differences.length === 0) return undefined;
  const divisor = (a: number, b: number): number => (b === 0 ? Math.abs(a) : divisor(b, a % b));
  const step = differences.reduce(divisor, 0) * Math.sign(differences[0]!);
  if (step === 0 || Math.abs(step) > largestStep) return undefined;
  const isMultiple = (one: number) => one / step >= 1 && one / step <= mostForeign;
  return differences.every(isMultiple) ? step : undefined;
}

/** What of the destination changes the external endpoint: the port, only the address, or neither. */
function dependence(samples: readonly Sample[]): MappingBehaviour["dependsOn"] {
  const byAddress = Map.groupBy(samples, ({ destination }) => splitEndpoint(destination).address);
  const seen = (group: readonly Sample[]) => new Set(group.map(({ observed }) => observed)).size;
  const [main = []] = byAddress.values();
  if (seen(main) > 1) return "port";
  if (seen(samples) > 1) return "address";
  return byAddress.size > 1 ? "nothing" : "unknown";
}

/** The endpoint at which the introducer sees a connection from our shared `port`; undefined if no answer came. */
export async function observe(port: number, destination: Endpoint): Promise<Endpoint | undefined> {
  try {
    using socket = await connectFrom(port, destination, probeTimeoutMs);
    // By RST: after a FIN the port could not be measured again for a minute (TIME_WAIT).
    return await readObserved(socket.closeAbortively());
  } catch (error) {
    if (error instanceof SystemError) return undefined;
    throw error;
  }
}

/**
 * The same from a fresh port, which further sockets may share from then on. It ends with a FIN, because a RST would make
 * the NAT forget the mapping. The introducer has read `says` before its answer reaches us.
 */
export async function observeFresh(
  destination: Endpoint,
  says?: ToIntroducer & { type: "probe" },
): Promise<{ port: number; observed: Endpoint } | undefined> {
  try {
    const { socket, port } = await connectShared(destination, probeTimeoutMs);
    const observed = await readObserved(socket, says);
    return observed && { port, observed };
  } catch (error) {
    if (error instanceof SystemError) return undefined;
    throw error;
  }
}

/** Takes over the socket. */
async function readObserved(
  socket: Socket,
  says?: ToIntroducer & { type: "probe" },
): Promise<Endpoint | undefined> {
  const { promise, resolve } = Promise.withResolvers<Endpoint | undefined>();
  const decoder = new LineDecoder();
  let timer: NodeJS.Timeout | undefined;
  const connection = await handOver(socket, {
    data: (_, chunk) => readAnswer(decoder, chunk, resolve),
    close: () => {
      clearTimeout(timer);
      resolve(undefined);
    },
    error: () => resolve(undefined),
  });
  if (says) connection.write(encode(says));
  timer = setTimeout(() => {
    resolve(undefined);
    connection.terminate();
  }, probeTimeoutMs);
  timer.unref();
  return promise.finally(() => connection.end());
}

/** Resolves with the first line that has come. */
function readAnswer(
  decoder: LineDecoder,
  chunk: Uint8Array,
  resolve: (observed: Endpoint | undefined) => void,
): void {
  try {
    for (const line of decoder.push(chunk)) {
      const message = parseToParticipant(line);
      return resolve(message.type === "observed" ? message.endpoint : undefined);
    }
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    resolve(undefined);
  }
}

/**
 * Takes samples towards the probe endpoints, in order. If they show that the mapping depends on the destination, it takes a
 * second round, so that a step can be told from chance. Probes to the introducer's second address are not waited for long:
 * it may not be reachable.
 */
export async function sampleMapping(
  port: number,
  control: Sample,
  probes: readonly Endpoint[],
  alternates: readonly Endpoint[] = [],
): Promise<Sample[]> {
  const samples: Sample[] = [control];
  // All at once, so that nobody else's connection gets a port in between.
  const round = async () => {
    const main = probes.map((destination) => observe(port, destination));
    const isLate = Promise.all(main).then(() => Bun.sleep(alternates.length > 0 ? alternateGraceMs : 0));
    const others = alternates.map((destination) => {
      const seen = observe(port, destination).then((observed) => observed ?? isLate.then(() => undefined));
      return Promise.race([seen, isLate.then(() => undefined)]);
    });
    const seen = await Promise.all([...main, ...others]);
    seen.forEach((observed, index) => {
      if (observed) samples.push({ destination: [...probes, ...alternates][index]!, observed });
    });
  };
  await round();
  if (samples.some(({ observed }) => observed !== control.observed)) await round();
  return samples;
}

/**
 * Measures where a sequential NAT stands now, from a fresh port. The introducer has read `says` before we have the
 * answer.
 */
export async function predict(
  probe: Endpoint,
  step: number,
  says?: ToIntroducer & { type: "probe" },
): Promise<Prediction | undefined> {
  const fresh = await observeFresh(probe, says);
  return fresh && { endpoint: fresh.observed, step };
}

/**
 * Hairpinning (RFC 5382 §7): whether two ports of ours reach each other by their external endpoints. Both connect at once,
 * because a NAT that filters lets in only endpoints that we have called.
 */
export async function testHairpinning(port: number, external: Endpoint, probe: Endpoint): Promise<boolean> {
  const other = await observeFresh(probe);
  // Whoever answers the probe must not choose the address that we call.
  const address = (endpoint: Endpoint) => splitEndpoint(endpoint).address;
  if (!other || address(other.observed) !== address(external)) return false;
  const attempts = [
    connectFrom(port, other.observed, hairpinTimeoutMs),
    connectFrom(other.port, external, hairpinTimeoutMs),
  ];
  const outcomes = await Promise.allSettled(attempts);
  for (const outcome of outcomes) if (outcome.status === "fulfilled") outcome.value.abort();
  return outcomes.some(({ status }) => status === "fulfilled");
}
