/** What a room member must not reach or use up by listeners: those that we lend, and those that we asked for. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { Driven, startIntroducer } from "../driven-fixture.ts";
import { freePort, freePorts } from "../sockets-fixture.ts";
import {
  Bait,
  dial,
  type Frame,
  frame,
  frameOf,
  hex,
  Member,
  openFrame,
  readReset,
  resetFrame,
} from "./wire.ts";

/** Several programs on a busy machine. */
setDefaultTimeout(60_000);
const words = "k7xq-m2vp-9dfa-w4tz";
const connects = (port: number) =>
  dial("127.0.0.1", port).then(
    (socket) => (socket.destroy(), true),
    () => false,
  );

/** The answer to a stream that was opened: what came on it, or why it was reset. */
const answers =
  (stream: number) =>
  ({ type, stream: of }: Frame): boolean =>
    of === stream && (type === frame.reset || type === frame.data);

test("a member has us listen where it is allowed, nowhere else, and on a few ports only", async () => {
  const first = freePorts(40);
  await using house = startIntroducer();
  const ours = ["--allow-listen", `${first + 31}@carol`, "--allow-listen", `${first + 32}@EVE`];
  const rules = ["--allow-listen", `${first}-${first + 29}`, "--allow", "*:*", ...ours];
  await using bob = new Driven(house.port, "bob", "--room", words, "--stay", ...rules);
  await bob.registered;
  using eve = await Member.join(house.port, { name: "eve", room: words });
  const link = await eve.link("bob");
  await link.begin(openFrame(1, { use: "lines" }));
  await bob.next("linked");
  let next = 1;
  /** Resolves to "listening", or to why not. */
  const ask = async (purpose: object): Promise<string> => {
    const stream = (next += 2);
    link.send(openFrame(stream, { use: "listen", token: hex(16), ...purpose }));
    const answer = await link.frames.next("an answer", answers(stream));
    if (answer.type === frame.reset) return readReset(answer).reason;
    return (JSON.parse(`${answer.payload}`) as { type: string }).type;
  };

  const elsewhere = first + 30;
  for (const bind of ["127.0.0.1", "::ffff:127.0.0.1"])
    expect(await ask({ bind, port: elsewhere })).toBe(`listening on 127.0.0.1:${elsewhere} is not allowed`);
  // What is for somebody else, and what is for it.
  const [carols, eves] = [first + 31, first + 32];
  expect(await ask({ bind: "127.0.0.1", port: carols })).toBe(
    `listening on 127.0.0.1:${carols} is not allowed`,
  );
  expect(await ask({ bind: "127.0.0.1", port: eves })).toBe("listening");
  for (const bind of ["0.0.0.0", "::", "::1", "127.0.0.2", "192.0.2.1"]) {
    const at = bind.includes(":") ? `[${bind}]` : bind;
    expect(await ask({ bind, port: first })).toBe(`listening on ${at}:${first} is not allowed`);
  }
  for (const bind of ["localhost", "", "*", "/tmp/x", "127.0.0.1\n", 7, null, undefined, "x".repeat(100)])
    expect(await ask({ bind, port: first })).toStartWith("bind must be ");
  for (const port of [0, -1, 65536, 1.5, "80", null, undefined])
    expect(await ask({ bind: "127.0.0.1", port })).toBe("port must be a whole number from 1 to 65535");
  for (const token of [7, null, "x".repeat(100)])
    expect(await ask({ bind: "127.0.0.1", port: first, token })).toBe(
      "token must be text of at most 64 characters",
    );
  expect(await Promise.all([first, elsewhere, carols, eves].map(connects))).toEqual([
    false,
    false,
    false,
    true,
  ]);

  const ports = Array.from({ length: 30 }, (_, index) => first + index);
  const asked = await Promise.all(ports.map((port) => ask({ bind: "127.0.0.1", port })));
  const got = asked.filter((answer) => answer === "listening").length;
  expect([got, ...new Set(asked)]).toEqual([
    15,
    "listening",
    "can't listen: 16 ports are taken by peers already",
  ]);
  expect(await connects(first)).toBe(true);
  // What it asks for again and again is told once, and of much that it asks for a part.
  const told = bob.events.filter((event) => event.event === "listen-refused");
  expect(told.filter(({ listen }) => listen === `127.0.0.1:${elsewhere}`)).toHaveLength(1);
  expect(told.length).toBeLessThan(57 - 16);

  // All of it ends with the link.
  link[Symbol.dispose]();
  eve[Symbol.dispose]();
  bob.type("disconnect eve");
  await bob.next("unlinked");
  for (const port of [...ports, eves]) while (await connects(port)) await Bun.sleep(10);
});

test("a member who asks for a listener and drops it, again and again, is told of in a few lines", async () => {
  const port = freePort();
  await using house = startIntroducer();
  await using bob = new Driven(house.port, "bob", "--room", words, "--stay", "--allow-listen", `${port}`);
  await bob.registered;
  using eve = await Member.join(house.port, { name: "eve", room: words });
  const link = await eve.link("bob");
  await link.begin(openFrame(1, { use: "lines" }));
  await bob.next("linked");
  let listened = 0;
  for (let stream = 3; listened < 100; stream += 2) {
    link.send(openFrame(stream, { use: "listen", bind: "127.0.0.1", port, token: hex(16) }));
    // It may still be the port of the one before.
    const { type } = await link.frames.next("an answer", answers(stream));
    if (type === frame.data) listened++;
    link.send(resetFrame(stream, 0, ""));
  }
  const isListening = ({ event }: { event: string }) => event === "listening";
  // Five at once, and one a second with how many more there were.
  const { more } = await bob.next("listening", ({ more }) => more !== undefined);
  expect(more).toBeGreaterThan(0);
  const seconds = 1 + bob.events.filter((one) => isListening(one) && "more" in one).length;
  expect(bob.events.filter(isListening).length).toBeLessThanOrEqual(5 + seconds);
  while (await connects(port)) await Bun.sleep(10);
});

test("in the lobby nobody has us listen, whatever a member asks for", async () => {
  const port = freePort();
  await using house = startIntroducer();
  await using bob = new Driven(house.port, "bob", "--stay");
  await bob.registered;
  bob.type(`allow-listen ${port}`, "forward -R 1:eve:1");
  expect((await bob.next("error")).message).toContain("`allow-listen` is refused: in the open lobby");
  expect((await bob.next("error")).message).toContain("`forward -R` is refused: in the open lobby");
  using eve = await Member.join(house.port, { name: "eve" });
  const link = await eve.link("bob");
  await link.begin(openFrame(1, { use: "listen", bind: "127.0.0.1", port, token: hex(16) }));
  const answer = await link.frames.next("a reset", ({ type }) => type === frame.reset);
  expect(readReset(answer).reason).toBe(`listening on 127.0.0.1:${port} is not allowed`);
  expect(await connects(port)).toBe(false);
});

test("who was asked to listen reaches the one target, while it is asked, and by its token alone", async () => {
  using bait = await Bait.listen("127.0.0.1", (socket) => socket.end("welcome"));
  await using house = startIntroducer();
  using eve = await Member.join(house.port, { name: "eve", room: words });
  const remote = ["-R", `9000:eve:${bait.port}`];
  await using alice = new Driven(house.port, "alice", "--room", words, "--stay", ...remote);
  const link = await eve.punch(await eve.hears("punch"));
  await link.begin();
  await alice.next("linked");
  const purposeOf = ({ payload }: Frame) => JSON.parse(`${payload}`) as { use: string; token: string };
  const request = async () => {
    const isListen = (one: Frame) => one.type === frame.open && purposeOf(one).use === "listen";
    const asked = await link.frames.next("a request", isListen);
    return { stream: asked.stream, token: purposeOf(asked).token };
  };
  let next = link.firstStream;
  const accept = async (purpose: object): Promise<string> => {
    const stream = next;
    next += 2;
    link.send(openFrame(stream, { use: "accepted", ...purpose }));
    const answer = await link.frames.next("an answer", answers(stream));
    return answer.type === frame.reset ? readReset(answer).reason : `${answer.payload}`;
  };

  const first = await request();
  for (const token of [undefined, null, "", hex(16), 7, {}, [first.token], `${first.token} `])
    expect(await accept({ token })).toBe("nobody has asked for that");
  const other = { host: "localhost", port: 1, kind: "unix", path: "/etc/passwd", bind: "127.0.0.1" };
  expect(await accept({ ...other, token: first.token })).toBe("welcome");
  expect(bait.total).toBe(1);
  // It takes its listener back: the token is nothing any more. It is asked anew, with another one.
  link.send(resetFrame(first.stream, 1, "not allowed"));
  const second = await request();
  expect(second.token).not.toBe(first.token);
  expect(await accept({ token: first.token })).toBe("nobody has asked for that");
  // What is no answer ends the stream, and nothing else.
  link.send(frameOf(frame.data, "x".repeat(60_000), second.stream));
  const isCut = ({ type, stream }: Frame) => type === frame.reset && stream === second.stream;
  expect(readReset(await link.frames.next("a reset", isCut)).reason).toContain("a line has less than");
  expect(await accept({ token: second.token })).toBe("nobody has asked for that");
  expect([bait.total, alice.count("unlinked"), alice.count("listening")]).toEqual([1, 0, 0]);
});
