/**
 * The participant's program: reads its options, makes the participant and what it is used for, and lets them live until a
 * signal, the user or the input ends it. Owns nothing that lasts. What it does meanwhile is in participant-run.ts. For
 * participant.ts.
 */
import { hideArgument } from "../host/arguments.ts";
import { callersFolder } from "../host/caller.ts";
import { ServiceManager } from "../host/service.ts";
import { requirePlatform } from "../host/libc.ts";
import { type ParticipantEvent } from "../participant/events.ts";
import { Keep } from "../participant/keep.ts";
import { IdentityError, identityOrOneForNow, stateFolderOrNone } from "../secure/identity.ts";
import { openRoom, type Room, roomOf } from "../secure/room.ts";
import { areWeak, newRoomWords } from "../secure/words.ts";
import { version } from "./command-line.ts";
import { invitationTo, readHostPort } from "./invitation.ts";
import {
  type Arguments,
  newRoom,
  readArguments,
  shownRoom,
  usage,
  weakRoom,
} from "./participant-arguments.ts";
import { askMissing, Prompt } from "./participant-prompt.ts";
import { Errands, live, statusPeriodMs } from "./participant-run.ts";
import { isNoise } from "./verbs.ts";
import type { Running } from "./running.ts";
import { transferLine } from "./participant-story.ts";
import { runProgram, type Terminal } from "./terminal.ts";
import { Services } from "../uses/services.ts";
import { defaultRoom, UserError } from "../../protocol.ts";
import { Networks } from "../participant/networks.ts";
import { Participant } from "../participant/participant.ts";

/** The room to be in. */
function chooseRoom({ room = defaultRoom, nat }: Arguments): Room | Promise<Room> {
  // Who only measures disturbs nobody.
  return nat ? openRoom(crypto.getRandomValues(new Uint8Array(32)).toHex()) : roomOf(room);
}

/** What others of this host, or whoever runs the introducer, may find out of the room's words. */
function warnOfWords(room: string | undefined, isShown: boolean, prompt: Prompt): void {
  if (isShown) prompt.event({ event: "warning", message: shownRoom });
  if (room !== undefined && areWeak(room)) prompt.event({ event: "warning", message: weakRoom });
}

function checkPlatform(): void {
  try {
    requirePlatform();
  } catch (error) {
    throw new UserError(error instanceof Error ? error.message : String(error));
  }
}

/** Never returns. */
export function run(): Promise<never> {
  return runProgram(main, [UserError, IdentityError]);
}

/** Resolves to the exit code. */
async function main(terminal: Terminal): Promise<number> {
  const options = readArguments(process.argv.slice(2));
  if (options === "help" || options === "version") {
    terminal.result(options === "help" ? usage : version);
    return 0;
  }
  const isShown = options.shown !== undefined && hideArgument(options.shown.option, options.shown.text);
  process.chdir(callersFolder() ?? "."); // Bun has read all that it reads of the folder it was started in
  checkPlatform();
  terminal.isQuiet = options.quiet;
  if (!(await askMissing(options, terminal))) {
    const isAwaited = options.verb ?? options.pipe ?? (options.nat || options.send.length > 0);
    return isAwaited ? 1 : 0;
  }
  const isNew = options.room === newRoom;
  if (isNew) options.room = newRoomWords();
  if (options.json) terminal.isInteractive = false;
  const manager = new ServiceManager();
  const running = prepare(terminal, options, manager);
  if (isNew) running.invitation = invitationTo(options.room!, options.introducer!);
  if (!options.quiet) warnOfWords(options.room, isShown, running.prompt);
  const { participant, uses, keep } = running;
  const errands = new Errands(running);
  const stopped = whenStopped(terminal, errands);
  const status = () => terminal.status(uses.transfers.list.map(transferLine));
  const drawing = setInterval(status, statusPeriodMs);
  const code = await Promise.race([live(running, errands), stopped]);
  running.isOver = true;
  manager.stopping();
  clearInterval(drawing);
  terminal.status([]);
  await uses.close();
  terminal.close();
  keep.close();
  await participant.quit();
  return code;
}

/** Resolves to the exit code once a signal or the terminal's end stops the program. */
function whenStopped(terminal: Terminal, errands: Errands): Promise<number> {
  const { promise, resolve } = Promise.withResolvers<number>();
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const)
    process.once(signal, () => resolve(errands.codeAt(signal)));
  void terminal.broken.then(() => resolve(1));
  void promise.then(() => terminal.hurry());
  return promise;
}

function prepare(
  terminal: Terminal,
  options: Arguments,
  manager: ServiceManager,
): Running & { participant: Participant } {
  const prompt = new Prompt(terminal, {
    isJson: options.json,
    isPipe: options.pipe !== undefined,
    isDirect: options.direct,
  });
  const running = { prompt, terminal, options } as Running & { participant: Participant };
  const onEvent = (event: ParticipantEvent) => {
    running.heard?.(event);
    if (event.event === "registered") manager.ready(`registered as ${event.name}`);
    if (!isNoise(event, options)) prompt.event(event);
  };
  const { name, keepMinutes, direct, portMapping, verbose, stay, verb, waitMs } = options;
  // Who has typed a verb sits there, and may have mistyped the host.
  const patient = (stay && !verb) || waitMs !== undefined;
  const participant = new Participant({
    ...readHostPort(options.introducer!),
    ...{ name, keepMinutes, direct, portMapping, verbose, patient, onEvent },
    room: chooseRoom(options),
    networks: new Networks(stateFolderOrNone()),
    identity: identityOrOneForNow((message) => onEvent({ event: "warning", message })),
  });
  const joined = Promise.withResolvers<void>();
  const keep = keeping(participant, joined.promise);
  const uses = usesOf(participant, keep, running, onEvent);
  return Object.assign(running, { participant, uses, keep, joined });
}

function usesOf(
  participant: Participant,
  keep: Keep,
  { terminal, options }: Pick<Running, "terminal" | "options">,
  onEvent: (event: ParticipantEvent) => void,
): Services {
  const uses = new Services({
    link: (peer) => participant.openLink(peer) ?? keep.linked(peer),
    liveLink: (peer) => {
      const link = participant.openLink(peer);
      if (!link) return keep.linked(peer);
      return link.state === "returning" ? participant.waits.live(peer) : link;
    },
    isPrivate: () => participant.isPrivate,
    canAsk: terminal.isInteractive || options.stay,
    pipesWith:
      options.pipe && !options.pipe.target ? () => participant.nameOf(options.pipe!.peer) : undefined,
    executable: options.executable,
    onProblem: (message) => onEvent({ event: "warning", message }),
    onEvent: (event) => onEvent({ ...event, peer: participant.idOf(event.name) }),
  });
  for (const use of ["forward", "pipe", "files"])
    participant.onStream(use, (stream, from) => uses.take(stream, from));
  return uses;
}

/** Nobody is waited for before we are in the room. */
function keeping(participant: Participant, joined: Promise<void>): Keep {
  return new Keep({
    nameOf: (word) => participant.nameOf(word),
    waitFor: async (name, signal) => {
      await joined;
      await participant.waitFor(name, signal);
    },
    linkWith: (name) => participant.linkWith(name),
    connect: (name) => participant.connect(name),
    whenLinked: (name, signal) => participant.whenLinked(name, signal),
    whenOver: (name, link, signal) => participant.waits.over(name, link, signal),
  });
}
