/** A SOCKS5 proxy between real programs, with real curl and with clients on the wire. */
import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { connect } from "node:net";
import { Driven, met, startIntroducer } from "../driven-fixture.ts";
import { type Connection, connectionHandlers } from "../../native/uses/connection.ts";
import type { ForwardRow } from "../../native/uses/forwards.ts";
import { SocksConnection, SocksError, SocksReader } from "../../native/uses/socks.ts";
import { missing, testNeeding, unlessRequired } from "../needing-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import { newRoomWords } from "../../native/secure/words.ts";
import { client, curl, freePort, readAll, target } from "../sockets-fixture.ts";

setDefaultTimeout(testMs);
const curlTest = testNeeding(unlessRequired(missing(["curl"], "Debian: curl")));

/** Answers for pages, which wait until all of them were asked for. */
const pages = Array.from({ length: 50 }, (_, index) => `/page-${index}`);
const asked = new Set<string>();
const allAsked = Promise.withResolvers<void>();
const web = Bun.serve({
  hostname: "127.0.0.1",
  port: 0,
  async fetch(request) {
    const { pathname } = new URL(request.url);
    if (pages.includes(pathname)) {
      if (asked.add(pathname).size === pages.length) allAsked.resolve();
      await allAsked.promise;
    }
    return new Response(`${pathname} of ${request.headers.get("host")}\n`);
  },
});
const [nobody, forbidden] = [freePort(), freePort()];
const echo = await target((socket) => void socket.pipe(socket));
const house = startIntroducer();
const room = ["--room", newRoomWords(), "--stay"];
const port = freePort();
const alice = new Driven(house.port, "alice", ...room, "-D", `${port}:bob`);
const allowed = [`${web.port}`, `${echo.port}`, `${nobody}`, `*:7`];
const bob = new Driven(house.port, "bob", ...room, ...allowed.flatMap((rule) => ["--allow", rule]));
await met(alice, bob);
await alice.next("linked");
afterAll(async () => {
  for (const one of [alice, bob, house, echo]) await one[Symbol.asyncDispose]();
  await web.stop(true);
});

const proxied = (...args: string[]) => curl("--socks5-hostname", `127.0.0.1:${port}`, ...args);

curlTest("what is allowed is reached by name and by address, and names are the peer's", async () => {
  expect(await alice.next("forwarding")).toMatchObject({ listen: `127.0.0.1:${port}`, target: "SOCKS5" });
  for (const host of ["localhost", "127.0.0.1"])
    expect(await proxied(`http://${host}:${web.port}/x`)).toMatchObject({
      code: 0,
      text: `/x of ${host}:${web.port}\n`,
    });
  // This host looks it up itself; `localhost` is told as an address.
  expect((await curl("--socks5", `127.0.0.1:${port}`, `http://localhost:${web.port}/y`)).code).toBe(0);
});

curlTest("curl says why something is not reached", async () => {
  const why = async (url: string) => (await proxied(url)).error;
  expect(await why(`http://localhost:${forbidden}/`)).toContain("(2)");
  expect(await why(`http://localhost:${nobody}/`)).toContain("(5)");
  expect(await why("http://no.such.host.invalid:7/")).toContain("(4)");
  const told = [0, 1, 2].map(() => alice.next("forward-refused"));
  expect((await Promise.all(told)).map(({ target: to, why: because }) => [to, because])).toEqual([
    [`localhost:${forbidden}`, "not-allowed"],
    [`localhost:${nobody}`, "no-answer"],
    ["no.such.host.invalid:7", "no-answer"],
  ]);
});

curlTest("a browser's load: 50 connections at once, each with its own answer", async () => {
  const urls = pages.map((page) => `http://localhost:${web.port}${page}`);
  const { code, text } = await proxied("--parallel", "--parallel-immediate", ...urls);
  expect(code).toBe(0);
  expect(text.trimEnd().split("\n").sort()).toEqual(
    pages.map((page) => `${page} of localhost:${web.port}`).sort(),
  );
});

describe("on the wire", () => {
  const greeting = [5, 1, 0];
  const hello = "05 00";
  const request = (command: number, kind: number, address: number[], to: number) => [
    ...[5, command, 0, kind, ...address],
    ...[to >> 8, to & 255],
  ];
  const name = (text: string): number[] => [text.length, ...Buffer.from(text, "latin1")];
  const zeros = (count: number) => Array.from({ length: count }, () => 0);
  const refused = (why: number) => `${hello} 05 0${why} 00 01 00 00 00 00 00 00`;

  /** All that the proxy answers, in hex. */
  async function says(...bytes: number[]): Promise<string> {
    const socket = client(port);
    socket.write(Buffer.from(bytes));
    const got = (await readAll(socket)).bytes.toHex();
    socket.destroy();
    return got.replace(/..(?=.)/g, "$& ");
  }

  test.each([
    ["BIND", request(2, 1, [127, 0, 0, 1], 80), refused(7)],
    ["UDP ASSOCIATE", request(3, 1, [127, 0, 0, 1], 80), refused(7)],
    ["no kind of address", request(1, 2, [127, 0, 0, 1], 80), refused(8)],
    ["an empty name", request(1, 3, name(""), 80), refused(4)],
    ["a name of 255 characters", request(1, 3, name("a".repeat(255)), 80), refused(4)],
    ["a name with a line in it", request(1, 3, name("a\nb"), 80), refused(4)],
    ["a name with a zero in it", request(1, 3, name("localhost\0"), echo.port), refused(4)],
    ["port 0", request(1, 3, name("localhost"), 0), refused(4)],
    ["0.0.0.0", request(1, 1, [0, 0, 0, 0], echo.port), refused(2)],
    ["::1, which is not listening", request(1, 4, [...zeros(15), 1], nobody), refused(5)],
    ["::ffff:127.0.0.1", request(1, 4, [...zeros(10), 255, 255, 127, 0, 0, 1], nobody), refused(5)],
    ["version 4 in the request", [4, 1, 0, 1, 127, 0, 0, 1, 0, 80], refused(1)],
  ])("%s", async (_, said, answer) => {
    expect(await says(...greeting, ...said)).toBe(answer);
  });

  test("who wants to be authenticated is told that it is not done", async () => {
    expect(await says(5, 1, 2)).toBe("05 ff");
    expect(await says(5, 0)).toBe("05 ff");
  });

  test("who speaks something else is sent away, and the user is told once", async () => {
    expect(await says(...Buffer.from("GET http://localhost/ HTTP/1.1\r\n\r\n"))).toBe("");
    expect(await says(4, 1, 0, 80, 127, 0, 0, 1, 0)).toBe("");
    const isIt = ({ message }: { message: string }) => message.includes("sent away");
    expect((await alice.next("warning", isIt)).message).toBe(
      `a client of the SOCKS5 proxy at 127.0.0.1:${port} was sent away: it does not speak SOCKS5; set it to socks5h://127.0.0.1:${port}`,
    );
    const told = alice.events.filter((event) => event.event === "warning" && isIt(event));
    expect(told).toHaveLength(1);
  });

  test("byte by byte, with what is to be sent close behind, and a half-close", async () => {
    const socket = client(port);
    const answer = readAll(socket);
    const bytes = [...greeting, ...request(1, 3, name("localhost"), echo.port), ...Buffer.from("hello")];
    for (const byte of bytes) socket.write(Uint8Array.of(byte));
    socket.end();
    expect((await answer).bytes.toHex()).toBe("0500" + "05000001000000000000" + Buffer.from("hello").toHex());
  });

  test("who says nothing, or not all, and goes, leaves nothing behind", async () => {
    for (const bytes of [[], [5], [5, 255, 0], [...greeting, 5, 1, 0, 3, 200, 97]]) {
      const socket = connect({ host: "127.0.0.1", port });
      socket.on("error", () => {});
      socket.write(Uint8Array.from(bytes));
      socket.end();
      await readAll(socket);
    }
    for (;;) {
      alice.type("forwards");
      const { forwards } = (await alice.next("forwards" as "said")) as unknown as { forwards: ForwardRow[] };
      if (forwards[0]!.open === 0) break;
    }
  });
});

test("a reader takes it cut anywhere, answers the greeting once, and is never fed for ever", () => {
  const request = [5, 1, 0, 3, 9, ...Buffer.from("localhost"), 0, 80];
  const all = Buffer.from([5, 2, 2, 0, ...request, ...Buffer.from("rest")]);
  for (let cut = 0; cut <= 4 + request.length; cut++) {
    const told: string[] = [];
    const reader = new SocksReader((answer) => told.push(answer.toHex()));
    const early = reader.push(all.subarray(0, cut));
    const said = early ?? reader.push(all.subarray(cut));
    expect(said?.target).toEqual({ kind: "tcp", host: "localhost", port: 80 });
    expect([told, said?.rest.toString()]).toEqual([["0500"], early ? "" : "rest"]);
  }
  const endless = new SocksReader(() => {});
  endless.push(Buffer.from([5, 255]));
  expect(() => {
    for (let at = 0; at < 300; at++) endless.push(Buffer.from([1]));
  }).toThrow(SocksError);
});

test("who never says what it wants is sent away", async () => {
  const over = Promise.withResolvers<Error | undefined>();
  const open: Connection[] = [];
  using server = Bun.listen<Connection>({
    ...{ hostname: "127.0.0.1", port: 0 },
    socket: {
      ...connectionHandlers,
      open(socket) {
        socket.data = new SocksConnection(() => {}, 20);
        socket.data.onOver = over.resolve;
        open.push(socket.data);
        socket.data.socketOpened(socket);
      },
    },
  });
  const slow = client(server.port);
  slow.write(Uint8Array.of(5));
  expect((await over.promise)?.message).toBe("it did not say within 0.02 s what it wants");
  expect((await readAll(slow)).bytes).toHaveLength(0);
  expect(open.map(({ isOver }) => isOver)).toEqual([true]);
});
