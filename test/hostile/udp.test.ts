/** What a room member, and whoever can send to a port, must not reach or use up by forwards of UDP. On the wire. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { readdirSync } from "node:fs";
import { Driven, startIntroducer } from "../driven-fixture.ts";
import { linuxTest } from "../needing-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import { freeUdpPort, UdpClient, udpTarget } from "../udp-fixture.ts";
import { frame, frameOf, Member, openFrame, readReset, resetFrame, until } from "./wire.ts";

setDefaultTimeout(testMs);

const words = "k7xq-m2vp-9dfa-w4tz";
/** What stands before a datagram, in place of its length. */
const notices = { dropped: 65_534, refused: 65_535 };

function u16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}
const datagram = (text: string): Buffer => Buffer.concat([u16(text.length), Buffer.from(text)]);
const descriptorsOf = (one: Driven): number => readdirSync(`/proc/${one.pid}/fd`).length;

/** A member, linked with bob, who opens streams by hand. */
async function linkedWith(port: number, name: string) {
  const member = await Member.join(port, { name, room: words });
  const link = await member.link("bob");
  await link.begin(openFrame(1, { use: "lines" }));
  let next = 1;
  return {
    link,
    open(purpose: object): number {
      link.send(openFrame((next += 2), purpose));
      return next;
    },
    /** Says it in a datagram, again and again, for what is late is lost; until it is answered. `cut`: into which pieces. */
    async asks(stream: number, text: string, cut = (bytes: Buffer) => [bytes]): Promise<void> {
      const pieces = cut(datagram(text)).map((bytes) => frameOf(frame.data, bytes, stream));
      const asking = setInterval(() => link.send(...pieces), 250);
      link.send(...pieces);
      await link.reads(stream, text).finally(() => clearInterval(asking));
    },
    whyReset: async (stream: number) =>
      readReset(await link.hears(frame.reset, (one) => one.stream === stream)).reason,
    [Symbol.dispose]() {
      link[Symbol.dispose]();
      member[Symbol.dispose]();
    },
  };
}

/** bob, who allows these. */
async function serving(...rules: string[]) {
  const house = startIntroducer();
  const allowed = rules.flatMap((rule) => ["--allow", rule]);
  const bob = new Driven(house.port, "bob", "--room", words, "--stay", ...allowed);
  await bob.registered;
  return {
    ...{ house, bob },
    async [Symbol.asyncDispose]() {
      await bob[Symbol.asyncDispose]();
      await house[Symbol.asyncDispose]();
    },
  };
}

test("a member reaches what is allowed, and nothing beside it; a rule for TCP opens no UDP", async () => {
  using target = udpTarget();
  using secret = udpTarget();
  await using scene = await serving(`${target.port}/udp`, `${secret.port}`, "*:9/udp");
  using eve = await linkedWith(scene.house.port, "eve");
  const reached = eve.open({ use: "udp", kind: "udp", host: "127.0.0.1", port: target.port });
  await eve.asks(reached, "hello");
  const refused: [object, string][] = [
    [{ kind: "udp", host: "127.0.0.1", port: secret.port }, `127.0.0.1:${secret.port}/udp is not allowed`],
    [{ kind: "udp", host: "localhost", port: secret.port }, `localhost:${secret.port}/udp is not allowed`],
    [{ kind: "udp", host: "127.0.0.2", port: target.port }, `127.0.0.2:${target.port}/udp is not allowed`],
    [{ kind: "tcp", host: "127.0.0.1", port: target.port }, "kind must be udp"],
    [{ host: "127.0.0.1", port: target.port }, "kind must be udp"],
    [{ kind: "udp", host: "255.255.255.255", port: 9 }, "255.255.255.255:9/udp is not allowed"],
    [{ kind: "udp", host: "224.0.0.251", port: 9 }, "224.0.0.251:9/udp is not allowed"],
    [{ kind: "udp", host: "ff02::fb", port: 9 }, "[ff02::fb]:9/udp is not allowed"],
    [{ kind: "udp", host: "0.0.0.0", port: 9 }, "0.0.0.0:9/udp is not allowed"],
    [{ kind: "udp", host: "169.254.169.254", port: 9 }, "169.254.169.254:9/udp is not allowed"],
  ];
  for (const [purpose, reason] of refused) {
    const stream = eve.open({ use: "udp", ...purpose });
    eve.link.send(frameOf(frame.data, datagram("in vain"), stream));
    expect(await eve.whyReset(stream)).toBe(reason);
  }
  const asTcp = eve.open({ use: "forward", kind: "udp", host: "127.0.0.1", port: target.port });
  expect(await eve.whyReset(asTcp)).toContain("kind must");
  expect(new Set(target.got.map(({ text }) => text))).toEqual(new Set(["hello"]));
  expect(secret.got).toEqual([]);
});

linuxTest("a member's bad lengths end that flow alone; its descriptors are given back", async () => {
  using target = udpTarget();
  await using scene = await serving(`${target.port}/udp`);
  using eve = await linkedWith(scene.house.port, "eve");
  const purpose = { use: "udp", kind: "udp", host: "127.0.0.1", port: target.port };
  const good = eve.open(purpose);
  await eve.asks(good, "before");
  const before = descriptorsOf(scene.bob);
  const bad = [
    u16(65_508),
    u16(notices.refused),
    Buffer.concat([u16(notices.dropped), u16(1), u16(1), u16(65_533)]),
  ];
  for (const bytes of bad) {
    const stream = eve.open(purpose);
    eve.link.send(frameOf(frame.data, datagram("first"), stream), frameOf(frame.data, bytes, stream));
    expect(await eve.whyReset(stream)).toStartWith("a datagram has at most 65507 bytes, not ");
  }
  // Ended, or reset, or cut off in the middle of a datagram.
  const [ended, reset] = [eve.open(purpose), eve.open(purpose)];
  eve.link.send(frameOf(frame.data, u16(9_000), ended), frameOf(frame.end, "", ended));
  eve.link.send(frameOf(frame.data, datagram("half").subarray(0, 3), reset), resetFrame(reset, 0, ""));
  // One byte after the other: it arrives whole.
  const slow = eve.open(purpose);
  await eve.asks(slow, "byte by byte", (bytes) => [...bytes].map((byte) => Buffer.of(byte)));
  eve.link.send(resetFrame(slow, 0, ""));
  await eve.asks(good, "after");
  await until("nothing of them is left", () => descriptorsOf(scene.bob) <= before);
  expect(target.got.filter(({ text }) => text.includes("half"))).toEqual([]);
});

test("a target whose datagrams are longer than one of IPv4 can be breaks nothing: they are dropped", async () => {
  const replies = (bytes: Buffer) => (`${bytes}` === "long" ? Buffer.alloc(65_527) : bytes);
  using target = udpTarget(replies, { address: "::1" });
  await using scene = await serving(`[::1]:${target.port}/udp`);
  using eve = await linkedWith(scene.house.port, "eve");
  const stream = eve.open({ use: "udp", kind: "udp", host: "::1", port: target.port });
  eve.link.send(frameOf(frame.data, Buffer.concat([datagram("long"), datagram("short")]), stream));
  const notice = Buffer.concat([u16(notices.dropped), u16(0), u16(1)]);
  await eve.link.reads(stream, `${notice}`);
  await eve.asks(stream, "after");
});

linuxTest("one member's flows leave room for others, and its oldest end for its newest", async () => {
  using target = udpTarget((bytes) => (`${bytes}` === "flood" ? undefined : bytes));
  await using scene = await serving(`${target.port}/udp`);
  using eve = await linkedWith(scene.house.port, "eve");
  const purpose = { use: "udp", kind: "udp", host: "127.0.0.1", port: target.port };
  const before = descriptorsOf(scene.bob);
  for (let count = 0; count < 2_000; count++)
    eve.link.send(frameOf(frame.data, datagram("flood"), eve.open(purpose)));
  const last = eve.open(purpose);
  await eve.asks(last, "the last");
  expect(descriptorsOf(scene.bob) - before).toBeLessThanOrEqual(342);
  using carol = await linkedWith(scene.house.port, "carol");
  const hers = carol.open(purpose);
  await carol.asks(hers, "carol");
});

test("a peer that serves nonsense ends its flow, is told of once, and the forward goes on", async () => {
  await using house = startIntroducer();
  const here = freeUdpPort();
  await using alice = new Driven(house.port, "alice", "--room", words, "-L", `${here}/udp:eve:9/udp`);
  await alice.registered;
  using eve = await Member.join(house.port, { name: "eve", room: words });
  using link = await eve.punch(await eve.hears("punch"));
  await link.begin();
  using client = new UdpClient(here);
  const next = async () => {
    const asking = setInterval(() => client.send("?"), 100);
    const { stream } = await link
      .hears(frame.open, ({ payload }) => `${payload}`.includes('"udp"'))
      .finally(() => clearInterval(asking));
    return stream;
  };
  const first = await next();
  const many = Array.from({ length: 500 }, () =>
    Buffer.concat([u16(notices.refused), u16(notices.dropped), u16(65_535), u16(65_535)]),
  );
  link.send(frameOf(frame.data, Buffer.concat(many), first));
  link.send(frameOf(frame.data, Buffer.concat([u16(3), Buffer.from("one"), u16(65_509)]), first));
  await link.hears(frame.reset, ({ stream }) => stream === first);
  await until("what was right before has arrived", () => client.got.some((bytes) => `${bytes}` === "one"));
  const second = await next();
  link.send(frameOf(frame.data, datagram("two"), second));
  await until("the next flow works", () => client.got.some((bytes) => `${bytes}` === "two"));
  expect(alice.count("forward-refused")).toBe(1);
});
