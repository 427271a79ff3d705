import { expect, setDefaultTimeout, test } from "bun:test";
import { onceMore } from "../../native/participant/once-more.ts";
import { ToldError } from "../../protocol.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const lost = () => new ToldError("no link with bob", { code: "introducer-lost" });

/** Fails with each of these in turn, and then is done. */
function failing(...errors: Error[]) {
  let count = 0;
  const work = async () => {
    const error = errors[count++];
    if (error) throw error;
    return "linked";
  };
  return { work, count: () => count };
}

test("an introducer that is lost costs one more attempt, and no third", async () => {
  const once = failing(lost());
  expect(await onceMore(once.work, undefined)).toBe("linked");
  const twice = failing(lost(), lost());
  await expect(onceMore(twice.work, undefined)).rejects.toThrow("no link with bob");
  expect([once.count(), twice.count()]).toEqual([2, 2]);
});

test("any other failure is one", async () => {
  const other = failing(new ToldError("it has left", { code: "peer-left" }));
  await expect(onceMore(other.work, undefined)).rejects.toThrow("it has left");
  expect(other.count()).toBe(1);
});

test("one that does not come back in time is the failure that it was; a signal that aborts is one of its own", async () => {
  const waiting = (before: Error) => {
    let count = 0;
    return (signal: AbortSignal | undefined) =>
      new Promise<string>((_, reject) => {
        if (count++ === 0) return reject(before);
        signal!.addEventListener("abort", () => reject(signal!.reason as Error));
      });
  };
  await expect(onceMore(waiting(lost()), undefined, 10)).rejects.toThrow("no link with bob");
  const controller = new AbortController();
  const given = onceMore(waiting(lost()), controller.signal);
  setTimeout(() => controller.abort(new Error("given up")));
  await expect(given).rejects.toThrow("given up");
});
