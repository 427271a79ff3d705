/** What the programs' output must not hold, and what each line of it must. */
import { expect, setDefaultTimeout } from "bun:test";
import { join } from "node:path";
import { spawn as spawnParticipant } from "../driven-fixture.ts";
import { Driven, met } from "../driven-fixture.ts";
import { until } from "../native-fixture.ts";
import { root } from "../pty-fixture.ts";
import { freePort } from "../sockets-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import { testAtOnce } from "../places-fixture.ts";

const test = testAtOnce(3);
setDefaultTimeout(testMs);

const words = "the words of this test";

test("JSON holds no words of a room, no whole id of it; what concerns a peer has its id and name", async () => {
  const port = freePort();
  const command = [
    process.execPath,
    join(root, "introducer.ts"),
    String(port),
    "--host",
    "127.0.0.1",
    "--json",
  ];
  await using introducer = Bun.spawn(command, { stdin: "pipe", stdout: "pipe", stderr: "pipe" });
  let told = "";
  const reading = (async () => {
    for await (const text of introducer.stdout.pipeThrough(new TextDecoderStream())) told += text;
  })();
  await until("it listens", () => told.includes("listening"));
  await using alice = new Driven(port, "alice", "--room", words);
  await using bob = new Driven(port, "bob", "--room", words);
  await met(alice, bob);
  alice.type("connect bob", "say bob hi", `forward ${freePort()}:bob:1`, "whoami");
  await alice.next("sent");
  await alice.next("forwarding");
  for (const { name, events } of [alice, bob]) {
    expect(JSON.stringify(events)).not.toMatch(new RegExp(`${words}|"room":"[0-9a-f]{64}`));
    for (const event of events)
      if ("name" in event && event.name !== name && event.event !== "absent")
        expect(["number", "object"]).toContain("peer" in event ? typeof event.peer : "nothing");
  }
  introducer.stdin.write("list\n");
  await introducer.stdin.flush();
  await until("it lists them", () => told.includes('"event":"participants"'));
  introducer.kill("SIGINT");
  await reading;
  expect(told).toMatch(/"room":"[0-9a-f]{8}…"/);
  expect(told).not.toMatch(/"room":"[0-9a-f]{64}/);
});

test("in the lobby nobody learns from the name who we are", async () => {
  const { Introducer } = await import("../../introducer.ts");
  await using house = Introducer.start({ host: "127.0.0.1", port: 0 });
  const env = { USER: "margaret", LOGNAME: "margaret" };
  const named = async (...args: string[]) => {
    await using child = spawnParticipant([`127.0.0.1:${house.port}`, ...args], env);
    child.stdin.write("whoami\n");
    child.stdin.end();
    return await child.stdout.text();
  };
  expect(await named()).toMatch(/^guest-[0-9a-f]{6} \(/);
  expect(await named("--room", words)).toMatch(/^margaret@/);
});
