/**
 * The participant's program, from its start to its end: joins, does what the command line asks for, obeys what is typed,
 * and says by its exit code whether all was got. Owns nothing but the count of what failed; whom it drives is made in
 * participant.ts. For participant.ts.
 */
import { constants } from "node:os";
import { isatty } from "node:tty";
import { printable, ToldError, UserError } from "../../protocol.ts";
import { splitWhom } from "../uses/whom.ts";
import { age, bytes, count } from "./text.ts";
import { wasGiven } from "../host/descriptor.ts";
import { StreamError } from "../session/stream.ts";
import { whyRefused } from "../uses/forward.ts";
import type { Pipe } from "../uses/pipe.ts";
import type { SourceFiles } from "../uses/source-files.ts";
import { DescriptorOutput, runPipe } from "../uses/stdio.ts";
import { formatTarget, parseRemote, type PipeSpec } from "../uses/target.ts";
import { CommandError, complete } from "./command-line.ts";
import { codeHints, isKept, linesForOthers } from "./invitation.ts";
import { refusal } from "./participant-story.ts";
import { commands } from "./participant-arguments.ts";
import { isQuit, sendToAll } from "./participant-prompt.ts";
import { type Driven, inTime, joinInTime, type Running, tellIfAlone } from "./running.ts";
import { doVerb } from "./verb-run.ts";
import { meantBy } from "./verbs.ts";
import { History } from "./history.ts";
import type { Terminal } from "./terminal.ts";

/** How often what is under way is drawn. */
export const statusPeriodMs = 500;

/** When a pipe's target has closed, what comes on standard input within this time of the last is still sent. */
const inputLingerMs = 1_000;

/** What the user has asked for, and whether it was got: the exit code says so. */
export class Errands {
  readonly #running: Running;
  readonly #isService: boolean;
  failures = 0;
  /** How many a signal now would cut off. */
  #awaited = 0;

  constructor(running: Running) {
    this.#running = running;
    this.#isService = running.terminal.isInteractive || running.options.stay;
  }

  get code(): number {
    return this.failures > 0 ? 1 : 0;
  }

  /** To tell a service to end is no failure of it. */
  codeAt(signal: NodeJS.Signals): number {
    if (this.#awaited > 0) return 128 + constants.signals[signal];
    return this.#isService ? 0 : this.code;
  }

  /** Does what someone waits for the end of. */
  async awaiting<T>(work: Promise<T>): Promise<T> {
    this.#awaited++;
    try {
      return await work;
    } finally {
      this.#awaited--;
    }
  }

  /** Tells and counts what is the user's, or the network's, failure. */
  async attempt(work: () => Promise<void>): Promise<void> {
    const { participant, prompt } = this.#running;
    try {
      await work();
    } catch (error) {
      if (!(error instanceof UserError || error instanceof CommandError)) throw error;
      if (participant.state === "quit") return; // a signal has ended it, and with it what was under way
      this.failures++;
      // What we have ended ourselves need not be told.
      if (!(error instanceof ToldError)) prompt.event({ event: "error", message: error.message });
    }
  }
}

/** Joins, then obeys until the user or the input ends. Resolves to the exit code. */
export async function live(running: Running, errands: Errands): Promise<number> {
  const { terminal, options, participant } = running;
  if (options.verb) {
    const doing = errands.attempt(() => doVerb(running, options.verb!));
    await (options.stay ? doing : errands.awaiting(doing));
    return errands.code;
  }
  const { nat, pipe, send, connect, stay } = options;
  const isScript = !terminal.isInteractive && !stay;
  const wantsResult = nat || pipe !== undefined || send.length > 0 || (isScript && connect.length > 0);
  const beginning = begin(running, errands);
  if (!(await (wantsResult ? errands.awaiting(beginning) : beginning))) return errands.code;
  const run = (line: string) => errands.attempt(() => running.prompt.run(line, running));
  if (terminal.isInteractive) {
    await converse(participant, terminal, run);
    return 0;
  }
  for await (const line of terminal.lines()) {
    if (isQuit(line)) return errands.code;
    if (line.trim() !== "") await errands.awaiting(run(line).then(() => terminal.whenRead()));
  }
  participant.uses.nobodyAnswers();
  if (stay) await new Promise<never>(() => {});
  return errands.code;
}

/** What peers may reach from now on, and by what option of theirs. */
function opened(text: string, name = "PEER"): string {
  const { rule, whom = "peers" } = splitWhom(text);
  const [, host = "", port = ""] = /^(.*):(\d+(?:-\d+)?(?:\/udp)?)$/.exec(rule) ?? [];
  const isOne = port !== "" && !/[*/]/.test(host);
  const how = isOne ? `: \`-L ${port}:${name}:${host === "localhost" ? port : rule}\`` : "";
  return `${printable(whom)} may reach ${rule} through you${how}`;
}

/** What the command line asks for; returns whether anything may follow. */
async function begin(running: Running, errands: Errands): Promise<boolean> {
  const { participant, prompt, terminal, options } = running;
  let sending: SourceFiles | undefined;
  await errands.attempt(async () => {
    if (options.accept !== undefined) await participant.accept(options.accept, { from: options.from });
    if (options.send.length > 0) sending = await participant.uses.look(options.send);
    if (options.pipe && !wasGiven(1))
      throw new UserError("standard output is closed, so nothing could be written there");
  });
  if (errands.failures > 0) return false;
  // Whoever connects now waits for the link.
  const forwards = await Promise.all([
    ...options.forward.map((spec) => participant.forward(spec)),
    ...options.socks.map((spec) => participant.forward(spec, { socks: true })),
  ]);
  const asked = [...options.remote.map(parseRemote), ...(options.pipe ? [options.pipe] : [])];
  const wanted = [...forwards, ...asked].map(({ peer }) => peer);
  await errands.attempt(() => join(running, [...wanted, ...options.connect]));
  if (errands.failures > 0) return false;
  invite(running);
  tellIfAlone(running);
  await open(running);
  const { nat, pipe } = options;
  const measuring = nat && (async () => prompt.nat(await participant.nat()));
  const only = measuring || (pipe && (() => pipeThrough(running, pipe)));
  if (only) return (await errands.attempt(only), false);
  const linked = (peer: string) => inTime(running, peer, participant.keep(peer).first);
  if (sending) {
    await errands.attempt(() => sendWhenLinked(running, sending!, linked));
    return options.stay && errands.failures === 0;
  }
  const connecting = Promise.all(options.connect.map((peer) => errands.attempt(() => linked(peer))));
  const isAwaited = options.waitMs !== undefined;
  if (!terminal.isInteractive || isAwaited) await connecting;
  return !isAwaited || errands.failures === 0;
}

/** Once we are in a private room: what peers may do here, and what we ask of them. */
async function open({ participant, terminal, options }: Running): Promise<void> {
  const name = participant.self?.name;
  for (const rule of options.allow) terminal.story(opened(await participant.allow(rule), name));
  for (const rule of options.allowListen) {
    const listen = await participant.uses.allowListen(rule);
    const [at = ""] = rule.split("@");
    const how = at.includes("-") ? "" : `: \`-R ${at}:${name ?? "PEER"}:PORT\``;
    terminal.story(`peers may listen on ${listen} here${how}`);
  }
  for (const spec of options.remote) await participant.forward(spec, { remote: true });
}

/** Sends it to each that we are to be linked with, as soon as we are. */
function sendWhenLinked(
  { participant, options }: Running,
  sending: SourceFiles,
  linked: (peer: string) => Promise<void>,
): Promise<void> {
  return sendToAll([...new Set(options.connect)], async (peer) => {
    await linked(peer);
    return participant.send(peer, sending, { wait: true });
  });
}

async function join(running: Running, wants: readonly string[]): Promise<void> {
  try {
    await joinInTime(running, wants);
  } catch (error) {
    const meant = meantBy(running.options.introducer!);
    if (!(error instanceof UserError) || meant === undefined) throw error;
    throw new UserError(`${error.message}; did you mean ${meant}?`, { cause: error });
  }
}

/** Says what the other side types. It is all that the user has of a new room, so --quiet does not hide it. */
function invite({ invitation, options, terminal }: Running): void {
  if (invitation === undefined) return;
  const lines = linesForOthers(invitation, options).map((line) => `  ${line}`);
  const hint = codeHints(options.introducer!, isKept(options.key));
  terminal.story(`a new private room; whom you tell this can enter it:\n${lines.join("\n")}${hint}`, true);
}

/** Joins standard input and output to the peer; resolves when it has confirmed every byte, and we have all of its. */
async function pipeThrough(running: Running, { peer, target }: PipeSpec): Promise<void> {
  const { participant, terminal } = running;
  const joining = participant.pipe(peer, { target: target && formatTarget(target) });
  const { sending, incoming } = await inTime(running, peer, joining);
  // Who only wants what comes is not asked to type.
  const input = isatty(0) && !isatty(1) ? undefined : (Bun.stdin.stream() as AsyncIterable<Uint8Array>);
  const startedAt = performance.now();
  let received: Pipe | undefined = incoming ? undefined : sending;
  void incoming?.then((pipe) => (received = pipe));
  const moved = () => {
    const seconds = (performance.now() - startedAt) / 1000;
    const [sent, came] = [sending.bytesOut, received?.bytesIn ?? 0];
    return `sent ${bytes(sent)}, received ${bytes(came)}, ${bytes((sent + came) / seconds)}/s, ${age(seconds * 1000)}`;
  };
  const isDrawn = !(isatty(0) && isatty(1));
  const drawing = setInterval(() => isDrawn && terminal.status([moved()]), statusPeriodMs);
  try {
    const lingerMs = isatty(0) ? 0 : inputLingerMs;
    await runPipe(input, new DescriptorOutput(1), sending, incoming ? { incoming } : { lingerMs });
  } catch (error) {
    const why = target && error instanceof StreamError ? whyRefused(error.code) : undefined;
    if (why === undefined) throw new UserError(error instanceof Error ? error.message : String(error));
    const [{ reason }, name] = [error as StreamError, participant.peers.nameOf(peer)];
    throw new UserError(refusal({ name, target: formatTarget(target!), reason, why, by: "peer" }));
  } finally {
    clearInterval(drawing);
    terminal.status([]);
  }
  terminal.story(`${moved()}: confirmed`);
}

/** Commands from a person run beside each other. */
function converse(
  participant: Driven,
  terminal: Terminal,
  run: (line: string) => Promise<void>,
): Promise<void> {
  return terminal.converse({
    prompt: "> ",
    history: new History("participant"),
    onLine: async (line) => {
      if (!isQuit(line)) return (void run(line), false);
      const links = participant.peers.linkCount;
      if (links === 0) return true;
      const question = `end ${count(links, "link")}? [y/N] `;
      return (await terminal.ask(question, (answer) => /^y(es)?$/i.test(answer))) === true;
    },
    complete: (line) => complete(commands, participant.peers.names(), line),
    reasonToStay: () => {
      const links = participant.peers.linkCount;
      return links === 0 ? undefined : `${count(links, "link")} up`;
    },
  });
}
