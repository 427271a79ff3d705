/**
 * A race of two: `bun game.ts INTRODUCER PORT NAME [OPPONENT]`. Thirty times a second each side says how far it is: its state,
 * and not what has happened, so only the latest counts. While one still waits to be sent, none is added, as with UDP: late is
 * worse than lost. Who was asked to play says who has won. Run by test/examples.test.ts.
 */
import { createInterface } from "node:readline";
import { Participant, type Stream } from "../../participant.ts";

const turnMs = 1000 / 30;
const goal = 50;
interface State {
  at: number;
  winner?: string;
}

const [host = "", port, name = "", opponent] = process.argv.slice(2);
await using me = new Participant({ host, port: Number(port), name, room: "our secret words" });

async function race(stream: Stream, other: string, isJudge: boolean): Promise<void> {
  const mine: State = { at: 0 };
  let theirs: State = { at: 0 };
  const say = (state: State) => stream.write(`${JSON.stringify(state)}\n`);
  const turn = () => {
    mine.at += 1 + Math.random() * 2;
    const first = mine.at >= goal ? name : theirs.at >= goal ? other : undefined;
    if (isJudge && first !== undefined) return over(first);
    if (stream.writableLength === 0) say(mine);
  };
  const over = (winner: string) => {
    clearInterval(timer);
    if (isJudge) say({ ...mine, winner });
    stream.end();
    console.log(winner === name ? "I have won" : `${winner} has won`);
  };
  const timer = setInterval(turn, turnMs);
  stream.on("close", () => clearInterval(timer));
  for await (const line of createInterface({ input: stream })) {
    theirs = JSON.parse(line) as State;
    if (theirs.winner !== undefined) over(theirs.winner);
  }
}

if (opponent !== undefined) {
  await me.join();
  const link = await me.connect(opponent, { wait: true });
  await race(link.open("race/1"), opponent, false);
} else {
  const { promise: played, resolve } = Promise.withResolvers<void>();
  me.onStream("race/1", async (stream, from) => resolve(await race(stream, from.name, true)));
  await me.join();
  await played;
}
