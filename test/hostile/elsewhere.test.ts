/** An introducer that says `elsewhere`, again and again: where a participant may be sent by it, and how often. */
import { describe, expect, setDefaultTimeout } from "bun:test";
import { Driven, outcome } from "../driven-fixture.ts";
import { until } from "../native-fixture.ts";
import { Bait, type Line, type LineSocket, LyingIntroducer, peersLine, registered } from "./wire.ts";
import { testAtOnce } from "../places-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import { longTest } from "../needing-fixture.ts";

const test = testAtOnce(4);
setDefaultTimeout(testMs);

const sends =
  (port: () => number, host = "127.0.0.1") =>
  (line: Line, visitor: LineSocket) => {
    if (line.type === "register") visitor.say({ type: "elsewhere", host, port: port() });
  };

describe("an introducer can't have its participants", () => {
  test("run in a circle: a third move in a row is not made", async () => {
    const one = await LyingIntroducer.listen(sends(() => two.port));
    const two: LyingIntroducer = await LyingIntroducer.listen(sends(() => one.port));
    using _one = one;
    using _two = two;
    const { code, stderr } = await outcome([`127.0.0.1:${one.port}`, "--name", "alice"]);
    // The second move is back to the first; where a connection is late, it is tried once more.
    expect([code, two.visitors.length]).toEqual([1, 1]);
    expect(one.visitors.length).toBeWithin(2, 4);
    expect(stderr).toContain("introducers send us from one to another");
  });

  test("visit what nobody can be at", async () => {
    using loopback = await Bait.listen("127.0.0.1");
    // What is nearer than an introducer is tested from afar, in far-introducer-fixture.ts.
    for (const host of ["0.0.0.0", "224.0.0.1", "169.254.1.1", "::", "fe80::1"]) {
      using house = await LyingIntroducer.listen(sends(() => loopback.port, host));
      const { code } = await outcome([`127.0.0.1:${house.port}`, "--name", "alice"]);
      expect(code).toBe(1);
    }
    expect(loopback.total).toBe(0);
  });

  test("scan ports: few new endpoints are visited, though it welcomes and sends on without end", async () => {
    const baits = await Promise.all(
      Array.from({ length: 60 }, () => Bait.listen("127.0.0.3", (socket) => void socket.end())),
    );
    let visits = 0;
    using house = await LyingIntroducer.listen((line, visitor) => {
      if (line.type !== "register") return;
      visitor.say(registered(line), peersLine());
      visitor.say({ type: "elsewhere", host: "127.0.0.3", port: baits[visits++ % baits.length]!.port });
    });
    await using alice = new Driven(house.port, "alice", "--quiet");
    await until("it has come three times", () => visits >= 3);
    expect(alice.count("registered")).toBeGreaterThanOrEqual(2);
    // Each of these was one visit, and after each it came back to what was given at the start, later each time.
    const visited = baits.filter(({ total }) => total > 0);
    expect(visited.length).toBeLessThanOrEqual(12);
    expect(Math.max(...visited.map(({ total }) => total))).toBe(1);
    for (const bait of baits) bait[Symbol.dispose]();
  });

  longTest("hold it at a home that is gone for longer than a lease lasts", async () => {
    const gone = await LyingIntroducer.listen(() => {});
    const { port } = gone;
    gone[Symbol.dispose]();
    using house = await LyingIntroducer.listen(sends(() => port));
    const from = performance.now();
    const { code, stderr } = await outcome([`127.0.0.1:${house.port}`, "--name", "alice"]);
    expect([code, house.visitors.length]).toEqual([1, 17]);
    expect(stderr).toContain(`cannot reach the introducer at 127.0.0.1:${port}`);
    expect(performance.now() - from).toBeGreaterThan(8_000); // a lease
  });
});
