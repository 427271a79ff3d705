/**
 * The Internet of the lab: one process that carries IPv4 and IPv6 packets between sites by destination
 * address, late by as much as it is told. A site is a TUN device; the lab moves it into a namespace, where
 * it is the interface `wan`. What has no route is dropped without a word.
 *
 * One-way delay between two sites = the sum of their `owdMs`, plus up to the sum of their `jitterMs` at
 * random. Packets from one site to another never overtake each other, whatever jitter does. Each packet is
 * lost with the probability that either site loses it. A packet to an address of the site it comes from
 * goes back there after {@link mirrorDelayMs}: that is how the lab's NATs do hairpinning. A site with `upMbits` sends
 * no faster than that: what comes faster waits in its queue, and what finds the queue full is dropped.
 *
 * Commands come as JSON lines on stdin and are answered in order on stdout; the end of stdin ends it.
 */
import { ptr, type Pointer } from "bun:ffi";
import { openSync, writeSync } from "node:fs";
import { describePacket } from "./packet-text.ts";
import { libc, openTun, Poll, slotBytes, wakeInTime } from "./tun.ts";

/** One-way delay of a hairpinned packet; not zero, because races at zero delay are artefacts. */
export const mirrorDelayMs = 0.5;

export interface WanOptions {
  /** One-way delay between this site and the middle of the Internet, in milliseconds. */
  owdMs: number;
  /** Probability that a packet from or to this site is lost, 0 to 1. */
  loss: number;
  /** Largest random extra delay, in milliseconds. */
  jitterMs: number;
  /** What this site can send, in Mbit/s; 0: there is no limit. */
  upMbits: number;
  /** What may wait for that, in bytes. */
  upQueueBytes: number;
}

export type InternetCommand =
  | ({ type: "addSite"; site: string; device: string } & WanOptions)
  | ({ type: "setSite"; site: string } & Partial<WanOptions>)
  | { type: "route"; address: string; site: string }
  | { type: "unroute"; address: string }
  /** Writes a line to that file for every packet, to see afterwards who met whom when. */
  | { type: "trace"; path: string };
export type InternetAnswer = { ok: true } | { ok: false; error: string };

interface Site extends WanOptions {
  name: string;
  fd: number;
  /** When the last packet to each other site is due: none may be due earlier. */
  lastDue: Map<Site, number>;
  /** When all that waits will have been sent. */
  upFreeAt: number;
}

const slotCount = 16_384;
/** Packets read from one site before the others get their turn. */
const readBurst = 64;

/** The process is awake, and looks again and again, this long before a packet is due: waking up takes time. */
const spinNs = 150_000;

/** The 4 or 16 bytes of an address as a string with one character a byte: the key of the routing table. */
export function addressKey(address: string): string {
  if (!address.includes(":")) return String.fromCharCode(...address.split(".").map(Number));
  const [head = "", tail] = address.split("::");
  const words = (text: string) => (text === "" ? [] : text.split(":").map((word) => parseInt(word, 16)));
  const [front, back] = [words(head), words(tail ?? "")];
  const zeros = new Array<number>(8 - front.length - back.length).fill(0);
  return String.fromCharCode(...[...front, ...zeros, ...back].flatMap((word) => [word >> 8, word & 255]));
}

/** Packets under way, earliest first; among equals the one that came first. */
class DueHeap {
  readonly #slots: number[] = [];
  readonly #due = new Float64Array(slotCount);
  readonly #order = new Float64Array(slotCount);
  #count = 0;

  get nextDue(): number {
    return this.#slots.length === 0 ? Infinity : this.#due[this.#slots[0]!]!;
  }

  push(slot: number, due: number): void {
    this.#due[slot] = due;
    this.#order[slot] = this.#count++;
    const slots = this.#slots;
    let at = slots.push(slot) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!this.#isBefore(slot, slots[parent]!)) break;
      slots[at] = slots[parent]!;
      at = parent;
    }
    slots[at] = slot;
  }

  pop(): number {
    const slots = this.#slots;
    const first = slots[0]!;
    const last = slots.pop()!;
    if (slots.length === 0) return first;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= slots.length) break;
      if (child + 1 < slots.length && this.#isBefore(slots[child + 1]!, slots[child]!)) child++;
      if (!this.#isBefore(slots[child]!, last)) break;
      slots[at] = slots[child]!;
      at = child;
    }
    slots[at] = last;
    return first;
  }

  #isBefore(a: number, b: number): boolean {
    return (
      this.#due[a]! < this.#due[b]! || (this.#due[a] === this.#due[b] && this.#order[a]! < this.#order[b]!)
    );
  }
}

class Internet {
  readonly #sites: Site[] = [];
  readonly #byName = new Map<string, Site>();
  readonly #routes = new Map<string, Site>();
  readonly #heap = new DueHeap();

  readonly #packets = Buffer.alloc(slotCount * slotBytes);
  readonly #packetsAt: number = ptr(this.#packets);
  readonly #lengths = new Uint16Array(slotCount);
  readonly #targets = new Array<Site | undefined>(slotCount);
  readonly #freeSlots = Array.from({ length: slotCount }, (_, slot) => slot);

  /** Stdin, then the sites. */
  #poll = new Poll([0]);
  readonly #line = Buffer.alloc(65_536);
  #commands = "";
  #traceFd = -1;
  #traceStart = 0;

  run(): void {
    wakeInTime();
    for (;;) {
      this.#poll.wait(Math.min(1e9, Math.max(0, this.#heap.nextDue - Bun.nanoseconds() - spinNs)));
      for (const [index, site] of this.#sites.entries()) {
        if (this.#poll.isReady(index + 1)) this.#readFrom(site);
      }
      this.#deliverDue();
      if (this.#poll.isReady(0) && !this.#readCommands()) return;
    }
  }

  #readFrom(source: Site): void {
    for (let burst = 0; burst < readBurst; burst++) {
      const slot = this.#freeSlots.pop();
      if (slot === undefined) return; // the queue of a router is finite too: its device drops
      const length = libc.read(source.fd, this.#pointer(slot), slotBytes);
      const now = Bun.nanoseconds();
      const due = length > 0 ? this.#accept(source, slot, length, now) : undefined;
      if (this.#traceFd >= 0 && length > 0) this.#trace(source, slot, length, now, due);
      if (due === undefined) this.#freeSlots.push(slot);
      else {
        this.#lengths[slot] = length;
        this.#heap.push(slot, due);
      }
      if (length <= 0) return;
    }
  }

  /** Routes the packet in that slot: when it is due, or undefined to drop it. */
  #accept(source: Site, slot: number, length: number, now: number): number | undefined {
    const at = slot * slotBytes;
    const isIpv4 = this.#packets[at]! >> 4 === 4;
    const [from, to] = isIpv4 ? [at + 16, at + 20] : [at + 24, at + 40];
    const target = this.#routes.get(this.#packets.toString("latin1", from, to));
    if (target === undefined) return undefined;
    this.#targets[slot] = target;
    if (target === source) return now + mirrorDelayMs * 1e6;
    const kept = (1 - source.loss) * (1 - target.loss);
    if (kept < 1 && Math.random() >= kept) return undefined;
    const sentAt = this.#send(source, now, length);
    if (sentAt === undefined) return undefined;
    const jitterMs = Math.random() * (source.jitterMs + target.jitterMs);
    const due = sentAt + (source.owdMs + target.owdMs + jitterMs) * 1e6;
    const inOrder = Math.max(due, source.lastDue.get(target) ?? 0);
    source.lastDue.set(target, inOrder);
    return inOrder;
  }

  /** When the site's access has taken the packet, or undefined when its queue is full. */
  #send(source: Site, now: number, length: number): number | undefined {
    if (source.upMbits === 0) return now;
    const nsPerByte = 8_000 / source.upMbits;
    const freeAt = Math.max(now, source.upFreeAt);
    if ((freeAt - now) / nsPerByte + length > source.upQueueBytes) return undefined;
    return (source.upFreeAt = freeAt + length * nsPerByte);
  }

  #trace(source: Site, slot: number, length: number, now: number, due: number | undefined): void {
    const packet = describePacket(this.#packets.subarray(slot * slotBytes, slot * slotBytes + length));
    if (packet === undefined) return;
    const fate = due === undefined ? "dropped" : `due +${((due - now) / 1e6).toFixed(2)}`;
    const elapsedMs = ((now - this.#traceStart) / 1e6).toFixed(2);
    writeSync(this.#traceFd, `${elapsedMs.padStart(10)} ms  ${source.name}: ${packet}, ${fate}\n`);
  }

  #deliverDue(): void {
    while (this.#heap.nextDue <= Bun.nanoseconds()) {
      const slot = this.#heap.pop();
      libc.write(this.#targets[slot]!.fd, this.#pointer(slot), this.#lengths[slot]!);
      this.#freeSlots.push(slot);
    }
  }

  #pointer(slot: number): Pointer {
    return (this.#packetsAt + slot * slotBytes) as Pointer;
  }

  /** Whether stdin is still open. */
  #readCommands(): boolean {
    const length = libc.read(0, this.#line, this.#line.length);
    if (length <= 0) return false;
    const lines = (this.#commands + this.#line.toString("utf8", 0, length)).split("\n");
    this.#commands = lines.pop()!;
    for (const line of lines) {
      const answer = Buffer.from(JSON.stringify(this.#answer(line)) + "\n");
      libc.write(1, answer, answer.length);
    }
    return true;
  }

  #answer(line: string): InternetAnswer {
    try {
      this.#obey(JSON.parse(line) as InternetCommand);
      return { ok: true };
    } catch (error) {
      return { ok: false, error: error instanceof Error ? error.message : String(error) };
    }
  }

  #obey(command: InternetCommand): void {
    if (command.type === "unroute") return void this.#routes.delete(addressKey(command.address));
    if (command.type === "trace") {
      this.#traceStart = Bun.nanoseconds();
      this.#traceFd = openSync(command.path, "w");
      return;
    }
    if (command.type === "addSite") {
      const { type: _, site: name, device, ...options } = command;
      const added: Site = { ...options, name, fd: openTun(device), lastDue: new Map(), upFreeAt: 0 };
      this.#byName.set(name, added);
      this.#sites.push(added);
      this.#poll = new Poll([0, ...this.#sites.map(({ fd }) => fd)]);
      return;
    }
    const site = this.#byName.get(command.site);
    if (!site) throw new Error(`no site ${command.site}`);
    if (command.type === "route") return void this.#routes.set(addressKey(command.address), site);
    site.owdMs = command.owdMs ?? site.owdMs;
    site.loss = command.loss ?? site.loss;
    site.jitterMs = command.jitterMs ?? site.jitterMs;
    site.upMbits = command.upMbits ?? site.upMbits;
    site.upQueueBytes = command.upQueueBytes ?? site.upQueueBytes;
  }
}

if (import.meta.main) new Internet().run();
