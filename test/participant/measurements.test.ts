/** Who measures when: the class, and two of a participant's measurements at once. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { Introducer } from "../../introducer.ts";
import { makeIdentity } from "../../native/secure/identity.ts";
import { Measurements } from "../../native/participant/measurements.ts";
import { Participant } from "../../participant.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

describe("measurements", () => {
  test("from the shared port come one after the other, whatever becomes of them", async () => {
    const measurements = new Measurements();
    const log: string[] = [];
    const gates = [0, 1, 2].map(() => Promise.withResolvers<void>());
    const all = gates.map(({ promise }, n) =>
      measurements.alone(async () => {
        log.push(`begins ${n}`);
        await promise;
        log.push(`ends ${n}`);
        if (n === 0) throw new Error("it failed");
        return n;
      }),
    );
    all[0]!.catch(() => {});
    for (const { resolve } of gates.toReversed()) resolve();
    expect(await Promise.allSettled(all)).toMatchObject([{ status: "rejected" }, { value: 1 }, { value: 2 }]);
    expect(log).toEqual(["begins 0", "ends 0", "begins 1", "ends 1", "begins 2", "ends 2"]);
  });

  test("from fresh ports are eight at once, 64 that wait, and no more", async () => {
    const measurements = new Measurements();
    const gate = Promise.withResolvers<void>();
    let [running, most] = [0, 0];
    const all = Array.from({ length: 3_000 }, (_, n) =>
      measurements.beside(async () => {
        most = Math.max(most, ++running);
        await gate.promise;
        running--;
        if (n % 3 === 0) throw new Error("it failed");
        return n;
      }),
    );
    const settled = Promise.allSettled(all);
    gate.resolve();
    const outcomes = await settled;
    expect(most).toBe(8);
    const refused = outcomes.filter((one) => one.status === "fulfilled" && one.value === undefined);
    expect(refused.length).toBe(3_000 - 8 - 64);
    expect(await measurements.beside(async () => "later")).toBe("later");
  });
});

test("two `nat` at once, while it measures anyway, say the same as one alone", async () => {
  await using introducer = Introducer.start({ host: "127.0.0.1", port: 0 });
  const options = { host: "127.0.0.1", port: introducer.port, room: "lobby", identity: makeIdentity() };
  const alice = new Participant({ ...options, name: "alice" });
  await alice.join();
  const reports = await Promise.all([alice.nat(), alice.nat(), alice.nat()]);
  await alice.quit();
  for (const report of reports) expect(report).toEqual(reports[0]!);
  expect(reports[0]).toMatchObject({ mapping: "endpoint-independent", filtering: "let-in" });
});
