/** UDP forwards between real programs on loopback: a game, name servers, and what the prompt shows. */
import { expect, setDefaultTimeout, test } from "bun:test";
import type { ForwardRow } from "../native/uses/forwards.ts";
import { addressOfAll, answersOf, digOptions, nameServer } from "./dns-fixture.ts";
import { Driven, homeOf, met, spawn, startIntroducer } from "./driven-fixture.ts";
import { GameServer, Player } from "./game-fixture.ts";
import { until } from "./native-fixture.ts";
import { missing, testNeeding, unlessRequired } from "./needing-fixture.ts";
import { testMs } from "./patience-fixture.ts";
import { freeUdpPort, UdpClient, udpTarget } from "./udp-fixture.ts";

setDefaultTimeout(testMs);

const room = ["--room", "of the tests of udp"];
const digTest = testNeeding(unlessRequired(missing(["dig"], "package bind9-dnsutils")));

async function forwardsOf(one: Driven): Promise<ForwardRow[]> {
  one.type("forwards");
  return ((await one.next("forwards" as "error")) as unknown as { forwards: ForwardRow[] }).forwards;
}

test("a game of two, by options and by commands, over IPv4 and IPv6; `forwards` counts its datagrams", async () => {
  using game = new GameServer();
  using game6 = new GameServer("::1");
  await using house = startIntroducer();
  const [here, here6] = [freeUdpPort(), freeUdpPort("::1")];
  await using alice = new Driven(house.port, "alice", ...room, "-L", `${here}/udp:bob:${game.port}/udp`);
  await using bob = new Driven(house.port, "bob", ...room, "--allow", `${game.port}/udp`, "--stay");
  await met(alice, bob);
  expect(await alice.next("forwarding")).toMatchObject({
    listen: `127.0.0.1:${here}/udp`,
    target: `localhost:${game.port}/udp`,
  });
  {
    using ann = new Player("ann", here);
    using ben = new Player("ben", here);
    await Promise.all([ann, ben].map((one) => one.sees(["ann", "ben"], 25)));
    expect([ann.old, ben.old]).toEqual([0, 0]);
  }
  bob.type(`allow [::1]:${game6.port}/udp`);
  alice.type(`forward [::1]:${here6}/udp:bob:[::1]:${game6.port}/udp`);
  await alice.next("forwarding");
  using eve = new Player("eve", here6, "::1");
  await eve.sees(["eve"], 25);

  const [first, second] = await forwardsOf(alice);
  expect(first).toMatchObject({ peer: "bob", open: 2, total: 2 });
  expect(first!.packetsIn!).toBeGreaterThan(10);
  expect(first!.packetsOut!).toBeGreaterThan(10);
  expect(second).toMatchObject({ listen: `[::1]:${here6}/udp`, target: `[::1]:${game6.port}/udp`, open: 1 });
  alice.type(`unforward ${here}/udp`);
  expect((await forwardsOf(alice)).map(({ listen }) => listen)).toEqual([`[::1]:${here6}/udp`]);
  expect([alice.count("forward-refused"), bob.count("used")]).toEqual([0, 2]);
});

test("what a peer does not allow is told on both sides, once; UDP is not TCP", async () => {
  using target = udpTarget();
  await using house = startIntroducer();
  const here = freeUdpPort();
  await using alice = new Driven(house.port, "alice", ...room, "-L", `${here}/udp:bob:${target.port}/udp`);
  await using bob = new Driven(house.port, "bob", ...room, "--allow", `${target.port}`, "--stay");
  await met(alice, bob);
  await alice.next("linked");
  using client = new UdpClient(here);
  const asking = setInterval(() => client.send("in vain"), 20);
  const wanted = { target: `localhost:${target.port}/udp`, why: "not-allowed" };
  const told = Promise.all([alice.next("forward-refused"), bob.next("forward-refused")]);
  expect(await told.finally(() => clearInterval(asking))).toMatchObject([wanted, wanted]);
  bob.type(`allow ${target.port}/udp`);
  await client.asks("not in vain");
  expect(alice.count("forward-refused")).toBe(1);
});

digTest("dig, with what `share` and `reach` print", async () => {
  using server = nameServer();
  await using house = startIntroducer();
  const [sharerHome, reacherHome] = [homeOf("sharer"), homeOf("reacher")];
  await using sharer = spawn(["share", `${server.port}/udp`], {
    INTRODUCER: `127.0.0.1:${house.port}`,
    XDG_STATE_HOME: sharerHome,
  });
  void sharer.stdin.end();
  let told = "";
  const telling = new WritableStream<string>({ write: (text) => void (told += text) });
  void sharer.stderr.pipeThrough(new TextDecoderStream()).pipeTo(telling);
  await until("it prints the other side's line", () => / {2}bun run participant .*\n/.test(told));
  const answer = / {2}bun run participant (.*)\n/.exec(told)![1]!.split(" ");
  const here = freeUdpPort();
  await using reacher = spawn([...answer, String(here)], { XDG_STATE_HOME: reacherHome });
  void reacher.stdin.end();
  const { value } = await reacher.stdout.pipeThrough(new TextDecoderStream()).getReader().read();
  expect(value).toBe(`127.0.0.1:${here} (UDP)\n`);
  const names = Array.from({ length: 5 }, (_, number) => `host-${number}.example`);
  const dig = Bun.spawn(["dig", ...digOptions(here), ...names], { stdout: "pipe" });
  expect(answersOf(await dig.stdout.text())).toEqual(names.map(() => addressOfAll));
  expect(await dig.exited).toBe(0);
});
