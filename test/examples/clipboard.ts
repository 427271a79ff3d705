/**
 * A clipboard that all in one room share: `bun clipboard.ts INTRODUCER PORT NAME FILE`. FILE is the clipboard here. What
 * changes in it is in the files of the others a moment later; the latest change counts. Ends when standard input does. Run by
 * test/examples.test.ts.
 */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { type Link, pairOf, Participant } from "../../participant.ts";

const lookMs = 100;
const use = "clipboard/1";
const [host = "", port, name = "", path = "clipboard"] = process.argv.slice(2);
await using me = new Participant({ host, port: Number(port), name, room: "our secret words" });
let now = { text: "", copiedAt: 0 };

/** Resolves once the other side has it. */
async function send(link: Link): Promise<void> {
  const { readable, writable } = link.openPair(use, { copiedAt: now.copiedAt });
  await new Blob([now.text]).stream().pipeTo(writable);
  for await (const _ of readable);
}

/** An error is the link's: when it is back, or another one is there, the latest is sent anyway. */
function sendAll(): void {
  for (const { name } of me.peers.rows) {
    const link = me.peers.link(name);
    if (link) send(link).catch((error: Error) => console.error(`${link.name}: ${error.message}`));
  }
}

me.onStream(use, async (stream, { name, purpose }) => {
  const { readable, writable } = pairOf(stream);
  const text = await new Response(readable).text();
  if (typeof purpose["copiedAt"] === "number" && purpose["copiedAt"] > now.copiedAt) {
    now = { text, copiedAt: purpose["copiedAt"] };
    writeFileSync(path, text);
    console.log(`${name} has copied ${text.length} characters`);
  }
  await writable.close();
});
me.on("linked", sendAll);
await me.join();
for (const { name } of me.peers.rows) me.keep(name);

const looking = setInterval(() => {
  const text = existsSync(path) ? readFileSync(path, "utf8") : "";
  if (text === now.text) return;
  now = { text, copiedAt: Date.now() };
  sendAll();
}, lookMs);
for await (const _ of process.stdin);
clearInterval(looking);
