/**
 * The process that a NAT as a program is: `nat.ts` between the TUN devices `inside` and `outside` of its namespace.
 * Arguments: its external addresses with commas between, and its behaviour as JSON. It says `ready`; each `forget` on
 * stdin makes it forget its mappings and say `forgotten`; the end of stdin ends it.
 */
import { ptr, type Pointer } from "bun:ffi";
import type { NatBehaviour } from "./nat-behaviour.ts";
import { Translator, type Emitted, type Side } from "./nat.ts";
import { libc, openTun, Poll, slotBytes, wakeInTime } from "./tun.ts";

/** Packets read from one device before the other gets its turn. */
const readBurst = 64;
/** The longest wait, so that a clock which is wrong can't stop it for good. */
const longestWaitMs = 1_000;

const [addresses = "", behaviour = "{}"] = process.argv.slice(2);
const translator = new Translator(addresses.split(","), JSON.parse(behaviour) as Partial<NatBehaviour>);
const devices: Record<Side, number> = { lan: openTun("inside"), wan: openTun("outside") };
const sides: readonly Side[] = ["lan", "wan"];
const buffer = Buffer.alloc(slotBytes);
const bufferAt: Pointer = ptr(buffer);

function emit(emitted: readonly Emitted[]): void {
  for (const { to, packet } of emitted) libc.write(devices[to], packet.bytes, packet.bytes.length);
}

function readFrom(side: Side): void {
  for (let burst = 0; burst < readBurst; burst++) {
    const length = libc.read(devices[side], bufferAt, buffer.length);
    if (length <= 0) return;
    emit(translator.receive(side, Buffer.from(buffer.subarray(0, length)), performance.now()));
  }
}

/** Whether stdin is still open. */
function readCommands(): boolean {
  const length = libc.read(0, bufferAt, buffer.length);
  if (length <= 0) return false;
  for (const _ of buffer.toString("utf8", 0, length).matchAll(/forget\n/g)) {
    translator.forget();
    say("forgotten");
  }
  return true;
}

function say(word: string): void {
  libc.write(1, Buffer.from(`${word}\n`), word.length + 1);
}

wakeInTime();
say("ready");
const poll = new Poll([0, ...sides.map((side) => devices[side])]);
for (;;) {
  const waitMs = Math.min(longestWaitMs, Math.max(0, translator.nextDueMs - performance.now()));
  poll.wait(waitMs * 1e6);
  for (const [index, side] of sides.entries()) if (poll.isReady(index + 1)) readFrom(side);
  emit(translator.due(performance.now()));
  if (poll.isReady(0) && !readCommands()) break;
}
