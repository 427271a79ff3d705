/**
 * The participant's program: reads its arguments, makes the participant, and ends it by a signal, by its terminal's end, or
 * when all is done. It is one user of the library. Owns nothing. For participant.ts.
 */
import { hideArgument } from "../host/arguments.ts";
import { callersFolder } from "../host/caller.ts";
import { requirePlatform } from "../host/libc.ts";
import { ServiceManager } from "../host/service.ts";
import { stateFolderOrNone } from "../host/state.ts";
import type { ParticipantEvent, ParticipantOptions } from "../participant/events.ts";
import { Networks } from "../participant/networks.ts";
import { KnownPeers } from "../secure/known-peers.ts";
import { openRoom, type Room, roomOf } from "../secure/room.ts";
import { areWeak, newRoomWords } from "../secure/words.ts";
import { defaultRoom, UserError } from "../../protocol.ts";
import { version } from "./command-line.ts";
import { invitationTo, passedOn, readHostPort } from "./invitation.ts";
import {
  type Arguments,
  newRoom,
  readArguments,
  shownKey,
  shownRoom,
  usage,
  weakRoom,
} from "./participant-arguments.ts";
import { readKeyFile } from "./key-file.ts";
import { askMissing, Prompt } from "./participant-prompt.ts";
import { Errands, live, statusPeriodMs } from "./participant-run.ts";
import { transferLine } from "./participant-story.ts";
import type { Driven, Running } from "./running.ts";
import type { Terminal } from "./terminal.ts";
import { isNoise } from "./verbs.ts";

/** The room to be in. */
function chooseRoom({ room = defaultRoom, nat }: Arguments): Room | Promise<Room> {
  // Who only measures disturbs nobody.
  return nat ? openRoom(crypto.getRandomValues(new Uint8Array(32)).toHex()) : roomOf(room);
}

/** Takes them out of our command line. Returns what others of this host can still see, in words. */
function hideSecrets({ secrets, verb }: Arguments): string[] {
  const warnings = { words: shownRoom, key: shownKey };
  const seen = secrets.filter(({ option, text }) => hideArgument(option, text));
  // A code is for one errand, and its line was printed to be typed.
  return verb ? [] : seen.map(({ what }) => warnings[what]);
}

/** What others of this host, or whoever runs the introducer, may find out of the room's words. */
function warnOfWords(room: string | undefined, seen: readonly string[], prompt: Prompt): void {
  for (const message of seen) prompt.event({ event: "warning", message });
  if (room !== undefined && areWeak(room)) prompt.event({ event: "warning", message: weakRoom });
}

function checkPlatform(): void {
  try {
    requirePlatform();
  } catch (error) {
    throw new UserError(error instanceof Error ? error.message : String(error));
  }
}

/** `make` makes the participant. Resolves to the exit code. */
export async function main(
  terminal: Terminal,
  make: (options: ParticipantOptions) => Driven,
): Promise<number> {
  const options = readArguments(process.argv.slice(2));
  if (options === "help" || options === "version") {
    terminal.result(options === "help" ? usage : version);
    return 0;
  }
  const seen = hideSecrets(options);
  const folder = callersFolder();
  if (folder !== undefined) process.chdir(folder); // Bun has read all that it reads of the folder it was started in
  checkPlatform();
  terminal.isQuiet = options.quiet;
  if (options.keyFile !== undefined) options.key = { text: readKeyFile(options.keyFile), isPassedOn: false };
  if (!(await askMissing(options, terminal))) {
    const isAwaited = options.verb ?? options.pipe ?? (options.nat || options.send.length > 0);
    return isAwaited ? 1 : 0;
  }
  const isNew = options.room === newRoom;
  if (isNew) options.room = newRoomWords();
  if (options.json) terminal.isInteractive = false;
  const manager = new ServiceManager();
  const running = prepare(terminal, options, manager, make);
  if (isNew) running.invitation = invitationTo(options.room!, options.introducer!, passedOn(options.key));
  if (!options.quiet) warnOfWords(options.room, seen, running.prompt);
  const { participant } = running;
  const errands = new Errands(running);
  const stopped = whenStopped(terminal, errands);
  const status = () => terminal.status(participant.uses.transfers.map(transferLine));
  const drawing = setInterval(status, statusPeriodMs);
  const code = await Promise.race([live(running, errands), stopped]);
  running.isOver = true;
  manager.stopping();
  clearInterval(drawing);
  terminal.status([]);
  terminal.close();
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
  make: (options: ParticipantOptions) => Driven,
): Running {
  const { name, keepMinutes, direct, onlyRelay, portMapping, localPort, executable, verbose } = options;
  const isPipe = options.pipe !== undefined;
  const prompt = new Prompt(terminal, { isJson: options.json, isPipe, isDirect: direct });
  const running = { prompt, terminal, options, startedAt: performance.now() } as Running;
  const onEvent = (event: ParticipantEvent) => {
    running.heard?.(event);
    if (event.event === "registered") manager.ready(`registered as ${event.name}`);
    if (!isNoise(event, options)) prompt.event(event);
  };
  running.participant = make({
    ...readHostPort(options.introducer!),
    ...{ name, keepMinutes, direct, onlyRelay, portMapping, executable, verbose, onEvent },
    key: options.key?.text,
    bytesPerSecond: options.limit,
    exclude: options.exclude,
    ...(localPort !== undefined && { localPort }),
    // Who has typed a verb sits there, and may have mistyped the host.
    patient: (options.stay && !options.verb) || options.waitMs !== undefined,
    canAsk: terminal.isInteractive || options.stay,
    room: chooseRoom(options),
    networks: new Networks(stateFolderOrNone()),
    ...(options.remember && { known: new KnownPeers((message) => onEvent({ event: "warning", message })) }),
  });
  return running;
}
