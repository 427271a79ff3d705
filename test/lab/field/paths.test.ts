/** Ways that are long, that lose much, and on which only small packets arrive. */
import { expect } from "bun:test";
import { join } from "node:path";
import { apart, behind, behindProgram, between } from "../sides.ts";
import { longLabScenario } from "./field-fixture.ts";
import { printedLine, randomFile, seconds, sha256OfFile, Village } from "./village-fixture.ts";

const scenario = longLabScenario();
const smallBytes = 1_000_000;

/** Sends a file by a code, and compares it. */
async function sent(village: Village, bytes: number, env: Record<string, string>): Promise<string> {
  const { hosts, folder } = village;
  await randomFile(join(folder, "file"), bytes);
  const startedAt = performance.now();
  const sender = village.participant(hosts.alice, "alice", ["send", "file"], env);
  const line = await printedLine(sender.stderr);
  const receiver = village.participant(hosts.bob, "bob", [...line, "got"], env);
  expect(await Promise.all([sender.exited, receiver.exited])).toEqual([0, 0]);
  expect(await sha256OfFile(join(folder, "got/file"))).toBe(await sha256OfFile(join(folder, "file")));
  return seconds(startedAt);
}

scenario(
  "3 % of the packets lost at 280 ms: a link, and 1 MB that arrives",
  async () => {
    await using village = await Village.create(apart({ owdMs: 70, loss: 0.03 }, { owdMs: 70 }));
    const { endpoint } = await village.introducer();
    return `1 MB in ${await sent(village, smallBytes, { INTRODUCER: endpoint })}, start and all`;
  },
  180_000,
);

for (const largestPacket of [1240, 1000, 600])
  scenario(
    `packets above ${largestPacket} bytes are lost, without a word: 1 MB arrives`,
    async () => {
      await using village = await Village.create(between(behindProgram({ largestPacket }), behind({})));
      const { endpoint } = await village.introducer();
      return `1 MB in ${await sent(village, smallBytes, { INTRODUCER: endpoint })}, start and all`;
    },
    120_000,
  );
