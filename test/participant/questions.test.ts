/** Questions to the introducer, with its answers said by the test. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { Questions } from "../../native/participant/questions.ts";
import type { ToIntroducer } from "../../protocol.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

function asking() {
  const sent: ToIntroducer[] = [];
  return { sent, questions: new Questions((message) => void sent.push(message)) };
}

test("echoes are answered in turn, and one that is refused rejects", async () => {
  const { sent, questions } = asking();
  const all = ["one", "two", "three"].map((text) => questions.echo(text));
  expect(sent).toEqual(["one", "two", "three"].map((text) => ({ type: "echo", text })));
  questions.answered({ type: "echo", text: "one" });
  questions.refused("echo", "too many");
  questions.answered({ type: "echo", text: "three" });
  expect(await Promise.allSettled(all)).toMatchObject([
    { value: "one" },
    { reason: { message: "too many" } },
    { value: "three" },
  ]);
});

test("a connection back is answered, or refused, and the next one is asked for anew", async () => {
  const { sent, questions } = asking();
  const answer = { type: "filtering", filtering: "dropped" } as const;
  const first = questions.connectBack();
  questions.answered(answer);
  expect(await first).toEqual(answer);
  const second = questions.connectBack();
  questions.refused("connect-back", "too many");
  expect(await second).toBeUndefined();
  questions.answered(answer); // nobody waits for it
  expect(sent).toEqual([{ type: "connect-back" }, { type: "connect-back" }]);
});

test("once no answer can come, nobody waits", async () => {
  const { questions } = asking();
  const echo = questions.echo("anybody?");
  const back = questions.connectBack();
  questions.close("it is gone");
  await expect(echo).rejects.toThrow("no answer: it is gone");
  expect(await back).toBeUndefined();
});
