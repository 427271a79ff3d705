/**
 * A week's worth of joins and leaves within minutes: participants that were never there before come to the introducer's
 * real program by two, to private rooms and to the lobby, say what participants say, are introduced, linked or not,
 * relayed or not, and leave in order or at once, also in the middle of it. What the introducer has then must be what it
 * had when all that it keeps for a while had filled up. With `redis` it shares its rooms, and the keys are looked at.
 */
import type { Socket } from "bun";
import { existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { encode, protocolVersion, type Endpoint, type ToIntroducer } from "../../protocol.ts";
import { RedisServer } from "../introducer/redis-fixture.ts";
import { connectFrom } from "./crowd.ts";
import type { Heap } from "./heap-fixture.ts";
import { address4, introducerPort, Program, runInNamespace } from "./program.ts";
import { quick, table } from "./run.ts";

/** Couples that are there at once, and how often one of them goes to the lobby. */
const couples = quick(48, 8);
const lobbyPart = 0.2;
/** Who comes uses one of so many addresses; another one when it comes again. */
const addresses = 20_000;
/** Names and pairs are remembered for up to 90 s; what counts begins after it. */
const warmUpMs = 100_000;
const rows = 10;
/** Nobody waits longer for what the introducer should say. */
const patienceMs = 5000;

const hash = (text: string) => new Bun.CryptoHasher("sha256").update(text).digest("hex");
const chance = (part: number) => Math.random() < part;

let joins = 0;
let lost = 0;

/** Never seen before, and gone soon. */
class Visitor {
  readonly instance: string;
  id = 0;
  readonly #socket: Socket;
  #waiting: { type: string; resolve: (line: string) => void } | undefined;

  private constructor(socket: Socket, instance: string) {
    this.#socket = socket;
    this.instance = instance;
  }

  static async come(number: number, room: string, peer: string | undefined): Promise<Visitor> {
    const instance = hash(`${number} ${process.pid}`);
    const address = address4(100, Math.floor(Math.random() * addresses));
    let rest = "";
    const socket = await connectFrom(address, introducerPort, {
      data(_, chunk) {
        const lines = (rest + chunk.toString()).split("\n");
        rest = lines.pop()!;
        for (const line of lines) visitor.#heard(line);
      },
      close: () => visitor.#heard('{"type":"closed"}'),
      error() {},
      end: (own) => void own.end(),
    });
    const visitor = new Visitor(socket, instance);
    const registered = visitor.next("registered");
    visitor.say({
      type: "register",
      version: protocolVersion,
      name: `visitor-${number}`,
      room,
      instance: instance.slice(0, 16),
      fingerprint: hash(instance),
      ...(room !== "lobby" && { proof: hash(`proof ${instance}`) }),
      private: [`192.168.${number % 250}.5:${1024 + (number % 60_000)}` as Endpoint],
      links: peer === undefined ? [] : [{ peer: peer.slice(0, 16), route: "public" }],
    });
    const [, id] = /"id":(\d+)/.exec(await registered) ?? [];
    if (id === undefined) throw new Error("not registered");
    visitor.id = Number(id);
    joins++;
    return visitor;
  }

  #heard(line: string): void {
    const type = /^\{"type":"([\w-]+)"/.exec(line)?.[1];
    if (type === "ping") this.#socket.write(`${line.replace("ping", "pong")}\n`);
    if (type === "measure") this.say({ type: "measured", token: tokenOf(line) });
    const waiting = this.#waiting;
    if (waiting === undefined || ![waiting.type, "closed", "failed", "refused"].includes(type ?? "")) return;
    this.#waiting = undefined;
    waiting.resolve(line);
  }

  /** The next line of that type; what comes instead when there is none. */
  next(type: string): Promise<string> {
    const { promise, resolve, reject } = Promise.withResolvers<string>();
    const timer = setTimeout(() => reject(new Error(`no ${type} in ${patienceMs} ms`)), patienceMs);
    this.#waiting = { type, resolve };
    return promise.finally(() => clearTimeout(timer));
  }

  say(message: ToIntroducer): void {
    this.#socket.write(encode(message));
  }

  /** In order, at once, or in the middle of a line. */
  leave(): void {
    if (chance(0.1)) this.#socket.write('{"type":"echo","text":"half of');
    if (chance(0.5)) this.#socket.end();
    else this.#socket.terminate();
  }
}

const tokenOf = (line: string) => /"token":"(\w+)"/.exec(line)?.[1] ?? "";

/** Two visits at a time, and what two do. */
async function couple(number: number): Promise<void> {
  const room = chance(lobbyPart) ? "lobby" : hash(`room ${number} ${process.pid}`);
  const a = await Visitor.come(number, room, undefined);
  let b: Visitor | undefined;
  try {
    b = await Visitor.come(number + 1, room, a.instance);
    const relays = chance(0.02);
    const mapping = relays ? "random" : chance(0.5) ? "endpoint-independent" : "sequential";
    for (const one of [a, b]) one.say({ type: "mapping", mapping });
    if (chance(0.9)) await meet(a, b, relays);
    if (chance(0.3)) a.say({ type: "unlinked", peer: b.id, reason: "quit" });
  } finally {
    a.leave();
    b?.leave();
  }
}

async function meet(a: Visitor, b: Visitor, relays: boolean): Promise<void> {
  const [asker, other] = [a, b].map((one) => one.next(relays ? "relay" : "punch"));
  other!.catch(() => {}); // who is asked for is told of no failure
  a.say({ type: "connect", peer: b.id });
  if (chance(0.1)) return void asker!.catch(() => {}); // gone before
  const told = [await asker!];
  if (told[0]!.startsWith('{"type":"failed')) return; // all relays are taken
  told.push(await other!);
  if (relays) return relayed(tokenOf(told[0]!), a, b);
  for (const [n, one] of [a, b].entries()) {
    const report = { peer: one === a ? b.id : a.id, token: tokenOf(told[n]!) };
    if (chance(0.2)) one.say({ type: "failed", ...report, reason: "no-candidate-answered" });
    else
      one.say({
        type: "linked",
        ...report,
        route: "public",
        local: "192.168.1.5:4000" as Endpoint,
        remote: "203.0.113.7:5000" as Endpoint,
      });
  }
}

/** Some bytes through a relay; sometimes only one side comes. */
async function relayed(token: string, a: Visitor, b: Visitor): Promise<void> {
  const { promise: arrived, resolve } = Promise.withResolvers<void>();
  const data = (_: Socket, chunk: Buffer) => void (chunk.includes("the end") && resolve());
  const open = () => connectFrom("10.99.99.1", introducerPort, { data, error() {}, close: () => resolve() });
  const ends = [await open(), await open()];
  for (const end of chance(0.8) ? ends : ends.slice(1)) end.write(encode({ type: "relay", token }));
  ends[1]!.write("x".repeat(20_000) + "the end");
  if (chance(0.8)) await Promise.race([arrived, Bun.sleep(200)]);
  for (const one of [a, b]) if (chance(0.5)) one.say({ type: "echo", text: "bye" });
  for (const end of ends) chance(0.5) ? end.end() : end.terminate();
}

async function comeAndGo(untilMs: number): Promise<void> {
  while (performance.now() < untilMs) {
    try {
      await couple(2 * ++begun);
    } catch (error) {
      if (lost++ < 3) console.error(String(error));
    }
  }
}
let begun = 0;

async function heapOf(program: Program): Promise<Heap> {
  rmSync(program.heapFile, { force: true });
  process.kill(program.pid, "SIGUSR2");
  while (!existsSync(program.heapFile)) await Bun.sleep(10);
  return JSON.parse(readFileSync(program.heapFile, "utf8")) as Heap;
}

const mib = (bytes: number) => (bytes / 1024 ** 2).toFixed(1);

interface Look extends Heap {
  residentBytes: number;
  row: string[];
}

async function look(program: Program, elapsedMs: number): Promise<Look> {
  const heap = await heapOf(program);
  const metrics = await program.metrics();
  const residentBytes = metrics.get("process_resident_memory_bytes")!;
  const descriptors = readdirSync(`/proc/${program.pid}/fd`).length;
  const shown = ["connections", "participants", "rooms", "relays"].map((name) =>
    String(metrics.get(`introducer_${name}`)),
  );
  const sizes = [mib(residentBytes), mib(heap.heapBytes), String(heap.objects), String(descriptors)];
  const row = [`${(elapsedMs / 1000).toFixed(0)} s`, String(joins), ...sizes, ...shown];
  console.error(row.join("  "));
  return { ...heap, residentBytes, row };
}

/** What there is more of after than before, of the kinds of objects that there are many of. */
function grown(before: Look, after: Look): string {
  const more = Object.entries(after.kinds)
    .map(([kind, count]) => [kind, count - (before.kinds[kind] ?? 0)] as const)
    .filter(([, count]) => count > 0.1 * couples)
    .sort(([, a], [, b]) => b - a);
  return more.map(([kind, count]) => `${kind} +${count}`).join(", ") || "no kind of object";
}

/** `bun run bench churn [MINUTES] [redis]` */
export async function bench(args: string[]): Promise<void> {
  if (await runInNamespace("churn", args)) return;
  await using redis = args.includes("redis") ? await RedisServer.start() : undefined;
  await using program = await Program.start(redis ? ["--redis", redis.url] : [], "heap-fixture.ts");
  const totalMs = 60_000 * Number(args.find((arg) => arg !== "redis") ?? quick(10, 0.05));
  const startedAt = performance.now();
  const all = Array.from({ length: couples }, () => comeAndGo(startedAt + totalMs));
  const looks: Look[] = [];
  for (let n = 1; n <= rows; n++) {
    await Bun.sleep(startedAt + (n * totalMs) / rows - performance.now());
    looks.push(await look(program, performance.now() - startedAt));
  }
  await Promise.all(all);
  const warm = looks.find((_, n) => ((n + 1) * totalMs) / rows >= Math.min(warmUpMs, totalMs / 2))!;
  const last = looks.at(-1)!;
  const head = [
    "after",
    "joins",
    "MiB",
    "heap MiB",
    "objects",
    "files",
    "connections",
    "here",
    "rooms",
    "relays",
  ];
  console.log(table([head, ...looks.map(({ row }) => row)]));
  const [rss, heap] = [last.residentBytes - warm.residentBytes, last.heapBytes - warm.heapBytes];
  console.log(
    `\nfrom ${warm.row[0]} on: ${mib(rss)} MiB and ${mib(heap)} MiB of heap more; ${grown(warm, last)}`,
  );
  console.log(`${lost} of ${begun} couples were not told what they waited for`);
  if (!redis) return;
  await Bun.sleep(2000);
  console.log(`keys in Redis, once all have left: ${String(await redis.command("DBSIZE"))}`);
  console.log(
    String(await redis.command("KEYS", "*"))
      .split(",")
      .slice(0, 20)
      .join("\n"),
  );
}
