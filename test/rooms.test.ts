import { expect, test } from "bun:test";
import { Introducer, type Limits } from "../introducer.ts";
import { KeptNames } from "../native/rooms.ts";
import { maxNameLength } from "../protocol.ts";
import { Client, registration } from "./client-fixture.ts";

function introduce(limits: Partial<Limits> = {}) {
  return Introducer.start({ host: "127.0.0.1", port: 0, probePorts: [], limits });
}

const [ours, theirs] = ["ab".repeat(32), "cd".repeat(32)];
let instances = 0;

/** A program that says `register`, and again by the name that it is given where its own is taken. */
class Program extends Client {
  id = 0;
  name: string;
  readonly instance = String(++instances).padStart(16, "0");
  readonly fingerprint: string;

  constructor(port: number, name: string, certificate = ours) {
    super(port);
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
  await using introducer = introduce({ roomSize: 64, loopbackShares: 64 });
  const all: Program[] = [];
  for (let n = 0; n < 60; n++) {
    const one = new Program(introducer.port, "x".repeat(maxNameLength), theirs);
    all.push(one);
    one.register();
    if (n > 0) {
      one.name = (await one.refused())!;
      one.register();
    }
    await one.registered();
  }
  expect(new Set(introducer.participants.map(({ name }) => name)).size).toBe(60);
  for (const one of all) one[Symbol.dispose]();
});

test("kept names: for their certificate, in their room, so many of them, and so long", async () => {
  const names = new KeptNames(2, 10_000);
  names.keep("red", "alice", ours);
  expect([
    names.mayTake("red", "alice", ours),
    names.mayTake("red", "alice", theirs),
    names.mayTake("blue", "alice", theirs),
    names.mayTake("red", "bert", theirs),
  ]).toEqual([true, false, true, true]);
  names.keep("red", "bert", ours);
  names.keep("red", "carl", ours); // one too many: the oldest goes
  expect(["alice", "bert", "carl"].map((name) => names.mayTake("red", name, theirs))).toEqual([
    true,
    false,
    false,
  ]);
  const short = new KeptNames(2, 0);
  short.keep("red", "alice", ours);
  expect(short.mayTake("red", "alice", theirs)).toBe(true);
});
