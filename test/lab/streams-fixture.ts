/**
 * A program built on the class `Participant`, for what the prompt does not offer: takes streams of bytes and tells their
 * SHA-256, and sends some. Speaks the participant's own JSON lines.
 *
 *   bun streams-fixture.ts HOST:PORT --name NAME --json [--room WORDS] [--direct]
 *   connect PEER | send PEER BYTES | quit        lines on standard input
 *
 * Further events: {event: "received", name, bytes, sha256} and {event: "streamed", name, bytes, sha256}, the latter once
 * the peer has ended its half, having read all.
 */
import { createHash, randomFillSync } from "node:crypto";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { parseArgs } from "node:util";
import { Participant } from "../../participant.ts";
import { readHostPort } from "../../native/terminal/invitation.ts";

const chunkBytes = 64 * 1024;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    name: { type: "string" },
    room: { type: "string" },
    json: { type: "boolean" },
    direct: { type: "boolean" },
    verbose: { type: "boolean", short: "v" },
  },
});
const tell = (event: object) => void process.stdout.write(`${JSON.stringify(event)}\n`);
const participant = new Participant({
  ...readHostPort(positionals[0]!),
  name: values.name!,
  room: values.room ?? "lobby",
  direct: values.direct ?? false,
  verbose: true,
  onEvent: tell,
});

participant.onStream("bytes", (stream, { name }) => {
  const hash = createHash("sha256");
  let bytes = 0;
  stream.on("error", ({ message }) => tell({ event: "error", message }));
  stream.on("data", (chunk: Buffer) => {
    hash.update(chunk);
    bytes += chunk.length;
  });
  stream.on("end", () => {
    tell({ event: "received", name, bytes, sha256: hash.digest("hex") });
    stream.end();
  });
});

async function send(name: string, total: number): Promise<void> {
  const stream = participant.peers.link(name)!.open("bytes");
  const hash = createHash("sha256");
  stream.on("error", ({ message }) => tell({ event: "error", message }));
  stream.resume();
  for (let left = total; left > 0; left -= chunkBytes) {
    const chunk = randomFillSync(Buffer.alloc(Math.min(chunkBytes, left)));
    hash.update(chunk);
    if (!stream.write(chunk)) await once(stream, "drain");
  }
  stream.end();
  await once(stream, "end");
  tell({ event: "streamed", name, bytes: total, sha256: hash.digest("hex") });
}

await participant.join();
for await (const line of createInterface({ input: process.stdin })) {
  const [command, name = "", bytes] = line.split(" ");
  if (command === "quit") break;
  const work = command === "send" ? send(name, Number(bytes)) : participant.connect(name);
  work.catch((error: Error) => tell({ event: "error", message: error.message }));
}
await participant.quit();
process.exit();
