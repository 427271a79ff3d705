/**
 * Strangers with more addresses than one: run in a network namespace of its own, in which every address of
 * 2001:db8::/32 is this host's, as whole IPv6 sites are somebody's, and some link-local ones. `attack NAME` is one of
 * {@link attacks}; what came of it goes to standard output as JSON. For stranger.test.ts.
 */
import { dial, LineSocket, sha256, until } from "./wire.ts";

const port = 7000;
const program = new URL("../../introducer.ts", import.meta.url).pathname;

async function introducer(...options: string[]) {
  const command = [process.execPath, program, String(port), "--json", ...options];
  const child = Bun.spawn(command, { stdin: "pipe", stdout: "pipe", stderr: "ignore" });
  const events: { event: string; [field: string]: unknown }[] = [];
  void (async () => {
    let held = "";
    for await (const chunk of child.stdout.pipeThrough(new TextDecoderStream())) {
      const lines = (held + chunk).split("\n");
      held = lines.pop()!;
      events.push(...lines.map((line) => JSON.parse(line)));
    }
  })();
  await until("it listens", () => events.some(({ event }) => event === "listening"));
  const stats = async () => {
    const before = events.filter(({ event }) => event === "stats").length;
    child.stdin.write("stats\n");
    await child.stdin.flush();
    const all = () => events.filter(({ event }) => event === "stats");
    await until("stats came", () => all().length > before);
    return all().at(-1)!["stats"] as { turnedAway: number; refusals: unknown[]; connections: number };
  };
  return { events, stats, [Symbol.dispose]: () => child.kill("SIGKILL") };
}

/** Of a site, by the number of its /64. */
const inSite = (site: number, index: number, host = 1) =>
  `2001:db8:${site.toString(16)}:${index.toString(16)}::${host.toString(16)}`;

/** Registers from there; resolves to the answer. */
async function join(from: string, name: string, to = inSite(0xffff, 1)) {
  const member = new LineSocket(await dial(to, port, from), (line) => {
    if (line.type === "ping") member.say({ type: "pong", id: line["id"] });
  });
  const own = { instance: sha256(name).slice(0, 16), fingerprint: "ab".repeat(32), private: [], links: [] };
  member.say({ type: "register", version: 2, name, room: "lobby", ...own });
  const answer = await member.lines.next(
    "an answer",
    ({ type }) => type === "registered" || type === "refused",
  );
  return { member, answer };
}

/** So many of site 7 who come 16 at a time, each from a /64 that `of` says. */
async function joinCrowd(count: number, of: (n: number) => number) {
  const all: Awaited<ReturnType<typeof join>>[] = [];
  const next = (n: number) => join(inSite(7, of(n)), `e${digits(n)}`);
  while (all.length < count)
    all.push(...(await Promise.all(Array.from({ length: 16 }, (_, n) => next(all.length + n)))));
  return all;
}

const digits = (n: number) => n.toString(16).padStart(4, "0");

const attacks = {
  /** As many places of the lobby as one /48 gets, and whether there is one left for somebody else. */
  async lobby() {
    using _house = await introducer();
    const answers = (await joinCrowd(512, (n) => n >> 1)).map(({ answer }) => answer);
    const refused = answers.filter(({ type }) => type !== "registered");
    const other = await join(inSite(8, 0), "anna");
    return { places: 512 - refused.length, refusal: refused[0]?.["message"], other: other.answer.type };
  },

  /** How often one who links with nobody is punched at by a /48, and whether somebody else still may. */
  async target() {
    using _house = await introducer();
    const bob = await join(inSite(8, 0), "bob");
    const peer = bob.answer["id"];
    const crowd = (await joinCrowd(128, (n) => n)).map(({ member }) => member);
    for (const one of [bob.member, ...crowd]) one.say({ type: "mapping", mapping: "endpoint-independent" });
    const answers = crowd.map((one) => {
      one.say({ type: "connect", peer });
      return one.lines.next("an answer", ({ type }) => type === "punch" || type === "refused");
    });
    const punches = (await Promise.all(answers)).filter(({ type }) => type === "punch").length;
    const anna = await join(inSite(9, 0), "anna");
    anna.member.say({ type: "mapping", mapping: "endpoint-independent" }, { type: "connect", peer });
    const other = await anna.member.lines.next(
      "an answer",
      ({ type }) => type === "punch" || type === "refused",
    );
    return { punches, other: other.type };
  },

  /** How many of a /48 that has all the connections it may have are told so, at once and from ever new addresses. */
  async refusals() {
    using house = await introducer("--max-per-address", "4");
    const tries = Array.from({ length: 120 }, (_, n) => dial(inSite(0xffff, 1), port, inSite(7, n)));
    for (const { socket } of (await Promise.allSettled(tries)).flatMap((one) =>
      one.status === "fulfilled" ? new LineSocket(one.value) : [],
    ))
      socket.resume();
    await until("all are in, or closed", async () => {
      const { turnedAway, connections } = await house.stats();
      return turnedAway + connections >= 120;
    });
    const { turnedAway } = await house.stats();
    return { turnedAway: turnedAway > 60 };
  },

  /** What those are told that come by an address that only their own network has. */
  async linkLocal() {
    using house = await introducer();
    const told = [];
    for (const address of ["169.254.7.7", "fe80::7%lo"]) {
      const { answer, member } = await join(undefined as never, "anna", address);
      told.push({ code: answer["code"], message: answer["message"], end: await member.lines.over() });
    }
    const { refusals } = await house.stats();
    const refused = house.events.filter(({ event }) => event === "refused").map(({ address }) => address);
    return { told, refusals, refused: refused.length };
  },
};

const attack = attacks[process.argv[2] as keyof typeof attacks];
process.stdout.write(JSON.stringify(await attack()) + "\n", () => process.exit(0));
