/** Files in numbers. */
import { expect } from "bun:test";
import { mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Driven, homeOf, startIntroducer } from "../../driven-fixture.ts";
import { longScenario } from "./field-fixture.ts";
import { room, seconds } from "./village-fixture.ts";

const fileCount = 20_000;
const perFolder = 500;

longScenario(
  `${fileCount.toLocaleString("en")} files: all arrive, the last as fast as the first`,
  async () => {
    await using house = startIntroducer();
    const [source, into] = [join(homeOf("giver"), "many"), join(homeOf("taker"), "in")];
    for (let n = 0; n < fileCount; n++) {
      const folder = join(source, String(Math.floor(n / perFolder)));
      if (n % perFolder === 0) mkdirSync(folder, { recursive: true });
      writeFileSync(join(folder, String(n)), `number ${n}\n`.repeat(20));
    }
    await using taker = new Driven(house.port, "taker", ...room, "--accept", into);
    await taker.registered;
    const sending = ["--connect", "taker", "--send", source];
    await using giver = new Driven(house.port, "giver", ...room, ...sending);
    await taker.next("transferring");
    const startedAt = performance.now();
    const all = () => readdirSync(into, { recursive: true, withFileTypes: true });
    const arrived = () => all().filter((one) => one.isFile()).length;
    let halfMs = 0;
    const watching = setInterval(() => {
      if (halfMs === 0 && arrived() >= fileCount / 2) halfMs = performance.now() - startedAt;
    }, 100);
    expect(await giver.exited()).toBe(0);
    clearInterval(watching);
    const allMs = performance.now() - startedAt;
    expect(arrived()).toBe(fileCount);
    expect(allMs - halfMs).toBeLessThan(3 * halfMs);
    const rate = Math.round(fileCount / (allMs / 1000));
    return `in ${seconds(startedAt)}, ${rate} a second; the first half in ${(halfMs / 1000).toFixed(1)} s`;
  },
  180_000,
);
