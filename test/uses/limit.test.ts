/** Files and pipes go no faster than the limit, all together; by a clock in which whoever waits has waited at once. */
import { beforeEach, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Writable } from "node:stream";
import { Pace } from "../../native/shares/pace.ts";
import { Pipe, pipePurpose } from "../../native/uses/pipe.ts";
import { receiveFiles } from "../../native/uses/receive.ts";
import { sendFiles } from "../../native/uses/send.ts";
import { collectFiles } from "../../native/uses/source-files.ts";
import { runPipe } from "../../native/uses/stdio.ts";
import { newFolders, writeIn } from "../folders-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import { Linked } from "../session/linked-fixture.ts";
import { randomBytes, randomFrom } from "../session/memory-fixture.ts";

setDefaultTimeout(testMs);
const { fresh } = newFolders("limit-");
let source: string, target: string;
beforeEach(() => void ({ source, target } = fresh()));

const rate = 100_000;
const content = randomBytes(randomFrom(1), 300_000);

test("a file and a pipe at once take as long as both together need, and arrive whole", async () => {
  using link = new Linked();
  const clock = {
    at: 0,
    now: () => clock.at,
    sleep: (ms: number) => Bun.sleep(0).then(() => (clock.at += ms)),
  };
  const pace = new Pace(rate, clock);
  const received = Promise.withResolvers<unknown>();
  let piped = Buffer.alloc(0);
  const output = new Writable({
    write: (chunk: Buffer, _, written) => ((piped = Buffer.concat([piped, chunk])), written()),
  });
  link.onStream = (stream, purpose) => {
    if (purpose.use === "files")
      received.resolve(
        receiveFiles(stream, purpose, { peer: "a1".repeat(32), decide: () => ({ directory: target }) }),
      );
    else void runPipe(undefined, output, new Pipe(stream));
  };
  const sending = sendFiles(link.alice, await collectFiles([writeIn(source, "a", content)]), { pace });
  async function* input() {
    yield content;
  }
  await Promise.all([
    runPipe(
      input(),
      new Writable({ write: (_, __, written) => written() }),
      new Pipe(link.alice.open(pipePurpose()), pace),
    ),
    sending,
  ]);
  await received.promise;
  expect([readFileSync(join(target, "a")).equals(content), piped.equals(content)]).toEqual([true, true]);
  // 600 kB, and the lines between them. Two that wait for one moment leave together, so it may be a little less.
  expect(clock.at / 1000).toBeWithin(5.5, 6.5);
});

test("who is cancelled while it waits for the limit waits no more", async () => {
  using link = new Linked();
  const waiting = Promise.withResolvers<void>();
  const clock = { now: () => 0, sleep: () => (waiting.resolve(), new Promise(() => {})) };
  link.onStream = (stream, purpose) =>
    void receiveFiles(stream, purpose, {
      peer: "a1".repeat(32),
      decide: () => ({ directory: target }),
    }).catch(() => {});
  const cancel = new AbortController();
  const options = { pace: new Pace(rate, clock), signal: cancel.signal };
  const sending = sendFiles(link.alice, await collectFiles([writeIn(source, "a", content)]), options).catch(
    String,
  );
  await waiting.promise;
  cancel.abort();
  expect(await sending).toContain("cancelled");
});
