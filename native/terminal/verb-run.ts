/**
 * Does what a verb says. `send` and `share` make a room, tell the code, and go with whoever comes first; `receive` and `reach`
 * wait for what that one gives them. Owns who that is. For native/terminal/participant-run.ts.
 */
import { setTimeout as pause } from "node:timers/promises";
import type { ParticipantEvent } from "../participant/events.ts";
import type { PeerRow } from "../participant/peer-events.ts";
import type { PeerLink, PeerStream } from "../participant/peer-link.ts";
import type { StreamFrom } from "../participant/public.ts";
import { resetCodes } from "../session/stream.ts";
import { reachingUses } from "../uses/services.ts";
import { readShared, sharedPurpose } from "../uses/shared.ts";
import { formatTarget, type HostTarget } from "../uses/target.ts";
import { printable, Refusal, ToldError, type UnlinkReason, UserError } from "../../protocol.ts";
import { count } from "./text.ts";
import { codeHints, invitationTo, isKept, passedOn } from "./invitation.ts";
import { notWholeAt } from "./participant-prompt.ts";
import { inTime, joinInTime, type Running, tellIfAlone } from "./running.ts";
import { answerTo, type Verb } from "./verbs.ts";

/** After a link that failed or was lost, before the next try. */
const againAfterMs = 1_000;
/** How a transfer ends. */
const endings: ReadonlySet<ParticipantEvent["event"]> = new Set([
  ...(["transferred", "transfer-failed", "transfer-cancelled"] as const),
]);
/** Why a link has ended, if its peer makes another one. */
const comesAgain: ReadonlySet<UnlinkReason> = new Set([
  "connection-lost",
  "peer-restarted",
  "replaced",
] as const);
/** Where a browser is not what opens it. */
const openedBy: Readonly<Record<number, (port: number) => string>> = {
  22: (port) => `ssh -p ${port} 127.0.0.1`,
  443: (port) => `https://127.0.0.1:${port}/`,
  8443: (port) => `https://127.0.0.1:${port}/`,
};
/** Of well-known services that no browser opens. */
const others: ReadonlySet<number> = new Set([25, 53, 445, 3306, 3389, 5432, 5900, 6379, 25565, 27017]);

/** What a user opens to reach that target of the peer, which is at the port `here`. */
export function whatToOpen({ kind, port }: Pick<HostTarget, "kind" | "port">, here: number): string {
  if (kind === "udp") return `127.0.0.1:${here} (UDP)`;
  if (others.has(port)) return `127.0.0.1:${here}`;
  return openedBy[port]?.(here) ?? `http://127.0.0.1:${here}/`;
}

/** Resolves once it is done; rejects with a {@link UserError} that says why it can't be. */
export async function doVerb(running: Running, verb: Verb): Promise<void> {
  switch (verb.is) {
    case "send":
      return send(running, verb.paths, verb.to);
    case "share":
      return share(running, verb.targets);
    case "receive":
      return receive(running, verb.into);
    case "reach":
      return reach(running, verb.ports);
  }
}

/** Joins, and says what the other side types. */
async function join(running: Running): Promise<void> {
  const { invitation, terminal, options } = running;
  await joinInTime(running);
  const { verb, room, introducer, secrets, key } = options;
  // Words that were not to be seen are not shown here either.
  const isShown = secrets.some(({ what }) => what === "words");
  const code = invitation ?? (isShown ? invitationTo(room!, introducer!, passedOn(key)) : "-");
  const answer = answerTo(verb!, code);
  if (answer === undefined) return tellIfAlone(running);
  const hint =
    code === "-" ? `\n  (it asks for the code: WORDS@${introducer})` : codeHints(introducer!, isKept(key));
  terminal.story(`on the other side:\n  ${answer}${hint}\nwaiting for it, until Ctrl-C`, true);
}

// --- giving ----------------------------------------------------------------------------------------------

async function send(running: Running, paths: string[], to: number): Promise<void> {
  const { participant, terminal } = running;
  await participant.uses.look(paths); // they may change until somebody comes, but what is wrong now is told now
  for (const use of [...reachingUses, "files"]) participant.onStream(use, refuse("it only sends files"));
  await join(running);
  const served = new Set<number>();
  const failed: string[] = [];
  while (served.size < to) {
    await withFirst(running, served, async (name) => {
      if ((await participant.send(name, paths)).failed > 0) failed.push(name);
    });
    if (served.size < to) terminal.story(`waiting for ${count(to - served.size, "other")}, until Ctrl-C`);
  }
  notWholeAt(failed);
}

async function share(running: Running, targets: readonly HostTarget[]): Promise<void> {
  const { participant, terminal } = running;
  let first: string | undefined;
  for (const use of reachingUses)
    participant.onStream(use, (stream, from) =>
      from.name === first ? participant.serve(stream, from) : refuse("somebody else has come first")(stream),
    );
  participant.onStream("files", refuse("it only shares ports"));
  await join(running);
  for (const target of targets) await participant.allow(formatTarget(target));
  await withFirst(running, new Set(), async (name, link) => {
    first = name;
    const { use, ...more } = sharedPurpose(targets);
    const stream = link.open(use, more);
    stream.on("error", () => {}); // the link's end says more
    stream.resume().end();
    terminal.story(
      `${printable(name)} can reach ${targets.map((target) => formatTarget(target)).join(", ")} now, until Ctrl-C`,
    );
    await link.ended;
    throw new ToldError("the link has ended");
  });
}

type Work = (name: string, link: PeerLink) => Promise<void>;

/**
 * Works with whoever comes first, but for those that were served, by id; adds that one. Rejects, too, if there is no link in
 * the time of --wait.
 */
async function withFirst(running: Running, served: Set<number>, work: Work): Promise<void> {
  const { promise: linked, resolve } = Promise.withResolvers<void>();
  const late = inTime(running, "", linked).then(() => new Promise<never>(() => {}));
  return Promise.race([late, withEach(running, served, (name, link) => (resolve(), work(name, link)))]);
}

/**
 * Links with whoever has come first, and does the work; anew with the next one, or the same again, if that link does not
 * last. Rejects if the work fails while the link is up.
 */
async function withEach(running: Running, served: Set<number>, work: Work): Promise<void> {
  const { participant, terminal } = running;
  const missed = new Set<string>();
  for (;;) {
    const { name, id } = await whoever(running, served, missed);
    let link: PeerLink | undefined;
    try {
      link = await participant.connect(name);
      await work(name, link);
      return void served.add(id);
    } catch (error) {
      if (!(error instanceof UserError)) throw error;
      const isLost = !link || (await Promise.race([link.ended.then(() => true), pause(againAfterMs, false)]));
      if (!isLost || running.isOver) throw error;
    }
    missed.add(name);
    const gone = link ? `${printable(name)} has gone; ` : "";
    terminal.story(`${gone}waiting for the other side to come again, until Ctrl-C`);
    await pause(againAfterMs);
  }
}

/**
 * Resolves to whoever has been in the room for longest, as soon as somebody is. Who was missed comes after the
 * others: it may be there no more, and not know it.
 */
async function whoever(
  running: Running,
  served: ReadonlySet<number>,
  missed: ReadonlySet<string>,
): Promise<PeerRow> {
  for (;;) {
    const { promise: changed, resolve } = Promise.withResolvers<void>();
    running.heard = ({ event }) => void ((event === "joined" || event === "peers") && resolve());
    const rows = await running.participant.peers.list();
    const here = rows.filter(({ id, present, state }) => present && state !== "untrusted" && !served.has(id));
    const next = here.find(({ name }) => !missed.has(name)) ?? here[0];
    if (next) return next;
    await changed;
  }
}

// --- taking ----------------------------------------------------------------------------------------------

async function receive(running: Running, into: string): Promise<void> {
  const { participant } = running;
  const over = Promise.withResolvers<void>();
  over.promise.catch(() => {}); // it is awaited later
  for (const use of reachingUses) participant.onStream(use, refuse("it only receives files"));
  participant.onStream("shared", (stream) => {
    refuse("it receives files: to reach ports, `reach` is typed")(stream);
    over.reject(
      new UserError("nothing is sent there, but ports are shared: type `reach` in place of `receive`"),
    );
  });
  running.heard = (event) => {
    if (event.event === "transferred" && event.failed === 0) over.resolve();
    else if (endings.has(event.event)) over.reject(new ToldError("it was told"));
    // What is under way has an end of its own.
    else if (participant.uses.transfers.length === 0) whenLeft(event, over.reject);
  };
  await participant.accept(into, { from: undefined });
  await join(running);
  await inTime(running, "", running.participant.peers.whenLinked(""));
  await over.promise;
}

async function reach(running: Running, ports: readonly number[]): Promise<void> {
  const { participant } = running;
  const over = Promise.withResolvers<never>();
  over.promise.catch(() => {}); // it is awaited later
  for (const use of reachingUses) participant.onStream(use, refuse("it only reaches ports"));
  participant.onStream("files", (stream) => {
    refuse("it reaches ports: to receive files, `receive` is typed")(stream);
    over.reject(
      new UserError("no port is shared there, but files are sent: type `receive` in place of `reach`"),
    );
  });
  let sharer: string | undefined;
  participant.onStream("shared", async (stream, from) => {
    if (sharer !== undefined && sharer !== from.name) return refuse("somebody else was first")(stream);
    stream.resume().end();
    if (sharer !== undefined) return; // it is back
    sharer = from.name;
    try {
      await listen(running, readShared(from.purpose), from, ports);
    } catch (error) {
      const isOurs = !(error instanceof Refusal);
      over.reject(
        isOurs ? error : new UserError(`the other side shares what makes no sense: ${error.message}`),
      );
    }
  });
  running.heard = (event) => whenLeft(event, over.reject);
  await join(running);
  await inTime(running, "", running.participant.peers.whenLinked(""));
  await over.promise;
}

async function listen(
  running: Running,
  targets: readonly HostTarget[],
  from: StreamFrom,
  ports: readonly number[],
): Promise<void> {
  const { terminal, options } = running;
  if (ports.length > targets.length)
    throw new UserError(
      `only ${count(targets.length, "port")} ${targets.length === 1 ? "is" : "are"} shared there, and not ${ports.length}`,
    );
  for (const [index, target] of targets.entries()) {
    const port = await listenFor(running, target, from.name, ports[index]);
    const whose = `${formatTarget(target)} of ${printable(from.name)}`;
    const other = port === (ports[index] ?? target.port) ? "" : `; port ${target.port} can't be had here`;
    terminal.story(`${whose} is here now, until Ctrl-C${other}`);
    if (!options.json) terminal.result(whatToOpen(target, port));
  }
}

/** Listens on that port, or on the target's, or on a free one. Returns which it is. */
async function listenFor(
  { participant }: Running,
  target: HostTarget,
  peer: string,
  wanted: number | undefined,
): Promise<number> {
  const listenAt = async (port: number) => {
    const listen = { kind: target.kind, bind: "127.0.0.1", port };
    const forwarded = await participant.forward({ listen, peer, target, ports: 1 }, { keep: false });
    return parseInt(forwarded.listen.slice(forwarded.listen.lastIndexOf(":") + 1));
  };
  if (wanted !== undefined) return listenAt(wanted);
  try {
    return await listenAt(target.port);
  } catch (error) {
    if (!(error instanceof UserError)) throw error;
    return listenAt(0);
  }
}

// --- both ------------------------------------------------------------------------------------------------

const refuse = (reason: string) => (stream: PeerStream) => stream.reset(reason, resetCodes.refused);

/** The other side has ended it on purpose, and does not come again with this code. */
function whenLeft(event: ParticipantEvent, fail: (error: UserError) => void): void {
  if (event.event !== "unlinked" || comesAgain.has(event.reason)) return;
  setTimeout(() => fail(new UserError("the other side has ended it; to go on, ask for a new code")));
}
