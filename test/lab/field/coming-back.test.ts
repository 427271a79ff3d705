/** Coming back again and again: NATs that forget in seconds, and a laptop that sleeps often. */
import { expect } from "bun:test";
import { Driven, homeOf, startIntroducer } from "../../driven-fixture.ts";
import { client, freePort, target } from "../../sockets-fixture.ts";
import { Lab } from "../lab.ts";
import { gather, linkedBoth, talk } from "../meeting.ts";
import { People } from "../people.ts";
import { behind, behindProgram, between } from "../sides.ts";
import { longLabScenario, longScenario } from "./field-fixture.ts";
import { room } from "./village-fixture.ts";

const forgetful = [3, 12, 20];
/** So often something is said, each time after a silence in which each of the NATs forgets. */
const sayings = 4;
const silenceMs = 25_000;

/** Two people, one behind a NAT that forgets what is idle for so long. Returns how long what was said took at most, in s. */
async function silentBehind(forgetS: number): Promise<string> {
  await using lab = await Lab.create({ isIdle: true });
  await using people = new People();
  const timeouts = { establishedTimeoutMs: forgetS * 1_000, transitoryTimeoutMs: 2_000 };
  const hosts = await between(behindProgram(timeouts), behind({}))(lab);
  const { alice, bob } = await gather(lab, people, hosts);
  alice.type("connect bob");
  await linkedBoth(alice, bob);
  const took: number[] = [];
  for (let count = 0; count < sayings; count++) {
    await Bun.sleep(silenceMs);
    const [from, to] = count % 2 === 0 ? [alice, bob] : [bob, alice];
    const startedAt = performance.now();
    from.type(`say ${to.name} number ${count}`);
    await to.next("said", ({ text }) => text === `number ${count}`, 40_000);
    took.push(performance.now() - startedAt);
  }
  await talk(alice, bob);
  expect([alice, bob].map((one) => one.all("unlinked"))).toEqual([[], []]);
  expect(alice.all("said").length + bob.all("said").length).toBe(sayings + 2);
  return (Math.max(...took) / 1000).toFixed(1);
}

longLabScenario()(
  `NATs that forget what is idle for ${forgetful.join(", ")} s: what is said after a silence arrives, once`,
  async () => {
    const worst = await Promise.all(forgetful.map(silentBehind));
    return `said after ${silenceMs / 1000} s of silence: there within ${worst.join(", ")} s`;
  },
  300_000,
);

/** How often it sleeps, for how long, and how long links are kept. */
const sleeps = { count: 15, ms: 8_000, keepMinutes: "0.05" };

longScenario(
  `a laptop that sleeps ${sleeps.count} times, each time for longer than its links are kept: a forward works soon`,
  async () => {
    await using house = startIntroducer();
    await using echo = await target((socket) => void socket.pipe(socket));
    const port = freePort();
    ["alice", "bob"].forEach(homeOf);
    const keep = ["--keep", sleeps.keepMinutes];
    const targeted = `127.0.0.1:${echo.port}`;
    await using bob = new Driven(house.port, "bob", ...room, ...keep, "--allow", targeted);
    await using alice = new Driven(house.port, "alice", ...room, ...keep, "-L", `${port}:bob:${targeted}`);
    await bob.registered;
    await alice.next("linked");
    const took: number[] = [];
    for (let count = 0; count < sleeps.count; count++) {
      bob.signal("SIGSTOP");
      await Bun.sleep(sleeps.ms);
      bob.signal("SIGCONT");
      const startedAt = performance.now();
      while (!(await echoes(port))) await Bun.sleep(50);
      took.push(performance.now() - startedAt);
    }
    took.sort((a, b) => a - b);
    const [median, worst] = [took[Math.floor(took.length / 2)]!, took.at(-1)!];
    expect(worst).toBeLessThan(10_000);
    return `works after ${(median / 1000).toFixed(1)} s (median), ${(worst / 1000).toFixed(1)} s at most`;
  },
  300_000,
);

/** Whether what is sent comes back. Waits for as long as the forward lets its client wait. */
async function echoes(port: number): Promise<boolean> {
  const socket = client(port);
  const { promise, resolve } = Promise.withResolvers<boolean>();
  socket.on("data", () => resolve(true));
  socket.on("error", () => resolve(false)).on("close", () => resolve(false));
  socket.write("hello");
  return promise.finally(() => socket.destroy());
}
