import { expect, setDefaultTimeout, test } from "bun:test";
import { once } from "node:events";
import { readdirSync } from "node:fs";
import net from "node:net";
import { Listener } from "../../native/host/listener.ts";
import { unreadAt, until } from "../native-fixture.ts";
import { linuxTest } from "../needing-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

/** Connects; resolves to whether it was accepted and greeted. */
function isGreeted(port: number): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const socket = net.connect(port, "127.0.0.1");
  socket.on("data", () => resolve(true));
  socket.on("error", () => {});
  socket.on("close", () => resolve(false));
  return promise.finally(() => socket.destroy());
}

const descriptors = () => readdirSync("/proc/self/fd").length;

/** Does nothing else until a hundred wait to be accepted. */
function awaitCrowd(port: number): void {
  const giveUpAt = performance.now() + 5000;
  while (unreadAt(port).length < 100 && performance.now() < giveUpAt);
}

/** Tells of each `open` and of each turn of the event loop between, as long as it is let. */
function watchTurns() {
  let isOver = false;
  let opened = 0;
  let most = 0;
  const turn = () => {
    most = Math.max(most, opened);
    opened = 0;
    if (!isOver) setImmediate(turn);
  };
  turn();
  return { opened: () => opened++, most: () => most, stop: () => (isOver = true) };
}

linuxTest.each([
  ["get in", false],
  ["are turned away", true],
])("a hundred who %s at once do not keep others waiting, and nobody is lost", async (_, isFlood) => {
  const problems: string[] = [];
  let accepted = 0;
  let isFlooded = false;
  const turns = watchTurns();
  const listener: Listener<undefined> = new Listener<undefined>(
    {
      hostname: "127.0.0.1",
      port: 0,
      socket: {
        open(socket) {
          if (accepted++ === 1) awaitCrowd(port);
          turns.opened();
          if (!isFlooded) return void socket.write("welcome");
          socket.terminate();
        },
        data: (socket) => void socket.write("still here"),
      },
    },
    (problem) => problems.push(problem),
  );
  const { port } = listener;
  const guest = net.connect(port, "127.0.0.1");
  await once(guest, "data");
  const before = descriptors();
  isFlooded = isFlood;
  const crowd = Bun.spawn([process.execPath, "-e", crowdProgram, String(port)], { stdout: "pipe" });
  expect(await new Response(crowd.stdout).text()).toBe(isFlood ? "0 of 300\n" : "300 of 300\n");
  expect([accepted, turns.most()]).toEqual([301, 8]);
  isFlooded = false;
  guest.write("?");
  expect(String((await once(guest, "data"))[0])).toBe("still here");
  expect(await isGreeted(port)).toBe(true);
  await until("their descriptors are closed", () => descriptors() <= before);
  expect([listener.port, problems]).toEqual([port, []]);
  turns.stop();
  guest.destroy();
  listener.stop();
  expect(await isGreeted(port)).toBe(false);
});

/** Three hundred connect at once; prints how many of them were greeted when all are over, and ends. */
const crowdProgram = `
  const one = (port) => new Promise((resolve) => Bun.connect({ hostname: "127.0.0.1", port, socket: {
    data: (socket) => { resolve(1); socket.end(); }, close: () => resolve(0), error: () => resolve(0) } }).catch(() => resolve(0)));
  const greeted = await Promise.all(Array.from({ length: 300 }, () => one(Number(process.argv[1]))));
  console.log(greeted.reduce((a, b) => a + b), "of", greeted.length);`;

linuxTest("it ends while nobody is accepted, and leaves no descriptor", async () => {
  const before = descriptors();
  let accepted = 0;
  const listener: Listener<undefined> = new Listener<undefined>(
    {
      hostname: "127.0.0.1",
      port: 0,
      socket: {
        open(socket) {
          socket.terminate();
          if (++accepted === 8) queueMicrotask(() => listener.stop());
        },
        data() {},
      },
    },
    (problem) => expect(problem).toBe(""),
  );
  const { port } = listener;
  const crowd = Array.from({ length: 20 }, () => isGreeted(port));
  expect(await Promise.all(crowd)).not.toContain(true);
  expect(accepted).toBe(8);
  expect(await isGreeted(port)).toBe(false);
  await until("their descriptors are closed", () => descriptors() <= before);
});

test("a port that is taken is an error at once", () => {
  const options = { hostname: "127.0.0.1", socket: { data() {} } };
  const first = new Listener<undefined>({ ...options, port: 0 }, () => {});
  expect(() => new Listener<undefined>({ ...options, port: first.port }, () => {})).toThrow(/listen/);
  first.stop();
});

linuxTest("without a descriptor left it waits, says so once, and takes who has waited", async () => {
  const script = `ulimit -n 64; exec '${process.execPath}' '${import.meta.dir}/exhausted-fixture.ts'`;
  await using program = Bun.spawn(["sh", "-c", script], { stdin: "pipe", stdout: "pipe", stderr: "inherit" });
  let told = "";
  const reading = (async () => {
    for await (const text of program.stdout.pipeThrough(new TextDecoderStream())) told += text;
  })();
  await until("it listens", () => told.includes("port "));
  const port = Number(/port (\d+)/.exec(told)![1]);
  const greeted = Promise.all([isGreeted(port), isGreeted(port)]);
  await until("it says so", () => told.includes("problem "));
  // What is measured is how much work waiting is: a spinning accept takes all of this second.
  await Bun.sleep(1000);
  program.stdin.write("go on\n");
  await program.stdin.flush();
  expect(await greeted).toEqual([true, true]);
  program.kill();
  await reading;
  expect(told.match(/problem /g)).toHaveLength(1);
  expect(told).toContain("no descriptor is left (EMFILE)");
  expect(Number(/busy (\d+)/.exec(told)![1])).toBeLessThan(500);
});
