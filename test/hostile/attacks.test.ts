/** What was found by attacks of all kinds, each small: a lying introducer, a room member, a stranger, a local user. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { readdirSync } from "node:fs";
import type { Socket } from "node:net";
import { join } from "node:path";
import { Driven } from "../driven-fixture.ts";
import { freePort } from "../sockets-fixture.ts";
import { dial, limitedTo, LyingIntroducer, Member, peersLine, registered, until } from "./wire.ts";
import { testMs } from "../patience-fixture.ts";

/** Several programs on a busy machine. */
setDefaultTimeout(testMs);

test("an introducer that registers us under another name is left, and that name is told to nobody", async () => {
  using house = await LyingIntroducer.listen((line, visitor) => {
    if (line.type === "register") visitor.say(registered(line, { name: "root" }), peersLine());
  });
  await using alice = new Driven(house.port, "alice");
  expect((await alice.next("error")).message).toContain("it calls us root, not alice");
  expect(await alice.exited()).toBe(1);
  expect(alice.count("registered")).toBe(0);
});

test("strangers at the port of the metrics take no descriptors of participants", async () => {
  const [port, metrics] = [freePort(), freePort()];
  const program = join(import.meta.dir, "..", "..", "introducer.ts");
  const args = [String(port), "--host", "127.0.0.1", "--metrics", String(metrics), "--probe-ports", "none"];
  await using house = Bun.spawn(limitedTo(128, [process.execPath, program, ...args]), {
    stdio: ["ignore", "ignore", "ignore"],
  });
  const page = () => fetch(`http://127.0.0.1:${metrics}/metrics`).then((answer) => answer.text());
  await until("it shows its numbers", () =>
    page().then(
      () => true,
      () => false,
    ),
  );
  const idle: Socket[] = [];
  for (let number = 0; number < 300; number++) idle.push(await dial("127.0.0.1", metrics));
  for (const [index, socket] of idle.entries()) if (index % 2) socket.write("GET /metrics HTTP/1.1\r\nA: ");
  using alice = await Member.join(port, { name: "alice" });
  expect(alice.name).toBe("alice");
  expect(await page()).toContain("introducer_participants 1\n");
  expect(readdirSync(`/proc/${house.pid}/fd`).length).toBeLessThan(64);
  for (const socket of idle) socket.destroy();
});
