/**
 * A game over a link, of two programs: `bun example.ts INTRODUCER PORT NAME [OPPONENT]`. In turn each says a number
 * that is 1, 2 or 3 higher than the last one; whoever says 21 has won. Run by test/library.test.ts.
 */
import { createInterface } from "node:readline";
import { Participant, type Stream } from "../participant.ts";

const [host = "", port, name = "", opponent] = process.argv.slice(2);
const me = new Participant({ host, port: Number(port), name, room: "our secret words" });

async function play(stream: Stream, other: string) {
  for await (const heard of createInterface({ input: stream })) {
    console.log(`${other} says ${heard}`);
    if (heard === "21") stream.end(); // and read on, until the other has ended it, too
    if (heard === "21") continue;
    const next = Math.min(21, Number(heard) + 1 + Math.floor(Math.random() * 3));
    stream.write(`${next}\n`);
    if (next === 21) console.log("I have won");
  }
  stream.end();
  await me.quit();
}

me.onStream("twenty-one/1", (stream, from) => {
  stream.write("1\n");
  void play(stream, from.name);
});
await me.join();
if (opponent) {
  const link = await me.connect(opponent, { wait: true });
  await play(link.open("twenty-one/1"), opponent);
}
