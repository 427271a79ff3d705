/**
 * Programs that are stopped, as by a sleep or by a loss of power. After a sleep longer than `--keep` the link is over on one
 * side or on both, and a forward works soon. A sender that is started again goes on with what its ghost was sending.
 */
import { expect, setDefaultTimeout } from "bun:test";
import { existsSync, readdirSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Driven, homeOf, startIntroducer } from "./driven-fixture.ts";
import { until } from "./native-fixture.ts";
import { linuxTest } from "./needing-fixture.ts";
import { freePort } from "./sockets-fixture.ts";
import { testMs } from "./patience-fixture.ts";

setDefaultTimeout(testMs);

const room = ["--room", "7k2m-9qxw-4tz8-vbnc", "--stay"];
/** Three seconds: less than a silent link takes to be given up (10 s). */
const keepShort = ["--keep", "0.05"];
/** A forward works within this time of waking. On a machine so busy that a start takes long, within three starts. */
const soonMs = 3_000;

/** Resolves once a connection to that port gets back what it says. One that is closed is made anew. */
async function echoes(port: number): Promise<void> {
  for (;;) {
    const { promise, resolve } = Promise.withResolvers<boolean>();
    const [yes, no] = [() => resolve(true), () => resolve(false)];
    const socket = { open: (one: Bun.Socket) => void one.write("hello"), data: yes, close: no, error: no };
    const connection = await Bun.connect({ hostname: "127.0.0.1", port, socket }).catch(() => undefined);
    const isEchoed = connection !== undefined && (await promise);
    connection?.terminate();
    if (isEchoed) return;
    await Bun.sleep(20);
  }
}

linuxTest.concurrent(
  "a forward works within three seconds of waking, whichever side had given the link up",
  async () => {
    await using house = startIntroducer();
    using echo = Bun.listen({
      hostname: "127.0.0.1",
      port: 0,
      socket: { data: (socket, chunk) => void socket.write(chunk) },
    });
    const target = `127.0.0.1:${echo.port}`;
    const pairs = await Promise.all(
      [
        [keepShort, keepShort],
        [keepShort, []],
        [[], keepShort],
      ].map(async ([ofAlice, ofBob], n) => {
        const [names, port] = [[`alice${n}`, `bob${n}`] as const, freePort()];
        names.map(homeOf);
        const bob = new Driven(house.port, names[1], ...room, ...ofBob!, "--allow", target);
        const forward = `${port}:${names[1]}:${target}`;
        const alice = new Driven(house.port, names[0], ...room, ...ofAlice!, "-L", forward);
        return { alice, bob, port, isKeptShort: ofAlice === keepShort };
      }),
    );
    const startedAt = performance.now();
    await Promise.all(pairs.map(async ({ alice }) => alice.next("forwarding")));
    await Promise.all(pairs.map(({ port }) => echoes(port)));
    const startMs = performance.now() - startedAt;
    const waking = pairs.map(async ({ alice, bob, port, isKeptShort }) => {
      bob.signal("SIGSTOP");
      const used = echoes(port); // what is said now is not answered, which shows that bob is silent
      await alice.next("broken");
      if (isKeptShort) await alice.next("unlinked");
      const wokenAt = performance.now();
      bob.signal("SIGCONT");
      await Promise.race([used, echoes(port)]);
      return performance.now() - wokenAt;
    });
    for (const ms of await Promise.all(waking)) expect(ms).toBeLessThan(Math.max(soonMs, 3 * startMs));
    const reasons = pairs.flatMap(({ alice, bob }) => [...alice.events, ...bob.events]);
    expect(reasons.filter((one) => one.event === "unlinked" && one.reason === "peer-restarted")).toEqual([]);
    for (const { alice, bob } of pairs)
      await Promise.all([alice, bob].map((one) => one[Symbol.asyncDispose]()));
  },
  60_000,
);

linuxTest.concurrent(
  "a sender that lost power and is started again has its name, and its claim on the file",
  async () => {
    await using house = startIntroducer();
    const [from, into] = [join(homeOf("sender"), "file.bin"), join(homeOf("taker"), "in")];
    writeFileSync(from, "");
    truncateSync(from, 100_000_000);
    await using taker = new Driven(house.port, "taker", ...room, "--accept", into);
    await taker.registered;
    // So that it is still under way.
    const sending = ["--room", room[1]!, "--connect", "taker", "--send", from, "--limit", "10M"];
    await using ghost = new Driven(house.port, "sender", ...sending);
    await taker.next("transferring");
    const hasBegun = () => readdirSync(into).some((name) => name.endsWith(".part"));
    await until("the file has begun to come", () => existsSync(into) && hasBegun());
    ghost.signal("SIGSTOP");
    await using again = new Driven(house.port, "sender", ...sending);
    expect((await again.registered).name).toBe("sender");
    expect(await taker.next("transfer-failed")).toMatchObject({ reason: "another attempt goes on with it" });
    await taker.next("transferring");
    await again.next("transferring");
    expect(again.count("transfer-failed")).toBe(0);
  },
  testMs,
);
