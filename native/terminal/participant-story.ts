/**
 * What each of a participant's events says to a person. Pure. For native/terminal/ and participant.ts.
 */
import type { Transfer, UseEvent } from "../uses/services.ts";
import type { PeerEvent, PeerRow } from "../participant/peer-events.ts";
import { bytes, type Colors, count, ms } from "./text.ts";
import {
  age,
  defaultRoom,
  type FailureReason,
  failureReasons,
  printable,
  type Route,
  unlinkReasons,
} from "../../protocol.ts";
import type { ParticipantEvent, RoomKind, Self } from "../participant/events.ts";
import { portMappingWords } from "./participant-nat.ts";

type EventOf<Kind extends ParticipantEvent["event"]> = Extract<ParticipantEvent, { event: Kind }>;

/** The text of an event for people; undefined if it is for programs only. */
export function describe(event: ParticipantEvent, c: Colors): string | undefined {
  switch (event.event) {
    case "registered":
      return (
        `${c.green("registered")} as ${c.bold(printable(event.name))} (${event.id}) in ${roomWords(event.room)}\n` +
        `  private ${event.private.join(", ") || "none"}\n  public  ${event.public}`
      );
    case "peers":
      return describePeers(event.peers);
    case "named":
      return `${c.bold(printable(event.name))} is free: others call you so again, and not ${printable(event.was)}`;
    case "renamed":
      return `${printable(event.was)} (${event.peer}) is called ${c.bold(printable(event.name))} now`;
    case "mapping":
      return `our mapping: ${event.mapping}${event.step === 0 ? "" : `, step ${event.step}`}`;
    case "port-mapping":
      return event.state.is === "mapped" ? `our router: ${portMappingWords(event.state)}` : undefined;
    case "nat": // shown as a result
    case "updated":
      return undefined;
    case "waiting":
      return `${printable(event.text)} …`;
    case "absent": {
      const more = event.more === undefined ? "" : ` and ${event.more} more`;
      const here =
        event.here.length > 0 ? `here: ${event.here.map(printable).join(", ")}${more}` : "nobody is";
      return `${c.yellow(`${printable(event.name)} is not here`)}; ${here}`;
    }
    case "alone":
      return `${c.yellow("nobody else has used these words")}: does the other side have the same, and this introducer?`;
    case "echo":
      return `the introducer answered after ${ms(event.rttMs)}${event.text && `: ${printable(event.text)}`}`;
    case "notice":
      return `${c.magenta("[introducer]")} ${printable(event.text)}`;
    case "introducer": {
      const next =
        event.retryInMs === undefined ? "" : `; trying again in ${(event.retryInMs / 1000).toFixed(1)} s`;
      return `${c.yellow(`introducer ${event.state}`)}: ${printable(event.reason)}${next}`;
    }
    case "warning":
      return `${c.yellow("warning")}: ${printable(event.message)}`;
    case "error":
      return `${c.red("error")}: ${printable(event.message)}`;
    case "forwarding":
    case "forward-refused":
    case "offered":
    case "transferring":
    case "transferred":
    case "transfer-failed":
      return describeUse(event, c);
    default:
      return describePeer(event, c);
  }
}

/** Events of one peer. */
function describePeer(event: PeerEvent | EventOf<"joined" | "left">, c: Colors): string {
  const who = `${c.bold(printable(event.name))} (${event.peer ?? "not in the room"})`;
  switch (event.event) {
    case "joined":
      return `${who} joined from ${event.public}`;
    case "left":
      return `${who} left`;
    case "punching":
      return `${c.yellow("punching")} towards ${who}, ${event.role}, ${event.way}, round ${event.round}`;
    case "attempt":
      return c.dim(
        `  ${event.atMs.toFixed(1).padStart(8)} ms  :${event.localPort} → ${event.remote} ${event.route}: ${printable(event.outcome)}`,
      );
    case "linked":
      return `${c.green("linked")} with ${who} by ${routeWords(event.route, c)}: ${event.local} → ${event.remote}, ${ms(event.elapsedMs)}`;
    case "failed":
      return `${c.red("failed")} to link with ${who}: ${failureReasons[event.reason]} (${event.reason})\n  ${c.dim(`${printable(event.detail)}${natMayTell.has(event.reason) ? "; `nat` tells what kind of NAT you are behind" : ""}`)}`;
    case "unlinked":
      return `${c.yellow("unlinked")} from ${who}: ${unlinkReasons[event.reason]}${event.detail && ` (${printable(event.detail)})`}`;
    case "broken":
      return `${c.yellow("broken")}: the connection with ${who} (${printable(event.reason)}); what is under way waits`;
    case "moved": {
      const gap = event.gapMs < 1 ? "without a gap" : `after ${ms(event.gapMs)}`;
      return `${c.green("moved")} with ${who} to ${routeWords(event.route, c)}: ${event.local} → ${event.remote}, ${gap}`;
    }
    case "said":
      return `${c.cyan(`<${printable(event.name)}>`)} ${printable(event.text)}`;
    case "sent":
      return `${who} has it after ${ms(event.rttMs)}`;
    case "pong":
      return `${who} answered after ${ms(event.rttMs)}`;
  }
}

/** Events of forwards and files. */
function describeUse(event: UseEvent, c: Colors): string {
  const name = c.bold(printable(event.name));
  switch (event.event) {
    case "forwarding":
      return `forwarding ${event.listen} → ${name} → ${event.target}`;
    case "forward-refused": {
      const whose = event.by === "us" ? `${name} may not reach` : `${name} does not let us reach`;
      const more = event.more === undefined ? "" : `; and ${count(event.more, "other")} like it`;
      return `${c.yellow("refused")}: ${whose} ${printable(event.target)}: ${printable(event.reason)}${more}`;
    }
    case "offered": {
      const head = `${name} offers ${offerWords(event)}: accept ${event.offer} | refuse ${event.offer}`;
      return [head, ...listingLines(event, c)].join("\n");
    }
    case "transferring": {
      if (event.direction === "sending")
        return `sending ${printable(event.what)}, ${bytes(event.bytes)}, to ${name}`;
      return [`receiving ${offerWords(event)}, from ${name}`, ...listingLines(event, c)].join("\n");
    }
    case "transferred":
      return describeTransferred(event, c);
    case "transfer-failed":
      return `${c.red("failed")} ${event.direction} ${printable(event.what)}: ${printable(event.reason)}`;
  }
}

function offerWords({ what, files, bytes: total }: { what: string; files: number; bytes: number }): string {
  const many = files === 1 ? "" : ` (${files} files)`;
  return `${printable(what)}${many}, ${bytes(total)}`;
}

/** The list of an offer, which the user sees before accepting it. */
function listingLines(event: UseEvent & { event: "offered" | "transferring" }, c: Colors): string[] {
  const { what, storedAs, paths = [], more = 0, odd = [], moreOdd = 0 } = event;
  const isAlone = more === 0 && paths.length === 1 && paths[0] === what;
  return [
    ...(isAlone ? [] : paths.map((path) => `  ${printable(path)}`)),
    ...(more > 0 ? [`  and ${more} more`] : []),
    ...odd.map(({ path, why }) => `  ${c.yellow("odd")}: ${printable(path)}: ${why}`),
    ...(moreOdd > 0 ? [`  ${c.yellow("odd")}: and ${moreOdd} more`] : []),
    ...(storedAs !== undefined && storedAs !== what ? [`  stored as ${printable(storedAs)}`] : []),
  ];
}

const routeWords = (route: Route, c: Colors) => (route === "relay" ? c.yellow(route) : route);

const natMayTell: ReadonlySet<FailureReason> = new Set([
  "no-candidate-answered",
  "both-mappings-random",
  "timed-out",
] as const);

function describeTransferred(event: ParticipantEvent & { event: "transferred" }, c: Colors): string {
  const { direction, what, storedAs = what, files, failed, failures, elapsedMs } = event;
  const rate = `${bytes(event.bytes)} in ${(elapsedMs / 1000).toFixed(1)} s, ${bytes((event.bytes / elapsedMs) * 1000)}/s`;
  const done = `${c.green(direction === "sending" ? "sent" : "received")} ${printable(what)}${storedAs === what ? "" : ` as ${printable(storedAs)}`}: ${count(files, "file")}, ${rate}, SHA-256 compared`;
  if (failed === 0) return done;
  const lines = failures.slice(0, 10).map(({ path, reason }) => `  ${printable(path)}: ${printable(reason)}`);
  return [`${done}; ${c.red(`${count(failed, "file")} failed`)}`, ...lines].join("\n");
}

/** A transfer as a line of the status. */
export function transferLine({ direction, name, what, progress, startedAt }: Transfer, now: number): string {
  const { bytes: total, bytesDone, bytesMoved } = progress;
  const rate = bytesMoved / Math.max(0.001, (now - startedAt) / 1000);
  const leftS = rate > 0 ? Math.ceil((total - bytesDone) / rate) : undefined;
  const left = leftS === undefined ? "" : `, ${age(leftS * 1000)} left`;
  const share = total === 0 ? 100 : Math.floor((bytesDone / total) * 100);
  const whose = direction === "sending" ? `to ${name}` : `from ${name}`;
  return `${printable(what)} ${printable(whose)}: ${share} % of ${bytes(total)}, ${bytes(rate)}/s${left}`;
}

/** The room, without its words: they are secret, and others may see the screen. */
function roomWords(room: RoomKind): string {
  return room === "lobby" ? `room ${defaultRoom}, which is open to everyone` : "a private room";
}

function describePeers(rows: PeerRow[]): string {
  const here = rows.filter(({ present }) => present);
  if (here.length === 0) return "Nobody else is here yet.";
  const names = here.map(({ name, id }) => `${printable(name)} (${id})`).join(", ");
  const next = here.find(({ state }) => state === "known" || state === "failed");
  if (!next) return `here: ${names}`;
  const isUnique = rows.filter(({ name }) => name === next.name).length === 1;
  return `here: ${names}. \`connect ${isUnique ? printable(next.name) : next.id}\` punches a hole`;
}

/** What `whoami` answers. */
export function renderSelf(self: Self, c: Colors): string {
  return [
    `${c.bold(printable(self.name))} (${self.id}) in ${roomWords(self.room)}`,
    `  private      ${self.private.join(", ") || "none"}`,
    `  public       ${self.public}`,
    ...(self.mapped ? [`  mapped port  ${self.mapped}`] : []),
    `  mapping      ${self.mapping}`,
    `  fingerprint  ${self.fingerprint}`,
  ].join("\n");
}
