/**
 * Strangers to whom the introducer's port is open, with as many addresses, connections and names as they like, by hand
 * and against the real program: what they must not take from everyone else.
 */
import { expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { Introducer } from "../../introducer.ts";
import { linuxTest, missing, testNeeding } from "../needing-fixture.ts";
import { freePort } from "../sockets-fixture.ts";
import { dial, hex, Inbox, LineSocket, makeIdentity, Member, sha256, until, type Line } from "./wire.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const program = join(import.meta.dir, "..", "..", "introducer.ts");

/** The introducer's program on loopback, with its events and commands. */
class House implements AsyncDisposable {
  readonly events = new Inbox<Line>();
  port = 0;
  readonly #child;

  private constructor(options: string[]) {
    const command = [process.execPath, program, "--host", "127.0.0.1", "--json", ...options];
    this.#child = Bun.spawn(command, { stdin: "pipe", stdout: "pipe", stderr: "inherit" });
    void this.#read();
  }

  static async open(...options: string[]): Promise<House> {
    const port = freePort();
    const house = new House([String(port), ...options]);
    house.port = port;
    await house.hears("listening");
    return house;
  }

  async #read(): Promise<void> {
    let held = "";
    for await (const chunk of this.#child.stdout.pipeThrough(new TextDecoderStream())) {
      const lines = (held + chunk).split("\n");
      held = lines.pop()!;
      for (const line of lines) this.events.push(JSON.parse(line));
    }
    this.events.end("it has ended");
  }

  type(line: string): void {
    this.#child.stdin.write(`${line}\n`);
    void this.#child.stdin.flush();
  }

  hears(event: string, fits: (line: Line) => boolean = () => true): Promise<Line> {
    return this.events.next(event, (line) => line["event"] === event && fits(line));
  }

  count(event: string): number {
    return this.events.all.filter((line) => line["event"] === event).length;
  }

  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  /** What a command of the operator's answers. */
  async ask(command: string, event: string): Promise<Line> {
    this.type(command);
    return this.hears(event);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#child.exited;
  }
}

/** Resolves once all that it has said before has been read. */
async function settled(one: Member): Promise<void> {
  const text = crypto.randomUUID();
  one.say({ type: "echo", text });
  await one.hears("echo", (line) => line["text"] === text);
}

const linked = (token: string, peer: number, route: string) => ({
  type: "linked",
  peer,
  token,
  route,
  local: "127.0.0.1:9",
  remote: "127.0.0.1:8",
});

// --- what is said of links ---------------------------------------------------------------------------------

test("a link that nobody was told to make is neither listed nor logged", async () => {
  await using house = await House.open();
  using eve = await Member.join(house.port, { name: "eve" });
  using mallory = await Member.join(house.port, { name: "mallory" });
  using bob = await Member.join(house.port, { name: "bob" });
  const links = [{ peer: bob.instance, route: "public" }];
  using liar = await Member.join(house.port, { name: "liar", lie: { links } });
  await settled(liar);
  eve.say({ type: "connect", peer: mallory.id });
  const { token } = await eve.hears("punch");
  eve.say(linked(hex(16), bob.id, "public"), linked(token, bob.id, "public")); // invented; of another pair
  bob.say(linked(token, eve.id, "public")); // somebody else's
  await Promise.all([settled(eve), settled(bob)]);
  eve.say(linked(token, mallory.id, "public"), linked(token, mallory.id, "public"));
  await settled(eve);
  const { participants } = await house.ask("list", "participants");
  const listed = Object.fromEntries(participants.map((one: Line) => [one["name"], one["linked"]]));
  expect(listed).toEqual({ eve: [mallory.id], mallory: [], bob: [], liar: [] });
  expect(house.count("linked")).toBe(1);
});

linuxTest("one side that says twice that it is relayed is not counted as a link", async () => {
  await using house = await House.open();
  using eve = await Member.join(house.port, { name: "eve", from: "127.0.0.2" });
  using bob = await Member.join(house.port, { name: "bob", from: "127.0.0.3" });
  for (const one of [eve, bob]) one.say({ type: "mapping", mapping: "random" });
  await Promise.all([settled(eve), settled(bob)]);
  eve.say({ type: "connect", peer: bob.id });
  const { token } = await eve.hears("relay");
  eve.say(linked(token, bob.id, "relay"), linked(token, bob.id, "relay"));
  await settled(eve);
  bob.say({ type: "failed", peer: eve.id, token, reason: "timed-out" });
  await house.hears("failed");
  const { stats } = await house.ask("stats", "stats");
  expect(stats.introductions).toEqual([{ outcome: "timed-out", way: "relay", count: 1 }]);
});

// --- names -------------------------------------------------------------------------------------------------

/** Comes under that name from there, and goes; resolves once it is in, to the answer. */
async function comeAndGo(port: number, name: string, from: string, lie: object = {}): Promise<Line> {
  using one = await Member.connect(port, { identity: mallory, from });
  await one.register({ name, lie });
  return await one.lines.next("an answer", ({ type }) => type === "registered" || type === "refused");
}
const mallory = makeIdentity();

linuxTest.each([
  ["in rooms of their own", (n: number) => ({ room: `room-${n}` })],
  ["in one other room", () => ({ room: "another" })],
  ["in the same room", () => ({})],
])("those who come and go %s take nobody's name", async (_, lie) => {
  const limits = { keptNames: 40, keptNamesPerAddress: 10, keptNamesRooms: 10 };
  await using house = Introducer.start({ host: "127.0.0.1", port: 0, limits });
  {
    using alice = await Member.join(house.port, { name: "alice", from: "127.0.0.3" });
    await settled(alice);
  }
  await until("she has left", () => house.stats.participants === 0);
  for (let n = 0; n < 100; n++) await comeAndGo(house.port, `m${n}`, "127.0.0.1", lie(n));
  await until("all have left", () => house.stats.participants === 0);
  expect(await comeAndGo(house.port, "alice", "127.0.0.2")).toMatchObject({ code: "name-taken" });
});

// --- a crowd -----------------------------------------------------------------------------------------------

/** So many who register, in rooms of 16. */
async function crowd(port: number, size: number) {
  const stack = new DisposableStack();
  const all: LineSocket[] = [];
  const join = async (n: number) => {
    const one = stack.use(new LineSocket(await dial("127.0.0.1", port)));
    all.push(one);
    const shown = { name: `n${n}`, room: `room ${n >> 4}`, instance: sha256(`n${n}`).slice(0, 16) };
    // Who has another's certificate has that one asked whether it is still there, and nobody here answers.
    const rest = { fingerprint: sha256(`n${n}`), private: ["192.168.1.5:40000"], links: [] };
    one.say({ type: "register", version: 2, ...shown, ...rest });
    await one.hears("registered");
  };
  // Who has connected must register soon: not all at once.
  for (let n = 0; n < size; n += 100)
    await Promise.all(Array.from({ length: Math.min(100, size - n) }, (_, index) => join(n + index)));
  /** What they are told waits at their sockets: this process would be as busy with that as the introducer. */
  const pause = () => all.forEach(({ socket }) => void socket.pause());
  const hear = (type: string) => Promise.all(all.map((one) => (one.socket.resume(), one.hears(type))));
  return { all, pause, hear, [Symbol.dispose]: () => stack.dispose() };
}

/** Had it all to be done at one go, these would be heard before and after it. */
const mostBeside = 3;

/** How often one hears an echo until that has happened. */
async function echoesUntil(one: Member, hasHappened: () => boolean): Promise<number> {
  let echoes = 0;
  for (; !hasHappened(); echoes++) await settled(one);
  return echoes;
}

test.each([[[]], [["--json"]]])(
  "`list` of two thousand keeps nobody waiting (%p)",
  async (options) => {
    const port = freePort();
    const command = [process.execPath, program, String(port), "--host", "127.0.0.1", "-q", ...options];
    await using child = Bun.spawn(command, { stdin: "pipe", stdout: "pipe", stderr: "inherit" });
    let output = "";
    void (async () => {
      for await (const text of child.stdout.pipeThrough(new TextDecoderStream())) output += text;
    })();
    const isListening = () =>
      dial("127.0.0.1", port).then(
        (socket) => !!socket.destroy(),
        () => false,
      );
    await until("it listens", isListening);
    using eve = await Member.join(port, { name: "eve" });
    using _crowd = await crowd(port, 2000);
    await settled(eve);
    output = "";
    child.stdin.write("list\n");
    await child.stdin.flush();
    const end = options.length > 0 ? /\],"at":[\d.]+\}\n$/ : /2001 participants in 126 rooms, 0 links\n$/;
    expect(await echoesUntil(eve, () => end.test(output))).toBeGreaterThan(mostBeside);
    expect(output).toContain("n1999");
    child.kill("SIGKILL");
  },
  testMs,
);

test("a word to two thousand keeps nobody waiting", async () => {
  await using house = await House.open();
  using eve = await Member.join(house.port, { name: "eve" });
  using others = await crowd(house.port, 2000);
  await settled(eve);
  others.pause();
  house.type("broadcast so long");
  expect(await echoesUntil(eve, () => house.count("told") > 0)).toBeGreaterThan(mostBeside);
  await others.hear("notice");
});

test("the end for two thousand keeps nobody waiting who is still introduced, and nobody hears of the others", async () => {
  await using house = await House.open();
  using eve = await Member.join(house.port, { name: "eve" });
  using bob = await Member.join(house.port, { name: "bob" });
  using others = await crowd(house.port, 2000);
  eve.say({ type: "connect", peer: bob.id });
  await eve.hears("punch");
  others.pause();
  house.signal("SIGTERM");
  await house.hears("draining", ({ participants, punching }) => participants === 2002 && punching === 2);
  expect(await echoesUntil(eve, () => house.count("left") === 2000)).toBeGreaterThan(mostBeside);
  await others.hear("bye");
  const heard = others.all.flatMap(({ lines }) => lines.all.filter(({ type }) => type === "left"));
  expect(heard).toEqual([]);
});

// --- whole IPv6 sites, in a namespace of their own ---------------------------------------------------------

const namespace = ["unshare", "-Urn", "sh", "-ec"];
const sites = `
ip link set lo up
ip -6 route add local 2001:db8::/32 dev lo
echo 1 > /proc/sys/net/ipv6/ip_nonlocal_bind
ip addr add 169.254.7.7/16 dev lo
ip addr add fe80::7/64 dev lo nodad
exec "$@"`;

function siteObstacle(): string | undefined {
  const absent = missing(["unshare", "ip"], "packages util-linux, iproute2");
  if (absent !== undefined) return absent;
  const { success, stderr } = Bun.spawnSync([...namespace, sites, "sh", "true"]);
  return success ? undefined : `no network namespace: ${stderr.toString().trim()}`;
}
const siteTest = testNeeding(siteObstacle()).concurrent;

async function attack(name: string): Promise<Record<string, unknown>> {
  const fixture = join(import.meta.dir, "sites-fixture.ts");
  const command = [...namespace, sites, "sh", process.execPath, fixture, name];
  await using child = Bun.spawn(command, {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "inherit",
    timeout: 60_000,
  });
  return JSON.parse(await child.stdout.text());
}

siteTest(
  "a site with 65,536 addresses does not fill the lobby",
  async () => {
    const { places, refusal, other } = await attack("lobby");
    expect(places).toBeLessThanOrEqual(128);
    expect(refusal).toContain("(4 times that of an IPv6 /48) in a room are enough");
    expect(other).toBe("registered");
  },
  60_000,
);

siteTest(
  "a site with 65,536 addresses has nobody punch more than all others together may",
  async () => {
    const { punches, other } = await attack("target");
    expect(punches).toBeLessThan(80); // 60 a minute, and what comes back meanwhile
    expect(other).toBe("punch");
  },
  60_000,
);

siteTest(
  "a site that has all its connections is not answered from ever new addresses",
  async () => {
    expect(await attack("refusals")).toEqual({ turnedAway: true });
  },
  60_000,
);

siteTest("who comes by a link-local address is told why it is closed, and counted", async () => {
  const closed = (address: string) => ({
    code: "bad-field",
    message: `you come by ${address}, a link-local address that peers can't use: take another way to the introducer`,
    end: "it ended the connection",
  });
  expect(await attack("linkLocal")).toEqual({
    told: [closed("169.254.7.7"), closed("fe80::7")],
    refusals: [{ code: "bad-field", count: 2 }],
    refused: 2,
  });
});
