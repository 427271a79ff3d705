/** What a local client of a SOCKS5 proxy, and a room member who speaks it by hand, must not reach or use up. On the wire. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { readdirSync } from "node:fs";
import * as net from "node:net";
import { Driven, met, startIntroducer } from "../driven-fixture.ts";
import { linuxTest } from "../needing-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import { freePort } from "../sockets-fixture.ts";
import { Bait, dial, type Frame, frame, Member, openFrame, readReset, until } from "./wire.ts";

setDefaultTimeout(testMs);
const words = "k7xq-m2vp-9dfa-w4tz";
const descriptorsOf = (one: Driven): number => readdirSync(`/proc/${one.pid}/fd`).length;
const greeting = Buffer.of(5, 1, 0);
function u16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}
const toName = (name: string, port: number): Buffer =>
  Buffer.concat([
    Buffer.of(5, 1, 0, 3, Buffer.byteLength(name, "latin1")),
    Buffer.from(name, "latin1"),
    u16(port),
  ]);

/** All that comes until the other side ends it. The socket is still half open. */
async function said(port: number, ...pieces: Buffer[]): Promise<{ got: Buffer; socket: net.Socket }> {
  const socket = await dial("127.0.0.1", port);
  const got: Buffer[] = [];
  socket.on("data", (piece: Buffer) => void got.push(piece));
  const { promise, resolve } = Promise.withResolvers<void>();
  for (const event of ["end", "close"]) socket.on(event, () => resolve());
  for (const piece of pieces) socket.write(piece);
  await promise;
  return { got: Buffer.concat(got), socket };
}

async function welcomed(port: number, ...pieces: Buffer[]): Promise<string> {
  const { got, socket } = await said(port, ...pieces);
  socket.destroy();
  return `${got}`;
}

linuxTest.concurrent(
  "clients who speak nonsense, or stay half open, are answered and leave no descriptor",
  async () => {
    using web = await Bait.listen("127.0.0.1", (socket) => void socket.end("welcome"));
    await using house = startIntroducer();
    await using bob = new Driven(house.port, "bob", "--room", words, "--stay", "--allow", `${web.port}`);
    await bob.registered;
    const port = freePort();
    await using alice = new Driven(house.port, "alice", "--room", words, "-D", `${port}:bob`);
    await met(alice, bob);
    const right = [greeting, toName("localhost", web.port)];
    expect(await welcomed(port, ...right)).toEndWith("welcome");
    const before = descriptorsOf(alice);
    const answers: [Buffer[], number[]][] = [
      [[Buffer.of(5, 0)], [5, 255]], // no method
      [[Buffer.of(5, 2, 1, 2)], [5, 255]],
      [
        [greeting, Buffer.of(5, 2, 0, 1, 127, 0, 0, 1, 0, 9)],
        [5, 0, 5, 7],
      ], // BIND
      [
        [greeting, Buffer.of(5, 3, 0, 1, 127, 0, 0, 1, 0, 9)],
        [5, 0, 5, 7],
      ], // UDP ASSOCIATE
      [
        [greeting, Buffer.of(5, 1, 0, 9, 1, 2, 3, 4)],
        [5, 0, 5, 8],
      ],
      [
        [greeting, toName("localhost", 0)],
        [5, 0, 5, 4],
      ],
      [
        [greeting, toName("", web.port)],
        [5, 0, 5, 4],
      ],
      [
        [greeting, toName("local\0host", web.port)],
        [5, 0, 5, 4],
      ],
      [
        [greeting, toName("localhost\n", web.port)],
        [5, 0, 5, 4],
      ],
      [
        [greeting, toName("/etc/passwd", web.port)],
        [5, 0, 5, 4],
      ],
      [
        [greeting, toName("\xff\xfe", web.port)],
        [5, 0, 5, 4],
      ],
      [
        [greeting, toName("fe80::1%lo", web.port)],
        [5, 0, 5, 4],
      ],
      [
        [greeting, toName("-oProxy", web.port)],
        [5, 0, 5, 4],
      ],
      [
        [greeting, toName("x".repeat(255), web.port)],
        [5, 0, 5, 4],
      ],
      [
        [greeting, toName("localhost", 1)],
        [5, 0, 5, 2],
      ], // not allowed
      [[Buffer.from("GET / HTTP/1.1\r\n\r\n")], []],
      [[Buffer.of(4, 1, 0, 80, 127, 0, 0, 1, 0)], []], // SOCKS4
    ];
    const kept: net.Socket[] = [];
    for (const [pieces, answer] of answers) {
      const { got, socket } = await said(port, ...pieces);
      kept.push(socket); // it does not close its half
      expect([pieces.at(-1)!.toString("latin1"), ...got.subarray(0, answer.length)]).toEqual([
        pieces.at(-1)!.toString("latin1"),
        ...answer,
      ]);
      expect(got.length).toBeLessThanOrEqual(12);
    }
    // One byte after the other is as good as all at once.
    expect(await welcomed(port, ...[...Buffer.concat(right)].map((byte) => Buffer.of(byte)))).toEndWith(
      "welcome",
    );
    await until("none of them holds anything", () => descriptorsOf(alice) <= before);
    for (const socket of kept) socket.destroy();
  },
);

linuxTest.concurrent("a crowd who says nothing takes no more than its share, and is sent away", async () => {
  using web = await Bait.listen("127.0.0.1", (socket) => void socket.end("welcome"));
  await using house = startIntroducer();
  await using bob = new Driven(house.port, "bob", "--room", words, "--stay", "--allow", `${web.port}`);
  await bob.registered;
  const [port, other] = [freePort(), freePort()];
  const options = ["-D", `${port}:bob`, "-L", `${other}:bob:${web.port}`];
  await using alice = new Driven(house.port, "alice", "--room", words, ...options);
  await met(alice, bob);
  expect(await welcomed(other)).toBe("welcome");
  const before = descriptorsOf(alice);
  const crowd = await Promise.all(
    Array.from({ length: 600 }, async (_, index) => {
      const socket = await dial("127.0.0.1", port);
      socket.on("error", () => {});
      // Half of them are in the middle of a greeting.
      if (index % 2) socket.write(Buffer.of(5));
      return socket;
    }),
  );
  expect(await welcomed(other)).toBe("welcome");
  await until("they are gone", () => descriptorsOf(alice) <= before);
  expect(await welcomed(port, greeting, toName("localhost", web.port))).toEndWith("welcome");
  for (const socket of crowd) socket.destroy();
});

test.concurrent("what a member asks for by hand is held against the same rules as a forward's", async () => {
  using web = await Bait.listen("127.0.0.1", (socket) => void socket.end("welcome"));
  await using house = startIntroducer();
  const rules = ["--allow", `${web.port}`, "--allow", "*:9"];
  await using bob = new Driven(house.port, "bob", "--room", words, "--stay", ...rules);
  await bob.registered;
  using eve = await Member.join(house.port, { name: "eve", room: words });
  const link = await eve.link("bob");
  await link.begin(openFrame(1, { use: "lines" }));
  let next = 1;
  const answer = async (purpose: object): Promise<string> => {
    const stream = (next += 2);
    link.send(openFrame(stream, purpose));
    const one = await link.frames.next("an answer", ({ stream: of, type }: Frame) => {
      return of === stream && (type === frame.reset || type === frame.data);
    });
    return one.type === frame.reset ? readReset(one).reason : `${one.payload.toString("hex")}`;
  };
  const asked: object[] = [
    ...["169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2852039166", "0xa9fea9fe"],
    ...["0.0.0.0", "::", "0", "fe80::1", "ff02::1", "255.255.255.255", "224.0.0.1", "::127.0.0.1"],
    ...["localhost.", "LOCALHOST", "127.1", "127.0.0.2", "", "a b", "\u0000", "xn--", "é", "[::1]"],
  ].map((host) => ({ host, port: 9 }));
  asked.push(
    { host: "localhost", port: 1 },
    { kind: "unix", path: "/etc/passwd" },
    { kind: "udp", host: "127.0.0.1", port: web.port },
  );
  for (const target of asked) {
    const [forward, socks] = [
      await answer({ use: "forward", ...target }),
      await answer({ use: "socks", ...target }),
    ];
    expect([target, socks]).toEqual([target, forward]);
    expect(socks).not.toMatch(/169\.254\.169\.254 (at|\()/);
  }
  expect(await answer({ use: "socks", host: "localhost", port: web.port })).toStartWith("05000001");
  await until("what is allowed is reached", () => web.total > 0);
  expect(web.total).toBe(1);
});
