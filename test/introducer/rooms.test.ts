import { describe, expect, setDefaultTimeout } from "bun:test";
import { Introducer } from "../../introducer.ts";
import type { IntroducerOptions } from "../../native/introducer/events.ts";
import type { Limits } from "../../native/introducer/limits.ts";
import { KeptNames } from "../../native/introducer/rooms.ts";
import {
  encode,
  formatEndpoint,
  type Mapping,
  maxNameLength,
  splitEndpoint,
  type ToIntroducer,
  type ToParticipant,
} from "../../protocol.ts";
import { Client, linkedBy, type MessageOf, registration } from "../client-fixture.ts";
import { until } from "../native-fixture.ts";
import { linuxTest } from "../needing-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import { testAtOnce } from "../places-fixture.ts";

const test = testAtOnce(8);
setDefaultTimeout(testMs);

function introduce(limits: Partial<Limits> = {}, options: IntroducerOptions = {}) {
  return Introducer.start({ host: "127.0.0.1", port: 0, probePorts: [], limits, ...options });
}

const [ours, theirs] = ["ab".repeat(32), "cd".repeat(32)];
let instances = 0;

/** A program that says `register`, and again by the name that it is given where its own is taken. */
class Program extends Client {
  id = 0;
  name: string;
  readonly instance = String(++instances).padStart(16, "0");
  readonly fingerprint: string;

  constructor(port: number, name: string, certificate = ours, localAddress?: string) {
    super(port, localAddress);
    this.name = name;
    this.fingerprint = certificate;
  }

  register(room = "lobby"): void {
    const { name, instance, fingerprint } = this;
    this.send({ ...registration(name, room), instance, fingerprint });
  }

  /** The name that is free. */
  async refused(): Promise<string | undefined> {
    const { code, name } = await this.next("refused");
    expect(code).toBe("name-taken");
    return name;
  }

  async registered(): Promise<string> {
    const { id, name } = await this.next("registered");
    this.id = id;
    return name;
  }
}

/** One room and its participants. */
class World implements AsyncDisposable {
  readonly #introducer: Introducer;
  readonly #people: Program[] = [];
  readonly #room = crypto.randomUUID();

  constructor(limits: Partial<Limits> = {}, options: IntroducerOptions = {}) {
    this.#introducer = introduce(limits, options);
  }

  get port(): number {
    return this.#introducer.port;
  }

  meet(name: string, certificate = ours, localAddress?: string): Program {
    const program = new Program(this.port, name, certificate, localAddress);
    this.#people.push(program);
    program.register(this.#room);
    return program;
  }

  /** Registered, and ready to be introduced. */
  async join(name: string, mapping: Mapping = "unknown", localAddress?: string) {
    const program = this.meet(name, ours, localAddress);
    await program.registered();
    await program.next("peers", ({ more }) => !more);
    program.send({ type: "mapping", mapping });
    return program;
  }

  register(program: Program): void {
    program.register(this.#room);
  }

  /** Two who know each other. */
  async pair(mappings: [Mapping, Mapping] = ["unknown", "unknown"], addresses: string[] = []) {
    const anna = await this.join("anna", mappings[0], addresses[0]);
    const bert = await this.join("bert", mappings[1], addresses[1]);
    await anna.next("joined");
    return [anna, bert] as const;
  }

  get participants() {
    return this.#introducer.participants;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const one of this.#people) one[Symbol.dispose]();
    await this.#introducer.stop();
  }
}

test("those of a room learn of each other, of what changes, and of who leaves", async () => {
  await using world = new World();
  const anna = await world.join("anna");
  const bert = world.meet("bert");
  await bert.registered();
  expect((await bert.next("peers")).peers.map(({ id, name }) => [id, name])).toEqual([[anna.id, "anna"]]);
  const { peer } = await anna.next("joined");
  expect([peer.id, peer.name, peer.private]).toEqual([bert.id, "bert", registration("").private!]);
  expect(bert.id).not.toBe(anna.id);
  bert.send({ type: "mapping", mapping: "random" });
  const change = await anna.next("updated", (update) => update.mapping !== undefined);
  expect(change).toMatchObject({ id: bert.id, mapping: "random" });
  const endpoint = formatEndpoint("127.0.0.1", 40_001);
  bert.send({ type: "mapped", endpoint });
  await anna.next("updated", ({ mapped }) => mapped === endpoint);
  bert.send({ type: "mapped" });
  await anna.next("updated", ({ mapped }) => mapped === null);
  using carl = world.meet("carl");
  const listed = (await carl.next("peers")).peers.find(({ id }) => id === bert.id);
  expect(listed).toMatchObject({ mapping: "random" });
  expect(listed?.mapped).toBeUndefined();
  bert.end();
  expect(await anna.next("left")).toEqual({ type: "left", id: bert.id });
});

test("nobody learns of other rooms", async () => {
  await using world = new World();
  const anna = await world.join("anna");
  const other = new Program(world.port, "other");
  other.register(crypto.randomUUID());
  await other.registered();
  expect((await other.next("peers")).peers).toEqual([]);
  anna.send({ type: "connect", peer: other.id });
  expect(await anna.next("refused")).toMatchObject({ code: "unknown-peer", peer: other.id });
  other[Symbol.dispose]();
});

test("connect has both punch, with one token and opposite roles; both are listed as linked, and may ask again", async () => {
  await using world = new World();
  const [anna, bert] = await world.pair();
  anna.send({ type: "connect", peer: bert.id });
  const [a, b] = await Promise.all([anna.next("punch"), bert.next("punch")]);
  expect([a.role, b.role, a.peer.id, b.peer.id]).toEqual(["controlling", "controlled", bert.id, anna.id]);
  expect(b.token).toBe(a.token);
  const punching = () => world.participants.map(({ punching }) => punching);
  expect(punching()).toEqual([[bert.id], [anna.id]]);
  anna.send({ ...linkedBy(a.token), peer: bert.id });
  bert.send({ ...linkedBy(a.token), peer: anna.id });
  await until("the introduction is over", () => Bun.deepEquals(punching(), [[], []]));
  expect(world.participants.map(({ linked }) => linked)).toEqual([[bert.id], [anna.id]]);
  bert.send({ type: "connect", peer: anna.id });
  const again = await anna.next("punch");
  expect([again.role, again.token]).toEqual(["controlled", (await bert.next("punch")).token]);
});

test("a failure is told to the other side, and either may ask again at once", async () => {
  await using world = new World();
  const [anna, bert] = await world.pair();
  for (const [asker, other] of [
    [anna, bert],
    [bert, anna],
  ] as const) {
    for (const [one, another] of [
      [asker, other],
      [other, asker],
    ] as const) {
      asker.send({ type: "connect", peer: other.id });
      const [{ token }] = await Promise.all([asker.next("punch"), other.next("punch")]);
      one.send({ type: "failed", peer: another.id, token, reason: "timed-out" });
      expect(await another.next("failed")).toMatchObject({ peer: one.id, token, reason: "timed-out" });
    }
  }
});

test("both ask at once: in the end they punch with one token and opposite roles", async () => {
  await using world = new World({ introductionsPerPair: 100, introductionsPerTarget: 100 });
  const [anna, bert] = await world.pair();
  for (let round = 0; round < 20; round++) {
    const punches = [anna, bert].map((one) => one.seen.filter(({ type }) => type === "punch").length);
    anna.send({ type: "connect", peer: bert.id });
    bert.send({ type: "connect", peer: anna.id });
    const last = () => [anna, bert].map((one) => one.seen.findLast(({ type }) => type === "punch"));
    const isAgreed = () => {
      const [a, b] = last() as [MessageOf<"punch"> | undefined, MessageOf<"punch"> | undefined];
      const isNew = [anna, bert].every(
        (one, at) => one.seen.filter(({ type }) => type === "punch").length > punches[at]!,
      );
      return isNew && a?.token === b?.token && a?.role !== b?.role;
    };
    await until("both have the same punch", isAgreed);
    const { token } = last()[0] as MessageOf<"punch">;
    anna.send({ ...linkedBy(token), peer: bert.id });
    bert.send({ ...linkedBy(token), peer: anna.id });
    const isOver = () => world.participants.every(({ punching }) => punching.length === 0);
    await until("the introduction is over", isOver);
  }
});

test("who asks for what is under way already is answered by that", async () => {
  await using world = new World();
  const [anna, bert] = await world.pair();
  anna.send({ type: "connect", peer: bert.id });
  await Promise.all([anna.next("punch"), bert.next("punch")]);
  bert.send({ type: "connect", peer: anna.id });
  await bert.settled();
  const carl = await world.join("carl"); // whom anna hears of by the way that another punch would have come
  await anna.next("joined", ({ peer }) => peer.id === carl.id);
  expect([...anna.types(), ...bert.types()].filter((type) => type === "punch")).toHaveLength(2);
});

test("what one side measures reaches the other", async () => {
  const options = { probePorts: [0] };
  await using world = new World({}, options);
  const [anna, bert] = await world.pair(["endpoint-independent", "sequential"]);
  await anna.next("updated", ({ mapping }) => mapping === "sequential");
  anna.send({ type: "connect", peer: bert.id });
  const { token } = await bert.next("measure");
  const endpoint = formatEndpoint(splitEndpoint(bert.endpoint).address, 40_001);
  bert.send({ type: "measured", token, prediction: { endpoint, step: 1 } });
  const [a, b] = await Promise.all([anna.next("punch"), bert.next("punch")]);
  expect([a.theirs, b.own]).toEqual([
    { endpoint, step: 1 },
    { endpoint, step: 1 },
  ]);
  expect([a.own, b.theirs, a.way]).toEqual([undefined, undefined, "predicted"]);
});

test("both punch by where a NAT was last seen to stand; and anew, where that turns out to be past", async () => {
  await using world = new World({}, { probePorts: [0] });
  const [anna, bert] = await world.pair(["endpoint-independent", "unknown"]);
  const position = { endpoint: formatEndpoint("127.0.0.1", 40_001), step: 1 };
  bert.send({ type: "mapping", mapping: "sequential", prediction: position });
  await anna.next("updated", ({ mapping }) => mapping === "sequential");
  anna.send({ type: "connect", peer: bert.id });
  const [a, b] = await Promise.all([anna.next("punch"), bert.next("punch"), bert.next("measure")]);
  expect([a.theirs, b.own]).toEqual([position, position]);
  const registered = bert.seen.find(({ type }) => type === "registered");
  const { probePorts, probeToken = "" } = registered as MessageOf<"registered">;
  const port = probePorts[0]!;
  const probe = await Bun.connect({ hostname: "127.0.0.1", port, socket: { data() {} } });
  probe.write(encode({ type: "probe", token: probeToken, peer: anna.id, step: 1 }));
  const again = await Promise.all([anna.next("punch"), bert.next("punch")]);
  const endpoint = formatEndpoint("127.0.0.1", probe.localPort);
  expect([again[0].theirs, again[1].own]).toEqual([
    { endpoint, step: 1 },
    { endpoint, step: 1 },
  ]);
  expect(again[0].token).not.toBe(a.token);
  probe.end();
  for (const [one, other] of [
    [anna, bert],
    [bert, anna],
  ] as const)
    one.send({ ...linkedBy(again[0].token), peer: other.id });
  await until("it is over", () => world.participants.every(({ punching }) => punching.length === 0));
  anna.send({ type: "connect", peer: bert.id });
  expect((await anna.next("punch")).theirs).toEqual({ endpoint, step: 1 });
});

linuxTest("where there is no direct way, both are relayed", async () => {
  await using world = new World({}, { probePorts: [0] });
  const [anna, bert] = await world.pair(["random", "random"], ["127.0.0.1", "127.0.0.2"]);
  await anna.next("updated", ({ mapping }) => mapping === "random");
  anna.send({ type: "connect", peer: bert.id });
  const [a, b] = await Promise.all([anna.next("relay"), bert.next("relay")]);
  expect([a.role, b.role, a.token]).toEqual(["controlling", "controlled", b.token]);
  const said = Promise.withResolvers<string>();
  using left = new Client(world.port);
  left.send({ type: "relay", token: a.token });
  const right = await Bun.connect({
    hostname: "127.0.0.1",
    port: world.port,
    socket: { data: (_, chunk) => said.resolve(chunk.toString()) },
  });
  right.write(JSON.stringify({ type: "relay", token: b.token }) + "\n");
  await left.next("relaying");
  expect(await said.promise).toBe('{"type":"relaying","rate":1048576}\n');
  right.terminate();
  for (const [one, other] of [
    [anna, bert],
    [bert, anna],
  ] as const)
    one.send({ ...linkedBy(a.token), route: "relay", peer: other.id } as ToIntroducer);
  await until("both are linked", () => world.participants.every(({ linked }) => linked.length === 1));
  await until("it is over", () => world.participants.every(({ punching }) => punching.length === 0));
});

test("a target that declines: the asker hears it", async () => {
  await using world = new World();
  const [anna, bert] = await world.pair();
  anna.send({ type: "connect", peer: bert.id });
  const { token } = await bert.next("punch");
  bert.send({ type: "failed", peer: anna.id, token, reason: "refused-by-peer" });
  expect(await anna.next("failed")).toMatchObject({ token, reason: "refused-by-peer" });
});

test("who leaves while punching is reported as peer-left", async () => {
  await using world = new World();
  const [anna, bert] = await world.pair();
  anna.send({ type: "connect", peer: bert.id });
  await Promise.all([anna.next("punch"), bert.next("punch")]);
  bert[Symbol.dispose]();
  expect(await anna.next("failed")).toMatchObject({ peer: bert.id, reason: "peer-left" });
  await anna.next("left");
  expect(world.participants.map(({ punching }) => punching)).toEqual([[]]);
});

test("one participant is not made to punch over and over", async () => {
  await using world = new World({ introductionsPerTarget: 2 });
  const bert = await world.join("bert");
  const strangers = await Promise.all(["a", "b", "c"].map((name) => world.join(name)));
  await until("all are known", () => bert.seen.filter(({ type }) => type === "joined").length === 3);
  const answers: ToParticipant[] = [];
  for (const stranger of strangers) {
    stranger.send({ type: "connect", peer: bert.id });
    const isAnswer = ({ type }: ToParticipant) => type === "refused" || type === "failed";
    await until(
      "it was answered",
      () =>
        bert.seen.some((one) => one.type === "punch" && one.peer.id === stranger.id) ||
        stranger.seen.some(isAnswer),
    );
    answers.push(...stranger.seen.filter(isAnswer));
  }
  expect(bert.seen.filter(({ type }) => type === "punch").length).toBe(2);
  expect(answers).toHaveLength(1);
});

test("a second of a name is told which is free; whoever comes back, has its name and takes its old place", async () => {
  await using world = new World();
  const [anna, bert] = await world.pair();
  const second = world.meet("anna", theirs);
  second.name = (await second.refused())!;
  expect(second.name).toBe("anna-2");
  world.register(second);
  await second.registered();
  const anew = Object.assign(new Program(world.port, "anna"), { instance: anna.instance });
  world.register(anew);
  expect(await anew.registered()).toBe("anna");
  expect(await bert.next("left")).toEqual({ type: "left", id: anna.id });
  await bert.next("joined", ({ peer }) => peer.id === anew.id);
  await anna.ended.promise;
  await until("the old place is free", () => world.participants.length === 3);
  expect(world.participants.map(({ name }) => name).sort()).toEqual(["anna", "anna-2", "bert"]);
  anew[Symbol.dispose]();
});
test("a name is the certificate's that has it: a second is told which is free, and takes it on the same connection", async () => {
  await using introducer = introduce();
  using alice = new Program(introducer.port, "alice");
  alice.register();
  await alice.registered();
  const others = [theirs, ours, theirs].map(
    (certificate) => new Program(introducer.port, "alice", certificate),
  );
  for (const [index, other] of others.entries()) {
    other.register();
    other.name = (await other.refused())!;
    expect(other.name).toBe(`alice-${index + 2}`);
    other.register();
    await other.registered();
  }
  expect(introducer.participants.map(({ name }) => name)).toEqual(["alice", "alice-2", "alice-3", "alice-4"]);
  for (const other of others) other[Symbol.dispose]();
});

test("a name is taken in its room only", async () => {
  await using introducer = introduce();
  using alice = new Program(introducer.port, "alice");
  using other = new Program(introducer.port, "alice", theirs);
  alice.register("red");
  await alice.registered();
  other.register("blue");
  expect(await other.registered()).toBe("alice");
});

test("whoever comes back has its name, though somebody else wanted it meanwhile", async () => {
  await using introducer = introduce();
  using bert = new Program(introducer.port, "bert");
  bert.register();
  await bert.registered();
  const before = new Program(introducer.port, "alice");
  before.register();
  await before.registered();
  before.end();
  await bert.next("left");
  using mallory = new Program(introducer.port, "alice", theirs);
  mallory.register();
  expect(await mallory.refused()).toBe("alice-2");
  using after = new Program(introducer.port, "alice");
  after.register();
  expect(await after.registered()).toBe("alice");
});

test("a program that registers anew while its old connection is listed has its name, whichever it was", async () => {
  await using introducer = introduce();
  using alice = new Program(introducer.port, "alice");
  alice.register();
  await alice.registered();
  using anew = Object.assign(new Program(introducer.port, "alicia"), { instance: alice.instance });
  anew.register();
  expect(await anew.registered()).toBe("alicia");
  await alice.ended.promise;
  expect(introducer.participants.map(({ id, name }) => [id, name])).toEqual([[anew.id, "alicia"]]);
});

test("where thousands of a name have been taken, one is found in a few looks", async () => {
  await using introducer = introduce({ roomSize: 64, ownHostShares: 64 });
  const all: Program[] = [];
  const count = 20; // more than the numbers that are tried one after the other
  for (let n = 0; n < count; n++) {
    const one = new Program(introducer.port, "x".repeat(maxNameLength), theirs);
    all.push(one);
    one.register();
    if (n > 0) {
      one.name = (await one.refused())!;
      one.register();
    }
    await one.registered();
  }
  expect(new Set(introducer.participants.map(({ name }) => name)).size).toBe(count);
  for (const one of all) one[Symbol.dispose]();
});

describe("kept names", () => {
  const limits = { keptNames: 8, keptNamesPerAddress: 2, keptNamesRooms: 2, nameKeptMs: 10_000 };
  const at = (index: number) => `198.51.100.${index}`;

  test("for their certificate, in their room, and so long", () => {
    const names = new KeptNames(limits);
    names.keep("red", "alice", ours, at(1));
    expect([
      names.mayTake("red", "alice", ours),
      names.mayTake("red", "alice", theirs),
      names.mayTake("blue", "alice", theirs),
      names.mayTake("red", "bert", theirs),
    ]).toEqual([true, false, true, true]);
    const short = new KeptNames({ ...limits, nameKeptMs: 0 });
    short.keep("red", "alice", ours, at(1));
    expect(short.mayTake("red", "alice", theirs)).toBe(true);
  });

  test("who leaves more often than its share of a room allows takes nobody's place", () => {
    const names = new KeptNames(limits);
    names.keep("red", "alice", ours, at(1));
    for (let n = 0; n < 100; n++) names.keep("red", `mallory-${n}`, theirs, at(2));
    names.keep("red", "alice", ours, at(1)); // once more
    names.keep("red", "bert", ours, at(3));
    const kept = (name: string) => !names.mayTake("red", name, "ef".repeat(32));
    expect([kept("alice"), kept("bert"), kept("mallory-0"), kept("mallory-99")]).toEqual([
      true,
      true,
      true,
      false,
    ]);
  });

  test("who invents rooms has names kept in few, and none of the lobby's place", () => {
    const names = new KeptNames(limits);
    for (let n = 0; n < 100; n++) names.keep(`room-${n}`, "mallory", theirs, at(n));
    names.keep("lobby", "alice", ours, at(1));
    const kept = Array.from({ length: 100 }, (_, n) => !names.mayTake(`room-${n}`, "mallory", ours));
    expect(kept.filter(Boolean)).toHaveLength(2);
    expect(names.mayTake("lobby", "alice", theirs)).toBe(false);
  });

  test("none of a secret room: there proofs say whose a name is", () => {
    const names = new KeptNames(limits);
    names.keep("ab".repeat(32), "alice", ours, at(1));
    expect(names.mayTake("ab".repeat(32), "alice", theirs)).toBe(true);
  });
});
