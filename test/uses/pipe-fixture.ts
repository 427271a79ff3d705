/**
 * `cat` through a link, in one program: standard input goes to alice, what bob gets to standard output. At its end
 * one line on standard error says how it went, when standard output is closed already.
 */
import { DescriptorOutput, runPipe } from "../../native/uses/stdio.ts";
import { Pipe, pipePurpose } from "../../native/uses/pipe.ts";
import { Linked } from "../session/linked-fixture.ts";

using link = new Linked();
const incoming = new Promise<Pipe>((resolve) => (link.onStream = (stream) => resolve(new Pipe(stream))));
const back = new Promise<Pipe>((resolve) => (link.onStreamBack = (stream) => resolve(new Pipe(stream))));
const fromAlice = new Pipe(link.alice.open(pipePurpose()));
await incoming;
const fromBob = new Pipe(link.bob.open(pipePurpose()));
const work = [
  runPipe(Bun.stdin.stream(), new DescriptorOutput(2), fromAlice, { incoming: back }),
  runPipe(undefined, new DescriptorOutput(1), fromBob, { incoming }),
];
const outcomes = await Promise.allSettled(work);
const reasons = outcomes.map((one) =>
  one.status === "fulfilled" ? "confirmed" : String(one.reason.message),
);
await Bun.write(process.argv[2]!, JSON.stringify({ reasons, sent: fromAlice.bytesOut }));
await Bun.stdin
  .stream()
  .cancel()
  .catch(() => {});
process.exit();
