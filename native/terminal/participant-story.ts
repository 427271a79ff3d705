/**
 * What each of a participant's events says to a person. Pure. For native/terminal/ and participant.ts.
 */
import type { UseEvent } from "../uses/services.ts";
import type { Transfer, TransferEvent } from "../uses/transfers.ts";
import { keptDays } from "../uses/unfinished.ts";
import type { PeerEvent, PeerRow } from "../participant/peer-events.ts";
import { proxied } from "../uses/target.ts";
import { type Colors, type Line, age, bytes, count, ms, named } from "./text.ts";
import {
  defaultRoom,
  type FailureReason,
  failureReasons,
  isHidden,
  printable,
  type Route,
  unlinkReasons,
} from "../../protocol.ts";
import type { ParticipantEvent, RoomKind, Self } from "../participant/events.ts";
import { portMappingWords } from "./participant-nat.ts";

type EventOf<Kind extends ParticipantEvent["event"]> = Extract<ParticipantEvent, { event: Kind }>;

/** The text of an event for people; undefined if it is for programs only. `isDirect`: whether no relay is wanted. */
export function describe(event: ParticipantEvent, c: Colors, isDirect = false): string | undefined {
  if (isOfTransfers(event)) return describeTransfer(event, c);
  if (isOfForwards(event)) return describeForward(event, c);
  switch (event.event) {
    case "peers":
      return describePeers(event.peers);
    case "registered":
    case "name-taken":
    case "named":
    case "renamed":
    case "hidden":
    case "mapping":
    case "port-mapping":
    case "echo":
    case "notice":
    case "introducer":
      return describeIntroducer(event, c);
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
    case "warning":
    case "error":
      return `${event.event === "error" ? c.red("error") : c.yellow("warning")}: ${printable(event.message)}`;
    default:
      return describePeer(event, isDirect, c);
  }
}

type FromIntroducer =
  | ("registered" | "name-taken" | "named" | "renamed" | "echo" | "notice" | "introducer")
  | ("hidden" | "mapping" | "port-mapping");

/** What the introducer says and shows, and the router. */
function describeIntroducer(event: EventOf<FromIntroducer>, c: Colors): string | undefined {
  switch (event.event) {
    case "registered":
      return (
        `${c.green("registered")} as ${c.bold(printable(event.name))} (${event.id}) in ${roomWords(event.room)}\n` +
        `  private ${event.private.join(", ") || "none"}\n  public  ${event.public}`
      );
    case "name-taken":
      return `${c.yellow("warning")}: ${printable(event.was)} is somebody else in this room: others call you ${c.bold(printable(event.name))} there`;
    case "named":
      return `${c.bold(printable(event.name))} is free: others call you so again, and not ${printable(event.was)}`;
    case "renamed":
      return `${printable(event.was)} (${event.peer}) is called ${c.bold(printable(event.name))} now`;
    case "hidden": {
      const [rate, total] = [bytes(event.rate), bytes(event.total)];
      return `only by relay: peers are not told where you are; the introducer is, and carries each link, at most ${rate}/s each way and ${total}/s for all of its links together`;
    }
    case "mapping":
      return `our mapping: ${event.mapping}${event.step === 0 ? "" : `, step ${event.step}`}`;
    case "port-mapping":
      return event.state.is === "mapped" || event.state.is === "forwarded"
        ? `our router: ${portMappingWords(event.state)}`
        : undefined;
    case "echo":
      return `the introducer answered after ${ms(event.rttMs)}${event.text && `: ${printable(event.text)}`}`;
    case "notice":
      return `${c.magenta("[introducer]")} ${printable(event.text)}`;
    case "introducer": {
      const soon = `in ${((event.retryInMs ?? 0) / 1000).toFixed(1)} s`;
      const again = event.state === "unreachable" ? "until it answers" : soon;
      const next = event.retryInMs === undefined ? "" : `; trying again ${again}`;
      return `${c.yellow(`introducer ${event.state}`)}: ${printable(event.reason)}${next}`;
    }
  }
}

/** Events of one peer. */
function describePeer(event: PeerEvent | EventOf<"joined" | "left">, isDirect: boolean, c: Colors): string {
  const who = `${c.bold(printable(event.name))} (${event.peer ?? "not in the room"})`;
  switch (event.event) {
    case "joined":
      return `${who} joined ${isHidden(event) ? "and hides where it is" : `from ${event.public}`}`;
    case "left":
      return `${who} left`;
    case "punching":
      return `${c.yellow("punching")} towards ${who}, ${event.role}, ${event.way}, round ${event.round}`;
    case "attempt":
      return c.dim(
        `  ${event.atMs.toFixed(1).padStart(8)} ms  :${event.localPort} → ${event.remote} ${event.route}: ${printable(event.outcome)}`,
      );
    case "linked":
      return `${c.green("linked")} with ${who} by ${routeWords(event.route, c)}: ${event.local} → ${event.remote}, ${ms(event.elapsedMs)}${relayWords(event, c)}`;
    case "failed":
      return failedWords(event, who, isDirect, c);
    case "postponed":
      return `${c.yellow("waiting")} ${(event.retryInMs / 1000).toFixed(0)} s before asking for ${who} again: ${printable(event.reason)}`;
    case "unlinked":
      return `${c.yellow("unlinked")} from ${who}: ${unlinkReasons[event.reason]}${event.detail && ` (${printable(event.detail)})`}`;
    case "broken":
      return `${c.yellow("broken")}: the connection with ${who} (${printable(event.reason)}); what is under way waits`;
    case "moved": {
      const gap = event.gapMs < 1 ? "without a gap" : `after ${ms(event.gapMs)}`;
      return `${c.green("moved")} with ${who} to ${routeWords(event.route, c)}: ${event.local} → ${event.remote}, ${gap}${relayWords(event, c)}`;
    }
    case "still-relayed":
      return `${c.yellow("still relayed")} with ${who}: ${failureReasons[event.reason]} (${event.reason}); a direct way is still looked for`;
    case "said":
      return `${c.cyan(`<${printable(event.name)}>`)} ${printable(event.text)}`;
    case "sent":
      return `${who} has it after ${ms(event.rttMs)}`;
    case "pong":
      return `${who} answered after ${ms(event.rttMs)}`;
  }
}

function describeForward(event: ForwardEvent, c: Colors): string {
  const more = "more" in event && event.more ? `; and ${count(event.more, "other")} like it` : "";
  return forwardWords(event, c) + more;
}

function forwardWords(event: ForwardEvent, c: Colors): string {
  const name = c.bold(named(event.name));
  if (event.event === "forwarding" && event.target === proxied)
    return `SOCKS5 proxy at ${event.listen} → ${name} → all that it allows`;
  if (event.event === "forwarding") return `forwarding ${event.listen} → ${name} → ${event.target}`;
  if (event.event === "listening" && event.by === "us") return `${name} has us listen on ${event.listen}`;
  if (event.event === "listening") return `${name} listens on ${event.listen} → ${event.target} here`;
  if (event.event === "used") return `${name} uses ${printable(event.target)} here`;
  const what = event.event === "listen-refused" ? listenRefusal(event) : refusal(event);
  return `${c.yellow("refused")}: ${what}`;
}

/** Why a connection of a forward or a pipe did not get through, and what to do. */
export function refusal({
  name,
  target,
  reason,
  why,
  by,
}: Omit<EventOf<"forward-refused">, "event" | "peer">): string {
  const [who, what] = [named(name), printable(target)];
  if (why === "no-link") return `no link with ${who}: ${printable(reason)}`;
  if (by === "us") {
    if (why === "no-answer") return `${who} wants ${what} here: ${printable(reason)}; is it running?`;
    return `${who} wants ${what} here: ${printable(reason)}; \`allow ${what}\` would let it in`;
  }
  if (why === "no-answer") return `${who} can't reach it: ${printable(reason)}; is it running there?`;
  return `${who} does not let us reach ${what}; \`allow ${what}\` there would`;
}

/** Why there is no listener that was asked for, and what to do. */
function listenRefusal({ name, listen, reason, why, by }: Omit<EventOf<"listen-refused">, "peer">): string {
  const [who, what] = [named(name), printable(reason)];
  if (why === "not-allowed" && by === "us")
    return `${who} wants to listen on ${listen} here; \`allow-listen ${listen}\` would let it`;
  if (why === "not-allowed")
    return `${who} does not let us listen on ${listen}; \`allow-listen ${listen}\` there would`;
  if (by === "us") return `${who} wants to listen here, but we ${what}`;
  return `${who} was asked to listen, but it ${what}; we ask again`;
}

type ForwardEvent = Exclude<UseEvent, TransferEvent>;
const ofForwards: ReadonlySet<string> = new Set<ForwardEvent["event"]>([
  ...(["forwarding", "forward-refused", "used", "listening", "listen-refused"] as const),
]);
const isOfForwards = (event: ParticipantEvent): event is EventOf<ForwardEvent["event"]> =>
  ofForwards.has(event.event);

const ofTransfers: ReadonlySet<string> = new Set<TransferEvent["event"]>([
  "skipped",
  "offered",
  "offer-withdrawn",
  "transfer-waiting",
  "transferring",
  "transferred",
  "transfer-cancelled",
  "transfer-failed",
]);
const isOfTransfers = (event: ParticipantEvent): event is EventOf<TransferEvent["event"]> =>
  ofTransfers.has(event.event);

/** Events of files. */
function describeTransfer(event: TransferEvent, c: Colors): string {
  const name = c.bold(printable(event.name));
  const what = printable(event.what);
  switch (event.event) {
    case "skipped": {
      const { skipped, more } = event;
      const lines = listed(skipped, skipped.length + more, ({ path, reason }) => `${path}: ${reason}`);
      return [`${c.yellow("not sent")} of ${what}:`, ...lines].join("\n");
    }
    case "offered": {
      const head = `${name} offers ${offerWords(event)}: accept ${event.offer} | refuse ${event.offer}`;
      const { lacking, offer } = event;
      const hint = `${lacking}: \`accept ${offer} DIR\` puts it elsewhere`;
      return [head, ...listingLines(event, c), ...(lacking ? [`  ${c.yellow(hint)}`] : [])].join("\n");
    }
    case "offer-withdrawn":
      return `${name} offers ${what} no more: ${printable(event.reason)}`;
    case "transfer-waiting":
      return `waiting for ${name} to accept ${offerWords(event)}`;
    case "transferring": {
      if (event.direction === "sending") return `sending ${what}, ${bytes(event.bytes)}, to ${name}`;
      return [`receiving ${offerWords(event)}, from ${name}`, ...listingLines(event, c)].join("\n");
    }
    case "transferred":
      return describeTransferred(event, c);
    case "transfer-cancelled":
      return `${event.by === "peer" ? `${name} ` : ""}${c.yellow("cancelled")} ${what}${goesOn(event)}`;
    case "transfer-failed":
      return failedTransfer(event, c);
  }
}

function failedTransfer(event: TransferEvent & { event: "transfer-failed" }, c: Colors): string {
  const { direction, by, reason, refused } = event;
  const [name, what] = [c.bold(printable(event.name)), printable(event.what)];
  if (refused) return `${name} ${c.red("refused")} ${what}: ${printable(reason)}`;
  const where = by === "peer" ? `, at ${name}'s` : "";
  return `${c.red("failed")} ${direction} ${what}${where}: ${printable(reason)}${goesOn(event)}`;
}

/** What is there is not sent again. */
function goesOn(left: { bytesThere: number; bytes: number; keptAs?: string }): string {
  if (left.bytesThere === 0) return "";
  const kept = left.keptAs === undefined ? "" : `; kept for ${keptDays} days: ${printable(left.keptAs)}`;
  return `; the same command goes on at ${Math.floor((left.bytesThere / left.bytes) * 100)} %${kept}`;
}

/** So many failures are shown, and so many things that are not sent. */
const maxShown = 10;

/** Lines for the first of `all`, and one for how many more there are. */
function listed<T>(some: readonly T[], all: number, words: (one: T) => string): string[] {
  const lines = some.slice(0, maxShown).map((one) => `  ${printable(words(one))}`);
  return all > lines.length ? [...lines, `  and ${all - lines.length} more`] : lines;
}

type Offered = Pick<TransferEvent & { event: "offered" }, "what" | "files" | "folders" | "bytes">;

function offerWords({ what, files, folders, bytes: total }: Offered): string {
  const many = files === 0 ? ` (${count(folders, "folder")})` : files === 1 ? "" : ` (${files} files)`;
  return `${printable(what)}${many}, ${bytes(total)}`;
}

/** The list of an offer, which the user sees before accepting it. */
function listingLines(event: TransferEvent & { event: "offered" | "transferring" }, c: Colors): string[] {
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

/** What a relayed link means for the user. */
function relayWords({ route, hidden, limit, why }: EventOf<"linked" | "moved">, c: Colors): string {
  if (route !== "relay") return "";
  const rate = limit === undefined ? "no faster than it allows" : `at no more than ${bytes(limit)}/s`;
  const reason = why ? failureReasons[why] : "no direct way has been found yet";
  const next = hidden
    ? "one of the two hides where it is, so no other way is looked for"
    : `${reason}; a direct way is still looked for`;
  return c.dim(`\n  the introducer carries it, ${rate}: ${next}`);
}

const routeWords = (route: Route, c: Colors) => (route === "relay" ? c.yellow(route) : route);

/** What a user can do about a link that did not come about. */
const nextSteps: Record<FailureReason, string> = {
  "peer-left": "`--connect` waits until it is back",
  "refused-by-peer": "it may be ending, or be asked by too many: try again in a minute",
  "no-candidate-answered": "a firewall may be in the way; `nat` tells what kind of NAT each of you is behind",
  "both-mappings-random":
    "one of you could start with --port N, and have the router there forward TCP port N to that host, port N; or use IPv6, or another network such as a phone's; `nat` tells more",
  "only-relayed": "it needs an introducer that relays, and that nobody of the two uses --direct",
  "authentication-failed":
    "somebody else may have that address in your network; or the introducer does not tell the truth",
  "handshake-cut": "a firewall may cut off what it can't read; try another network",
  "relay-failed": "ask whoever runs the introducer",
  refused: "",
  cancelled: "",
  "introducer-lost": "it is tried again once the introducer is back",
  "timed-out": "the way loses packets, or is very slow; try again",
};

/** These have the introducer's relay as a way out. */
const relayWouldHelp: ReadonlySet<FailureReason> = new Set([
  "no-candidate-answered",
  "both-mappings-random",
  "only-relayed",
  "handshake-cut",
  "timed-out",
] as const);

function failedWords(
  { reason, detail }: EventOf<"failed">,
  who: string,
  isDirect: boolean,
  c: Colors,
): string {
  const next =
    isDirect && relayWouldHelp.has(reason)
      ? "leave out --direct, and the introducer relays"
      : nextSteps[reason];
  const more = [printable(detail), next].filter(Boolean).join("; ");
  return `${c.red("failed")} to link with ${who}: ${failureReasons[reason]} (${reason})\n  ${c.dim(more)}`;
}

function describeTransferred(event: TransferEvent & { event: "transferred" }, c: Colors): string {
  const { direction, what, storedAs = what, files, failed, failures, elapsedMs, bytesMoved } = event;
  const there = event.bytes - bytesMoved;
  const rate = `${bytes(event.bytes)}${there > 0 ? ` (${bytes(there)} of it were there)` : ""} in ${(elapsedMs / 1000).toFixed(1)} s, ${bytes((bytesMoved / Math.max(1, elapsedMs)) * 1000)}/s`;
  const done = `${c.green(direction === "sending" ? "sent" : "received")} ${printable(what)}${storedAs === what ? "" : ` as ${printable(storedAs)}`}: ${count(files, "file")}, ${rate}, SHA-256 compared`;
  const noted = listed(event.notes, event.noted, ({ path, note }) => `${path}: ${note}`);
  if (failed === 0) return [done, ...noted].join("\n");
  const lines = listed(failures, failed, ({ path, reason }) => `${path}: ${reason}`);
  if (files === 0)
    return [`${c.red("failed")} ${direction} ${printable(what)}: nothing of it arrived whole`, ...lines].join(
      "\n",
    );
  return [`${done}; ${c.red(`${failed} failed`)}`, ...lines, ...noted].join("\n");
}

/** A transfer as a line of the status. */
export function transferLine(transfer: Transfer): Line {
  const { direction, name, what, phase } = transfer;
  const whose = printable(direction === "sending" ? `to ${name}` : `from ${name}`);
  if (phase.is === "waiting") return [printable(what), ` ${whose}: waiting for ${printable(name)} to accept`];
  return [printable(what), ` ${whose}: ${farWords(transfer)}`];
}

/** How far it is, and what it does. A rate is of the time in which bytes could move. */
function farWords({ progress, phase, movingMs }: Transfer): string {
  const { bytes: total, bytesDone, bytesMoved, bytesFailed } = progress;
  const share = total === bytesFailed ? 100 : Math.floor((bytesDone / (total - bytesFailed)) * 100);
  const done = `${share} % of ${bytes(total)}`;
  if (phase.is === "cancelling") return `${done}, cancelling`;
  const now = performance.now();
  if (phase.is === "broken")
    return `${done}, no connection for ${age(now - phase.sinceMs)}: another is sought, for ${age(phase.untilMs - now)} more`;
  const rate = bytesMoved / Math.max(0.001, movingMs / 1000);
  const left = rate > 0 ? `, ${age(((total - bytesFailed - bytesDone) / rate) * 1000)} left` : "";
  return `${done}, ${bytes(rate)}/s${left}`;
}

/** The room, without its words: they are secret, and others may see the screen. */
function roomWords(room: RoomKind): string {
  return room === "lobby"
    ? `room ${defaultRoom}, which is open to everyone: all there see these addresses`
    : "a private room";
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
