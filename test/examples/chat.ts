/**
 * A chat of all who are in one room: `bun chat.ts INTRODUCER PORT NAME`. What one types, the others read. Links that break
 * come back by themselves. Run by test/examples.test.ts.
 */
import { createInterface } from "node:readline";
import { Participant } from "../../participant.ts";

const [host = "", port, name = ""] = process.argv.slice(2);
await using me = new Participant({ host, port: Number(port), name, room: "our secret words" });

me.on("linked", (peer) => console.log(`${peer.name} is here`));
me.on("unlinked", (peer) => console.log(`${peer.name} has gone`));
me.on("said", (peer) => console.log(`${peer.name}: ${peer.text}`));

// Whoever comes asks those who are here already, so each pair has one link.
await me.join();
for (const peer of me.peers.rows) me.keep(peer.name);

async function say(peer: string, text: string): Promise<void> {
  try {
    await me.say(peer, text);
  } catch (error) {
    console.log(`${peer} may not have it: ${(error as Error).message}`);
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const here = [...me.peers.names()].filter((peer) => me.peers.link(peer));
  await Promise.all(here.map((peer) => say(peer, line)));
}
