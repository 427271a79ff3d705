/** Who makes an introducer read, or relay, a byte at a time: neither it nor those who are relayed beside are held up. */
import { expect, setDefaultTimeout } from "bun:test";
import { join } from "node:path";
import { linuxTest } from "../needing-fixture.ts";
import { House, linesOf } from "./house.ts";
import { dial, LineSocket, makeIdentity, Member, until } from "./wire.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const identity = makeIdentity();
let rooms = 0;

/** Two ends of a relayed link, whose members have no direct way. */
async function relayed(port: number, addresses: [string, string]): Promise<[LineSocket, LineSocket]> {
  const room = `${++rooms}`.padStart(64, "a");
  const sides = addresses.map((from, side) =>
    Member.join(port, { name: `honest${side}`, identity, from, lie: { room } }),
  );
  const [anna, bert] = (await Promise.all(sides)) as [Member, Member];
  for (const one of [anna, bert]) one.say({ type: "mapping", mapping: "random" });
  await anna.hears("updated", ({ id, mapping }) => id === bert.id && mapping === "random");
  await bert.hears("updated", ({ id, mapping }) => id === anna.id && mapping === "random");
  anna.say({ type: "connect", peer: bert.id });
  const [{ token }] = await Promise.all([anna.hears("relay"), bert.hears("relay")]);
  const ends = addresses.map(async (from) => {
    const end = new LineSocket(await dial("127.0.0.1", port, from));
    end.say({ type: "relay", token });
    await end.hears("relaying");
    end.bytes = 0;
    end.onBytes = () => {};
    return end;
  });
  return Promise.all(ends) as Promise<[LineSocket, LineSocket]>;
}

/** As much as it takes, in full segments. */
function sendAll({ socket }: LineSocket): void {
  const part = new Uint8Array(64 * 1024);
  const more = () => {
    while (!socket.destroyed && socket.write(part));
  };
  socket.on("drain", more);
  more();
}

/** byte-flood-fixture.ts. */
class Flood implements AsyncDisposable {
  readonly #child: Bun.Subprocess<"ignore", "pipe", "inherit">;
  readonly #said: AsyncIterator<string>;

  private constructor(kind: string, port: number) {
    const command = [process.execPath, join(import.meta.dir, "byte-flood-fixture.ts"), kind, String(port)];
    this.#child = Bun.spawn(command, { stdin: "ignore", stdout: "pipe", stderr: "inherit" });
    this.#said = linesOf(this.#child.stdout);
  }

  /** Resolves once it has begun. */
  static async start(kind: string, port: number): Promise<Flood> {
    const flood = new Flood(kind, port);
    await flood.#said.next();
    return flood;
  }

  async sent(): Promise<number> {
    this.#child.kill("SIGUSR2");
    return (JSON.parse((await this.#said.next()).value) as { sent: number }).sent;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#child.exited;
  }
}

async function busyOf(house: House): Promise<number> {
  const [{ busyMs }, startedAt] = [await house.heap(), performance.now()];
  await Bun.sleep(measureMs); // what is measured is a rate
  return ((await house.heap()).busyMs - busyMs) / (performance.now() - startedAt);
}

const measureMs = 1_000;
/** Of one that nobody visits. */
let quietly: Promise<number> | undefined;

for (const [kind, who] of [
  ["probes", "connections to a probe port"],
  ["closing", "connections that are closed already"],
  ["half", "lines without an end"],
] as const)
  linuxTest(
    `${who} take a share of the processor by one-byte segments, and no more`,
    async () => {
      await using house = await House.start({ probePorts: [0] });
      const quiet = await (quietly ??= busyOf(house));
      await using flood = await Flood.start(kind, kind === "probes" ? house.probePorts[0]! : house.port);
      expect((await busyOf(house)) - quiet).toBeLessThan(0.2);
      expect(await flood.sent()).toBeGreaterThan(100); // whoever floods a probe port has to come anew for each few
    },
    testMs,
  );

linuxTest(
  "links of one-byte segments take a share of the processor, and no other link's rate",
  async () => {
    await using house = await House.start({ probePorts: [] });
    const [from, to] = await relayed(house.port, ["127.0.0.4", "127.0.0.5"]);
    sendAll(from);
    await until("the honest are relayed", () => to.bytes > 256 * 1024);
    const measure = async () => {
      const [{ busyMs }, bytes, startedAt] = [await house.heap(), to.bytes, performance.now()];
      await Bun.sleep(measureMs); // what is measured is a rate
      const elapsedMs = performance.now() - startedAt;
      const { busyMs: busyThen } = await house.heap();
      return { busy: (busyThen - busyMs) / elapsedMs, rate: (to.bytes - bytes) / elapsedMs };
    };
    const quiet = await measure();
    await using flood = await Flood.start("relays", house.port);
    // The flood and whoever else works on this machine take processor time from both ends, too.
    let isKept = false;
    for (let times = 0; times < 5 && !isKept; times++) {
      const during = await measure();
      expect(during.busy - quiet.busy).toBeLessThan(0.2);
      isKept = during.rate > 0.8 * quiet.rate;
    }
    expect(isKept).toBe(true);
    expect(await flood.sent()).toBeGreaterThan(10_000);
    for (const end of [from, to]) end.cut();
  },
  testMs,
);

linuxTest(
  "whoever has used its address's share up is relayed all the same, byte for byte, to the end",
  async () => {
    const limits = { processorMs: 0.2 };
    await using house = await House.start({ probePorts: [], limits });
    const [from, to] = await relayed(house.port, ["127.0.0.4", "127.0.0.5"]);
    let heard = "";
    to.onBytes = (chunk) => (heard += chunk.toString());
    let sent = "";
    for (let n = 0; n < 2_000; n++) {
      const text = String(n % 10);
      sent += text;
      from.raw(text);
      await new Promise(setImmediate);
    }
    from.close();
    await to.lines.over();
    expect(heard).toBe(sent);
    to.close();
    await from.lines.over();
    await until("it is over", async () => (await house.heap()).relays === 0);
  },
  testMs,
);
