/**
 * One round of an introduction: who measures, how long it lasts, and where it aims if a NAT has gone on. Pure, but for the
 * sides that it is given. For native/introducer/.
 */
import { formatEndpoint, predictedPorts, type Prediction, splitEndpoint, type Way } from "../../protocol.ts";
import { predictPort } from "../shares/rounds.ts";
import type { Limits } from "./limits.ts";
import type { Member } from "./session.ts";

/** A report may come so long after the deadline of the punch. */
export const reportGraceMs = 2000;

/** The longest delay of a start, whatever round trip a participant pretends to have. */
const maxStartInMs = 2000;

/**
 * A round lasts so many round trips, and a little more. A round trip here is the sum of both sides' to the introducer: the
 * one between the two is no longer.
 */
const roundRoundTrips: Record<Way, number> = { direct: 4, predicted: 2, birthday: 3, fresh: 4 };
/** A SYN that was lost is repeated by the kernel after a second, and must count in a `predicted` round. */
const roundSpareMs: Record<Way, number> = { direct: 500, predicted: 1100, birthday: 400, fresh: 1500 };
const trialSpareMs = 200;

/** If less than this is left, there is no further round. */
const shortestRoundMs = 500;

/** One of the two in an introduction. */
export interface Side {
  readonly member: Member;
  /** What it has said of the present round; undefined if it has not said anything yet. */
  report: "linked" | "failed" | undefined;
  isMeasuring: boolean;
  prediction: Prediction | undefined;
  /** A measurement that came while it was punching by an older one. */
  newer: Prediction | undefined;
}

export function sideOf(member: Member): Side {
  return {
    member,
    report: undefined,
    isMeasuring: false,
    prediction: undefined,
    newer: undefined,
  };
}

/** How long each side waits, so that both start at the same moment. By the one-way delays from the introducer. */
export function startDelays(a: number | undefined, b: number | undefined): [number, number] {
  const [delayA, delayB] = [Math.round((a ?? 0) / 2), Math.round((b ?? 0) / 2)];
  const last = Math.max(delayA, delayB);
  return [Math.min(last - delayA, maxStartInMs), Math.min(last - delayB, maxStartInMs)];
}

/** How long an introduction may take in all, with what is said of it at the end. */
export function introductionMs({ punchDeadlineMs: mostMs }: Limits): number {
  return mostMs + maxStartInMs + reportGraceMs;
}

/**
 * How long a round of that plan may last, and whether no other follows: told in its `punch`, and held to.
 * `roundTripMs`: the sum of both sides'; `leftMs`: what is left of the introduction.
 */
export function roundLength(plan: readonly Way[], at: number, roundTripMs: number, leftMs: number) {
  const way = plan[at]!;
  // An open host accepts within one round trip, or not at all.
  const isTrial = way === "direct" && plan[at + 1] === "birthday";
  const roundMs = isTrial
    ? 2 * roundTripMs + trialSpareMs
    : roundTripMs * roundRoundTrips[way] + roundSpareMs[way];
  const isLast = at === plan.length - 1 || leftMs - roundMs < shortestRoundMs;
  return { isLast, deadlineMs: Math.max(1, Math.round(isLast ? leftMs : roundMs)) };
}

export function counts({ member }: Side): boolean {
  return member.peer.mapping === "sequential";
}

/** Resets the sides for a new round. Returns those who measure before it. */
export function beginRound(sides: readonly Side[], way: Way): Side[] {
  for (const side of sides) {
    side.report = side.prediction = side.newer = undefined;
    side.isMeasuring = way === "fresh" || (way === "predicted" && (counts(side) || !sides.some(counts)));
  }
  return sides.filter(({ isMeasuring }) => isMeasuring);
}

/** Lets the round aim at what was measured meanwhile. Returns by how many ports beyond that. */
export function aimAnew(sides: readonly Side[]): number {
  // If both NATs count, each has used as many ports as it has tried since it was measured.
  const used = sides.every(({ newer }) => newer) ? predictedPorts : 0;
  for (const side of sides) {
    const { newer } = side;
    side.report = side.newer = undefined;
    if (!newer) continue;
    const { address } = splitEndpoint(newer.endpoint);
    side.prediction = { ...newer, endpoint: formatEndpoint(address, predictPort(newer, used)) };
  }
  return used;
}
