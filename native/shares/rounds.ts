/**
 * By which ways two participants may meet, in which order, and where a NAT that counts will stand. Pure: both programs
 * reckon with it. RFC 5128 §3.4, §3.6. Anything may import it.
 */
import {
  birthdayPorts,
  isUntranslated,
  predictedPorts,
  type Prediction,
  scopeOf,
  type Situation,
  splitEndpoint,
  type Way,
} from "../../protocol.ts";

/** Of these, how many must still be left when a round goes by an older measurement. */
const predictedMargin = 3;

/** Rounds of one way before the next way is tried. */
export const roundsPerWay = 3;

/** Whether its external port is another one for every destination. */
export function isDependent({ mapping }: Pick<Situation, "mapping">): boolean {
  return mapping === "sequential" || mapping === "random";
}

/** The ways of all rounds between two participants, in order; none when no direct link can be expected. */
export function planRounds(a: Situation, b: Situation): Way[] {
  const rounds = (way: Way, times = roundsPerWay) => Array<Way>(times).fill(way);
  const dependent = [a, b].filter(isDependent);
  const isRandom = dependent.some(({ mapping }) => mapping === "random");
  if (dependent.length === 0) {
    const canMeasure = a.mapping !== "unknown" && b.mapping !== "unknown";
    // A mapping that depends on the address looks endpoint-independent from the one address of an introducer.
    return canMeasure ? ["direct", "fresh", "predicted", "fresh"] : ["direct"];
  }
  const isMapped = a.mapped !== undefined || b.mapped !== undefined;
  if (dependent.length === 2) {
    if (!isRandom) return rounds("predicted", 2 * roundsPerWay);
    return canMeetWithoutNat(a, b) || isMapped ? ["direct"] : [];
  }
  if (!isRandom) return [...rounds("predicted"), ...rounds("birthday")];
  // A host without NAT, or with an open port, may well accept the first SYN, wherever it comes from.
  const mayBeLetIn = isMapped || isUntranslated(a) || isUntranslated(b);
  return mayBeLetIn ? ["direct", ...rounds("birthday")] : rounds("birthday");
}

/** Behind one NAT the private addresses may reach, and IPv6 is not translated. */
function canMeetWithoutNat(a: Situation, b: Situation): boolean {
  const hasIPv6 = (side: Situation) =>
    side.private.some((one) => one.startsWith("[") && scopeOf(one) === "global");
  return splitEndpoint(a.public).address === splitEndpoint(b.public).address || (hasIPv6(a) && hasIPv6(b));
}

/**
 * Whether what a round aims at, by an older measurement, still lies before a NAT that stands at `now`: far enough, too,
 * that others may take some ports before our SYN does.
 */
export function isAhead(aim: Prediction, now: Prediction): boolean {
  const wanted = predictPort(aim, predictedPorts);
  for (let count = 1 + predictedMargin; count <= predictedPorts; count++)
    if (predictPort(now, count) === wanted) return true;
  return false;
}

/** The port `count` mappings later, in the range that NATs draw from. */
export function predictPort({ endpoint, step }: Prediction, count: number): number {
  const { first, last } = birthdayPorts;
  const size = last - first + 1;
  return first + ((((splitEndpoint(endpoint).port - first + step * count) % size) + size) % size);
}
