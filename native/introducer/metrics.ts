/**
 * What an introducer counts, and how it is shown: as numbers, and as Prometheus reads it. Owns the counters. It knows no
 * session and no participant: no name, room or address is in the page. For introducer.ts and native/terminal/.
 *
 * Prometheus text format 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats/).
 */
import type { FailureReason, RefusalCode, Way } from "../../protocol.ts";

import { type ProcessUse, processUse } from "../host/process-use.ts";
import type { ShownLimits } from "./limits.ts";
import type { RelayUse } from "./relay-use.ts";

/** Upper bounds in ms: from a round trip in a LAN to the deadline of a punch. */
const linkBoundsMs = [50, 100, 200, 500, 1000, 2000, 5000, 10_000, 15_000];
/**
 * Upper bounds in ms: from what nobody notices, to what spoils a simultaneous start, to what makes participants give
 * up.
 */
const delayBoundsMs = [1, 2, 5, 10, 20, 50, 100, 500, 2000];
/** The outcome of an introduction. `superseded`: its asker has asked again meanwhile. */
export type Outcome = "linked" | "superseded" | FailureReason;
/** The way of the round in which it ended; `none`: there was no round. */
export type OutcomeWay = Way | "relay" | "none";

/** For each bound, how many values were not above it. The last number counts all. */
export interface HistogramCounts {
  boundsMs: readonly number[];
  counts: readonly number[];
  sumMs: number;
}

/** The present state, in contrast to what was counted. */
export interface Gauges {
  participants: number;
  rooms: number;
  connections: number;
  /** Connections of which too much was read lately. */
  waiting: number;
  relays: number;
  relayedBytes: number;
  /** Who was relayed most, those first. Names are not for the page that others may read. */
  relayUses: RelayUse[];
  limits: ShownLimits;
  /** Whether Redis can be reached; undefined if there is none. */
  isShared?: boolean;
}

export interface Stats extends Gauges, ProcessUse {
  uptimeMs: number;
  joins: number;
  introductions: { outcome: Outcome; way: OutcomeWay; count: number }[];
  /** The time from `connect` until the second side says that it is linked. */
  linkMs: HistogramCounts;
  refusals: { code: RefusalCode; count: number }[];
  /** Connections closed at once, because their address has too many or takes too much. */
  turnedAway: number;
  /** How late the timer was. */
  eventLoopDelayMs: HistogramCounts;
}

export class Histogram {
  readonly #boundsMs: readonly number[];
  readonly #counts: number[];
  #sumMs = 0;

  constructor(boundsMs: readonly number[]) {
    this.#boundsMs = boundsMs;
    this.#counts = Array<number>(boundsMs.length + 1).fill(0);
  }

  add(ms: number): void {
    const index = this.#boundsMs.findIndex((bound) => ms <= bound);
    this.#counts[index === -1 ? this.#boundsMs.length : index]! += 1;
    this.#sumMs += ms;
  }

  read(): HistogramCounts {
    let sum = 0;
    return {
      boundsMs: this.#boundsMs,
      counts: this.#counts.map((count) => (sum += count)),
      sumMs: this.#sumMs,
    };
  }
}

/**
 * The bound that this part of all values does not exceed. Infinity beyond the last bound; undefined if there are no
 * values.
 */
export function quantile({ boundsMs, counts }: HistogramCounts, part: number): number | undefined {
  const all = counts.at(-1)!;
  if (all === 0) return undefined;
  return boundsMs[counts.findIndex((count) => count >= all * part)] ?? Infinity;
}

export class Metrics {
  readonly #startedAt = performance.now();
  readonly #introductions = new Map<string, { outcome: Outcome; way: OutcomeWay; count: number }>();
  readonly #linkMs = new Histogram(linkBoundsMs);
  readonly #refusals = new Map<RefusalCode, number>();
  readonly #delayMs = new Histogram(delayBoundsMs);
  #joins = 0;
  #turnedAway = 0;

  joined(): void {
    this.#joins += 1;
  }

  refused(code: RefusalCode): void {
    this.#refusals.set(code, (this.#refusals.get(code) ?? 0) + 1);
  }

  turnedAway(): void {
    this.#turnedAway += 1;
  }

  introduced(outcome: Outcome, way: OutcomeWay, elapsedMs: number): void {
    const key = `${outcome} ${way}`;
    const known = this.#introductions.get(key) ?? { outcome, way, count: 0 };
    this.#introductions.set(key, { ...known, count: known.count + 1 });
    if (outcome === "linked") this.#linkMs.add(elapsedMs);
  }

  ticked(lateMs: number): void {
    this.#delayMs.add(Math.max(0, lateMs));
  }

  read(gauges: Gauges): Stats {
    return {
      ...gauges,
      uptimeMs: performance.now() - this.#startedAt,
      joins: this.#joins,
      introductions: [...this.#introductions.values()],
      linkMs: this.#linkMs.read(),
      refusals: [...this.#refusals].map(([code, count]) => ({ code, count })),
      turnedAway: this.#turnedAway,
      ...processUse(),
      eventLoopDelayMs: this.#delayMs.read(),
    };
  }
}

// --- Prometheus ------------------------------------------------------------------------------------------

type Sample = [labels: Record<string, string>, value: number];

function line(name: string, labels: Record<string, string>, value: number): string {
  const escaped = (text: string) => text.replace(/[\\"]/g, "\\$&").replaceAll("\n", "\\n");
  const pairs = Object.entries(labels).map(([label, text]) => `${label}="${escaped(text)}"`);
  return `${name}${pairs.length > 0 ? `{${pairs.join(",")}}` : ""} ${String(value).replace("Infinity", "+Inf")}`;
}

function family(name: string, type: "gauge" | "counter", help: string, samples: Sample[]): string[] {
  const lines = samples.map(([labels, value]) => line(name, labels, value));
  return [`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`, ...lines];
}

/** In seconds: Prometheus wants base units. */
function histogram(name: string, help: string, { boundsMs, counts, sumMs }: HistogramCounts): string[] {
  const bound = (index: number) => String((boundsMs[index] ?? Infinity) / 1000).replace("Infinity", "+Inf");
  return [
    `# HELP ${name} ${help}`,
    `# TYPE ${name} histogram`,
    ...counts.map((count, index) => line(`${name}_bucket`, { le: bound(index) }, count)),
    line(`${name}_sum`, {}, sumMs / 1000),
    line(`${name}_count`, {}, counts.at(-1)!),
  ];
}

function gauge(name: string, help: string, value: number | undefined): string[] {
  return value === undefined ? [] : family(name, "gauge", help, [[{}, value]]);
}

function counter(name: string, help: string, value: number): string[] {
  return family(name, "counter", help, [[{}, value]]);
}

/** The whole page. */
export function renderPrometheus(stats: Stats, version: string): string {
  const { uptimeMs, participants, rooms, connections, waiting, relays, isShared } = stats;
  const { limits, descriptors } = stats;
  const introductions = stats.introductions.map(({ outcome, way, count }): Sample => [
    { outcome, way },
    count,
  ]);
  const refusals = stats.refusals.map(({ code, count }): Sample => [{ code }, count]);
  const shared = isShared === undefined ? undefined : Number(isShared);
  const lines = [
    family("introducer_build_info", "gauge", "The version that runs.", [[{ version }, 1]]),
    gauge("introducer_uptime_seconds", "Since it was started.", uptimeMs / 1000),
    gauge("introducer_participants", "Registered at this introducer now.", participants),
    gauge("introducer_rooms", "With somebody in them now.", rooms),
    gauge("introducer_connections", "Open now, registered or not.", connections),
    gauge("introducer_waiting_connections", "Not read now, because they take too much.", waiting),
    gauge("introducer_relays", "Relayed links now.", relays),
    gauge("introducer_connections_limit", "As many are taken.", limits.connections),
    gauge("introducer_relays_limit", "As many are relayed.", limits.relays),
    gauge("introducer_relay_bytes_per_second_limit", "Of all relayed links.", limits.relayTotal),
    gauge("introducer_rooms_shared", "Whether Redis can be reached.", shared),
    counter("introducer_relayed_bytes_total", "Of all relayed links.", stats.relayedBytes),
    counter("introducer_joins_total", "Registrations.", stats.joins),
    counter("introducer_turned_away_total", "Connections closed without a word.", stats.turnedAway),
    family(
      "introducer_introductions_total",
      "counter",
      "By what became of them and in which way.",
      introductions,
    ),
    family("introducer_refusals_total", "counter", "By the code that was sent.", refusals),
    histogram("introducer_link_seconds", "From being asked for to both being linked.", stats.linkMs),
    histogram("introducer_event_loop_delay_seconds", "How late a timer was.", stats.eventLoopDelayMs),
    gauge("process_resident_memory_bytes", "Resident memory.", stats.residentBytes),
    counter("process_cpu_seconds_total", "Of the processor.", stats.processorMs / 1000),
    gauge("process_open_fds", "Descriptors that are open.", descriptors?.open),
    gauge("process_max_fds", "Descriptors that may be open.", descriptors?.most),
  ].flat();
  return `${lines.join("\n")}\n`;
}
